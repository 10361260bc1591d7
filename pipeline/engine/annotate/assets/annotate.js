// Entry point of the annotator page: connects keys and buttons with the parts of the page.

import { setUpAddresses } from "./addresses.js";
import { Crosshair } from "./crosshair.js";
import { DoubleQuestion } from "./double.js";
import { Editor } from "./editor.js";
import { byId, showProblem } from "./dom.js";
import { MaskCanvas } from "./canvas.js";
import { Guide } from "./guide.js";
import { actionOf, toggleHelp } from "./keys.js";
import { LabelDialog, printable } from "./label.js";
import { Nesting } from "./levels.js";
import { MaskList } from "./list.js";
import { Pages } from "./pages.js";
import { Pointers } from "./pointers.js";
import { setUpTable } from "./progress.js";
import { actAs, getJson, untilHeard } from "./server.js";
import { Tools } from "./tools.js";
import { View } from "./view.js";

class Annotator {
  #annotator;
  #actions; // functions by the names in keys.js and in `data-action`

  constructor(session) {
    this.#annotator = session.annotator;
    this.editor = new Editor(session, {
      changed: () => {
        this.view.show();
        this.double.show();
      },
      accepted: (key) => this.double.ask(key),
      opened: (image) => this.#opened(image),
      saved: (id, ours) => this.pages.saved(id, ours ? "Saved." : ""),
      lost: (winner) => this.#lost(winner),
      changedMeanwhile: (id) => this.pages.open(id),
      shared: (shared) => (byId("shared").hidden = !shared),
      say: (text) => this.say(text),
      problem: showProblem,
    });
    this.pages = new Pages(this.editor, (text) => this.say(text));
    this.pointers = new Pointers(() => this.tools);
    this.maskCanvas = new MaskCanvas(this.pointers.drags, () => this.#fills());
    this.tools = new Tools(this.editor, this.maskCanvas, () => this.view.showTools(this.tools));
    this.double = new DoubleQuestion(this.editor, this.maskCanvas);
    this.list = new MaskList(this.editor, this.maskCanvas);
    this.labels = new LabelDialog(this.editor);
    // A correction is where the mask was that it corrects.
    const idOf = ({ id, parent }) => id ?? parent;
    this.nesting = new Nesting(() => this.editor.state.items, idOf, ({ key }) => this.editor.select(key));
    this.view = new View(this.editor, this.maskCanvas, this.list, this.nesting, session.output_order);
    this.cross = new Crosshair(this.maskCanvas, this.tools);
    this.pointers.listen(this.maskCanvas, (place) => this.#hover(place));
    this.guide = new Guide(this.editor, session.hint_s);
    this.view.showTools(this.tools);
    this.#actions = this.#allActions();
    this.#listen();
  }

  say(text) {
    byId("notice").textContent = text;
  }

  #listen() {
    document.addEventListener("keydown", (event) => this.#key(event));
    document.addEventListener("keyup", (event) => this.#keyUp(event));
    document.addEventListener("click", (event) => this.#click(event));
    byId("opacity").addEventListener("input", () => this.#fade());
    byId("overlay").addEventListener("input", () => this.#fade());
    byId("clean").addEventListener("input", () => (this.editor.cleans = byId("clean").checked));
    for (const name of ["complete", "comment", "flag"]) byId(name).addEventListener("input", () => this.#note());
    addEventListener("blur", () => (this.pointers.panning = false));
    this.#fade();
  }

  #opened(image) {
    this.tools.cancel(); // a stroke that was started on the previous image
    this.pages.opened(image.id);
    this.nesting.open(image.masks);
    this.cross.hide();
    this.double.keep();
    this.view.open(image, this.pages.left);
    const { complete, comment, flag } = this.editor.note;
    [byId("complete").checked, byId("comment").value, byId("flag").checked] = [complete, comment ?? "", flag];
    byId("note-box").open = comment !== null || flag;
    byId("returned").hidden = !image.returned;
    if (image.returned) byId("returned").textContent = `Returned by ${image.returned.by}: ${image.returned.comment}`;
    if (!document.activeElement?.closest("button, input, a")) this.maskCanvas.stage.element.focus({ preventScroll: true });
  }

  /** Take over what was entered about the image. */
  #note() {
    const comment = byId("comment").value.split("\n").map(printable).join("\n").trim();
    this.editor.setNote({ complete: byId("complete").checked, comment: comment || null, flag: byId("flag").checked });
  }

  #lost({ annotator }) {
    byId("lost-text").textContent =
      annotator === this.#annotator
        ? "You saved this image in another window, and its masks are shown. Undo restores what you had here."
        : `${annotator} saved this image first. Their masks are shown, and yours can't be saved. ` +
          "Undo restores what you had.";
    byId("lost").hidden = false;
  }

  #fade() {
    const { style, classList } = this.maskCanvas.stage.element;
    style.setProperty("--opacity", String(byId("opacity").value / 100));
    classList.toggle("bare", !byId("overlay").checked);
  }

  /** Return whether the mask under the pointer is filled: always with Select, else while none is in progress. */
  #fills() {
    const { active } = this.editor.state;
    return this.tools?.name === "select" || (active === null && !["brush", "eraser"].includes(this.tools?.name));
  }

  #hover(place) {
    const draws = ["brush", "eraser"].includes(this.tools.name) && place !== null;
    this.maskCanvas.mark({ brush: draws ? [...place, this.tools.radius] : null });
  }

  #key(event) {
    if (document.querySelector("dialog[open]")) return;
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

  /** Space pans the image while held; a short press places a point at the crosshair. */
  #keyUp(event) {
    if (event.key !== " " || !this.pointers.panning) return;
    this.pointers.panning = false;
    byId("stage").classList.remove("panning");
    if (!this.pointers.panned) this.act("press");
  }

