// Shows hands in words and numbers, beside the picture: for one of them the confidence by finger and a table of keypoints, and
// all as JSON.

const FINGERS = [
  ["Wrist", [0]],
  ["Thumb", [1, 2, 3, 4]],
  ["Index", [5, 6, 7, 8]],
  ["Middle", [9, 10, 11, 12]],
  ["Ring", [13, 14, 15, 16]],
  ["Little", [17, 18, 19, 20]],
];

export const percent = (score) => `${Math.round(score * 100)} %`;

const element = (id) => document.getElementById(id);

function make(tag, className = "", text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

export class Results {
  #rows = [];
  #bars = [];
  #hands = [];
  #chosen = null; // the id of the hand that is shown
  #choices = []; // a button for each hand, where there are several

  /** Make a row for each keypoint and a bar for each finger. */
  constructor({ keypoint_names: names, keypoint_colors: colors }) {
    this.names = names;
    for (const [label, indices] of FINGERS) {
      const row = make("li");
      const bar = make("span", "bar");
      const fill = bar.appendChild(make("i"));
      // The wrist's own colour is white, which is visible only on a picture.
      fill.style.background = indices[0] === 0 ? "var(--soft)" : `rgb(${colors[indices[0]].join(" ")})`;
      const value = make("b");
      row.append(make("span", "", label), bar, value);
      element("fingers").append(row);
      this.#bars.push({ indices, fill, value });
    }
    for (const name of names) {
      const row = element("keypoints").insertRow();
      const head = row.appendChild(make("th", "", name.replace("_", " ")));
      head.scope = "row";
      this.#rows.push([row.insertCell(), row.insertCell(), row.insertCell()]);
    }
    element("copy").addEventListener("click", () => this.#copy());
  }

  /** @param {object[]} hands as find_hands.js and tracking.js give them, each with an `id`; none shows nothing. */
  show(hands) {
    this.#hands = hands;
    const hand = hands.find(({ id }) => id === this.#chosen) ?? hands[0];
    element("confidence").hidden = !hand;
    element("details").hidden = !hand;
    this.#chosen = hand?.id ?? null;
    this.#showChoices();
    if (!hand) return;
    element("score").textContent = percent(hand.score);
    for (const { indices, fill, value } of this.#bars) {
      const score = indices.reduce((sum, index) => sum + hand.scores[index], 0) / indices.length;
      fill.style.width = `${score * 100}%`;
      value.textContent = percent(score);
    }
    if (!element("details").open) return;
    this.#rows.forEach(([x, y, score], index) => {
      x.textContent = hand.keypoints[index][0].toFixed(1);
      y.textContent = hand.keypoints[index][1].toFixed(1);
      score.textContent = hand.scores[index].toFixed(2);
    });
  }

  /** A button for each hand, which stays while its hand is there, so that it keeps the keyboard's focus. */
  #showChoices() {
    const hands = this.#hands.length > 1 ? this.#hands : [];
    element("hands").hidden = !hands.length;
    while (this.#choices.length > hands.length) this.#choices.pop().remove();
    while (this.#choices.length < hands.length) {
      const button = element("hands").appendChild(make("button"));
      button.type = "button";
      button.addEventListener("click", () => {
        this.#chosen = Number(button.value);
        this.refresh();
      });
      this.#choices.push(button);
    }
    hands.forEach(({ id, side }, index) => {
      const button = this.#choices[index];
      button.value = id;
      const name = `${side === "right" ? "Right" : "Left"}${hands.length > 2 ? ` ${index + 1}` : ""}`;
      if (button.textContent !== name) button.textContent = name;
      button.setAttribute("aria-pressed", id === this.#chosen);
    });
  }

  /** Fill the table, which is not updated while it is closed. */
  refresh() {
    this.show(this.#hands);
  }

  /** The hands as Python's `keypoint-detection` pipeline gives them. */
  toJson() {
    const hands = this.#hands.map(({ keypoints, scores, score, handScore, box: [left, top, right, bottom], side }) => ({
      label: `${side} hand`,
      score,
      hand_score: handScore,
      box: { xmin: left, ymin: top, xmax: right, ymax: bottom },
      keypoints: keypoints.map(([x, y], index) => ({ name: this.names[index], x, y, score: scores[index] })),
    }));
    return JSON.stringify(hands, null, 2);
  }

  async #copy() {
    const button = element("copy");
    try {
      await navigator.clipboard.writeText(this.toJson());
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser did not allow copying";
    }
    setTimeout(() => (button.textContent = "Copy as JSON"), 2000);
  }
}
