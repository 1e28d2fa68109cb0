/* Usage: what ran, what it cost, what failed and how long it took, by model and day. */
import { admin, all } from "../api.js";
import { COLOURS, chart } from "../chart.js";
import { h } from "../dom.js";
import { compact, count, dollars, span, time } from "../format.js";
import { badge, choice, empty, load, page, panel, table, tiles } from "../parts.js";

const DAY = 86_400;
const PERIODS = [["7", "7 days"], ["30", "30 days"], ["90", "90 days"]];
const tokens = (line) => line.input_tokens + line.output_tokens;
const METRICS = {
  requests: { name: "Requests", of: (line) => line.requests, say: compact },
  tokens: { name: "Tokens", of: tokens, say: compact },
  cost: { name: "Cost", of: (line) => Number(line.cost_usd), say: (value) => dollars(String(value)) },
  errors: { name: "Errors", of: (line) => line.errors, say: compact },
  latency: { name: "Latency p95", of: (line) => line.latency_ms?.p95 ?? null, say: span, lines: true },
};

export function open(workspace) {
  const place = h("div", { class: "stack roomy" });
  let days = 30;
  let metric = "requests";
  let close = () => {};
  const refresh = () => load(place, () => ask(workspace, days), (found) => {
    close();
    if (!found.lines.length) return h("div", { class: "panel" }, empty("Nothing ran", `No request of ${workspace.name} reached a model in the last ${days} days.`));
    return [sums(found), plotted(found), models(found), latest(found)];
  });
  const plotted = (found) => {
    const figure = h("div");
    const tabs = choice("What is plotted", Object.entries(METRICS).map(([id, each]) => [id, each.name]), metric, (id) => {
      metric = id;
      close();
      const drawn = plot(found, METRICS[id]);
      close = drawn.close;
      figure.replaceChildren(drawn.view);
    });
    return panel("By day", { text: "Days are UTC.", actions: tabs }, figure);
  };
  const period = choice("Period", PERIODS, String(days), (chosen) => {
    days = Number(chosen);
    refresh();
  });
  const view = page("Usage", `Of the workspace ${workspace.name}.`, period, place);
  return { view, close: () => close() };
}

async function ask(workspace, days) {
  const today = Math.floor(Date.now() / 1000 / DAY) * DAY;
  const from = today - (days - 1) * DAY;
  const where = `workspace=${encodeURIComponent(workspace.name)}&since=${new Date(from * 1000).toISOString().slice(0, 10)}`;
  const [total, byModel, lines, requests] = await Promise.all([
    admin(`/usage?by=&latency=true&${where}`), all(`/usage?by=model&latency=true&${where}`), all(`/usage?by=day,model&latency=true&${where}`), admin(`/requests?limit=12&${where}`),
  ]);
  byModel.sort((a, b) => b.requests - a.requests);
  const dates = Array.from({ length: days }, (_, index) => from + index * DAY);
  return { total: total.data[0], byModel, lines, requests: requests.data, dates };
}

function sums({ total }) {
  return tiles(
    ["Requests", compact(total.requests), total.errors ? `${count(total.errors)} failed` : "none failed"],
    ["Tokens", compact(tokens(total)), `${compact(total.input_tokens)} in · ${compact(total.output_tokens)} out`],
    ["Cost", dollars(total.cost_usd)],
    ["Latency p95", total.latency_ms ? span(total.latency_ms.p95) : "–", total.latency_ms && `median ${span(total.latency_ms.p50)}`],
  );
}

/** The models that ran most have a colour each; what is left over shares the last one. */
function plot({ lines, byModel, dates }, metric) {
  const names = byModel.map((line) => line.model);
  const own = names.length > COLOURS ? names.slice(0, COLOURS - 1) : names;
  const at = new Map(dates.map((seconds, index) => [new Date(seconds * 1000).toISOString().slice(0, 10), index]));
  const series = own.map((name) => ({ name, values: dates.map(() => null) }));
  const rest = { name: "others", values: dates.map(() => null) };
  for (const line of lines) {
    const each = series[own.indexOf(line.model)] ?? rest;
    const index = at.get(line.day);
    const value = metric.of(line);
    if (index === undefined || value === null) continue;
    each.values[index] = metric.lines ? Math.max(each.values[index] ?? 0, value) : (each.values[index] ?? 0) + value;
  }
  if (names.length > own.length) series.push(rest);
  const label = `${metric.name} by day and model; the table below has the figures by model.`;
  return chart({ days: dates, series, stacked: !metric.lines, say: metric.say, label });
}

function models({ byModel }) {
  return panel("By model", {}, table("Usage by model", [
    { name: "Model", cell: (line) => h("strong", {}, line.model) },
    { name: "Requests", number: true, cell: (line) => count(line.requests) },
    { name: "Errors", number: true, cell: (line) => (line.errors ? badge(count(line.errors), "bad") : h("span", { class: "muted" }, "0")) },
    { name: "Tokens in", number: true, cell: (line) => compact(line.input_tokens) },
    { name: "Tokens out", number: true, cell: (line) => compact(line.output_tokens) },
    { name: "Other", number: true, cell: others },
    { name: "Median", number: true, cell: (line) => (line.latency_ms ? span(line.latency_ms.p50) : "–") },
    { name: "p95", number: true, cell: (line) => (line.latency_ms ? span(line.latency_ms.p95) : "–") },
    { name: "Cost", number: true, cell: (line) => dollars(line.cost_usd) },
  ], byModel));
}

function others(line) {
  const counted = [[line.images, "pictures"], [line.characters, "characters"], [Math.round(line.seconds), "s of sound"]];
  return counted.filter(([number]) => number).map(([number, unit]) => `${compact(number)} ${unit}`).join(", ") || h("span", { class: "muted" }, "–");
}

function latest({ requests }) {
  return panel("Latest requests", {}, table("Latest requests", [
    { name: "Request", cell: (row) => h("span", { class: "mono fine" }, row.id) },
    { name: "When", cell: (row) => time(row.at) },
    { name: "Model", cell: (row) => row.model },
    { name: "Tokens", number: true, cell: (row) => (tokens(row) ? `${count(row.input_tokens)} + ${count(row.output_tokens)}` : "–") },
    { name: "Took", number: true, cell: (row) => (row.duration_ms === null ? "–" : span(row.duration_ms)) },
    { name: "Cost", number: true, cell: (row) => dollars(row.cost_usd) },
    { name: "End", cell: (row) => (row.whole ? badge("whole", "good") : badge("cut off", "warn")) },
  ], requests));
}
