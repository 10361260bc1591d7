// Drafts in the browser's IndexedDB: the work on an image, kept after each gesture until its answer is saved.

const NAME = "segmint-annotate";
const STORE = "drafts";

/** The key of a draft: an annotator has one of an image, which says itself what it began with. */
export const draftKey = (dataset, image, annotator) => JSON.stringify([dataset, image, annotator]);

export class Drafts {
  #opened = null;
  #last = Promise.resolve();
  #here = null; // [key, draft]: the last one, for browsers that keep nothing
  shared = false; // whether another window keeps this draft: then it is only kept here

  /** The draft with a key, or undefined. */
  async read(key) {
    await this.#last.catch(() => {});
    if (this.#here?.[0] === key) return structuredClone(this.#here[1]);
    return this.#request("readonly", (store) => store.get(key));
  }

  /** Keeps a draft in the place of the one before. Writes are done in order; throws if the browser keeps nothing. */
  async write(key, draft) {
    this.#here = [key, draft];
    if (!this.shared) await this.#inOrder("readwrite", (store) => store.put(draft, key));
  }

  async remove(key) {
    this.#here = null;
    if (!this.shared) await this.#inOrder("readwrite", (store) => store.delete(key));
  }

  #inOrder(mode, act) {
    this.#last = this.#last.catch(() => {}).then(() => this.#request(mode, act));
    return this.#last;
  }

  async #request(mode, act) {
    const database = await this.#open();
    return new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const request = act(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error ?? request.error);
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
