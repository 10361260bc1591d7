// Question whether an accepted mask replaces one that it nearly equals.

import { byId } from "./dom.js";
import { iouOf } from "./spans.js";

const SAME_IOU = 0.9;

export class DoubleQuestion {
  #editor;
  #maskCanvas;
  #keys = []; // of the accepted mask and the one that was there

  constructor(editor, maskCanvas) {
    [this.#editor, this.#maskCanvas] = [editor, maskCanvas];
  }

  /** Ask about an accepted mask if it nearly equals another one; return whether it does. */
  ask(key) {
    const { state, image } = this.#editor;
    const masks = state.items.map((item) => this.#maskCanvas.maskOf(item, image.size));
    const mask = masks.find(({ row }) => row.item.key === key);
    // Areas that differ more are of masks with a lower IoU.
    const near = ({ area }) => Math.min(area, mask.area) >= SAME_IOU * Math.max(area, mask.area);
    const ious = masks.map((other) => (other !== mask && near(other) ? iouOf(spansOf(mask), spansOf(other)) : 0));
    const iou = Math.max(...ious);
    this.#keys = iou < SAME_IOU ? [] : [key, masks[ious.indexOf(iou)].row.item.key];
    byId("double-text").textContent = `A mask is already here (IoU ${iou.toFixed(2)}). Replace it?`;
    this.show();
    return iou >= SAME_IOU;
  }

  /** Show the question as long as both masks are there and none is being corrected. */
  show() {
    const { items, active } = this.#editor.state;
    const isThere = (key) => key !== active?.of && items.some((item) => item.key === key);
    byId("double").hidden = this.#keys.length === 0 || !this.#keys.every(isThere);
  }

  replace() {
    if (!byId("double").hidden) this.#editor.replace(...this.#keys);
  }

  /** Keep both masks, or forget those of another image. */
  keep() {
    this.#keys = [];
    this.show();
  }
}

/** Return a mask's spans: the ends of its runs without that of the background after the last one. */
const spansOf = ({ ends }) => ends.subarray(0, ends.length & ~1);
