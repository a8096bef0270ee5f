// Where the next frame of a video is searched for the hand: first in a guide, then around its last keypoints.

import { boxToSquare } from "./crops.js";

// Side of the guide's square, inside which the person holds the hand. A share of the frame's shorter side.
const GUIDE_SHARE = 0.42;
// A hand in the guide is followed from the first mean confidence on, and lost below the second. In the test scenes of
// weights/handunet, 90 % of the hands and 0.4 % of the images without a hand reach the first, 98 % and 3 % the second.
const FOUND_SCORE = 0.35;
const LOST_SCORE = 0.22;
const LOST_MS = 350; // for this time and at least two frames, so that one blurred frame loses no hand
// Keypoints below this confidence do not move the square, if at least MIN_RELIABLE are above it.
const RELIABLE_SCORE = 0.2;
const MIN_RELIABLE = 8;
// Keypoints further from the hand's middle than this many median distances are ignored.
const OUTLIER = 3;
// The share of the way to the last keypoints that the square moves and grows in one frame.
const FOLLOW_POSITION = 0.7;
const FOLLOW_SIZE = 0.3;
// A box outside these shares of the frame's shorter side is not a hand's.
const MIN_BOX_SHARE = 0.06;
const MAX_BOX_SHARE = 1.2;

const median = (values) => values.toSorted((one, other) => one - other)[Math.floor(values.length / 2)];

function withoutOutliers(points) {
  const [x, y] = [median(points.map((point) => point[0])), median(points.map((point) => point[1]))];
  const distances = points.map((point) => Math.hypot(point[0] - x, point[1] - y));
  const limit = OUTLIER * median(distances);
  return points.filter((_, index) => distances[index] <= limit);
}

export class HandTracker {
  #boxFill;
  #box = null; // [center x, center y, side] while a hand is followed
  #doubtfulSince = null;

  constructor(boxFill) {
    this.#boxFill = boxFill;
  }

  get following() {
    return this.#box !== null;
  }

  reset() {
    this.#box = null;
    this.#doubtfulSince = null;
  }

  /** The box in which a hand is expected in a frame of this size. */
  box(width, height) {
    const guide = Math.min(width, height) * GUIDE_SHARE;
    const [x, y, side] = this.#box ?? [width / 2, height / 2, guide];
    return [x - side / 2, y - side / 2, side, side];
  }

  /** The square to cut out of a frame of this size. */
  square(width, height) {
    return boxToSquare(this.box(width, height), this.#boxFill);
  }

  /** Use the answer for `square` of a frame of this size, at the time `now` in milliseconds. */
  update({ keypoints, scores, score }, width, height, now) {
    if (score < (this.following ? LOST_SCORE : FOUND_SCORE)) {
      if (this.#doubtfulSince === null) this.#doubtfulSince = now;
      else if (now - this.#doubtfulSince >= LOST_MS) this.reset();
      return;
    }
    this.#doubtfulSince = null;
    const reliable = keypoints.filter((_, index) => scores[index] >= RELIABLE_SCORE);
    const points = withoutOutliers(reliable.length >= MIN_RELIABLE ? reliable : keypoints);
    const xs = points.map(([x]) => x);
    const ys = points.map(([, y]) => y);
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const found = [(left + right) / 2, (top + bottom) / 2, Math.max(right - left, bottom - top)];
    const shorter = Math.min(width, height);
    const inside = found[0] >= 0 && found[0] < width && found[1] >= 0 && found[1] < height;
    if (!inside || found[2] < MIN_BOX_SHARE * shorter || found[2] > MAX_BOX_SHARE * shorter) {
      this.reset();
      return;
    }
    const steps = [FOLLOW_POSITION, FOLLOW_POSITION, FOLLOW_SIZE];
    this.#box = this.#box ? this.#box.map((value, index) => value + steps[index] * (found[index] - value)) : found;
  }
}
