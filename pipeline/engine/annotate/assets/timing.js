// Active seconds: time counts while there was input within the last `idle` seconds, for the image and for each mask.

export class Stopwatch {
  #now;
  #last = null; // when there was input, in seconds
  #idle;
  #charged = 0; // up to when time is in the sums below
  #image = 0;
  #masks = new Map(); // seconds by key
  #key = null; // the mask that is worked on

  /** `now()` is a clock in seconds, `idle` the seconds after an input that still count. */
  constructor(idle, now = () => performance.now() / 1000) {
    this.#idle = idle;
    this.#now = now;
  }

  /** Begins with the times of a draft or a submission. */
  reset({ image = 0, masks = {} } = {}) {
    this.#image = image;
    this.#masks = new Map(Object.entries(masks));
    this.#key = null;
    this.#last = this.#charged = this.#now();
  }

  /** Notes an input: a key, a move, a touch. */
  input() {
    this.#charge();
    this.#last = this.#now();
  }

  /** Counts nothing until the next input. */
  pause() {
    this.#charge();
    this.#last = null;
  }

  /** From now on time is the mask's with this key, or no mask's. */
  workOn(key) {
    if (key === this.#key) return;
    this.#charge();
    this.#key = key;
  }

  get idle() {
    return this.#last === null || this.#now() - this.#last >= this.#idle;
  }

  get image() {
    return this.#image + this.#running();
  }

  /** Seconds on the mask with a key. */
  mask(key) {
    return (this.#masks.get(key) ?? 0) + (key === this.#key && key !== null ? this.#running() : 0);
  }

  /** Adds the seconds of masks that others made. */
  add(masks) {
    for (const [key, seconds] of Object.entries(masks ?? {})) this.#masks.set(key, seconds);
  }

  dump() {
    this.#charge();
    return { image: this.#image, masks: Object.fromEntries(this.#masks) };
  }

  /** Seconds that count and were not charged yet. */
  #running() {
    if (this.#last === null) return 0;
    return Math.max(0, Math.min(this.#now(), this.#last + this.#idle) - this.#charged);
  }

  #charge() {
    const seconds = this.#running();
    this.#image += seconds;
    if (this.#key !== null) this.#masks.set(this.#key, (this.#masks.get(this.#key) ?? 0) + seconds);
    this.#charged = this.#now();
  }
}
