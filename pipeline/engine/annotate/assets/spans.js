// Masks as spans: a flat, sorted array [start, end, start, end, …] of pixel positions in column-major order.

import { decodeCounts } from "./rle.js";

/** Return the spans of a mask's compressed `counts`; throws if they don't match the size. */
export function spansOf(counts, height, width) {
  const spans = [];
  let position = 0;
  decodeCounts(counts, height, width).forEach((run, index) => {
    if (index % 2 === 1 && run > 0) append(spans, position, position + run);
    position += run;
  });
  return spans;
}

/** Return compressed counts in the canonical form, with no zero-length run except the first. */
export function countsOf(spans, height, width) {
  const runs = [];
  let position = 0;
  for (let place = 0; place < spans.length; place += 2) {
    runs.push(spans[place] - position, spans[place + 1] - spans[place]);
    position = spans[place + 1];
  }
  if (position < height * width || runs.length === 0) runs.push(height * width - position);
  return runs.map((run, index) => symbolsOf(index > 2 ? run - runs[index - 2] : run)).join("");
}

/** Return the number of pixels in spans. */
export function areaOf(spans) {
  let area = 0;
  for (let place = 0; place < spans.length; place += 2) area += spans[place + 1] - spans[place];
  return area;
}

/** Return the intersection over union of two masks as spans. */
export function iouOf(one, other) {
  const either = areaOf(union(one, other));
  return either ? (areaOf(one) + areaOf(other) - either) / either : 0;
}

/** Return the pixels of either. */
export function union(one, other) {
  return merged(one, other, (inOne, inOther) => inOne || inOther);
}

/** Return the pixels of one that aren't in the other. */
export function difference(one, other) {
  return merged(one, other, (inOne, inOther) => inOne && !inOther);
}

/** Return the spans of pairs [start, end), which may overlap and be in any order. */
export function spansFrom(pairs) {
  pairs.sort((one, other) => one[0] - other[0]);
  const spans = [];
  for (const [start, end] of pairs) append(spans, start, end);
  return spans;
}

/** Append a span that starts at or after the start of the last one. */
function append(spans, start, end) {
  const last = spans.length - 1;
  if (last > 0 && start <= spans[last]) spans[last] = Math.max(spans[last], end);
  else spans.push(start, end);
}

function merged(one, other, keeps) {
  const spans = [];
  let [i, j, start, inside] = [0, 0, 0, false];
  while (i < one.length || j < other.length) {
    const at = Math.min(one[i] ?? Infinity, other[j] ?? Infinity);
    while (one[i] === at) i++;
    while (other[j] === at) j++;
    const now = keeps(i % 2 === 1, j % 2 === 1);
    if (now && !inside) start = at;
    if (!now && inside) append(spans, start, at);
    inside = now;
  }
  return spans;
}

/** Return a number in COCO's encoding: five bits per character, lowest first; the sixth bit means that more follow. */
function symbolsOf(number) {
  let text = "";
  let more = true;
  while (more) {
    let bits = number & 31;
    number >>= 5;
    more = bits & 16 ? number !== -1 : number !== 0;
    if (more) bits |= 32;
    text += String.fromCharCode(bits + 48);
  }
  return text;
}
