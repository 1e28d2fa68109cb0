/* A plot of days: bars that stack a series on another, or lines. Drawn by uPlot, which the page has loaded. */
import { h } from "./dom.js";

export const COLOURS = 6;
const HEIGHT = 240;
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
const dark = matchMedia("(prefers-color-scheme: dark)");

/**
 * `days`: unix seconds of their midnights, UTC. `series`: { name, values }, a value for each day, null where there is none.
 * `stacked`: bars. `say(value)`: a value for people. `label`: the plot in words. Returns { view, close }.
 */
export function chart({ days, series, stacked, say, label }) {
  const place = h("div", { class: "plot", role: "img", "aria-label": label });
  const tip = h("div", { class: "tip", hidden: true });
  const legend = h("ul", { class: "legend" }, series.map((each, index) => h("li", {}, swatch(index), each.name)));
  let plot = null;
  const draw = () => {
    plot?.destroy();
    if (!place.clientWidth) return;
    plot = new uPlot(options({ days, series, stacked, say, tip, width: place.clientWidth }), [days, ...lines(series, stacked)], place);
    plot.over.append(tip);
  };
  const resized = new ResizeObserver(() => (plot ? plot.setSize({ width: place.clientWidth, height: HEIGHT }) : draw()));
  resized.observe(place);
  dark.addEventListener("change", draw);
  const close = () => {
    resized.disconnect();
    dark.removeEventListener("change", draw);
    plot?.destroy();
  };
  return { view: h("figure", { class: "chart" }, place, legend), close };
}

const swatch = (index) => h("i", { class: `swatch line-${index + 1}` });

/** What is drawn: for bars the sums from the last series down, so that each covers those below it. */
function lines(series, stacked) {
  if (!stacked) return series.map((each) => each.values);
  const sums = [];
  for (const each of [...series].reverse()) {
    const below = sums[0];
    sums.unshift(each.values.map((value, index) => (value ?? 0) + (below?.[index] ?? 0)));
  }
  return sums;
}

function options({ days, series, stacked, say, tip, width }) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const font = `12px ${colour("sans")}`;
  const axis = { stroke: colour("muted"), font, ticks: { show: false } };
  const half = days.length > 1 ? (days[1] - days[0]) / 2 : 43_200;
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { show: !stacked, size: 8 } },
    scales: {
      x: { time: true, range: () => [days[0] - half, days.at(-1) + half] },
      y: { range: (_, __, most) => [0, most > 0 ? most * 1.08 : 1] },
    },
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    series: [{}, ...series.map((each, index) => {
      const stroke = colour(`line-${index + 1}`);
      return stacked
        ? { fill: stroke, width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.72, 44], radius: 0.12 }) }
        : { stroke, width: 2, spanGaps: true, points: { show: true, size: 6, fill: stroke }, paths: uPlot.paths.linear() };
    })],
    axes: [
      { ...axis, grid: { show: false }, gap: 8, values: (_, splits) => splits.map((at) => DAY.format(at * 1000)), incrs: [1, 2, 3, 7, 14, 28].map((n) => n * 86_400), space: 64, size: 30 },
      { ...axis, grid: { stroke: colour("line"), width: 1 }, size: 64, gap: 8, values: (_, splits) => splits.map(say), space: 44 },
    ],
    hooks: { setCursor: [(plot) => point(plot, { days, series, say, tip })] },
  };
}

/** The day under the pointer, in words. */
function point(plot, { days, series, say, tip }) {
  const { idx: index, left } = plot.cursor;
  const at = days[index];
  tip.hidden = left < 0 || at === undefined;
  if (tip.hidden) return;
  const rows = series
    .map((each, number) => [each, number])
    .filter(([each]) => each.values[index])
    .map(([each, number]) => h("div", {}, swatch(number), h("span", {}, each.name), h("b", {}, say(each.values[index]))));
  tip.replaceChildren(h("strong", {}, DAY.format(at * 1000)), ...(rows.length ? rows : [h("span", { class: "muted" }, "nothing")]));
  const x = plot.valToPos(at, "x");
  tip.style.left = `${Math.max(0, Math.min(plot.over.clientWidth - tip.offsetWidth, x + 14))}px`;
  if (x + 14 + tip.offsetWidth > plot.over.clientWidth) tip.style.left = `${Math.max(0, x - tip.offsetWidth - 14)}px`;
}
