// One message as it is shown: text, folded thought, tool calls, and what can be done with it.
import { html, useEffect, useRef, useState } from "./lib.js";
import { Code, Markdown } from "./markdown.js";
import { Icon, IconButton } from "./ui.js";
import { languageOf, number, seconds, t } from "./words.js";

export function Message({ message, speaker, siblings, live, actions, portrait }) {
  const [editing, setEditing] = useState(false);
  const mine = message.role === "user";
  const name = mine ? t("message.you") : speaker || message.model || t("message.answer");
  return html`<article class=${mine ? "message mine" : "message"} aria-label=${t("message.by", { name })} aria-busy=${live ? "true" : "false"}>
    <header>${portrait && html`<img src=${portrait} alt="" />`}<h3>${name}</h3></header>
    ${message.thinking && html`<${Thought} message=${message} live=${live} />`}
    ${message.tool_calls.map((call) => html`<${Call} call=${call} />`)}
    ${editing
      ? html`<${Editor} text=${message.content} onSave=${(text) => { setEditing(false); actions.edit(message, text); }} onCancel=${() => setEditing(false)} />`
      : html`<div class="text" lang=${languageOf(message.content)} dir="auto">
          ${mine ? html`<p class="plain">${message.content}</p>` : html`<${Markdown} text=${message.content} />`}
          ${live && !message.content && html`<${Waiting} state=${live} />`}
        </div>`}
    ${message.facts.error && html`<p class="error" role="alert">${message.facts.error}</p>`}
    ${!live && !editing && html`<footer>
      ${siblings.length > 1 && html`<${Branches} message=${message} siblings=${siblings} choose=${actions.show} />`}
      <${IconButton} icon="copy" label=${t("message.copy")} onClick=${() => navigator.clipboard.writeText(message.content)} />
      ${mine && html`<${IconButton} icon="edit" label=${t("message.edit")} onClick=${() => setEditing(true)} disabled=${actions.busy} />`}
      ${!mine && actions.again && !message.facts.greeting && html`<${IconButton} icon="again" label=${t("message.again")} onClick=${() => actions.again(message)} disabled=${actions.busy} />`}
      ${!mine && html`<${Facts} facts=${message.facts} />`}
    </footer>`}
  </article>`;
}

function Waiting({ state }) {
  return html`<p class="wait"><span class="spinner" aria-hidden="true"></span>${t(`live.${state}`)}</p>`;
}

function Thought({ message, live }) {
  const { thinking_s: time, thinking_tokens: tokens } = message.facts;
  const now = live === "thinking";
  const facts = [time && seconds(time), tokens && t("facts.tokens", { n: number(tokens) })].filter(Boolean).join(" · ");
  return html`<details class="thought">
    <summary><${Icon} name="down2" />${now ? t("thought.now") : t("thought.done")}${facts && html`<small>${facts}</small>`}</summary>
    <div lang=${languageOf(message.thinking)} dir="auto"><${Markdown} text=${message.thinking} /></div>
  </details>`;
}

function Call({ call }) {
  return html`<details class="call" open>
    <summary><${Icon} name="engine" />${t("call.name", { name: call.name })}<small>${call.result === undefined ? t("call.waiting") : t("call.done")}</small></summary>
    <${Code} text=${pretty(call.arguments)} language=${t("call.given")} />
    ${call.result !== undefined && html`<${Code} text=${pretty(call.result)} language=${t("call.result")} />`}
  </details>`;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function Branches({ message, siblings, choose }) {
  const place = siblings.findIndex((other) => other.id === message.id);
  const label = t("branch.of", { n: number(place + 1), all: number(siblings.length) });
  return html`<span class="branches" role="group" aria-label=${t("branch.title")}>
    <${IconButton} icon="left" label=${t("branch.before")} onClick=${() => choose(siblings[place - 1])} disabled=${place === 0} />
    <span aria-label=${label}>${number(place + 1)}/${number(siblings.length)}</span>
    <${IconButton} icon="right" label=${t("branch.after")} onClick=${() => choose(siblings[place + 1])} disabled=${place === siblings.length - 1} />
  </span>`;
}

function Facts({ facts }) {
  const { answer_tokens: tokens, total_s: total, first_s: first, finish } = facts;
  const parts = [
    tokens && t("facts.tokens", { n: number(tokens) }),
    tokens > 1 && total > first && t("facts.speed", { n: number((tokens - 1) / (total - first), 1) }),
    first && t("facts.first", { time: seconds(first) }),
    ["length", "stopped", "lost"].includes(finish) && t(`finish.${finish}`),
  ].filter(Boolean);
  return html`<small class="facts">${parts.join(" · ")}</small>`;
}

function Editor({ text, onSave, onCancel }) {
  const [draft, setDraft] = useState(text);
  const box = useRef(null);
  useEffect(() => box.current.focus(), []);
  const keys = (event) => {
    if (event.key === "Escape") onCancel();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && draft.trim()) onSave(draft);
  };
  return html`<div class="editor">
    <textarea ref=${box} rows="4" aria-label=${t("message.edit")} value=${draft} onInput=${(event) => setDraft(event.target.value)} onKeyDown=${keys}></textarea>
    <div class="row end">
      <button type="button" onClick=${onCancel}>${t("cancel")}</button>
      <button type="button" class="primary" disabled=${!draft.trim()} onClick=${() => onSave(draft)}>${t("message.send")}</button>
    </div>
  </div>`;
}

// Tells a screen reader of an answer sentence by sentence while it is written.
export function Announcer({ text, live }) {
  const [said, setSaid] = useState("");
  const told = useRef(0);
  useEffect(() => {
    if (!live) told.current = 0;
    const end = Math.max(...[". ", "? ", "! ", "।", "\n"].map((mark) => text.lastIndexOf(mark)));
    if (live && end >= told.current) {
      setSaid(text.slice(told.current, end + 1));
      told.current = end + 1;
    }
  }, [text, live]);
  return html`<div class="unseen" aria-live="polite" lang=${languageOf(said)}>${said}</div>`;
}
