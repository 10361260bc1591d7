// Crosshair for using the tools without a mouse, placed on an image pixel in the frame of masks.

import { byId } from "./dom.js";

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const SAID_MS = 400; // after the last key

export class Crosshair {
  #maskCanvas;
  #tools;
  #place = null; // column and row of the crosshair's pixel, or null while it isn't in use
  #saying = 0;

  constructor(maskCanvas, tools) {
    this.#maskCanvas = maskCanvas;
    this.#tools = tools;
  }

  hide() {
    this.#place = null;
    this.#maskCanvas.mark({ cross: null });
  }

  /** Move by an arrow key, `by` pixels, starting in the middle of the visible area. */
  move(key, by) {
    const { width, height, zoom } = this.#maskCanvas.stage;
    const seen = 1 / zoom.scale / 2;
    const from = this.#place ?? [Math.floor((zoom.left + seen) * width), Math.floor((zoom.top + seen) * height)];
    const within = (value, count) => Math.min(count - 1, Math.max(0, value));
    const [dx, dy] = MOVES[key];
    this.#place = [within(from[0] + dx * by, width), within(from[1] + dy * by, height)];
    this.#show();
  }

  /** Press or release the tool at the crosshair; tools that take one click get a complete click. */
  press(other = false) {
    if (this.#place === null) return this.move("ArrowRight", 0);
    const center = this.#place.map((pixel) => pixel + 0.5);
    const clicks = ["points", "select"].includes(this.#tools.name);
    if (this.#tools.busy) return this.#tools.up();
    this.#tools.down(center, { other });
    if (clicks) this.#tools.up();
    return undefined;
  }

  #show() {
    const [x, y] = this.#place;
    this.#maskCanvas.stage.reveal({ left: x, top: y, width: 1, height: 1 });
    this.#maskCanvas.mark({ cross: this.#place });
    this.#tools.move([[x + 0.5, y + 0.5]]);
    clearTimeout(this.#saying);
    this.#saying = setTimeout(() => (byId("cross-place").textContent = `Column ${x}, row ${y}`), SAID_MS);
  }
}
