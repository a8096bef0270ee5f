// Pillow's bilinear resize, to the bit (src/libImaging/Resample.c): a triangle filter whose width grows with the reduction,
// first along the rows and then along the columns, with 8-bit values in between.  (Pillow begins with the columns if a picture
// is much taller than wide, but a crop is square.)  A canvas scales differently by whole grey levels, which moves keypoints.

const PRECISION_BITS = 32 - 8 - 2;

/** For each of `outSize` pixels: its first input pixel, the number of input pixels, and their fixed-point weights. */
function filterWeights(inSize, start, end, outSize) {
  const scale = Math.fround(end - start) / outSize;
  const filterScale = Math.max(scale, 1);
  const taps = Math.ceil(filterScale) * 2 + 1;
  const firsts = new Int32Array(outSize);
  const counts = new Int32Array(outSize);
  const weights = new Int32Array(outSize * taps);
  const exact = new Float64Array(taps);
  for (let out = 0; out < outSize; out++) {
    const center = start + (out + 0.5) * scale;
    const first = Math.max(Math.trunc(center - filterScale + 0.5), 0);
    const count = Math.min(Math.trunc(center + filterScale + 0.5), inSize) - first;
    let total = 0;
    for (let tap = 0; tap < count; tap++) {
      exact[tap] = Math.max(1 - Math.abs((tap + first - center + 0.5) * (1 / filterScale)), 0);
      total += exact[tap];
    }
    for (let tap = 0; tap < count; tap++) {
      const weight = total === 0 ? exact[tap] : exact[tap] / total;
      weights[out * taps + tap] = Math.trunc(0.5 + weight * (1 << PRECISION_BITS));
    }
    firsts[out] = first;
    counts[out] = count;
  }
  return { taps, firsts, counts, weights };
}

const toByte = (sum) => Math.min(Math.max(sum >> PRECISION_BITS, 0), 255);

/**
 * Resize part of a picture to a square.
 *
 * @param {Uint8Array|Uint8ClampedArray} rgba (height, width, 4); the fourth channel is ignored.
 * @param {number[]} box left, top, right and bottom of the part, in fractional pixels.
 * @param {number} size side of the result.
 * @returns {Uint8Array} (size, size, 3)
 */
export function resizeBilinear(rgba, width, height, box, size) {
  const [left, top, right, bottom] = box.map(Math.fround); // Pillow takes the box as 32-bit floats
  const columns = filterWeights(width, left, right, size);
  const rows = filterWeights(height, top, bottom, size);
  const firstRow = rows.firsts[0];
  const lastRow = rows.firsts[size - 1] + rows.counts[size - 1];
  const half = 1 << (PRECISION_BITS - 1);
  const narrow = new Uint8Array((lastRow - firstRow) * size * 3); // (rows, size, 3)
  for (let y = firstRow, at = 0; y < lastRow; y++) {
    for (let x = 0; x < size; x++, at += 3) {
      let red = half;
      let green = half;
      let blue = half;
      let pixel = (y * width + columns.firsts[x]) * 4;
      const begin = x * columns.taps;
      for (let tap = begin; tap < begin + columns.counts[x]; tap++, pixel += 4) {
        const weight = columns.weights[tap];
        red += rgba[pixel] * weight;
        green += rgba[pixel + 1] * weight;
        blue += rgba[pixel + 2] * weight;
      }
      narrow[at] = toByte(red);
      narrow[at + 1] = toByte(green);
      narrow[at + 2] = toByte(blue);
    }
  }
  const result = new Uint8Array(size * size * 3);
  const stride = size * 3;
  for (let y = 0; y < size; y++) {
    const begin = y * rows.taps;
    const start = (rows.firsts[y] - firstRow) * stride;
    for (let column = 0; column < stride; column++) {
      let sum = half;
      for (let tap = 0, at = start + column; tap < rows.counts[y]; tap++, at += stride) {
        sum += narrow[at] * rows.weights[begin + tap];
      }
      result[y * stride + column] = toByte(sum);
    }
  }
  return result;
}

/**
 * Shrink a picture by a whole factor: each pixel is the mean of those that it covers (Pillow's `Image.reduce`).
 *
 * @returns {Uint8ClampedArray} (ceil(height / factor), ceil(width / factor), 4)
 */
export function reduce(rgba, width, height, factor) {
  const outWidth = Math.ceil(width / factor);
  const outHeight = Math.ceil(height / factor);
  const result = new Uint8ClampedArray(outWidth * outHeight * 4);
  for (let outY = 0, at = 0; outY < outHeight; outY++) {
    const yEnd = Math.min((outY + 1) * factor, height);
    for (let outX = 0; outX < outWidth; outX++, at += 4) {
      const xEnd = Math.min((outX + 1) * factor, width);
      const count = (yEnd - outY * factor) * (xEnd - outX * factor);
      const inverse = Math.floor(2 ** 24 / count);
      for (let channel = 0; channel < 4; channel++) {
        let sum = count >> 1;
        for (let y = outY * factor; y < yEnd; y++) {
          for (let x = outX * factor; x < xEnd; x++) sum += rgba[(y * width + x) * 4 + channel];
        }
        result[at + channel] = Math.floor((sum * inverse) / 2 ** 24);
      }
    }
  }
  return result;
}

/**
 * A square part of a square picture, moved by an affine map, as Pillow's `transform` does with its bilinear filter: it rounds
 * down.
 *
 * @param {Uint8Array} rgb (width, width, 3).
 * @param {number[]} map [a, b, c, d, e, f]: the pixel (x, y) of the result lies at (a x + b y + c, d x + e y + f) of the
 *   picture, which it does not leave.
 * @param {number} size side of the result.
 * @returns {Uint8Array} (size, size, 3)
 */
export function turnBilinear(rgb, width, [a, b, c, d, e, f], size) {
  const result = new Uint8Array(size * size * 3);
  const inside = (index) => Math.min(Math.max(index, 0), width - 1);
  for (let row = 0, at = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const [u, v] = [column + 0.5, row + 0.5];
      const [x, y] = [a * u + b * v + c - 0.5, d * u + e * v + f - 0.5];
      const [left, top] = [Math.floor(x), Math.floor(y)];
      const [right, below] = [x - left, y - top];
      const corners = [top, top + 1].map((line) => [left, left + 1].map((place) => (inside(line) * width + inside(place)) * 3));
      for (let channel = 0; channel < 3; channel++, at++) {
        const [upper, lower] = corners.map(([one, other]) => {
          return rgb[one + channel] + (rgb[other + channel] - rgb[one + channel]) * right;
        });
        result[at] = Math.trunc(upper + (lower - upper) * below);
      }
    }
  }
  return result;
}
