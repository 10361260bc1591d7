// Brush strokes as pixels: those whose center is within `radius` of the line. No antialiasing.

import { areaOf, countsOf, difference, spansFrom, spansOf, union } from "./spans.js";

/** Return the compressed counts of a mask (null: none) after adding or erasing a stroke; `size` is [height, width]. */
export function brushed(counts, points, radius, adds, [height, width]) {
  const before = counts === null ? [] : spansOf(counts, height, width);
  const after = (adds ? union : difference)(before, strokeSpans(points, radius, height, width));
  return countsOf(after, height, width);
}

/** Return whether a mask has any pixels. */
export const hasPixels = (counts, [height, width]) => areaOf(spansOf(counts, height, width)) > 0;

/**
 * Return the spans (see spans.js) of a stroke through `points`, [x, y] in image pixels, where the center of pixel
 * (column i, row j) is (i + 0.5, j + 0.5). A single point is a disc.
 */
export function strokeSpans(points, radius, height, width) {
  const pairs = [];
  points.forEach((point, place) => capsule(points[Math.max(0, place - 1)], point, radius, height, width, pairs));
  return spansFrom(pairs);
}

/** Append the pairs [start, end) of all columns that a thick line between two points intersects. */
function capsule([ax, ay], [bx, by], radius, height, width, pairs) {
  const [dx, dy] = [bx - ax, by - ay];
  const length = dx * dx + dy * dy;
  const along = (x, y) => (length ? Math.min(1, Math.max(0, ((x - ax) * dx + (y - ay) * dy) / length)) : 0);
  const holds = (x, y) => {
    const share = along(x, y);
    const [across, down] = [x - (ax + share * dx), y - (ay + share * dy)];
    return across * across + down * down <= radius * radius;
  };
  const first = Math.max(0, Math.floor(Math.min(ax, bx) - radius - 0.5));
  const last = Math.min(width - 1, Math.ceil(Math.max(ax, bx) + radius - 0.5));
  for (let column = first; column <= last; column++) {
    const x = column + 0.5;
    const reach = reachOf(x, ax, ay, bx, by, radius);
    if (reach === null) continue;
    // The bounds are rounded, so each end pixel is tested.
    let top = Math.max(0, Math.floor(reach[0] - 0.5) - 1);
    let bottom = Math.min(height - 1, Math.ceil(reach[1] - 0.5) + 1);
    while (top <= bottom && !holds(x, top + 0.5)) top++;
    while (bottom >= top && !holds(x, bottom + 0.5)) bottom--;
    if (top <= bottom) pairs.push([column * height + top, column * height + bottom + 1]);
  }
}

/** Return the lowest and highest y of a thick line at the vertical line `x`, or null if they don't intersect. */
function reachOf(x, ax, ay, bx, by, radius) {
  let [top, bottom] = [Infinity, -Infinity];
  const add = (low, high) => {
    top = Math.min(top, low);
    bottom = Math.max(bottom, high);
  };
  for (const [cx, cy] of [[ax, ay], [bx, by]]) {
    const half = radius * radius - (x - cx) * (x - cx);
    if (half >= 0) add(cy - Math.sqrt(half), cy + Math.sqrt(half));
  }
  // The two long sides, which touch both discs.
  const length = Math.hypot(bx - ax, by - ay);
  if (length > 0 && ax !== bx) {
    const [across, down] = [(-(by - ay) / length) * radius, ((bx - ax) / length) * radius];
    for (const side of [1, -1]) {
      const share = (x - (ax + side * across)) / (bx - ax);
      if (share < 0 || share > 1) continue;
      const y = ay + side * down + share * (by - ay);
      add(y, y);
    }
  }
  return top <= bottom ? [top, bottom] : null;
}
