// Gestures one after another: each waits for the model's answer to those before. What the server did not hear is tried
// again.

import { GoneError } from "./server.js";

const AGAIN_MS = 3000;

export class Turns {
  #queue = Promise.resolve();
  #waiting = 0; // the timer of what is tried again
  #problem;

  /** `problem(error or null)` shows what went wrong. */
  constructor(problem) {
    this.#problem = problem;
  }

  /** Runs `change()` while `isOpen()`, then `follow(its value)`, which the server must hear; returns the value. */
  run(isOpen, change, follow) {
    this.stop();
    const turn = async () => {
      if (!isOpen()) return undefined;
      const changed = change();
      await this.#heard(isOpen, () => follow(changed));
      return changed;
    };
    this.#queue = this.#queue.then(turn).catch((error) => this.#problem(error));
    return this.#queue;
  }

  /** Tries nothing again. */
  stop() {
    clearTimeout(this.#waiting);
  }

  async #heard(isOpen, follow) {
    try {
      await follow();
      this.#problem(null);
    } catch (error) {
      this.#problem(error);
      if (!(error instanceof GoneError)) return;
      this.stop();
      this.#waiting = setTimeout(() => this.run(isOpen, () => {}, follow), AGAIN_MS);
    }
  }
}
