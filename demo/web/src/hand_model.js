// The two networks with their decoders under onnxruntime-web: WebGPU where there is one, else WebAssembly.

import { boxToSquare, cropSquare, cropTurned, fromCrop, heightOf, pictureToSquare, widthOf } from "./crops.js";
import { readMetadata } from "./onnx_metadata.js";

const METADATA_KEY = "handunet";
const SIDES = ["right", "left"]; // by the detector's labels
// After this time WebAssembly takes over: a stuck graphics driver may never answer.
const WEBGPU_SECONDS = 20;
export const RUNTIMES = ["webgpu", "threads", "single"];

/** An error with a message for the person. Every other error is a bug of the page. */
export class UserError extends Error {}

async function download(url) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new UserError("The model could not be fetched: is the page's server still running? Try again.");
  }
  const isPage = response.headers.get("Content-Type")?.startsWith("text/html");
  if (response.status === 404 || (response.ok && isPage)) {
    const name = new URL(url).pathname.split("/").pop();
    throw new UserError(`The model file ${name} is missing on this page's server: export it first, as README.md says.`);
  }
  if (!response.ok) throw new UserError(`The model could not be fetched: the server answered ${response.status}.`);
  return new Uint8Array(await response.arrayBuffer());
}

/** The file at `url`, which must be of the kind "pose" or "detector", as {bytes, settings}. */
async function openFile(url, kind) {
  const bytes = await download(url);
  let settings;
  try {
    settings = readMetadata(bytes, METADATA_KEY);
  } catch (error) {
    throw new UserError(`The model file cannot be used, ${error.message}: export it anew with scripts/export_onnx.py.`);
  }
  const found = settings.kind ?? "pose"; // files of older exports do not say
  if (found === kind) return { bytes, settings };
  const name = new URL(url).pathname.split("/").pop();
  throw new UserError(`The model file ${name} is of the kind "${found}", but one of the kind "${kind}" is needed.`);
}

const openBoth = ({ pose, detector }) => Promise.all([openFile(pose, "pose"), openFile(detector, "detector")]);

/** Whether there is WebGPU in hardware. WebGPU in software is slower than WebAssembly. */
async function hasWebGpu() {
  try {
    const adapter = await navigator.gpu?.requestAdapter();
    return Boolean(adapter) && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
  } catch {
    return false;
  }
}

async function startModels(runtime, pose, detector, seconds) {
  const worker = new ModelWorker();
  try {
    const name = await within(seconds, worker.ask("start", { runtime, pose, detector }));
    return new HandModels(worker, name, pose.settings, detector.settings);
  } catch (error) {
    worker.terminate();
    throw error;
  }
}

function within(seconds, promise) {
  if (seconds === Infinity) return promise;
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`it did not answer within ${seconds} seconds`)), seconds * 1000);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/**
 * Fetch both models and start the first runtime that works.
 *
 * @param {{pose: string, detector: string}} files absolute addresses of the ONNX files that read keypoints and find hands.
 * @param {?{pose: string, detector: string}} inEightBits those in 8 bits, which WebAssembly runs faster, if the server has them.
 * @param {string} [only] one of `RUNTIMES`: try only this one.
 * @returns {Promise<HandModels>}
 * @throws {UserError} when a file is missing or no runtime can use them.
 */
export async function loadHandModels(files, inEightBits, only) {
  const possible = only ? [only] : [];
  if (!only && (await hasWebGpu())) possible.push("webgpu");
  if (!only) possible.push(self.crossOriginIsolated ? "threads" : "single");
  let whole; // fetched once, also if the first runtime does not work
  for (const runtime of possible) {
    const small = runtime !== "webgpu" && inEightBits && (await openBoth(inEightBits).catch(() => null));
    const [pose, detector] = small || (await (whole ??= openBoth(files)));
    try {
      return await startModels(runtime, pose, detector, runtime === "webgpu" && !only ? WEBGPU_SECONDS : Infinity);
    } catch (error) {
      console.warn(`HandUNet does not run with ${runtime}:`, error);
    }
  }
  throw new UserError("The model does not run in this browser: a current Chrome, Edge, Firefox or Safari is needed.");
}

