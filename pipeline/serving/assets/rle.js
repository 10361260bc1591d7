// COCO's compressed run-length encoding: alternating runs of zeros and ones in column-major order.

/** Returns the run lengths of a mask's `counts`; throws if they do not add up to `height` x `width` pixels. */
export function decodeCounts(counts, height, width) {
  const runs = [];
  let total = 0;
  let place = 0;
  while (place < counts.length) {
    let value = 0;
    let shift = 0;
    let more = true;
    while (more) {
      const code = counts.charCodeAt(place++) - 48; // NaN past the end, which terminates the number
      value |= (code & 31) << shift;
      more = (code & 32) !== 0;
      shift += 5;
      if (!more && code & 16) value |= -1 << shift;
    }
    if (runs.length > 2) value += runs[runs.length - 2];
    if (value < 0) throw new Error("a run below zero");
    runs.push(value);
    total += value;
  }
  if (total !== height * width) throw new Error(`runs of ${total} pixels, not ${height} x ${width}`);
  return runs;
}

/** Returns the end of each run; runs with odd indices belong to the mask. */
export function endsOf(runs) {
  const ends = new Uint32Array(runs.length);
  let position = 0;
  runs.forEach((run, index) => {
    position += run;
    ends[index] = position;
  });
  return ends;
}

/** Returns whether the pixel at `position`, in column-major order, is in the mask. */
export function holds(ends, position) {
  let low = 0;
  let high = ends.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ends[middle] <= position) low = middle + 1;
    else high = middle;
  }
  return low < ends.length && low % 2 === 1;
}

/** Calls `take(x, top, bottom)` for each part of a column in the mask; `bottom` is exclusive. */
export function eachPiece(ends, height, take) {
  for (let run = 1; run < ends.length; run += 2) {
    let start = ends[run - 1];
    while (start < ends[run]) {
      const x = Math.floor(start / height);
      const stop = Math.min(ends[run], (x + 1) * height);
      take(x, start - x * height, stop - x * height);
      start = stop;
    }
  }
}