  #click(event) {
    const button = event.target.closest("[data-action]");
    if (button === null) return;
    if (button.matches("a")) event.preventDefault();
    this.act(button.dataset.action);
    // After a mouse click, return the focus to the image, so that it receives the next key.
    if (event.detail > 0 || "tool" in button.dataset) this.maskCanvas.stage.element.focus({ preventScroll: true });
  }

  /** Run the action of a key or button, such as "undo" or "tool:brush". */
  act(action) {
    this.say("");
    const [name, what] = action.split(":");
    this.#actions[name](what);
  }

  #allActions() {
    const { editor, tools, cross, maskCanvas, list, labels, nesting, pages, double } = this;
    const { zoom } = maskCanvas.stage;
    const fit = { in: () => zoom.zoomIn(), out: () => zoom.zoomOut(), fit: () => zoom.reset() };
    const opacity = (step) => {
      byId("opacity")[step > 0 ? "stepUp" : "stepDown"]();
      this.#fade();
    };
    return {
      tool: (name) => tools.use(name),
      flip: () => tools.flip(),
      smaller: () => tools.resize(-1),
      larger: () => tools.resize(1),
      part: (part) => editor.part(part),
      accept: () => editor.accept(),
      cancel: () => (tools.busy ? tools.cancel() : editor.cancel()),
      remove: () => editor.remove(),
      label: () => labels.open(),
      cutout: () => editor.counts && maskCanvas.saveCutout(editor.counts, editor.image),
      replace: () => double.replace(),
      keep: () => double.keep(),
      unlock: () => editor.unlock(),
      before: () => list.step(-1),
      after: () => list.step(1),
      out: () => nesting.stepOut(editor.selected),
      in: () => nesting.stepIn(editor.selected),
      undo: () => editor.undo(),
      redo: () => editor.redo(),
      save: () => editor.save(),
      skip: () => pages.skip(),
      back: () => pages.back(),
      go: () => pages.ask(),
      picture: () => maskCanvas.stage.element.focus({ preventScroll: true }),
      complete: () => byId("complete").click(),
      hide: () => byId("overlay").click(),
      "hide-mask": () => list.hide(editor.selected),
      stronger: () => opacity(1),
      fainter: () => opacity(-1),
      zoom: (way) => fit[way](),
      help: () => toggleHelp(),
      close: () => document.querySelector("dialog[open]").close(),
      press: (button) => cross.press(button === "other"),
    };
  }
}

async function begin() {
  const session = await untilHeard(() => getJson("/api/session"), showProblem);
  actAs(session.annotator);
  setUpAddresses(session);
  setUpTable(session);
  byId("dataset-name").textContent = session.dataset.name;
  byId("dataset-name").title = session.dataset.digest ?? "";
  byId("annotator").textContent = session.annotator;
  const wide = matchMedia("(min-width: 60rem)");
  const open = () => (byId("lists-box").open = wide.matches);
  wide.addEventListener("change", open);
  open();
  await new Annotator(session).pages.route();
}

begin().catch(showProblem);
