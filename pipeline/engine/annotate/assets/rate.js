// Rating page: shows one mask at a time, in random order, with nothing that reveals its source.

import { setUpAddresses } from "./addresses.js";
import { byId, make, showProblem, whole } from "./dom.js";
import { Views } from "./rate_views.js";
import { actAs, getJson, postJson, putJson, untilHeard } from "./server.js";
import { Stopwatch } from "./timing.js";

const TICK_MS = 500;
const TEN_MS = 700; // time to type the 0 of 10 after the 1

/** Scale of the SAM paper, Appendix G: [lowest, highest, a word, its meaning]. */
const SCALE = [
  [1, 1, "no object", "You can't tell what the mask shows."],
  [2, 4, "huge errors", "The object is mostly clear. Large parts are missing or wrong, or the boundary is far off."],
  [5, 6, "major errors", "The boundary is mostly right. An important part is missing or belongs to another object."],
  [7, 9, "small errors", "Errors are small and rare."],
  [10, 10, "no errors", "No visible errors."],
];

const views = new Views();
let watch = null;
let mask = null; // server's response for the shown mask
let rated = []; // indices in the order that were rated here, latest last
let busy = false;
let one = 0; // timer of a 1 that may become a 10

setUp();
begin();

function setUp() {
  byId("scores").append(...SCALE.map(group));
  byId("words").append(...SCALE.flatMap(([low, high, , text]) => [make("dt", {}, range(low, high)), make("dd", {}, text)]));
  for (const id of ["undo", "undo-done"]) byId(id).addEventListener("click", () => undo());
  document.addEventListener("keydown", (event) => key(event));
  for (const name of ["pointerdown", "pointermove", "keydown", "wheel"]) {
    document.addEventListener(name, () => watch?.input(), { capture: true, passive: true });
  }
  setInterval(tick, TICK_MS);
}

function group([low, high, word]) {
  const scores = Array.from({ length: high - low + 1 }, (_, place) => low + place);
  const buttons = scores.map((score) => {
    const button = make("button", { type: "button", value: String(score) }, String(score));
    button.setAttribute("aria-keyshortcuts", String(score % 10));
    button.addEventListener("click", () => rate(score));
    return button;
  });
  const row = make("div", { className: "keys" }, ...buttons);
  const box = make("div", { className: `of-${scores.length}` }, row, make("span", { id: `word-${low}` }, word));
  box.setAttribute("role", "group");
  box.setAttribute("aria-labelledby", `word-${low}`);
  return box;
}

function range(low, high) {
  return low === high ? String(low) : `${low} to ${high}`;
}

async function begin() {
  const session = await sure(() => getJson("/api/session"));
  actAs(session.annotator);
  setUpAddresses(session);
  byId("team").hidden = !session.owner;
  watch = new Stopwatch(session.idle_s);
  byId("dataset-name").textContent = session.dataset.name;
  await show(await sure(() => postJson("/api/rate/next")));
}

/** Retry a request until the server responds; an error response is shown and thrown. */
function sure(request) {
  return untilHeard(request, showProblem);
}

/** Show a mask, or that none remain. */
async function show(next) {
  mask = next.item === null ? null : next;
  const { done, total } = next;
  byId("rated-count").textContent = `${whole(done)} of ${whole(total)} rated`;
  byId("rate").hidden = mask === null;
  byId("done").hidden = mask !== null;
  if (mask === null) {
    byId("done-title").textContent = total === done ? "All masks are rated" : "No masks left to rate";
    byId("done-title").focus();
  } else {
    await views.open(mask);
    watch.reset();
  }
  for (const button of byId("scores").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(mask !== null && Number(button.value) === mask.score));
  }
  ready();
}

function ready() {
  for (const id of ["undo", "undo-done"]) byId(id).disabled = rated.length === 0;
  document.body.dataset.item = mask === null ? "" : String(mask.item);
}

/** Save a rating and show the next mask. */
async function rate(score) {
  noOne();
  if (busy || mask === null) return;
  busy = true;
  const { item, n } = mask;
  try {
    const seconds = Math.round(watch.image * 10) / 10;
    const { next } = await sure(() => putJson(`/api/rate/${item}/${n + 1}`, { score, seconds }));
    rated.push(item);
    say(`Rated ${score}.`);
    await show(next);
  } catch (error) {
    await refused(error);
  } finally {
    busy = false;
  }
}

/** Withdraw the last rating and show its mask again. */
async function undo() {
  if (busy || rated.length === 0) return;
  busy = true;
  const item = rated.pop();
  try {
    const { n } = await sure(() => getJson(`/api/rate/${item}`));
    await sure(() => putJson(`/api/rate/${item}/${n + 1}`, { score: null, seconds: 0 }));
    say("Rating undone.");
    await show(await sure(() => getJson(`/api/rate/${item}`)));
  } catch (error) {
    await refused(error);
  } finally {
    busy = false;
  }
}

/** Continue after an error response: the mask no longer exists, or was rated in another window. */
async function refused(error) {
  if (error.status !== 409 && error.status !== 410) return;
  say(error.message);
  await show(await sure(() => postJson("/api/rate/next")));
}

function say(text) {
  byId("notice").textContent = text;
}

function tick() {
  byId("clock").hidden = mask === null || watch === null;
  if (mask !== null && watch !== null) {
    byId("clock").textContent = `${Math.floor(watch.image)} s${watch.idle ? " · paused" : ""}`;
  }
}

function key(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.repeat || event.target.matches?.("input")) return;
  if (/^[0-9]$/.test(event.key)) digit(Number(event.key));
  else if (event.key === "z" || event.key === "Z") noOne() || undo();
  else if (event.key === "v" || event.key === "V") views.turn();
  else if (event.key === "Escape") views.choose(null);
  else return;
  event.preventDefault();
}

/** Rate by a digit. A 1 waits for a possible 0; any other digit typed then would be too early for the next mask. */
function digit(number) {
  if (busy || mask === null) return;
  if (one !== 0) {
    rate(number === 0 ? 10 : 1);
  } else if (number === 1) {
    say("1. Press 0 to make it 10.");
    one = setTimeout(() => rate(1), TEN_MS);
  } else {
    rate(number || 10);
  }
}

/** Cancel a waiting 1; return whether there was one. */
function noOne() {
  const waited = one !== 0;
  clearTimeout(one);
  one = 0;
  if (waited) say("");
  return waited;
}
