// The catalogue: what there is, what fits here, under which licence; pulls with their progress; loading and unloading.
import { country, Licence, LicenceFacts, memory, origin } from "./facts.js";
import { html, useEffect, useState } from "./lib.js";
import { events, get, post, remove, told } from "./net.js";
import { notify, refreshCatalogue, set, useStore } from "./store.js";
import { Bar, Icon, Sheet, Wait } from "./ui.js";
import { bytes, lang, number, seconds, t } from "./words.js";

let listening = false;

// Hears of pulls until all have ended; asked for again after a lost line.
export async function watchPulls() {
  if (listening) return;
  listening = true;
  const told_of = {};
  const hear = (data, name) => {
    if (name !== "pull") return;
    const pull = JSON.parse(data);
    told_of[pull.model] = pull;
    set({ pulls: { ...told_of } });
  };
  try {
    await events("GET", "/page/pulls/events", undefined, hear);
    if (Object.values(told_of).some((pull) => pull.state === "done")) await refreshCatalogue();
  } catch {
    setTimeout(watchPulls, 2000);
  } finally {
    listening = false;
  }
}

export function Models() {
  const { catalogue, pulls = {} } = useStore();
  const [search, setSearch] = useState("");
  const [only, setOnly] = useState("all");
  const [chosen, setChosen] = useState("");
  useEffect(() => {
    refreshCatalogue().catch((error) => notify(told(error), "error"));
    watchPulls();
  }, []);
  if (!catalogue) return html`<${Wait} />`;
  const states = Object.fromEntries(catalogue.models.map((state) => [state.name, state]));
  const here = new Set([...catalogue.here, ...Object.keys(states)]);
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (card) =>
    words.every((word) => `${card.name} ${card.title} ${card.family} ${card.lab}`.toLowerCase().includes(word)) &&
    (only === "all" || (only === "here" && here.has(card.name)) || (only === "chat" && card.chat) || (only === "bn" && card.languages.includes("bn")));
  const cards = catalogue.cards.filter(fits).sort((a, b) => Number(here.has(b.name)) - Number(here.has(a.name)) || a.family.localeCompare(b.family) || b.released.localeCompare(a.released));
  const strangers = catalogue.models.filter((state) => !catalogue.byName[state.name] && !words.length && only !== "bn");
  return html`<section class="page" aria-labelledby="models-title">
    <header class="page-head"><h1 id="models-title">${t("nav.models")}</h1>
      <p class="hint">${t("models.count", { n: number(catalogue.cards.length), here: number(here.size) })} · ${t("models.free", { size: bytes(catalogue.free_bytes) })}</p></header>
    <div class="row wrap filters">
      <input type="search" aria-label=${t("models.search")} placeholder=${t("models.search")} value=${search} onInput=${(event) => setSearch(event.target.value)} />
      <div role="group" aria-label=${t("models.show")} class="tabs">${["all", "here", "chat", "bn"].map((key) => html`<button type="button" aria-pressed=${only === key ? "true" : "false"} onClick=${() => setOnly(key)}>${t(`models.only.${key}`)}</button>`)}</div>
    </div>
    <ul class="cards">
      ${strangers.map((state) => html`<${Stranger} state=${state} />`)}
      ${cards.map((card) => html`<${Row} key=${card.name} card=${card} catalogue=${catalogue} state=${states[card.name]} here=${here.has(card.name)} pull=${pulls[card.name]} open=${() => setChosen(card.name)} />`)}
    </ul>
    ${cards.length + strangers.length === 0 && html`<p class="hint">${t("models.none")}</p>`}
    ${chosen && html`<${Details} card=${catalogue.byName[chosen]} catalogue=${catalogue} state=${states[chosen]} here=${here.has(chosen)} pull=${pulls[chosen]} onClose=${() => setChosen("")} />`}
  </section>`;
}

function Stranger({ state }) {
  return html`<li class="card"><div class="row"><h2>${state.name}</h2><span class="chip good">${t("models.is_here")}</span></div>
    <p class="hint">${t("origin.unknown")} · ${memory(state)}</p><${LoadButtons} name=${state.name} state=${state} /></li>`;
}

function Row({ card, catalogue, state, here, pull, open }) {
  return html`<li class="card">
    <div class="row"><h2><button type="button" class="link" onClick=${open}>${card.title}</button></h2>
      ${here ? html`<span class="chip good">${state ? t(`state.${state.state}`) : t("models.is_here")}</span>` : ""}</div>
    <p class="hint">${[card.parameters, `${card.lab}, ${country(card.country)}`, card.released].filter(Boolean).join(" · ")}</p>
    <div class="row wrap">${card.licences.map((id) => html`<${Licence} id=${id} licence=${catalogue.licences[id]} />`)}
      ${card.weights === "none" && html`<span class="chip">${t("models.closed")}</span>`}
      ${card.thinking !== "never" && html`<span class="chip">${t("models.thinks")}</span>`}</div>
    ${pull && pull.state !== "done" && html`<${PullBar} pull=${pull} />`}
  </li>`;
}

