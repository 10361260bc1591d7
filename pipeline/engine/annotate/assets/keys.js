// Key bindings in one table, and the dialog that shows them.

import { byId, make } from "./dom.js";

const BUTTONS = "button, a[href], summary, input, select, textarea";
const OWN = new Set([" ", "Enter", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]); // keys for focused controls

/** Groups of [keys, description, name of the action]. */
export const KEYS = [
  ["Tools", [
    [["c"], "Points: click the object; right-click, Alt, or Shift for background", "tool:points"],
    [["t"], "Points: switch clicks between foreground and background", "flip"],
    [["r"], "Box: drag around the object", "tool:box"],
    [["b"], "Brush", "tool:brush"],
    [["e"], "Eraser", "tool:eraser"],
    [["q", "["], "Smaller brush", "smaller"],
    [["w", "]"], "Larger brush", "larger"],
    [["v"], "Select a mask to correct it", "tool:select"],
    [["g"], "Move the picture; or hold the middle button or Space, or use two fingers", "tool:move"],
  ]],
  ["This mask", [
    [["1"], "Whole", "part:whole"],
    [["2"], "Part", "part:part"],
    [["3"], "Subpart", "part:subpart"],
    [["0"], "The best of the three", "part:auto"],
    [["Enter"], "Accept", "accept"],
    [["Escape"], "Cancel", "cancel"],
    [["Delete", "Backspace"], "Delete", "remove"],
    [["/"], "Set the label", "label"],
    [["k"], "Save a cutout of it as a PNG", "cutout"],
    [["y"], "Replace the mask that was already here", "replace"],
    [["l"], "Unlock a locked mask", "unlock"],
    [[","], "Select the previous mask", "before"],
    [["."], "Select the next mask", "after"],
    [["u"], "Go out to the mask around the selected one", "out"],
    [["i"], "Go in to a mask inside the selected one", "in"],
    [["Ctrl+z"], "Undo", "undo"],
    [["Ctrl+Shift+z", "Ctrl+y"], "Redo", "redo"],
  ]],
  ["Image", [
    [["s", "n"], "Save, even if unchanged, and go to the next image", "save"],
    [["Shift+s"], "Skip this image", "skip"],
    [["Shift+n"], "Back to the previous image", "back"],
    [["j"], "Go to an image by its image_id or number", "go"],
    [["d"], "Toggle whether everything prominent is annotated", "complete"],
  ]],
  ["View", [
    [["h"], "Hide or show the masks", "hide"],
    [["Shift+h"], "Hide the selected mask; without one, show all again", "hide-mask"],
    [["o"], "Stronger masks", "stronger"],
    [["Shift+o"], "Fainter masks", "fainter"],
    [["+", "="], "Zoom in", "zoom:in"],
    [["-", "_"], "Zoom out", "zoom:out"],
    [["f"], "Show the whole picture", "zoom:fit"],
    [["?"], "These keys", "help"],
  ]],
  ["Without a mouse", [
    [["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"], "Move the crosshair by a pixel", "cross:1"],
    [["Shift+Arrows"], "Move it by ten pixels", "cross:10"],
    [["Ctrl+Arrows"], "Move it by a hundred pixels", "cross:100"],
    [["p", " "], "Foreground point; with other tools, press, and press again to release", "press"],
    [["x"], "Background point", "press:other"],
  ]],
];

const ACTIONS = new Map(KEYS.flatMap(([, rows]) => rows.flatMap(([keys, , name]) => keys.map((key) => [key, name]))));
for (const arrow of ["Left", "Right", "Up", "Down"]) {
  ACTIONS.set(`Shift+Arrow${arrow}`, "cross:10");
  ACTIONS.set(`Ctrl+Arrow${arrow}`, "cross:100");
}

/** Return the action's name for a key event, or null. Keys that the focused control uses are left to it. */
export function actionOf(event) {
  const written = event.key.length === 1 && (event.getModifierState?.("AltGraph") ?? false); // as [ on many keyboards
  if ((event.altKey && !written) || event.isComposing) return null;
  const focused = event.target.closest?.(BUTTONS);
  if (focused && OWN.has(event.key)) return null;
  if (focused?.matches("input:not([type=range], [type=checkbox]), select, textarea")) return null;
  const letter = event.key.length === 1;
  const shift = event.shiftKey && (!letter || /[a-z]/i.test(event.key)) ? "Shift+" : "";
  const key = letter ? event.key.toLowerCase() : event.key;
  return ACTIONS.get(`${(event.ctrlKey && !written) || event.metaKey ? "Ctrl+" : ""}${shift}${key}`) ?? null;
}

const NAMES = { " ": "Space", ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc", Delete: "Del" };

/** Open or close the dialog. */
export function toggleHelp() {
  const help = byId("help");
  byId("help-keys").replaceChildren(...KEYS.map(section));
  if (help.open) help.close();
  else help.showModal();
}

function section([title, rows]) {
  const body = rows.map(([keys, text]) => {
    const labels = keys.flatMap((key, place) => [...(place ? [" or "] : []), make("kbd", {}, labelOf(key))]);
    return make("tr", {}, make("th", { scope: "row" }, ...labels), make("td", {}, text));
  });
  return make("section", {}, make("h3", {}, title), make("table", {}, make("tbody", {}, ...body)));
}

function labelOf(key) {
  const parts = key.length > 1 ? key.split("+").filter(Boolean) : [key];
  return parts.map((part) => NAMES[part] ?? (part.length === 1 ? part.toUpperCase() : part)).join(" + ");
}
