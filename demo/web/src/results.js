// Shows an answer in words and numbers, beside the picture: confidence by finger, a table of keypoints, JSON.

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
  #answer = null;

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

  /** @param {?object} answer the result of `HandModel.detect` with `box` and `handedness`; null shows nothing. */
  show(answer) {
    this.#answer = answer;
    element("confidence").hidden = !answer;
    element("details").hidden = !answer;
    if (!answer) return;
    element("score").textContent = percent(answer.score);
    for (const { indices, fill, value } of this.#bars) {
      const score = indices.reduce((sum, index) => sum + answer.scores[index], 0) / indices.length;
      fill.style.width = `${score * 100}%`;
      value.textContent = percent(score);
    }
    if (!element("details").open) return;
    this.#rows.forEach(([x, y, score], index) => {
      x.textContent = answer.keypoints[index][0].toFixed(1);
      y.textContent = answer.keypoints[index][1].toFixed(1);
      score.textContent = answer.scores[index].toFixed(2);
    });
  }

  /** Fill the table, which is not updated while it is closed. */
  refresh() {
    this.show(this.#answer);
  }

  /** The answer as Python's `keypoint-detection` pipeline gives it. */
  toJson() {
    const { keypoints, scores, score, box, handedness } = this.#answer;
    const [x, y, width, height] = box;
    const hand = {
      label: `${handedness} hand`,
      score,
      box: { xmin: x, ymin: y, xmax: x + width, ymax: y + height },
      keypoints: keypoints.map(([px, py], index) => ({ name: this.names[index], x: px, y: py, score: scores[index] })),
    };
    return JSON.stringify([hand], null, 2);
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