function Details({ card, catalogue, state, here, pull, onClose }) {
  const [plan, setPlan] = useState(null);
  const [failed, setFailed] = useState("");
  useEffect(() => {
    if (card.weights !== "none") get(`/page/catalogue/${encodeURIComponent(card.name)}/fit`).then(setPlan, (error) => setFailed(told(error)));
  }, [card.name]);
  return html`<${Sheet} title=${card.title} onClose=${onClose} wide>
    <p>${origin(card, catalogue.byName)}</p>
    ${card.about && html`<p lang="en" class="hint">${card.about}</p>`}
    <p class="hint">${[card.parameters && t("models.weights", { n: card.parameters }), card.active_parameters && t("models.active", { n: card.active_parameters }), card.context && t("context.length", { n: number(card.context) }), card.languages.length && t("models.languages", { list: languages(card.languages) })].filter(Boolean).join(" · ")}</p>
    ${card.weights === "none" ? html`<p class="warn">${t("models.closed_long")}</p>` : html`<${Fit} plan=${plan} failed=${failed} />`}
    ${card.licences.map((id) => html`<${LicenceFacts} id=${id} licence=${catalogue.licences[id]} />`)}
    <${Actions} card=${card} here=${here} state=${state} pull=${pull} plan=${plan} />
  </${Sheet}>`;
}

function languages(codes) {
  const names = new Intl.DisplayNames(lang(), { type: "language" });
  const shown = codes.slice(0, 12).map((code) => names.of(code) ?? code);
  return shown.join(", ") + (codes.length > shown.length ? " …" : "");
}

const speed = (count) => number(count, count < 10 ? 1 : 0);

function Fit({ plan, failed }) {
  if (failed) return html`<p class="warn">${failed}</p>`;
  if (!plan) return html`<${Wait} text=${t("fit.looking")} />`;
  const best = plan.choices.find((choice) => choice.format === plan.best);
  return html`<section class="fit">
    <h3>${plan.fits ? t("fit.yes", { size: bytes(best.total_bytes), free: bytes(plan.free_bytes) }) : plan.implemented ? t("fit.no", { free: bytes(plan.free_bytes) }) : t("fit.never")}</h3>
    <div class="scroll" tabindex="0" role="region" aria-label=${t("fit.table")}><table>
      <thead><tr>${["format", "file", "memory", "context", "speed", "fetch"].map((key) => html`<th scope="col">${t(`fit.${key}`)}</th>`)}</tr></thead>
      <tbody>${plan.choices.map((choice) => html`<tr class=${choice.fits ? "" : "dim"}>
        <th scope="row">${choice.format} ${choice.fits ? html`<${Icon} name="check" /><span class="unseen">${t("fit.fits")}</span>` : ""}</th>
        <td>${bytes(choice.file_bytes)}</td><td>${bytes(choice.total_bytes)}</td><td>${choice.longest_context ? number(choice.longest_context) : "–"}</td>
        <td>${choice.tokens_s[1] && choice.fits ? t("fit.tokens", { a: speed(choice.tokens_s[0]), b: speed(choice.tokens_s[1]) }) : "–"}</td><td>${choice.pull_s ? seconds(choice.pull_s) : "–"}</td>
      </tr>`)}</tbody>
    </table></div>
    ${plan.relatives.length > 0 && html`<p>${t("fit.smaller", { names: plan.relatives.join(", ") })}</p>`}
  </section>`;
}

function Actions({ card, here, state, pull, plan }) {
  const act = (work) => work.catch((error) => notify(told(error), "error"));
  const start = () => act(post("/page/pulls", { model: card.name }).then((begun) => (set({ pulls: { [card.name]: begun } }), watchPulls())));
  const running = pull?.state === "running";
  return html`<div class="actions">
    ${pull && html`<${PullBar} pull=${pull} />`}
    <div class="row wrap">
      ${running && html`<button type="button" onClick=${() => act(remove(`/page/pulls/${encodeURIComponent(card.name)}`))}>${t("pull.stop")}</button>`}
      ${!here && !running && card.weights !== "none" && html`<button type="button" class="primary" onClick=${start}><${Icon} name="down" />${t("pull.start", { size: card.file_bytes ? bytes(card.file_bytes) : plan?.choices[0] ? bytes(plan.choices[0].file_bytes) : "" })}</button>`}
    </div>
    ${here && html`<${LoadButtons} name=${card.name} state=${state} />`}
  </div>`;
}

function PullBar({ pull }) {
  const share = pull.total ? pull.done / pull.total : 0;
  const said = pull.state === "failed" ? (lang() === "bn" && pull.error_bn) || pull.error : t(`pull.${pull.state}`);
  const far = [pull.total > 0 && t("pull.far", { done: bytes(pull.done), total: bytes(pull.total) }), pull.speed > 0 && t("pull.speed", { size: bytes(pull.speed) }), pull.left_s > 0 && t("pull.left", { time: seconds(pull.left_s) })];
  return html`<div class="pull" role="group" aria-label=${t("pull.of", { name: pull.model })}>
    <${Bar} share=${pull.state === "done" ? 1 : share} label=${t("pull.of", { name: pull.model })} />
    <small class=${pull.state === "failed" ? "error" : ""}>${[said, ...(pull.state === "running" ? far : [])].filter(Boolean).join(" · ")}</small>
  </div>`;
}

function LoadButtons({ name, state }) {
  const [busy, setBusy] = useState(false);
  if (!state) return html`<p class="hint">${t("models.restart")}</p>`;
  const act = async (verb) => {
    setBusy(true);
    try {
      await post(`/page/models/${verb}`, { model: name });
    } catch (error) {
      notify(told(error), "error");
    }
    await refreshCatalogue().catch(() => {});
    setBusy(false);
  };
  const loaded = state.state === "loaded";
  return html`<div class="row"><button type="button" class=${loaded ? "" : "primary"} disabled=${busy} onClick=${() => act(loaded ? "unload" : "load")}>${busy ? t("state.loading") : loaded ? t("models.unload") : t("models.load")}</button></div>`;
}
