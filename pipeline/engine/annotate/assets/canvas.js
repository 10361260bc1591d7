// Canvas for masks: the viewer's stage with the active mask, prompts, and the crosshair.

import { byId, make, makeSvg } from "./dom.js";
import { Mask, packed } from "./mask.js";
import { Stage } from "./stage.js";

const ACTIVE = [64, 156, 255];
const FILL = packed(...ACTIVE, 120);
const LINE = packed(255, 255, 255, 255);
const REST_MS = 60;
const KEPT_MS = 60_000; // time for a download to begin
const PREVIEW = { true: `rgb(${ACTIVE.join(" ")} / 55%)`, false: "rgb(255 64 48 / 55%)" };
const RADIUS = 7; // of a point, in screen pixels
const ARM = 14; // of the crosshair

export class MaskCanvas {
  #canvas = byId("active-mask");
  #preview = byId("one-mask");
  #svg = byId("prompts");
  #masks = new WeakMap(); // by item
  #shown = [];
  #given = [[], null, [0, 0]]; // the items, the one that isn't drawn, and the image's size
  #hidden = new Set(); // keys of items
  #active = null;
  #shownFor = null; // counts of the drawn active mask
  #step = 0; // of the drawn masks, as in Stage
  #hovered = null;
  #rest = 0; // timer of the highlight
  #marks = { active: null, box: null, cross: null, brush: null };

