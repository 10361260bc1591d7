// The list of masks: those made here first, the newest on top, then the dataset's, the largest first.

import { byId, make, whole } from "./dom.js";

const FORWARD = new Set(["ArrowRight", "ArrowDown"]);
const BACK = new Set(["ArrowLeft", "ArrowUp"]);

export class MaskList {
  #desk;
  #easel;
  #rows = new Map(); // list items by an item's key

  constructor(desk, easel) {
    this.#desk = desk;
    this.#easel = easel;
    byId("lists").addEventListener("keydown", (event) => this.#key(event));
  }

  /** Forgets the rows of an image. */
  open() {
    this.#rows = new Map();
  }

  show() {
    const { items, active } = this.#desk.state;
    const chosen = active?.of ?? this.#desk.selected?.key ?? null;
    const made = items.filter(({ id }) => id === null).reverse();
    const found = items.filter(({ id }) => id !== null);
    const focused = document.activeElement?.closest?.("#lists li") ?? null;
    this.#fill(byId("made"), made, chosen);
    this.#fill(byId("found"), found, chosen);
    const filled = made.filter((item) => item.filled).length;
    const locked = found.filter((item) => item.locked).length;
    const more = (number, word) => (number ? `, ${word}: ${whole(number)}` : "");
    byId("made-title").textContent = `Made here: ${whole(made.length)}${more(filled, "prefilled")}`;
    byId("found-title").textContent = `In the dataset: ${whole(found.length)}${more(locked, "locked")}`;
    for (const name of ["made", "found"]) byId(`${name}-box`).hidden = byId(name).children.length === 0;
    byId("lists-title").textContent = `Masks: ${whole(items.length)}`;
    if (focused && !focused.isConnected) this.#easel.stage.element.focus({ preventScroll: true });
  }

  /** Selects the mask after (1) or before (-1) the one that is chosen, in the order of the list. */
  step(by) {
    const keys = [...byId("lists").querySelectorAll("li")].map(({ dataset }) => dataset.key);
    if (keys.length === 0) return;
    const at = keys.indexOf(this.#desk.state.active?.of ?? this.#desk.selected?.key);
    this.#desk.select(keys[(at < 0 ? (by > 0 ? 0 : -1) : at + by + keys.length) % keys.length] ?? keys.at(-1));
  }

  #fill(list, items, chosen) {
    const rows = items.map((item) => this.#row(item));
    // Rows that stay are not touched: one of them may have the focus.
    if (rows.length !== list.children.length || rows.some((row, place) => row !== list.children[place])) {
      list.replaceChildren(...rows);
    }
    for (const row of rows) row.firstChild.setAttribute("aria-pressed", String(row.dataset.key === chosen));
  }

  #row(item) {
    const known = this.#rows.get(item.key);
    if (known?.item === item) return known.row;
    const mask = this.#easel.maskOf(item, this.#desk.image.size);
    const swatch = make("span", { className: "swatch" });
    swatch.style.backgroundColor = `rgb(${mask.color.join(" ")})`;
    const share = (100 * mask.row.area) / (mask.width * mask.height);
    const said = [`${share.toPrecision(2)} %`, item.source, item.label, item.filled && "prefilled", item.locked && "locked", mask.problem].filter(Boolean);
    const button = make("button", { type: "button" }, swatch, said.join(" · "));
    button.addEventListener("click", () => this.#desk.select(item.key));
    const row = make("li", {}, button);
    row.dataset.key = item.key;
    this.#rows.set(item.key, { item, row });
    return row;
  }

  #key(event) {
    const step = FORWARD.has(event.key) ? 1 : BACK.has(event.key) ? -1 : 0;
    if (!step) return;
    const buttons = [...byId("lists").querySelectorAll("li button")];
    buttons[buttons.indexOf(document.activeElement) + step]?.focus();
    event.preventDefault();
  }
}
