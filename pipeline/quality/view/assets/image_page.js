// Page of one image with its masks, thresholds, details, and links to the previous and next images.

import { get } from "./api.js";
import { detailsOf } from "./details.js";
import { byId, counted, make, shownIou, whole } from "./dom.js";
import { addressOf, addressOfValue } from "./filters.js";
import { levelOf, Nesting, orderOf } from "./levels.js";
import { Mask } from "./mask.js";
import { Stage } from "./stage.js";

const FORWARD = new Set(["ArrowRight", "ArrowDown"]);
const BACK = new Set(["ArrowLeft", "ArrowUp"]);
const SLIDERS = { iou: "predicted_iou", stability: "stability_score" };

export class ImagePage {
  #stage = new Stage((mask) => this.#hover(mask), (mask) => this.#isolate(mask));
  #masks = []; // all, largest first
  #nesting = new Nesting(() => this.#visible, ({ number }) => number, (mask) => this.#isolateShown(mask));
  #visible = [];
  #isolated = null;
  #hovered = null;
  #shown = null; // the image's id, as in the URL
  name = "";
  order = null; // of the decoder's outputs, as measured

  constructor() {
    byId("step-out").addEventListener("click", () => this.#nesting.stepOut(this.#isolated));
    for (const id of [...Object.keys(SLIDERS), "overlay"]) byId(id).addEventListener("input", () => this.#filter());
    this.#stage.element.addEventListener("keydown", (event) => this.#key(event));
    byId("mask-list").addEventListener("keydown", (event) => this.#listKey(event));
    byId("picture").addEventListener("error", () => this.#explain(this.#shown));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#isolate(null);
    });
  }

  /** Show the image with an id; `filters` determine its neighbors. */
  async show(image, filters) {
    if (this.#shown === image) return;
    this.#shown = image;
    byId("image-columns").hidden = false;
    byId("image-page").setAttribute("aria-busy", "true");
    this.#stage.element.focus({ preventScroll: true }); // before loading, because the user may move on meanwhile
    scrollTo(0, 0);
    let answers;
    try {
      answers = await Promise.all([
        get(`/api/images/${image}`),
        get(`/api/images/${image}/neighbors`, filters),
      ]);
    } catch (error) {
      if (this.#shown !== image) return; // the page now shows another image or the grid
      this.leave();
      this.name = `Image ${image}`;
      byId("image-title").textContent = this.name;
      byId("image-columns").hidden = true;
      byId("back").focus();
      throw error;
    }
    if (this.#shown !== image) return;
    byId("image-page").removeAttribute("aria-busy");
    this.#fill(image, ...answers);
  }

  /** Clear the page so that nothing of this image shows with the next one. */
  leave() {
    this.#shown = null;
    this.#masks = this.#visible = [];
    this.#isolated = this.#hovered = null;
    this.#stage.close();
    byId("image-page").removeAttribute("aria-busy");
    for (const id of ["image-title", "mask-list", "inside", "findings", "image-details", "pointed", "shown"]) {
      byId(id).replaceChildren();
    }
    for (const id of ["mask-box", "findings-box", "picture-problem"]) byId(id).hidden = true;
    for (const id of ["previous", "next"]) setLink(byId(id), null);
  }

  /** Show why an image can't be displayed; its masks are shown without it. */
  async #explain(image) {
    const why = await get(`/images/${image}.jpg`).then(() => "it can't be decoded", (error) => error.message);
    if (this.#shown !== image) return;
    byId("picture-problem").textContent = `No picture: ${why}`;
    byId("picture-problem").hidden = false;
  }

  #fill(image, { image: row, masks, findings }, [before, after]) {
    this.name = row.image_id || `sa_${image}`;
    byId("image-title").textContent = this.name;
    this.#isolated = this.#hovered = null;
    byId("mask-box").hidden = byId("picture-problem").hidden = true;
    byId("pointed").textContent = "";
    masks.sort((one, other) => other.area - one.area);
    this.#nesting.open(masks);
    this.#masks = masks.map((mask, place) => new Mask(mask, place));
    this.#stage.open(image, [row.width, row.height], this.name);
    byId("image-details").replaceChildren(...detailsOf({ number: row.id, ...row }, addressOfValue));
    this.#showFindings(findings);
    for (const [id, column] of Object.entries(SLIDERS)) setUpSlider(byId(id), masks.map((mask) => mask[column]));
    setLink(byId("previous"), before);
    setLink(byId("next"), after);
    byId("mask-list").replaceChildren(...this.#masks.map((mask) => make("li", {}, this.#button(mask))));
    this.#filter();
  }

  #filter() {
    for (const id of Object.keys(SLIDERS)) byId(`${id}-value`).textContent = Number(byId(id).value).toFixed(3);
    this.#visible = this.#masks.filter(({ row }) =>
      Object.entries(SLIDERS).every(([id, column]) => row[column] === null || row[column] >= Number(byId(id).value)),
    );
    const visible = new Set(this.#visible);
    [...byId("mask-list").children].forEach((item, place) => (item.hidden = !visible.has(this.#masks[place])));
    byId("shown").textContent = `${whole(this.#visible.length)} of ${counted(this.#masks.length, "mask")} shown`;
    this.#stage.show(byId("overlay").checked ? this.#visible : []);
    if (this.#isolated && !visible.has(this.#isolated)) this.#isolate(null);
  }

  #hover(mask) {
    if (mask === this.#hovered) return;
    this.#hovered = mask;
    if (!this.#isolated) this.#point();
  }

  #isolate(mask) {
    const before = this.#isolated;
    this.#isolated = mask === before ? null : mask;
    for (const each of [before, this.#isolated]) {
      if (each) this.#buttonOf(each).setAttribute("aria-pressed", String(each === this.#isolated));
    }
    this.#point();
  }

  #point() {
    const mask = this.#isolated ?? this.#hovered;
    this.#stage.point(mask, this.#isolated !== null);
    byId("pointed").textContent = mask === null ? "" : this.#summary(mask);
    byId("mask-box").hidden = this.#isolated === null;
    if (this.#isolated === null) return;
    byId("mask-title").textContent = `Mask ${this.#place(mask)}`;
    const problem = mask.problem ? { damaged: mask.problem } : {};
    const level = levelOf(mask.row.output, this.order);
    byId("mask-details").replaceChildren(...detailsOf({ ...problem, ...mask.row, output: level }));
    byId("output-order").textContent = level === null ? "" : orderOf(this.order);
    this.#showNesting(mask);
  }

  /** Show which masks are around and directly inside the isolated one, as buttons. */
  #showNesting(mask) {
    const around = this.#nesting.around(mask);
    byId("step-out").disabled = around === null;
    byId("step-out").textContent = around === null ? "In no other shown mask" : `Out to ${captionOf(around)}`;
    const inside = this.#nesting.inside(mask);
    byId("inside-count").textContent = inside.length ? `${counted(inside.length, "mask")} inside` : "No masks inside";
    byId("inside").replaceChildren(
      ...inside.map((each) => {
        const button = make("button", { type: "button" }, ...swatched(each));
        button.addEventListener("click", () => this.#isolateShown(each));
        return make("li", {}, button);
      }),
    );
  }

  #place(mask) {
    return `${whole(this.#visible.indexOf(mask) + 1)} of ${whole(this.#visible.length)}`;
  }

  #summary(mask) {
    const { predicted_iou: iou, stability_score: stability } = mask.row;
    const parts = [`mask ${this.#place(mask)}`, `${shareOf(mask)} of the image`];
    if (iou !== null) parts.push(`predicted IoU ${shownIou(iou).toFixed(3)}`);
    if (stability !== null) parts.push(`stability ${stability.toFixed(3)}`);
    const level = levelOf(mask.row.output, this.order);
    if (level !== null) parts.push(level);
    if (mask.row.source && mask.row.source !== "automatic") parts.push(mask.row.source);
    if (mask.row.label) parts.push(mask.row.label);
    return parts.join(" · ");
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (this.#stage.zoom.key(event)) return event.preventDefault();
    const last = this.#visible.length - 1;
    const at = this.#visible.indexOf(this.#isolated);
    if (event.key === "n" || event.key === "p") byId(event.key === "n" ? "next" : "previous").click();
    else if (FORWARD.has(event.key)) this.#isolateAt(at === last ? 0 : at + 1);
    else if (BACK.has(event.key)) this.#isolateAt(at <= 0 ? last : at - 1);
    else if (event.key === "u") this.#nesting.stepOut(this.#isolated);
    else if (event.key === "i") this.#nesting.stepIn(this.#isolated);
    else if (event.key === "Home") this.#isolateAt(0);
    else if (event.key === "End") this.#isolateAt(last);
    else return;
    event.preventDefault();
  }

  #isolateAt(place) {
    if (this.#visible[place]) this.#isolateShown(this.#visible[place]);
  }

  #isolateShown(mask) {
    if (mask !== this.#isolated) this.#isolate(mask);
    this.#stage.reveal(mask.frame);
  }

  #listKey(event) {
    const step = FORWARD.has(event.key) ? 1 : BACK.has(event.key) ? -1 : 0;
    if (!step) return;
    const buttons = [...byId("mask-list").querySelectorAll("li:not([hidden]) button")];
    buttons[buttons.indexOf(document.activeElement) + step]?.focus();
    event.preventDefault();
  }

  #buttonOf(mask) {
    return byId("mask-list").children[mask.place].firstChild;
  }

  #button(mask) {
    const button = make("button", { type: "button" }, ...swatched(mask));
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => this.#isolate(mask));
    button.addEventListener("focus", () => {
      this.#stage.reveal(mask.frame);
      this.#hover(mask);
    });
    button.addEventListener("blur", () => this.#hover(null));
    return button;
  }

  #showFindings(findings) {
    byId("findings-box").hidden = findings.length === 0;
    const items = findings.map(({ code, text, mask: number, box }) => {
      const mask = this.#masks.find((each) => each.number === number) ?? null;
      const others = make("a", { href: addressOf({ finding: code }), title: "All images with this finding" });
      others.append(code.replaceAll("_", " "));
      const item = make("li", {}, make("strong", {}, others), ` ${text} `);
      if (!mask && !box) return item;
      const button = make("button", { type: "button" }, "Show");
      button.addEventListener("click", () => {
        if (mask) this.#isolateShown(mask);
        if (!box) return;
        const [left, top, width, height] = box;
        this.#stage.reveal({ left, top, width, height });
        this.#stage.point(null, false, box);
      });
      item.append(button);
      return item;
    });
    byId("findings").replaceChildren(...items);
  }
}

const shareOf = ({ row, width, height }) => `${((100 * row.area) / (width * height)).toPrecision(2)}%`;

function captionOf(mask) {
  const { predicted_iou: iou, label } = mask.row;
  return [shareOf(mask), iou !== null && `IoU ${shownIou(iou).toFixed(3)}`, label].filter(Boolean).join(" · ");
}

function swatched(mask) {
  const swatch = make("span", { className: "swatch" });
  swatch.style.backgroundColor = `rgb(${mask.color.join(" ")})`;
  return [swatch, captionOf(mask)];
}

/** Return a slider over the existing scores, set to the lowest. */
function setUpSlider(input, scores) {
  const known = scores.filter((score) => score !== null).map(shownIou);
  input.disabled = known.length === 0;
  input.min = known.length ? String(Math.floor(Math.min(...known) * 100) / 100) : "0";
  input.max = known.length ? String(Math.ceil(Math.max(...known) * 100) / 100) : "1";
  input.value = input.min;
}

/** Link to an image, or disable the link if there is none. */
function setLink(link, image) {
  if (image === null) link.removeAttribute("href");
  else link.href = `#image/${image}`;
  link.toggleAttribute("aria-disabled", image === null);
  if (image === null) link.setAttribute("aria-disabled", "true");
}
