// Hands in a film: which hand is which from frame to frame, where to look for it next, and steady keypoints.
//
// The rules of modeling_handunet/tracking.py, function by function; both are tested on the recorded cases of
// tests/data/tracking_cases.json.  The constants are its TrackingRules, which tracking_rules.json holds with the detection
// threshold.  Boxes are [x_min, y_min, x_max, y_max] in pixels, points [x, y], times in seconds, sides "right" and "left".

const sum = (values) => values.reduce((total, value) => total + value, 0);
const distance = ([x, y], [otherX, otherY]) => Math.hypot(x - otherX, y - otherY);

/** The box of keypoints. */
export function keypointsBox(keypoints) {
  const xs = keypoints.map(([x]) => x);
  const ys = keypoints.map(([, y]) => y);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

/** The longer side of the box of keypoints. */
export function handSize(keypoints) {
  const [left, top, right, bottom] = keypointsBox(keypoints);
  return Math.max(right - left, bottom - top);
}

/** Mean distance of two hands' keypoints. */
export function keypointDistance(one, other) {
  return sum(one.map((point, index) => distance(point, other[index]))) / one.length;
}

function middle(keypoints) {
  const [left, top, right, bottom] = keypointsBox(keypoints);
  return [(left + right) / 2, (top + bottom) / 2];
}

const isInside = ([x, y], [width, height]) => 0 <= x && x < width && 0 <= y && y < height;

/** The box that a detector would give of the hand with these keypoints. */
export function detectorBox(keypoints, rules) {
  const margin = rules.margin * handSize(keypoints);
  const [left, top, right, bottom] = keypointsBox(keypoints);
  return [left - margin, top - margin, right + margin, bottom + margin];
}

/** Where the keypoints of a track are expected at `time`. */
function expected(track, time, rules) {
  const ahead = Math.min(time - track.seen, rules.carry_on);
  const way = track.speed.map((value) => value * ahead);
  const [length, most] = [Math.hypot(...way), rules.carry_most * track.extent];
  const [right, down] = way.map((value) => value * (length > most ? most / length : 1));
  return track.keypoints.map(([x, y]) => [x + right, y + down]);
}

const sideOf = (track) => (track.votes >= 0 ? "right" : "left");
const voteOf = ({ side, score }) => (side === "right" ? score : -score);

/** Whether a hand is new, is near another one, or was missing in the last frame, so that the detector is needed soon. */
function mustSearch(tracks, lastTime, rules) {
  if (!tracks.length || tracks.some((track) => track.sightings < 2 || track.seen < lastTime)) return true;
  const places = tracks.map(({ keypoints, extent }) => [middle(keypoints), extent]);
  return places.some(([place, size], index) =>
    places.slice(0, index).some(([other, otherSize]) => distance(place, other) < rules.near * Math.max(size, otherSize)),
  );
}

/** Distance of the middles of two boxes over the larger one's longer side; infinite if they differ much in size. */
function boxDistance(one, other, rules) {
  const sides = [one, other].map(([left, top, right, bottom]) => Math.max(right - left, bottom - top));
  const larger = Math.max(...sides);
  if (Math.min(...sides) <= 0 || larger > rules.same_size * Math.min(...sides)) return Infinity;
  const [x, y] = [0, 1].map((axis) => (one[axis] + one[axis + 2] - other[axis] - other[axis + 2]) / 2);
  return Math.hypot(x, y) / larger;
}

/** Intersection over union of two boxes. */
function overlap(one, other) {
  const [width, height] = [0, 1].map((axis) => Math.min(one[axis + 2], other[axis + 2]) - Math.max(one[axis], other[axis]));
  const both = Math.max(width, 0) * Math.max(height, 0);
  const areas = sum([one, other].map(([left, top, right, bottom]) => (right - left) * (bottom - top)));
  return both / Math.max(areas - both, 1e-9);
}

/** Whether two readings are of one hand. */
export function isOneHand(one, other, rules) {
  const largest = Math.max(handSize(one.keypoints), handSize(other.keypoints));
  if (keypointDistance(one.keypoints, other.keypoints) <= rules.same_hand * largest) return true;
  return one.side !== other.side && overlap(keypointsBox(one.keypoints), keypointsBox(other.keypoints)) >= rules.same_box;
}

/** Of [distance, first, second] the nearest pair, then the nearest of what is left, and so on: each one once. */
function closestPairs(pairs) {
  const firsts = new Set();
  const seconds = new Set();
  const chosen = [];
  for (const [, first, second] of pairs.toSorted((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2])) {
    if (firsts.has(first) || seconds.has(second)) continue;
    chosen.push([first, second]);
    firsts.add(first);
    seconds.add(second);
  }
  return chosen;
}

/** Where to read: each hand where it is expected, and each detection that lies at none of these places. */
function placesToRead(tracks, found, time, size, rules) {
  const looks = [];
  for (const track of tracks.toSorted((one, other) => one.id - other.id)) {
    const [x, y] = middle(expected(track, time, rules));
    if (time - track.seen > rules.look_on || !isInside([x, y], size)) continue;
    const half = track.extent * (0.5 + rules.margin);
    looks.push({ box: [x - half, y - half, x + half, y + half], side: sideOf(track), detection: null });
  }
  const pairs = [];
  looks.forEach((look, first) => {
    found.forEach((hand, second) => {
      const apart = boxDistance(look.box, hand.box, rules);
      if (apart > rules.same_place) return;
      pairs.push([apart + (look.side === hand.side ? 0 : rules.other_side), first, second]);
    });
  });
  const free = new Set(found.keys());
  for (const [first, second] of closestPairs(pairs)) {
    looks[first].detection = found[second];
    free.delete(second);
  }
  return [...looks, ...[...free].map((index) => ({ ...found[index], detection: found[index] }))];
}

/** The readings that are of a hand in the frame; of two that are one hand, the surer one. */
function usableSights(looks, { keypoints, scores }, size, rules) {
  const sights = [];
  looks.forEach(({ side, detection }, index) => {
    const points = keypoints[index];
    const score = sum(scores[index]) / scores[index].length;
    const sight = { keypoints: points, scores: scores[index], score, side, detection };
    if (score < rules.lost_score || handSize(points) < 1 || !isInside(middle(points), size)) return;
    const same = sights.findIndex((other) => isOneHand(sight, other, rules));
    if (same < 0) {
      sights.push(sight);
      return;
    }
    const other = sights[same];
    const surer = score > other.score ? sight : other;
    surer.detection = other.detection ?? detection;
    sights[same] = surer;
  });
  return sights;
}

/**
 * Which hand is at which sight: the nearest to where its keypoints are expected, if it can have come there. `detected` says
 * whether the detector ran on this frame.
 */
function assign(tracks, sights, time, detected, rules) {
  const pairs = [];
  tracks.forEach((track, first) => {
    const points = expected(track, time, rules);
    const waited = time - track.seen;
    const reach = Math.min(rules.reach + rules.reach_speed * waited, rules.max_reach);
    sights.forEach((sight, second) => {
      const { detection } = sight;
      const growth = handSize(sight.keypoints) / track.extent;
      const isOtherSide = (detection ?? sight).side !== sideOf(track);
      let apart = keypointDistance(points, sight.keypoints) / track.extent;
      if (apart > reach || (isOtherSide && waited > rules.look_on)) return;
      if (!detection && (growth < 1 / rules.max_growth || growth > rules.max_growth)) return;
      if (detected && (!detection || isOtherSide)) apart += rules.unconfirmed;
      if (sight.side !== sideOf(track)) apart += rules.other_side;
      pairs.push([apart, first, second]);
    });
  });
  return closestPairs(pairs).map(([first, second]) => [tracks[first], sights[second]]);
}

/** The share of a new value in an exponential low-pass filter with a cut-off in Hz, `step` seconds after the last. */
const lowPass = (cutoff, step) => 1 / (1 + 1 / (2 * Math.PI * cutoff * step));

/** One step of the One Euro filter on keypoints; returns the filtered ones and their filtered speed. */
function oneEuro(values, steady, slope, step, size, rules) {
  const both = values.map((point, index) =>
    point.map((value, axis) => {
      const change = (value - steady[index][axis]) / step - slope[index][axis];
      const filtered = slope[index][axis] + lowPass(rules.speed_cutoff, step) * change;
      const cutoff = rules.min_cutoff + (rules.beta * Math.abs(filtered)) / size;
      return [steady[index][axis] + lowPass(cutoff, step) * (value - steady[index][axis]), filtered];
    }),
  );
  return [0, 1].map((which) => both.map((point) => point.map((pair) => pair[which])));
}

const noSlope = (keypoints) => keypoints.map(() => [0, 0]);

/** Move a hand to where it was read at `time`, and count the detection there. */
function update(track, { keypoints, scores, score, detection }, time, smooth, rules) {
  const step = time - track.seen;
  const [x, y] = middle(keypoints);
  const [lastX, lastY] = middle(track.keypoints);
  const share = 1 - Math.exp(-step / rules.speed_time);
  const speed = [(x - lastX) / step, (y - lastY) / step];
  track.speed = track.speed.map((value, axis) => value + share * (speed[axis] - value));
  const size = handSize(keypoints);
  track.extent += (1 - Math.exp(-step / rules.size_time)) * (size - track.extent);
  if (smooth && step <= rules.filter_gap) {
    [track.steady, track.slope] = oneEuro(keypoints, track.steady, track.slope, step, size, rules);
  } else {
    [track.steady, track.slope] = [keypoints, noSlope(keypoints)];
  }
  Object.assign(track, { keypoints, scores, score, seen: time });
  if (!detection) return;
  track.votes = track.votes * Math.exp(-(time - track.confirmed) / rules.votes_time) + voteOf(detection);
  track.handScore = detection.score;
  track.sightings += 1;
  track.confirmed = time;
}

/** Whether a hand stays after the detector ran at `time`. */
const isConfirmed = (track, time, rules) =>
  track.confirmed === time || (track.sightings > 1 && time - track.confirmed <= rules.drop_after);

export class HandTracks {
  #nextId = 1;
  #tracks = [];
  #time = null;
  #detected = null;
  #size = null;

  /** @param rules the contents of tracking_rules.json. */
  constructor(rules, { smooth = true, maxHands = Infinity, handedness = null } = {}) {
    Object.assign(this, { rules, smooth, maxHands, handedness });
  }

  /**
   * The hands of a frame by id: {id, side, keypoints, scores, score, handScore, box}.
   *
   * @param models `detect(picture)` and `read(picture, looks)`, asynchronous, as hand_model.js has them.
   */
  async follow(models, picture, size, time) {
    const asking = this.steps(size, time);
    let answer;
    while (true) {
      const { value, done } = asking.next(answer);
      if (done) return value;
      answer = value === null ? await models.detect(picture) : await models.read(picture, value);
    }
  }

  /**
   * One frame of `size` [width, height] as a generator that asks for what the networks say: null for the detections
   * [{box, side, score}], a list of places [{box, side}] for their {keypoints, scores}.  It returns the hands.
   */
  *steps(size, time) {
    const { rules } = this;
    const lastTime = this.#time;
    this.#startFrame(size, time);
    let found = null;
    if (this.#detectorIsDue(lastTime)) {
      found = this.#usable(yield null);
      this.#detected = time;
    }
    const looks = placesToRead(this.#tracks, found ?? [], time, size, rules);
    const sights = looks.length ? usableSights(looks, yield looks, size, rules) : [];
    const seen = new Set();
    for (const [track, sight] of assign(this.#tracks, sights, time, found !== null, rules)) {
      update(track, sight, time, this.smooth, rules);
      seen.add(sight);
    }
    if (found) this.#tracks = this.#tracks.filter((track) => isConfirmed(track, time, rules));
    for (const sight of sights) if (!seen.has(sight)) this.#begin(sight, time);
    return this.#tracks
      .filter((track) => track.seen === time)
      .toSorted((one, other) => one.id - other.id)
      .map(({ id, steady, scores, score, handScore, votes }) => {
        return { id, side: sideOf({ votes }), keypoints: steady, scores, score, handScore, box: detectorBox(steady, rules) };
      });
  }

  #startFrame(size, time) {
    if (this.#size) this.#changeSize(size);
    this.#time = time;
    this.#size = size;
    this.#tracks = this.#tracks.filter((track) => time - track.seen <= this.rules.remember);
  }

  #changeSize(size) {
    const [width, height] = this.#size;
    const scale = size[0] / width;
    if (scale === 1 && size[1] === height) return;
    if (Math.max(Math.abs(width * scale - size[0]), Math.abs(height * scale - size[1])) > 1) {
      this.#tracks = [];
      this.#detected = null;
    }
    const scaled = (points) => points.map((point) => point.map((value) => value * scale));
    for (const track of this.#tracks) {
      for (const name of ["keypoints", "steady", "slope"]) track[name] = scaled(track[name]);
      [track.speed] = scaled([track.speed]);
      track.extent *= scale;
    }
  }

  #detectorIsDue(lastTime) {
    if (this.#detected === null) return true;
    const waited = this.#time - this.#detected;
    const { look_every, search_every } = this.rules;
    return waited >= look_every || (waited >= search_every && mustSearch(this.#tracks, lastTime, this.rules));
  }

  #usable(found) {
    const { confirm_score, detection_threshold } = this.rules;
    return found
      .filter(({ score }) => score >= Math.min(confirm_score, detection_threshold))
      .map((hand) => (this.handedness ? { ...hand, side: this.handedness } : hand));
  }

  /** A new hand, if the detector and the reading are sure enough and there is room. */
  #begin({ keypoints, scores, score, detection }, time) {
    const { rules } = this;
    if (!detection || detection.score < rules.detection_threshold || score < rules.found_score) return;
    if (this.#tracks.length >= this.maxHands) {
      const hidden = this.#tracks.filter((track) => track.seen < time);
      if (!hidden.length) return;
      const oldest = hidden.reduce((one, other) => (other.seen < one.seen ? other : one));
      this.#tracks = this.#tracks.filter((track) => track !== oldest);
    }
    this.#tracks.push({
      id: this.#nextId++,
      keypoints,
      scores,
      score,
      seen: time,
      extent: handSize(keypoints),
      votes: voteOf(detection),
      handScore: detection.score,
      confirmed: time,
      speed: [0, 0],
      sightings: 1,
      steady: keypoints,
      slope: noSlope(keypoints),
    });
  }
}
