// Lock between an annotator's windows with the same image: the first one keeps the draft.

const PATIENCE_MS = 1500; // for a window that is closing or reloading

export class WindowLock {
  #key = null; // of the image that this window has locked
  #leave = () => {};

  /** Return whether this window has locked the image with a key, so that no other window has. */
  has(key) {
    return key === this.#key;
  }

  /**
   * Release the previous image and return whether this window has locked the one with a key. False if another window
   * has it, or if yet another image was requested meanwhile. `freed()` is called if this window gets the lock later.
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
      return asked.catch(() => giveUp.signal.aborted || held()); // a browser without locks for this page
    });
  }
}
