// Masks as spans: a flat, sorted array [start, end, start, end, …] of pixel positions, counted column by column.

import { decodeCounts } from "./rle.js";

/** The spans of a mask's compressed `counts`; throws if they are not of this size. */
export function spansOf(counts, height, width) {
  const spans = [];
  let position = 0;
  decodeCounts(counts, height, width).forEach((run, index) => {
    if (index % 2 === 1 && run > 0) append(spans, position, position + run);
    position += run;
  });
  return spans;
}

/** Compressed counts in the canonical form: no run of zero pixels but the first. */
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

/** How many pixels spans have. */
export function areaOf(spans) {
  let area = 0;
  for (let place = 0; place < spans.length; place += 2) area += spans[place + 1] - spans[place];
  return area;
}

/** The pixels of one or the other. */
export function union(one, other) {
  return merged(one, other, (inOne, inOther) => inOne || inOther);
}

/** The pixels of one that are not the other's. */
export function difference(one, other) {
  return merged(one, other, (inOne, inOther) => inOne && !inOther);
}

/** Spans of pairs [start, end) in any order, which may overlap. */
export function spansFrom(pairs) {
  pairs.sort((one, other) => one[0] - other[0]);
  const spans = [];
  for (const [start, end] of pairs) append(spans, start, end);
  return spans;
}

/** Adds a span that starts at or after the last one's start. */
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

/** A number in COCO's characters: five bits each, the lowest first; a sixth bit says that more follow. */
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
