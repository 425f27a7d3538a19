// One classic script: `scenetx/serve/viewer.js`. It goes inline into pages that open from file://, where modules cannot.
import { readFileSync } from "node:fs";
import { defineConfig } from "vite";

function licence(name: string): string {
  return `${name}\n${readFileSync(new URL(`node_modules/${name}/LICENSE`, import.meta.url), "utf8").trim()}`;
}

export default defineConfig({
  build: {
    target: "es2022",
    outDir: "dist",
    emptyOutDir: true,
    lib: { entry: "src/main.ts", formats: ["iife"], name: "scenetxViewer", fileName: () => "viewer.js" },
    reportCompressedSize: false,
    rolldownOptions: {
      output: { postBanner: `/*! The scenetx viewer, Apache-2.0. It contains:\n\n${["three"].map(licence).join("\n\n")}\n*/` },
    },
  },
});
