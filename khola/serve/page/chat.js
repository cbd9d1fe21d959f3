// The chat: a conversation with its branches, and the answer that is being written.
import { answer, kept, turnsOf } from "./ask.js";
import { html, useEffect, useRef, useState } from "./lib.js";
import { Announcer, Message } from "./messages.js";
import { ModelChip } from "./model-chip.js";
import { get, patch, post, put, told } from "./net.js";
import { Conversations } from "./conversations.js";
import { usePortrait } from "./portrait.js";
import { notify, refreshConversations, useStore } from "./store.js";
import { leafBelow, pathTo, siblingsOf } from "./tree-of.js";
import { Bar, IconButton, short, Wait } from "./ui.js";
import { languageOf, number, percent, t } from "./words.js";

const WINDOW = 60; // messages that are drawn; earlier ones on request
const KEEP_MS = 1500; // between two times that a growing answer is kept
const DRAW_MS = 50;

// One running answer outlives a change of view; the page has one conversation open at a time.
export function Chat({ id, go }) {
  const { catalogue, model, characters } = useStore();
  const [conversation, setConversation] = useState(null);
  const [messages, setMessages] = useState([]);
  const [live, setLive] = useState(null);
  const [failed, setFailed] = useState("");
  const [listed, setListed] = useState(false);
  const running = useRef(null);
  const now = useRef({});
  now.current = { conversation, messages, model };

  useEffect(() => {
    if (id && id === now.current.conversation?.id) return;
    running.current?.abort();
    setFailed("");
    setMessages([]);
    setConversation(null);
    if (!id) return;
    get(`/page/conversations/${id}`).then(
      (whole) => (setMessages(whole.messages), setConversation(whole.conversation)),
      (error) => setFailed(told(error)),
    );
  }, [id]);
  useEffect(() => () => running.current?.abort(), []);

  const add = (message) => {
    now.current.messages = [...now.current.messages.filter((other) => other.id !== message.id), message].sort((a, b) => a.number - b.number);
    setMessages(now.current.messages);
  };
  const change = async (changes) => setConversation((now.current.conversation = await patch(`/page/conversations/${now.current.conversation.id}`, changes)));

  async function send(text, parent) {
    try {
      if (!now.current.conversation) {
        now.current.conversation = await post("/page/conversations", { title: short(text.trim().split("\n")[0], 60), model });
        setConversation(now.current.conversation);
        go(`chat/${now.current.conversation.id}`, true);
      }
      const { conversation: of } = now.current;
      const asked = await post(`/page/conversations/${of.id}/messages`, { role: "user", content: text, parent: parent ?? of.leaf });
      add(asked);
      await reply(asked.id);
      return true;
    } catch (error) {
      notify(told(error), "error");
      return false;
    }
  }

  async function reply(parent) {
    const of = now.current.conversation;
    const place = `/page/conversations/${of.id}/messages`;
    let draft = await post(place, { role: "assistant", content: "", parent, model, facts: { finish: "lost" } });
    add(draft);
    setConversation((now.current.conversation = { ...of, leaf: draft.id }));
    const stop = (running.current = new AbortController());
    let whole = { content: "", thinking: "", tool_calls: [], facts: {} };
    let saved = Date.now();
    let drawn = 0;
    const keep = (facts) => put(`${place}/${draft.id}`, { role: "assistant", content: whole.content, thinking: whole.thinking, tool_calls: whole.tool_calls, model, facts });
    setLive({ id: draft.id, state: "waiting", whole });
    try {
      const messages = await turns(of, parent, stop.signal);
      const hear = (so_far) => {
        whole = so_far;
        if (Date.now() - drawn > DRAW_MS || whole.state === "lost") {
          drawn = Date.now();
          setLive({ id: draft.id, state: whole.state, whole: { ...whole } });
        }
        if (Date.now() - saved > KEEP_MS) {
          saved = Date.now();
          keep(kept(whole, { finish: "lost" })).catch(() => {}); // the last one tells
        }
      };
      whole = await answer({ model, messages, thinking: settings().thinking, tools: settings().tools, signal: stop.signal }, hear);
      draft = await keep(kept(whole));
    } catch (error) {
      const facts = stop.signal.aborted ? { finish: "stopped" } : { finish: "failed", error: told(error) };
      draft = await keep(kept({ ...whole, facts: { began: performance.now(), ...whole.facts } }, facts)).catch(() => ({
        ...draft,
        content: whole.content,
        thinking: whole.thinking,
        facts: { ...facts, error: facts.error ?? t("error.not_kept") },
      }));
    } finally {
      add(draft);
      setLive(null);
      running.current = null;
      refreshConversations().catch(() => {});
    }
  }

  // With a character or a memory the server writes the prompt; else the branch is the prompt.
  async function turns(of, parent, signal) {
    if (!of.character && !of.memory) return turnsOf(pathTo(now.current.messages, parent));
    setLive((before) => ({ ...before, state: "remembering" }));
    const prompt = await post(`/page/conversations/${of.id}/prompt`, { leaf: parent, model }, { signal });
    if (prompt.summarised) setConversation((before) => ({ ...before, summarised: prompt.summarised }));
    return prompt.messages;
  }

  const path = conversation ? pathTo(messages, conversation.leaf) : [];
  const character = characters?.find((other) => other.id === conversation?.character);
  const actions = {
    busy: Boolean(live),
    edit: (message, text) => send(text, message.parent),
    again: (message) => reply(message.parent).catch((error) => notify(told(error), "error")),
    show: (message) => change({ leaf: leafBelow(messages, message) }).catch((error) => notify(told(error), "error")),
  };
  return html`<div class="chat">
    <${Conversations} current=${conversation?.id} open=${listed} close=${() => setListed(false)} go=${go} />
    <section class="talk" aria-label=${t("nav.chat")}>
      <header class="topbar">
        <span class="only-phone"><${IconButton} icon="menu" label=${t("chats.title")} onClick=${() => setListed(true)} /></span>
        <${ModelChip} />
        <${Memory} conversation=${conversation} change=${change} />
        <span class="only-phone"><${IconButton} icon="plus" label=${t("chats.new")} onClick=${() => go("chat")} /></span>
      </header>
      ${failed && html`<p class="error" role="alert">${failed}</p>`}
      ${id && !conversation && !failed && html`<${Wait} />`}
      <${Talk} path=${path} messages=${messages} live=${live} actions=${actions} character=${character} send=${send} />
      <${Composer} draftKey=${id ?? "new"} busy=${Boolean(live)} stop=${() => running.current?.abort()} send=${send} ready=${Boolean(catalogue && model)} />
      <${Context} path=${path} model=${model} catalogue=${catalogue} />
    </section>
  </div>`;
}

