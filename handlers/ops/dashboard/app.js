/* The frame: who is signed in, which workspace, which page. */
import { about, choose, current, leave, listen, refresh, workspaces } from "./state.js";
import { admin, session } from "./api.js";
import { announce, h, icon, unique } from "./dom.js";
import { button, empty, field, page, problem, busy, select } from "./parts.js";
import { createWorkspace } from "./workspace.js";

const PAGES = [
  ["deployments", "Deployments"],
  ["keys", "API keys"],
  ["usage", "Usage"],
  ["billing", "Billing"],
  ["playground", "Playground"],
  ["webhooks", "Webhooks"],
  ["connect", "Connect"],
];
const root = document.getElementById("root");
let cleanUp = () => {};
let turn = 0;

session.onEnd = (error) => {
  signOut();
  signIn(error);
};
listen(() => go(false));
addEventListener("hashchange", () => location.hash.startsWith("#/") && session.token && go(true));
session.token ? start() : signIn();

function signOut() {
  cleanUp();
  cleanUp = () => {};
  turn += 1;
  leave();
  session.close();
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
}

function signIn(error) {
  document.title = "Sign in · Conch";
  const token = h("input", { type: "password", name: "token", autocomplete: "current-password", required: true, spellcheck: "false" });
  const told = h("div", {}, error && problem(error));
  const enter = button("Sign in", { kind: "primary", type: "submit" });
  const form = h("form", { class: "panel stack", onsubmit: (event) => {
    event.preventDefault();
    told.replaceChildren();
    busy(enter, admin("/about", { token: token.value }).then(() => {
      session.open(token.value);
      return start();
    }, (refusal) => {
      told.replaceChildren(problem(refusal));
      token.select();
    }));
  } },
  h("img", { src: "dashboard/conch.svg", alt: "", width: "44", height: "44" }),
  h("div", {}, h("h1", {}, "Sign in to Conch"), h("p", { class: "muted" }, "The gateway's dashboard, for its operators.")),
  h("input", { type: "text", autocomplete: "username", value: "admin", hidden: true, "aria-hidden": "true" }),
  field("Admin token", token, "What CONCH_ADMIN_TOKEN says where the gateway runs. It stays in this tab until you sign out or close it."),
  told, enter);
  root.replaceChildren(h("main", { id: "main", class: "door", tabindex: "-1" }, form));
  token.focus();
}

async function start() {
  root.replaceChildren(h("main", { id: "main", class: "door" }, h("p", { class: "muted", role: "status" }, "Loading …")));
  try {
    await refresh();
  } catch (error) {
    if (session.token) root.replaceChildren(h("main", { id: "main", class: "door" }, problem(error, start)));
    return;
  }
  frame();
  go(true);
}

function frame() {
  const id = unique("workspace");
  const links = PAGES.map(([name, label]) => h("li", {}, h("a", { href: `#/${name}`, "data-page": name }, icon(name), label)));
  const out = button("Sign out", { kind: "plain small", icon: "out", onclick: () => {
    signOut();
    signIn();
  } });
  root.replaceChildren(h("div", { class: "frame" },
    h("header", { class: "side" },
      h("div", { class: "brand" }, h("img", { src: "dashboard/conch.svg", alt: "" }), "Conch"),
      h("div", { class: "switch" }, h("label", { for: id }, "Workspace"), h("div", { id: "switch", class: "row nowrap", "data-for": id })),
      h("nav", { class: "nav", "aria-label": "Pages" }, h("ul", {}, links)),
      h("div", { class: "side-end" }, h("span", { class: "version" }, `v${about.version}`), out)),
    h("main", { id: "main", tabindex: "-1" })));
}

function fillSwitch() {
  const place = document.getElementById("switch");
  const names = workspaces.map((each) => each.name);
  const list = select(names.length ? names : [["", "none yet"]], current()?.name ?? "", {
    id: place.dataset.for,
    onchange: () => choose(list.value),
  });
  const make = button("", { icon: "plus", kind: "square", "aria-label": "New workspace", title: "New workspace", onclick: () => createWorkspace() });
  const inside = place.contains(document.activeElement);
  place.replaceChildren(list, make);
  if (inside) list.focus();
}

/** Show the page that the address names; `moved`: the focus goes to its heading. */
async function go(moved) {
  const asked = location.hash.slice(2).split("/")[0];
  const [name, label] = PAGES.find(([each]) => each === asked) ?? PAGES[0];
  const mine = ++turn;
  cleanUp();
  cleanUp = () => {};
  fillSwitch();
  document.title = `${label} · Conch`;
  for (const link of document.querySelectorAll(".nav a")) {
    link.dataset.page === name ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
    if (link.dataset.page === name) link.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  const main = document.getElementById("main");
  const { open } = await import(`./pages/${name}.js`);
  if (mine !== turn) return;
  const needs = !["deployments", "webhooks", "connect"].includes(name);
  const { view, close = () => {} } = needs && !current() ? nobody(label) : open(current());
  cleanUp = close;
  main.replaceChildren(view);
  if (moved) {
    scrollTo(0, 0);
    view.querySelector("h1").focus({ preventScroll: true });
    announce(label);
  }
}

function nobody(label) {
  const make = button("New workspace", { kind: "primary", icon: "plus", onclick: () => createWorkspace() });
  const text = "Keys, usage and credits belong to a workspace: a team or a customer.";
  return { view: page(label, null, null, h("div", { class: "panel" }, empty("There is no workspace yet", text, make))) };
}
