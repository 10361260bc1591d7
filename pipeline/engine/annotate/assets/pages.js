// The queue and the location: the open image and the visible page. The location's hash is `#image/12`, `#progress`, or
// empty for the next image. Requests without a response are retried. A dialog goes to an image by its name or number.

import { byId, showProblem } from "./dom.js";
import { showProgress } from "./progress.js";
import { getJson, postJson, untilHeard } from "./server.js";

const IMAGE = /^#image\/(\d+)$/;
const PAGES = ["work", "done", "progress"];

export class Pages {
  #editor;
  #say;
  #shown = null; // id of the open image
  #turn = 0; // counts the locations shown
  #visited = []; // ids of the images opened before it
  #after = null; // image after which the page without one looks again
  left = null; // images left in the queue, if known

  constructor(editor, say) {
    this.#editor = editor;
    this.#say = say;
    byId("look-again").addEventListener("click", () => this.next(this.#after));
    byId("lost-next").addEventListener("click", () => this.next(this.#shown));
    byId("go-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#find(byId("go-text").value);
    });
    addEventListener("hashchange", () => this.route());
  }

  /** Show the page for the location. */
  async route() {
    const id = Number(IMAGE.exec(location.hash)?.[1] ?? 0);
    const turn = ++this.#turn;
    if (location.hash === "#progress") {
      this.#show("progress");
      return untilHeard(showProgress, showProblem, () => turn === this.#turn).catch(() => {});
    }
    this.#show("work");
    if (id === 0) return this.next(null);
    if (id === this.#shown && this.#editor.image !== null) return undefined;
    return this.open(id);
  }

  /** Open an image, or reopen it. */
  async open(id) {
    const turn = ++this.#turn;
    try {
      await untilHeard(() => this.#editor.open(id), showProblem, () => turn === this.#turn);
    } catch {
      this.#without("Can't open this image", "Next image", id);
    }
  }

  /** Open the next image after one; with null, the image already leased to the annotator, or the first. */
  async next(after, said = "") {
    this.#editor.close();
    const turn = ++this.#turn;
    const isWanted = () => turn === this.#turn; // the location hasn't changed meanwhile
    const body = after === null ? {} : { after };
    let found;
    try {
      found = await untilHeard(() => postJson("/api/next", body), showProblem, isWanted);
    } catch {
      return this.#without("No image from the server", "Try again", after);
    }
    if (!isWanted()) return undefined;
    this.left = found.left;
    this.#say(said);
    if (found.image === null) return this.#without("No images left", "Check again", null);
    const address = `#image/${found.image}`;
    if (location.hash === address) return this.open(found.image);
    if (IMAGE.test(location.hash)) location.hash = address; // which opens it
    else location.replace(address);
    return undefined;
  }

  /** Record that an image is open. */
  opened(id) {
    if (this.#shown !== null && this.#shown !== id) this.#visited.push(this.#shown);
    this.#shown = id;
    byId("lost").hidden = true;
    if (IMAGE.test(location.hash)) this.#show("work");
  }

  /** Continue after an image was saved; if the progress page is shown, it stays. */
  saved(id, said) {
    if (location.hash !== "#progress") return this.next(id, said);
    this.#editor.close();
    this.#shown = null;
    byId("to-work").href = "#";
    return this.#say(said);
  }

  back() {
    const id = this.#visited.pop();
    if (id === undefined) return this.#say("This is the first image you opened.");
    this.#shown = null; // going back doesn't add it to the visited images
    location.hash = `#image/${id}`;
    return undefined;
  }

  skip() {
    const id = this.#shown;
    if (id === null) return;
    postJson(`/api/images/${id}/release`).catch(() => {});
    this.next(id, "Skipped. A draft is kept.");
  }

  /** Ask for an image to open. */
  ask() {
    byId("go-problem").textContent = "";
    byId("go").showModal();
    byId("go-text").select();
  }

  async #find(text) {
    try {
      const { image } = await getJson(`/api/find?image=${encodeURIComponent(text)}`);
      if (byId("go").open) location.hash = `#image/${image}`;
      byId("go").close();
    } catch (error) {
      byId("go-problem").textContent = error.message;
    }
  }

  #show(name) {
    for (const page of PAGES) byId(page).hidden = page !== name;
    byId("to-work").hidden = name === "work";
    byId("to-work").href = this.#shown === null ? "#" : `#image/${this.#shown}`;
    byId("to-progress").hidden = name === "progress";
    byId("skip").hidden = name !== "work";
    document.body.dataset.page = name;
    if (name !== "work") this.#editor.watch.pause();
  }

  /** Show that there is no image; the button looks for the next one after `after`. */
  #without(title, button, after) {
    byId("done-title").textContent = title;
    byId("done-text").hidden = after !== null || button !== "Check again";
    byId("look-again").textContent = button;
    this.#after = after;
    this.#shown = null;
    this.#show("done");
  }
}
