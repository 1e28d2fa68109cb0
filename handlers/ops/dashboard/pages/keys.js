/* API keys: made, rotated, revoked; what each may do and when it was last used. */
import { admin } from "../api.js";
import { announce, h } from "../dom.js";
import { ago, count, date } from "../format.js";
import { ask, badge, button, empty, field, load, page, panel, secret, select, show, table } from "../parts.js";
import { about, plans } from "../state.js";

const LIFETIMES = [["", "Never"], ["7d", "In 7 days"], ["30d", "In 30 days"], ["90d", "In 90 days"], ["365d", "In a year"], ["date", "On a date …"]];
const GRACES = [["0s", "At once"], ["1h", "After an hour"], ["24h", "After a day"], ["7d", "After a week"]];

export function open(workspace) {
  const place = h("div");
  const ended = h("input", { type: "checkbox", id: "ended", onchange: () => draw() });
  let found = [];
  let next = null;
  const draw = () => place.replaceChildren(list());
  const refresh = () => load(place, () => admin(`/keys?workspace=${encodeURIComponent(workspace.name)}&limit=200`), (first) => {
    found = first.data;
    next = first.next;
    return list();
  });
  const more = async () => {
    const page = await admin(`/keys?workspace=${encodeURIComponent(workspace.name)}&limit=200&after=${encodeURIComponent(next)}`);
    found.push(...page.data);
    next = page.next;
    draw();
  };
  const create = () => askForKey(workspace, (made) => {
    tell("Your new key", made);
    refresh();
  });
  const list = () => {
    const shown = found.filter((key) => ended.checked || stateOf(key)[1] !== "").reverse();
    if (!shown.length) return empty("No keys yet", "A key lets a client of this workspace use its models.", button("Create key", { kind: "primary", icon: "plus", onclick: create }));
    return h("div", { class: "stack" }, table(`API keys of ${workspace.name}`, columns(refresh), shown), next && button("Show more", { onclick: more }));
  };
  refresh();
  const show = h("label", { class: "choice fine" }, ended, "Show ended keys");
  const view = page("API keys", `Of the workspace ${workspace.name}. The secret of a key is shown once, when it is made.`,
    button("Create key", { kind: "primary", icon: "plus", onclick: create }),
    panel("Keys", { actions: show }, place));
  return { view };
}

const columns = (refresh) => [
  { name: "Key", cell: (key) => [h("strong", {}, key.name || "unnamed"), h("span", { class: "under mono" }, `${key.prefix}…`)] },
  { name: "State", cell: (key) => badge(...stateOf(key)) },
  { name: "Scope", cell: scope },
  { name: "Limit", cell: (key) => (key.limit ? dated(`${count(key.limit)}/min`) : never("plan's")) },
  { name: "Created", cell: (key) => dated(date(key.created_at)) },
  { name: "Last used", cell: (key) => (key.last_used_at ? dated(ago(key.last_used_at)) : never()) },
  { name: "Expires", cell: (key) => (key.expires_at ? dated(date(key.expires_at)) : never()) },
  { name: "Actions", actions: true, cell: (key) => actions(key, refresh) },
];

const dated = (text) => h("span", { class: "date" }, text);
const never = (text = "never") => h("span", { class: "muted" }, text);

function stateOf(key) {
  if (key.revoked_at) return ["Revoked", ""];
  if (key.expires_at && key.expires_at / 1000 <= Date.now()) return ["Expired", ""];
  if (key.expires_at && key.expires_at / 1000 - Date.now() < 3 * 86_400_000) return ["Ends soon", "warn"];
  return ["Active", "good"];
}

function scope(key) {
  if (key.pipeline) return h("span", { class: "mono" }, key.pipeline);
  return key.models ? h("span", { class: "mono" }, key.models.join(", ")) : "All models";
}

function actions(key, refresh) {
  if (stateOf(key)[1] === "") return "";
  const name = key.name || key.prefix;
  return h("div", { class: "row end nowrap" },
    button("Rotate", { kind: "small", "aria-label": `Rotate ${name}`, onclick: () => rotate(key, name, refresh) }),
    button("Revoke", { kind: "small danger", "aria-label": `Revoke ${name}`, onclick: () => revoke(key, name, refresh) }));
}

