// Keeps the draft of the image that is open, with the time on it, unless another window of the annotator does.

import { WindowLock } from "./window_lock.js";
import { Drafts } from "./drafts.js";

const KEEP_S = 5; // of time without a gesture, after which the draft gets it

export class Keeping {
  #drafts = new Drafts();
  #lock = new WindowLock();
  #made;
  #watch;
  #listeners;
  #turn = 0; // counts the drafts that were read
  #key = null; // of the draft that is kept
  #touched = false; // whether anything was done that another window's draft may not have
  #seconds = 0; // on the image that the draft has

  /**
   * `made()` is the draft of the work as it is, `watch` counts its seconds. `listeners` has what is called:
   * shared(whether another window has the image), freed(its draft or undefined, whether anything was done here) once
   * that one has not, failed().
   */
  constructor(made, watch, listeners) {
    this.#made = made;
    this.#watch = watch;
    this.#listeners = listeners;
  }

  /** Whether there is work that a reload would lose, since another window keeps the draft. */
  get isOnlyHere() {
    return this.#drafts.isOnlyHere();
  }

  /** The draft with a key, or undefined, once it is known whether another window keeps it. */
  async read(key) {
    const turn = ++this.#turn;
    const alone = await this.#lock.take(key, () => this.#free(turn));
    if (turn !== this.#turn) return undefined; // another one is read
    this.#drafts.shared = !alone;
    return this.#drafts.read(key).catch(() => undefined);
  }

  /** Begins with an image whose draft was read; `useless`: it is not needed. */
  begin(key, useless) {
    const { shared } = this.#drafts;
    const apart = this.#drafts.isOnlyHere(key);
    const freed = this.#lock.has(key) && (shared || apart); // since the draft was read, or before
    [this.#key, this.#touched, this.#seconds] = [key, apart && !useless, this.#watch.image];
    this.#drafts.shared = shared || freed;
    this.#listeners.shared(shared);
    if (useless) this.#drafts.remove(key).catch(() => {});
    if (freed) this.#free(this.#turn);
  }

  /** Keeps the draft, after a gesture. */
  keep() {
    if (this.#key === null) return;
    this.#touched = true;
    this.#write();
  }

  /** Gives the draft the time without a gesture, if it is over `least` seconds. */
  keepTime(least = KEEP_S) {
    if (this.#key === null || (this.#drafts.shared && !this.#touched)) return;
    if (this.#watch.image - this.#seconds > least) this.#write();
  }

  /** Ends with an image, and keeps the time on it. */
  leave() {
    this.keepTime(0);
    this.end();
  }

  /** Ends with an image; its draft stays as it is. */
  end() {
    this.#key = null;
  }

  /** Ends with an image whose draft is not needed any more. */
  drop() {
    if (this.#key !== null) this.#drafts.remove(this.#key).catch(() => {});
    this.end();
  }

  /** Looks at the draft that another window kept, before anything is written over it. */
  async #free(turn) {
    const isOpen = () => turn === this.#turn && this.#key !== null;
    if (!isOpen()) return; // `begin` does it
    const draft = await this.#drafts.stored(this.#key).catch(() => undefined);
    if (!isOpen()) return;
    this.#drafts.shared = false;
    this.#listeners.shared(false);
    this.#listeners.freed(draft, this.#touched);
  }

  #write() {
    const draft = this.#made();
    this.#seconds = draft.times.image;
    this.#drafts.write(this.#key, draft).catch(() => this.#listeners.failed());
  }
}
