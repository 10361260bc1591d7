// Dialog that sets a mask's label and offers the labels that were used last.

import { byId, make } from "./dom.js";

const KEPT = 50;
const STORED = "segmint-labels";
const UNPRINTABLE = /[\p{Cc}\p{Cs}\p{Zl}\p{Zp}]+/gu; // the server rejects these

/** Return a text as the server accepts it. */
export const printable = (text) => text.replace(UNPRINTABLE, " ").trim();

export class LabelDialog {
  #editor;
  #used = stored(); // last used first

  constructor(editor) {
    this.#editor = editor;
    byId("label-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#set(printable(byId("label-text").value));
    });
  }

  /** Ask for the label of the active or selected mask. A mask without one is offered the last used label. */
  open() {
    const { state, selected } = this.#editor;
    const why = selected === null ? "Choose a mask to label first" : selected.locked ? "This mask is locked" : "";
    const problem = state.active === null ? why : ""; // shown in the dialog, so that letters don't act as shortcuts
    byId("label-title").textContent = problem || "Label of the mask";
    byId("label-text").disabled = problem !== "";
    const known = new Set([...this.#used, ...state.items.map(({ label }) => label).filter(Boolean)]);
    byId("label-list").replaceChildren(...[...known].map((value) => make("option", { value })));
    byId("label-text").value = problem ? "" : (selected?.label ?? this.#used[0] ?? "");
    byId("label").showModal();
    byId("label-text").select();
  }

  #set(text) {
    byId("label").close();
    if (text) this.#used = [text, ...this.#used.filter((label) => label !== text)].slice(0, KEPT);
    try {
      localStorage.setItem(STORED, JSON.stringify(this.#used));
    } catch {
      // a browser that keeps nothing
    }
    this.#editor.label(text);
  }
}

function stored() {
  try {
    return JSON.parse(localStorage.getItem(STORED) ?? "[]").filter((label) => typeof label === "string");
  } catch {
    return [];
  }
}
