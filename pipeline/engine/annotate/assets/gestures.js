// Queue of gestures: each waits for the server's responses to the earlier ones. Failed requests are retried in parallel
// while gestures continue.

import { AGAIN_MS, GoneError } from "./server.js";

export class GestureQueue {
  #queue = Promise.resolve();
  #waiting = 0; // timer of the retry
  #beside = false; // whether a retry is pending, during which gestures send no requests
  #owed;
  #problem;

  /** Create the queue. `owed()` does the pending requests after each gesture; `problem(error or null)` shows errors. */
  constructor(owed, problem) {
    this.#owed = owed;
    this.#problem = problem;
  }

  /** Run `change()` if `isOpen()`, then the pending requests; return the value of `change`. */
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

  /** Cancel the retry; later gestures don't wait for earlier ones. */
  stop() {
    clearTimeout(this.#waiting);
    this.#beside = false;
    this.#queue = Promise.resolve();
  }

  /** Do the pending requests; return whether they succeeded and the image is still open. */
  async #pay(isOpen) {
    try {
      await this.#owed();
    } catch (error) {
      if (!isOpen()) return false; // the image was closed meanwhile
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
