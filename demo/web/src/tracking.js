// Hands in a film: which hand is which from frame to frame, where to look for it next, and steady keypoints.
//
// The rules of modeling_handunet/tracking.py, function by function; both are tested on the recorded cases of
// tests/data/tracking_cases.json.  The constants are its TrackingRules, which tracking_rules.json holds.  Boxes are [x_min,
// y_min, x_max, y_max] in pixels, points [x, y], times in seconds, sides "right" and "left".

import {
  answered,
  handSize,
  isOneHand,
  keypointDistance,
  keypointsBox,
  leastDetection,
  possibleSides,
  readPlaces,
  sureOf,
  sureness,
} from "./find_hands.js";

const distance = ([x, y], [otherX, otherY]) => Math.hypot(x - otherX, y - otherY);

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
/** A sight's vote for its side: by how much the reading is surer than the one as the other side. */
const voteOf = (sight) => (sight.side === "right" ? 1 : -1) * (sight.sure - (sight.rival ?? 0));

/** Whether a hand is new, is near another one, or was missing in the last frame, so that the detector is needed soon. */
function mustSearch(tracks, lastTime, rules) {
  if (!tracks.length || tracks.some((track) => track.sightings < 2 || track.seen < lastTime)) return true;
  return tracks.some((track) => isNear(track, tracks, rules));
}

/** Whether a hand is near another one. */
function isNear(track, tracks, rules) {
  const place = middle(track.keypoints);
  const isNearTo = (other) => distance(place, middle(other.keypoints)) < rules.near * Math.max(track.extent, other.extent);
  return tracks.some((other) => other !== track && isNearTo(other));
}

/** Whether a hand is to be read both ways, so that it votes for its side: the sooner if it is new or near another one. */
function mustAsk(track, tracks, time, rules) {
  const waited = time - track.voted;
  if (waited >= rules.ask_every || track.sightings < 2) return true;
  return waited >= rules.look_every && (time - track.begun < rules.ask_every || isNear(track, tracks, rules));
}

/** Distance of the middles of two boxes over the larger one's longer side; infinite if they differ much in size. */
function boxDistance(one, other, rules) {
  const sides = [one, other].map(([left, top, right, bottom]) => Math.max(right - left, bottom - top));
  const larger = Math.max(...sides);
  if (Math.min(...sides) <= 0 || larger > rules.same_size * Math.min(...sides)) return Infinity;
  const [x, y] = [0, 1].map((axis) => (one[axis] + one[axis + 2] - other[axis] - other[axis + 2]) / 2);
  return Math.hypot(x, y) / larger;
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
    looks.push({ box: [x - half, y - half, x + half, y + half], track, detection: null });
  }
  const pairs = [];
  looks.forEach((look, first) => {
    found.forEach((hand, second) => {
      const apart = boxDistance(look.box, hand.box, rules);
      if (apart > rules.same_place) return;
      pairs.push([apart, first, second]);
    });
  });
  const free = new Set(found.keys());
  for (const [first, second] of closestPairs(pairs)) {
    looks[first].detection = found[second];
    free.delete(second);
  }
  return [...looks, ...[...free].map((index) => ({ box: found[index].box, track: null, detection: found[index] }))];
}

/** The sights that are of a hand in the frame; of two that are one hand, the surer one. Of new ones, `#begin` decides. */
function usableSights(read, size, rules) {
  const sights = [];
  for (const sight of read) {
    const { keypoints, sure } = sight;
    if (sure < rules.lost_score || handSize(keypoints) < 1 || !isInside(middle(keypoints), size)) continue;
    const same = sights.findIndex((other) => !(sight.isNew && other.isNew) && isOneHand(sight, other, rules));
    if (same < 0) {
      sights.push(sight);
      continue;
    }
    const other = sights[same];
    const surer = sure > other.sure ? sight : other;
    surer.detection = other.detection ?? sight.detection;
    surer.isNew = false;
    sights[same] = surer;
  }
  return sights;
}

