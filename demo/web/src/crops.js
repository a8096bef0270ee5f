// From a picture to the square crop that the network reads, and back, as in modeling_handunet/crops.py.
// Points are continuous [x, y], x right and y down, with pixel centres at +0.5.  A square is [left, top, side] in pixels of the
// picture and may reach outside it, where it is black.  A box is [x, y, width, height].

import { reduce, resizeBilinear, turnBilinear } from "./resample.js";

// A larger square is first reduced by a whole factor.  Phones refuse larger canvases too.
const MAX_CROP_SIDE = 4096;
const STRIP_PIXELS = 1 << 22;

export const widthOf = (picture) => picture.videoWidth ?? picture.width;
export const heightOf = (picture) => picture.videoHeight ?? picture.height;

/** The square with the centre of `box` in which the box's longer side takes the share `boxFill`. */
export function boxToSquare([x, y, width, height], boxFill) {
  const side = Math.max(width, height) / boxFill;
  return [x + width / 2 - side / 2, y + height / 2 - side / 2, side];
}

/** The box whose square is `square`. */
export function squareToBox([left, top, side], boxFill) {
  const inner = side * boxFill;
  return [left + (side - inner) / 2, top + (side - inner) / 2, inner, inner];
}

/** The smallest square centred on a picture that contains all of it. */
export function pictureToSquare(width, height) {
  const side = Math.max(width, height);
  return [(width - side) / 2, (height - side) / 2, side];
}

/** Cosine and sine of degrees; those of right angles are exact. */
export function cosSin(angle) {
  const radians = (angle * Math.PI) / 180;
  return [Math.cos(radians), Math.sin(radians)].map((value) => Math.round(value * 1e15) / 1e15);
}

/** A point of the crop in pixels of the picture; the square is turned clockwise by `angle` degrees about its own centre. */
export function fromCrop([x, y], [left, top, side], size, angle = 0) {
  if (angle) {
    const [cos, sin] = cosSin(angle);
    const [u, v] = [x - size / 2, y - size / 2];
    [x, y] = [u * cos - v * sin + size / 2, u * sin + v * cos + size / 2];
  }
  return [x * (side / size) + left, y * (side / size) + top];
}

let canvas; // one for all frames: making a canvas takes longer than a frame

function readPixels(picture, x, y, width, height) {
  canvas ??= document.createElement("canvas").getContext("2d", { willReadFrequently: true, alpha: false });
  if (canvas.canvas.width !== width || canvas.canvas.height !== height) {
    canvas.canvas.width = width;
    canvas.canvas.height = height;
  }
  canvas.imageSmoothingEnabled = false;
  canvas.fillStyle = "#000";
  canvas.fillRect(0, 0, width, height);
  canvas.drawImage(picture, -x, -y);
  return canvas.getImageData(0, 0, width, height).data;
}

/** (height, width, 4) of a region given in pixels of the picture reduced by `factor`, black outside the picture. */
function readReduced(picture, x, y, width, height, factor) {
  if (factor === 1) return readPixels(picture, x, y, width, height);
  const result = new Uint8ClampedArray(width * height * 4);
  const fullWidth = Math.ceil(widthOf(picture) / factor);
  const fullHeight = Math.ceil(heightOf(picture) / factor);
  const begin = Math.max(x, 0);
  const end = Math.min(x + width, fullWidth);
  const rowsAtATime = Math.max(Math.floor(STRIP_PIXELS / ((end - begin) * factor * factor)), 1);
  for (let row = Math.max(y, 0); row < Math.min(y + height, fullHeight); row += rowsAtATime) {
    const rows = Math.min(rowsAtATime, y + height - row, fullHeight - row);
    const stripWidth = Math.min(end * factor, widthOf(picture)) - begin * factor;
    const stripHeight = Math.min((row + rows) * factor, heightOf(picture)) - row * factor;
    const strip = readPixels(picture, begin * factor, row * factor, stripWidth, stripHeight);
    const reduced = reduce(strip, stripWidth, stripHeight, factor);
    for (let r = 0; r < rows; r++) {
      const line = reduced.subarray(r * (end - begin) * 4, (r + 1) * (end - begin) * 4);
      result.set(line, ((row - y + r) * width + begin - x) * 4);
    }
  }
  return result;
}

/** As [`cropSquare`] for a square that is turned clockwise by `angle` degrees about its own centre. */
export function cropTurned(picture, [left, top, side], size, angle = 0) {
  if (!angle) return cropSquare(picture, [left, top, side], size);
  const [cos, sin] = cosSin(angle);
  // The upright square around the turned one, at the crop's scale; one pixel more for the filter.
  const margin = Math.ceil((size * (Math.abs(cos) + Math.abs(sin) - 1)) / 2) + 1;
  const around = size + 2 * margin;
  const border = (margin * side) / size;
  const upright = cropSquare(picture, [left - border, top - border, side + 2 * border], around);
  const [middle, half] = [around / 2, size / 2];
  const [offsetX, offsetY] = [middle - half * (cos - sin), middle - half * (sin + cos)];
  return turnBilinear(upright, around, [cos, -sin, offsetX, sin, cos, offsetY], size);
}

/** Cut `square` out of a picture (an image, bitmap, canvas or video): (size, size, 3) 8-bit RGB. */
export function cropSquare(picture, square, size) {
  const factor = Math.ceil(square[2] / MAX_CROP_SIDE);
  const [left, top, side] = square.map((value) => value / factor);
  const x = Math.floor(left);
  const y = Math.floor(top);
  const width = Math.max(Math.ceil(left + side), x + 1) - x;
  const height = Math.max(Math.ceil(top + side), y + 1) - y;
  const box = [left - x, top - y, Math.min(left - x + side, width), Math.min(top - y + side, height)];
  return resizeBilinear(readReduced(picture, x, y, width, height, factor), width, height, box, size);
}