const settings = () => ({
  thinking: { on: true, off: false }[localStorage.getItem("khola-thinking")],
  tools: localStorage.getItem("khola-tools") === "on",
});

function Memory({ conversation, change }) {
  if (!conversation) return html`<span class="grow"></span>`;
  const label = conversation.memory ? t("memory.on") : t("memory.off");
  return html`<span class="grow"></span>
    ${conversation.summarised > 0 && html`<small class="facts">${t("memory.covers", { n: number(conversation.summarised) })}</small>`}
    <button type="button" class="quiet" aria-pressed=${conversation.memory ? "true" : "false"} title=${t("memory.help")} onClick=${() => change({ memory: !conversation.memory })}>${label}</button>`;
}

function Talk({ path, messages, live, actions, character, send }) {
  const box = useRef(null);
  const [extra, setExtra] = useState(0);
  const [stuck, setStuck] = useState(true);
  const portrait = usePortrait(character?.pictured ? character.id : "");
  const shown = path.slice(-WINDOW - extra);
  const growing = live ? (live.whole.content + live.whole.thinking).length : 0;
  useEffect(() => {
    if (stuck && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [path.length, path.at(-1)?.id, growing, stuck]);
  const scrolled = () => {
    const { scrollHeight, scrollTop, clientHeight } = box.current;
    setStuck(scrollHeight - scrollTop - clientHeight < 80);
  };
  const whole = live?.whole;
  return html`<div class="messages" ref=${box} onScroll=${scrolled} tabindex="0" role="region" aria-label=${t("chat.messages")}>
    ${path.length === 0 && html`<${Welcome} send=${send} />`}
    ${path.length > shown.length && html`<button type="button" class="quiet middle" onClick=${() => setExtra(extra + WINDOW)}>${t("chat.earlier", { n: number(path.length - shown.length) })}</button>`}
    ${shown.map((message) => {
      const writing = live?.id === message.id;
      const text = writing ? { ...message, content: whole.content, thinking: whole.thinking, tool_calls: whole.tool_calls, facts: whole.facts } : message;
      return html`<${Message} key=${message.id} message=${text} speaker=${message.role === "assistant" && character?.data.name} portrait=${message.role === "assistant" && portrait}
        siblings=${siblingsOf(messages, message)} live=${writing ? live.state : ""} actions=${actions} />`;
    })}
    ${live?.state === "lost" && html`<p class="wait" role="status"><span class="spinner" aria-hidden="true"></span>${t("live.lost")}</p>`}
    <${Announcer} text=${whole?.content ?? ""} live=${Boolean(live)} />
  </div>`;
}

function Welcome({ send }) {
  const ideas = ["welcome.idea1", "welcome.idea2", "welcome.idea3"];
  return html`<div class="empty">
    <h1>${t("welcome.title")}</h1>
    <p>${t("welcome.text")}</p>
    <ul class="ideas">${ideas.map((key) => html`<li><button type="button" onClick=${() => send(t(key))}>${t(key)}</button></li>`)}</ul>
  </div>`;
}

function Composer({ draftKey, busy, stop, send, ready }) {
  const place = `khola-draft-${draftKey}`;
  const [text, setText] = useState("");
  const box = useRef(null);
  useEffect(() => setText(localStorage.getItem(place) ?? ""), [place]);
  useEffect(() => {
    box.current.style.height = "auto";
    box.current.style.height = `${Math.min(240, box.current.scrollHeight)}px`;
  }, [text]);
  const write = (value) => {
    setText(value);
    if (value) localStorage.setItem(place, value);
    else localStorage.removeItem(place);
  };
  const submit = async (event) => {
    event?.preventDefault();
    if (!text.trim() || busy || !ready) return;
    const said = text;
    write("");
    if (!(await send(said))) write(said);
  };
  // Enter sends; while an input method composes a letter it does not.
  const keys = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
    if (event.key === "Escape" && busy) stop();
  };
  return html`<form class="composer" onSubmit=${submit}>
    <label class="unseen" for="composer">${t("chat.write")}</label>
    <textarea id="composer" ref=${box} rows="1" dir="auto" lang=${languageOf(text)} placeholder=${ready ? t("chat.write") : t("chat.no_model")} value=${text} onInput=${(event) => write(event.target.value)} onKeyDown=${keys}></textarea>
    ${busy
      ? html`<${IconButton} icon="stop" label=${t("chat.stop")} onClick=${stop} />`
      : html`<button type="submit" class="icon-button primary" aria-label=${t("message.send")} title=${t("message.send")} disabled=${!text.trim() || !ready}><svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d="M5 12h13M12 5l7 7-7 7" /></svg></button>`}
  </form>`;
}

// How full the context is, by the last answer's count; near its end the reader is told what to do about it.
function Context({ path, model, catalogue }) {
  const used = path.findLast((message) => message.facts.prompt_tokens)?.facts;
  const most = catalogue?.models.find((other) => other.name === model)?.context_tokens;
  if (!used || !most) return html`<p class="hint">${t("chat.truth")}</p>`;
  const share = (used.prompt_tokens + (used.answer_tokens ?? 0)) / most;
  return html`<div class="context">
    <${Bar} share=${share} label=${t("context.used")} />
    <small>${t("context.share", { share: percent(share), n: number(most) })}</small>
    ${share > 0.8 && html`<small class="warn" role="status">${t("context.full")}</small>`}
  </div>`;
}