function rotate(key, name, refresh) {
  ask(`Rotate ${name}`, {
    action: "Rotate",
    body: [
      h("p", {}, "A new key with the same rights takes its place."),
      field("The old key stops", select(GRACES, "24h", { name: "grace" })),
    ],
    submit: async (form) => {
      const made = await admin(`/keys/${key.id}/rotate`, { method: "POST", body: { grace: form.get("grace") } });
      tell("Its successor", made);
      refresh();
    },
  });
}

function revoke(key, name, refresh) {
  ask(`Revoke ${name}?`, {
    action: "Revoke key",
    kind: "primary danger",
    body: h("p", {}, "Its next request is refused. This cannot be undone."),
    submit: async () => {
      await admin(`/keys/${key.id}/revoke`, { method: "POST" });
      announce("The key was revoked", { seen: true });
      refresh();
    },
  });
}

function tell(title, made) {
  show(title, [
    h("p", {}, "Copy it now: only a digest of it is kept, so it cannot be shown again."),
    secret(made.key),
  ], "I have copied it");
}

/** Ask what a key of `workspace` is to be; `done` gets it, with its secret. */
function askForKey(workspace, done) {
  const date = h("input", { type: "date", name: "date" });
  const dated = field("Last day before it ends (UTC)", date);
  dated.hidden = true;
  const expires = select(LIFETIMES, "", { name: "expires", onchange: () => (dated.hidden = expires.value !== "date") });
  const plan = plans.find((each) => each.name === workspace.plan);
  const ceiling = workspace.ceiling ?? plan?.ceiling;
  ask("Create key", {
    action: "Create key",
    body: [
      field("Name", h("input", { name: "name", autocomplete: "off" }), "What it is for: a service, a person, a test."),
      scopes(workspace),
      h("div", { class: "fields" },
        field("Requests per minute", h("input", { name: "limit", inputmode: "numeric", autocomplete: "off", placeholder: plan ? count(plan.default) : "" }), ceiling ? `At most ${count(ceiling)}.` : null),
        field("Expires", expires)),
      dated,
    ],
    submit: async (form) => done(await admin("/keys", { method: "POST", body: wanted(workspace, form) })),
  });
}

function scopes(workspace) {
  const models = about.models.filter((model) => model.workspaces.includes("*") || model.workspaces.includes(workspace.name));
  const pipelines = about.pipelines.filter((pipeline) => pipeline.workspace === workspace.name);
  const some = h("div", { class: "choices", role: "group", "aria-label": "Models", hidden: true }, models.map((model) =>
    h("label", { class: "choice" }, h("input", { type: "checkbox", name: "model", value: model.id }), h("span", {}, model.id, " ", h("span", { class: "muted fine" }, model.task)))));
  const piped = field("Pipeline", select(pipelines.map((each) => each.id), undefined, { name: "pipeline" }));
  piped.hidden = true;
  const pick = (value) => {
    some.hidden = value !== "models";
    piped.hidden = value !== "pipeline";
  };
  const radio = (value, label) => h("label", { class: "choice" }, h("input", { type: "radio", name: "scope", value, checked: value === "all", onchange: () => pick(value) }), label);
  return h("fieldset", {}, h("legend", {}, "It may use"),
    radio("all", "All models of the workspace"), radio("models", "Only these models"), some,
    pipelines.length > 0 && [radio("pipeline", "One pipeline"), piped]);
}

/** The body of POST /admin/keys; what cannot be is refused there. */
function wanted(workspace, form) {
  const body = { workspace: workspace.name, name: form.get("name") };
  const limit = form.get("limit").trim();
  if (limit) body.limit = /^\d+$/.test(limit) ? Number(limit) : limit;
  if (form.get("scope") === "models") body.models = form.getAll("model");
  if (form.get("scope") === "pipeline") body.pipeline = form.get("pipeline");
  const expires = form.get("expires") === "date" ? form.get("date") : form.get("expires");
  if (form.get("expires")) body.expires = expires;
  return body;
}
