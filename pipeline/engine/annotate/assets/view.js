// Display of the state: the image, the active mask, the list, and the buttons that are enabled.

import { byId, shownIou, whole } from "./dom.js";
import { levelOf, orderOf } from "./levels.js";
import { isSingle } from "./work.js";

const SOON_MS = 80; // time in which most predictions arrive, so that both are shown together

/** Return a mask if it is one of the dataset's that nobody changed, else null. */
const ofDataset = (item) => (item !== null && item.id !== null ? item : null);

const TITLES = { waits: "Waiting for the model…", active: "New mask", corrects: "Correcting a mask", chosen: "Mask selected", locked: "Locked mask" };

export class View {
  #editor;
  #maskCanvas;
  #list;
  #nesting;
  #order; // of the decoder's outputs, as measured
  #later = 0; // timer of the delayed display

  constructor(editor, maskCanvas, list, nesting, order) {
    [this.#editor, this.#maskCanvas, this.#list] = [editor, maskCanvas, list];
    [this.#nesting, this.#order] = [nesting, order];
  }

  /** Show another image. */
  open(image, left) {
    const name = image.image.image_id || `sa_${image.id}`;
    byId("image-title").textContent = name;
    document.title = `${name} · segmint annotate`;
    byId("queue").textContent = left === null ? "" : `${whole(left)} left`;
    this.#list.open();
    this.#maskCanvas.open(image);
  }

  /** Show the state. If it waits for a prediction, delay the display, because a frame slows the prediction. */
  show() {
    clearTimeout(this.#later);
    const { state, model } = this.#editor;
    const waits = model.waits(state.active);
    byId("stage").classList.toggle("waiting", waits);
    if (waits) this.#later = setTimeout(() => this.#show(), SOON_MS);
    else this.#show();
  }

  #show() {
    const editor = this.#editor;
    if (editor.image === null) return;
    const { items, active } = editor.state;
    const { size } = editor.image;
    const chosen = editor.selected;
    this.#maskCanvas.showItems(items, chosen, size);
    this.#maskCanvas.showActive(active ? editor.model.shownFor(active) : editor.counts, size);
    this.#maskCanvas.mark({ active: active ?? ofDataset(chosen)?.madeFrom ?? null });
    this.#list.show();
    this.#showMask(active, chosen);
    byId("undo").disabled = !editor.history.canUndo;
    byId("redo").disabled = !editor.history.canRedo;
    const filled = items.some((item) => item.filled);
    byId("save").textContent = editor.changed || editor.image.submission || filled ? "Save and next" : "Unchanged, next";
  }

  #showMask(active, chosen) {
    const { model } = this.#editor;
    const waits = model.waits(active);
    const kind = waits ? "waits" : active ? (chosen ? "corrects" : "active") : chosen ? (chosen.locked ? "locked" : "chosen") : null;
    const prediction = model.predictionFor(active);
    const stored = active ? null : ofDataset(chosen);
    const iou = prediction ? prediction.masks[prediction.chosen].iou : (stored?.iou ?? null);
    const said = iou === null ? "" : ` · predicted IoU ${shownIou(iou).toFixed(2)}`;
    const labeler = stored?.labeler ? ` (${stored.labeler.split(":")[0]})` : ""; // without the SHA-256 of a model
    const label = chosen?.label ? ` · ${chosen.label}${labeler}` : "";
    byId("mask-title").textContent = kind === null ? "No mask started" : TITLES[kind] + label + said;
    const single = active !== null && isSingle(active) && prediction?.masks.length === 3;
    for (const button of document.querySelectorAll("[data-part]")) {
      button.disabled = !single;
      button.setAttribute("aria-pressed", String(single && active.part === button.dataset.part));
    }
    byId("accept").disabled = active === null || waits;
    byId("cancel").disabled = kind === null;
    byId("remove").disabled = kind === null || kind === "locked";
    byId("set-label").disabled = kind === null || kind === "locked" || waits;
    byId("save-cutout").disabled = this.#editor.counts === null;
    byId("unlock").hidden = kind !== "locked";
    const inside = this.#nesting.inside(chosen).length;
    byId("step-out").disabled = this.#nesting.around(chosen) === null;
    byId("step-in").disabled = inside === 0;
    byId("step-in").textContent = inside ? `In (${whole(inside)})` : "In";
    byId("mask-level").textContent = levelOf(chosen?.output, this.#order) ?? "";
    byId("mask-level").title = orderOf(this.#order);
  }

  /** Show the selected tool. */
  showTools(tools) {
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === tools.name));
    }
    byId("flip").setAttribute("aria-pressed", String(tools.negative));
    byId("radius").textContent = String(tools.radius);
    this.#maskCanvas.stage.element.dataset.using = tools.name;
  }
}
