// The hands of one picture: detect, crop, read, and two answers of one hand become one, as modeling_handunet/hands.py does.

import { handSize, keypointDistance } from "./tracking.js";

// Two found hands are one if their keypoints lie, on average, within this share of the larger one's size.
const SAME_HAND = 0.2;

const meanOf = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const toHand = ({ box, side, handScore }, keypoints, scores) => ({
  box,
  side,
  handScore,
  keypoints,
  scores,
  score: meanOf(scores),
});

/**
 * The hands that the detector finds, falling by its score: [{box, side, handScore, keypoints, scores, score}].
 *
 * @param models a `HandModels` of hand_model.js.
 * @param {number} threshold detections below it are no hands.
 * @param {?string} handedness "right" or "left" if it is known.
 */
export async function findHands(models, picture, threshold, handedness = null) {
  const found = (await models.detect(picture)).filter(({ score }) => score >= threshold);
  const places = found.map(({ box, side, score }) => ({ box, side: handedness ?? side, handScore: score }));
  if (!places.length) return [];
  const { keypoints, scores } = await models.read(picture, places);
  const hands = [];
  places.forEach((place, index) => {
    const hand = toHand(place, keypoints[index], scores[index]);
    if (!hands.some((other) => isSameHand(hand, other))) hands.push(hand);
  });
  return hands;
}

/** The hand in a box [x_min, y_min, x_max, y_max]; if its side is not known, the network's surer reading counts. */
export async function readHand(models, picture, box, handedness = null) {
  const places = (handedness ? [handedness] : ["right", "left"]).map((side) => ({ box, side, handScore: null }));
  const { keypoints, scores } = await models.read(picture, places);
  const hands = places.map((place, index) => toHand(place, keypoints[index], scores[index]));
  return hands.reduce((one, other) => (other.score > one.score ? other : one));
}

function isSameHand(one, other) {
  const size = Math.max(handSize(one.keypoints), handSize(other.keypoints));
  return keypointDistance(one.keypoints, other.keypoints) <= SAME_HAND * size;
}