/** The worker in which the networks run, so that the page stays responsive. */
class ModelWorker {
  #worker = new Worker(new URL("./model_worker.js", import.meta.url), { type: "module", name: "handunet" });
  #waiting = new Map();
  #count = 0;

  constructor() {
    this.#worker.addEventListener("message", ({ data: { id, answer, error } }) => {
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error === undefined) resolve(answer);
      else reject(new Error(error));
    });
    this.#worker.addEventListener("error", ({ message }) => {
      for (const { reject } of this.#waiting.values()) reject(new Error(message ?? "the worker could not be loaded"));
      this.#waiting.clear();
    });
  }

  /** Call the function `call` of model_worker.js. */
  ask(call, parameters) {
    return new Promise((resolve, reject) => {
      this.#count += 1;
      this.#waiting.set(this.#count, { resolve, reject });
      this.#worker.postMessage({ id: this.#count, call, parameters });
    });
  }

  terminate() {
    this.#worker.terminate();
  }
}

/** What tracking.js and find_hands.js ask. A picture is read before a promise is returned. */
class HandModels {
  #worker;
  #detector;

  constructor(worker, runtime, settings, detectorSettings) {
    this.#worker = worker;
    this.#detector = detectorSettings;
    this.runtime = runtime;
    this.settings = settings;
  }

  /**
   * The hands of a picture, falling by score.
   *
   * @returns {Promise<{box: number[], side: string, score: number}[]>} boxes [x_min, y_min, x_max, y_max] in pixels, cut to
   *   the picture; sides "right" or "left"; scores above 0.
   */
  async detect(picture) {
    const [width, height] = [widthOf(picture), heightOf(picture)];
    const square = pictureToSquare(width, height);
    const crop = cropSquare(picture, square, this.#detector.image_size);
    const { scores, labels, boxes } = await this.#worker.ask("detect", { crop });
    const hands = scores.map((score, index) => {
      const [left, top, right, bottom] = boxes.slice(index * 4, index * 4 + 4);
      const corners = [...fromCrop([left, top], square, 1), ...fromCrop([right, bottom], square, 1)];
      const box = corners.map((value, side) => Math.min(Math.max(value, 0), side % 2 ? height : width));
      return { box, side: SIDES[labels[index]], score };
    });
    // Not those in the black beyond the picture.
    return hands.filter(({ box, score }) => score > 0 && box[2] > box[0] && box[3] > box[1]);
  }

  /**
   * Keypoints of the hands at places {box, side, angle} of a picture; a left hand is mirrored on the way in and on the way
   * back, and a place with an angle is turned.
   *
   * @returns {Promise<{keypoints: number[][][], scores: number[][], chances: ?number[][]}>} (places, 21, 2) in pixels of the
   *   picture, (places, 21) in [0, 1], and (places, 2) or null without a classifier: of a hand of its side and of the other.
   */
  async read(picture, places) {
    const { image_size: size, box_fill: fill } = this.settings;
    const toBox = ([left, top, right, bottom]) => [left, top, right - left, bottom - top];
    const squares = places.map(({ box }) => boxToSquare(toBox(box), fill));
    const cut = new Map(); // a place that is read as both sides is cut once
    places.forEach(({ box, angle }, index) => cut.has(box) || cut.set(box, cropTurned(picture, squares[index], size, angle)));
    const crops = places.map(({ box }) => cut.get(box));
    const mirrored = places.map(({ side }) => side === "left");
    const answer = await this.#worker.ask("read", { crops, mirrored });
    const count = answer.scores.length / places.length;
    const keypoints = squares.map((square, hand) =>
      Array.from({ length: count }, (_, index) => {
        const [x, y] = answer.keypoints.slice((hand * count + index) * 2, (hand * count + index) * 2 + 2);
        return fromCrop([mirrored[hand] ? size - x : x, y], square, size, places[hand].angle);
      }),
    );
    const perHand = (values, each) => squares.map((_, hand) => values.slice(hand * each, (hand + 1) * each));
    const chances = answer.chances ? perHand(answer.chances, 2) : null;
    return { keypoints, scores: perHand(answer.scores, count), chances };
  }
}
