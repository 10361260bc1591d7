// Conversion between the work on an image and submissions, which are relative to the dataset's masks.

import { iouOf, spansOf } from "./spans.js";

const LEAST_IOU = 0.1; // with a mask of the dataset, below which a merge doesn't give its label to its correction

/**
 * Return the initial items of an image: the dataset's masks, largest first, with the last submission applied. With
 * `locks` these are locked, and so are prefilled ones.
 */
export function itemsOf({ masks, submission, prefill, locks = false }) {
  const gone = new Set([...(submission?.replaced ?? []), ...(submission?.deleted ?? [])].map(({ id }) => id));
  const kept = masks.filter((row) => !gone.has(row.annotation_id)).sort((one, other) => other.area - one.area);
  const rows = rowsById(masks);
  const saved = (mask, place) => fromSubmission(mask, keyOf(submission.n, place), submission.stage, locks, rows);
  const made =
    submission === null
      ? (prefill ?? []).map((mask, place) => filled(mask, place, locks))
      : submission.masks.map(saved);
  return [...kept.map((row) => fromRow(row, locks)), ...made];
}

const rowsById = (masks) => new Map(masks.map((row) => [row.annotation_id, row]));

/** Return what an annotator says about an image: {complete, comment, flag}. */
export function noteOf(submission) {
  const { complete = false, comment = null, flag = false } = submission ?? {};
  return { complete, comment, flag };
}

export const sameNote = (one, other) => JSON.stringify(noteOf(one)) === JSON.stringify(noteOf(other));

/** Return the label that a correction of a dataset's mask, `row`, has after a merge if nobody sets one. */
export function inheritedLabel(row, counts) {
  if (!row?.label) return null;
  const [height, width] = row.segmentation.size;
  const [one, other] = [counts, row.segmentation.counts].map((each) => spansOf(each, height, width));
  return iouOf(one, other) >= LEAST_IOU ? row.label : null;
}

/** Return the request body that saves `items`; `times` come from a Stopwatch. */
export function submissionOf({ base, masks }, items, times, note) {
  const here = new Set(items.map(({ id }) => id));
  const parents = new Set(items.map(({ parent }) => parent));
  const gone = masks.filter((row) => !here.has(row.annotation_id));
  const was = (row) => ({ id: row.annotation_id, counts: row.segmentation.counts });
  return {
    base,
    ...noteOf(note),
    seconds: rounded(times.image),
    masks: items.filter(({ id }) => id === null).map((item) => toSave(item, times)),
    replaced: gone.filter((row) => parents.has(row.annotation_id)).map(was),
    deleted: gone.filter((row) => !parents.has(row.annotation_id)).map(was),
  };
}

/** Return the times of a submission that is opened again. */
export function timesOf(submission) {
  if (submission === null) return {};
  const masks = submission.masks.map(({ seconds }, place) => [keyOf(submission.n, place), seconds]);
  return { image: submission.seconds, masks: Object.fromEntries(masks) };
}

/**
 * Apply a stage's unsaved body to the items of an `image` that has changed since. Returns {items, masks, unfit}: all that
 * still fits, the seconds of the new masks by key, and the number of masks that don't fit. Existing masks aren't added
 * again, and neither are untouched prefilled ones unless `untouched`.
 */
export function carried(items, { masks, replaced, deleted }, key, image, { stage = null, untouched = true } = {}) {
  const had = new Map([...replaced, ...deleted].map(({ id, counts }) => [id, counts]));
  const fits = (item) => item.id !== null && had.get(item.id) === item.counts;
  const parents = new Set([null, undefined, ...items.filter(fits).map(({ id }) => id)]);
  const there = new Set(items.filter((item) => !fits(item)).map(({ counts }) => counts));
  const rows = rowsById(image.masks);
  const wanted = masks.filter((mask) => !there.has(mask.counts) && (untouched || !isUntouched(mask, stage)));
  const fitting = wanted.filter(({ parent }) => parents.has(parent));
  const keys = fitting.map((_, place) => `${key}.${place}`);
  const kept = items.filter(({ id, counts }) => deleted.some((mask) => mask.id === id && mask.counts !== counts));
  return {
    items: [
      ...items.filter((item) => !fits(item)),
      ...fitting.map((mask, place) => fromSubmission(mask, keys[place], stage, image.locks, rows)),
    ],
    masks: Object.fromEntries(fitting.map(({ seconds }, place) => [keys[place], seconds])),
    unfit: wanted.length - fitting.length + kept.length,
  };
}

