// Gestures one after another: each waits for the server's answers to those before. What the server did not hear is tried
// again, whatever gestures come meanwhile.

import { AGAIN_MS, GoneError } from "./server.js";

export class Turns {
  #queue = Promise.resolve();
  #waiting = 0; // the timer of what is tried again
  #owed;
  #problem;

  /** `owed()` does what the server must hear, after each gesture; `problem(error or null)` shows what went wrong. */
  constructor(owed, problem) {
    this.#owed = owed;
    this.#problem = problem;
  }

  /** Runs `change()` while `isOpen()`, then what is owed to the server; returns the value of `change`. */
  run(isOpen, change) {
    const turn = async () => {
      if (!isOpen()) return undefined;
      const changed = change();
      await this.#pay(isOpen);
      return changed;
    };
    this.#queue = this.#queue.then(turn).catch((error) => this.#problem(error));
    return this.#queue;
  }

  /** Tries nothing again. */
  stop() {
    clearTimeout(this.#waiting);
  }

  async #pay(isOpen) {
    this.stop();
    try {
      await this.#owed();
      if (isOpen()) this.#problem(null);
    } catch (error) {
      if (!isOpen()) return; // the image was left meanwhile
      this.#problem(error);
      if (error instanceof GoneError) this.#waiting = setTimeout(() => this.run(isOpen, () => {}), AGAIN_MS);
    }
  }
}
