/* A picture from words. */
import { v1 } from "../api.js";
import { announce, h } from "../dom.js";
import { button, empty, field, select } from "../parts.js";
import { runner, took } from "./run.js";

export function open({ key, model }) {
  const prompt = h("textarea", { rows: "3" });
  prompt.value = "A red house and a boat by the sea at sunset";
  const size = select([["auto", "The model's own"], "256x256", "512x512", "768x512", "1024x1024"], "512x512");
  const n = select(["1", "2", "4"], "1");
  const seed = h("input", { inputmode: "numeric", autocomplete: "off", placeholder: "any" });
  const stage = h("div", { class: "gallery" }, empty("No picture yet", "It appears here."));
  const make = button("Draw", { kind: "primary", type: "submit" });
  const run = runner(stage, (busy) => {
    make.textContent = busy ? "Stop" : "Draw";
    stage.setAttribute("aria-busy", String(busy));
  });
  const draw = () => run.run(async (signal) => {
    stage.replaceChildren(h("p", { class: "muted", role: "status" }, "Drawing …"));
    const started = performance.now();
    const body = { model: model().id, prompt: prompt.value, size: size.value, n: Number(n.value), output_format: "png" };
    if (seed.value.trim()) body.seed = Number(seed.value);
    const response = await v1("/images/generations", key, { body, signal }).catch((error) => {
      stage.replaceChildren();
      throw error;
    });
    const { data } = await response.json();
    const shown = data.map((each) => h("img", { src: `data:image/png;base64,${each.b64_json}`, alt: prompt.value }));
    stage.replaceChildren(h("div", { class: "pictures" }, shown), took(response, started));
    announce(data.length === 1 ? "The picture is there" : `${data.length} pictures are there`);
  });
  const form = h("form", { class: "panel stack", onsubmit: (event) => {
    event.preventDefault();
    run.busy ? run.stop() : draw();
  } }, field("What it shows", prompt), h("div", { class: "fields" }, field("Size", size), field("How many", n), field("Seed", seed)), h("div", { class: "row" }, make));
  return { view: h("div", { class: "halves" }, form, h("section", { class: "panel", "aria-label": "Pictures" }, stage)), close: () => run.stop() };
}
