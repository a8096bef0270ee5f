// The network with its decoder under onnxruntime-web: WebGPU where there is one, else WebAssembly.

import { cropSquare, fromCrop } from "./crops.js";
import { readMetadata } from "./onnx_metadata.js";

const METADATA_KEY = "handunet";
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

function readSettings(bytes) {
  try {
    return readMetadata(bytes, METADATA_KEY);
  } catch (error) {
    throw new UserError(`The model file cannot be used, ${error.message}: export it anew with scripts/export_onnx.py.`);
  }
}

/** Whether there is WebGPU in hardware. WebGPU in software is slower than WebAssembly. */
async function hasWebGpu() {
  try {
    const adapter = await navigator.gpu?.requestAdapter();
    return Boolean(adapter) && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
  } catch {
    return false;
  }
}

async function startModel(runtime, bytes, settings, seconds) {
  const worker = new ModelWorker();
  try {
    const name = await within(seconds, worker.ask("start", { runtime, bytes, settings }));
    return new HandModel(worker, name, settings);
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
 * Fetch the model and start the first runtime that works.
 *
 * @param {string} url absolute address of the ONNX file.
 * @param {string} [only] one of `RUNTIMES`: try only this one.
 * @returns {Promise<HandModel>}
 * @throws {UserError} when the file is missing or no runtime can use it.
 */
export async function loadHandModel(url, only) {
  const bytes = await download(url);
  const settings = readSettings(bytes);
  const possible = only ? [only] : [];
  if (!only && (await hasWebGpu())) possible.push("webgpu");
  if (!only) possible.push(self.crossOriginIsolated ? "threads" : "single");
  for (const runtime of possible) {
    try {
      return await startModel(runtime, bytes, settings, runtime === "webgpu" && !only ? WEBGPU_SECONDS : Infinity);
    } catch (error) {
      console.warn(`HandUNet does not run with ${runtime}:`, error);
    }
  }
  throw new UserError("The model does not run in this browser: a current Chrome, Edge, Firefox or Safari is needed.");
}

/** The worker in which the network runs, so that the page stays responsive. */
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

class HandModel {
  #worker;

  constructor(worker, runtime, settings) {
    this.#worker = worker;
    this.runtime = runtime;
    this.settings = settings;
  }

  /**
   * Keypoints of the hand in `square` of a picture. The picture is read before the promise is returned.
   *
   * @param {string} handedness "right" or "left"; a left hand is mirrored on the way in and back on the way out.
   * @returns {Promise<{keypoints: number[][], scores: number[], score: number}>} keypoints (21, 2) in pixels of the
   *   picture, their scores in [0, 1], and the mean of these.
   */
  async detect(picture, square, handedness) {
    const size = this.settings.image_size;
    const mirrored = handedness === "left";
    const crop = cropSquare(picture, square, size);
    const { keypoints, scores } = await this.#worker.ask("run", { crop, mirrored });
    const points = scores.map((_, index) => {
      const [x, y] = keypoints.slice(index * 2, index * 2 + 2);
      return fromCrop([mirrored ? size - x : x, y], square, size);
    });
    return { keypoints: points, scores, score: scores.reduce((sum, score) => sum + score, 0) / scores.length };
  }
}
