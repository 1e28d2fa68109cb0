/* Deployments: what is served, whether it fits its model at Triton, and how busy and quick it is. */
import { all } from "../api.js";
import { h } from "../dom.js";
import { badge, empty, load, page } from "../parts.js";
import { compact, plural, span } from "../format.js";

const EVERY = 5000;
const STATES = {
  serving: ["Verified", "good"],
  partly: ["Partly up", "warn"],
  cold: ["Cold: loaded for who asks", ""],
  loading: ["Loading", "warn"],
  unloading: ["Unloading", "warn"],
  unavailable: ["Not verified", "bad"],
};
const SERVERS = { serving: ["up", "good"], trial: ["on trial", "warn"], ejected: ["left out", "bad"], unverified: ["down", "bad"] };

export function open() {
  const place = h("div", { class: "deployments" });
  const summary = h("p", { role: "status" });
  const opened = new Set();
  const show = () => load(place, fetchAll, (found) => {
    const up = found.filter((each) => each.state !== "unavailable").length;
    const said = found.length ? `${up} of ${plural(found.length, "deployment")} can be used.` : "";
    if (summary.textContent !== said) summary.textContent = said;
    if (!found.length) return h("div", { class: "panel" }, empty("No models are configured", "A [[models]] entry of conch.toml binds an id of the API to a model at Triton."));
    return found.map((each) => card(each, opened));
  });
  show();
  const timer = setInterval(() => !document.hidden && !place.contains(document.activeElement) && show(), EVERY);
  const view = page("Deployments", "The models of this gateway, each checked against its live Triton every few seconds.", null, summary, place);
  return { view, close: () => clearInterval(timer) };
}

async function fetchAll() {
  const [deployments, models, lines] = await Promise.all([all("/deployments"), all("/models"), all("/usage?since=24h&by=model&latency=true")]);
  const ran = new Map(lines.map((line) => [line.model, line]));
  const fits = new Map(models.map((model) => [model.id, model]));
  return deployments.map((each) => {
    const partly = each.state === "serving" && each.servers.some((server) => server.state !== "serving");
    return { ...each, state: partly ? "partly" : each.state, ran: ran.get(each.id), fit: fits.get(each.id) };
  });
}

function card(model, opened) {
  const [label, kind] = STATES[model.state];
  const ran = model.ran;
  const figures = [
    ["Requests, 24 h", compact(ran?.requests ?? 0)],
    ["Running now", compact(model.outstanding) + (model.queued ? ` + ${compact(model.queued)} waiting` : "")],
    ["Latency p50", ran?.latency_ms ? span(ran.latency_ms.p50) : "–"],
    ["p95", ran?.latency_ms ? span(ran.latency_ms.p95) : "–"],
  ];
  return h("article", { class: "panel deployment", "aria-label": model.id },
    h("header", {}, h("div", {}, h("h2", {}, model.id), h("p", {}, model.task)), badge(label, kind)),
    h("dl", { class: "figures" }, figures.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("ul", { class: "servers" }, model.servers.map(server)),
    more(model, opened));
}

function server(each) {
  return h("li", {}, h("span", { class: "mono" }, each.url),
    badge(...SERVERS[each.state]),
    each.reason && h("span", { class: "muted fine" }, each.reason));
}

/** Which tensors the profile fills or reads; stays open when the card is drawn anew. */
function more(model, opened) {
  const rows = [["Bound", model.fit.bound], ["Not bound", model.fit.unbound], ["Unknown to the model", model.fit.unknown]].filter(([, names]) => names.length);
  if (!rows.length) return null;
  return h("details", { open: opened.has(model.id), ontoggle: (event) => (event.target.open ? opened.add(model.id) : opened.delete(model.id)) },
    h("summary", {}, "Tensors"),
    h("dl", { class: "pairs" }, rows.map(([name, names]) => [h("dt", {}, name), h("dd", { class: "mono" }, names.join(", "))])));
}
