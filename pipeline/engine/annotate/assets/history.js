// Undo and redo without end: a list of states that are never changed.

const KEPT = 200; // states of a draft; in the open page all are kept

export class History {
  #states;
  #at;

  constructor(first) {
    this.reset(first);
  }

  get state() {
    return this.#states[this.#at];
  }

  get canUndo() {
    return this.#at > 0;
  }

  get canRedo() {
    return this.#at < this.#states.length - 1;
  }

  /** Begins again with one state. */
  reset(first) {
    this.#states = [first];
    this.#at = 0;
  }

  /** Adds a state after the current one; what was undone is dropped. The same state again adds nothing. */
  push(state) {
    if (state === this.state) return;
    this.#states.splice(this.#at + 1, Infinity, state);
    this.#at++;
  }

  /** Goes back one state; returns whether there was one. */
  undo() {
    if (!this.canUndo) return false;
    this.#at--;
    return true;
  }

  redo() {
    if (!this.canRedo) return false;
    this.#at++;
    return true;
  }

  /** What a draft keeps: the states around the current one. */
  dump() {
    const from = Math.max(0, Math.min(this.#at - KEPT / 2, this.#states.length - KEPT));
    return { states: this.#states.slice(from, from + KEPT), at: this.#at - from };
  }

  /** Goes on with what `dump` returned. */
  load({ states, at }) {
    this.#states = [...states];
    this.#at = at;
  }
}
