// Starts the annotator: the queue, keys and buttons. The address is `#image/12`, `#progress`, or none for the next image.

import { actionsOf } from "./actions.js";
import { Crosshair } from "./crosshair.js";
import { Desk } from "./desk.js";
import { byId, showProblem } from "./dom.js";
import { Easel } from "./easel.js";
import { Guide } from "./guide.js";
import { setUpHelp } from "./help.js";
import { actionOf } from "./keys.js";
import { MaskList } from "./list.js";
import { Pointers } from "./pointers.js";
import { showProgress } from "./progress.js";
import { actAs, getJson, postJson } from "./server.js";
import { Tools } from "./tools.js";
import { View } from "./view.js";

const IMAGE = /^#image\/(\d+)$/;
const PAGES = ["work", "done", "progress"];

class Annotator {
  #left = null; // images in the queue, as far as known
  #shown = null; // the id of the image that is open
  #act;
  #turn = 0; // counts what the address showed
  #visited = []; // the ids of the images before it

  constructor(session) {
    this.desk = new Desk(session, {
      changed: () => this.view.show(),
      opened: (image) => this.#opened(image),
      saved: (id, ours) => this.#next(id, ours ? "Saved." : ""),
      lost: (winner) => this.#lost(winner),
      say: (text) => this.say(text),
      problem: showProblem,
    });
    this.pointers = new Pointers(() => this.tools);
    this.easel = new Easel(this.pointers.drags, () => this.tools?.name === "select");
    this.tools = new Tools(this.desk, this.easel, () => this.view.showTools(this.tools));
    this.list = new MaskList(this.desk, this.easel);
    this.view = new View(this.desk, this.easel, this.list);
    this.cross = new Crosshair(this.easel, this.tools);
    this.pointers.listen(this.easel, (place) => this.#hover(place));
    this.guide = new Guide(this.desk, session.hint_s);
    this.view.showTools(this.tools);
    const parts = { skip: () => this.#skip(), back: () => this.#back(), fade: () => this.#fade() };
    this.#act = actionsOf({ ...this, ...parts });
    this.#listen();
  }

  say(text) {
    byId("said").textContent = text;
  }

  #listen() {
    document.addEventListener("keydown", (event) => this.#key(event));
    document.addEventListener("keyup", (event) => this.#keyUp(event));
    document.addEventListener("click", (event) => this.#click(event));
    byId("opacity").addEventListener("input", () => this.#fade());
    byId("overlay").addEventListener("input", () => this.#fade());
    byId("complete").addEventListener("input", () => (this.desk.complete = byId("complete").checked));
    byId("lost-next").addEventListener("click", () => this.#next(this.#shown));
    byId("look-again").addEventListener("click", () => this.#next(null));
    addEventListener("hashchange", () => this.route().catch(showProblem));
    addEventListener("blur", () => (this.pointers.panning = false));
    this.#fade();
  }

  /** Shows what the address names. */
  async route() {
    this.#turn++;
    const id = Number(IMAGE.exec(location.hash)?.[1] ?? 0);
    const progress = location.hash === "#progress";
    this.#page(progress ? "progress" : "work");
    if (progress) return showProgress();
    if (id === 0) return this.#next(this.#shown);
    if (id === this.#shown && this.desk.image !== null) return this.view.show();
    return this.desk.open(id);
  }

  #page(name) {
    for (const page of PAGES) byId(page).hidden = page !== name;
    byId("to-work").hidden = name === "work";
    byId("to-work").href = this.#shown === null ? "#" : `#image/${this.#shown}`;
    byId("to-progress").hidden = name === "progress";
    byId("skip").hidden = name !== "work";
    document.body.dataset.page = name;
  }

  async #next(after, said = "") {
    this.desk.close();
    const turn = ++this.#turn;
    try {
      const { image, left } = await postJson("/api/next", after === null ? {} : { after });
      if (turn !== this.#turn) return undefined; // the address has changed meanwhile
      this.#left = left;
      showProblem(null);
      this.say(said);
      if (image === null) {
        this.#shown = null;
        return this.#page("done");
      }
      if (location.hash === `#image/${image}`) await this.desk.open(image);
      else if (IMAGE.test(location.hash)) location.hash = `#image/${image}`; // which opens it
      else location.replace(`#image/${image}`);
    } catch (error) {
      showProblem(error);
      this.#page("done");
    }
    return undefined;
  }

  #opened(image) {
    if (this.#shown !== null && this.#shown !== image.id) this.#visited.push(this.#shown);
    this.#shown = image.id;
    byId("lost").hidden = true;
    this.cross.hide();
    this.#page("work");
    this.view.open(image, this.#left);
    if (!document.activeElement?.closest("button, input, a")) this.easel.stage.element.focus({ preventScroll: true });
  }

  #lost({ annotator }) {
    byId("lost-text").textContent =
      `${annotator} saved this image before you: its masks are those of ${annotator}, and yours cannot be saved. ` +
      "Undo shows what you had.";
    byId("lost").hidden = false;
  }

  #back() {
    const id = this.#visited.pop();
    if (id === undefined) return this.say("This is the first image that you opened.");
    this.#shown = null; // it is not visited by going back
    location.hash = `#image/${id}`;
    return undefined;
  }

  #skip() {
    const id = this.#shown;
    if (id === null) return;
    postJson(`/api/images/${id}/release`).catch(() => {});
    this.#next(id, "Skipped. A draft of it is kept.");
  }

  #fade() {
    const { style, classList } = this.easel.stage.element;
    style.setProperty("--opacity", String(byId("opacity").value / 100));
    classList.toggle("bare", !byId("overlay").checked);
  }

  #hover(place) {
    const draws = ["brush", "eraser"].includes(this.tools.name) && place !== null;
    this.easel.mark({ brush: draws ? [...place, this.tools.radius] : null });
  }

  #key(event) {
    if (byId("help").open) return;
    const action = actionOf(event);
    if (action === null || (action !== "help" && byId("work").hidden)) return;
    event.preventDefault();
    if (event.key === " ") {
      if (!event.repeat) [this.pointers.panning, this.pointers.panned] = [true, false];
      byId("stage").classList.add("panning");
    } else if (event.key.startsWith("Arrow")) {
      this.cross.move(event.key, Number(action.split(":")[1]));
    } else if (!event.repeat || ["undo", "redo", "smaller", "larger"].includes(action)) {
      this.act(action);
    }
  }

  /** Space moves the picture while it is held; pressed alone it is a point at the crosshair. */
  #keyUp(event) {
    if (event.key !== " " || !this.pointers.panning) return;
    this.pointers.panning = false;
    byId("stage").classList.remove("panning");
    if (!this.pointers.panned) this.act("press");
  }

  #click(event) {
    const button = event.target.closest("[data-action]");
    if (button === null) return;
    this.act(button.dataset.action);
    // A click with the mouse leaves the focus on the picture, so that the next key is the picture's.
    if (event.detail > 0 || "tool" in button.dataset) this.easel.stage.element.focus({ preventScroll: true });
  }

  /** Does what a key or button is for. */
  act(action) {
    this.say("");
    this.#act(action);
  }
}

async function begin() {
  setUpHelp();
  const session = await getJson("/api/session");
  actAs(session.annotator);
  byId("dataset-name").textContent = session.dataset.name;
  byId("dataset-name").title = `${session.dataset.digest ?? ""}\n${session.annotator}`.trim();
  const wide = matchMedia("(min-width: 60rem)");
  const open = () => (byId("lists-box").open = wide.matches);
  wide.addEventListener("change", open);
  open();
  await new Annotator(session).route();
}

begin().catch(showProblem);
