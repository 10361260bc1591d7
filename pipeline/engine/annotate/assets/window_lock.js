// Windows of one annotator that have the same image open: the first keeps the draft, others are told.

const PATIENCE_MS = 1500; // for a window that is being closed or reloaded

export class WindowLock {
  #key = null; // of the image that this window has
  #leave = () => {};

  /** Whether this window has the image with a key: no other one has it then. */
  has(key) {
    return key === this.#key;
  }

  /**
   * Leaves the image before, and returns whether this window has the one with a key; false if another window has it, or
   * yet another image was taken meanwhile. `freed()` is called if this window gets it later.
   */
  take(key, freed) {
    if (this.has(key)) return Promise.resolve(true);
    this.#leave();
    return new Promise((known) => {
      const giveUp = new AbortController();
      let isLate = false;
      const later = () => {
        isLate = true;
        known(false);
      };
      const late = setTimeout(later, PATIENCE_MS);
      const left = new Promise((leave) => {
        this.#leave = () => {
          this.#key = null;
          clearTimeout(late);
          giveUp.abort();
          known(false);
          leave();
        };
      });
      const held = () => {
        this.#key = key;
        clearTimeout(late);
        if (isLate) freed();
        else known(true);
        return left;
      };
      if (!navigator.locks) return held(); // a page without HTTPS
      const asked = navigator.locks.request(`segmint-annotate ${key}`, { signal: giveUp.signal }, held);
      return asked.catch(() => giveUp.signal.aborted || held()); // a browser that has no locks for this page
    });
  }
}
