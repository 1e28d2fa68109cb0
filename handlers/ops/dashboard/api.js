/* Every call to the gateway: /admin with the operator's token, /v1 with an API key. */

const TOKEN = "conch.token";

/** Where the gateway is: one level above these files, also behind a proxy's prefix. */
export const root = new URL("..", import.meta.url).href.replace(/\/$/, "");

/** What the gateway refused, in its own words. */
export class ApiError extends Error {
  constructor(status, error, id) {
    super(error.message);
    Object.assign(this, { status, code: error.code, param: error.param, id });
  }
}

/* The token lives in this tab: it survives a reload, is sent nowhere by itself, and goes with the tab. */
export const session = {
  get token() { return sessionStorage.getItem(TOKEN); },
  open(token) { sessionStorage.setItem(TOKEN, token); },
  close() { sessionStorage.clear(); },
  onEnd: () => {},
};

/** A call to /admin; the answer's JSON. Throws ApiError. */
export async function admin(path, { method = "GET", body, token = session.token } = {}) {
  const bytes = new TextEncoder().encode(token ?? "");
  const headers = { authorization: `Bearer ${String.fromCharCode(...bytes)}` };
  if (body !== undefined) headers["content-type"] = "application/json";
  const text = body === undefined ? undefined : JSON.stringify(body);
  try {
    return await (await send(`/admin${path}`, { method, headers, body: text })).json();
  } catch (error) {
    if (error.status === 401 && session.token) session.onEnd(error);
    throw error;
  }
}

/** Every entry of a list of /admin, page after page. */
export async function all(path) {
  const found = [];
  let after = "";
  do {
    const page = await admin(`${path}${path.includes("?") ? "&" : "?"}limit=1000${after}`);
    found.push(...page.data);
    after = page.has_more ? `&after=${encodeURIComponent(page.next)}` : "";
  } while (after);
  return found;
}

/** A call to /v1 with an API key; the Response, whose body is not read yet. Throws ApiError. */
export function v1(path, key, { body, form, signal } = {}) {
  const headers = { authorization: `Bearer ${key}` };
  if (body !== undefined) headers["content-type"] = "application/json";
  const init = { method: body === undefined && !form ? "GET" : "POST", headers, signal };
  return send(`/v1${path}`, { ...init, body: form ?? (body === undefined ? undefined : JSON.stringify(body)) });
}

async function send(path, init) {
  let response;
  try {
    response = await fetch(root + path, { ...init, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The gateway cannot be reached. Is it running, and this machine online?" });
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const error = told?.error ?? { message: `Something before the gateway answered with status ${response.status}.` };
  throw new ApiError(response.status, error, response.headers.get("x-request-id"));
}

/** The events of a streamed answer: what stands after each `data:`, until [DONE]. Throws ApiError. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ApiError(0, { message: "The answer broke off before its end." });
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const data = frame.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
      if (data === "[DONE]") return;
      if (data === undefined) continue;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(200, event.error, response.headers.get("x-request-id"));
      yield event;
    }
  }
}
