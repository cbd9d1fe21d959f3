// Characters: cards that come in and go out as pictures or JSON, the persona they speak to, and their lore.
import { CharacterForm, EMPTY } from "./character-form.js";
import { html, useEffect, useRef, useState } from "./lib.js";
import { get, post, put, remove, save, told } from "./net.js";
import { usePortrait } from "./portrait.js";
import { notify, refreshCharacters, useStore } from "./store.js";
import { Confirm, Empty, Field, Icon, IconButton, Sheet, short, Wait } from "./ui.js";
import { languageOf, number, t } from "./words.js";

export function Characters({ go }) {
  const { characters, model } = useStore();
  const [edited, setEdited] = useState(null);
  const [persona, setPersona] = useState(false);
  const [over, setOver] = useState(false);
  const picker = useRef(null);
  useEffect(() => {
    refreshCharacters().catch((error) => notify(told(error), "error"));
  }, []);
  const take = async (files) => {
    for (const file of files) {
      const type = file.name.toLowerCase().endsWith(".png") ? "image/png" : "application/json";
      try {
        const made = await post("/page/characters", new Blob([file], { type }));
        notify(made.unread ? t("characters.unread", { name: made.data.name, n: number(made.unread) }) : t("characters.taken", { name: made.data.name }));
      } catch (error) {
        notify(t("characters.refused", { file: file.name, why: told(error) }), "error");
      }
    }
    await refreshCharacters().catch(() => {});
  };
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    take([...event.dataTransfer.files]);
  };
  const talk = async (one, greeting = 0) => {
    try {
      const made = await post("/page/conversations", { character: one.id, model, greeting });
      go(`chat/${made.id}`);
    } catch (error) {
      notify(told(error), "error");
    }
  };
  return html`<section class=${over ? "page over" : "page"} aria-labelledby="characters-title" onDragOver=${(event) => (event.preventDefault(), setOver(true))} onDragLeave=${() => setOver(false)} onDrop=${drop}>
    <header class="page-head"><h1 id="characters-title">${t("nav.characters")}</h1><p class="hint">${t("characters.notice")}</p></header>
    <div class="row wrap">
      <button type="button" class="primary" onClick=${() => picker.current.click()}><${Icon} name="down" />${t("characters.import")}</button>
      <input ref=${picker} type="file" class="unseen" tabindex="-1" aria-label=${t("characters.import")} accept=".png,.json,image/png,application/json" multiple onChange=${(event) => (take([...event.target.files]), (event.target.value = ""))} />
      <button type="button" onClick=${() => setEdited({ data: EMPTY })}><${Icon} name="plus" />${t("characters.new")}</button>
      <button type="button" onClick=${() => setPersona(true)}><${Icon} name="characters" />${t("persona.title")}</button>
    </div>
    ${!characters && html`<${Wait} />`}
    ${characters?.length === 0 && html`<${Empty} title=${t("characters.none")} />`}
    <ul class="cards">${characters?.map((one) => html`<${Person} key=${one.id} one=${one} talk=${talk} edit=${() => setEdited(one)} />`)}</ul>
    ${edited && html`<${CharacterForm} of=${edited} onClose=${() => setEdited(null)} />`}
    ${persona && html`<${Persona} onClose=${() => setPersona(false)} />`}
  </section>`;
}

function Person({ one, talk, edit }) {
  const [sure, setSure] = useState(false);
  const [out, setOut] = useState(false);
  const portrait = usePortrait(one.pictured ? one.id : "", one.updated);
  const { name, description = "", tags, creator } = one.data;
  const greetings = [one.data.first_mes, ...(one.data.alternate_greetings ?? [])].filter((text) => text?.trim());
  const gone = () => remove(`/page/characters/${one.id}`).then(refreshCharacters).catch((error) => notify(told(error), "error"));
  const give = (form, ending) => save(`/page/characters/${one.id}/export?form=${form}`, `${name}.${ending}`).catch((error) => notify(told(error), "error"));
  return html`<li class="card person" lang=${languageOf(description || name)}>
    <div class="row">
      ${portrait ? html`<img class="portrait" src=${portrait} alt="" />` : html`<span class="portrait" aria-hidden="true">${short(name, 2).slice(0, 1)}</span>`}
      <div><h2>${name}</h2>${creator && html`<p class="hint">${t("characters.by", { name: creator })}</p>`}</div>
    </div>
    <p>${short(description.replaceAll("{{char}}", name).replaceAll("{{user}}", t("message.you")), 160)}</p>
    ${tags?.length > 0 && html`<div class="row wrap">${tags.slice(0, 6).map((tag) => html`<span class="chip">${tag}</span>`)}</div>`}
    <div class="row wrap" lang="">
      <button type="button" class="primary" onClick=${() => talk(one)}><${Icon} name="chat" />${t("characters.talk")}</button>
      ${greetings.length > 1 && html`<button type="button" onClick=${() => talk(one, 1 + Math.floor(Math.random() * (greetings.length - 1)))}>${t("characters.other")}</button>`}
      <span class="row tight"><${IconButton} icon="edit" label=${t("characters.edit", { name })} onClick=${edit} />
      <${IconButton} icon="down" label=${t("characters.export", { name })} onClick=${() => setOut(true)} />
      <${IconButton} icon="trash" label=${t("characters.delete", { name })} onClick=${() => setSure(true)} /></span>
    </div>
    ${sure && html`<${Confirm} title=${t("characters.sure", { name })} action=${t("delete")} onYes=${gone} onClose=${() => setSure(false)} />`}
    ${out && html`<${Sheet} title=${t("characters.export", { name })} onClose=${() => setOut(false)}>
      <div class="row wrap">
        ${[["png", "png"], ["v3", "json"], ["v2", "json"], ["v1", "json"]].map(([form, ending]) => html`<button type="button" onClick=${() => give(form, ending)}>${t(`export.${form}`)}</button>`)}
      </div>
      <p class="hint">${t("export.hint")}</p>
    </${Sheet}>`}
  </li>`;
}

function Persona({ onClose }) {
  const [persona, setPersona] = useState(null);
  useEffect(() => {
    get("/page/persona").then(setPersona, (error) => notify(told(error), "error"));
  }, []);
  const keep = async (event) => {
    event.preventDefault();
    await put("/page/persona", persona).then(onClose, (error) => notify(told(error), "error"));
  };
  return html`<${Sheet} title=${t("persona.title")} onClose=${onClose}>
    ${persona ? html`<form onSubmit=${keep}>
      <p class="hint">${t("persona.help")}</p>
      <${Field} label=${t("persona.name")}><input value=${persona.name} onInput=${(event) => setPersona({ ...persona, name: event.target.value })} /></${Field}>
      <${Field} label=${t("persona.about")}><textarea rows="4" value=${persona.description} onInput=${(event) => setPersona({ ...persona, description: event.target.value })}></textarea></${Field}>
      <div class="row end"><button type="submit" class="primary">${t("save")}</button></div>
    </form>` : html`<${Wait} />`}
  </${Sheet}>`;
}
