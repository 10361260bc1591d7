// Editor of one image: processes gestures in order, asks the model, keeps the draft, and saves.

import { inheritedLabel, itemsOf, noteOf, sameNote, submissionOf, timesOf } from "./submission.js";
import { draftKey } from "./drafts.js";
import { History } from "./history.js";
import { Keeping } from "./keeping.js";
import { Model } from "./model.js";
import { draftOf, restored, workOf } from "./restoring.js";
import { Saver } from "./saving.js";
import { getJson, GoneError, postJson } from "./server.js";
import { brushed, hasPixels } from "./strokes.js";
import { Stopwatch } from "./timing.js";
import { GestureQueue } from "./gestures.js";
import * as work from "./work.js";

const CHANGED = "This image changed after it was saved. The masks that still fit are here. Check them and save.";

export class Editor {
  #session;
  #listeners;
  #saver;
  #gestures;
  #turn = 0; // counts the opened images
  #first = work.begin([]);
  #theirs = null; // state with the submission of another annotator who saved first
  #sending = null; // {body, state, note}: the work to save, as of the time of the request
  #selected = null; // key of an item
  #doubles = false; // whether the last accepted mask nearly equals another one
  #unclean = []; // [{key, counts}] of accepted masks to clean
  history = new History(this.#first);
  model = new Model();
  image = null; // server's response for the open image; without it, gestures do nothing
  cleans = true; // whether accepted masks are cleaned
  note = noteOf(null);

  /**
   * Calls these `listeners`: changed(), opened(image), accepted(key), which returns whether the mask nearly equals
   * another one, saved(id, by us), lost(winner), changedMeanwhile(id), shared(whether another window has the image),
   * say(text), problem(error or null).
   */
  constructor(session, listeners) {
    this.#session = session;
    this.#listeners = listeners;
    this.#saver = new Saver(session.annotator);
    this.#gestures = this.#queue();
    this.watch = new Stopwatch(session.idle_s);
    this.keeping = new Keeping(() => this.#draft(), this.watch, {
      shared: (shared) => listeners.shared(shared),
      freed: (draft, touched) => this.#takeOver(draft, touched),
      failed: () => listeners.say("This browser can't keep drafts. Save often."),
    });
  }

  get state() {
    return this.history.state;
  }

  /** Item that is being corrected or is selected, or null. */
  get selected() {
    const { items, active } = this.state;
    const chosen = active === null ? this.#selected : active.of;
    return items.find(({ key }) => key === chosen) ?? null;
  }

  /** Pixels that a gesture would change, of the active mask or the selected item, or null. */
  get counts() {
    return this.state.active === null ? (this.selected?.counts ?? null) : this.model.countsOf(this.state.active);
  }

