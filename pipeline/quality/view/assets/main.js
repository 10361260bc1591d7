// Entry point of the viewer. The URL selects the grid (with filters in its query), an image (`#image/12`), or the
// rejected rows (`#rejected`).

import { get } from "./api.js";
import { byId, counted, showProblem } from "./dom.js";
import { asked, setUpFilters } from "./filters.js";
import { Grid } from "./grid.js";
import { ImagePage } from "./image_page.js";
import { RejectedPage } from "./rejected.js";

const IMAGE = /^#image\/(\d+)$/;
const REJECTED = /^#rejected(?:\/(\w+))?$/;

const grid = new Grid();
const imagePage = new ImagePage();
const rejectedPage = new RejectedPage();
let title = "segmint view";
let lastImage = null;

async function show() {
  showProblem(null);
  const image = IMAGE.exec(location.hash)?.[1];
  const rejected = REJECTED.exec(location.hash);
  byId("grid-page").hidden = byId("skip").hidden = image !== undefined || rejected !== null;
  byId("image-page").hidden = image === undefined;
  byId("rejected-page").hidden = rejected === null;
  if (image !== undefined) {
    lastImage = image;
    await imagePage.show(image, asked()).finally(() => {
      if (IMAGE.exec(location.hash)?.[1] === image) document.title = `${imagePage.name} · ${title}`;
    });
    return;
  }
  imagePage.leave();
  document.title = rejected === null ? title : `Rejected rows · ${title}`;
  if (rejected !== null) return rejectedPage.show(rejected[1]);
  await grid.begin();
  if (lastImage !== null) grid.focus(lastImage);
  lastImage = null;
}

async function begin() {
  const dataset = await get("/api/dataset");
  title = `${dataset.name} · segmint view`;
  imagePage.order = dataset.output_order;
  byId("dataset-name").textContent = dataset.name;
  byId("dataset-name").title = dataset.digest ? `${dataset.uri}\n${dataset.digest}` : dataset.uri;
  const findings = dataset.findings_elsewhere;
  byId("totals").textContent =
    `${counted(dataset.images, "image")}, ${counted(dataset.masks, "mask")}` +
    (findings ? `; ${counted(findings, "finding")} not about a single image` : "");
  byId("correct").hidden = !dataset.correctable;
  byId("rejected-link").hidden = dataset.kind !== "segmint";
  setUpFilters(dataset, () => grid.search().catch(showProblem));
  window.addEventListener("hashchange", () => show().catch(showProblem));
  await show();
}

/** Show a new one-time URL for another browser, ready to copy; a second click hides it. */
async function another() {
  const hidden = !byId("another-box").hidden;
  const field = byId("another-address");
  field.value = hidden ? "" : (await get("/api/address")).address;
  byId("another-box").hidden = hidden;
  byId("another").setAttribute("aria-expanded", String(!hidden));
  if (!hidden) field.select();
}

/** Start the annotator and go there, to the same image if one is shown. */
async function correct() {
  const button = byId("correct");
  const caption = button.textContent;
  button.disabled = true;
  button.textContent = "Starting the annotator…";
  try {
    const { address } = await get("/api/annotator");
    location.assign(address + (IMAGE.test(location.hash) ? location.hash : ""));
  } finally {
    button.disabled = false;
    button.textContent = caption;
  }
}

byId("correct").addEventListener("click", () => correct().catch(showProblem));
byId("another").addEventListener("click", () => another().catch(showProblem));
begin().catch(showProblem);
