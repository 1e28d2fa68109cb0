/* Making a workspace. */
import { admin } from "./api.js";
import { announce, h } from "./dom.js";
import { ask, field, select } from "./parts.js";
import { plans, put } from "./state.js";
import { count } from "./format.js";

/** A plan in one line. */
export function planLine(plan) {
  if (!plan.keys) return `${plan.name} — no keys`;
  return `${plan.name} — ${count(plan.default)} requests/min of a key, up to ${count(plan.ceiling)}`;
}

/** Ask for a name and a plan; the new workspace is looked at. */
export function createWorkspace() {
  const usual = plans.some((plan) => plan.name === "pro") ? "pro" : plans[0]?.name;
  ask("New workspace", {
    action: "Create workspace",
    body: [
      field("Name", h("input", { name: "name", autocomplete: "off", spellcheck: "false" }), "Letters, digits and . _ - such as acme or team-search."),
      field("Plan", select(plans.map((plan) => [plan.name, planLine(plan)]), usual, { name: "plan" })),
    ],
    submit: async (form) => {
      put(await admin("/workspaces", { method: "POST", body: { name: form.get("name"), plan: form.get("plan") } }));
      announce("The workspace was created", { seen: true });
    },
  });
}
