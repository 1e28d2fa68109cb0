/* A text, spoken. */
import { v1 } from "../api.js";
import { announce, h } from "../dom.js";
import { button, empty, field, select } from "../parts.js";
import { runner, took, urls } from "./run.js";

export function open({ key, model }) {
  const text = h("textarea", { rows: "4" });
  text.value = "Conch gives Triton a voice. The sea is calm today.";
  const voice = select([]);
  const named = h("input", { autocomplete: "off" });
  const speed = select(["0.5", "0.75", "1", "1.25", "1.5", "2"], "1");
  const stage = h("div", { class: "sound" }, empty("No sound yet", "It is played here."));
  const kept = urls();
  const speak = button("Speak", { kind: "primary", type: "submit" });
  const run = runner(stage, (busy) => (speak.textContent = busy ? "Stop" : "Speak"));
  const voices = h("div");
  const changed = () => {
    const known = model().voices;
    voice.replaceChildren(...known.map((name) => h("option", { value: name }, name)));
    voices.replaceChildren(known.length ? field("Voice", voice) : field("Voice", named));
  };
  changed();
  const say = () => run.run(async (signal) => {
    stage.replaceChildren(h("p", { class: "muted", role: "status" }, "Speaking …"));
    const started = performance.now();
    const body = { model: model().id, input: text.value, voice: model().voices.length ? voice.value : named.value, speed: Number(speed.value), response_format: "wav" };
    const response = await v1("/audio/speech", key, { body, signal }).catch((error) => {
      stage.replaceChildren();
      throw error;
    });
    const sound = new Blob([await response.arrayBuffer()], { type: "audio/wav" });
    const player = h("audio", { controls: true, src: kept.of(sound), "aria-label": "What was spoken" });
    stage.replaceChildren(player, took(response, started, `${Math.round(sound.size / 1024)} KiB`));
    announce("The sound is there");
    player.play().catch(() => announce("Press play to hear it", { seen: true }));
  });
  const form = h("form", { class: "panel stack", onsubmit: (event) => {
    event.preventDefault();
    run.busy ? run.stop() : say();
  } }, field("Text", text), h("div", { class: "fields" }, voices, field("Speed", speed)), h("div", { class: "row" }, speak));
  const view = h("div", { class: "halves" }, form, h("section", { class: "panel", "aria-label": "Sound" }, stage));
  return { view, changed, close: () => {
    run.stop();
    kept.free();
  } };
}
