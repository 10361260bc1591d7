// View of an image with its masks, which draws them and finds the mask under the pointer.

import { byId, makeSvg } from "./dom.js";
import { lighter, packed } from "./mask.js";
import { Zoom } from "./zoom.js";

const [FILL, LINE] = [100, 230]; // alpha, of 255
const [FAINT_FILL, FAINT_LINE] = [65, 130];
const DIM = [12, 13, 15, 190]; // red, green, blue, alpha
const LIGHT = packed(255, 255, 255, 60);
const WHITE = packed(255, 255, 255, 255);
const SQUARES = 3; // screen pixels per image pixel above which the image isn't smoothed

export class Stage {
  #stage = byId("stage");
  #picture = byId("picture");
  #all = byId("all-masks");
  #one = byId("one-mask");
  #marks = byId("marks");
  #masks = [];
  #frame = 0;
  #hover;
  #pointer = null; // the last pointer event over the image
  #looked;
  width = 0;
  height = 0;
  coarse = false; // true to draw masks with at most the screen's resolution
  outlines = false; // true to fill only the highlighted mask

  /**
   * `hover(mask or null)` and `choose(mask or null)` are called on moves and clicks, and `looked()` after every change
   * of the zoom. `drags` is passed to `Zoom`.
   */
  constructor(hover, choose, looked = () => {}, drags = undefined) {
    this.#hover = hover;
    this.#looked = looked;
    this.zoom = new Zoom(this.#stage, () => this.#look(), drags);
    this.#stage.addEventListener("pointermove", (event) => {
      if (event.pointerType !== "touch") this.#pointAt(event);
    });
    this.#stage.addEventListener("pointerleave", () => this.#pointAt(null));
    this.#stage.addEventListener("click", (event) => choose(this.#under(event)));
    this.#picture.addEventListener("load", () => this.#stage.classList.remove("loading"));
    this.#picture.addEventListener("error", () => this.#stage.classList.add("no-picture"));
    byId("zoom-in").addEventListener("click", () => this.zoom.zoomIn());
    byId("zoom-out").addEventListener("click", () => this.zoom.zoomOut());
    byId("zoom-fit").addEventListener("click", () => this.zoom.reset());
  }

  get element() {
    return this.#stage;
  }

  /** Number of image pixels per drawn pixel along each axis; see `coarse`. */
  get step() {
    const shown = this.#stage.clientWidth * devicePixelRatio * this.zoom.scale; // in screen pixels
    return this.coarse && shown ? Math.max(1, Math.floor(this.width / shown)) : 1;
  }

  /** Shows another image; `size` is [width, height] in pixels, the same for all masks. */
  open(image, size, name) {
    [this.width, this.height] = size;
    this.thickness = Math.max(1, Math.round(Math.min(...size) / 600));
    this.#stage.classList.remove("no-picture");
    this.#stage.classList.add("loading"); // the browser shows the previous image while it loads
    this.#stage.style.setProperty("--aspect", String(this.width / this.height));
    this.#picture.src = `/images/${image}.jpg`;
    this.#picture.alt = name;
    [this.#one.width, this.#one.height] = size;
    this.#all.width = this.#all.height = 0;
    this.show([]);
    this.point(null, false);
    this.zoom.reset(this.width);
  }

  /** Scrolls a box, in image pixels, into view if the image is zoomed. */
  reveal({ left, top, width, height }) {
    const shares = { left: left / this.width, top: top / this.height };
    if (width) this.zoom.reveal({ ...shares, width: width / this.width, height: height / this.height });
  }

  /** Removes the image, which may still be loading, and everything drawn over it. */
  close() {
    cancelAnimationFrame(this.#frame);
    this.#picture.removeAttribute("src");
    this.#picture.alt = "";
    this.#masks = [];
    this.point(null, false);
    for (const canvas of [this.#all, this.#one]) canvas.width = canvas.height = 0;
    delete this.#stage.dataset.masks;
  }

  /** Draws these masks, largest first, in the next frame, and `faint` ones more lightly. */
  show(masks) {
    this.#masks = masks;
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => {
      const { step } = this;
      const image = new ImageData(Math.ceil(this.width / step), Math.ceil(this.height / step));
      const pixels = new Uint32Array(image.data.buffer);
      const whole = { left: 0, top: 0, width: image.width };
      for (const mask of masks) {
        const [fill, line] = mask.faint ? [FAINT_FILL, FAINT_LINE] : [FILL, LINE];
        const inside = this.outlines ? null : packed(...mask.color, fill);
        if (this.#fits(mask)) mask.paint(pixels, whole, inside, packed(...lighter(mask.color), line), this.thickness, step);
      }
      [this.#all.width, this.#all.height] = [image.width, image.height];
      this.#all.hidden = masks.length === 0; // compositing an empty canvas takes as long as a full one
      this.#all.getContext("2d").putImageData(image, 0, 0);
      this.#stage.dataset.masks = String(masks.length);
    });
  }

  /** Highlights one mask among the others, or `alone` with its crop, box, and prompt; null for none. */
  point(mask, alone, box = null) {
    this.#stage.classList.toggle("alone", mask !== null && alone);
    this.#stage.classList.toggle("pointing", mask !== null && !alone);
    const canvas = this.#one.getContext("2d");
    canvas.clearRect(0, 0, this.width, this.height);
    this.#one.hidden = mask === null;
    canvas.fillStyle = `rgb(${DIM.slice(0, 3).join(" ")} / ${DIM[3] / 255})`;
    if (mask !== null && alone) canvas.fillRect(0, 0, this.width, this.height);
    if (mask !== null && this.#fits(mask) && mask.frame.width) {
      const { left, top, width, height } = mask.frame;
      const image = new ImageData(width, height);
      const pixels = new Uint32Array(image.data.buffer);
      if (alone) pixels.fill(packed(...DIM));
      const light = this.outlines ? packed(...mask.color, FILL) : LIGHT;
      mask.paint(pixels, mask.frame, alone ? 0 : light, WHITE, this.thickness);
      canvas.putImageData(image, left, top);
    }
    this.#marks.replaceChildren(...(mask !== null && alone ? this.#origin(mask.row) : []), ...this.#boxes("found", box));
  }

  /** Applies the zoom, and redraws marks so that their lines keep their width. */
  #look() {
    const { scale, left, top } = this.zoom;
    this.#stage.style.setProperty("--view", `scale(${scale}) translate(${-100 * left}%, ${-100 * top}%)`);
    this.#stage.classList.toggle("zoomed", scale > 1);
    this.#stage.classList.toggle("squares", scale > 1 && (scale * this.#stage.clientWidth) / this.width >= SQUARES);
    const box = [left * this.width, top * this.height, this.width / scale, this.height / scale];
    this.#marks.setAttribute("viewBox", box.join(" "));
    for (const point of this.#marks.querySelectorAll(".point")) point.setAttribute("r", String(this.#radius()));
    byId("zoom-level").textContent = `${scale.toFixed(1)} ×`;
    this.#looked();
    if (this.#pointer !== null) this.#pointAt(this.#pointer);
  }

  #radius() {
    return Math.max(3, Math.min(this.width, this.height) / 110) / this.zoom.scale;
  }

  #pointAt(event) {
    this.#pointer = event;
    if (!this.zoom.busy) this.#hover(event === null ? null : this.#under(event));
  }

  /** Returns a pointer's fractional position [x, y] in image pixels; the top left corner is [0, 0]. */
  placeOf(event) {
    const frame = this.#picture.getBoundingClientRect();
    return [
      ((event.clientX - frame.left) / frame.width) * this.width,
      ((event.clientY - frame.top) / frame.height) * this.height,
    ];
  }

  /** Returns the smallest visible mask at a pixel, or null. */
  maskAt(x, y) {
    return this.#masks.findLast((mask) => mask.holds(x, y)) ?? null;
  }

  #under(event) {
    const [x, y] = this.placeOf(event);
    return this.maskAt(Math.floor(x), Math.floor(y));
  }

  #fits(mask) {
    return mask.width === this.width && mask.height === this.height;
  }

  /** Returns the shapes of a mask's crop, box, and prompts: points and boxes. */
  #origin(row) {
    const prompts = row.prompts ?? [];
    const boxes = prompts.filter(({ kind }) => kind === "box").flatMap(({ x, y, w, h }) => this.#boxes("prompt", [x, y, w, h]));
    const points = (row.point_coords ?? []).map(([x, y]) => this.#point(x, y, 1));
    for (const { kind, x, y, label } of prompts) if (kind === "point") points.push(this.#point(x, y, label));
    return [...this.#boxes("crop", row.crop_box), ...this.#boxes("box", row.bbox), ...boxes, ...points];
  }

  /** Returns the shape of a point prompt. `label` is 0 for a point outside the mask. */
  #point(cx, cy, label) {
    return makeSvg("circle", { cx, cy, r: this.#radius(), class: label === 0 ? "point outside" : "point" });
  }

  #boxes(name, box) {
    if (!box) return [];
    const [x, y, width, height] = box;
    return [makeSvg("rect", { x, y, width: Math.max(1, width), height: Math.max(1, height), class: name })];
  }
}
