// Drafts in the browser's IndexedDB: the work on an image, kept after each gesture until its submission is saved.

const NAME = "segmint-annotate";
const STORE = "drafts";

/** The key of a draft: an annotator has one of an image, which says itself what it began with. */
export const draftKey = (dataset, image, annotator) => JSON.stringify([dataset, image, annotator]);

export class Drafts {
  #opened = null;
  #here = new Map(); // {draft, shared} by key: those that the browser does not have, or not yet
  shared = false; // whether another window keeps the draft of the image: then it is only kept here

  /** The draft with a key, or undefined. */
  async read(key) {
    return this.#here.has(key) ? structuredClone(this.#here.get(key).draft) : this.stored(key);
  }

  /** The draft that the browser has, whichever window wrote it. */
  stored(key) {
    return this.#request("readonly", (store) => store.get(key));
  }

  /** Whether there is a draft in this window alone, since another window kept its own; of any image without a key. */
  isOnlyHere(key = null) {
    return [...this.#here].some(([each, { shared }]) => shared && (key === null || each === key));
  }

  /** Keeps a draft in the place of the one before. Throws if the browser keeps nothing. */
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

  /** Waits for no request before, since the page may be gone by then: the browser does them in order. */
  async #request(mode, act) {
    const database = await this.#open();
    return new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const request = act(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error ?? request.error);
      transaction.commit(); // else a page that is left before `request` is answered takes it back
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
