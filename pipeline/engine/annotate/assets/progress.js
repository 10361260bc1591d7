// Progress page: the submissions so far by annotator, the agreement of double assignments, and the owner's table of all
// images, with a dialog that shows a submission and returns it to its annotator.

import { byId, counted, make, showProblem, whole } from "./dom.js";
import { drawMasks } from "./mask.js";
import { getJson, postJson } from "./server.js";
import { itemsOf } from "./submission.js";

const LONG_SIDE = 1200; // pixels of the drawn masks
const SHOWN = ["", "open", "in progress", "submitted", "returned", "merged", "flagged"];
let turn = 0; // counts the requested parts
let next = null; // first rank of the next part
let shown = null; // submission in the dialog

export function setUpTable({ owner }) {
  byId("images").hidden = !owner;
  byId("images-show").append(...SHOWN.map((value) => make("option", { value })));
  for (const name of ["show", "person"]) byId(`images-${name}`).addEventListener("change", () => load());
  byId("images-more").addEventListener("click", () => load(next));
  byId("sent-overlay").addEventListener("input", ({ target }) => (byId("sent-masks").hidden = !target.checked));
  byId("return-form").addEventListener("submit", (event) => {
    event.preventDefault();
    giveBack();
  });
}

/** Load and show the progress. */
export async function showProgress() {
  const { images, submitted, masks, annotators, agreement } = await getJson("/api/progress");
  byId("progress-count").textContent =
    `${whole(submitted)} of ${counted(images, "image")} saved, with ${counted(masks, "mask")} made or corrected.`;
  const bar = byId("progress-bar");
  [bar.max, bar.value] = [Math.max(1, images), submitted];
  byId("progress-rows").replaceChildren(...annotators.map(annotatorRow));
  byId("agreement").textContent = agreed(agreement);
  await showTable();
}

function annotatorRow({ name, images, masks, seconds_a_mask: seconds }) {
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

/** Show the table's rows from the rank `start`, if this page is the owner's. */
async function showTable(start = 0) {
  if (byId("images").hidden) return;
  const mine = ++turn;
  const [show, person] = [byId("images-show"), byId("images-person")];
  const asked = Object.entries({ show: show.value, person: person.value, start }).filter(([, value]) => value !== "");
  const { rows, annotators, counts, ...found } = await getJson(`/api/table?${new URLSearchParams(asked)}`);
  if (mine !== turn) return;
  next = found.next;
  byId("images-more").hidden = next === null;
  if (start === 0) byId("images-rows").replaceChildren();
  byId("images-rows").append(...rows.map(row));
  for (const option of show.options) option.text = `${option.value || "all"}${inBrackets(counts[option.value])}`;
  const people = [...new Set([...annotators, person.value])].filter(Boolean);
  const options = people.map((name) => make("option", { value: name, selected: name === person.value }, name));
  person.replaceChildren(make("option", { value: "" }, "everyone"), ...options);
  byId("time-left").textContent = timeLeft(found);
}

const inBrackets = (count) => (count ? ` (${whole(count)})` : "");

const load = (start) => showTable(start).catch(showProblem);

function timeLeft({ left, timed, seconds }) {
  const text = `${counted(left, "submission")} to go.`;
  if (seconds === null) return `${text} Too few images were timed to estimate how long that takes (n = ${timed}).`;
  const hours = ((left * seconds) / 3600).toFixed(1);
  return `${text} That takes about ${hours} hours, at a mean of ${seconds.toFixed(0)} seconds per image (n = ${whole(timed)}).`;
}

function row({ image, name, assignment, n, state, annotator, masks, seconds, flag, comment, returned }) {
  const text = assignment ? `${name} (second)` : name;
  const head = n ? make("button", { type: "button", onclick: () => look(image, assignment) }, text) : text;
  const texts = [state, annotator ?? "–", n ? whole(masks) : "–", n ? seconds.toFixed(0) : "–"];
  const said = [flag ? make("span", { className: "badge" }, "Needs a look") : "", ` ${returned?.comment ?? comment ?? ""}`];
  const cells = [...texts.map((text) => [text]), said].map((parts) => make("td", {}, ...parts));
  return make("tr", {}, make("th", { scope: "row" }, head), ...cells);
}

async function look(image, assignment) {
  try {
    showSubmission(await getJson(`/api/images/${image}/assignments/${assignment}`));
    byId("return-comment").value = "";
    byId("sent").showModal();
  } catch (error) {
    showProblem(error);
  }
}

function showSubmission(found) {
  shown = found;
  const { image, name, annotator, state, n, comment, flag, returned } = found;
  byId("sent-title").textContent = `${name} by ${annotator}`;
  const said = [`Submission ${n}: ${state}`, flag && "Needs a look", comment && `${annotator}: ${comment}`];
  const lines = [...said, returned && `Returned by ${returned.by}: ${returned.comment}`].filter(Boolean);
  byId("sent-about").replaceChildren(...lines.map((line) => make("p", {}, line)));
  byId("sent-picture").src = `/images/${image}.jpg`;
  byId("return-form").hidden = state !== "submitted";
  byId("return-said").textContent = "";
  const masks = itemsOf(found).map(({ counts }) => ({ size: found.size, counts }));
  drawMasks(byId("sent-masks"), masks, LONG_SIDE);
}

async function giveBack() {
  const { image, assignment, n, annotator } = shown;
  const body = { n, comment: byId("return-comment").value.trim() };
  try {
    showSubmission(await postJson(`/api/images/${image}/assignments/${assignment}`, body));
    byId("return-said").textContent = `Returned to ${annotator}.`;
    load();
  } catch (error) {
    byId("return-said").textContent = error.message;
  }
}
