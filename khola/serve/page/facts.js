// What is true of a model, in sentences: where it comes from, what its licence asks, what it takes.
import { html } from "./lib.js";
import { bytes, lang, t } from "./words.js";

const HOW = {
  "fine-tuned": "how.tuned",
  initialised: "how.initialised",
  distilled: "how.distilled",
  quantised: "how.quantised",
  merged: "how.merged",
  adapted: "how.adapted",
  pruned: "how.pruned",
  "same weights": "how.same",
};

export const how = (parent, cards) => t(HOW[parent.how], { name: cards[parent.name]?.title ?? parent.name });

export function origin(card, cards) {
  if (!card) return t("origin.unknown");
  const made = card.parents.map((parent) => how(parent, cards)).join(" · ");
  const maker = t("origin.lab", { lab: card.lab, country: country(card.country) });
  return made ? `${maker} · ${made}` : `${maker} · ${t("origin.first")}`;
}

export function country(code) {
  try {
    return new Intl.DisplayNames(lang(), { type: "region" }).of(code) ?? code;
  } catch {
    return code;
  }
}

const VERDICT = { yes: "licence.commercial.yes", no: "licence.commercial.no", conditions: "licence.commercial.conditions" };
const DISTIL = { yes: "licence.distil.yes", no: "licence.distil.no", "name-rule": "licence.distil.name" };

export function Licence({ id, licence }) {
  if (!licence) return html`<span class="chip">${t("licence.unknown")}</span>`;
  const tone = licence.commercial === "yes" ? "good" : licence.commercial === "no" ? "bad" : "mixed";
  return html`<span class=${`chip ${tone}`} title=${t(VERDICT[licence.commercial])}>${id}</span>`;
}

export function LicenceFacts({ id, licence }) {
  const duties = lang() === "bn" && licence.duties_bn.length ? licence.duties_bn : licence.duties;
  return html`<section class="licence">
    <h3>${licence.name} <${Licence} id=${id} licence=${licence} /></h3>
    <ul>
      <li>${t(VERDICT[licence.commercial])}</li>
      <li>${t(DISTIL[licence.distil_outputs])}</li>
      ${licence.name_prefix && html`<li>${t("licence.prefix", { name: licence.name_prefix })}</li>`}
      ${licence.mau_limit > 0 && html`<li>${t("licence.users", { n: licence.mau_limit.toLocaleString(lang()) })}</li>`}
      ${duties.map((duty) => html`<li>${duty}</li>`)}
    </ul>
    <p><a href=${licence.url} target="_blank" rel="noopener noreferrer">${t("licence.text")}</a></p>
  </section>`;
}

export function memory(state) {
  if (!state) return t("state.unloaded");
  if (state.state === "loaded") return state.memory_bytes ? t("memory.takes", { size: bytes(state.memory_bytes) }) : t("state.loaded");
  return t(`state.${state.state}`);
}
