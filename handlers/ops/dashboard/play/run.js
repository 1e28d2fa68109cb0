/* What every view of the playground does with a request: run it, stop it, tell what it took. */
import { h } from "../dom.js";
import { span } from "../format.js";
import { problem } from "../parts.js";

/** Server-Timing of an answer: ms in the gateway and at the model until its first byte. */
function timing(response) {
  const told = response.headers.get("server-timing") ?? "";
  return ["gateway", "upstream"].map((name) => told.match(new RegExp(`${name};dur=([0-9.]+)`))?.[1]).map(Number);
}

/** One line on a request: how long it all took, what of it the gateway added, and what else there is to say. */
export function took(response, started, ...more) {
  const [gateway] = timing(response);
  const parts = [span(performance.now() - started), `gateway ${span(gateway)}`, ...more.filter(Boolean), response.headers.get("x-request-id")];
  return h("p", { class: "took" }, parts.join(" · "));
}

/** Runs one request at a time: `run(work)` with a signal; a failure is shown in `place`; `stop` ends it. */
export function runner(place, shown = () => {}) {
  let running = null;
  return {
    get busy() { return running !== null; },
    stop: () => running?.abort(),
    async run(work) {
      if (running) return;
      const mine = (running = new AbortController());
      shown(true);
      try {
        await work(mine.signal);
      } catch (error) {
        if (error.name !== "AbortError") place.append(problem(error));
        if (error.status === undefined && error.name !== "AbortError") throw error;
      } finally {
        running = null;
        shown(false);
      }
    },
  };
}

/** Object URLs that are freed together. */
export function urls() {
  const made = [];
  return {
    of: (blob) => made[made.push(URL.createObjectURL(blob)) - 1],
    free: () => made.splice(0).forEach((url) => URL.revokeObjectURL(url)),
  };
}