  /** Create the canvas. `drags(event)` tests if a pointer pans the image, `fills()` if it fills the mask under it. */
  constructor(drags, fills) {
    const hover = (mask) => this.#hover(fills() ? mask : null);
    this.stage = new Stage(hover, () => {}, () => this.#look(), drags);
    this.stage.coarse = this.stage.outlines = true;
    new ResizeObserver(() => this.#look()).observe(this.stage.element);
  }

  /** Highlight an item, or none with null. */
  point(item) {
    this.#hover(item && this.maskOf(item, this.#given[2]));
  }

  /** Highlight a mask once the pointer rests, because drawing it would delay a click. */
  #hover(mask) {
    if (mask === this.#hovered) return;
    this.#hovered = mask;
    clearTimeout(this.#rest);
    if (mask === null) this.stage.point(null, false);
    else this.#rest = setTimeout(() => this.stage.point(mask, false), REST_MS);
  }

  /** Show another image; `size` is [height, width]. */
  open({ id, size: [height, width], image }) {
    this.#hover(null);
    [this.#shown, this.#active, this.#shownFor] = [[], null, null];
    this.#hidden.clear();
    this.#drawActive();
    this.stage.open(id, [width, height], image.image_id || `sa_${id}`);
  }

  /** Return the item's mask, decoded once. */
  maskOf(item, size) {
    if (!this.#masks.has(item)) {
      this.#masks.set(item, maskFrom(item.counts, size, placeOf(item.key), item));
    }
    return this.#masks.get(item);
  }

  isHidden({ key }) {
    return this.#hidden.has(key);
  }

  /** Hide an item or show it again; without one, show all. This only changes the view. */
  hide(item) {
    if (item === null) this.#hidden.clear();
    else if (!this.#hidden.delete(item.key)) this.#hidden.add(item.key);
    this.showItems(...this.#given);
  }

  /** Draw the items except `but` and hidden ones, largest first. */
  showItems(items, but, size) {
    this.#given = [items, but, size];
    const shown = items.filter((item) => item !== but && !this.isHidden(item));
    if (shown.length === this.#shown.length && shown.every((item, place) => item === this.#shown[place])) return;
    this.#shown = shown;
    if (!shown.includes(this.#hovered?.row.item)) this.#hover(null);
    this.#showMasks(size);
  }

  #showMasks(size) {
    const masks = this.#shown.map((item) => this.maskOf(item, size));
    this.stage.show(masks.sort((one, other) => other.area - one.area));
  }

  /** Draw the active mask, or none. */
  showActive(counts, size) {
    if (counts === this.#shownFor) return;
    this.#shownFor = counts;
    this.#active = counts === null ? null : maskFrom(counts, size, 0);
    this.stage.element.classList.toggle("working", counts !== null);
    this.stage.element.dataset.active = counts === null ? "" : String(counts.length);
    this.#drawActive();
  }

  #drawActive() {
    this.#canvas.hidden = !this.#active?.frame.width;
    if (this.#canvas.hidden) {
      this.#canvas.width = this.#canvas.height = 0;
      return;
    }
    const { step, width, height, thickness } = this.stage;
    const [columns, rows] = [Math.ceil(width / step), Math.ceil(height / step)];
    const canvas = this.#canvas.getContext("2d");
    if (this.#canvas.width !== columns || this.#canvas.height !== rows) {
      [this.#canvas.width, this.#canvas.height] = [columns, rows];
    } else {
      canvas.clearRect(0, 0, columns, rows);
    }
    const { frame } = this.#active;
    const [left, top] = [frame.left, frame.top].map((start) => Math.floor(start / step));
    const right = Math.ceil((frame.left + frame.width) / step);
    const image = new ImageData(right - left, Math.ceil((frame.top + frame.height) / step) - top);
    const part = { left, top, width: image.width };
    this.#active.paint(new Uint32Array(image.data.buffer), part, FILL, LINE, thickness, step);
    canvas.putImageData(image, left, top);
  }

  /** Draw a stroke in progress, or none with null. */
  previewStroke(points, radius = 0, adds = true) {
    if (points === null && this.#preview.hidden) return;
    this.#preview.hidden = points === null;
    const canvas = this.#preview.getContext("2d");
    canvas.clearRect(0, 0, this.stage.width, this.stage.height);
    if (points === null) return;
    canvas.strokeStyle = PREVIEW[adds];
    canvas.lineWidth = 2 * radius;
    canvas.lineCap = canvas.lineJoin = "round";
    canvas.beginPath();
    canvas.moveTo(...points[0]);
    for (const [x, y] of points) canvas.lineTo(x, y);
    canvas.stroke();
  }

  /** Download a mask's box of the picture as a PNG that is transparent outside of the mask. */
  async saveCutout(counts, { id, size }) {
    const mask = maskFrom(counts, size, 0);
    const { left, top, width, height } = mask.frame;
    const picture = byId("picture");
    const { width: across, height: down } = this.stage;
    // Until the picture is loaded, the browser would draw the one before.
    if (!width || !(await picture.decode().then(() => true, () => false))) return;
    const image = new ImageData(width, height);
    mask.paint(new Uint32Array(image.data.buffer), mask.frame, LINE, LINE, 1);
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    context.putImageData(image, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.drawImage(picture, -left, -top, across, down);
    const href = URL.createObjectURL(await canvas.convertToBlob());
    make("a", { href, download: `sa_${id}.cutout.png` }).click();
    setTimeout(() => URL.revokeObjectURL(href), KEPT_MS);
  }

  /** Return the smallest item under a pixel, or null. */
  itemAt(x, y) {
    return this.stage.maskAt(Math.floor(x), Math.floor(y))?.row.item ?? null;
  }

  /** Draw `active` (its points and box), `box` in progress, `cross` [x, y], and `brush` [x, y, radius]. */
  mark(marks) {
    if (Object.entries(marks).every(([name, mark]) => mark === this.#marks[name])) return; // as for most moves
    Object.assign(this.#marks, marks);
    this.#mark();
  }

  /** Redraw after a change of zoom or window size, which can change the pixels to show. */
  #look() {
    this.#mark();
    const { step, width, height } = this.stage;
    if (step === this.#step || !width) return;
    this.#step = step;
    this.#showMasks([height, width]);
    this.#drawActive();
  }

  #mark() {
    const { scale, left, top } = this.stage.zoom;
    const { width, height, element } = this.stage;
    if (!width) return;
    this.#svg.setAttribute("viewBox", [left * width, top * height, width / scale, height / scale].join(" "));
    const unit = width / scale / (element.clientWidth || 1); // one screen pixel
    const { active, box, cross, brush } = this.#marks;
    const points = (active?.points ?? []).flatMap((point) => pointShapes(point, unit));
    const boxes = [active?.box, box].filter(Boolean).map(boxShape);
    this.#svg.replaceChildren(...boxes, ...points, ...brushShapes(brush), ...crossShapes(cross, unit));
  }
}

/** Return a mask's index in the color series, which doesn't depend on the other masks. */
function placeOf(key) {
  const number = Number(key.replaceAll(/\D/g, "")) % 10000; // number of the mask in its image, or among new masks
  return key.startsWith("d") ? number : number + 5000;
}

function maskFrom(counts, size, place, item = null) {
  const mask = new Mask({ segmentation: { size, counts }, item }, place);
  mask.faint = item?.locked ?? false;
  return mask;
}

function pointShapes([x, y, label], unit) {
  const [cx, cy, arm] = [x + 0.5, y + 0.5, 3.5 * unit];
  const sign = `M${cx - arm} ${cy}h${2 * arm}${label ? `M${cx} ${cy - arm}v${2 * arm}` : ""}`;
  return [
    makeSvg("circle", { cx, cy, r: RADIUS * unit, class: label ? "positive" : "negative" }),
    makeSvg("path", { d: sign, class: "sign" }),
  ];
}

function boxShape([x, y, width, height]) {
  return makeSvg("rect", { x, y, width, height, class: "asked" });
}

function brushShapes(brush) {
  if (brush === null) return [];
  const [cx, cy, r] = brush;
  return ["brush-back", "brush-front"].map((name) => makeSvg("circle", { cx, cy, r, class: name }));
}

function crossShapes(cross, unit) {
  if (cross === null) return [];
  const [x, y, arm, gap] = [cross[0] + 0.5, cross[1] + 0.5, ARM * unit, 3 * unit];
  const d = [[1, 0], [-1, 0], [0, 1], [0, -1]]
    .map(([dx, dy]) => `M${x + dx * gap} ${y + dy * gap}L${x + dx * arm} ${y + dy * arm}`)
    .join("");
  return ["cross-back", "cross-front"].map((name) => makeSvg("path", { d, class: name }));
}
