// Hit testing and painting of one mask.

import { decodeCounts, eachPiece, endsOf, holds } from "./rle.js";

const [FILL, LINE] = [110, 230]; // alpha of drawn masks, of 255
const LITTLE_ENDIAN = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

/** Returns a color in the 32-bit format of a canvas; channels and alpha are 0 to 255. */
export function packed(red, green, blue, alpha) {
  const value = LITTLE_ENDIAN
    ? (alpha << 24) | (blue << 16) | (green << 8) | red
    : (red << 24) | (green << 16) | (blue << 8) | alpha;
  return value >>> 0;
}

export class Mask {
  #frame = null;

  /** `row` is the mask's table row, and `place` its rank among the image's masks, 0 for the largest. */
  constructor(row, place) {
    this.row = row;
    this.place = place;
    [this.height, this.width] = row.segmentation.size;
    this.color = colorOf(place);
    try {
      this.ends = endsOf(decodeCounts(row.segmentation.counts, this.height, this.width));
    } catch (error) {
      this.ends = new Uint32Array(0);
      this.problem = `can't be drawn: ${error.message}`;
    }
    this.area = 0; // number of pixels
    for (let run = 1; run < this.ends.length; run += 2) this.area += this.ends[run] - this.ends[run - 1];
  }

  get number() {
    return this.row.annotation_id;
  }

  /** The bounding box of the mask's pixels; its width is 0 if there are none. */
  get frame() {
    if (this.#frame === null) {
      let [left, right, top, bottom] = [this.width, 0, this.height, 0];
      eachPiece(this.ends, this.height, (x, from, to) => {
        left = Math.min(left, x);
        right = Math.max(right, x + 1);
        top = Math.min(top, from);
        bottom = Math.max(bottom, to);
      });
      this.#frame = { left, top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) };
    }
    return this.#frame;
  }

  /** Shrinks the mask to `width` x `height` pixels by sampling the mask at each new pixel's center. */
  shrink(width, height) {
    const [across, down] = [this.width / width, this.height / height];
    const columns = new Int32Array(this.width).fill(-1);
    for (let x = 0; x < width; x++) columns[Math.floor((x + 0.5) * across)] = x;
    const ends = [];
    eachPiece(this.ends, this.height, (x, from, to) => {
      if (columns[x] < 0) return;
      const [top, bottom] = [from, to].map((y) => Math.ceil(y / down - 0.5));
      if (top < bottom) ends.push(columns[x] * height + top, columns[x] * height + bottom);
    });
    [this.width, this.height, this.ends, this.#frame] = [width, height, Uint32Array.from(ends), null];
  }

  holds(x, y) {
    return x >= 0 && y >= 0 && x < this.width && y < this.height && holds(this.ends, x * this.height + y);
  }

  /**
   * Paints the mask over the `pixels` of a `part` of the image that contains it. With a `step` over 1, each pixel covers
   * `step` x `step` image pixels, and `part` is in these units. A pixel is painted if any image pixel in it is in the
   * mask, and as a line if any is on the line. Without a `fill`, only the line is painted.
   */
  paint(pixels, part, fill, line, thickness, step = 1) {
    const columns = new Array(this.width);
    eachPiece(this.ends, this.height, (x, from, to) => (columns[x] ??= []).push(from, to));
    const draw = (x, from, to, color) => {
      const stop = Math.ceil(to / step) - part.top;
      let y = Math.floor(from / step) - part.top;
      for (let pixel = y * part.width + Math.floor(x / step) - part.left; y < stop; y++, pixel += part.width) {
        pixels[pixel] = color;
      }
    };
    // Of a pixel's columns, draw the middle one completely, and of the others only what it doesn't cover.
    if (fill !== null) columns.forEach((pieces, x) => {
      const middle = Math.min(this.width - 1, x - (x % step) + (step >> 1));
      eachRest(pieces, x === middle ? [] : (columns[middle] ?? []), 0, (from, to) => draw(x, from, to, fill));
    });
    // A pixel is on the line if the pixel `thickness` away in any of four directions isn't in the mask.
    columns.forEach((pieces, x) => {
      const take = (from, to) => draw(x, from, to, line);
      eachRest(pieces, pieces, thickness, take);
      eachRest(pieces, pieces, -thickness, take);
      eachRest(pieces, columns[x - thickness] ?? [], 0, take);
      eachRest(pieces, columns[x + thickness] ?? [], 0, take);
    });
  }
}

/** Draws masks, given as their runs, on a canvas with a longer side of at most `longSide` pixels, the smallest on top. */
export function drawMasks(canvas, masks, longSide) {
  canvas.width = canvas.height = 0;
  if (!masks.length) return;
  const [height, width] = masks[0].size;
  const scale = Math.min(1, longSide / Math.max(height, width));
  const [across, down] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  [canvas.width, canvas.height] = [across, down];
  const image = new ImageData(across, down);
  const pixels = new Uint32Array(image.data.buffer);
  const drawn = masks.map((segmentation, place) => new Mask({ segmentation }, place));
  for (const mask of drawn.sort((one, other) => other.area - one.area)) {
    if (mask.width !== width || mask.height !== height) continue;
    mask.shrink(across, down);
    const part = { left: 0, top: 0, width: across };
    mask.paint(pixels, part, packed(...mask.color, FILL), packed(...lighter(mask.color), LINE), 1);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Returns a color halfway to white. */
export const lighter = (color) => color.map((channel) => Math.round(channel + (255 - channel) * 0.5));

/** Calls `take(from, to)` for the parts of a column's `pieces`, [from, to, …], outside `others` shifted by `shift`. */
function eachRest(pieces, others, shift, take) {
  let first = 0;
  for (let at = 0; at < pieces.length; at += 2) {
    let from = pieces[at];
    const to = pieces[at + 1];
    while (first < others.length && others[first + 1] + shift <= from) first += 2;
    for (let other = first; other < others.length && others[other] + shift < to; other += 2) {
      if (from < others[other] + shift) take(from, others[other] + shift);
      from = Math.max(from, others[other + 1] + shift);
    }
    if (from < to) take(from, to);
  }
}

/** Returns the `place`-th color of a series with distinct hues, as in `segmint masks --overlay`. */
function colorOf(place) {
  const hue = (0.58 + place * 0.618033988749895) % 1;
  const [saturation, value] = place % 2 === 0 ? [0.85, 1] : [0.65, 0.9];
  const channel = (turn) => {
    const k = (turn + hue * 6) % 6;
    return Math.round(255 * (value - value * saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return [channel(5), channel(3), channel(1)];
}
