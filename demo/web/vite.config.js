import { copyFileSync } from "node:fs";
import { resolve } from "node:path";
import { defineConfig } from "vite";

// Threads of WebAssembly need shared memory, which a browser gives only to a page that isolates itself by these headers.
// On the Hub, README.md's custom_headers set the same.
const headers = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "cross-origin",
};

// Some servers do not know the ending .mjs and would send it as plain text.
const assetFileNames = ({ names }) =>
  names[0].endsWith(".mjs") ? "assets/[name]-[hash].js" : "assets/[name]-[hash][extname]";

export default defineConfig({
  base: "./",
  // Several pages, though there is one: a missing file is then a 404 and not this page again.
  appType: "mpa",
  server: { host: "127.0.0.1", headers },
  preview: { host: "127.0.0.1", headers },
  // The runtime's WebAssembly stands in files of its own, which are bundled as such (src/runtime_*.js).
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", "module", "browser", "development|production"] },
  optimizeDeps: { exclude: ["onnxruntime-web"] },
  worker: { format: "es", rolldownOptions: { output: { assetFileNames } } },
  build: {
    target: "es2022",
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 2000,
    rolldownOptions: { output: { assetFileNames } },
  },
  plugins: [
    {
      // dist/ is then all of the Space's repository.
      name: "space-readme",
      apply: "build",
      writeBundle: ({ dir }) => copyFileSync(resolve(import.meta.dirname, "README.md"), resolve(dir, "README.md")),
    },
  ],
});