/** Return whether a saved submission is the one an annotator sent, so that its reply was lost, not the race. */
export function isSame(saved, sent, annotator) {
  const times = ({ seconds, masks }) => JSON.stringify([seconds, masks.map((mask) => mask.seconds)]);
  return saved.annotator === annotator && times(saved) === times(sent) && isSameWork(saved, sent);
}

/** Return whether two submissions for one state of an image are equal except for times. */
export function isSameWork(one, other) {
  const said = ({ masks, replaced, deleted, ...more }) =>
    JSON.stringify([
      masks.map(({ counts, source, label }) => [counts, source, label ?? null]),
      [...replaced, ...deleted].map(({ id }) => id),
      noteOf(more),
    ]);
  return said(one) === said(other);
}

/** Return whether a saved mask is an untouched prefill: it has only a box prompt and no time spent on it. */
function isUntouched({ source, seconds, prompts, parent, label }, stage) {
  const boxed = prompts?.length === 1 && prompts[0].kind === "box";
  return stage === "semi" && source === "assisted" && (parent ?? label ?? null) === null && seconds === 0 && boxed;
}

const keyOf = (n, place) => `a${n}.${place}`;

const rounded = (seconds) => Math.round(seconds * 10) / 10;

function fromRow(row, locked) {
  return {
    key: `d${row.annotation_id}`,
    id: row.annotation_id,
    counts: row.segmentation.counts,
    source: row.source ?? "automatic",
    label: row.label ?? null,
    named: row.label_source === "person",
    output: row.output ?? null,
    iou: row.predicted_iou ?? null,
    labeler: row.label_source ?? null,
    madeFrom: placesOf(row.prompts ?? []),
    prompts: [],
    parent: null,
    locked,
  };
}

/** Return the points and the box among the prompts of a dataset's mask, as of an active mask; see `work.js`. */
function placesOf(prompts) {
  const points = prompts.filter(({ kind }) => kind === "point").map(({ x, y, label }) => [x, y, label]);
  const box = prompts.find(({ kind }) => kind === "box");
  return { points, box: box ? [box.x, box.y, box.w, box.h] : null };
}

/** Return the item of a saved mask. Without a label, it inherits its parent's, and "" means none. */
function fromSubmission(mask, key, stage, locks, rows) {
  const { counts, source, label = null, prompts = [], parent = null } = mask;
  const named = label !== null;
  const shown = named ? label || null : inheritedLabel(rows.get(parent), counts);
  const item = { key, id: null, counts, source, label: shown, named, prompts, parent };
  return isUntouched(mask, stage) ? { ...item, filled: true, locked: locks } : item;
}

/** Return the item of a mask that the model predicted ahead for a detector's box. */
function filled({ counts, box }, place, locked) {
  const [x, y, w, h] = box;
  const prompts = [{ kind: "box", x, y, w, h }];
  const item = { key: `p${place}`, id: null, counts, source: "assisted", label: null, prompts, parent: null };
  return { ...item, filled: true, locked };
}

/** Return the mask to save. A label that no annotator set is null, so that the merge keeps the parent's and its source. */
function toSave({ key, counts, source, label, named, prompts, parent }, times) {
  const said = named ? (label ?? (parent === null ? null : "")) : null;
  return { counts, source, seconds: rounded(times.masks[key] ?? 0), label: said, prompts, parent };
}
