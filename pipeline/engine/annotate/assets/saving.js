// Saves an image's submission, and interprets rejected saves.

import { isSame } from "./submission.js";
import { putJson } from "./server.js";

const TAKEN = 409;

export class Saver {
  #annotator;
  #sent = []; // bodies sent for the image, which may have arrived without a reply

  constructor(annotator) {
    this.#annotator = annotator;
  }

  /** Start with another image. */
  reset() {
    this.#sent = [];
  }

  /**
   * Save `body` as the next submission. Returns {} when the server has stored it, else {winner}: the submission of an
   * annotator who saved first, or null if the image's masks have changed. Throws as `putJson` does.
   */
  async save(image, body) {
    // Resend the original body, because the time has changed since and retries must be idempotent.
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
