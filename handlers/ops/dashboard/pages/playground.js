/* Playground: the gateway's own API with a key of the workspace, one view for each kind of model. */
import { admin, v1 } from "../api.js";
import { announce, h } from "../dom.js";
import { button, choice, empty, field, load, page, select } from "../parts.js";
import { about, play } from "../state.js";
import * as chat from "../play/chat.js";
import * as pictures from "../play/pictures.js";
import * as speech from "../play/speech.js";
import * as transcription from "../play/transcription.js";

const KINDS = [
  ["chat", "Chat", chat],
  ["image", "Pictures", pictures],
  ["speech", "Speech", speech],
  ["transcription", "Transcription", transcription],
];

export function open(workspace) {
  const place = h("div");
  const stop = new AbortController();
  let end = () => {};
  const close = () => {
    end();
    stop.abort();
  };
  const draw = () => {
    end();
    if (!play.key || play.workspace !== workspace.name) {
      place.replaceChildren(keyForm(workspace, draw));
      return;
    }
    load(place, async () => (await v1("/models", play.key)).json(), (found) => {
      const ids = new Set(found.data.map((model) => model.id));
      return kinds(about.models.filter((model) => ids.has(model.id)), draw, (closing) => (end = closing));
    });
  };
  draw();
  return { view: page("Playground", "Real requests through the gateway: they are limited, counted and paid like a client's.", null, place), close };
}

function kinds(models, draw, ending) {
  const known = KINDS.filter(([task]) => models.some((model) => model.task === task));
  const other = button("Use another key", { kind: "plain small", onclick: () => {
    play.key = "";
    draw();
  } });
  if (!known.length) return h("div", { class: "panel" }, empty("No model for this key", "None of the models that this key may use is verified at the moment.", other));
  const list = select([], undefined, { "aria-label": "Model", class: "model" });
  const stage = h("div");
  let end = () => {};
  ending(() => end());
  const pick = (task) => {
    const [, , kind] = known.find(([each]) => each === task);
    const fitting = models.filter((model) => model.task === task);
    list.replaceChildren(...fitting.map((model) => h("option", { value: model.id }, model.id)));
    end();
    const shown = kind.open({ key: play.key, model: () => fitting.find((model) => model.id === list.value) });
    end = shown.close;
    list.onchange = () => shown.changed?.();
    stage.replaceChildren(shown.view);
  };
  const tabs = choice("Kind of model", known.map(([task, label]) => [task, label]), known[0][0], pick);
  return h("div", { class: "stack roomy" }, h("div", { class: "bar" }, tabs, h("div", { class: "row nowrap" }, list, other)), stage);
}

/** A key typed, or made for an hour. */
function keyForm(workspace, draw) {
  const key = h("input", { type: "password", name: "key", autocomplete: "off", spellcheck: "false", placeholder: "rp_live_…" });
  const told = h("div");
  const use = (secret) => {
    Object.assign(play, { key: secret, workspace: workspace.name });
    draw();
  };
  const make = button("Make a key for an hour", { kind: "primary", onclick: () => load(told, async () => {
    const body = { workspace: workspace.name, name: "playground", expires: "1h" };
    return admin("/keys", { method: "POST", body });
  }, (made) => {
    use(made.key);
    announce("A key was made for an hour");
    return [];
  }) });
  const typed = h("form", { class: "stack", onsubmit: (event) => {
    event.preventDefault();
    if (key.value.trim()) use(key.value.trim());
  } }, field("API key", key, "It is kept in this page's memory only."), h("div", { class: "row" }, button("Use this key", { type: "submit" })));
  return h("section", { class: "panel stack narrow", "aria-label": "Key" },
    h("p", {}, `The playground calls the API as a client of ${workspace.name} does, with a key.`),
    h("div", { class: "row" }, make), told, h("p", { class: "or muted" }, "or"), typed);
}
