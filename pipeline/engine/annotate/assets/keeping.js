// Keeps the draft of the open image and the time spent on it, unless another of the annotator's windows does.

import { WindowLock } from "./window_lock.js";
import { Drafts } from "./drafts.js";

const KEEP_S = 5; // interval of saving the time when there are no gestures

export class Keeping {
  #drafts = new Drafts();
  #lock = new WindowLock();
  #made;
  #watch;
  #listeners;
  #turn = 0; // counts the drafts read
  #key = null; // of the kept draft
  #touched = false; // whether there is work that another window's draft may not contain
  #seconds = 0; // time on the image in the stored draft

  /**
   * Use `made()` for the current draft and `watch` for its seconds. Calls these `listeners`: shared(whether another
   * window has the image), freed(its draft or undefined, whether there is work here) when that window has left,
   * failed().
   */
  constructor(made, watch, listeners) {
    this.#made = made;
    this.#watch = watch;
    this.#listeners = listeners;
  }

  /** True if a reload would lose work because another window keeps the draft. */
  get isOnlyHere() {
    return this.#drafts.isOnlyHere();
  }

  /** Return the draft with a key, or undefined, once it is known whether another window keeps it. */
  async read(key) {
    const turn = ++this.#turn;
    const alone = await this.#lock.take(key, () => this.#free(turn));
    if (turn !== this.#turn) return undefined; // another draft is being read
    this.#drafts.shared = !alone;
    return this.#drafts.read(key).catch(() => undefined);
  }

  /** Start with an image whose draft was read; `useless` drafts are deleted. */
  begin(key, useless) {
    const { shared } = this.#drafts;
    const apart = this.#drafts.isOnlyHere(key);
    const freed = this.#lock.has(key) && (shared || apart); // after the draft was read, or before
    [this.#key, this.#touched, this.#seconds] = [key, apart && !useless, this.#watch.image];
    this.#drafts.shared = shared || freed;
    this.#listeners.shared(shared);
    if (useless) this.#drafts.remove(key).catch(() => {});
    if (freed) this.#free(this.#turn);
  }

  /** Keep the draft after a gesture. */
  keep() {
    if (this.#key === null) return;
    this.#touched = true;
    this.#write();
  }

  /** Store the time without gestures in the draft if it exceeds `least` seconds. */
  keepTime(least = KEEP_S) {
    if (this.#key === null || (this.#drafts.shared && !this.#touched)) return;
    if (this.#watch.image - this.#seconds > least) this.#write();
  }

  /** Stop with an image, and keep the time spent on it. */
  leave() {
    this.keepTime(0);
    this.end();
  }

  /** Stop with an image, leaving its draft unchanged. */
  end() {
    this.#key = null;
  }

  /** Stop with an image and delete its draft. */
  drop() {
    if (this.#key !== null) this.#drafts.remove(this.#key).catch(() => {});
    this.end();
  }

  /** Read the draft that another window kept, before anything overwrites it. */
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
