// Gestures one after another: each waits for the server's responses to those before. What the server did not hear is tried
// again beside the gestures, which go on meanwhile.

import { AGAIN_MS, GoneError } from "./server.js";

export class GestureQueue {
  #queue = Promise.resolve();
  #waiting = 0; // the timer of what is tried again
  #beside = false; // whether something is tried again: until it is heard no gesture asks the server
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
      if (!this.#beside) await this.#pay(isOpen);
      return changed;
    };
    this.#queue = this.#queue.then(turn).catch((error) => this.#problem(error));
    return this.#queue;
  }

  /** Tries nothing again; gestures from now on wait for none of those before. */
  stop() {
    clearTimeout(this.#waiting);
    this.#beside = false;
    this.#queue = Promise.resolve();
  }

  /** Returns whether the server heard all, and the image is still open. */
  async #pay(isOpen) {
    try {
      await this.#owed();
    } catch (error) {
      if (!isOpen()) return false; // the image was left meanwhile
      this.#problem(error);
      this.#beside = error instanceof GoneError;
      if (this.#beside) this.#waiting = setTimeout(() => this.#again(isOpen), AGAIN_MS);
      return false;
    }
    if (!isOpen()) return false;
    this.#problem(null);
    this.#beside = false;
    return true;
  }

  async #again(isOpen) {
    if (isOpen() && (await this.#pay(isOpen))) this.run(isOpen, () => {}); // for the gestures meanwhile
  }
}
