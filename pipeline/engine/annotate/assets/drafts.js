// Drafts in the browser's IndexedDB: the work on an image, stored after each gesture until its submission is saved.

const NAME = "segmint-annotate";
const STORE = "drafts";

/**
 * Return the key of a draft. An annotator has one per image, and the draft records the state it started from. Two
 * datasets with the same name have different keys, unless one is a copy of the other.
 */
export const draftKey = ({ key }, image, annotator) => JSON.stringify([key, image, annotator]);

export class Drafts {
  #opened = null;
  #here = new Map(); // {draft, shared} by key: drafts that aren't in the database, or not yet
  shared = false; // whether another window keeps the image's draft, so that this one stays in memory

  /** Return the draft with a key, or undefined. */
  async read(key) {
    return this.#here.has(key) ? structuredClone(this.#here.get(key).draft) : this.stored(key);
  }

  /** Return the draft in the database, from any window. */
  stored(key) {
    return this.#request("readonly", (store) => store.get(key));
  }

  /** Return whether only this window has a draft, because another one keeps its own; without a key, for any image. */
  isOnlyHere(key = null) {
    return [...this.#here].some(([each, { shared }]) => shared && (key === null || each === key));
  }

  /** Store a draft, replacing the previous one. Throws if the browser stores nothing. */
  async write(key, draft) {
    const here = { draft, shared: this.shared };
    this.#here.set(key, here);
    if (this.shared) return;
    await this.#request("readwrite", (store) => store.put(draft, key));
    if (this.#here.get(key) === here) this.#here.delete(key);
  }

  async remove(key) {
    this.#here.delete(key);
    if (!this.shared) await this.#request("readwrite", (store) => store.delete(key));
  }

  /** Run a request without waiting for earlier ones, because the page may be closing; the browser keeps their order. */
  async #request(mode, act) {
    const database = await this.#open();
    return new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const request = act(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error ?? request.error);
      transaction.commit(); // else leaving the page before `request` is done would roll it back
    });
  }

  #open() {
    this.#opened ??= new Promise((resolve, reject) => {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE);
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
    return this.#opened;
  }
}
