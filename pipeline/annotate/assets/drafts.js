// Drafts in the browser's IndexedDB: the work on an image, kept after each gesture until its answer is saved.

const NAME = "segmint-annotate";
const STORE = "drafts";

/** The key of a draft. Another base, that is other masks or pixels of the image, is another draft. */
export const draftKey = (dataset, image, lane, annotator, base) =>
  JSON.stringify([dataset, image, lane, annotator, base]);

export class Drafts {
  #opened = null;
  #last = Promise.resolve();

  /** The draft with a key, or undefined. */
  async read(key) {
    await this.#last.catch(() => {});
    return this.#request("readonly", (store) => store.get(key));
  }

  /** Keeps a draft in the place of the one before. Writes are done in order; throws if the browser keeps nothing. */
  write(key, draft) {
    return this.#inOrder("readwrite", (store) => store.put(draft, key));
  }

  remove(key) {
    return this.#inOrder("readwrite", (store) => store.delete(key));
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
