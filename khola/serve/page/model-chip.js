// Which model answers: its name in the top bar; behind it a sheet with the truth about each that this server offers.
import { Licence, memory, origin } from "./facts.js";
import { html, useState } from "./lib.js";
import { chooseModel, useStore } from "./store.js";
import { Bar, Field, Icon, Sheet } from "./ui.js";
import { bytes, number, t } from "./words.js";

export function ModelChip({ value, choose = chooseModel, label }) {
  const { catalogue, model } = useStore();
  const [open, setOpen] = useState(false);
  const chosen = value ?? model;
  return html`<button type="button" class="model-chip" aria-haspopup="dialog" aria-label=${label ?? t("model.change", { name: chosen || t("model.none") })} onClick=${() => setOpen(true)}>
      <${Icon} name="models" /><span>${chosen || t("model.none")}</span><${Icon} name="down2" />
    </button>
    ${open && catalogue && html`<${Sheet} title=${t("model.title")} onClose=${() => setOpen(false)}>
      ${catalogue.models.length === 0 && html`<p>${t("model.nothing")}</p>`}
      <ul class="models-offered">${catalogue.models.map((state) => html`<${Offered} state=${state} catalogue=${catalogue} chosen=${state.name === chosen} choose=${() => (choose(state.name), setOpen(false))} />`)}</ul>
      <${Settings} />
    </${Sheet}>`}`;
}

function Offered({ state, catalogue, chosen, choose }) {
  const card = catalogue.byName[state.card || state.name];
  const all = state.memory_bytes + catalogue.free_bytes;
  return html`<li class=${chosen ? "offered chosen" : "offered"}>
    <button type="button" aria-pressed=${chosen ? "true" : "false"} onClick=${choose}>
      <strong>${state.name}</strong>
      <span class="row wrap">${card ? card.licences.map((id) => html`<${Licence} id=${id} licence=${catalogue.licences[id]} />`) : html`<${Licence} />`}<span class="chip">${t(`state.${state.state}`)}</span></span>
    </button>
    <p>${origin(card, catalogue.byName)}</p>
    ${card?.about && html`<p class="hint" lang="en">${card.about}</p>`}
    <p class="hint">${[memory(state), state.context_tokens && t("context.length", { n: number(state.context_tokens) }), state.file_bytes && t("file.size", { size: bytes(state.file_bytes) })].filter(Boolean).join(" · ")}</p>
    ${state.memory_bytes > 0 && html`<${Bar} share=${state.memory_bytes / all} label=${t("memory.share")} />`}
  </li>`;
}

function Settings() {
  const [thinking, setThinking] = useState(localStorage.getItem("khola-thinking") ?? "lab");
  const [tools, setTools] = useState(localStorage.getItem("khola-tools") === "on");
  const think = (event) => (localStorage.setItem("khola-thinking", event.target.value), setThinking(event.target.value));
  const use = (event) => (localStorage.setItem("khola-tools", event.target.checked ? "on" : "off"), setTools(event.target.checked));
  return html`<div class="row wrap settings">
    <${Field} label=${t("thinking.title")}>
      <select value=${thinking} onChange=${think}>${["lab", "on", "off"].map((key) => html`<option value=${key}>${t(`thinking.${key}`)}</option>`)}</select>
    </${Field}>
    <label class="check"><input type="checkbox" checked=${tools} onChange=${use} /> ${t("tools.use")}</label>
  </div>`;
}
