// The runtime on the graphics processor and its files.
import * as ort from "onnxruntime-web/webgpu";
import mjs from "onnxruntime-web/ort-wasm-simd-threaded.asyncify.mjs?url";
import wasm from "onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm?url";

const absolute = (url) => new URL(url, import.meta.url).href;
ort.env.wasm.wasmPaths = { mjs: absolute(mjs), wasm: absolute(wasm) };

export { ort };
