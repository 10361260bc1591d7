// Grid of images. Pages load as they scroll into view, each starting after the previous one.

import { get } from "./api.js";
import { byId, counted, make, showProblem } from "./dom.js";
import { addressOf, asked } from "./filters.js";
import { ThumbnailMasks } from "./thumbnail_masks.js";

const AHEAD = "1200px";
const AGAIN_MS = 3000; // retry delay after a page failed to load

export class Grid {
  #list = byId("results");
  #masks = new ThumbnailMasks();
  #more = byId("more");
  #search = 0; // responses to earlier searches are ignored
  #next = null;
  #begun = false;
  #loading = false;
  #failed = false; // true if the last page failed to load
  #watch;

  constructor() {
    this.#more.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // the browser opens the link in a new tab or window
      event.preventDefault();
      this.#add(true).catch(showProblem);
    });
    this.#watch = new IntersectionObserver(
      (entries) => entries.some((entry) => entry.isIntersecting) && this.#add().catch(showProblem),
      { rootMargin: AHEAD },
    );
  }

  /** Search with the filters in the page's URL, unless that was already done. */
  async begin() {
    if (!this.#begun) await this.search();
  }

  async search() {
    const search = ++this.#search;
    this.#begun = true;
    this.#failed = false;
    showProblem(null);
    byId("results").setAttribute("aria-busy", "true");
    try {
      const { after, ...filters } = asked();
      // Only the first page contains the total.
      const pages = [get("/api/images", filters), ...(after === undefined ? [] : [get("/api/images", asked())])];
      const [{ total }, page] = await Promise.all([pages[0], pages.at(-1)]);
      if (search !== this.#search) return;
      this.#masks.clear();
      this.#list.replaceChildren(...page.images.map((image) => this.#tile(image)));
      byId("count").textContent = total ? counted(total, "image") : "No matching images";
      byId("from-first").hidden = after === undefined;
      byId("from-first").href = addressOf(filters);
      this.#next = page.next;
    } catch (error) {
      if (search !== this.#search) return;
      this.#masks.clear();
      this.#list.replaceChildren();
      byId("count").textContent = "";
      this.#next = null;
      this.#showMore();
      throw error;
    } finally {
      if (search === this.#search) this.#list.removeAttribute("aria-busy");
    }
    this.#showMore();
  }

  /** Focus an image's tile if it is in the grid. */
  focus(image) {
    byId(`tile-${image}`)?.focus();
  }

  async #add(byHand = false) {
    if (this.#next === null || this.#loading || byId("grid-page").hidden) return;
    const search = this.#search;
    this.#loading = true;
    try {
      const page = await get("/api/images", { ...asked(), after: this.#next });
      if (search !== this.#search) return this.#showMore();
      const tiles = page.images.map((image) => this.#tile(image));
      this.#list.append(...tiles);
      if (byHand) tiles[0]?.firstChild.focus();
      this.#next = page.next;
      if (this.#failed) showProblem(null);
      this.#failed = false;
    } catch (error) {
      if (search !== this.#search) return this.#showMore();
      this.#failed = true;
      setTimeout(() => search === this.#search && this.#showMore(), AGAIN_MS);
      throw error;
    } finally {
      this.#loading = false;
    }
    this.#showMore();
  }

  #tile(image) {
    const made = tile(image);
    this.#masks.add(made, image.id);
    return made;
  }

  /** Observe the link to the next page again, which reports immediately if it is still in view. */
  #showMore() {
    this.#watch.unobserve(this.#more);
    this.#more.hidden = this.#next === null;
    if (this.#next !== null) this.#more.href = addressOf({ ...asked(), after: this.#next });
    this.#watch.observe(this.#more);
  }
}

function tile(image) {
  const picture = make("img", {
    src: `/thumbnails/${image.id}.jpg`,
    alt: "",
    loading: "lazy",
    decoding: "async",
    width: image.width ?? 4,
    height: image.height ?? 3,
  });
  picture.addEventListener("error", () => picture.replaceWith(make("span", { className: "no-picture" }, "no picture")));
  const caption = make(
    "span",
    { className: "caption" },
    make("span", { className: "tile-name", title: image.image_id }, image.image_id || `sa_${image.id}`),
    make("span", { className: "tile-masks" }, image.masks === null ? "" : counted(image.masks, "mask")),
  );
  if (image.findings) caption.append(make("span", { className: "badge" }, counted(image.findings, "finding")));
  const link = make("a", { id: `tile-${image.id}`, className: "tile", href: `#image/${image.id}` });
  link.append(make("span", { className: "tile-picture" }, picture), caption);
  const item = make("li", {}, link);
  const aspect = Math.min(3, Math.max(0.45, (image.width ?? 4) / (image.height ?? 3)));
  item.style.setProperty("--aspect", aspect.toFixed(4));
  return item;
}
