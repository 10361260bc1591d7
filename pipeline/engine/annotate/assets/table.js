// The owner's table of all images, and the dialog that shows a submission and returns it to its annotator.

import { byId, counted, make, showProblem, whole } from "./dom.js";
import { Mask, packed } from "./mask.js";
import { getJson, postJson } from "./server.js";
import { itemsOf } from "./submission.js";

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

/** Show the table's rows from the rank `start`, if this page is the owner's. */
export async function showTable(start = 0) {
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

function row({ image, assignment, n, state, annotator, masks, seconds, flag, comment, returned }) {
  const name = assignment ? `${image} (second)` : String(image);
  const head = n ? make("button", { type: "button", onclick: () => look(image, assignment) }, name) : name;
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
  const { image, annotator, state, n, comment, flag, returned } = found;
  byId("sent-title").textContent = `Image ${image} by ${annotator}`;
  const said = [`Submission ${n}: ${state}`, flag && "Needs a look", comment && `${annotator}: ${comment}`];
  const lines = [...said, returned && `Returned by ${returned.by}: ${returned.comment}`].filter(Boolean);
  byId("sent-about").replaceChildren(...lines.map((line) => make("p", {}, line)));
  byId("sent-picture").src = `/images/${image}.jpg`;
  byId("return-form").hidden = state !== "submitted";
  byId("return-said").textContent = "";
  paint(found);
}

function paint({ masks, submission, size }) {
  const canvas = byId("sent-masks");
  [canvas.height, canvas.width] = size;
  const image = new ImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  const thickness = Math.max(1, Math.round(Math.min(...size) / 400));
  const items = itemsOf({ masks, submission });
  const drawn = items.map(({ counts }, place) => new Mask({ segmentation: { size, counts } }, place));
  const area = ({ frame }) => frame.width * frame.height;
  for (const mask of drawn.sort((one, other) => area(other) - area(one))) {
    const [fill, line] = [90, 255].map((alpha) => packed(...mask.color, alpha));
    mask.paint(pixels, { left: 0, top: 0, width: canvas.width }, fill, line, thickness);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
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
