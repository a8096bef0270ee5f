// From a picture to its hands: detect, crop, read, look again, and two answers of one hand become one.
//
// The rules of modeling_handunet/hands.py, on cases of which both are tested.  Its constants are in finding_rules.json.  Boxes
// are [x_min, y_min, x_max, y_max] in pixels, points [x, y], sides "right" and "left".

import { cosSin } from "./crops.js";

export const SIDES = ["right", "left"];

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

const meanOf = (values) => sum(values) / values.length;
/** The reading with the highest value; of equal ones the first. */
const highest = (readings, valueOf) => readings.reduce((one, other) => (valueOf(other) > valueOf(one) ? other : one));

/** How sure the network is that there is a hand of the reading's side: its classifier's chance, or else by the mean score. */
export const sureOf = ({ chances, score }, { score_power: power }) => chances?.[0] ?? score ** power;

/** The readings of a place; if it was read as both sides, what both say of each side is averaged. */
function agreed(readings) {
  if (readings.length < 2 || !readings[0].chances) return readings;
  const [[own, rival], [itsOwn, itsRival]] = readings.map(({ chances }) => chances);
  const chances = [(own + itsRival) / 2, (rival + itsOwn) / 2];
  return [
    { ...readings[0], chances },
    { ...readings[1], chances: chances.toReversed() },
  ];
}

/**
 * What a generator of steps returns, if the networks answer all that it asks for: null for the detections [{box, side,
 * score}], a list of places [{box, side, angle}] for their {keypoints, scores, chances}.
 *
 * @param models `detect(picture)` and `read(picture, places)`, asynchronous, as hand_model.js has them.
 */
export async function answered(asking, models, picture) {
  let answer;
  while (true) {
    const { value, done } = asking.next(answer);
    if (done) return value;
    answer = value === null ? await models.detect(picture) : await models.read(picture, value);
  }
}

/**
 * The hands that the detector finds, falling by handScore: [{box, side, handScore, keypoints, scores, score}].
 *
 * @param models a `HandModels` of hand_model.js.
 * @param rules the contents of finding_rules.json.
 * @param {?string} handedness "right" or "left" if it is known of all hands; else each is read both ways.
 */
export async function findHands(models, picture, rules, handedness = null) {
  const least = leastDetection(rules);
  const found = (await models.detect(picture)).filter(({ score }) => score >= least);
  const places = found.map(({ box }) => ({ box, sides: possibleSides(handedness), again: true }));
  const readings = await answered(readPlaces(places, rules, rules.upright), models, picture);
  const hands = readings.map((reading, index) => {
    return { ...reading, box: places[index].box, handScore: sureness(found[index].score, sureOf(reading, rules), rules) };
  });
  return chooseHands(hands, rules);
}

/** The hand in a box; if its side is not known, it is read both ways. */
export async function readHand(models, picture, box, rules, handedness = null) {
  const places = [{ box, sides: possibleSides(handedness), again: true }];
  const isAsked = !handedness; // with a known side, nothing depends on what a classifier says
  const [reading] = await answered(readPlaces(places, rules, rules.upright, isAsked), models, picture);
  return { ...reading, box, handScore: null };
}

export const possibleSides = (handedness) => (handedness ? [handedness] : SIDES);

/** The least score of a detection that is worth a look: with a lower one, no reading makes it a hand. */
export function leastDetection({ detection_threshold: least, hand_threshold: threshold, detection_weight: weight }) {
  return Math.max(Math.min(least, threshold), threshold ** (1 / weight));
}

/** How sure both networks are that there is a hand, in [0, 1]: a weighted geometric mean. */
export function sureness(detectionScore, readingScore, { detection_weight: weight }) {
  return detectionScore ** weight * readingScore ** (1 - weight);
}

/** The hands among what was detected and read, falling by handScore: each once, and none below the threshold. */
function chooseHands(found, rules) {
  const hands = [];
  for (const hand of found.toSorted((one, other) => other.handScore - one.handScore)) {
    if (hand.handScore < rules.hand_threshold) break;
    if (!hands.some((other) => isOneHand(hand, other, rules))) hands.push(hand);
  }
  return hands;
}

/**
 * The reading {box, side, keypoints, scores, score, chances, rival} of each place {box, sides, again}, the surest of all looks
 * at it; its box is the look's.  `chances` are [of a hand of its side, of one of the other side], or null without a classifier.
 * `rival` is how sure the network is of the same place read as the other side, or null; with `again` the place may get a second
 * look, also if its hand points more than `upright` degrees away from up.  Unless `classified`, what a classifier says is left
 * aside.  A generator for [`answered`].
 */
