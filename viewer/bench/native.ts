// three's own splat renderer on the same file and the same flight as the viewer: what we are measured against.
import { LinearSRGBColorSpace, PerspectiveCamera, Scene, WebGPURenderer } from "three/webgpu";
import { SPZLoader } from "three/addons/loaders/SPZLoader.js";
import { GaussianSplat } from "three/addons/objects/GaussianSplat.js";
import { fromBase64 } from "../src/wire";

/** Opens the file; gives what draws it from a camera's matrix, with a finished picture, and says the milliseconds. */
async function open(file: string, fov: number): Promise<(matrix: readonly number[]) => number> {
  const canvas = document.querySelector("canvas");
  if (!canvas) throw new Error("no canvas");
  const renderer = new WebGPURenderer({ canvas, antialias: false, forceWebGL: true });
  // Splats hold the colours of the screen: nothing to convert, and no pass for it through a buffer of half floats.
  renderer.outputColorSpace = LinearSRGBColorSpace;
  renderer.setSize(canvas.clientWidth, canvas.clientHeight, false);
  await renderer.init();
  const geometry = await new Promise((resolve, reject) => { new SPZLoader().parse(fromBase64(file), resolve, reject); });
  const splats = new GaussianSplat(geometry as ConstructorParameters<typeof GaussianSplat>[0]);
  // SPZ's axes are right, up, back.
  splats.quaternion.set(1, 0, 0, 0);
  const scene = new Scene().add(splats);
  const camera = new PerspectiveCamera(fov, canvas.clientWidth / canvas.clientHeight, 0.01, 1000);
  camera.matrixAutoUpdate = false;
  const context = canvas.getContext("webgl2");
  if (!context) throw new Error("no WebGL2");
  const pixel = new Uint8Array(4);
  return (matrix) => {
    const start = performance.now();
    camera.matrix.fromArray([...matrix]);
    camera.matrixWorldNeedsUpdate = true;
    renderer.render(scene, camera);
    context.readPixels(0, 0, 1, 1, context.RGBA, context.UNSIGNED_BYTE, pixel);
    return performance.now() - start;
  };
}

Reflect.set(globalThis, "openNative", async (file: string, fov: number) => { Reflect.set(globalThis, "frame", await open(file, fov)); });
