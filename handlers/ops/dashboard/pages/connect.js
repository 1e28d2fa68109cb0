/* Connect: the lines that point a client at this gateway, for each SDK. */
import { root } from "../api.js";
import { h } from "../dom.js";
import { choice, code, empty, field, page, select } from "../parts.js";
import { about } from "../state.js";
import { SDKS } from "../snippets.js";

export function open() {
  const base = about.api_url ?? `${root}/v1`;
  const models = about.models.filter((model) => model.task === "chat").map((model) => model.id);
  const place = h("div", { class: "stack" });
  let sdk = SDKS[0];
  const list = select(models, models[0], { onchange: () => draw() });
  const draw = () => {
    const parts = [sdk.install && code(sdk.install, "Installation"), code(sdk.lines(base, list.value), `${sdk.name} example`)];
    place.replaceChildren(...parts.filter(Boolean));
  };
  const tabs = choice("SDK", SDKS.map((each) => [each.id, each.name]), sdk.id, (id) => {
    sdk = SDKS.find((each) => each.id === id);
    draw();
  });
  const view = page("Connect", "Two lines change in a client: the base URL and the key.", null,
    h("section", { class: "panel stack", "aria-label": "Example" },
      h("div", { class: "fields" },
        h("div", { class: "field" }, h("h2", { class: "label" }, "Base URL"), code(base, "Base URL")),
        models.length > 0 && field("Model", list)),
      models.length ? [tabs, place] : empty("No chat model is configured", "The base URL is good for every endpoint all the same.")),
    h("p", { class: "muted" }, "The examples read the key from CONCH_API_KEY: make one under ", h("a", { href: "#/keys" }, "API keys"), "."));
  return { view };
}
