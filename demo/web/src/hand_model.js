// The network with its decoder under onnxruntime-web: WebGPU where there is one, else WebAssembly.

import { cropSquare, fromCrop } from "./crops.js";
import { readMetadata } from "./onnx_metadata.js";

const METADATA_KEY = "handunet";
const MAX_THREADS = 4; // more do not pay for a network of this size
// A graphics driver that has not answered by then never may; WebAssembly takes over.
const WEBGPU_SECONDS = 20;
const ERRORS_ONLY = 3;
export const RUNTIMES = ["webgpu", "threads", "single"];

/** What a person can read; every other error is a defect of the page. */
export class Sentence extends Error {}

async function download(url) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Sentence("The model could not be fetched: is the page's server still running? Try again.");
  }
  const isPage = response.headers.get("Content-Type")?.startsWith("text/html");
  if (response.status === 404 || (response.ok && isPage)) {
    const name = new URL(url).pathname.split("/").pop();
    throw new Sentence(`The model file ${name} is missing on this page's server: export it first, as README.md says.`);
  }
  if (!response.ok) throw new Sentence(`The model could not be fetched: the server answered ${response.status}.`);
  return new Uint8Array(await response.arrayBuffer());
}

function readSettings(bytes) {
  try {
    return readMetadata(bytes, METADATA_KEY);
  } catch (error) {
    throw new Sentence(`The model file cannot be used, ${error.message}: export it anew with scripts/export_onnx.py.`);
  }
}

/** Whether there is a WebGPU made of hardware: one in software is slower than WebAssembly. */
async function hasWebGpu() {
  try {
    const adapter = await navigator.gpu?.requestAdapter();
    return Boolean(adapter) && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
  } catch {
    return false;
  }
}

async function createSession(runtime, bytes) {
  if (runtime === "webgpu") {
    const { ort } = await import("./runtime_webgpu.js");
    ort.env.wasm.numThreads = 1;
    const session = await ort.InferenceSession.create(bytes, {
      executionProviders: ["webgpu"],
      logSeverityLevel: ERRORS_ONLY,
    });
    return { ort, session, name: "WebGPU" };
  }
  const { ort } = await import("./runtime_wasm.js");
  const threads = runtime === "threads" ? Math.min(navigator.hardwareConcurrency || 1, MAX_THREADS) : 1;
  ort.env.wasm.numThreads = threads;
  const session = await ort.InferenceSession.create(bytes, {
    executionProviders: ["wasm"],
    logSeverityLevel: ERRORS_ONLY,
  });
  return { ort, session, name: `WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"}` };
}

async function startModel(runtime, bytes, settings) {
  const model = new HandModel(await createSession(runtime, bytes), settings);
  const { scores } = await model.run(new Uint8Array(settings.image_size ** 2 * 3), false); // the first run compiles
  if (!scores.every(Number.isFinite)) throw new Error("it computes no numbers");
  return model;
}

function within(seconds, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`it did not answer within ${seconds} seconds`)), seconds * 1000);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/**
 * Fetch the model and start the first runtime that works.
 *
 * @param {string} url absolute address of the ONNX file.
 * @param {string} [only] one of `RUNTIMES`, to try no other.
 * @returns {Promise<HandModel>}
 * @throws {Sentence} when the file is missing or no runtime can use it.
 */
export async function loadHandModel(url, only) {
  const bytes = await download(url);
  const settings = readSettings(bytes);
  const possible = only ? [only] : [];
  if (!only && (await hasWebGpu())) possible.push("webgpu");
  if (!only) possible.push(self.crossOriginIsolated ? "threads" : "single");
  for (const runtime of possible) {
    try {
      const started = startModel(runtime, bytes, settings);
      return await (runtime === "webgpu" && !only ? within(WEBGPU_SECONDS, started) : started);
    } catch (error) {
      console.warn(`HandUNet does not run with ${runtime}:`, error);
    }
  }
  throw new Sentence("The model does not run in this browser: a current Chrome, Edge, Firefox or Safari is needed.");
}

class HandModel {
  #ort;
  #session;
  #last = Promise.resolve();

  constructor({ ort, session, name }, settings) {
    this.#ort = ort;
    this.#session = session;
    this.runtime = name;
    this.settings = settings;
  }

  /**
   * Keypoints of the hand in `square` of a picture.
   *
   * @param {string} handedness "right" or "left"; a left hand is mirrored on the way in and back on the way out.
   * @returns {Promise<{keypoints: number[][], scores: number[], score: number}>} keypoints (21, 2) in pixels of the
   *   picture, their scores in [0, 1], and the mean of these.
   */
  async detect(picture, square, handedness) {
    const size = this.settings.image_size;
    const mirrored = handedness === "left";
    const { keypoints, scores } = await this.run(cropSquare(picture, square, size), mirrored);
    const points = scores.map((_, index) => {
      const [x, y] = keypoints.slice(index * 2, index * 2 + 2);
      return fromCrop([mirrored ? size - x : x, y], square, size);
    });
    return { keypoints: points, scores, score: scores.reduce((sum, score) => sum + score, 0) / scores.length };
  }

  /** Keypoints, as one flat list in pixels of the crop as the network saw it, and scores of a (size, size, 3) crop. */
  run(crop, mirrored) {
    // A session takes one call at a time.
    const answer = this.#last.then(async () => {
      const size = this.settings.image_size;
      const input = new this.#ort.Tensor("float32", this.#normalize(crop, mirrored), [1, 3, size, size]);
      const { keypoints, scores } = await this.#session.run({ pixel_values: input }, ["keypoints", "scores"]);
      return { keypoints: Array.from(keypoints.data), scores: Array.from(scores.data) };
    });
    this.#last = answer.catch(() => {});
    return answer;
  }

  /** (size, size, 3) 8-bit to (3, size, size) as the model's image processor has it. */
  #normalize(crop, mirrored) {
    const { image_size: size, image_mean: mean, image_std: std, rescale_factor: factor } = this.settings;
    const values = new Float32Array(3 * size * size);
    for (let channel = 0, at = 0; channel < 3; channel++) {
      for (let y = 0; y < size; y++) {
        for (let x = 0; x < size; x++, at++) {
          const column = mirrored ? size - 1 - x : x;
          values[at] = (crop[(y * size + column) * 3 + channel] * factor - mean[channel]) / std[channel];
        }
      }
    }
    return values;
  }
}
