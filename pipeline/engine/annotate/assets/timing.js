// Active seconds for the image and each mask: time counts if there was input within the last `idle` seconds.

export class Stopwatch {
  #now;
  #last = null; // time of the last input, in seconds
  #idle;
  #charged = 0; // time up to which the sums below are complete
  #image = 0;
  #masks = new Map(); // seconds by key
  #key = null; // mask in progress

  /** `now()` is a clock in seconds; `idle` is the number of seconds after an input that still count. */
  constructor(idle, now = () => performance.now() / 1000) {
    this.#idle = idle;
    this.#now = now;
  }

  /** Start with the times of a draft or a submission. */
  reset({ image = 0, masks = {} } = {}) {
    this.#image = image;
    this.#masks = new Map(Object.entries(masks));
    this.#key = null;
    this.#last = this.#charged = this.#now();
  }

  /** Record an input: a key, a move, or a touch. */
  input() {
    this.#charge();
    this.#last = this.#now();
  }

  /** Count nothing until the next input. */
  pause() {
    this.#charge();
    this.#last = null;
  }

  /** From now on, attribute time to the mask with this key, or to none. */
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

  /** Return the seconds on the mask with a key. */
  mask(key) {
    return (this.#masks.get(key) ?? 0) + (key === this.#key && key !== null ? this.#running() : 0);
  }

  /** Add the seconds of other annotators' masks. */
  add(masks) {
    for (const [key, seconds] of Object.entries(masks ?? {})) this.#masks.set(key, seconds);
  }

  dump() {
    this.#charge();
    return { image: this.#image, masks: Object.fromEntries(this.#masks) };
  }

  /** Return the seconds that count but aren't in the sums yet. */
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
