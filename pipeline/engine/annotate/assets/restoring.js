// Drafts: creating one from the work on an image, and restoring it when the image is opened again.

import { submissionOf, carried, isSameWork, itemsOf, noteOf, sameNote, timesOf } from "./submission.js";
import { hasPixels } from "./strokes.js";
import * as work from "./work.js";

/**
 * Return a draft, with `history`, `predictions`, and `times` as dumped, and `counts` of the active mask. If an image
 * was only viewed, the draft contains just the time.
 */
export function draftOf(image, history, predictions, times, counts, note) {
  const state = history.states[history.at];
  const drawn = state.active !== null && counts !== null && hasPixels(counts, image.size);
  const whole = drawn ? work.accept(state, counts) : state;
  const { n, assignment, base, stage, began } = image;
  const body = submissionOf(image, whole.items, times, note);
  const looked = history.states.length === 1 && sameNote(note, image.submission);
  const kept = looked ? { states: [], at: 0 } : history;
  const last = work.lastNumber();
  return { history: kept, predictions, times, note, looked, body, n, assignment, base, stage, began, last };
}

/**
 * Return the work on an image from its draft as {history, predictions, times, note, text}; `text` is the message to the
 * annotator and `first` the initial state. Null if the draft equals the saved submission, or contains only time on masks
 * that have changed.
 */
export function restored(draft, image, first) {
  const { history, predictions, times, note, looked } = draft;
  const fits = draft.base === image.base && draft.stage === image.stage;
  const isLast = image.submission === null || (draft.n === image.n && draft.assignment === image.assignment);
  if (looked) {
    return fits && isLast ? { history: { states: [first], at: 0 }, predictions, times, note, text: "" } : null;
  }
  if (!fits) return carriedOver(draft, image, first);
  if (isLast) return { history, predictions, times, note, text: "Your draft of this image is restored." };
  if (isSameWork(image.submission, draft.body)) return null;
  const states = [...history.states.slice(0, history.at + 1), first];
  const saved = timesOf(image.submission);
  return {
    history: { states, at: states.length - 1 },
    predictions,
    times: { image: saved.image + times.image - draft.began, masks: { ...times.masks, ...saved.masks } },
    note: noteOf(image.submission),
    text: "This image was saved elsewhere after your draft. Undo restores the draft.",
  };
}

/** Return {state, masks} from a draft that another window kept, with new keys and the seconds by key. */
export function workOf({ body, stage }, image) {
  const there = itemsOf({ ...image, submission: null, prefill: [] });
  const { items, masks } = carried(there, body, `c${work.nextNumber()}`, image, { stage });
  return { state: work.begin(items), masks };
}

/** Return what still fits of a draft of other masks of the image, or of another stage. */
function carriedOver(draft, image, first) {
  const { submission } = image;
  const { body, stage, times, began } = draft;
  const follows = submission !== null && draft.assignment === image.assignment && draft.n >= image.n; // its masks are in the body, too
  const there = follows ? itemsOf({ ...image, submission: null, prefill: [] }) : first.items;
  const options = { stage, untouched: submission !== null };
  const { items, masks, unfit } = carried(there, body, `c${work.nextNumber()}`, image, options);
  const state = work.begin(items);
  const fits = !work.sameMasks(state, first);
  const saved = timesOf(submission);
  const former = submission === null && image.state !== "merged" ? began : 0; // merged time is already in the tables
  return {
    history: fits ? { states: [first, state], at: 1 } : { states: [first], at: 0 },
    predictions: [],
    times: { image: (saved.image ?? 0) + former + times.image - began, masks: { ...saved.masks, ...masks } },
    note: draft.note,
    text: carriedText(draft, image, fits, unfit),
  };
}

function carriedText({ body, base }, image, fits, unfit) {
  const changed = base === image.base ? "Your draft is from another stage." : "This image's masks have changed.";
  const has = body.masks.length + body.replaced.length + body.deleted.length > 0;
  const lost = unfit === 1 ? " One of your masks no longer fits." : ` ${unfit} of your masks no longer fit.`;
  const there = has ? "Your masks are already there. Check them and save." : "Check and save.";
  const kept = fits ? "The masks that still fit are here. Check them and save." : unfit ? "Check and save." : there;
  return `${changed} ${kept}${unfit ? lost : ""}`;
}