  get changed() {
    const { state, note, image } = this;
    return state.active !== null || !work.sameItems(state, this.#first) || !sameNote(note, image?.submission);
  }

  /** Open an image, with its draft if there is one. */
  async open(id) {
    this.close();
    const turn = ++this.#turn;
    const { stage, annotator, dataset } = this.#session;
    const key = draftKey(dataset, id, annotator);
    const [image, draft] = await Promise.all([getJson(`/api/images/${id}`), this.keeping.read(key)]);
    if (turn !== this.#turn) return; // another image was opened
    const began = image.submission?.seconds ?? 0;
    Object.assign(image, { id, key, stage, began, locks: stage === "semi" });
    const useless = this.#begin(image, draft);
    this.image = image;
    this.keeping.begin(key, useless);
    this.#listeners.opened(image);
    if ((image.submission?.annotator ?? annotator) !== annotator) {
      this.#theirs = this.#first;
      this.#listeners.lost(image.submission);
    }
    this.#show();
    postJson(`/api/images/${id}/embed`).catch(() => {}); // a click would report the error
    if (this.model.waits(this.state.active)) this.#do(() => {});
  }

  /** Ignore gestures until an image is open. */
  close() {
    this.keeping.leave();
    this.#gestures.stop();
    this.#gestures = this.#queue();
    this.image = null;
  }

  #queue() {
    const owed = { cleans: () => this.#clean(), asks: () => this.#ask(), saves: () => this.#deliver() };
    return new GestureQueue(owed, (error) => this.#listeners.problem(error));
  }

  /** Load the draft, if any; return whether it can be deleted. */
  #begin(image, draft) {
    if (draft) work.useNumbersFrom(draft.last);
    this.#first = work.begin(itemsOf(image));
    [this.#theirs, this.#selected, this.#sending, this.#unclean] = [null, null, null, []];
    this.#saver.reset();
    const back = draft ? restored(draft, image, this.#first) : null;
    if (back === null) this.history.reset(this.#first);
    else this.history.load(back.history);
    this.model.load(back?.predictions ?? []);
    this.watch.reset(back?.times ?? timesOf(image.submission));
    this.note = back?.note ?? noteOf(image.submission);
    if (back?.text) this.#listeners.say(back.text);
    else if (image.submission !== null && image.state !== "submitted") this.#listeners.say(CHANGED);
    return Boolean(draft) && back === null;
  }

  /** Take over an image and its draft from another window. If there is work here, undo shows that draft. */
  #takeOver(draft, touched) {
    if (!touched) {
      this.keeping.end(); // the draft contains everything done here
      this.#listeners.changedMeanwhile(this.image.id);
      return;
    }
    const { state } = this;
    const theirs = draft && !draft.looked ? workOf(draft, this.image) : null;
    if (theirs !== null && !work.sameMasks(theirs.state, state)) {
      this.watch.add(theirs.masks);
      this.history.push(theirs.state);
      this.history.push(state);
      this.#listeners.say("The other window has left this image. Undo restores its draft.");
    }
    this.#kept();
  }

  point(x, y, label) {
    return this.#prompt(() => {
      if (this.#isLocked()) return this.state;
      const { state, selected } = this;
      if (label || state.active !== null || selected !== null) return work.addPoint(state, x, y, label, selected);
      this.#listeners.say("Start with a point on the object, or choose a mask.");
      return this.state;
    });
  }

  box(box) {
    return this.#prompt(() => (this.#isLocked() ? this.state : work.setBox(this.state, box, this.selected)));
  }

  #prompt(change) {
    return this.#do(() => this.#push(change()));
  }

  /** Add the pixels of a stroke to the mask, or remove them from it. */
  stroke(points, radius, adds) {
    return this.#doWithPixels(() => {
      const { counts } = this;
      if (this.#isWaiting() || this.#isLocked()) return;
      if (!adds && counts === null) return this.#listeners.say("Choose a mask to erase from first.");
      const made = brushed(counts, points, radius, adds, this.image.size);
      if (hasPixels(made, this.image.size)) this.#push(work.setPixels(this.state, made, this.selected));
      else if (counts !== null) this.#remove();
    });
  }

  part(part) {
    return this.#do(() => this.#push(work.setPart(this.state, part)));
  }

  /** Make the active mask an item of the image; return true if it was accepted. */
  accept() {
    return this.#doWithPixels(() => this.#accept());
  }

  #accept() {
    const { counts } = this;
    if (this.#isWaiting()) return false;
    [this.#selected, this.#doubles] = [null, false];
    if (this.state.active === null) return this.#show();
    if (!hasPixels(counts, this.image.size)) return this.#listeners.say("The mask is empty. Add a point or cancel.");
    const { active, items } = this.state;
    const rowOf = (id) => this.image.masks.find((row) => row.annotation_id === id);
    const accepted = work.accept(this.state, counts, (id) => inheritedLabel(rowOf(id), counts));
    this.#push(accepted);
    if (accepted.items === items) return true; // the mask was only selected
    if (this.cleans) this.#unclean.push({ key: active.key, counts });
    this.#doubles = this.#listeners.accepted(active.key);
    return true;
  }

  #isWaiting() {
    const waits = this.model.waits(this.state.active);
    if (waits) this.#listeners.say("The model hasn't responded yet.");
    return waits;
  }

  /** Return whether the selected mask is locked, with no active mask. */
  #isLocked() {
    const locked = this.state.active === null && (this.selected?.locked ?? false);
    if (locked) this.#listeners.say("This mask is locked. Press L to unlock it or Escape to leave it.");
    return locked;
  }

