// Unlimited undo and redo over a list of immutable states.

const KEPT = 200; // states in a draft; the open page keeps all

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

  /** Return the active mask of a state by the number of its request to the model, or null. */
  activeAt(step) {
    return this.#states.find(({ active }) => active !== null && active.step === step)?.active ?? null;
  }

  /** Restart with one state. */
  reset(first) {
    this.#states = [first];
    this.#at = 0;
  }

  /** Add a state after the current one and drop undone states. Pushing the current state again does nothing. */
  push(state) {
    if (state === this.state) return;
    this.#states.splice(this.#at + 1, Infinity, state);
    this.#at++;
  }

  /** Go back one state; return whether there was one. */
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

  /** Return the states around the current one, for a draft. */
  dump() {
    const from = Math.max(0, Math.min(this.#at - KEPT / 2, this.#states.length - KEPT));
    return { states: this.#states.slice(from, from + KEPT), at: this.#at - from };
  }

  /** Restore the output of `dump`. */
  load({ states, at }) {
    this.#states = [...states];
    this.#at = at;
  }
}
