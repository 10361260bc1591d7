// The model's predictions for the active mask's prompts, by request number.

import { postJson } from "./server.js";

const PARTS = ["subpart", "part", "whole"]; // order of the three predictions, which are sorted by area

export class Model {
  #predictions = new Map();

  /** Return the prediction for the active mask's last prompt, {masks, chosen}, or undefined if there is none yet. */
  predictionFor(active) {
    const prediction = this.#predictions.get(active?.step);
    return prediction && { ...prediction, chosen: chosenOf(prediction, active.part) };
  }

  /** Return the active mask's compressed counts, or null without a prediction. */
  countsOf(active) {
    if (active === null || active.counts !== null) return active?.counts ?? null;
    const prediction = this.predictionFor(active);
    return prediction ? prediction.masks[prediction.chosen].counts : null;
  }

  /** Return the counts to show for the active mask: those that it corrects while it waits, or null. */
  shownFor(active) {
    const { after = null, base = null } = active ?? {};
    return this.countsOf(active) ?? (after && this.countsOf({ counts: null, ...after })) ?? base;
  }

  /** Return whether the active mask waits for a prediction. */
  waits(active) {
    return active !== null && active.step !== null && !this.#predictions.has(active.step);
  }

  /** Request the prediction for the active mask's prompt, and keep it if `isWanted()`; throws as `postJson` does. */
  async ask(image, active, isWanted) {
    const before = active.after && this.#predictions.get(active.after.step);
    const chosen = before && chosenOf(before, active.after.part);
    const corrects = before && before.masks[chosen].area > 0;
    const prompt = {
      points: active.points,
      box: active.box,
      mask: corrects ? before.masks[chosen].counts : active.base, // in case the server has dropped `from`
      from: corrects ? `${before.handle}.${chosen}` : null,
    };
    const prediction = await postJson(`/api/images/${image}/predict`, { prompt, part: "auto" });
    if (isWanted()) this.#predictions.set(active.step, prediction); // numbers may be reused by another image's draft
  }

  /** Return the predictions that states need, for a draft. */
  dump(states) {
    const steps = states.flatMap(({ active }) => (active === null ? [] : [active.step, active.after?.step]));
    return [...this.#predictions].filter(([step]) => steps.includes(step));
  }

  load(predictions) {
    this.#predictions = new Map(predictions);
  }
}

const chosenOf = ({ masks, chosen }, part) => (part === "auto" || masks.length < 3 ? chosen : PARTS.indexOf(part));