  /** Unlock the selected mask. */
  unlock() {
    return this.#do(() => {
      if (this.selected?.locked) this.#push(work.unlock(this.state, this.#selected));
    });
  }

  /** Set the label of the active mask, which is accepted first, or of the selected one. "" removes the label. */
  label(text) {
    return this.#doWithPixels(() => {
      if (this.#isLocked()) return;
      const { active } = this.state;
      const keys = [active?.key, active?.of, this.selected?.key];
      if (active !== null && this.#accept() !== true) return;
      const place = this.state.items.findIndex(({ key }) => keys.includes(key));
      if (place < 0) return;
      const labeled = work.setLabel(this.state, this.state.items[place].key, text);
      this.#selected = active === null ? labeled.items[place].key : null;
      this.#push(labeled);
    });
  }

  cancel() {
    return this.#do(() => {
      this.#selected = null;
      this.#push(work.cancel(this.state));
    });
  }

  /** Delete the active or selected mask. */
  remove() {
    return this.#do(() => this.#remove());
  }

  #remove() {
    const key = this.selected?.key ?? null;
    if ((key === null && this.state.active === null) || this.#isLocked()) return;
    this.#selected = null;
    this.#push(work.remove(this.state, key));
  }

  /** Replace an item by another one, both given by their keys. */
  replace(key, twin) {
    return this.#do(() => this.#push(work.replace(this.state, key, twin)));
  }

  /** Set whether all prominent objects are annotated, the comment on the image, and its flag. */
  setNote(note) {
    return this.#do(() => {
      this.note = note;
      this.#kept();
    });
  }

  /** Select an item to correct by its key, or none with null. An active mask is accepted first. */
  select(key) {
    return this.#doWithPixels(() => {
      if (this.state.active !== null && this.#accept() !== true) return;
      this.#selected = key;
      this.#show();
    });
  }

  undo() {
    return this.#do(() => this.history.undo() && this.#kept());
  }

  redo() {
    return this.#do(() => this.history.redo() && this.#kept());
  }

  /**
   * Save the current work. Calls `listeners.saved` when the server has stored it, or `listeners.lost` if another
   * annotator saved first. If the server doesn't respond, the same body is retried regardless of later changes.
   */
  save() {
    return this.#doWithPixels(() => {
      if (this.state.active !== null) {
        if (this.#accept() !== true) return;
        if (this.#doubles) return this.#listeners.say("Not saved yet. Answer first, or save again to keep both masks.");
      }
      const { state, note } = this;
      this.#sending = { state, note, times: this.watch.dump(), body: null };
      this.keeping.keep();
    });
  }

  async #deliver() {
    const { image } = this;
    if (this.#sending === null) return;
    await this.#gestures.ended("cleans"); // of a mask that was accepted by saving
    const sending = this.#sending;
    if (sending === null || image === null || this.image !== image) return;
    if (sending.body === null) {
      sending.body = submissionOf(image, sending.state.items, sending.times, sending.note);
      this.#unclean = []; // a late response doesn't change what is saved
    }
    let outcome = {};
    try {
      if (sending.state !== this.#theirs) outcome = await this.#saver.save(image, sending.body);
    } catch (error) {
      if (this.#sending === sending && !(error instanceof GoneError)) this.#sending = null;
      else if (this.image === image) this.#listeners.say("Not saved yet. Retrying every three seconds.");
      throw error;
    }
    if (this.image !== image) return; // another image was opened meanwhile
    if (this.#sending === sending) this.#sending = null; // else another save was requested meanwhile
    if (outcome.winner === undefined) this.#saved(image, sending);
    else this.#lost(outcome.winner);
  }

  #saved(image, { state, note, body }) {
    if (this.state === state && sameNote(this.note, note)) {
      this.keeping.drop();
      this.#listeners.saved(image.id, state !== this.#theirs);
      return;
    }
    this.#first = state;
    image.began = body.seconds;
    this.#kept();
    this.#listeners.say("Saved, but without the changes that you made since. Save again.");
  }

  #lost(winner) {
    if (winner === null) {
      this.#listeners.changedMeanwhile(this.image.id); // keeps what fits of the draft
      return;
    }
    this.watch.add(timesOf(winner).masks);
    this.#theirs = work.begin(itemsOf({ ...this.image, submission: winner }));
    this.#push(this.#theirs);
    this.#listeners.lost(winner);
  }

  /** Clean the accepted masks, each as a step to undo. A mask that the server refuses stays as it is. */
  async #clean() {
    const { image } = this;
    const refused = (error) => {
      if (error instanceof GoneError) throw error;
      return {};
    };
    for (let [mask] = this.#unclean; mask; [mask] = this.#unclean) {
      const asked = postJson(`/api/images/${image.id}/clean`, { counts: mask.counts });
      const { counts = mask.counts } = await asked.catch(refused);
      if (this.image !== image || this.#unclean[0] !== mask) return;
      this.#unclean.shift();
      const [{ state }, sending] = [this, this.#sending];
      const cleaned = work.setCounts(state, mask, counts);
      if (sending?.state === state) sending.state = cleaned;
      else if (sending) sending.state = work.setCounts(sending.state, mask, counts);
      if (cleaned === state) continue;
      this.#push(cleaned);
      if (!this.#doubles) this.#listeners.say("Small specks or holes in the mask were removed. To restore them, undo.");
    }
  }

  /** Request the predictions that the active mask needs, in the order of its prompts. */
  async #ask() {
    const { image } = this;
    for (let active = this.#unasked(); active !== null && image !== null; active = this.#unasked()) {
      await this.model.ask(image.id, active, () => this.image === image);
      if (this.image !== image) return;
      this.#kept();
    }
  }

  /** Return the active mask at its first prompt without a prediction, or null if there is none. */
  #unasked() {
    let [found, { active }] = [null, this.state];
    while (this.model.waits(active)) {
      found = active;
      active = active.after && this.history.activeAt(active.after.step);
    }
    return found;
  }

  #push(state) {
    this.history.push(state);
    this.#kept();
  }

  /** Keep the draft and show the state. */
  #kept() {
    this.keeping.keep();
    this.#show();
  }

  #draft() {
    const { image, model, state, note } = this;
    const history = this.history.dump();
    const counts = model.countsOf(state.active);
    return draftOf(image, history, model.dump(history.states), this.watch.dump(), counts, note);
  }

  #show() {
    this.watch.workOn(this.state.active?.key ?? null);
    this.#listeners.changed();
  }

  /** Change the state after all earlier gestures, and after `ready()`. */
  #do(change, ready) {
    return this.image === null ? Promise.resolve() : this.#gestures.run(change, ready);
  }

  /** Change the state once the active mask has pixels, unless the server doesn't respond. */
  #doWithPixels(change) {
    return this.#do(change, () => this.model.waits(this.state.active) && this.#gestures.ended("asks"));
  }
}
