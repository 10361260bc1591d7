// Queue of gestures, and the requests that they cause. A gesture only waits for responses that it needs.

import { AGAIN_MS, GoneError } from "./server.js";

/** Requests of one kind, one at a time, which are retried while the server doesn't respond. */
class Requests {
  #owed;
  #shown;
  #running = null;
  #due = false; // whether there was a gesture since the running requests began
  #waiting = 0; // timer of the retry
  #stopped = false;
  error = null; // of the last one

  constructor(owed, shown) {
    [this.#owed, this.#shown] = [owed, shown];
  }

  /** Promise for the end of the running requests; null without any, and while the server doesn't respond. */
  get ended() {
    return this.error instanceof GoneError ? null : this.#running;
  }

  start() {
    this.#due = true;
    if (!this.#waiting) this.#running ??= this.#run();
  }

  stop() {
    this.#stopped = true;
    clearTimeout(this.#waiting);
  }

  async #run() {
    this.#waiting = 0;
    try {
      while (this.#due && !this.#stopped) {
        this.#due = false;
        await this.#owed();
      }
      this.error = null;
    } catch (error) {
      this.error = error;
      const again = () => (this.#running = this.#run());
      this.#due ||= error instanceof GoneError;
      if (error instanceof GoneError && !this.#stopped) this.#waiting = setTimeout(again, AGAIN_MS);
    }
    this.#running = null;
    if (!this.#stopped) this.#shown();
  }
}

export class GestureQueue {
  #queue = Promise.resolve();
  #requests;
  #problem;
  #stopped = false;

  /**
   * Create the queue of an image. After each gesture, each function of `owed`, by the kind of requests, does the pending
   * ones; `problem(error or null)` shows errors.
   */
  constructor(owed, problem) {
    const show = () => problem(Object.values(this.#requests).find(({ error }) => error)?.error ?? null);
    this.#requests = Object.fromEntries(Object.entries(owed).map(([kind, each]) => [kind, new Requests(each, show)]));
    this.#problem = problem;
  }

  /** Return a promise for the end of the running requests of a kind, or null; see `Requests`. */
  ended(kind) {
    return this.#requests[kind].ended;
  }

  /** Run `change()` when its turn has come and `ready()` is resolved; return its value. */
  run(change, ready = () => null) {
    const turn = async () => {
      if (!this.#stopped) await ready();
      if (this.#stopped) return undefined;
      const changed = change();
      for (const each of Object.values(this.#requests)) each.start();
      return changed;
    };
    this.#queue = this.#queue.then(turn).catch((error) => this.#problem(error));
    return this.#queue;
  }

  /** End the queue: waiting gestures aren't run, and nothing is retried. */
  stop() {
    this.#stopped = true;
    for (const each of Object.values(this.#requests)) each.stop();
  }
}
