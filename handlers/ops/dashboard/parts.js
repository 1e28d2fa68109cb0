/* The parts that pages are made of. */
import { announce, h, icon, unique } from "./dom.js";

/** A button; `onclick` may return a promise, for which it is busy. */
export function button(label, { onclick, kind = "", icon: name, type = "button", ...rest } = {}) {
  const made = h("button", { type, class: `button ${kind}`, ...rest }, name && icon(name), label);
  if (onclick) made.addEventListener("click", () => busy(made, onclick(made)));
  return made;
}

/** Show that a button's work is under way; what fails is told by who does the work. */
export async function busy(made, work) {
  if (!(work instanceof Promise)) return;
  made.setAttribute("aria-busy", "true");
  made.disabled = true;
  try {
    await work;
  } finally {
    made.removeAttribute("aria-busy");
    made.disabled = false;
  }
}

/** A control with its label, and a hint below. */
export function field(label, control, hint) {
  control.id ||= unique("field");
  const told = hint && h("span", { class: "hint", id: unique("hint") }, hint);
  if (told) control.setAttribute("aria-describedby", told.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, told);
}

/** A list to choose one of; `options`: values, or [value, label]. */
export function select(options, value, attributes = {}) {
  const made = h("select", attributes, options.map((option) => {
    const [id, label] = Array.isArray(option) ? option : [option, option];
    return h("option", { value: id }, label);
  }));
  if (value !== undefined) made.value = value;
  return made;
}

export const badge = (text, kind = "") => h("span", { class: `badge ${kind}` }, text);

/** What the gateway refused, as it said it. */
export function problem(error, retry) {
  const about = [error.code, error.param && `field ${error.param}`, error.id && `request ${error.id}`].filter(Boolean);
  return h("div", { class: "note bad", role: "alert" },
    error.message,
    about.length > 0 && h("span", { class: "detail mono" }, about.join(" · ")),
    retry && h("div", {}, button("Try again", { kind: "small", onclick: retry })));
}

/** What there is to see where there is nothing yet. */
export function empty(title, text, ...actions) {
  return h("div", { class: "empty" }, h("p", { class: "title" }, title), h("p", {}, text), actions);
}

const waiting = () => h("div", { class: "loading", role: "status" }, h("i"), h("i"), h("i"), h("span", { class: "unseen" }, "Loading"));

/** Fill `place` with what `render` makes of what `fetch` brings; with the error and a way to try again, if it fails. */
export async function load(place, fetch, render) {
  const quiet = setTimeout(() => place.replaceChildren(waiting()), place.childElementCount ? 400 : 0);
  place.setAttribute("aria-busy", "true");
  try {
    const found = await fetch();
    clearTimeout(quiet);
    place.replaceChildren(...[render(found)].flat().filter(Boolean));
  } catch (error) {
    clearTimeout(quiet);
    place.replaceChildren(problem(error, () => load(place, fetch, render)));
    if (error.status === undefined) throw error;
  } finally {
    place.removeAttribute("aria-busy");
  }
}

/** A table that becomes a list of cards on a phone. `columns`: { name, cell(row), number?, actions? }. */
export function table(caption, columns, rows) {
  const head = columns.map((column) =>
    h("th", { scope: "col", role: "columnheader", class: column.number && "number" },
      column.actions ? h("span", { class: "unseen" }, column.name) : column.name));
  const kind = (column) => [column.number && "number", column.actions && "actions"].filter(Boolean).join(" ") || null;
  const body = rows.map((row) =>
    h("tr", { role: "row" }, columns.map((column) =>
      h("td", { role: "cell", class: kind(column), "data-name": column.name }, h("div", {}, column.cell(row))))));
  return h("table", { class: "table", role: "table" },
    h("caption", { class: "unseen" }, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
    h("tbody", { role: "rowgroup" }, body));
}

/** Figures side by side: [name, value, aside]. */
export function tiles(...figures) {
  return h("dl", { class: "tiles" }, figures.map(([name, value, ...aside]) =>
    h("div", { class: "tile" }, h("dt", {}, name), h("dd", {}, value), aside.map((each) => each && h("dd", { class: "aside" }, each)))));
}

/** A part of a page under a heading of its own. */
export function panel(title, { text, actions } = {}, ...children) {
  const id = unique("panel");
  return h("section", { class: "panel", "aria-labelledby": id },
    h("header", {}, h("div", {}, h("h2", { id }, title), text && h("p", {}, text)), actions), children);
}

/** A page: its heading, which takes the focus, what it is for, and what it shows. */
export function page(title, text, actions, ...children) {
  return h("div", { class: "page" },
    h("div", { class: "page-head" },
      h("div", {}, h("h1", { tabindex: "-1" }, title), text && h("p", {}, text)),
      actions && h("div", { class: "row" }, actions)),
    children);
}

/** Ask in a dialog: `submit(form)` does what was asked, and may throw an ApiError, which is shown. */
export function ask(title, { body = [], action, kind = "primary", submit }) {
  const id = unique("dialog");
  const told = h("div");
  const confirm = button(action, { kind, type: "submit" });
  const form = h("form", { novalidate: true }, h("h2", { id }, title), body, told,
    h("div", { class: "row end" }, button("Cancel", { onclick: () => dialog.close() }), confirm));
  const dialog = h("dialog", { "aria-labelledby": id, onclose: () => dialog.remove() }, form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    told.replaceChildren();
    busy(confirm, submit(new FormData(form)).then(() => dialog.close(), (error) => told.replaceChildren(problem(error))));
  });
  return open(dialog);
}

/** Show something in a dialog until it is closed. */
export function show(title, body, close = "Done") {
  const id = unique("dialog");
  const dialog = h("dialog", { "aria-labelledby": id, onclose: () => dialog.remove() },
    h("div", { class: "dialog" }, h("h2", { id, tabindex: "-1" }, title), body,
      h("div", { class: "row end" }, button(close, { kind: "primary", onclick: () => dialog.close() }))));
  return open(dialog);
}

function open(dialog) {
  document.body.append(dialog);
  dialog.showModal();
  dialog.querySelector("input, select, textarea, h2")?.focus();
  return dialog;
}

/** Put a text on the clipboard; where the browser forbids it, select what is shown instead. */
export async function copy(text, shown) {
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied", { seen: true });
  } catch {
    getSelection().selectAllChildren(shown);
    announce("Copying is not allowed here; it is selected instead", { seen: true });
  }
}

/** A secret that is shown this once. */
export function secret(text) {
  const code = h("code", {}, text);
  return h("div", { class: "secret" }, code, button("Copy", { icon: "copy", kind: "small", onclick: () => copy(text, code) }));
}

/** Lines of code with a button that copies them. */
export function code(text, label) {
  const shown = h("pre", { tabindex: "0", role: "region", "aria-label": label }, h("code", {}, text));
  return h("div", { class: "code" }, shown, button("Copy", { icon: "copy", kind: "small", onclick: () => copy(text, shown) }));
}

/** One of several views: `choices` are [id, label]; `choose(id)` is called at once and for every change. */
export function choice(label, choices, chosen, choose) {
  const buttons = choices.map(([id, name]) => h("button", { type: "button", "data-id": id, onclick: () => pick(id) }, name));
  const pick = (id) => {
    for (const each of buttons) each.setAttribute("aria-pressed", String(each.dataset.id === id));
    choose(id);
  };
  const group = h("div", { class: "tabs", role: "group", "aria-label": label }, buttons);
  pick(chosen);
  return group;
}
