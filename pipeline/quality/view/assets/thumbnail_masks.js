// Masks on the grid's thumbnails. The browser draws those of the visible tiles, in the image page's colors.

import { get } from "./api.js";
import { byId, showProblem } from "./dom.js";
import { drawMasks } from "./mask.js";

const LONG_SIDE = 480; // pixels of a drawing, as in a thumbnail
const AT_ONCE = 4; // concurrent requests
const AHEAD = "600px";

// A cookie, because each start uses a different port, and local storage is separate per port.
const NAME = "segmint-view-thumbnail-masks";
const KEPT_SECONDS = 31_536_000;

export class ThumbnailMasks {
  #switch = byId("thumbnail-masks");
  #tiles = new Map(); // ids of images by tile
  #inView = new Set();
  #waiting = new Set(); // visible tiles without drawn masks
  #running = 0;
  #watch = new IntersectionObserver((entries) => this.#seen(entries), { rootMargin: AHEAD });

  constructor() {
    this.#switch.checked = document.cookie.split("; ").includes(`${NAME}=1`);
    this.#switch.addEventListener("input", () => {
      const on = this.#switch.checked;
      document.cookie = `${NAME}=${Number(on)}; path=/; max-age=${KEPT_SECONDS}; samesite=strict`;
      for (const tile of this.#tiles.keys()) {
        if (on) this.#watch.observe(tile);
        else this.#drop(tile);
      }
      if (!on) this.#watch.disconnect();
    });
  }

  /** Add a tile whose first child is the frame of its image. */
  add(tile, image) {
    this.#tiles.set(tile, image);
    if (this.#switch.checked) this.#watch.observe(tile);
  }

  /** Remove all tiles. */
  clear() {
    this.#watch.disconnect();
    this.#tiles.clear();
    this.#inView.clear();
    this.#waiting.clear();
  }

  #seen(entries) {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) {
        this.#inView.add(target);
        this.#waiting.add(target);
      } else {
        this.#drop(target); // frees memory
      }
    }
    this.#work();
  }

  #drop(tile) {
    this.#inView.delete(tile);
    this.#waiting.delete(tile);
    tile.querySelector("canvas")?.remove();
  }

  #work() {
    for (const tile of this.#waiting) {
      if (this.#running === AT_ONCE) return;
      this.#waiting.delete(tile);
      this.#running += 1;
      this.#draw(tile)
        .catch(showProblem)
        .finally(() => {
          this.#running -= 1;
          this.#work();
        });
    }
  }

  async #draw(tile) {
    const { masks } = await get(`/api/images/${this.#tiles.get(tile)}/masks`);
    if (!this.#inView.has(tile) || tile.querySelector("canvas")) return;
    const canvas = document.createElement("canvas");
    canvas.dataset.masks = String(masks.length);
    drawMasks(canvas, masks, LONG_SIDE);
    tile.querySelector(".tile-picture").append(canvas);
  }
}
