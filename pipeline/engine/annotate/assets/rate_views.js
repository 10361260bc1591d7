// Four views of a mask (SAM paper, Appendix G): in the full image, close up, as an outline, and in isolation.

import { byId } from "./dom.js";
import { Mask, packed } from "./mask.js";

const RED = [226, 27, 27];
const YELLOW = packed(253, 231, 37, 255);
const GROUND = "rgb(68 1 84)";
const MARGIN = 0.35; // around the mask in close views, as a share of its longer side
const LEAST_MARGIN = 24; // image pixels
const LEAST_ZOOM = 2; // of the close-up, relative to the whole image
const CELLS = 32; // per longer side of the image, in the search for the boundary
const SQUARES = 3; // screen pixels per image pixel, from which the image isn't smoothed

const PAINTS = {
  whole: [packed(...RED, 105), packed(...RED, 255)],
  close: [packed(...RED, 105), packed(...RED, 255)],
  outline: [0, packed(...RED, 255)],
  alone: [YELLOW, YELLOW],
};

export class Views {
  #box = byId("views");
  #buttons = [...this.#box.querySelectorAll("button")];
  #picture = null;
  #mask = null;
  #chosen = null; // enlarged view
  #layers = new Map(); // canvases in the mask's frame, by view

  constructor() {
    for (const button of this.#buttons) {
      button.addEventListener("click", () => this.choose(this.#chosen === button.dataset.view ? null : button.dataset.view));
    }
    new ResizeObserver(() => this.#draw()).observe(this.#box);
  }

  /** Show another mask, {image, size, counts}, as soon as its image is loaded. */
  async open({ image, size, counts }) {
    const picture = new Image();
    picture.src = `/images/${image}.jpg`;
    await picture.decode().catch(() => {});
    this.#picture = picture;
    this.#mask = new Mask({ segmentation: { size, counts } }, 0);
    this.#layers.clear();
    this.choose(null);
  }

  /** Enlarge the next view; after the last one, show all. */
  turn() {
    const names = [null, ...this.#buttons.map((button) => button.dataset.view)];
    this.choose(names[(names.indexOf(this.#chosen) + 1) % names.length]);
  }

  /** Enlarge a view by its name, or show all with null. */
  choose(name) {
    this.#chosen = name;
    this.#box.classList.toggle("one", name !== null);
    for (const button of this.#buttons) button.setAttribute("aria-pressed", String(button.dataset.view === name));
    this.#draw();
  }

  #draw() {
    if (this.#mask === null) return;
    for (const button of this.#buttons) {
      const canvas = button.querySelector("canvas");
      const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.round(side * devicePixelRatio));
      if (width && height) this.#paint(button.dataset.view, canvas, width, height);
    }
  }

  #paint(view, canvas, width, height) {
    [canvas.width, canvas.height] = [width, height];
    const part = this.#partOf(view, width / height);
    const scale = Math.min(width / part.width, height / part.height);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = scale < SQUARES * devicePixelRatio;
    context.translate((width - part.width * scale) / 2, (height - part.height * scale) / 2);
    context.scale(scale, scale);
    context.translate(-part.left, -part.top);
    context.beginPath();
    context.rect(part.left, part.top, part.width, part.height);
    context.clip();
    if (view === "alone") {
      context.fillStyle = GROUND;
      context.fillRect(part.left, part.top, part.width, part.height);
    } else if (this.#picture.naturalWidth) {
      context.drawImage(this.#picture, 0, 0, this.#mask.width, this.#mask.height);
    }
    const { frame } = this.#mask;
    if (frame.width) context.drawImage(this.#layer(view, scale), frame.left, frame.top);
    const close = this.#partOf("close", width / height);
    if (view === "close") canvas.nextElementSibling.textContent = close.boundary ? "Close-up of the boundary" : "Close-up";
    if (view === "whole" && close.boundary) {
      for (const [color, line] of [["black", 4], ["white", 2]]) {
        [context.strokeStyle, context.lineWidth] = [color, (line * devicePixelRatio) / scale];
        context.strokeRect(close.left, close.top, close.width, close.height);
      }
    }
  }

  /**
   * Return the part of the image that a view with this aspect ratio shows: all of it, or the mask with a margin. For
   * large masks, the close-up only shows the part with most of the boundary.
   */
  #partOf(view, aspect) {
    const { width, height, frame } = this.#mask;
    if (view === "whole" || !frame.width) return { left: 0, top: 0, width, height };
    const margin = Math.max(LEAST_MARGIN, MARGIN * Math.max(frame.width, frame.height));
    let [wide, high] = [frame.width + 2 * margin, frame.height + 2 * margin];
    if (wide / high < aspect) wide = high * aspect;
    else high = wide / aspect;
    const most = Math.max(width, height * aspect) / LEAST_ZOOM;
    if (view === "close" && wide > most) return this.#boundaryPart(Math.min(most, width), Math.min(most / aspect, height));
    [wide, high] = [Math.min(wide, width), Math.min(high, height)];
    const along = (at, side, size, most) => Math.min(Math.max(0, at + side / 2 - size / 2), most - size);
    return {
      left: along(frame.left, frame.width, wide, width),
      top: along(frame.top, frame.height, high, height),
      width: wide,
      height: high,
    };
  }

  /** Return the part of this size that contains most cells with the mask's boundary, except at the image's edge. */
  #boundaryPart(wide, high) {
    const { width, height } = this.#mask;
    const step = Math.ceil(Math.max(width, height) / CELLS);
    const [across, down] = [width, height].map((side) => Math.ceil(side / step));
    const [columns, rows] = [wide, high].map((side) => Math.floor(side / step));
    const cells = new Uint32Array(across * down);
    this.#mask.paint(cells, { left: 0, top: 0, width: across }, 0, 1, 1, step);
    let [best, place] = [-1, null];
    for (let top = 0; top <= down - rows; top++) {
      for (let left = 0; left <= across - columns; left++) {
        let found = 0;
        for (let y = Math.max(1, top); y < Math.min(top + rows, down - 1); y++) {
          for (let x = Math.max(1, left); x < Math.min(left + columns, across - 1); x++) found += cells[y * across + x];
        }
        if (found > best) [best, place] = [found, { left: left * step, top: top * step }];
      }
    }
    const { left, top } = place;
    return { left: Math.min(left, width - wide), top: Math.min(top, height - high), width: wide, height: high, boundary: true };
  }

  /** Return the mask's frame, painted for a view; lines are at least one screen pixel wide. */
  #layer(view, scale) {
    const thickness = Math.max(1, Math.round((1.5 * devicePixelRatio) / scale));
    const name = `${view} ${thickness}`;
    if (!this.#layers.has(name)) {
      const { frame } = this.#mask;
      const layer = Object.assign(document.createElement("canvas"), { width: frame.width, height: frame.height });
      const image = new ImageData(frame.width, frame.height);
      this.#mask.paint(new Uint32Array(image.data.buffer), frame, ...PAINTS[view], thickness);
      layer.getContext("2d").putImageData(image, 0, 0);
      this.#layers.set(name, layer);
    }
    return this.#layers.get(name);
  }
}
