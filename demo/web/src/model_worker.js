// Both networks with their decoders under onnxruntime-web, in a worker of its own.
//
// Takes messages {id, call, parameters} and answers each with {id, answer} or {id, error}.

const MAX_THREADS = 4; // more are not faster for networks of this size
const ERRORS_ONLY = 3;
const WARM_BATCHES = [1, 2]; // hands that are usually read together

let ort;
let pose; // {session, settings}
let detector;
let last = Promise.resolve();

const calls = {
  /** Load the ONNX files `pose` and `detector`, {bytes, settings} each, into `runtime`. Returns its name for the person. */
  async start({ runtime, ...files }) {
    const { threads, provider, name } = choose(runtime);
    ({ ort } = await (provider === "webgpu" ? import("./runtime_webgpu.js") : import("./runtime_wasm.js")));
    ort.env.wasm.numThreads = threads;
    pose = await open(files.pose, provider);
    detector = await open(files.detector, provider);
    // The first runs compile.
    const black = ({ image_size: size }) => new Uint8Array(size ** 2 * 3);
    const found = await calls.detect({ crop: black(detector.settings) });
    const read = [];
    for (const count of WARM_BATCHES) {
      read.push(await calls.read({ crops: Array(count).fill(black(pose.settings)), mirrored: Array(count).fill(false) }));
    }
    const values = [...found.scores, ...read.flatMap(({ scores }) => scores)];
    if (!values.every(Number.isFinite)) throw new Error("it computes no numbers");
    return name;
  },

  /** The detector's answers for a letterboxed picture (size, size, 3), as flat lists. */
  async detect({ crop }) {
    const { session, settings } = detector;
    const answers = await session.run({ pixel_values: toTensor([crop], [false], settings) }, ["scores", "labels", "boxes"]);
    return Object.fromEntries(Object.entries(answers).map(([name, { data }]) => [name, Array.from(data, Number)]));
  },

  /**
   * Keypoints, in pixels of each crop as the network saw it, and scores of crops (size, size, 3), as flat lists; and the chances
   * of a hand of the side that it reads and of one of the other side, if it has a classifier.
   */
  async read({ crops, mirrored }) {
    const { session, settings } = pose;
    const names = ["keypoints", "scores", "chances"].filter((name) => session.outputNames.includes(name));
    const answers = await session.run({ pixel_values: toTensor(crops, mirrored, settings) }, names);
    return Object.fromEntries(Object.entries(answers).map(([name, { data }]) => [name, Array.from(data)]));
  },
};

async function open({ bytes, settings }, provider) {
  const session = await ort.InferenceSession.create(bytes, {
    executionProviders: [provider],
    logSeverityLevel: ERRORS_ONLY,
    // Threads that spin while they wait take the processor from the threads that they wait for.
    extra: { session: { intra_op: { allow_spinning: "0" } } },
  });
  return { session, settings };
}

function choose(runtime) {
  if (runtime === "webgpu") return { threads: 1, provider: "webgpu", name: "WebGPU" };
  const threads = runtime === "threads" ? Math.min(navigator.hardwareConcurrency || 1, MAX_THREADS) : 1;
  return { threads, provider: "wasm", name: `WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"}` };
}

/** 8-bit crops (size, size, 3) to (crops, 3, size, size), normalized as by the model's image processor. */
function toTensor(crops, mirrored, { image_size: size, image_mean: mean, image_std: std, rescale_factor: factor }) {
  const values = new Float32Array(crops.length * 3 * size * size);
  let at = 0;
  crops.forEach((crop, index) => {
    for (let channel = 0; channel < 3; channel++) {
      for (let y = 0; y < size; y++) {
        for (let x = 0; x < size; x++, at++) {
          const column = mirrored[index] ? size - 1 - x : x;
          values[at] = (crop[(y * size + column) * 3 + channel] * factor - mean[channel]) / std[channel];
        }
      }
    }
  });
  return new ort.Tensor("float32", values, [crops.length, 3, size, size]);
}

self.addEventListener("message", ({ data: { id, call, parameters } }) => {
  // One after the other: a session runs one call at a time.
  last = last
    .then(() => calls[call](parameters))
    .then((answer) => self.postMessage({ id, answer }))
    .catch((error) => self.postMessage({ id, error: String(error?.message ?? error) }));
});
