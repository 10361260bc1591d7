// Progress page: the submissions so far by annotator, and the agreement of double assignments.

import { byId, counted, make, whole } from "./dom.js";
import { getJson } from "./server.js";
import { showTable } from "./table.js";

/** Load and show the progress. */
export async function showProgress() {
  const { images, submitted, masks, annotators, agreement } = await getJson("/api/progress");
  byId("progress-count").textContent =
    `${whole(submitted)} of ${counted(images, "image")} saved, with ${counted(masks, "mask")} made or corrected.`;
  const bar = byId("progress-bar");
  [bar.max, bar.value] = [Math.max(1, images), submitted];
  byId("progress-rows").replaceChildren(...annotators.map(row));
  byId("agreement").textContent = agreed(agreement);
  await showTable();
}

function row({ name, images, masks, seconds_a_mask: seconds }) {
  const cells = [whole(images), whole(masks), seconds === null ? "–" : seconds.toFixed(1)];
  return make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((text) => make("td", {}, text)));
}

function agreed(agreement) {
  if (agreement === null) return "No image has been saved by two people yet.";
  const { images, pairs, mean_iou: iou } = agreement;
  const begun = `Two people saved ${counted(images, "image")}`;
  if (iou === null) return `${begun}, but none of their masks show the same object.`;
  return `${begun}. The ${counted(pairs, "pair")} of masks of the same object have a mean IoU of ${iou.toFixed(3)}.`;
}
