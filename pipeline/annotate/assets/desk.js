// The work on one image: gestures in their order, the model's answers, the draft, and saving.

import { answerOf, carried, itemsOf, timesOf } from "./answer.js";
import { Drafts, draftKey } from "./drafts.js";
import { History } from "./history.js";
import { Model } from "./model.js";
import { Saver } from "./saving.js";
import { getJson, postJson, RefusedError } from "./server.js";
import { brushed, hasPixels } from "./strokes.js";
import { Stopwatch } from "./timing.js";
import { Turns } from "./turns.js";
import * as work from "./work.js";

export class Desk {
  #session;
  #told;
  #drafts = new Drafts();
  #saver;
  #turns;
  #turn = 0; // counts what was opened
  #first = work.begin([]);
  #theirs = null; // the state with the answer of somebody who was faster
  #selected = null; // an item's key
  history = new History(this.#first);
  model = new Model();
  image = null; // the server's answer about the image that is open; no gesture does anything without
  complete = true;

  /** `told` has what is called: changed(), opened(image), saved(id, by us), lost(winner), say(text), problem(error or null). */
  constructor(session, told) {
    this.#session = session;
    this.#told = told;
    this.#saver = new Saver(session.annotator);
    this.#turns = new Turns((error) => told.problem(error));
    this.watch = new Stopwatch(session.idle_s);
  }

  get state() {
    return this.history.state;
  }

  /** The item that is chosen to be corrected, or null. */
  get selected() {
    return this.state.items.find(({ key }) => key === this.#selected) ?? null;
  }

  /** The pixels that a gesture would change: of the active mask or the chosen item; null if there are none. */
  get counts() {
    return this.state.active === null ? (this.selected?.counts ?? null) : this.model.countsOf(this.state.active);
  }

  get changed() {
    return this.state.active !== null || !work.sameItems(this.state, this.#first);
  }

  /** Shows an image, with its draft if there is one. */
  async open(id) {
    this.close();
    const turn = ++this.#turn;
    const image = await getJson(`/api/images/${id}`);
    if (image.state === "gone") throw new RefusedError("This image is no longer in the dataset.", 410, null);
    const key = draftKey(this.#session.dataset.name, id, image.lane, this.#session.annotator, image.base);
    const draft = await this.#drafts.read(key).catch(() => undefined);
    if (turn !== this.#turn) return; // another image is opened
    Object.assign(image, { id, key, locks: this.#session.stage === "semi" });
    this.history.reset((this.#first = work.begin(itemsOf(image))));
    this.model.load([]);
    this.watch.reset(timesOf(image.answer));
    this.#saver.reset();
    [this.#theirs, this.#selected] = [null, null];
    this.complete = image.answer?.complete ?? true;
    if (image.answer !== null && image.state !== "answered") {
      this.#told.say("This image has changed since it was saved. What fits of that work is here: look, and save.");
    }
    if (draft) this.#restore(draft, image);
    this.image = image;
    this.#told.opened(image);
    const by = image.answer?.annotator ?? this.#session.annotator;
    if (by !== this.#session.annotator) {
      this.#theirs = this.state;
      this.#told.lost(image.answer);
    }
    this.#show();
    postJson(`/api/images/${id}/embed`).catch(() => {}); // a click would say what is wrong
    if (this.model.waits(this.state.active)) this.#do(() => {});
  }

  /** Takes no gestures until an image is open. */
  close() {
    this.#turns.stop();
    this.image = null;
  }

  #restore(draft, image) {
    work.useNumbersFrom(draft.last);
    this.history.load(draft.history);
    this.model.load(draft.answers);
    this.watch.reset(draft.times);
    if (draft.n === image.n) return this.#told.say("Your draft of this image is back.");
    this.history.push(this.#first);
    return this.#told.say("This image was saved elsewhere since your draft. Undo brings the draft back.");
  }

  point(x, y, label) {
    return this.#prompt(() => {
      if (this.#isLocked()) return this.state;
      if (label || this.counts !== null) return work.addPoint(this.state, x, y, label, this.selected);
      this.#told.say("Begin with a point on the object, or choose a mask.");
      return this.state;
    });
  }

  box(box) {
    return this.#prompt(() => (this.#isLocked() ? this.state : work.setBox(this.state, box, this.selected)));
  }

  #prompt(change) {
    return this.#do(() => this.#push(change()));
  }

  /** Adds the pixels of a stroke to the mask, or takes them from it. */
  stroke(points, radius, adds) {
    return this.#do(() => {
      const { counts } = this;
      if (this.#isWaiting() || this.#isLocked()) return;
      if (!adds && counts === null) return this.#told.say("Choose a mask first: there is nothing to erase.");
      const made = brushed(counts, points, radius, adds, this.image.size);
      if (hasPixels(made, this.image.size)) this.#push(work.setPixels(this.state, made, this.selected));
      else if (counts !== null) this.remove();
    });
  }

  part(part) {
    return this.#do(() => this.#push(work.setPart(this.state, part)));
  }

  /** Makes the active mask one of the image's; returns whether it has none any more. */
  accept() {
    return this.#do(() => this.#accept());
  }

  #accept() {
    const { counts } = this;
    if (this.#isWaiting()) return false;
    this.#selected = null;
    if (this.state.active === null) return this.#show();
    if (!hasPixels(counts, this.image.size)) return this.#told.say("The mask has no pixel: add a point or cancel.");
    this.#push(work.accept(this.state, counts));
    return true;
  }

  #isWaiting() {
    const waits = this.model.waits(this.state.active);
    if (waits) this.#told.say("The model has not answered yet.");
    return waits;
  }

  /** Whether the chosen mask may not be changed, and no other one is worked on. */
  #isLocked() {
    const locked = this.state.active === null && (this.selected?.locked ?? false);
    if (locked) this.#told.say("This mask is locked. L unlocks it, Escape leaves it.");
    return locked;
  }

  /** Lets the chosen mask be changed. */
  unlock() {
    if (this.image === null || !this.selected?.locked) return;
    this.#push(work.unlock(this.state, this.#selected));
  }

  cancel() {
    if (this.image === null) return;
    this.#selected = null;
    this.#push(work.cancel(this.state));
  }

  /** Deletes the mask that is worked on or chosen. */
  remove() {
    const key = this.state.active?.of ?? this.selected?.key ?? null;
    if (this.image === null || (key === null && this.state.active === null) || this.#isLocked()) return;
    this.#selected = null;
    this.#push(work.remove(this.state, key));
  }

  /** Chooses an item to correct, by its key; null for none. An active mask is accepted first. */
  select(key) {
    return this.#do(() => {
      if (this.state.active !== null && this.#accept() !== true) return;
      this.#selected = key;
      this.#show();
    });
  }

  undo() {
    this.#step(() => this.history.undo());
  }

  redo() {
    this.#step(() => this.history.redo());
  }

  #step(act) {
    if (this.image === null || !act()) return;
    this.#kept();
    if (this.model.waits(this.state.active)) this.#do(() => {});
  }

  /** Saves; `told.saved` hears when the server has the answer, `told.lost` when somebody was faster. */
  save() {
    return this.#do(
      () => this.state.active === null || this.#accept() === true,
      async (accepted) => {
        const { image } = this;
        if (!accepted) return undefined;
        if (this.state === this.#theirs) return this.#told.saved(image.id, false);
        const body = answerOf(image, this.state.items, this.watch.dump(), this.complete);
        const { winner } = await this.#saver.save(image, body);
        if (winner !== undefined) return this.#lost(winner, body);
        await this.#drafts.remove(image.key).catch(() => {});
        return this.#told.saved(image.id, true);
      },
    );
  }

  async #lost(winner, body) {
    if (winner === null) {
      await this.open(this.image.id);
      const masks = itemsOf({ ...this.image, answer: null, prefill: [] }); // what was saved is in the body, too
      this.#push(work.begin(carried(masks, body, `c${work.nextNumber()}`)));
      return this.#told.say("This image's masks have changed meanwhile. What fits of your work is here: look, and save.");
    }
    this.watch.add(timesOf(winner).masks);
    this.#theirs = work.begin(itemsOf({ ...this.image, answer: winner }));
    this.#push(this.#theirs);
    return this.#told.lost(winner);
  }

  async #ask() {
    const { active } = this.state;
    if (!this.model.waits(active)) return;
    await this.model.ask(this.image.id, active);
    this.#kept();
  }

  #push(state) {
    this.history.push(state);
    this.#kept();
  }

  /** Keeps the draft and shows the state. */
  #kept() {
    if (this.image === null) return;
    const history = this.history.dump();
    const answers = this.model.dump(history.states);
    const draft = { history, answers, times: this.watch.dump(), n: this.image.n, last: work.lastNumber() };
    this.#drafts.write(this.image.key, draft).catch(() => this.#told.say("This browser keeps no drafts: save often."));
    this.#show();
  }

  #show() {
    this.watch.workOn(this.state.active?.key ?? null);
    this.#told.changed();
  }

  /** Changes the state after the gestures before; `follow` is what the server must hear. */
  #do(change, follow = () => this.#ask()) {
    const { image } = this;
    return this.#turns.run(() => image !== null && this.image === image, change, follow);
  }
}
