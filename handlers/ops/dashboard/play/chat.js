/* A conversation, streamed; with pictures that are shown to the model and tools that it may call. */
import { events, v1 } from "../api.js";
import { announce, h, icon } from "../dom.js";
import { button, field } from "../parts.js";
import { runner, took } from "./run.js";

const TOOLS = JSON.stringify([{
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather in a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}], null, 2);

export function open({ key, model }) {
  const messages = [];
  let pictures = [];
  const log = h("div", { class: "log", role: "log", "aria-label": "Conversation", tabindex: "0" }, hello());
  const settings = controls();
  const input = h("textarea", { rows: "1", "aria-label": "Message", placeholder: "Write a message …", onkeydown: (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      say();
    }
  } });
  const send = h("button", { type: "submit", class: "button primary square", "aria-label": "Send" }, icon("send"));
  const shown = h("div", { class: "attached" });
  const file = h("input", { type: "file", accept: "image/*", multiple: true, hidden: true, onchange: () => attach() });
  const run = runner(log, (busy) => {
    send.replaceChildren(icon(busy ? "stop" : "send"));
    send.setAttribute("aria-label", busy ? "Stop" : "Send");
  });

  async function attach() {
    pictures.push(...(await Promise.all([...file.files].map(dataUrl))));
    file.value = "";
    shown.replaceChildren(...pictures.map((url) => h("img", { src: url, alt: "attached picture" })));
  }

  function say() {
    if (run.busy) return run.stop();
    const text = input.value.trim();
    if (!text) return undefined;
    const content = pictures.length ? [{ type: "text", text }, ...pictures.map((url) => ({ type: "image_url", image_url: { url } }))] : text;
    if (!messages.length) log.replaceChildren();
    messages.push({ role: "user", content });
    log.append(bubble("user", pictures.map((url) => h("img", { src: url, alt: "" })), text));
    input.value = "";
    pictures = [];
    shown.replaceChildren();
    return answer();
  }

  /** Ask for the next message, show it as it comes, and keep it. */
  const answer = () => run.run(async (signal) => {
    const started = performance.now();
    const body = { ...settings.read(messages), model: model().id, stream: true, stream_options: { include_usage: true } };
    const response = await v1("/chat/completions", key, { body, signal });
    const turn = reply(log);
    let usage = null;
    try {
      for await (const chunk of events(response)) {
        usage = chunk.usage ?? usage;
        if (chunk.choices.length) turn.add(chunk.choices[0].delta, chunk.choices[0].finish_reason);
      }
    } finally {
      messages.push(turn.message());
    }
    turn.node.append(took(response, started, usage && `${usage.prompt_tokens} + ${usage.completion_tokens} tokens`, turn.finish));
    announce(turn.message().content ?? "The model calls a tool");
    if (turn.calls.length) turn.node.append(results(turn.calls, (told) => {
      messages.push(...told);
      answer();
    }));
    log.scrollTop = log.scrollHeight;
  });

  const clear = button("Clear", { kind: "plain small", onclick: () => {
    run.stop();
    messages.length = 0;
    log.replaceChildren(hello());
  } });
  const form = h("form", { class: "composer", onsubmit: (event) => {
    event.preventDefault();
    say();
  } }, shown, h("div", { class: "row nowrap" },
    button("", { kind: "plain square", icon: "picture", "aria-label": "Attach a picture", title: "Attach a picture", onclick: () => file.click() }), file, input, send));
  const view = h("div", { class: "panel chat" }, log, form, h("div", { class: "row between" }, settings.view, clear));
  return { view, close: () => run.stop() };
}

const hello = () => h("p", { class: "hello muted" }, "Say something. Enter sends, Shift and Enter begin a new line.");
const bubble = (role, ...content) => h("div", { class: `bubble ${role}` }, h("span", { class: "unseen" }, `${role === "user" ? "You" : "Model"}: `), content);

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** A model's message while it comes: text, thoughts, calls. */
function reply(log) {
  const text = h("div", { class: "text" });
  const thoughts = h("div", { class: "text" });
  const thinking = h("details", { class: "thoughts", hidden: true }, h("summary", {}, "Reasoning"), thoughts);
  const tools = h("div", { class: "calls" });
  const node = bubble("model", thinking, text, tools);
  const calls = [];
  log.append(node);
  return {
    node,
    calls,
    finish: null,
    add(delta, finish) {
      const low = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
      if (delta.reasoning_content) {
        thinking.hidden = false;
        thoughts.append(delta.reasoning_content);
      }
      if (delta.content) text.append(delta.content);
      for (const piece of delta.tool_calls ?? []) call(piece);
      if (finish) this.finish = finish;
      if (low) log.scrollTop = log.scrollHeight;
    },
    message() {
      const told = { role: "assistant", content: text.textContent || null };
      if (calls.length) told.tool_calls = calls.map(({ id, name, arguments: sent }) => ({ id, type: "function", function: { name, arguments: sent.textContent } }));
      return told;
    },
  };

  function call(piece) {
    if (!calls[piece.index]) {
      const sent = h("code", {});
      calls[piece.index] = { id: piece.id, name: piece.function.name, arguments: sent };
      tools.append(h("div", { class: "call" }, icon("tool"), h("div", {}, h("strong", {}, piece.function.name), h("pre", {}, sent))));
    }
    calls[piece.index].arguments.append(piece.function?.arguments ?? "");
  }
}

/** What the tools said, told by the reader, since nothing runs here. */
function results(calls, done) {
  const inputs = calls.map((each) => h("input", { value: "", placeholder: '{"temperature": 21}', autocomplete: "off" }));
  const form = h("form", { class: "results stack", onsubmit: (event) => {
    event.preventDefault();
    form.remove();
    done(calls.map((each, index) => ({ role: "tool", tool_call_id: each.id, content: inputs[index].value })));
  } }, calls.map((each, index) => field(`Result of ${each.name}`, inputs[index])), h("div", { class: "row" }, button("Send the result", { kind: "small", type: "submit" })));
  return form;
}

function controls() {
  const number = (attributes) => h("input", { inputmode: "decimal", autocomplete: "off", ...attributes });
  const temperature = number({ placeholder: "the model's" });
  const most = number({ value: "512" });
  const system = h("textarea", { rows: "2", placeholder: "You are …" });
  const tools = h("textarea", { rows: "9", class: "mono", spellcheck: "false" });
  const use = h("input", { type: "checkbox", onchange: () => {
    tools.value ||= TOOLS;
    written.hidden = !use.checked;
  } });
  const written = field("Tools, as JSON", tools);
  written.hidden = true;
  const view = h("details", { class: "settings" }, h("summary", {}, "Settings"), h("div", { class: "stack" },
    field("System message", system),
    h("div", { class: "fields" }, field("Temperature", temperature), field("Most tokens", most)),
    h("label", { class: "choice" }, use, "Offer tools to the model"), written));
  const read = (messages) => {
    const asked = { messages: system.value.trim() ? [{ role: "system", content: system.value.trim() }, ...messages] : messages };
    if (temperature.value.trim()) asked.temperature = Number(temperature.value);
    if (most.value.trim()) asked.max_tokens = Number(most.value);
    if (use.checked) asked.tools = parsed(tools.value);
    return asked;
  };
  return { view, read };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw Object.assign(new Error(`The tools are not valid JSON: ${error.message}.`), { status: 0 });
  }
}
