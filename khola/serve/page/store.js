// What several views show: one object of values, and whoever listens.
import { useEffect, useState } from "./lib.js";
import { get } from "./net.js";

const values = { catalogue: null, conversations: null, characters: null, model: localStorage.getItem("khola-model") ?? "", notice: null };
const listeners = new Set();

export const value = (name) => values[name];

export function set(changes) {
  Object.assign(values, changes);
  for (const listener of listeners) listener();
}

export function useStore() {
  const [, again] = useState(0);
  useEffect(() => {
    const listener = () => again((count) => count + 1);
    listeners.add(listener);
    return () => listeners.delete(listener);
  }, []);
  return values;
}

export async function refreshCatalogue() {
  const catalogue = await get("/page/catalogue");
  catalogue.byName = Object.fromEntries(catalogue.cards.map((card) => [card.name, card]));
  const names = catalogue.models.map((model) => model.name);
  const model = names.includes(values.model) ? values.model : (catalogue.models.find((m) => m.state === "loaded")?.name ?? names[0] ?? "");
  set({ catalogue, model });
}

let searched = "";

export async function refreshConversations(search = searched) {
  searched = search;
  set({ conversations: await get(`/page/conversations?search=${encodeURIComponent(search)}`) });
}

export async function refreshCharacters() {
  set({ characters: await get("/page/characters") });
}

export function chooseModel(model) {
  localStorage.setItem("khola-model", model);
  set({ model });
}

let fading = 0;

export function notify(text, kind = "info") {
  clearTimeout(fading);
  set({ notice: { text, kind } });
  fading = setTimeout(() => set({ notice: null }), kind === "error" ? 12_000 : 4_000);
}
