// Opens a picture file, or explains why that is impossible.

import { UserError } from "./hand_model.js";

const SMALLEST_SIDE = 32;
// First bytes of the formats that browsers read.
const SIGNATURES = [
  [0xff, 0xd8, 0xff], // JPEG
  [0x89, 0x50, 0x4e, 0x47], // PNG
  [0x47, 0x49, 0x46, 0x38], // GIF
  [0x42, 0x4d], // BMP
];

async function looksLikePicture(file) {
  const head = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  const text = String.fromCharCode(...head);
  const isWebp = text.startsWith("RIFF") && text.endsWith("WEBP");
  const isAvif = text.slice(4, 8) === "ftyp" && text.slice(8).startsWith("avi");
  return isWebp || isAvif || SIGNATURES.some((bytes) => bytes.every((byte, index) => head[index] === byte));
}

/**
 * Decode a picture as Python does: upright by its EXIF orientation, with its colours as stored.
 *
 * @param {Blob} file
 * @returns {Promise<ImageBitmap>}
 * @throws {UserError} when it cannot be decoded.
 */
export async function openPicture(file) {
  const name = `“${file.name ?? "the picture"}”`;
  if (file.size === 0) throw new UserError(`${name} is empty: choose another picture.`);
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    if (await looksLikePicture(file).catch(() => false)) {
      throw new UserError(`${name} cannot be decoded: it is damaged, or too large for this browser.`);
    }
    throw new UserError(`${name} is not a picture that this browser reads: choose a JPEG, PNG or WebP.`);
  }
}

/** A remark on a picture's size, empty if it is fine. */
export function remarkOnSize({ width, height }) {
  if (Math.min(width, height) >= SMALLEST_SIDE) return "";
  return `With ${width} × ${height} pixels it is too small for an answer to trust.`;
}
