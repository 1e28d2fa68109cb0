/* Speech, written down: a recording from the microphone, or a file. */
import { v1 } from "../api.js";
import { announce, h, icon } from "../dom.js";
import { button, empty, field, problem } from "../parts.js";
import { runner, took, urls } from "./run.js";
import { record } from "./wav.js";

export function open({ key, model }) {
  const stage = h("div", { class: "sound" }, empty("Nothing heard yet", "What is said is written here."));
  const kept = urls();
  const run = runner(stage);
  const clock = h("span", { class: "muted", "aria-hidden": "true" });
  let recording = null;
  let timer = 0;

  const send = (sound, name) => run.run(async (signal) => {
    const started = performance.now();
    const form = new FormData();
    form.append("model", model().id);
    form.append("file", sound, name);
    const player = h("audio", { controls: true, src: kept.of(sound), "aria-label": "The recording" });
    stage.replaceChildren(player, h("p", { class: "muted", role: "status" }, "Listening …"));
    const response = await v1("/audio/transcriptions", key, { form, signal }).catch((error) => {
      stage.replaceChildren(player);
      throw error;
    });
    const { text } = await response.json();
    const heard = text.trim() || "Nothing was understood.";
    stage.replaceChildren(player, h("blockquote", { class: "heard" }, heard), took(response, started, `${Math.round(sound.size / 1024)} KiB`));
    announce(heard);
  });

  const toggle = button("Record", { kind: "primary", icon: "mic", onclick: change });

  function show(recordingNow) {
    toggle.replaceChildren(icon(recordingNow ? "stop" : "mic"), recordingNow ? "Stop and transcribe" : "Record");
    toggle.classList.toggle("danger", recordingNow);
    clearInterval(timer);
    const begun = Date.now();
    clock.textContent = recordingNow ? "0:00" : "";
    if (recordingNow) timer = setInterval(() => (clock.textContent = minutes(Date.now() - begun)), 500);
  }

  async function change() {
    if (recording) {
      const ended = recording;
      recording = null;
      show(false);
      send(await ended.stop(), "recording.wav");
      return;
    }
    try {
      recording = await record();
      show(true);
      announce("Recording");
    } catch (error) {
      const why = navigator.mediaDevices ? error.message : "a page needs HTTPS, or the machine itself, for that";
      stage.replaceChildren(problem({ message: `The microphone cannot be used: ${why}.` }));
    }
  }

  const file = h("input", { type: "file", accept: "audio/*,video/*", onchange: () => file.files[0] && send(file.files[0], file.files[0].name) });
  const controls = h("section", { class: "panel stack", "aria-label": "Recording" },
    h("p", {}, "Say something; it is sent as a WAV file when you stop."),
    h("div", { class: "row" }, toggle, clock), field("Or a file", file));
  const view = h("div", { class: "halves" }, controls, h("section", { class: "panel", "aria-label": "Transcript" }, stage));
  return { view, close: () => {
    clearInterval(timer);
    recording?.stop();
    run.stop();
    kept.free();
  } };
}

function minutes(milliseconds) {
  const seconds = Math.floor(milliseconds / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}
