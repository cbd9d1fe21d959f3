// What the page asks the server: keys, errors, streams of events.
import { lang, t } from "./words.js";

let key = "";
let token = null;

// `khola serve` prints the address with a key behind #; it is taken out of the address and kept in this browser.
export function takeKey() {
  const found = /(?:^#|&)key=([^&]+)/.exec(location.hash);
  if (found) {
    localStorage.setItem("khola-key", decodeURIComponent(found[1]));
    history.replaceState(null, "", location.pathname + "#/chat");
  }
  key = localStorage.getItem("khola-key") ?? "";
}

export function setKey(text) {
  key = text.trim();
  if (key) localStorage.setItem("khola-key", key);
  else localStorage.removeItem("khola-key");
}

export class Refused extends Error {
  constructor(status, error = {}) {
    super(error.message ?? String(status));
    this.status = status;
    this.code = error.code ?? error.type ?? "";
    this.bengali = error.message_bn ?? "";
  }

  // In the reader's language: the server's own sentence where it has one, else what its code means.
  get told() {
    if (lang() === "en") return this.message;
    const known = t(`error.${this.code}`);
    return this.bengali || (known.startsWith("error.") ? this.message : known);
  }
}

export function told(error) {
  if (error instanceof Refused) return error.told;
  return error instanceof TypeError ? t("error.unreachable") : String(error.message ?? error);
}

async function headers(method, more) {
  const found = { ...more };
  if (key) return { ...found, authorization: `Bearer ${key}` };
  if (method !== "GET") {
    token ??= fetch("/csrf").then((answer) => (answer.ok ? answer.json() : { token: "" })).catch((error) => {
      token = null;
      throw error;
    });
    const given = (await token).token;
    if (given) found["x-khola-csrf"] = given;
  }
  return found;
}

async function refusal(answer) {
  const body = await answer.json().catch(() => ({}));
  const error = typeof body.error === "string" ? { message: body.error } : body.error;
  if (answer.status === 401) dispatchEvent(new CustomEvent("khola-key"));
  return new Refused(answer.status, error);
}

async function ask(method, path, body, { signal, type, more } = {}) {
  const raw = body instanceof Blob;
  const kind = body === undefined ? {} : { "content-type": type ?? (raw ? body.type : "application/json") };
  const options = { method, signal, body: body === undefined || raw ? body : JSON.stringify(body) };
  const send = async () => fetch(path, { ...options, headers: await headers(method, { ...kind, ...more }) });
  let answer = await send();
  if (answer.status === 403 && !key && token) {
    token = null; // the server was started anew since
    answer = await send();
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

export const get = async (path, options) => (await ask("GET", path, undefined, options)).json();
export const post = async (path, body, options) => (await ask("POST", path, body, options)).json();
export const put = async (path, body, options) => (await ask("PUT", path, body, options)).json();
export const patch = async (path, body) => (await ask("PATCH", path, body)).json();
export const remove = async (path) => (await ask("DELETE", path)).json();
export const blob = async (path) => (await ask("GET", path)).blob();

// Calls `hear(data, name)` for every event; ends when the stream does. Data stays text: the caller knows what it is.
// `place.bytes` counts the bytes of all events that were heard, which is where a broken stream can go on.
export async function events(method, path, body, hear, options = {}) {
  const place = options.place ?? { bytes: 0 };
  const answer = await ask(method, path, body, options);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const encoder = new TextEncoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
      const block = rest.slice(0, end + 2);
      rest = rest.slice(end + 2);
      place.bytes += encoder.encode(block).length;
      const lines = block.split("\n");
      const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).replace(/^ /, ""));
      const name = lines.find((line) => line.startsWith("event:"))?.slice(6).trim() ?? "";
      if (data.length) hear(data.join("\n"), name);
    }
  }
}

export async function save(path, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await blob(path));
  link.download = name.replace(/[/\\:*?"<>|\x00-\x1f]/g, "_");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
