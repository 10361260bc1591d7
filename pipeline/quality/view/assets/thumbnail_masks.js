// Masks on the grid's thumbnails. The browser draws those of the visible tiles, in the image page's colors.

import { get } from "./api.js";
import { byId, showProblem } from "./dom.js";
import { Mask, packed } from "./mask.js";

const LONG_SIDE = 480; // pixels of a drawing, as in a thumbnail
const AT_ONCE = 4; // concurrent requests
const AHEAD = "600px";
const [FILL, LINE] = [110, 230]; // alpha, of 255

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
    tile.querySelector(".tile-picture").append(drawing(masks));
  }
}

/** Return a canvas with masks, given as their runs, largest first. */
function drawing(masks) {
  const canvas = document.createElement("canvas");
  canvas.dataset.masks = String(masks.length);
  if (!masks.length) return canvas;
  const [height, width] = masks[0].size;
  const scale = Math.min(1, LONG_SIDE / Math.max(height, width));
  const [across, down] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  [canvas.width, canvas.height] = [across, down];
  const image = new ImageData(across, down);
  const pixels = new Uint32Array(image.data.buffer);
  masks.forEach((segmentation, place) => {
    const mask = new Mask({ segmentation }, place);
    if (mask.width !== width || mask.height !== height) return;
    mask.shrink(across, down);
    const lighter = mask.color.map((channel) => Math.round(channel + (255 - channel) * 0.5));
    const whole = { left: 0, top: 0, width: across };
    mask.paint(pixels, whole, packed(...mask.color, FILL), packed(...lighter, LINE), 1);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
