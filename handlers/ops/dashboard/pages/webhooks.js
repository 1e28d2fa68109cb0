/* Webhooks: who is told of what, and what became of each event that was sent. */
import { admin, all } from "../api.js";
import { announce, h } from "../dom.js";
import { ago, plural } from "../format.js";
import { ask, badge, button, choice, empty, field, load, page, panel, problem, secret, select, show, table } from "../parts.js";
import { workspaces } from "../state.js";

const OF_WORKSPACE = [["credits.low", "Credits run low"], ["key.expiring", "A key ends soon"]];
const OF_GATEWAY = [["deployment.down", "A model is gone"], ["deployment.up", "A model is back"]];
const STATES = [["", "All"], ["pending", "On their way"], ["delivered", "Delivered"], ["dead", "Given up"]];
const KINDS = { pending: ["On its way", "warn"], delivered: ["Delivered", "good"], dead: ["Given up", "bad"] };
const GRACES = [["0s", "At once"], ["1h", "After an hour"], ["24h", "After a day"], ["7d", "After a week"]];
const MOST = 50;

export function open() {
  const told = h("div");
  const [endpoints, deliveries] = [h("div"), h("div")];
  let known = [];
  let state = "";
  let sent = [];
  let next = null;

  const changed = () => showEndpoints().then(showDeliveries);
  const showEndpoints = () => load(endpoints, () => all("/webhooks"), (found) => {
    known = found;
    if (!found.length) return empty("No webhooks yet", "A webhook tells a server of yours when credits run low, a key ends, or a model is gone.", add());
    return table("Webhooks", columns(attempt, changed), found);
  });
  const fetchDeliveries = (after = "") => admin(`/deliveries?limit=${MOST}${state && `&state=${state}`}${after && `&after=${encodeURIComponent(after)}`}`);
  const showDeliveries = () => load(deliveries, fetchDeliveries, (found) => {
    [sent, next] = [found.data, found.next];
    return history();
  });
  const more = () => attempt(async () => {
    const older = await fetchDeliveries(next);
    sent.push(...older.data);
    next = older.next;
    deliveries.replaceChildren(history());
  });
  const history = () => {
    if (!sent.length) return empty("Nothing here", state ? "No delivery is in this state." : "What is sent, and what was answered, is kept for 30 days.");
    return h("div", { class: "stack" }, table("Deliveries", sentColumns(known, attempt, changed), sent), next && button("Show more", { onclick: more }));
  };
  /** Do it, and show what the gateway has against it. */
  async function attempt(work) {
    told.replaceChildren();
    try {
      await work();
    } catch (error) {
      if (error.status === undefined) throw error;
      told.replaceChildren(problem(error));
    }
  }
  const add = () => button("Create webhook", { kind: "primary", icon: "plus", onclick: () => create(changed) });

  changed();
  const states = choice("Deliveries", STATES, "", (id) => {
    if (id === state) return;
    state = id;
    showDeliveries();
  });
  const again = button("Refresh", { kind: "small", onclick: changed });
  return { view: page("Webhooks", "Signed and retried, to servers of yours, when somebody has to act.", add(), told,
    panel("Endpoints", {}, endpoints),
    panel("Deliveries", { text: "The newest first.", actions: again }, h("div", { class: "stack" }, states, deliveries))) };
}

const under = (text, mono) => h("span", { class: mono ? "under mono" : "under" }, text);

const columns = (attempt, changed) => [
  { name: "Endpoint", cell: (hook) => [h("strong", { class: "address" }, hook.url), hook.description && under(hook.description)] },
  { name: "Told of", cell: (hook) => [hook.workspace ?? "The whole gateway", under(hook.events.join(", "), true)] },
  { name: "State", cell: (hook) => [badge(...stateOf(hook)), hook.reason && under(hook.reason)] },
  { name: "Actions", actions: true, cell: (hook) => actions(hook, attempt, changed) },
];

function stateOf(hook) {
  if (hook.disabled_at) return ["Disabled", hook.reason ? "bad" : ""];
  return hook.old_secret_until && hook.old_secret_until / 1000 > Date.now() ? ["Two secrets", "warn"] : ["Active", "good"];
}

function actions(hook, attempt, changed) {
  const one = (label, onclick, kind = "") => button(label, { kind: `small ${kind}`, "aria-label": `${label} ${hook.url}`, onclick });
  const enabled = !hook.disabled_at;
  const toggle = () => attempt(async () => {
    await admin(`/webhooks/${hook.id}`, { method: "PATCH", body: { enabled: !enabled } });
    announce(enabled ? "Nothing more is sent there" : "It is told again", { seen: true });
    await changed();
  });
  return h("div", { class: "row end nowrap" },
    enabled && one("Test", () => test(hook, attempt, changed)),
    one("Rotate", () => rotate(hook, changed)),
    one(enabled ? "Disable" : "Enable", toggle),
    one("Delete", () => remove(hook, changed), "danger"));
}

