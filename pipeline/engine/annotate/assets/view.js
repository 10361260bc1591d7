// Shows the state of the work: the picture, the mask that is worked on, the list, and which buttons can do something.

import { byId, whole } from "./dom.js";
import { isSingle } from "./work.js";

const SOON_MS = 80; // in which most answers come: what waits for one is shown with it

const TITLES = { waits: "The model is asked …", active: "New mask", corrects: "Correcting a mask", chosen: "Mask selected", locked: "Locked mask" };

export class View {
  #desk;
  #easel;
  #list;
  #later = 0; // the timer of what waits

  constructor(desk, easel, list) {
    [this.#desk, this.#easel, this.#list] = [desk, easel, list];
  }

  /** Shows another image. */
  open(image, left) {
    const name = image.image.image_id || `sa_${image.id}`;
    byId("image-title").textContent = name;
    document.title = `${name} · segmint annotate`;
    byId("queue").textContent = left === null ? "" : `${whole(left)} left`;
    byId("complete").checked = this.#desk.complete;
    this.#list.open();
    this.#easel.open(image);
  }

  /** Shows the state; one that waits for the model's answer later, as a frame takes time from the answer. */
  show() {
    clearTimeout(this.#later);
    const { state, model } = this.#desk;
    const waits = model.waits(state.active);
    byId("stage").classList.toggle("waiting", waits);
    if (waits) this.#later = setTimeout(() => this.#show(), SOON_MS);
    else this.#show();
  }

  #show() {
    const desk = this.#desk;
    if (desk.image === null) return;
    const { items, active } = desk.state;
    const { size } = desk.image;
    const chosen = desk.selected;
    this.#easel.showItems(items, chosen, size);
    this.#easel.showActive(desk.counts, size);
    this.#easel.mark({ active });
    this.#list.show();
    this.#showMask(active, chosen);
    byId("undo").disabled = !desk.history.canUndo;
    byId("redo").disabled = !desk.history.canRedo;
    const filled = items.some((item) => item.filled);
    byId("save").textContent = desk.changed || desk.image.answer || filled ? "Save and next" : "Unchanged, next";
  }

  #showMask(active, chosen) {
    const { model } = this.#desk;
    const waits = model.waits(active);
    const kind = waits ? "waits" : active ? (chosen ? "corrects" : "active") : chosen ? (chosen.locked ? "locked" : "chosen") : null;
    const answer = model.answerTo(active);
    const said = answer ? ` · predicted IoU ${answer.masks[answer.chosen].iou.toFixed(2)}` : "";
    byId("mask-title").textContent = kind === null ? "No mask begun" : TITLES[kind] + said;
    const single = active !== null && isSingle(active) && answer?.masks.length === 3;
    for (const button of document.querySelectorAll("[data-part]")) {
      button.disabled = !single;
      button.setAttribute("aria-pressed", String(single && active.part === button.dataset.part));
    }
    byId("accept").disabled = active === null || waits;
    byId("cancel").disabled = kind === null;
    byId("remove").disabled = kind === null || kind === "locked";
    byId("unlock").hidden = kind !== "locked";
  }

  /** Shows which tool is used. */
  showTools(tools) {
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === tools.name));
    }
    byId("flip").setAttribute("aria-pressed", String(tools.negative));
    byId("radius").textContent = String(tools.radius);
    this.#easel.stage.element.dataset.using = tools.name;
  }
}