/**
 * Which hand is at which sight: the nearest to where its keypoints are expected, if it can have come there. `detected` says
 * whether the detector ran on this frame. A hand that was lost for long needs a sight of its side with the score of a new
 * hand.
 */
function assign(tracks, sights, time, detected, rules, scoreOf, threshold) {
  const pairs = [];
  tracks.forEach((track, first) => {
    const points = expected(track, time, rules);
    const waited = time - track.seen;
    const reach = Math.min(rules.reach + rules.reach_speed * waited, rules.max_reach);
    sights.forEach((sight, second) => {
      const growth = handSize(sight.keypoints) / track.extent;
      const isOtherSide = sight.side !== sideOf(track);
      let apart = keypointDistance(points, sight.keypoints) / track.extent;
      if (apart > reach) return;
      if (waited > rules.look_on && (isOtherSide || scoreOf(sight) < threshold)) return;
      if (!sight.detection && (growth < 1 / rules.max_growth || growth > rules.max_growth)) return;
      if (detected && !sight.detection) apart += rules.unconfirmed;
      if (isOtherSide) apart += rules.other_side;
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
function update(track, sight, time, smooth, rules, scoreOf) {
  const { keypoints, scores, score, detection } = sight;
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
  if (sight.rival !== null) {
    track.votes = track.votes * Math.exp(-(time - track.voted) / rules.votes_time) + voteOf(sight);
    track.voted = time;
  }
  if (!detection) return;
  track.handScore = scoreOf(sight);
  track.sightings += 1;
  track.confirmed = time;
}

/** Whether a hand stays after the detector ran at `time`. */
const isConfirmed = (track, time, rules) =>
  track.confirmed === time || (track.sightings > 1 && time - track.confirmed <= rules.drop_after);

export class HandTracks {
  #nextId = 1;
  #tracks = [];
  #refused = []; // detections that are no hands, with `read`, the time when they were read
  #time = null;
  #detected = null;
  #size = null;

  /** @param rules the contents of tracking_rules.json; @param findingRules those of finding_rules.json. */
  constructor(rules, findingRules, { smooth = true, maxHands = Infinity, handedness = null } = {}) {
    Object.assign(this, { rules, findingRules, smooth, maxHands, handedness });
  }

  /** The hands of a frame by id: {id, side, keypoints, scores, score, handScore, box}. */
  async follow(models, picture, size, time) {
    return answered(this.steps(size, time), models, picture);
  }

  /** One frame of `size` [width, height] as a generator for `answered`. It returns the hands. */
  *steps(size, time) {
    const { rules, findingRules } = this;
    const threshold = rules.begin_score;
    const scoreOf = (sight) => (sight.detection ? sureness(sight.detection.score, sight.sure, findingRules) : 0);
    const lastTime = this.#time;
    this.#startFrame(size, time);
    let found = null;
    const isFirst = this.#detected === null;
    if (this.#detectorIsDue(lastTime)) {
      found = this.#usable(yield null);
      this.#detected = time;
    }
    const looks = this.#worthReading(placesToRead(this.#tracks, found ?? [], time, size, rules), isFirst);
    const readings = yield* readPlaces(
      looks.map((look) => this.#toPlace(look, found !== null, time)),
      findingRules,
      Infinity,
      false,
    );
    const read = readings.map((reading, index) => {
      const { detection, track } = looks[index];
      return { ...reading, sure: sureOf(reading, findingRules), detection, isNew: !track };
    });
    const sights = usableSights(read, size, rules);
    const used = new Set();
    for (const [track, sight] of assign(this.#tracks, sights, time, found !== null, rules, scoreOf, threshold)) {
      update(track, sight, time, this.smooth, rules, scoreOf);
      used.add(sight);
    }
    if (found) this.#tracks = this.#tracks.filter((track) => isConfirmed(track, time, rules));
    for (const sight of sights.toSorted((one, other) => scoreOf(other) - scoreOf(one))) {
      if (!used.has(sight) && this.#begin(sight, scoreOf(sight), time)) used.add(sight);
    }
    const hands = new Set([...used].map(({ detection }) => detection));
    const refused = looks.filter(({ track, detection }) => !track && !hands.has(detection));
    this.#refused.push(...refused.map(({ detection }) => ({ ...detection, read: time })));
    return this.#tracks
      .filter((track) => track.seen === time)
      .toSorted((one, other) => one.id - other.id)
      .map(({ id, steady, scores, score, handScore, votes }) => {
        return { id, side: sideOf({ votes }), keypoints: steady, scores, score, handScore, box: detectorBox(steady, rules) };
      });
  }

  /** How a look is read: what may be a new hand as in a picture, a hand that is followed once, and now and then both ways. */
  #toPlace({ box, track }, detected, time) {
    const possible = possibleSides(this.handedness);
    if (!track) return { box, sides: possible, again: true };
    const both = detected && mustAsk(track, this.#tracks, time, this.rules);
    return { box, sides: both ? possible : [sideOf(track)], again: false };
  }

  #startFrame(size, time) {
    if (this.#size) this.#changeSize(size);
    this.#time = time;
    this.#size = size;
    this.#tracks = this.#tracks.filter((track) => time - track.seen <= this.rules.remember);
    this.#refused = this.#refused.filter(({ read }) => time - read <= this.rules.refuse);
  }

  #changeSize(size) {
    const [width, height] = this.#size;
    const scale = size[0] / width;
    if (scale === 1 && size[1] === height) return;
    this.#refused = [];
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
    const least = Math.min(this.rules.confirm_score, this.rules.begin_score);
    return found.filter(({ score }) => score >= least);
  }

  /**
   * Without detections that are too weak for a new hand or known to be none, and without any if there is no room; not many new
   * ones at a time, unless it is the first.
   */
  #worthReading(looks, isFirst) {
    const followed = looks.filter(({ track }) => track);
    if (followed.filter(({ detection }) => detection).length >= this.maxHands) return followed;
    const least = leastDetection({ ...this.findingRules, hand_threshold: this.rules.begin_score });
    const isNew = ({ track, detection }) => !track && detection.score >= least && !this.#isRefused(detection);
    const fresh = looks.filter(isNew).toSorted((one, other) => other.detection.score - one.detection.score);
    return [...followed, ...fresh.slice(0, isFirst ? undefined : this.rules.new_at_once)];
  }

  /** Whether a detection at this place was read a short time ago and is no hand. */
  #isRefused({ box, score }) {
    const { grown, same_place: samePlace } = this.rules;
    return this.#refused.some((other) => {
      return score < other.score + grown && boxDistance(box, other.box, this.rules) <= samePlace;
    });
  }

  /** Begin a new hand, if the networks are sure enough, it is no other one, and there is room; whether it began. */
  #begin(sight, handScore, time) {
    const { keypoints, scores, score, detection } = sight;
    const { begin_score, sure_score } = this.rules;
    if (!detection || handScore < begin_score) return false;
    if (detection.score < begin_score && handScore < sure_score) return false;
    const isKnown = (track) =>
      track.seen === time && isOneHand(sight, { keypoints: track.keypoints, side: sideOf(track) }, this.findingRules);
    if (this.#tracks.some(isKnown)) return false;
    if (this.#tracks.length >= this.maxHands) {
      const hidden = this.#tracks.filter((track) => track.seen < time);
      if (!hidden.length) return false;
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
      votes: voteOf(sight),
      handScore,
      confirmed: time,
      voted: time,
      begun: time,
      speed: [0, 0],
      sightings: 1,
      steady: keypoints,
      slope: noSlope(keypoints),
    });
    return true;
  }
}
