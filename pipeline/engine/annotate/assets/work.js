// The work on an image as immutable values: each gesture makes the next state from the previous one.
//
// A state is {items, active}. An item is a mask: {key, id, counts, source, label, prompts, parent}, where `id` is the
// annotation id in the dataset, or null for a new mask. Masks of the dataset also have `output`. `locked` items can't be
// changed until they are unlocked, `filled` items were prefilled, and an annotator set the label of `named` items.
// `active` is the mask in progress, or null:
//   key       its item's key once it is accepted
//   of        the key of the item that it corrects, or null
//   points    [[x, y, label], …] and box [x, y, w, h] or null: prompts that are sent together
//   base      counts to send as a mask prompt, or null
//   part      "auto", "whole", "part", or "subpart": the choice among the three predictions for a single prompt
//   step      the number of its request to the model, or null
//   after     the request and the part of its prediction that this one corrects: {step, part}, or null
//   counts    its pixels if brush or eraser made them; else they are in the prediction for `step`
//   log       prompts in order, as they are saved

const AUTO = "auto";

/** Last used key or number; new ones are greater than all that the page and its drafts have used. */
let last = 0;
export const nextNumber = () => ++last;
export const useNumbersFrom = (number) => (last = Math.max(last, number));
export const lastNumber = () => last;

export const begin = (items) => ({ items, active: null });

/** Add a point, label 1 or 0, to the active mask, a correction of `item`, or a new mask. */
export function addPoint(state, x, y, label, item = null) {
  return ask(state, item, { kind: "point", x, y, label }, (active) => ({ points: [...active.points, [x, y, label]] }));
}

/** Set the box, [x, y, w, h]. */
export function setBox(state, box, item = null) {
  const [x, y, w, h] = box;
  return ask(state, item, { kind: "box", x, y, w, h }, () => ({ box }));
}

/** Choose another of the three masks of a single prompt. */
export function setPart(state, part) {
  if (state.active === null || state.active.part === part || !isSingle(state.active)) return state;
  return { ...state, active: { ...state.active, part } };
}

/** Return whether the model has three predictions for the active mask's prompt. */
export function isSingle({ points, box, base, after, counts }) {
  const prompts = points.length + (box === null ? 0 : 1);
  return counts === null && base === null && after === null && prompts === 1;
}

/** Set pixels from brush or eraser as the active mask, as a correction of `item`, or as a new mask. */
export function setPixels(state, counts, item = null) {
  const active = state.active ?? started(item);
  return { ...state, active: { ...active, counts, step: null, after: null } };
}

/**
 * Make the active mask with these pixels an item, replacing the one that it corrects. `inherited(id)` is the label that
 * a correction of the dataset's mask `id` has if nobody set one.
 */
export function accept(state, counts, inherited = () => null) {
  const { active, items } = state;
  const of = items.find((item) => item.key === active.of) ?? null;
  if (of?.counts === counts) return { items, active: null };
  const { source, parent } = origin(of, active);
  const named = of?.id === null && (of.named ?? false); // a label of the dataset is the parent's
  const item = {
    key: active.key,
    id: null,
    counts,
    label: named ? of.label : parent === null ? null : inherited(parent),
    named,
    prompts: [...(of?.id === null ? of.prompts : []), ...active.log],
    source,
    parent,
  };
  return { items: of ? items.map((each) => (each === of ? item : each)) : [...items, item], active: null };
}

function origin(of, active) {
  if (of !== null && of.id !== null) return { source: "corrected", parent: of.id };
  if (of !== null && of.parent !== null) return { source: of.source, parent: of.parent };
  return { source: active.log.length || (of && of.source !== "manual") ? "assisted" : "manual", parent: null };
}

/** Set the pixels of an accepted mask, {key, counts}, unless they have changed or are being corrected. */
export function setCounts(state, { key, counts }, made) {
  if (made === counts || state.active?.of === key) return state;
  const items = state.items.map((item) => (item.key === key && item.counts === counts ? { ...item, counts: made } : item));
  return items.every((item, place) => item === state.items[place]) ? state : { ...state, items };
}

/** Cancel the active mask; the item that it would have corrected stays. */
export const cancel = (state) => (state.active === null ? state : { ...state, active: null });

/** Delete an item, or the active mask with the item that it corrects. */
export function remove(state, key) {
  return { items: state.items.filter((item) => item.key !== key), active: null };
}

/** Replace the item `twin` by a new one, which then corrects the dataset's mask that `twin` is or corrects, if any. */
export function replace(state, key, twin) {
  const [item, old] = [key, twin].map((each) => state.items.find((one) => one.key === each));
  if (!item || !old) return state;
  const items = state.items.filter((each) => each !== item).map((each) => (each === old ? heir(item, old) : each));
  return { ...state, items };
}

/** Return an item in the place of another one, whose label it has if it has none. */
function heir(item, old) {
  if (item.parent !== null) return item; // it corrects another mask of the dataset
  const { label, named = false } = item.label === null ? old : item;
  if (old.id !== null) return { ...item, label, named: item.label !== null, source: "corrected", parent: old.id };
  return { ...item, label, named, source: old.parent === null ? item.source : old.source, parent: old.parent };
}

/**
 * Set the label of the item with a key; "" removes it. A mask of the dataset is replaced by itself with the label, also
 * to confirm a label that no person set.
 */
export function setLabel(state, key, text) {
  const label = text || null;
  const named = (item) => {
    if (item.key !== key || (item.label === label && (item.named || label === null))) return item;
    const own = item.id === null ? {} : { key: `n${nextNumber()}`, id: null, source: "corrected", parent: item.id };
    return { ...item, ...own, label, named: true, filled: false };
  };
  const items = state.items.map(named);
  return items.every((item, place) => item === state.items[place]) ? state : { ...state, items };
}

/** Return whether two states have the same masks; a draft's masks are copies. */
export function sameItems(one, other) {
  const parts = ({ key, counts, label, named }) => JSON.stringify([key, counts, label ?? null, named ?? false]);
  const same = (item, place) => parts(item) === parts(other.items[place]);
  return one.items.length === other.items.length && one.items.every(same);
}

/** Return whether the masks of two states have the same pixels and labels, regardless of their keys. */
export function sameMasks(one, other) {
  const part = ({ counts, label, named }) => JSON.stringify([counts, label ?? null, named ?? false]);
  const parts = ({ items }) => JSON.stringify(items.map(part).sort());
  return parts(one) === parts(other);
}

/** Unlock an item. */
export function unlock(state, key) {
  return { ...state, items: state.items.map((item) => (item.key === key ? { ...item, locked: false } : item)) };
}

function started(item) {
  return {
    key: item?.id === null ? item.key : `n${nextNumber()}`,
    of: item?.key ?? null,
    points: [],
    box: null,
    base: item?.counts ?? null,
    part: AUTO,
    step: null,
    after: null,
    counts: null,
    log: [],
  };
}

function ask(state, item, prompt, change) {
  const before = state.active ?? started(item);
  const base = before.counts ?? before.base;
  const asksMask = base !== null && (before.counts !== null || before.step === null);
  const active = {
    ...before,
    ...change(before),
    base,
    counts: null,
    part: AUTO,
    after: before.step === null ? null : { step: before.step, part: before.part },
    step: nextNumber(),
    log: [...before.log, ...(asksMask ? [{ kind: "mask" }] : []), prompt],
  };
  return { ...state, active };
}
