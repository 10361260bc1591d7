// Levels of masks: names of the decoder's outputs, and steps from a mask out to the one around it and in to its parts.

const NAMES = ["subpart", "part", "whole"];

/** Return the text for an output, or null if it's unknown. `order` says how often outputs rise in area, if measured. */
export function levelOf(output, order) {
  if (output === null || output === undefined) return null;
  return order ? `${NAMES[output]} (output ${output})` : `output ${output}`;
}

/** Return the sentence that says why outputs have names, or an empty text. */
export function orderOf(order) {
  if (!order) return "";
  const share = ((100 * order.rising) / order.points).toFixed(1);
  return `Subpart, part, whole: outputs 0, 1, 2 of these weights rise in area at ${share}% of ${order.points} points.`;
}

export class Nesting {
  #container = new Map(); // by a mask's id
  #left = new Map(); // id of the mask inside that was left last, by the id of the mask around it
  #shown;
  #idOf;
  #select;

  /** `shown()` returns the masks on the page, `idOf(mask)` a mask's id or null, and `select(mask)` is called by steps. */
  constructor(shown, idOf, select) {
    [this.#shown, this.#idOf, this.#select] = [shown, idOf, select];
  }

  /** Use the rows of an image's masks. A container that isn't a larger one of them, as in damaged data, is ignored. */
  open(rows) {
    [this.#container, this.#left] = [new Map(), new Map()];
    const larger = new Set();
    for (const row of [...rows].sort((one, other) => other.area - one.area || one.annotation_id - other.annotation_id)) {
      if (larger.has(row.container)) this.#container.set(row.annotation_id, row.container);
      larger.add(row.annotation_id);
    }
  }

  /** Return the nearest mask on the page that contains a mask, or null. */
  around(mask, shown = new Map(this.#shown().map((each) => [this.#idOf(each), each]))) {
    let at = mask === null ? undefined : this.#container.get(this.#idOf(mask));
    while (at !== undefined && !shown.has(at)) at = this.#container.get(at);
    return shown.get(at) ?? null;
  }

  /** Return the masks on the page directly inside a mask. */
  inside(mask) {
    const shown = new Map(this.#shown().map((each) => [this.#idOf(each), each]));
    return mask === null ? [] : this.#shown().filter((each) => this.around(each, shown) === mask);
  }

  stepOut(mask) {
    const around = this.around(mask);
    if (around === null) return;
    this.#left.set(this.#idOf(around), this.#idOf(mask));
    this.#select(around);
  }

  /** Step in to the mask from which the last step out came, or to the first one. */
  stepIn(mask) {
    const inside = this.inside(mask);
    if (inside.length === 0) return;
    const left = this.#left.get(this.#idOf(mask));
    this.#select(inside.find((each) => this.#idOf(each) === left) ?? inside[0]);
  }
}
