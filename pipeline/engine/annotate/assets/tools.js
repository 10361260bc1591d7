// Tools: the actions of a press, move, and release on the image by mouse, finger, pen, or the crosshair's keys.

const SMALLEST = 0.5; // radius of the brush in image pixels
const LARGEST = 500;
const GROWTH = 1.25;
const SLACK = 6; // screen pixels that a pointer may move during a click

export class Tools {
  #editor;
  #maskCanvas;
  #changed;
  #gesture = null; // {tool, from, points, adds, unit}
  name = "points";
  radius = 12;
  negative = false; // whether clicks are background points

  constructor(editor, maskCanvas, changed) {
    this.#editor = editor;
    this.#maskCanvas = maskCanvas;
    this.#changed = changed;
  }

  get busy() {
    return this.#gesture !== null;
  }

  use(name) {
    this.cancel();
    this.name = name;
    this.#changed();
  }

  /** Make the brush larger (1) or smaller (-1). */
  resize(step) {
    this.radius = Math.min(LARGEST, Math.max(SMALLEST, Math.round(this.radius * GROWTH ** step * 10) / 10));
    this.#changed();
  }

  flip() {
    this.negative = !this.negative;
    this.#changed();
  }

  /** Press at [x, y] in the image; `other` is the other button, `unit` the image pixels per screen pixel. */
  down(place, { other = false, erases = false, unit = 0 } = {}) {
    if (this.#editor.image === null || this.name === "move") return;
    const tool = erases ? "eraser" : this.name;
    const adds = tool === "brush" ? !other : tool === "eraser" ? false : other === this.negative;
    this.#gesture = { tool, adds, unit, from: place, points: [place] };
    this.#maskCanvas.point(null);
    this.#preview();
  }

  /** Move through these points, the last of which is the current position. */
  move(places) {
    if (this.#gesture === null) return;
    this.#gesture.points.push(...places);
    this.#preview();
  }

  /** Release. */
  up() {
    const gesture = this.#gesture;
    this.cancel();
    if (gesture === null) return;
    const { tool, points, adds } = gesture;
    if (tool === "points") this.#click(gesture);
    else if (tool === "box") this.#box(gesture);
    else if (tool === "select") this.#editor.select(this.#maskCanvas.itemAt(...points.at(-1))?.key ?? null);
    else this.#editor.stroke(points, this.radius, adds);
  }

  /** Cancel the press, for example when a second finger touches. */
  cancel() {
    this.#gesture = null;
    this.#maskCanvas.previewStroke(null);
    this.#maskCanvas.mark({ box: null });
  }

  #preview() {
    const { tool, from, points, adds } = this.#gesture;
    if (tool === "brush" || tool === "eraser") this.#maskCanvas.previewStroke(points, this.radius, adds);
    if (tool === "box") this.#maskCanvas.mark({ box: this.#boxOf(from, points.at(-1)) });
  }

  #click({ from, points, unit, adds }) {
    const [x, y] = points.at(-1);
    if (unit && Math.hypot(x - from[0], y - from[1]) > SLACK * unit) return;
    const [column, row] = this.#pixelOf(from);
    this.#editor.point(column, row, adds ? 1 : 0);
  }

  #box({ from, points, unit }) {
    const box = this.#boxOf(from, points.at(-1));
    if (box[2] > SLACK * unit / 2 && box[3] > SLACK * unit / 2) this.#editor.box(box);
  }

  /** Return the box [x, y, w, h] between two pixels, as masks' boxes are written but at least 1 wide and high. */
  #boxOf(one, other) {
    const [ax, ay] = this.#pixelOf(one);
    const [bx, by] = this.#pixelOf(other);
    return [Math.min(ax, bx), Math.min(ay, by), Math.max(1, Math.abs(ax - bx)), Math.max(1, Math.abs(ay - by))];
  }

  #pixelOf([x, y]) {
    const [height, width] = this.#editor.image.size;
    const within = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value)));
    return [within(x, width), within(y, height)];
  }
}
