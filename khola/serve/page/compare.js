// One question, two models, side by side; on a narrow screen one of them at a time.
import { answer } from "./ask.js";
import { html, useEffect, useRef, useState } from "./lib.js";
import { Message } from "./messages.js";
import { ModelChip } from "./model-chip.js";
import { told } from "./net.js";
import { useStore } from "./store.js";
import { Icon } from "./ui.js";
import { number, seconds, t } from "./words.js";

const SIDES = ["a", "b"];

export function Compare() {
  const { catalogue, model } = useStore();
  const [names, setNames] = useState({ a: "", b: "" });
  const [sides, setSides] = useState({ a: null, b: null });
  const [question, setQuestion] = useState("");
  const [asked, setAsked] = useState("");
  const [shown, setShown] = useState("a");
  const stop = useRef(null);
  const other = catalogue?.models.find((state) => state.name !== model)?.name ?? model;
  const chosen = { a: names.a || model, b: names.b || other };
  const busy = SIDES.some((side) => sides[side]?.live);
  useEffect(() => () => stop.current?.abort(), []);

  const put = (side, changes) => setSides((before) => ({ ...before, [side]: { ...before[side], ...changes } }));
  async function run(side, text, signal) {
    const name = chosen[side];
    put(side, { name, whole: { content: "", thinking: "", tool_calls: [], facts: {} }, live: "waiting", error: "" });
    try {
      const whole = await answer({ model: name, messages: [{ role: "user", content: text }], signal }, (so_far) => put(side, { whole: { ...so_far }, live: so_far.state }));
      put(side, { whole: { ...whole }, live: "" });
    } catch (error) {
      put(side, { live: "", error: signal.aborted ? t("finish.stopped") : told(error) });
    }
  }
  const ask = (event) => {
    event.preventDefault();
    if (!question.trim() || busy) return;
    stop.current = new AbortController();
    setAsked(question);
    for (const side of SIDES) run(side, question, stop.current.signal);
  };
  return html`<section class="page compare" aria-labelledby="compare-title">
    <header class="page-head"><h1 id="compare-title">${t("nav.compare")}</h1><p class="hint">${t("compare.help")}</p></header>
    <form class="row wrap" onSubmit=${ask}>
      <textarea class="grow" rows="2" dir="auto" aria-label=${t("compare.question")} placeholder=${t("compare.question")} value=${question} onInput=${(event) => setQuestion(event.target.value)}></textarea>
      ${busy
        ? html`<button type="button" onClick=${() => stop.current.abort()}><${Icon} name="stop" />${t("chat.stop")}</button>`
        : html`<button type="submit" class="primary" disabled=${!question.trim() || !chosen.a}><${Icon} name="send" />${t("compare.ask")}</button>`}
    </form>
    <div class="tabs only-phone" role="group" aria-label=${t("compare.sides")}>${SIDES.map((side) => html`<button type="button" aria-pressed=${shown === side ? "true" : "false"} onClick=${() => setShown(side)}>${side.toUpperCase()} · ${chosen[side]}</button>`)}</div>
    <div class="sides">${SIDES.map((side) => html`<section class=${shown === side ? "side shown" : "side"} aria-label=${t("compare.side", { side: side.toUpperCase() })}>
      <${ModelChip} value=${chosen[side]} choose=${(name) => setNames({ ...names, [side]: name })} label=${t("compare.choose", { side: side.toUpperCase(), name: chosen[side] })} />
      ${sides[side] && html`<${Answer} side=${sides[side]} asked=${asked} />`}
    </section>`)}</div>
    ${SIDES.every((side) => sides[side] && !sides[side].live && !sides[side].error) && html`<${Table} sides=${sides} />`}
  </section>`;
}

function Answer({ side }) {
  const message = { id: "", role: "assistant", model: side.name, ...side.whole, facts: { ...side.whole.facts, error: side.error } };
  return html`<${Message} message=${message} siblings=${[]} live=${side.live} actions=${{}} />`;
}

function Table({ sides }) {
  const speed = ({ answer_tokens: tokens, total_s: total, first_s: first }) => (tokens > 1 && total > first ? number((tokens - 1) / (total - first), 1) : "–");
  const rows = [
    ["compare.tokens", (facts) => (facts.answer_tokens === undefined ? "–" : number(facts.answer_tokens))],
    ["compare.first", (facts) => (facts.first_s === undefined ? "–" : seconds(facts.first_s))],
    ["compare.total", (facts) => seconds(facts.total_s)],
    ["compare.speed", speed],
  ];
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${t("compare.figures")}><table class="figures">
    <thead><tr><td></td>${SIDES.map((side) => html`<th scope="col">${side.toUpperCase()} · ${sides[side].name}</th>`)}</tr></thead>
    <tbody>${rows.map(([key, told_of]) => html`<tr><th scope="row">${t(key)}</th>${SIDES.map((side) => html`<td>${told_of(sides[side].whole.facts)}</td>`)}</tr>`)}</tbody>
  </table></div>`;
}
