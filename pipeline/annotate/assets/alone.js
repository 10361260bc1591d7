// Windows of one annotator that have the same image open: the first keeps the draft, others are told.

const PATIENCE_MS = 1500; // for a window that is being closed or reloaded

export class Alone {
  #leave = () => {};

  /** Begins with an image; `shared(true)` is called while another window has it, `shared(false)` once it has not. */
  take(key, shared) {
    this.#leave();
    if (!navigator.locks) return; // a page without HTTPS
    const giveUp = new AbortController();
    const late = setTimeout(() => shared(true), PATIENCE_MS);
    const left = new Promise((leave) => {
      this.#leave = () => {
        clearTimeout(late);
        giveUp.abort();
        leave();
      };
    });
    const held = () => {
      clearTimeout(late);
      shared(false);
      return left;
    };
    navigator.locks.request(`segmint-annotate ${key}`, { signal: giveUp.signal }, held).catch(() => {});
  }
}
