// The page: its views, the way between them, language, colours, and the key where the server wants one.
import { Characters } from "./characters.js";
import { Chat } from "./chat.js";
import { Compare } from "./compare.js";
import { html, render, useEffect, useState } from "./lib.js";
import { Models } from "./models.js";
import { setKey, takeKey, told } from "./net.js";
import { notify, refreshCatalogue, refreshCharacters } from "./store.js";
import { Tree } from "./tree.js";
import { Field, Icon, Notice, Sheet, Wait } from "./ui.js";
import { lang, languages, loadWords, onLanguage, setLanguage, t } from "./words.js";

const VIEWS = ["chat", "models", "characters", "compare", "tree", "engine"];

const route = () => {
  const [view, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  return { view: VIEWS.includes(view) ? view : "chat", rest: decodeURIComponent(rest.join("/")) };
};

export function go(path, replace = false) {
  if (replace) {
    history.replaceState(null, "", `#/${path}`);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else location.hash = `#/${path}`;
}

function App() {
  const [{ view, rest }, setRoute] = useState(route());
  const [, again] = useState(0);
  const [wanted, setWanted] = useState(false);
  useEffect(() => {
    const moved = () => setRoute(route());
    const key = () => setWanted(true);
    addEventListener("hashchange", moved);
    addEventListener("khola-key", key);
    const silent = onLanguage(() => again((count) => count + 1));
    refreshCatalogue().catch((error) => notify(told(error), "error"));
    refreshCharacters().catch(() => {}); // the view of characters tells
    return () => (removeEventListener("hashchange", moved), removeEventListener("khola-key", key), silent());
  }, []);
  useEffect(() => {
    document.title = `${t(`nav.${view}`)} · khola`;
  }, [view, lang()]);
  return html`<div class="shell">
    <a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), document.getElementById("main").focus())}>${t("nav.skip")}</a>
    <nav class="rail" aria-label=${t("nav.title")}>
      <img class="logo" src="/page/static/icon.svg" alt="khola" />
      ${VIEWS.map((name) => html`<a href=${`#/${name}`} class=${name === view ? "current" : ""} aria-current=${name === view ? "page" : undefined}><${Icon} name=${name} /><span>${t(`nav.${name}`)}</span></a>`)}
      <${Switches} />
    </nav>
    <main id="main" tabindex="-1">
      ${view === "chat" && html`<${Chat} id=${rest} go=${go} />`}
      ${view === "models" && html`<${Models} />`}
      ${view === "characters" && html`<${Characters} go=${go} />`}
      ${view === "compare" && html`<${Compare} />`}
      ${view === "tree" && html`<${Tree} go=${go} family=${rest} />`}
      ${view === "engine" && html`<${Panel} />`}
    </main>
    <${Notice} />
    ${wanted && html`<${KeySheet} onClose=${() => setWanted(false)} />`}
  </div>`;
}

// Curves need the largest library, so it is fetched when they are looked at.
function Panel() {
  const [view, setView] = useState(null);
  useEffect(() => {
    import("./engine.js").then((module) => setView(() => module.Engine), (error) => notify(told(error), "error"));
  }, []);
  return view ? html`<${view} />` : html`<${Wait} />`;
}

function Switches() {
  const other = Object.keys(languages).find((code) => code !== lang());
  const [theme, setTheme] = useState(localStorage.getItem("khola-theme") ?? "");
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  useEffect(() => {
    if (theme) document.documentElement.dataset.theme = theme;
  }, [theme]);
  const turn = () => {
    const next = dark ? "light" : "dark";
    localStorage.setItem("khola-theme", next);
    setTheme(next);
  };
  return html`<div class="switches">
    <button type="button" class="quiet" lang=${other} onClick=${() => setLanguage(other)}>${languages[other]}</button>
    <button type="button" class="quiet" aria-pressed=${dark ? "true" : "false"} aria-label=${t("nav.dark")} title=${t("nav.dark")} onClick=${turn}>${dark ? "☾" : "☀"}</button>
  </div>`;
}

function KeySheet({ onClose }) {
  const [text, setText] = useState("");
  const keep = (event) => {
    event.preventDefault();
    setKey(text);
    location.reload();
  };
  return html`<${Sheet} title=${t("key.title")} onClose=${onClose}>
    <form onSubmit=${keep}>
      <p>${t("key.help")}</p>
      <${Field} label=${t("key.label")}><input type="password" autocomplete="off" value=${text} onInput=${(event) => setText(event.target.value)} /></${Field}>
      <div class="row end"><button type="submit" class="primary" disabled=${!text.trim()}>${t("save")}</button></div>
    </form>
  </${Sheet}>`;
}

takeKey();
document.documentElement.dataset.theme = localStorage.getItem("khola-theme") ?? "";
// Letters that are drawn before their font is there may stay boxes, so it is waited for; it lies on the same server.
const font = document.fonts.load('1em "Noto Sans Bengali"', "আ").catch(() => []);
await Promise.all([loadWords(), Promise.race([font, new Promise((done) => setTimeout(done, 1500))])]);
render(html`<${App} />`, document.getElementById("root"));
