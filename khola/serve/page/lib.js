// The libraries under one roof: every other file takes them from here.
import htm from "./vendor/htm.mjs";
import { Fragment, h, render } from "./vendor/preact.mjs";

export * from "./vendor/hooks.mjs";
export const html = htm.bind(h);
export { Fragment, h, render };
