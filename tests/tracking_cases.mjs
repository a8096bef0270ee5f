// Plays the recorded cases of tests/data/tracking_cases.json with the page's rules, and prints its answers as JSON.
//
//     node tracking_cases.mjs SRC CASES.json    # SRC is demo/web/src

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [src, casesFile] = process.argv.slice(2);
const { HandTracks, detectorBox } = await import(pathToFileURL(join(src, "tracking.js")));
const { findHands, keypointsBox, readHand } = await import(pathToFileURL(join(src, "find_hands.js")));
const [rules, findingRules] = ["tracking", "finding"].map((name) => JSON.parse(readFileSync(join(src, `${name}_rules.json`))));
const recorded = JSON.parse(readFileSync(casesFile));
const { size, template, reach, wrong_side: wrongSide, nothing, misfit, misturned, cases, photographs } = recorded;

const SIDES = { right: 1, left: -1 };
function keypointsOf({ x, y, size, side, angle = 0 }) {
  const [cos, sin] = [Math.cos, Math.sin].map((turn) => turn((angle * Math.PI) / 180));
  const points = template.map(([px, py]) => [px * SIDES[side] * size, py * size]);
  return points.map(([px, py]) => [px * cos - py * sin + x, px * sin + py * cos + y]);
}
const middleOf = ([left, top, right, bottom]) => {
  return { x: (left + right) / 2, y: (top + bottom) / 2, extent: Math.max(right - left, bottom - top) };
};
const scoresOf = (score) => template.map(() => score);

/** The two networks as scripts/tracking_cases.py plays them, for one frame. */
class PlayedHands {
  detectorRuns = 0;
  places = 0;

  constructor(hands) {
    this.hands = hands;
  }

  detect() {
    this.detectorRuns += 1;
    return this.hands
      .filter(({ found }) => found > 0)
      .map((hand) => {
        const box = hand.found_box ?? detectorBox(keypointsOf(hand), rules);
        return { box, side: hand.found_side ?? hand.side, score: hand.found };
      })
      .toSorted((one, other) => other.score - one.score);
  }

  read(_, looks) {
    this.places += looks.length;
    const answers = looks.map((look) => this.#readOne(look));
    const [keypoints, scores] = [answers.map(([points]) => points), answers.map(([, score]) => scoresOf(score))];
    const hasClassifier = this.hands.some((hand) => hand.chances);
    return { keypoints, scores, chances: hasClassifier ? looks.map((look) => this.#classify(look)) : undefined };
  }

  #nearest({ x, y, extent }) {
    const apart = (hand) => Math.hypot(hand.x - x, hand.y - y);
    const near = this.hands.filter((hand) => hand.read > 0 && apart(hand) <= reach * extent);
    return near.length ? near.reduce((one, other) => (apart(other) < apart(one) ? other : one)) : null;
  }

  #classify({ box, side, angle = 0 }) {
    const hand = this.#nearest(middleOf(box));
    if (!hand) return [nothing, nothing];
    const chances = hand.chances[angle === 0 ? 0 : 1];
    return hand.side === side ? chances : chances.toReversed();
  }

  #readOne({ box, side, angle = 0 }) {
    const { x, y, extent } = middleOf(box);
    const hand = this.#nearest({ x, y, extent });
    if (!hand) return [keypointsOf({ x, y, size: extent, side: "right" }), nothing];
    const fit = hand.found_box ? Math.min(extent / hand.size, hand.size / extent) : 1;
    const shifted = { ...hand, x: hand.x + misfit * (1 - fit) * hand.size };
    const turned = Math.abs(((((hand.angle ?? angle) - angle + 180) % 360) + 360) % 360 - 180);
    const score = hand.read * ((hand.read_side ?? hand.side) === side ? 1 : wrongSide) * fit;
    return [keypointsOf(shifted), score * (1 - (misturned * turned) / 180)];
  }
}

function short({ id, side, keypoints }) {
  const [left, top, right, bottom] = keypointsBox(keypoints);
  return { id, side, x: (left + right) / 2, y: (top + bottom) / 2, size: Math.max(right - left, bottom - top) };
}

const films = [];
for (const { frames, options = {} } of cases) {
  const { max_hands: maxHands, ...others } = options;
  const tracks = new HandTracks(rules, findingRules, { ...others, ...(maxHands && { maxHands }) });
  const answer = [];
  for (const frame of frames) {
    const models = new PlayedHands(frame.hands);
    const hands = await tracks.follow(models, null, frame.size ?? size, frame.time);
    answer.push({ detector: models.detectorRuns > 0, places: models.places, hands: hands.map(short) });
  }
  films.push(answer);
}

const pictures = [];
for (const { hands, boxes, handedness } of photographs) {
  const models = new PlayedHands(hands);
  const found = [];
  if (!boxes) found.push(...(await findHands(models, null, findingRules, handedness)));
  for (const [x, y, width, height] of boxes ?? []) {
    found.push(await readHand(models, null, [x, y, x + width, y + height], findingRules, handedness));
  }
  const described = found.map((hand) => ({ ...short(hand), box: hand.box, hand_score: hand.handScore }));
  pictures.push({ places: models.places, hands: described });
}
console.log(JSON.stringify({ films, pictures }));
