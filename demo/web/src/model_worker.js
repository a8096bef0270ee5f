// The network with its decoder under onnxruntime-web, in a worker of its own.
//
// Takes messages {id, call, parameters} and answers each with {id, answer} or {id, error}.

const MAX_THREADS = 4; // more are not faster for a network of this size
const ERRORS_ONLY = 3;

let ort;
let session;
let settings;
let last = Promise.resolve();

const calls = {
  /** Load the ONNX file `bytes` into `runtime`. Returns the runtime's name for the person. */
  async start({ runtime, bytes, settings: given }) {
    settings = given;
    const { threads, provider, name } = choose(runtime);
    ({ ort } = await (provider === "webgpu" ? import("./runtime_webgpu.js") : import("./runtime_wasm.js")));
    ort.env.wasm.numThreads = threads;
    session = await ort.InferenceSession.create(bytes, {
      executionProviders: [provider],
      logSeverityLevel: ERRORS_ONLY,
      // Threads that spin while they wait take the processor from the threads that they wait for.
      extra: { session: { intra_op: { allow_spinning: "0" } } },
    });
    // The first run compiles.
    const { scores } = await calls.run({ crop: new Uint8Array(settings.image_size ** 2 * 3), mirrored: false });
    if (!scores.every(Number.isFinite)) throw new Error("it computes no numbers");
    return name;
  },

  /** Keypoints, one flat list in pixels of the crop as the network saw it, and scores of a (size, size, 3) crop. */
  async run({ crop, mirrored }) {
    const size = settings.image_size;
    const input = new ort.Tensor("float32", normalize(crop, mirrored), [1, 3, size, size]);
    const { keypoints, scores } = await session.run({ pixel_values: input }, ["keypoints", "scores"]);
    return { keypoints: Array.from(keypoints.data), scores: Array.from(scores.data) };
  },
};

function choose(runtime) {
  if (runtime === "webgpu") return { threads: 1, provider: "webgpu", name: "WebGPU" };
  const threads = runtime === "threads" ? Math.min(navigator.hardwareConcurrency || 1, MAX_THREADS) : 1;
  return { threads, provider: "wasm", name: `WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"}` };
}

/** (size, size, 3) 8-bit to (3, size, size), normalized as by the model's image processor. */
function normalize(crop, mirrored) {
  const { image_size: size, image_mean: mean, image_std: std, rescale_factor: factor } = settings;
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

self.addEventListener("message", ({ data: { id, call, parameters } }) => {
  // One after the other: a session runs one call at a time.
  last = last
    .then(() => calls[call](parameters))
    .then((answer) => self.postMessage({ id, answer }))
    .catch((error) => self.postMessage({ id, error: String(error?.message ?? error) }));
});
