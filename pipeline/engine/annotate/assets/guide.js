// Clock, and the hint to move on: annotate objects in order of prominence, and not too long on one mask.

import { byId } from "./dom.js";

const STEP_MS = 500;

export class Guide {
  #editor;
  #hint; // seconds on one mask after which the hint appears
  #hinted = null; // key of the mask for which it appeared

  constructor(editor, hint) {
    this.#editor = editor;
    this.#hint = hint;
    const input = () => document.body.dataset.page === "work" && editor.watch.input();
    for (const name of ["pointerdown", "pointermove", "keydown", "wheel"]) {
      document.addEventListener(name, input, { capture: true, passive: true });
    }
    setInterval(() => this.show(), STEP_MS);
    for (const name of ["visibilitychange", "pagehide"]) {
      addEventListener(name, () => editor.keeping.keepTime(0), { capture: true });
    }
    addEventListener("beforeunload", (event) => editor.keeping.isOnlyHere && event.preventDefault()); // asks first
  }

  /** Show the seconds, and the hint once per mask. */
  show() {
    const { image, state, watch } = this.#editor;
    byId("clock").hidden = image === null;
    if (image === null) return;
    this.#editor.keeping.keepTime();
    const { active } = state;
    const parts = [`Image ${written(watch.image)}`];
    if (active !== null) parts.unshift(`Mask ${written(watch.mask(active.key))}`);
    if (watch.idle) parts.push("paused");
    byId("clock").textContent = parts.join(" · ");
    if (active === null) this.#hinted = null;
    const late = active !== null && watch.mask(active.key) >= this.#hint;
    byId("hint").hidden = !late;
    if (!late || this.#hinted === active.key) return;
    this.#hinted = active.key;
    byId("hint").textContent =
      `${Math.round(this.#hint)} seconds on this mask. Accept it as is, or cancel it. If nothing prominent is left, ` +
      "save to get the next image.";
  }
}

/** Format seconds as minutes:seconds. */
function written(seconds) {
  const rest = Math.floor(seconds) % 60;
  return `${Math.floor(seconds / 60)}:${String(rest).padStart(2, "0")}`;
}
