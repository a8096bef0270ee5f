import { copyFileSync } from "node:fs";
import { resolve } from "node:path";
import { defineConfig } from "vite";

// WebAssembly threads need shared memory. A browser gives it only to a page that isolates itself by these headers.
// On the Hub, custom_headers in README.md sets the same.
const headers = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "cross-origin",
};

// Some servers do not know .mjs and send it as plain text.
const assetFileNames = ({ names }) =>
  names[0].endsWith(".mjs") ? "assets/[name]-[hash].js" : "assets/[name]-[hash][extname]";

export default defineConfig({
  base: "./",
  // "mpa" answers a missing file with 404; the default answers with this page.
  appType: "mpa",
  server: { host: "127.0.0.1", headers },
  preview: { host: "127.0.0.1", headers },
  // The runtime's WebAssembly stays in separate files (src/runtime_*.js).
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
      // dist/ then holds the Space's whole repository.
      name: "space-readme",
      apply: "build",
      writeBundle: ({ dir }) => copyFileSync(resolve(import.meta.dirname, "README.md"), resolve(dir, "README.md")),
    },
  ],
});
