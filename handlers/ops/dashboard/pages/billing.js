/* Billing: what a workspace has, what it may spend, what it was granted, and its plan. */
import { admin } from "../api.js";
import { announce, h } from "../dom.js";
import { dollars, time } from "../format.js";
import { ask, button, empty, field, load, page, panel, problem, select, table, tiles, busy } from "../parts.js";
import { plans, put } from "../state.js";
import { planLine } from "../workspace.js";

export function open(workspace) {
  const path = `/workspaces/${encodeURIComponent(workspace.name)}`;
  const money = h("div");
  const grants = h("div");
  const refresh = () => {
    load(money, () => admin(`${path}/credits`), (account) => balance(account, plans.find((plan) => plan.name === workspace.plan)));
    load(grants, () => admin(`${path}/grants?limit=50`), history);
  };
  const grant = () => ask(`Grant credits to ${workspace.name}`, {
    action: "Grant credits",
    body: [
      field("Dollars", h("input", { name: "amount", inputmode: "decimal", autocomplete: "off", placeholder: "25" })),
      field("Note", h("input", { name: "note", autocomplete: "off", placeholder: "invoice 7" }), "For the books; clients do not see it."),
    ],
    submit: async (form) => {
      await admin(`${path}/credits`, { method: "POST", body: { amount_usd: form.get("amount").trim(), note: form.get("note") } });
      announce("The credits were granted", { seen: true });
      refresh();
    },
  });
  refresh();
  const view = page("Billing", `Of the workspace ${workspace.name}. Models with a price cost credits; the others are free.`,
    button("Grant credits", { kind: "primary", icon: "plus", onclick: grant }),
    money, terms(workspace, path), panel("Grants", { text: "The newest first." }, grants));
  return { view };
}

function balance(account, plan) {
  const limit = account.spend_limit_usd ?? plan?.spend_limit_usd ?? null;
  const share = limit === null ? 0 : Math.min(1, Number(account.spent_usd) / Math.max(Number(limit), 1e-9));
  const bar = limit !== null && h("progress", { max: "1", value: String(share), "aria-label": `Spent of this month's limit, ${Math.round(share * 100)} %` });
  return tiles(
    ["Balance", dollars(account.credits_usd), "free to spend"],
    ["On hold", dollars(account.held_usd), "for what is running"],
    [`Spent in ${monthName(account.month)}`, dollars(account.spent_usd), bar, limit === null ? "no limit" : `of ${dollars(limit)}`],
  );
}

function monthName(month) {
  return new Date(`${month}-01T00:00:00Z`).toLocaleDateString("en-GB", { month: "long", timeZone: "UTC" });
}

/** The plan and the limits, to be changed. */
function terms(workspace, path) {
  const plan = select(plans.map((each) => [each.name, planLine(each)]), workspace.plan, { name: "plan" });
  const ceiling = h("input", { name: "ceiling", inputmode: "numeric", autocomplete: "off", value: workspace.ceiling ?? "", placeholder: "the plan's" });
  const limit = h("input", { name: "limit", inputmode: "decimal", autocomplete: "off", value: workspace.spend_limit_usd ?? "", placeholder: "none, or the plan's" });
  const told = h("div");
  const save = button("Save", { kind: "primary", type: "submit" });
  const form = h("form", { class: "stack", novalidate: true, onsubmit: (event) => {
    event.preventDefault();
    told.replaceChildren();
    const asked = { plan: plan.value, ceiling: number(ceiling.value), spend_limit_usd: limit.value.trim() || null };
    busy(save, admin(path, { method: "PATCH", body: asked }).then((changed) => {
      put(changed);
      announce("Saved: it holds from the next request on", { seen: true });
    }, (error) => told.replaceChildren(problem(error))));
  } },
  field("Plan", plan),
  h("div", { class: "fields" },
    field("Ceiling, requests/min of a key", ceiling, "Instead of the plan's ceiling."),
    field("Spend limit, dollars a month", limit, "Requests that would pass it are refused.")),
  told, h("div", { class: "row" }, save));
  return panel("Plan and limits", { text: "Changes act on the very next request." }, form);
}

function number(text) {
  const trimmed = text.trim();
  return trimmed === "" ? null : /^\d+$/.test(trimmed) ? Number(trimmed) : trimmed;
}

function history(found) {
  if (!found.data.length) return empty("No grants yet", "Credits that are granted are listed here.");
  return table("Grants", [
    { name: "Amount", cell: (grant) => h("strong", {}, `+${dollars(grant.amount_usd)}`) },
    { name: "Note", cell: (grant) => grant.note || h("span", { class: "muted" }, "–") },
    { name: "By", cell: (grant) => h("span", { class: "muted" }, grant.by) },
    { name: "When", cell: (grant) => time(grant.at) },
  ], found.data);
}
