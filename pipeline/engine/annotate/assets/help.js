// Dialog with all keys, from the table in keys.js.

import { byId, make } from "./dom.js";
import { KEYS, labelOf } from "./keys.js";

/** Fill the dialog. */
export function setUpHelp() {
  byId("help-keys").replaceChildren(...KEYS.map(section));
  byId("help-close").addEventListener("click", () => byId("help").close());
}

export function toggleHelp() {
  const help = byId("help");
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
