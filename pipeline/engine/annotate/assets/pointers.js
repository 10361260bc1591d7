// Mouse, finger, and pen input on the image. One pointer uses the tool; two fingers zoom and pan (see zoom.js). While a
// pen is near, touches are ignored as the palm of the hand. Pen pressure has no effect, because strokes are exact.

const OTHER = 2; // right button
const MIDDLE = 1;
const PEN_ERASER = 5;
const PALM_MS = 500; // after the pen has left

export class Pointers {
  #maskCanvas;
  #tools;
  #down = null; // id of the pointer that uses the tool
  #fingers = new Set();
  #penIsNear = false; // above or touching the image
  #penLeft = -Infinity; // time at which the pen was last near
  panning = false; // whether Space is held
  panned = false; // whether a pointer panned since Space was pressed

  constructor(tools) {
    this.#tools = tools;
  }

  /** Return whether a pointer pans: the tool Move, the middle button, or Space held. Null for a palm. */
  drags = (event) => {
    if (this.#isPalm(event)) return null;
    const drags = event.button === MIDDLE || (event.button === 0 && (this.panning || this.#tools().name === "move"));
    this.panned ||= drags && this.panning;
    return drags;
  };

  /** Listen for pointers on the canvas; `hover([x, y] or null)` receives the pointer's position. */
  listen(maskCanvas, hover) {
    this.#maskCanvas = maskCanvas;
    const { element } = maskCanvas.stage;
    for (const name of ["pointerenter", "pointerdown", "pointermove"]) {
      element.addEventListener(name, (event) => this.#notePen(event, true), { capture: true });
    }
    for (const name of ["pointerleave", "pointercancel"]) {
      element.addEventListener(name, (event) => event.target === element && this.#notePen(event, false), { capture: true });
    }
    const places = (event) => {
      const all = event.getCoalescedEvents?.() ?? [];
      return (all.length ? all : [event]).map((each) => maskCanvas.stage.placeOf(each));
    };
    element.addEventListener("pointerdown", (event) => this.#press(event));
    element.addEventListener("pointermove", (event) => {
      hover(event.pointerType === "touch" ? null : maskCanvas.stage.placeOf(event));
      if (event.pointerId === this.#down) this.#tools().move(places(event));
    });
    element.addEventListener("pointerup", (event) => {
      if (event.pointerId === this.#down) this.#tools().up();
      this.#release(event);
    });
    element.addEventListener("pointercancel", (event) => {
      if (event.pointerId === this.#down) this.#tools().cancel();
      this.#release(event);
    });
    element.addEventListener("pointerleave", () => hover(null));
    element.addEventListener("contextmenu", (event) => event.preventDefault());
    element.addEventListener("mousedown", (event) => {
      if (event.button === MIDDLE) event.preventDefault(); // no autoscroll by the middle button
    });
  }

  #press(event) {
    this.#maskCanvas.stage.element.focus({ preventScroll: true });
    if (this.#isPalm(event)) return;
    if (event.pointerType === "touch") {
      this.#fingers.add(event.pointerId);
      if (this.#fingers.size > 1) return this.#giveUp();
    }
    if (this.#down !== null || this.drags(event) || ![0, OTHER, PEN_ERASER].includes(event.button)) return;
    this.#down = event.pointerId;
    this.#maskCanvas.stage.element.setPointerCapture(event.pointerId);
    const { element, width, zoom } = this.#maskCanvas.stage;
    this.#tools().down(this.#maskCanvas.stage.placeOf(event), {
      other: event.button === OTHER || event.altKey || event.shiftKey,
      erases: event.button === PEN_ERASER,
      unit: width / zoom.scale / element.clientWidth,
    });
  }

  #isPalm(event) {
    return event.pointerType === "touch" && (this.#penIsNear || event.timeStamp - this.#penLeft < PALM_MS);
  }

  /** Record that a pen is near or has left. A palm that touched before the pen no longer counts as a finger. */
  #notePen({ pointerType, timeStamp }, near) {
    if (pointerType !== "pen") return;
    if (near && this.#fingers.size) {
      this.#fingers.clear();
      this.#giveUp();
    }
    this.#penIsNear = near;
    this.#penLeft = timeStamp;
  }

  #giveUp() {
    this.#tools().cancel();
    this.#down = null;
  }

  #release(event) {
    this.#fingers.delete(event.pointerId);
    if (event.pointerId === this.#down) this.#down = null;
  }
}
