// The family tree: who was made from whom, under which licence; as a picture, and as a list with the same content.
import { country, how, Licence, LicenceFacts } from "./facts.js";
import { HEIGHT, layout, members, offspring, WIDTH } from "./family.js";
import { html, useEffect, useMemo, useState } from "./lib.js";
import { told } from "./net.js";
import { notify, refreshCatalogue, useStore } from "./store.js";
import { IconButton, Sheet, short, Wait } from "./ui.js";
import { number, percent, t } from "./words.js";

const COLOURS = 8; // of labs, in the style sheet

export function Tree({ go, family: asked }) {
  const { catalogue } = useStore();
  const [shape, setShape] = useState(innerWidth < 700 ? "list" : "picture");
  const [zoom, setZoom] = useState(1);
  const [chosen, setChosen] = useState("");
  useEffect(() => {
    if (!catalogue) refreshCatalogue().catch((error) => notify(told(error), "error"));
  }, []);
  const families = useMemo(() => [...new Set(catalogue?.cards.map((card) => card.family))].sort(), [catalogue]);
  const family = families.includes(asked) ? asked : families.includes("DeepSeek") ? "DeepSeek" : families[0];
  const cards = useMemo(() => (catalogue && family ? members(catalogue.cards, family) : []), [catalogue, family]);
  if (!catalogue) return html`<${Wait} />`;
  const labs = [...new Set(catalogue.cards.map((card) => card.lab))].sort();
  return html`<section class="page tree" aria-labelledby="tree-title">
    <header class="page-head"><h1 id="tree-title">${t("nav.tree")}</h1><p class="hint">${t("tree.help")}</p></header>
    <div class="row wrap filters">
      <label class="field inline"><span>${t("tree.family")}</span><select value=${family} onChange=${(event) => go(`tree/${encodeURIComponent(event.target.value)}`)}>${families.map((name) => html`<option value=${name}>${name}</option>`)}</select></label>
      <div class="tabs" role="group" aria-label=${t("tree.shape")}>${["picture", "list"].map((key) => html`<button type="button" aria-pressed=${shape === key ? "true" : "false"} onClick=${() => setShape(key)}>${t(`tree.${key}`)}</button>`)}</div>
      ${shape === "picture" && html`<span class="row"><${IconButton} icon="left" label=${t("tree.smaller")} onClick=${() => setZoom(Math.max(0.3, zoom / 1.25))} /><span>${percent(zoom)}</span><${IconButton} icon="right" label=${t("tree.larger")} onClick=${() => setZoom(Math.min(2, zoom * 1.25))} /></span>`}
      <span class="hint">${t("tree.count", { n: number(cards.length) })}</span>
    </div>
    ${shape === "picture" ? html`<${Picture} cards=${cards} catalogue=${catalogue} labs=${labs} zoom=${zoom} choose=${setChosen} family=${family} />` : html`<${List} cards=${cards} catalogue=${catalogue} choose=${setChosen} />`}
    ${chosen && html`<${Facts} card=${catalogue.byName[chosen]} catalogue=${catalogue} choose=${setChosen} onClose=${() => setChosen("")} />`}
  </section>`;
}

