// From a picture to its hands: detect, crop, read, look again, and two answers of one hand become one.
//
// The rules of modeling_handunet/hands.py, on cases of which both are tested.  Its constants are in finding_rules.json.  Boxes
// are [x_min, y_min, x_max, y_max] in pixels, points [x, y], sides "right" and "left".

import { handSize, isOneHand, keypointsBox } from "./tracking.js";

const SIDES = ["right", "left"];

const meanOf = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
/** The surest reading; of equal ones the first. */
const surest = (readings) => readings.reduce((one, other) => (other.score > one.score ? other : one));

/**
 * The hands that the detector finds, falling by handScore: [{box, side, handScore, keypoints, scores, score}].
 *
 * @param models a `HandModels` of hand_model.js.
 * @param rules the contents of finding_rules.json.
 * @param {?string} handedness "right" or "left" if it is known of all hands; else each is read both ways.
 */
export async function findHands(models, picture, rules, handedness = null) {
  const found = (await models.detect(picture)).filter(({ score }) => score >= rules.detection_threshold);
  const boxes = found.map(({ box }) => box);
  const readings = await readPlaces(models, picture, boxes, rules, handedness);
  const hands = readings.map((reading, index) => {
    const handScore = handScoreOf(found[index].score, reading.score, rules);
    return { ...reading, box: boxes[index], handScore };
  });
  return chooseHands(hands, rules);
}

/** The hand in a box; if its side is not known, it is read both ways. */
export async function readHand(models, picture, box, rules, handedness = null) {
  const [reading] = await readPlaces(models, picture, [box], rules, handedness);
  return { ...reading, box, handScore: null };
}

/** How sure both networks are that there is a hand, in [0, 1]: a weighted geometric mean. */
function handScoreOf(detectionScore, readingScore, { detection_weight: weight }) {
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

/** The reading {box, side, keypoints, scores, score} of each box, the surest of all looks at it; its box is the look's. */
async function readPlaces(models, picture, boxes, rules, handedness) {
  const sides = handedness ? [handedness] : SIDES;
  const looks = await read(models, picture, boxes.flatMap((box) => sides.map((side) => ({ box, side }))));
  const best = boxes.map((_, index) => surest(looks.slice(index * sides.length, (index + 1) * sides.length)));
  const again = best.map((reading) => secondLook(reading, rules));
  const second = await read(models, picture, again.filter(Boolean));
  return best.map((reading, index) => (again[index] ? surest([reading, second.shift()]) : reading));
}

async function read(models, picture, places) {
  if (!places.length) return [];
  const { keypoints, scores } = await models.read(picture, places);
  return places.map((place, index) => {
    return { ...place, keypoints: keypoints[index], scores: scores[index], score: meanOf(scores[index]) };
  });
}

/** The place {box, side} for a second look, round the first reading's keypoints, if they fill its crop badly; else null. */
function secondLook({ box: [left, top, right, bottom], side, keypoints }, rules) {
  const [newLeft, newTop, newRight, newBottom] = keypointsBox(keypoints);
  const size = handSize(keypoints);
  const away = Math.hypot((newLeft + newRight - left - right) / 2, (newTop + newBottom - top - bottom) / 2);
  const fill = size / Math.max(right - left, bottom - top);
  if (rules.least_fill <= fill && fill <= rules.most_fill && away <= rules.off_centre * size) return null;
  return size > 0 ? { box: keypointsBox(keypoints), side } : null;
}
