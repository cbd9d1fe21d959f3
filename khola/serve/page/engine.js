// What the engines do now: curves of speed, cache and queue, and the same figures as a table.
import { html, useEffect, useRef, useState } from "./lib.js";
import { get, told } from "./net.js";
import { Empty, Wait } from "./ui.js";
import { bytes, number, percent, t } from "./words.js";
import UPlot from "./vendor/uplot.mjs";

const EVERY_MS = 1000;
const POINTS = 180;

export function Engine() {
  const [points, setPoints] = useState([]);
  const [now, setNow] = useState(null);
  const [failed, setFailed] = useState("");
  useEffect(() => {
    let here = true;
    let before = null;
    const look = async () => {
      try {
        const figures = await get("/page/figures");
        if (!here) return;
        const point = summed(figures, before);
        before = figures;
        setNow(figures);
        setFailed("");
        setPoints((list) => [...list, point].slice(-POINTS));
      } catch (error) {
        if (here) setFailed(told(error));
      }
      if (here) timer = setTimeout(look, EVERY_MS);
    };
    let timer = setTimeout(look, 0);
    return () => ((here = false), clearTimeout(timer));
  }, []);
  if (!now) return failed ? html`<p class="error" role="alert">${failed}</p>` : html`<${Wait} />`;
  return html`<section class="page" aria-labelledby="engine-title">
    <header class="page-head"><h1 id="engine-title">${t("nav.engine")}</h1><p class="hint">${t("engine.help")}</p></header>
    ${failed && html`<p class="error" role="alert">${failed}</p>`}
    <div class="charts">
      <${Curve} title=${t("engine.speed")} points=${points} fields=${["speed", "computed"]} />
      <${Curve} title=${t("engine.cache")} points=${points} fields=${["cache", "hits"]} share />
      <${Curve} title=${t("engine.queue")} points=${points} fields=${["running", "waiting"]} />
    </div>
    ${Object.keys(now.engines).length === 0 ? html`<${Empty} title=${t("engine.none")} />` : html`<${Table} now=${now} />`}
  </section>`;
}

// All engines of one moment together; speeds from what was counted since the last look.
export function summed(figures, before) {
  const engines = Object.entries(figures.engines);
  const sum = (name) => engines.reduce((total, [, engine]) => total + (engine[name] ?? 0), 0);
  const passed = before ? figures.at - before.at : 0;
  const rate = (name) => {
    if (passed <= 0) return null;
    return engines.reduce((total, [model, engine]) => total + Math.max(0, (engine[name] ?? 0) - (before.engines[model]?.[name] ?? engine[name] ?? 0)), 0) / passed;
  };
  const pages = sum("pages");
  const prompts = sum("prompt_tokens");
  return {
    at: figures.at,
    speed: rate("answer_tokens"),
    computed: rate("computed_tokens"),
    cache: pages ? sum("pages_used") / pages : 0,
    hits: prompts ? sum("cached_tokens") / prompts : 0,
    running: sum("running"),
    waiting: sum("waiting"),
  };
}

function Curve({ title, points, fields, share }) {
  const box = useRef(null);
  const plot = useRef(null);
  const data = [points.map((point) => point.at), ...fields.map((name) => points.map((point) => point[name]))];
  useEffect(() => {
    const host = box.current;
    if (!host) return undefined;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const written = (value) => (value === null || value === undefined ? "–" : share ? percent(value) : number(value, 1));
    const font = `12px ${getComputedStyle(document.body).fontFamily}`; // canvas knows no inheritance
    const axis = { font, stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const options = {
      width: host.clientWidth || 300,
      height: 180,
      cursor: { y: false },
      scales: { y: { range: (_, low, high) => [0, share ? 1 : Math.max(1, high * 1.1)] } },
      axes: [{ ...axis, values: (_, ticks) => ticks.map((tick) => new Date(tick * 1000).toLocaleTimeString(document.documentElement.lang, { timeStyle: "medium" })), space: 90 }, { ...axis, size: 52, values: (_, ticks) => ticks.map((tick) => (share ? percent(tick) : number(tick, 1))) }],
      series: [{ label: t("engine.time"), value: (_, value) => (value ? new Date(value * 1000).toLocaleTimeString(document.documentElement.lang) : "–") }, ...fields.map((name, index) => ({ label: t(`engine.${name}`), stroke: colour(index ? "--second" : "--accent"), width: 2, value: (_, value) => written(value) }))],
    };
    plot.current = new UPlot(options, data, host);
    const watch = new ResizeObserver(() => plot.current.setSize({ width: host.clientWidth || 300, height: 180 }));
    watch.observe(host);
    return () => (watch.disconnect(), plot.current.destroy());
  }, [title]);
  useEffect(() => plot.current?.setData(data), [points]);
  const last = points.at(-1) ?? {};
  const said = fields.map((name) => `${t(`engine.${name}`)} ${share ? percent(last[name] ?? 0) : number(last[name] ?? 0, 1)}`).join(", ");
  return html`<figure class="curve"><figcaption>${title}</figcaption><div ref=${box} role="img" aria-label=${`${title}: ${said}`}></div></figure>`;
}

function Table({ now }) {
  const rows = [
    ["running", number], ["waiting", number], ["answer_tokens", number], ["prompt_tokens", number], ["cached_tokens", number], ["pages_used", number],
    ["pages", number], ["cache_bytes", bytes], ["preemptions", number],
  ];
  const names = Object.keys(now.engines);
  const told_of = (engine, name, write) => (engine[name] === undefined ? "–" : write(engine[name]));
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${t("engine.table")}><table class="figures">
    <thead><tr><td></td>${names.map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
    <tbody>${rows.map(([name, write]) => html`<tr><th scope="row">${t(`stat.${name}`)}</th>${names.map((engine) => html`<td>${told_of(now.engines[engine], name, write)}</td>`)}</tr>`)}</tbody>
  </table></div>`;
}
