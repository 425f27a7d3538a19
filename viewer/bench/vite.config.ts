// The page that benchmarks/viewer.py measures three's own splat renderer with; not part of the package.
import { defineConfig } from "vite";

export default defineConfig({
  root: import.meta.dirname,
  build: { target: "es2022", outDir: "../dist-bench", emptyOutDir: true, lib: { entry: "native.ts", formats: ["iife"], name: "bench", fileName: () => "native.js" } },
});
