// The runtime in WebAssembly and its files. It has threads if the page is isolated.
import * as ort from "onnxruntime-web/wasm";
import mjs from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasm from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";

const absolute = (url) => new URL(url, import.meta.url).href;
ort.env.wasm.wasmPaths = { mjs: absolute(mjs), wasm: absolute(wasm) };

export { ort };
