// Draws a hand over a picture, as modeling_handunet/drawing.py does: a colour for each finger, faint if the model is unsure.

const FAINTEST = 0.14;
const FAINT_SCORE = 0.3; // below this a joint is also hollow and a bone dashed, because colour alone is not enough

const alphaOf = (score) => FAINTEST + (1 - FAINTEST) * Math.min(Math.max(score, 0), 1);

/** @param keypoints (21, 2) in pixels of the canvas. */
export function drawHand(context, keypoints, scores, { skeleton, keypoint_colors: colors }) {
  const xs = keypoints.map(([x]) => x);
  const ys = keypoints.map(([, y]) => y);
  const extent = Math.max(Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys));
  const width = Math.min(Math.max(extent / 40, 1.5), context.canvas.width / 60);
  const color = (index) => `rgb(${colors[index].join(" ")})`;
  context.save();
  context.lineCap = "round";
  for (const [parent, child] of skeleton) {
    context.globalAlpha = alphaOf(Math.min(scores[parent], scores[child]));
    context.setLineDash(scores[child] < FAINT_SCORE ? [width, width * 2] : []);
    for (const [style, thickness] of [["rgb(15 15 20 / 55%)", width * 1.7], [color(child), width]]) {
      context.strokeStyle = style;
      context.lineWidth = thickness;
      context.beginPath();
      context.moveTo(...keypoints[parent]);
      context.lineTo(...keypoints[child]);
      context.stroke();
    }
  }
  context.setLineDash([]);
  keypoints.forEach(([x, y], index) => {
    context.globalAlpha = alphaOf(scores[index]);
    context.beginPath();
    context.arc(x, y, width * 1.05, 0, 2 * Math.PI);
    context.fillStyle = color(index);
    if (scores[index] >= FAINT_SCORE) context.fill();
    context.lineWidth = Math.max(width / 3, 1);
    context.strokeStyle = scores[index] >= FAINT_SCORE ? "rgb(15 15 20 / 80%)" : color(index);
    context.stroke();
  });
  context.restore();
}

/** Draw the corners of a box [x, y, width, height] in pixels of the canvas. */
export function drawFrame(context, [x, y, width, height]) {
  const { canvas } = context;
  const unit = Math.max(Math.min(canvas.width, canvas.height) / 160, 1.5);
  const arm = Math.min(width, height) * 0.16;
  const radius = arm * 0.5;
  context.save();
  context.lineCap = "round";
  context.lineJoin = "round";
  for (const [style, thickness] of [["rgb(10 12 18 / 55%)", unit * 2.2], ["rgb(255 255 255 / 92%)", unit * 1.1]]) {
    context.strokeStyle = style;
    context.lineWidth = thickness;
    context.beginPath();
    for (const [cornerX, cornerY, right, down] of [
      [x, y, 1, 1],
      [x + width, y, -1, 1],
      [x + width, y + height, -1, -1],
      [x, y + height, 1, -1],
    ]) {
      context.moveTo(cornerX, cornerY + down * arm);
      context.arcTo(cornerX, cornerY, cornerX + right * arm, cornerY, radius);
      context.lineTo(cornerX + right * arm, cornerY);
    }
    context.stroke();
  }
  context.restore();
}

/** Write a hand's name just above the corner (x, y) of its box, but inside the canvas. */
export function drawName(context, x, y, name) {
  const { canvas } = context;
  const height = Math.max(Math.min(canvas.width, canvas.height) / 26, 13);
  context.save();
  context.font = `600 ${height * 0.72}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const width = context.measureText(name).width + height * 0.9;
  const left = Math.min(Math.max(x, 2), canvas.width - width - 2);
  const top = Math.min(Math.max(y - height - 4, 2), canvas.height - height - 2);
  context.fillStyle = "rgb(14 16 24 / 72%)";
  context.beginPath();
  context.roundRect(left, top, width, height, height / 2);
  context.fill();
  context.fillStyle = "#fff";
  context.fillText(name, left + height * 0.45, top + height * 0.54);
  context.restore();
}
