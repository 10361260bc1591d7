// Zooming and panning of an image in its frame by wheel, two fingers, dragging, keys, and buttons.

const STEP = 1.5; // factor per key or button press
const WHEEL = 0.002; // exponent per wheel pixel
const PINCH = 0.01; // exponent for trackpad pinches, which arrive as wheel events with ctrl
const LINE = 16; // pixels per wheel line
const PIXELS = 12; // screen pixels per image pixel at the maximum zoom
const LEAST = 8; // minimum of the maximum zoom
const SLACK = 5; // pixels that a pointer may move during a click
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const MOVE = 0.2; // share of the visible part, per key press

/** The visible part of an image, enlarged `scale` times; `left` and `top` are the hidden shares on those sides. */
export class Zoom {
  scale = 1;
  left = 0;
  top = 0;
  pixels = 0; // width of the image
  #frame;
  #changed;
  #pointers = new Map(); // positions of pressed pointers by id
  #began = null; // where the first pointer was pressed
  #dragged = false;
  #drags;
  #pans = false; // true if the first pointer pans the image

  /**
   * `frame` is the element that the image fills at scale 1, and `changed()` is called after every change. On
   * pointerdown, `drags(event)` returns whether that pointer pans the image, or null to ignore it. Two fingers always
   * pan, and a pen cancels the fingers' gesture.
   */
  constructor(frame, changed, drags = (event) => event.button === 0) {
    this.#frame = frame;
    this.#changed = changed;
    this.#drags = drags;
    frame.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    frame.addEventListener("pointerdown", (event) => this.#down(event));
    frame.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      frame.addEventListener(name, (event) => this.#pointers.delete(event.pointerId));
    }
    frame.addEventListener("click", (event) => this.#click(event), { capture: true });
  }

  /** True while a pointer pans the image instead of pointing at masks. */
  get busy() {
    return this.#pointers.size > 1 || (this.#pointers.size === 1 && this.#dragged);
  }

  get most() {
    return Math.max(LEAST, (PIXELS * this.pixels) / (this.#frame.clientWidth || 1));
  }

  /** Shows the whole image, which is `pixels` wide. */
  reset(pixels = this.pixels) {
    this.pixels = pixels;
    this.#see(1, 0, 0);
  }

  zoomIn() {
    this.#by(STEP);
  }

  zoomOut() {
    this.#by(1 / STEP);
  }

  /** Handles a key, and returns whether it controls the zoom. */
  key({ key, shiftKey }) {
    if (key === "+" || key === "=") this.zoomIn();
    else if (key === "-" || key === "_") this.zoomOut();
    else if (key === "0") this.reset();
    else if (shiftKey && key in MOVES) this.#pan(MOVES[key][0] * MOVE, MOVES[key][1] * MOVE);
    else return false;
    return true;
  }

  /** Scrolls a part of the image into view; `left`, `top`, `width`, and `height` are shares of the image. */
  reveal({ left, top, width, height }) {
    const seen = 1 / this.scale;
    const along = (at, from, size) => (from < at || from + size > at + seen ? from + size / 2 - seen / 2 : at);
    this.#see(this.scale, along(this.left, left, width), along(this.top, top, height));
  }

  #see(scale, left, top) {
    this.scale = Math.min(this.most, Math.max(1, scale));
    if (this.scale < 1.001) this.scale = 1; // so that equal steps in and out end at exactly 1
    const hidden = 1 - 1 / this.scale;
    this.left = Math.min(hidden, Math.max(0, left));
    this.top = Math.min(hidden, Math.max(0, top));
    this.#changed();
  }

  /** Zooms by `factor` around the point (x, y), in shares of the frame. */
  #by(factor, x = 0.5, y = 0.5) {
    const scale = Math.min(this.most, Math.max(1, this.scale * factor));
    const grown = 1 / this.scale - 1 / scale;
    this.#see(scale, this.left + x * grown, this.top + y * grown);
  }

  /** Moves the visible part by shares of the frame. */
  #pan(x, y) {
    this.#see(this.scale, this.left + x / this.scale, this.top + y / this.scale);
  }

  /** Returns a screen position in shares of the frame. */
  #shares({ x, y }) {
    const frame = this.#frame.getBoundingClientRect();
    return [(x - frame.left) / frame.width, (y - frame.top) / frame.height];
  }

  #wheel(event) {
    const pixels = event.deltaY * [1, LINE, innerHeight][event.deltaMode];
    if (pixels === 0 || (pixels > 0 && this.scale === 1 && !event.ctrlKey)) return; // the page scrolls
    event.preventDefault();
    const factor = Math.exp(-pixels * (event.ctrlKey ? PINCH : WHEEL));
    this.#by(factor, ...this.#shares({ x: event.clientX, y: event.clientY }));
  }

  #down(event) {
    const pans = this.#drags(event);
    if (pans === null || (event.button !== 0 && !pans)) return;
    if (event.pointerType === "pen") this.#pointers.clear();
    const place = { x: event.clientX, y: event.clientY };
    if (this.#pointers.size === 0) [this.#began, this.#dragged, this.#pans] = [place, false, pans];
    this.#pointers.set(event.pointerId, place);
  }

  #move(event) {
    if (event.buttons === 0) this.#pointers.delete(event.pointerId); // released outside the frame
    const before = this.#pointers.get(event.pointerId);
    if (before === undefined) return;
    const place = { x: event.clientX, y: event.clientY };
    const other = [...this.#pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other !== undefined) this.#pinch(before, place, other);
    else if (!this.#drag(before, place, event.pointerId)) return;
    this.#pointers.set(event.pointerId, place);
  }

  /** Handles two fingers: the point between them stays there, and their distance sets the scale. */
  #pinch(before, place, other) {
    this.#dragged = true;
    const distance = (one) => Math.hypot(one.x - other.x, one.y - other.y);
    const middle = (one) => this.#shares({ x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 });
    const [was, is] = [middle(before), middle(place)];
    this.#by(distance(place) / Math.max(1, distance(before)), ...was);
    this.#pan(was[0] - is[0], was[1] - is[1]);
  }

  /** Handles one pointer, and returns whether it panned the image, which starts after it moves by SLACK. */
  #drag(before, place, pointer) {
    if (this.scale === 1 || !(this.#pans || this.#dragged)) return false; // after two fingers, one may continue
    if (!this.#dragged) {
      if (Math.hypot(place.x - this.#began.x, place.y - this.#began.y) < SLACK) return false;
      this.#dragged = true;
      this.#frame.setPointerCapture(pointer);
    }
    const [was, is] = [this.#shares(before), this.#shares(place)];
    this.#pan(was[0] - is[0], was[1] - is[1]);
    return true;
  }

  /** Suppresses the click that ends a drag. */
  #click(event) {
    if (this.#dragged) event.stopImmediatePropagation();
    this.#dragged = false;
  }
}
