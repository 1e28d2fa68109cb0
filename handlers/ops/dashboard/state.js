/* What all pages share: the gateway, its workspaces, and the one that is looked at. */
import { admin, all } from "./api.js";

const WORKSPACE = "conch.workspace";

export let about = null;
export let workspaces = [];
export let plans = [];

/** The API key of the playground: in memory only, and of one workspace. */
export const play = { key: "", workspace: "" };

let changed = () => {};

/** Have `listener` called when another workspace is chosen, or this one has changed. */
export function listen(listener) {
  changed = listener;
}

/** Ask the gateway for all of it. Throws ApiError. */
export async function refresh() {
  const [told, found, known] = await Promise.all([admin("/about"), all("/workspaces"), all("/plans")]);
  about = told;
  workspaces = found;
  plans = known;
}

/** The workspace that is looked at; null where there is none. */
export function current() {
  const name = sessionStorage.getItem(WORKSPACE);
  return workspaces.find((each) => each.name === name) ?? workspaces[0] ?? null;
}

/** Look at another workspace. */
export function choose(name) {
  sessionStorage.setItem(WORKSPACE, name);
  changed();
}

/** A workspace as it stands now: a new one is looked at. */
export function put(workspace) {
  workspaces = [...workspaces.filter((each) => each.name !== workspace.name), workspace];
  workspaces.sort((a, b) => (a.name < b.name ? -1 : 1));
  choose(workspace.name);
}

/** Forget it all. */
export function leave() {
  about = null;
  workspaces = plans = [];
  Object.assign(play, { key: "", workspace: "" });
}
