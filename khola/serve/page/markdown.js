// Markdown of a model as elements. Text only ever becomes text: no HTML is read, no picture is loaded, and links go to http, https and mailto.
import { html, useState } from "./lib.js";
import { t } from "./words.js";

const MOST_LETTERS = 400_000;
const MOST_DEPTH = 8;
const SAFE = /^(?:https?:\/\/|mailto:)[^\s]+$/i;

export function Markdown({ text }) {
  if (text.length > MOST_LETTERS) return html`<pre class="plain">${text}</pre>`;
  return html`<div class="markdown">${blocks(text.split("\n"), 0)}</div>`;
}

function blocks(lines, depth) {
  const made = [];
  let place = 0;
  while (place < lines.length) {
    const line = lines[place];
    const taken = line.trim() === "" ? [null, 1] : block(lines, place, depth);
    if (taken[0]) made.push(taken[0]);
    place += taken[1];
  }
  return made;
}

function block(lines, place, depth) {
  const line = lines[place];
  const fence = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)/.exec(line);
  if (fence) return fenced(lines, place, fence);
  const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line);
  if (heading) return [title(heading[1].length, heading[2]), 1];
  if (/^ {0,3}([-*_])(?:\s*\1){2,}\s*$/.test(line)) return [html`<hr />`, 1];
  if (line.startsWith(">") && depth < MOST_DEPTH) return quoted(lines, place, depth);
  if (item(line) && depth < MOST_DEPTH) return list(lines, place, depth);
  if (line.includes("|") && /^\s*\|?[\s:|-]*-[\s:|-]*$/.test(lines[place + 1] ?? "") && lines[place + 1].includes("|")) return table(lines, place);
  return paragraph(lines, place);
}

function title(level, text) {
  // The page's own headings are above those of an answer.
  const Tag = `h${Math.min(6, level + 2)}`;
  return html`<${Tag}>${inline(text)}</${Tag}>`;
}

function fenced(lines, place, fence) {
  let end = place + 1;
  const shut = (line) => line.trim().startsWith(fence[1]) && line.trim().replaceAll(fence[1][0], "") === "";
  while (end < lines.length && !shut(lines[end])) end += 1;
  return [html`<${Code} text=${lines.slice(place + 1, end).join("\n")} language=${fence[2]} />`, end - place + 1];
}

function quoted(lines, place, depth) {
  let end = place;
  while (end < lines.length && lines[end].startsWith(">")) end += 1;
  const inner = lines.slice(place, end).map((line) => line.replace(/^>\s?/, ""));
  return [html`<blockquote>${blocks(inner, depth + 1)}</blockquote>`, end - place];
}

function item(line) {
  return /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/.exec(line);
}

function list(lines, place, depth) {
  const first = item(lines[place]);
  const indent = first[1].length;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let end = place;
  while (end < lines.length) {
    const found = item(lines[end]);
    const inside = /^\s+/.exec(lines[end])?.[0].length > indent;
    if (found && found[1].length <= indent && /\d/.test(found[2]) === ordered && found[1].length === indent) items.push([found[3]]);
    else if (lines[end].trim() === "" && (item(lines[end + 1] ?? "") || /^\s{2,}\S/.test(lines[end + 1] ?? ""))) items.at(-1).push("");
    else if (inside || (lines[end].trim() && !found && items.at(-1).at(-1) !== "" && end > place)) items.at(-1).push(lines[end].replace(/^\s{1,4}/, ""));
    else break;
    end += 1;
  }
  const entries = items.map((inner) => html`<li>${inner.length === 1 ? inline(inner[0]) : tight(inner, depth)}</li>`);
  const start = Number.parseInt(first[2], 10);
  return [ordered ? html`<ol start=${start}>${entries}</ol>` : html`<ul>${entries}</ul>`, end - place];
}

function tight(inner, depth) {
  const next = inner.findIndex((line, index) => index > 0 && (item(line) || line.trim() === "" || /^(`{3}|~{3}|>)/.test(line)));
  if (next < 0) return inline(inner.join("\n"));
  return [...inline(inner.slice(0, next).join("\n")), ...blocks(inner.slice(next), depth + 1)];
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines, place) {
  let end = place + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const head = cells(lines[place]);
  const rows = lines.slice(place + 2, end).map(cells);
  return [
    html`<div class="scroll" tabindex="0" role="region" aria-label=${t("message.table")}>
      <table>
        <thead><tr>${head.map((cell) => html`<th scope="col">${inline(cell)}</th>`)}</tr></thead>
        <tbody>${rows.map((row) => html`<tr>${head.map((_, column) => html`<td>${inline(row[column] ?? "")}</td>`)}</tr>`)}</tbody>
      </table>
    </div>`,
    end - place,
  ];
}

function paragraph(lines, place) {
  let end = place + 1;
  const starts = (line) => line.trim() === "" || /^ {0,3}(`{3,}|~{3,}|#{1,6}\s|>)/.test(line) || item(line);
  while (end < lines.length && !starts(lines[end])) end += 1;
  return [html`<p>${inline(lines.slice(place, end).join("\n"))}</p>`, end - place];
}

// One pass from left to right; what opens nothing stands as it is.
const MARK = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*(?=\S)([\s\S]*?\S)\*\*|(?<![\p{L}\p{N}*])\*(?=[^\s*])([^*]*[^\s*])\*(?!\*)|(?<![\p{L}\p{N}_])_(?=\S)([^_]*[^\s_])_(?![\p{L}\p{N}_])|~~(?=\S)([^~]*\S)~~|(!?)\[([^\[\]]*)\]\(([^()\s]*)(?:\s+"[^"]*")?\)|<?(https?:\/\/[^\s<>"'`)\]]+)>?|\\([\\`*_{}[\]()#+.!|~<>-])/u;

export function inline(text, depth = 0) {
  const made = [];
  let rest = text;
  while (rest) {
    const found = depth < MOST_DEPTH && rest.length < 8_000 ? MARK.exec(rest) : null;
    if (!found) break;
    if (found.index) made.push(rest.slice(0, found.index));
    made.push(marked(found, depth));
    rest = rest.slice(found.index + found[0].length);
  }
  if (rest) made.push(rest);
  return made;
}

function marked(found, depth) {
  const [whole, , code, strong, star, under, struck, picture, label, target, address, plain] = found;
  if (code !== undefined) return html`<code>${code.trim()}</code>`;
  if (strong !== undefined) return html`<strong>${inline(strong, depth + 1)}</strong>`;
  if (star !== undefined || under !== undefined) return html`<em>${inline(star ?? under, depth + 1)}</em>`;
  if (struck !== undefined) return html`<del>${inline(struck, depth + 1)}</del>`;
  if (target !== undefined) return SAFE.test(target) ? link(target, label || target, picture) : whole;
  if (address !== undefined) {
    const trail = /[.,;:!?]+$/.exec(address)?.[0] ?? "";
    return [link(address.slice(0, address.length - trail.length), address.slice(0, address.length - trail.length)), trail];
  }
  return plain;
}

function link(target, label, picture) {
  const text = picture ? t("message.picture", { name: label }) : label;
  return html`<a href=${target} title=${target} target="_blank" rel="noopener noreferrer nofollow">${text}</a>`;
}

export function Code({ text, language }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 2000);
  };
  return html`<figure class="code">
    <figcaption><span>${language || t("message.code")}</span><button type="button" class="quiet" onClick=${copy}>${copied ? t("message.copied") : t("message.copy")}</button></figcaption>
    <pre tabindex="0"><code>${text}</code></pre>
  </figure>`;
}
