// The list of conversations: search, rename, export, delete. On a phone it slides over the talk.
import { html, useEffect, useState } from "./lib.js";
import { patch, remove, save, told } from "./net.js";
import { notify, refreshConversations, useStore } from "./store.js";
import { Confirm, Field, Icon, IconButton, Sheet } from "./ui.js";
import { languageOf, t, when } from "./words.js";

export function Conversations({ current, open, close, go }) {
  const { conversations } = useStore();
  const [search, setSearch] = useState("");
  const [chosen, setChosen] = useState(null);
  useEffect(() => {
    const timer = setTimeout(() => refreshConversations(search).catch((error) => notify(told(error), "error")), search ? 250 : 0);
    return () => clearTimeout(timer);
  }, [search]);
  useEffect(() => {
    const keys = (event) => event.key === "Escape" && open && close();
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  }, [open]);
  const choose = (id) => (go(`chat/${id}`), close());
  return html`<aside class=${open ? "chats open" : "chats"} aria-label=${t("chats.title")}>
    <header>
      <h2>${t("chats.title")}</h2>
      <button type="button" class="quiet" onClick=${() => (go("chat"), close())}><${Icon} name="plus" />${t("chats.new")}</button>
      <span class="only-phone"><${IconButton} icon="close" label=${t("close")} onClick=${close} /></span>
    </header>
    <input type="search" aria-label=${t("chats.search")} placeholder=${t("chats.search")} value=${search} onInput=${(event) => setSearch(event.target.value)} />
    <ul>
      ${(conversations ?? []).map((one) => html`<li key=${one.id} class=${one.id === current ? "current" : ""}>
        <button type="button" class="chat-name" aria-current=${one.id === current ? "page" : undefined} onClick=${() => choose(one.id)}>
          <span lang=${languageOf(one.title)}>${one.title || t("chats.untitled")}</span><small>${when(one.updated)}</small>
        </button>
        <${IconButton} icon="edit" label=${t("chats.more", { name: one.title })} onClick=${() => setChosen(one)} />
      </li>`)}
    </ul>
    ${conversations?.length === 0 && html`<p class="hint">${search ? t("chats.none_found") : t("chats.none")}</p>`}
    ${chosen && html`<${Menu} of=${chosen} current=${current} go=${go} onClose=${() => setChosen(null)} />`}
  </aside>`;
}

function Menu({ of, current, go, onClose }) {
  const [title, setTitle] = useState(of.title);
  const [sure, setSure] = useState(false);
  const path = `/page/conversations/${of.id}`;
  const done = (work) => work.then(() => (refreshConversations(), onClose()), (error) => notify(told(error), "error"));
  if (sure) {
    const gone = () => done(remove(path).then(() => of.id === current && go("chat")));
    return html`<${Confirm} title=${t("chats.sure", { name: of.title })} action=${t("delete")} onYes=${gone} onClose=${onClose} />`;
  }
  return html`<${Sheet} title=${of.title || t("chats.untitled")} onClose=${onClose}>
    <form class="row" onSubmit=${(event) => (event.preventDefault(), done(patch(path, { title })))}>
      <${Field} label=${t("chats.name")}><input value=${title} onInput=${(event) => setTitle(event.target.value)} /></${Field}>
      <button type="submit" class="primary">${t("save")}</button>
    </form>
    <div class="row wrap">
      <button type="button" onClick=${() => done(save(`${path}/export?form=json`, `${of.title || of.id}.json`))}><${Icon} name="down" />${t("export.json")}</button>
      <button type="button" onClick=${() => done(save(`${path}/export?form=markdown`, `${of.title || of.id}.md`))}><${Icon} name="down" />${t("export.markdown")}</button>
      <button type="button" class="danger" onClick=${() => setSure(true)}><${Icon} name="trash" />${t("delete")}</button>
    </div>
  </${Sheet}>`;
}
