// The form of a character: the fields of its card and its lore. What the form does not know stays as it was.
import { html, useState } from "./lib.js";
import { post, put, told } from "./net.js";
import { notify, refreshCharacters } from "./store.js";
import { Field, Icon, IconButton, Sheet } from "./ui.js";
import { languageOf, number, t } from "./words.js";

export const EMPTY = { name: "", description: "", first_mes: "", extensions: {} };

const LONG = { description: 4, personality: 2, scenario: 2, first_mes: 3, mes_example: 4, system_prompt: 2, post_history_instructions: 2, creator_notes: 2 };

export function CharacterForm({ of, onClose }) {
  const [data, setData] = useState(of.data);
  const change = (name, value) => setData((before) => ({ ...before, [name]: value }));
  const keep = async (event) => {
    event.preventDefault();
    try {
      if (of.id) await put(`/page/characters/${of.id}`, { data });
      else await post("/page/characters", new Blob([JSON.stringify({ spec: "chara_card_v3", spec_version: "3.0", data })], { type: "application/json" }));
      await refreshCharacters();
      onClose();
    } catch (error) {
      notify(told(error), "error");
    }
  };
  const greetings = (data.alternate_greetings ?? []).join("\n---\n");
  return html`<${Sheet} title=${data.name || t("characters.new")} onClose=${onClose} wide>
    <form onSubmit=${keep}>
      <${Field} label=${t("field.name")}><input required value=${data.name} onInput=${(event) => change("name", event.target.value)} /></${Field}>
      ${Object.entries(LONG).map(([name, rows]) => html`<${Field} label=${t(`field.${name}`)} help=${name === "mes_example" ? t("field.mes_example.help") : ""}>
        <textarea rows=${rows} dir="auto" lang=${languageOf(data[name] ?? "")} value=${data[name] ?? ""} onInput=${(event) => change(name, event.target.value)}></textarea></${Field}>`)}
      <${Field} label=${t("field.alternate_greetings")} help=${t("field.alternate_greetings.help")}>
        <textarea rows="3" dir="auto" value=${greetings} onInput=${(event) => change("alternate_greetings", event.target.value.split(/\n---\n/))}></textarea></${Field}>
      <${Field} label=${t("field.tags")}><input value=${(data.tags ?? []).join(", ")} onChange=${(event) => change("tags", event.target.value.split(",").map((tag) => tag.trim()).filter(Boolean))} /></${Field}>
      <${Lore} book=${data.character_book} change=${(book) => change("character_book", book)} />
      <div class="row end sticky"><button type="button" onClick=${onClose}>${t("cancel")}</button><button type="submit" class="primary">${t("save")}</button></div>
    </form>
  </${Sheet}>`;
}

function Lore({ book, change }) {
  const entries = book?.entries ?? [];
  const put_ = (index, changes) => change({ extensions: {}, ...book, entries: entries.map((entry, at) => (at === index ? { ...entry, ...changes } : entry)) });
  const add = () => change({ extensions: {}, ...book, entries: [...entries, { keys: [], content: "", enabled: true, insertion_order: entries.length, extensions: {} }] });
  const drop = (index) => change({ ...book, entries: entries.filter((_, at) => at !== index) });
  return html`<fieldset class="lore">
    <legend>${t("lore.title")}</legend>
    <p class="hint">${t("lore.help")}</p>
    <${Field} label=${t("lore.budget")}><input type="number" min="0" max="8192" value=${book?.token_budget ?? 512} onChange=${(event) => change({ extensions: {}, entries: [], ...book, token_budget: Number(event.target.value) })} /></${Field}>
    ${entries.map((entry, index) => html`<div class="lore-entry" role="group" aria-label=${t("lore.entry", { n: number(index + 1) })}>
      <${Field} label=${t("lore.keys")}><input value=${entry.keys.join(", ")} onChange=${(event) => put_(index, { keys: event.target.value.split(",").map((key) => key.trim()).filter(Boolean) })} /></${Field}>
      <${Field} label=${t("lore.text")}><textarea rows="2" dir="auto" lang=${languageOf(entry.content)} value=${entry.content} onInput=${(event) => put_(index, { content: event.target.value })}></textarea></${Field}>
      <div class="row"><label class="check"><input type="checkbox" checked=${entry.enabled} onChange=${(event) => put_(index, { enabled: event.target.checked })} /> ${t("lore.on")}</label>
        <span class="grow"></span><${IconButton} icon="trash" label=${t("lore.delete", { n: number(index + 1) })} onClick=${() => drop(index)} /></div>
    </div>`)}
    <button type="button" onClick=${add}><${Icon} name="plus" />${t("lore.add")}</button>
  </fieldset>`;
}
