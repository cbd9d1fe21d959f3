// Sentences in the language of the reader. The catalogue is words.json; a key that it lacks is an error of ours and shows as itself.

const LANGUAGES = { en: "English", bn: "বাংলা" };
let catalogue = {};
let language = "en";
const listeners = new Set();

export async function loadWords() {
  const answer = await fetch("/page/static/words.json");
  catalogue = await answer.json();
  const kept = localStorage.getItem("khola-language");
  const asked = navigator.languages.some((tag) => tag.toLowerCase().startsWith("bn")) ? "bn" : "en";
  setLanguage(kept in LANGUAGES ? kept : asked);
}

export function setLanguage(asked) {
  language = asked;
  localStorage.setItem("khola-language", asked);
  document.documentElement.lang = asked;
  for (const listener of listeners) listener();
}

export const lang = () => language;
export const languages = LANGUAGES;

export function onLanguage(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function t(key, facts = {}) {
  const text = catalogue[key]?.[language] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in facts ? facts[name] : whole));
}

export function number(value, digits = 0) {
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(value);
}

export function percent(share) {
  return new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 0 }).format(share);
}

export function bytes(count) {
  const units = ["unit.b", "unit.kb", "unit.mb", "unit.gb", "unit.tb"];
  let size = count;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) [size, unit] = [size / 1000, unit + 1];
  return t(units[unit], { n: number(size, size < 10 && unit ? 1 : 0) });
}

export function seconds(count) {
  if (count < 60) return t("unit.s", { n: number(count, count < 1 ? 2 : count < 10 ? 1 : 0) });
  return count < 3600 ? t("unit.min", { n: number(count / 60, 0) }) : t("unit.h", { n: number(count / 3600, 1) });
}

export function when(time) {
  const date = new Date(time * 1000);
  const today = new Date().toDateString() === date.toDateString();
  return new Intl.DateTimeFormat(language, today ? { timeStyle: "short" } : { dateStyle: "medium" }).format(date);
}

// The language that a text is written in, as far as its letters tell; a screen reader changes its voice by this.
export function languageOf(text) {
  const bengali = (text.match(/[\u0980-\u09ff]/g) ?? []).length;
  const latin = (text.match(/[A-Za-z]/g) ?? []).length;
  return bengali + latin === 0 ? undefined : bengali > latin / 2 ? "bn" : "en";
}
