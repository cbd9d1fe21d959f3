// Small parts that every view uses: icons, buttons, sheets, notices.
import { html, useLayoutEffect, useRef } from "./lib.js";
import { set, useStore } from "./store.js";
import { t } from "./words.js";

const PATHS = {
  chat: "M4 5h16v11H9l-5 4z",
  models: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
  characters: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM4 21c0-4 4-6 8-6s8 2 8 6",
  compare: "M4 4h7v16H4zM13 4h7v16h-7z",
  tree: "M12 4v6M6 20v-5h12v5M12 10v5M10 4h4M4 20h4M16 20h4",
  engine: "M3 17l5-6 4 3 4-7 5 6M3 21h18",
  menu: "M4 7h16M4 12h16M4 17h16",
  plus: "M12 5v14M5 12h14",
  send: "M5 12h13M12 5l7 7-7 7",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v11H9zM5 15V4h10",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  again: "M19 12a7 7 0 1 1-2-5M19 4v4h-4",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  close: "M6 6l12 12M18 6L6 18",
  down: "M12 4v11M7 11l5 5 5-5M5 20h14",
  trash: "M5 7h14M9 7V4h6v3M7 7l1 13h8l1-13",
  down2: "M6 9l6 6 6-6",
  check: "M5 12l5 5 9-10",
};

export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
}

// A button that shows an icon only; its label is read aloud and shown as a hint.
export function IconButton({ icon, label, onClick, disabled, pressed }) {
  return html`<button type="button" class="icon-button" aria-label=${label} title=${label} onClick=${onClick} disabled=${disabled} aria-pressed=${pressed}>
    <${Icon} name=${icon} />
  </button>`;
}

// A modal sheet: the browser keeps the focus inside and closes it with Escape.
export function Sheet({ title, onClose, children, wide }) {
  const box = useRef(null);
  useLayoutEffect(() => {
    const before = document.activeElement;
    box.current.showModal();
    return () => before?.isConnected && before.focus();
  }, []);
  const outside = (event) => event.target === box.current && onClose();
  return html`<dialog ref=${box} class=${wide ? "sheet wide" : "sheet"} aria-labelledby="sheet-title" onClose=${onClose} onClick=${outside}>
    <div class="sheet-body">
      <header><h2 id="sheet-title">${title}</h2><${IconButton} icon="close" label=${t("close")} onClick=${() => box.current.close()} /></header>
      ${children}
    </div>
  </dialog>`;
}

export function Confirm({ title, action, onYes, onClose }) {
  return html`<${Sheet} title=${title} onClose=${onClose}>
    <div class="row end">
      <button type="button" onClick=${onClose}>${t("cancel")}</button>
      <button type="button" class="danger" onClick=${onYes}>${action}</button>
    </div>
  </${Sheet}>`;
}

export function Notice() {
  const { notice } = useStore();
  return html`<div class="notices" role="status" aria-live="polite">
    ${notice && html`<div class=${`notice ${notice.kind}`}><span>${notice.text}</span><${IconButton} icon="close" label=${t("close")} onClick=${() => set({ notice: null })} /></div>`}
  </div>`;
}

export function Field({ label, help, children }) {
  return html`<label class="field"><span>${label}</span>${children}${help && html`<small>${help}</small>`}</label>`;
}

export function Bar({ share, label }) {
  const width = `${Math.round(100 * Math.min(1, Math.max(0, share)))}%`;
  return html`<div class=${share > 0.8 ? "bar full" : "bar"} role="progressbar" aria-label=${label} aria-valuemin="0" aria-valuemax="100" aria-valuenow=${Math.round(share * 100)}><span style=${{ width }}></span></div>`;
}

export function Wait({ text }) {
  return html`<p class="wait" role="status"><span class="spinner" aria-hidden="true"></span>${text ?? t("loading")}</p>`;
}

export function Empty({ title, children }) {
  return html`<div class="empty"><h2>${title}</h2>${children}</div>`;
}

// The name up to so many letters as a reader counts them; a cluster is never cut.
export function short(text, most) {
  const parts = [...new Intl.Segmenter(undefined, { granularity: "grapheme" }).segment(text)];
  return parts.length <= most ? text : `${parts.slice(0, most - 1).map((part) => part.segment).join("")}…`;
}
