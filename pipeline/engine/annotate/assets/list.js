// List of masks: new ones first, the newest at the top, then untouched prefilled ones, then the dataset's, largest
// first.

import { byId, make, whole } from "./dom.js";

const FORWARD = new Set(["ArrowRight", "ArrowDown"]);
const BACK = new Set(["ArrowLeft", "ArrowUp"]);

export class MaskList {
  #editor;
  #maskCanvas;
  #rows = new Map(); // list items by an item's key

  constructor(editor, maskCanvas) {
    this.#editor = editor;
    this.#maskCanvas = maskCanvas;
    const lists = byId("lists");
    lists.addEventListener("keydown", (event) => this.#key(event));
    for (const name of ["pointerover", "focusin"]) lists.addEventListener(name, (event) => this.#point(event.target));
    for (const name of ["pointerleave", "focusout"]) lists.addEventListener(name, () => this.#point(null));
  }

  /** Drop the rows of an image. */
  open() {
    this.#rows = new Map();
  }

  show() {
    const { items } = this.#editor.state;
    const focused = document.activeElement?.closest?.("#lists li") ?? null;
    const parts = {
      made: ["Made here", items.filter(({ id, filled }) => id === null && !filled).reverse()],
      filled: ["Prefilled", items.filter(({ filled }) => filled)],
      found: ["In the dataset", items.filter(({ id }) => id !== null)],
    };
    for (const [name, [title, shown]] of Object.entries(parts)) {
      this.#fill(byId(name), shown, this.#editor.selected?.key ?? null);
      const locked = shown.filter((item) => item.locked).length;
      byId(`${name}-title`).textContent = `${title}: ${whole(shown.length)}${locked ? `, locked: ${whole(locked)}` : ""}`;
      byId(`${name}-box`).hidden = shown.length === 0;
    }
    byId("lists-title").textContent = `Masks: ${whole(items.length)}`;
    if (focused && !focused.isConnected) this.#maskCanvas.stage.element.focus({ preventScroll: true });
  }

  /** Select the mask after (1) or before (-1) the selected one, in the order of the list. */
  step(by) {
    const keys = [...byId("lists").querySelectorAll("li")].map(({ dataset }) => dataset.key);
    if (keys.length === 0) return;
    const at = keys.indexOf(this.#editor.selected?.key);
    this.#editor.select(keys[(at < 0 ? (by > 0 ? 0 : -1) : at + by + keys.length) % keys.length] ?? keys.at(-1));
  }

  /** Hide a mask, or show it again; without one, show all. A selected mask that is hidden is left. */
  hide(item) {
    this.#maskCanvas.hide(item);
    const { state, selected } = this.#editor;
    if (item !== null && item === selected && state.active === null && this.#maskCanvas.isHidden(item)) {
      this.#editor.select(null);
    }
    this.show();
  }

  /** Fill the mask of a row in the image. */
  #point(target) {
    const key = target?.closest("li")?.dataset.key;
    this.#maskCanvas.point(this.#editor.state.items.find((item) => item.key === key) ?? null);
  }

  #fill(list, items, chosen) {
    const rows = items.map((item) => this.#row(item));
    // Don't touch rows that stay, because one of them may have the focus.
    if (rows.length !== list.children.length || rows.some((row, place) => row !== list.children[place])) {
      list.replaceChildren(...rows);
    }
    rows.forEach((row, place) => {
      row.firstChild.setAttribute("aria-pressed", String(row.dataset.key === chosen));
      const isHidden = this.#maskCanvas.isHidden(items[place]);
      row.classList.toggle("hidden", isHidden);
      row.lastChild.textContent = isHidden ? "Show" : "Hide";
      row.lastChild.ariaLabel = `${row.lastChild.textContent}: ${row.firstChild.textContent}`;
    });
  }

  #row(item) {
    const known = this.#rows.get(item.key);
    if (known?.item === item) return known.row;
    const mask = this.#maskCanvas.maskOf(item, this.#editor.image.size);
    const swatch = make("span", { className: "swatch" });
    swatch.style.backgroundColor = `rgb(${mask.color.join(" ")})`;
    const share = (100 * mask.area) / (mask.width * mask.height);
    const said = [`${share.toPrecision(2)}%`, !item.filled && item.source, item.label, item.locked && "locked", mask.problem];
    const button = make("button", { type: "button", className: "pick" }, swatch, said.filter(Boolean).join(" · "));
    button.addEventListener("click", () => this.#editor.select(item.key));
    const hide = make("button", { type: "button", className: "hide" });
    hide.addEventListener("click", () => this.hide(item));
    const row = make("li", {}, button, hide);
    row.dataset.key = item.key;
    this.#rows.set(item.key, { item, row });
    return row;
  }

  #key(event) {
    const step = FORWARD.has(event.key) ? 1 : BACK.has(event.key) ? -1 : 0;
    if (!step) return;
    const rows = [...byId("lists").querySelectorAll("li")];
    const row = rows[rows.indexOf(document.activeElement.closest("li")) + step];
    row?.querySelector(`.${document.activeElement.className}`)?.focus();
    event.preventDefault();
  }
}
