// Saves an image's submission, and finds out what a refusal means.

import { isSame } from "./submission.js";
import { putJson } from "./server.js";

const TAKEN = 409;

export class Saver {
  #annotator;
  #sent = []; // what was sent for the image and may have arrived without a reply

  constructor(annotator) {
    this.#annotator = annotator;
  }

  /** Begins with another image. */
  reset() {
    this.#sent = [];
  }

  /**
   * Saves `body` as the next submission. Returns {} once the server has it, else {winner}: somebody's submission that was
   * faster, or null if the image's masks have changed. Throws as `putJson` does.
   */
  async save(image, body) {
    // A submission that was sent before is sent as it was: the time has gone on.
    const known = this.#sent.find((sent) => isSame({ ...body, seconds: sent.seconds, annotator: "" }, sent, ""));
    const submission = known ?? body;
    if (!known) this.#sent.push(body);
    try {
      await putJson(`/api/images/${image.id}/submissions/${image.n + 1}`, submission);
    } catch (error) {
      if (error.status !== TAKEN) throw error;
      return this.#refused(image, submission, error.body ?? {});
    }
    image.n++;
    return {};
  }

  async #refused(image, submission, { winner = null, base }) {
    if (winner === null || base !== image.base) return { winner: null };
    image.n = winner.n;
    const ours = this.#sent.find((sent) => isSame(winner, sent, this.#annotator));
    if (ours === submission) return {};
    return ours ? this.save(image, submission) : { winner };
  }
}