/** A webhook.test is sent now, once; what was answered is told. */
function test(hook, attempt, changed) {
  return attempt(async () => {
    const { state, status, error } = await admin(`/webhooks/${hook.id}/test`, { method: "POST" });
    announce(state === "delivered" ? `It answered with status ${status}` : `It did not arrive: ${error}`, { seen: true });
    await changed();
  });
}

function rotate(hook, changed) {
  ask("Rotate the secret?", {
    action: "Rotate",
    body: [h("p", {}, "Until the old secret stops, every event is signed with both."), field("The old secret stops", select(GRACES, "24h", { name: "grace" }))],
    submit: async (form) => {
      tell("Its new secret", await admin(`/webhooks/${hook.id}/rotate`, { method: "POST", body: { grace: form.get("grace") } }));
      changed();
    },
  });
}

function remove(hook, changed) {
  ask("Delete this webhook?", {
    action: "Delete webhook",
    kind: "primary danger",
    body: h("p", {}, `${hook.url} is told nothing more, and what was sent to it is forgotten.`),
    submit: async () => {
      await admin(`/webhooks/${hook.id}`, { method: "DELETE" });
      announce("The webhook was deleted", { seen: true });
      changed();
    },
  });
}

function tell(title, made) {
  show(title, [h("p", {}, "Events are signed with it. Copy it now: it is not shown again."), secret(made.signing_secret)], "I have copied it");
}

function create(changed) {
  const box = ([value, label]) => h("label", { class: "choice" },
    h("input", { type: "checkbox", name: "event", value, checked: true }), h("span", {}, label, " ", h("span", { class: "muted fine mono" }, value)));
  const gateway = h("div", { class: "stack" }, OF_GATEWAY.map(box));
  const whose = select([["", "The whole gateway"], ...workspaces.map((each) => [each.name, `Workspace ${each.name}`])], "", {
    name: "workspace",
    onchange: () => (gateway.hidden = whose.value !== ""),
  });
  ask("Create webhook", {
    action: "Create webhook",
    body: [
      field("URL", h("input", { name: "url", type: "url", autocomplete: "off", spellcheck: "false", placeholder: "https://example.com/conch" }), "An HTTPS address of yours that answers with any 2xx."),
      field("It is told of", whose),
      h("fieldset", {}, h("legend", {}, "Events"), h("div", { class: "stack" }, OF_WORKSPACE.map(box)), gateway),
      field("Description", h("input", { name: "description", autocomplete: "off" })),
    ],
    submit: async (form) => {
      const workspace = form.get("workspace");
      const there = [...OF_WORKSPACE, ...(workspace ? [] : OF_GATEWAY)].map(([event]) => event);
      const events = form.getAll("event").filter((event) => there.includes(event));
      const body = { url: form.get("url").trim(), events, description: form.get("description"), ...(workspace && { workspace }) };
      tell("Your webhook's secret", await admin("/webhooks", { method: "POST", body }));
      changed();
    },
  });
}

const sentColumns = (known, attempt, changed) => [
  { name: "Event", cell: (sent) => [h("strong", {}, sent.type), under(sent.event, true)] },
  { name: "To", cell: (sent) => h("span", { class: "address" }, known.find((hook) => hook.id === sent.webhook)?.url ?? sent.webhook) },
  { name: "State", cell: (sent) => [badge(...KINDS[sent.state]), under([plural(sent.attempts, "attempt"), sent.next_at && `again ${ago(sent.next_at)}`].filter(Boolean).join(", "))] },
  { name: "Answer", cell: (sent) => sent.error ?? (sent.status ? `Status ${sent.status}` : h("span", { class: "muted" }, "none yet")) },
  { name: "When", cell: (sent) => h("span", { class: "date" }, ago(sent.attempted_at ?? sent.created_at)) },
  { name: "Actions", actions: true, cell: (sent) => sent.state !== "pending" && resend(sent, attempt, changed) },
];

function resend(sent, attempt, changed) {
  const onclick = () => attempt(async () => {
    await admin(`/deliveries/${sent.id}/resend`, { method: "POST" });
    announce("It is sent again", { seen: true });
    await changed();
  });
  return button("Send again", { kind: "small", "aria-label": `Send ${sent.type} ${sent.event} again`, onclick });
}
