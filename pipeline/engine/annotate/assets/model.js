// The model's predictions for the active mask's prompts, by the number of the question.

import { postJson } from "./server.js";

const PARTS = ["subpart", "part", "whole"]; // the order of the three predictions, which are sorted by area

export class Model {
  #predictions = new Map();

  /** The prediction for the active mask's last prompt: {masks, chosen}, or undefined while there is none. */
  predictionFor(active) {
    const prediction = this.#predictions.get(active?.step);
    return prediction && { ...prediction, chosen: chosenOf(prediction, active.part) };
  }

  /** The active mask's compressed counts, or null while the model has made no prediction. */
  countsOf(active) {
    if (active === null || active.counts !== null) return active?.counts ?? null;
    const prediction = this.predictionFor(active);
    return prediction ? prediction.masks[prediction.chosen].counts : null;
  }

  /** Whether the active mask waits for a prediction. */
  waits(active) {
    return active !== null && active.step !== null && !this.#predictions.has(active.step);
  }

  /** Asks for the prediction for the active mask's prompt, and keeps it if `isWanted()`; throws as `postJson` does. */
  async ask(image, active, isWanted) {
    const before = active.after && this.#predictions.get(active.after.step);
    const chosen = before && chosenOf(before, active.after.part);
    const corrects = before && before.masks[chosen].area > 0;
    const prompt = {
      points: active.points,
      box: active.box,
      mask: corrects ? before.masks[chosen].counts : active.base, // in case that the server has forgotten `from`
      from: corrects ? `${before.handle}.${chosen}` : null,
    };
    const prediction = await postJson(`/api/images/${image}/predict`, { prompt, part: "auto" });
    if (isWanted()) this.#predictions.set(active.step, prediction); // numbers of another image's draft may be the same
  }

  /** The predictions that states need, for a draft. */
  dump(states) {
    const steps = states.flatMap(({ active }) => (active === null ? [] : [active.step, active.after?.step]));
    return [...this.#predictions].filter(([step]) => steps.includes(step));
  }

  load(predictions) {
    this.#predictions = new Map(predictions);
  }
}

const chosenOf = ({ masks, chosen }, part) => (part === "auto" || masks.length < 3 ? chosen : PARTS.indexOf(part));
