// Actions of keys and buttons, by their names in keys.js and in `data-action`.

import { byId } from "./dom.js";
import { askForImage } from "./go.js";
import { toggleHelp } from "./help.js";

/** Return a function that runs the action with a name such as "undo" or "tool:brush". */
export function actionsOf({ editor, tools, cross, maskCanvas, list, labels, nesting, pages, double, fade }) {
  const { zoom } = maskCanvas.stage;
  const fit = { in: () => zoom.zoomIn(), out: () => zoom.zoomOut(), fit: () => zoom.reset() };
  const opacity = (step) => {
    byId("opacity")[step > 0 ? "stepUp" : "stepDown"]();
    fade();
  };
  const actions = {
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
    go: () => askForImage(),
    picture: () => maskCanvas.stage.element.focus({ preventScroll: true }),
    complete: () => byId("complete").click(),
    hide: () => byId("overlay").click(),
    "hide-mask": () => list.hide(editor.selected),
    stronger: () => opacity(1),
    fainter: () => opacity(-1),
    zoom: (way) => fit[way](),
    help: () => toggleHelp(),
    press: (button) => cross.press(button === "other"),
  };
  return (action) => {
    const [name, what] = action.split(":");
    actions[name](what);
  };
}