function Picture({ cards, catalogue, labs, zoom, choose, family }) {
  const { nodes, edges, width, height } = useMemo(() => layout(cards), [cards]);
  const press = (event, name) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), choose(name));
  return html`<div class="canvas" tabindex="0" role="region" aria-label=${t("tree.canvas", { family })}>
    <svg width=${(width + 20) * zoom} height=${(height + 20) * zoom} viewBox=${`-10 -10 ${width + 20} ${height + 20}`} role="group" aria-label=${t("tree.of", { family })}>
      ${edges.map(({ from, to, how: kind }) => {
        const [x1, y1, x2, y2] = [from.x + WIDTH, from.y + HEIGHT / 2, to.x, to.y + HEIGHT / 2];
        const middle = (x1 + x2) / 2;
        return html`<path class=${`edge ${kind.replace(" ", "-")}`} d=${`M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`}><title>${how({ name: from.card.name, how: kind }, catalogue.byName)}</title></path>`;
      })}
      ${nodes.map(({ card, x, y }) => {
        const licences = card.licences.map((id) => catalogue.licences[id]);
        const tone = licences.some((one) => one.commercial === "no") ? "bad" : licences.some((one) => one.commercial === "conditions") ? "mixed" : "good";
        return html`<g class=${`node lab${labs.indexOf(card.lab) % COLOURS}${card.weights === "none" ? " closed" : ""}`} transform=${`translate(${x} ${y})`} tabindex="0" role="button" onClick=${() => choose(card.name)} onKeyDown=${(event) => press(event, card.name)}>
          <rect width=${WIDTH} height=${HEIGHT} rx="10" /><rect class="stripe" width="6" height=${HEIGHT} rx="3" />
          <text x="18" y="23" class="name">${`${short(card.title, 31)} `}</text>
          <text x="18" y="41">${short(`${card.lab} · ${country(card.country)}`, 40)} </text>
          <text x="18" y="57" class=${tone}>${short([card.licences.join(" + "), card.parameters].filter(Boolean).join(" · "), 42)}</text>
        </g>`;
      })}
    </svg>
  </div>
  <ul class="legend">${["fine-tuned", "initialised", "distilled", "quantised", "adapted"].map((kind) => html`<li><svg width="34" height="10" aria-hidden="true"><path class=${`edge ${kind}`} d="M2 5h30" /></svg>${t(`kind.${kind}`)}</li>`)}</ul>`;
}

function List({ cards, catalogue, choose }) {
  const inside = new Set(cards.map((card) => card.name));
  const roots = cards.filter((card) => !card.parents.some((parent) => inside.has(parent.name)));
  const branch = (card, parent, depth) => html`<li>
    <div class="row wrap"><button type="button" class="link" onClick=${() => choose(card.name)}>${card.title}</button>
      ${parent && html`<span class="hint">${how(parent, catalogue.byName)}</span>`}
      <span class="hint">${card.lab}, ${country(card.country)}</span>${card.licences.map((id) => html`<${Licence} id=${id} licence=${catalogue.licences[id]} />`)}</div>
    ${depth < 20 && children(card).length > 0 && html`<ul>${children(card).map((child) => branch(child, child.parents.find((known) => known.name === card.name), depth + 1))}</ul>`}
  </li>`;
  const children = (card) => cards.filter((other) => other.parents.some((parent) => parent.name === card.name));
  return html`<ul class="family-list">${roots.map((card) => branch(card, null, 0))}</ul>`;
}

function Facts({ card, catalogue, choose, onClose }) {
  const after = offspring(card, catalogue.cards);
  const { inherited, forbidden_by: conflict, name_wanted: wanted } = card;
  const to = (name) => html`<button type="button" class="link" onClick=${() => choose(name)}>${catalogue.byName[name]?.title ?? name}</button>`;
  return html`<${Sheet} key=${card.name} title=${card.title} onClose=${onClose} wide>
    <p>${card.lab}, ${country(card.country)} · ${card.released}${card.parameters && ` · ${card.parameters}`}</p>
    ${card.about && html`<p lang="en">${card.about}</p>`}
    ${card.parents.length > 0 && html`<h3>${t("tree.from")}</h3><ul>${card.parents.map((parent) => html`<li>${to(parent.name)} <span class="hint">${t(`kind.${parent.how.replace(" ", "-")}`)}</span></li>`)}</ul>`}
    ${after.length > 0 && html`<h3>${t("tree.to")}</h3><ul>${after.map((other) => html`<li>${to(other.name)} <span class="hint">${t(`kind.${other.parents.find((parent) => parent.name === card.name).how.replace(" ", "-")}`)}</span></li>`)}</ul>`}
    ${conflict.length > 0 && html`<p class="error">${t("tree.conflict", { names: conflict.map((name) => catalogue.byName[name]?.title ?? name).join(", ") })}</p>`}
    ${wanted && html`<p class="error">${t("tree.name", { name: wanted })}</p>`}
    ${card.licences.map((id) => html`<${LicenceFacts} id=${id} licence=${catalogue.licences[id]} />`)}
    ${inherited.length > 0 && html`<h3>${t("tree.inherited")}</h3><div class="row wrap">${inherited.map((id) => html`<${Licence} id=${id} licence=${catalogue.licences[id]} />`)}</div>`}
  </${Sheet}>`;
}
