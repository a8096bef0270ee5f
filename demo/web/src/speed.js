// Frames per second over the last two seconds.

const WINDOW_MS = 2000;

export class Speed {
  #times = [];

  reset() {
    this.#times = [];
  }

  /** @param {number} now milliseconds, when a frame was drawn. */
  add(now) {
    this.#times.push(now);
    while (now - this.#times[0] > WINDOW_MS) this.#times.shift();
  }

  /** Null until there are enough frames. */
  get framesPerSecond() {
    const span = this.#times.at(-1) - this.#times[0];
    return this.#times.length < 3 ? null : ((this.#times.length - 1) * 1000) / span;
  }
}