export function* readPlaces(places, rules, upright = Infinity, classified = true) {
  if (!places.length) return [];
  const answers = yield* read(places.flatMap(({ box, sides }) => sides.map((side) => ({ box, side }))));
  const looks = classified
    ? yield* classifiedAgain(places, answers, rules)
    : answers.map((reading) => ({ ...reading, chances: null }));
  const best = places.map(({ sides }) => {
    const own = agreed(looks.splice(0, sides.length));
    const reading = highest(own, (look) => sureOf(look, rules));
    const rivals = own.filter((other) => other !== reading).map((look) => sureOf(look, rules));
    return { ...reading, rival: rivals.length ? Math.max(...rivals) : null };
  });
  const again = best.map((reading, index) => (places[index].again ? secondLook(reading, rules, upright) : null));
  const second = yield* read(again.filter(Boolean));
  return best.map((reading, index) => {
    if (!again[index]) return reading;
    const { chances, rival } = reading; // of the hand itself both looks of the first time know more than the second
    return highest([reading, { ...second.shift(), chances, rival }], ({ score }) => score);
  });
}

/** The readings of all places, with what a hand classifier says of their crops and of the same, turned both ways. */
function* classifiedAgain(places, answers, { classifier_turn: turn, least_chance: least }) {
  const left = [...answers];
  const again = places.flatMap(({ sides }) => {
    const own = left.splice(0, sides.length);
    const isAsked = own.some(({ chances }) => chances && sum(chances) >= least);
    return own.map(() => isAsked);
  });
  const asked = answers.filter((_, index) => again[index]);
  const turned = yield* read(asked.flatMap(({ box, side }) => [-turn, turn].map((angle) => ({ box, side, angle }))));
  return answers.map((reading, index) => {
    if (!again[index]) return reading;
    const views = [reading, ...turned.splice(0, 2)];
    return { ...reading, chances: [0, 1].map((side) => meanOf(views.map(({ chances }) => chances[side]))) };
  });
}

function* read(places) {
  if (!places.length) return [];
  const { keypoints, scores, chances } = yield places;
  return places.map((place, index) => {
    const score = meanOf(scores[index]);
    return { ...place, keypoints: keypoints[index], scores: scores[index], score, chances: chances?.[index] ?? null };
  });
}

/**
 * The place {box, side, angle} for a second look, round the first reading's keypoints, if they fill its crop badly or point more
 * than `upright` degrees away from up; else null.
 */
function secondLook({ box: [left, top, right, bottom], side, keypoints }, rules, upright) {
  const [newLeft, newTop, newRight, newBottom] = keypointsBox(keypoints);
  const size = handSize(keypoints);
  const away = Math.hypot((newLeft + newRight - left - right) / 2, (newTop + newBottom - top - bottom) / 2);
  const fill = size / Math.max(right - left, bottom - top);
  const angle = degreesFromUpright(keypoints);
  const isUpright = Math.abs(angle) <= upright;
  if (rules.least_fill <= fill && fill <= rules.most_fill && away <= rules.off_centre * size && isUpright) return null;
  if (!(newLeft < newRight && newTop < newBottom)) return null; // keypoints may lie in a line
  return isUpright ? { box: keypointsBox(keypoints), side } : { box: turnedBox(keypoints, angle), side, angle };
}

/** The direction from the wrist to the middle knuckle, in degrees clockwise from up. */
function degreesFromUpright(keypoints) {
  const [x, y] = [0, 1].map((axis) => keypoints[9][axis] - keypoints[0][axis]);
  return (Math.atan2(x, -y) * 180) / Math.PI;
}

/** The square box with the middle and the longer side of the keypoints' box as seen in a crop that is turned by `angle`. */
function turnedBox(keypoints, angle) {
  const [cos, sin] = cosSin(angle);
  const [left, top, right, bottom] = keypointsBox(keypoints.map(([x, y]) => [x * cos + y * sin, y * cos - x * sin]));
  const [u, v, half] = [(left + right) / 2, (top + bottom) / 2, Math.max(right - left, bottom - top) / 2];
  const [x, y] = [u * cos - v * sin, u * sin + v * cos];
  return [x - half, y - half, x + half, y + half];
}
