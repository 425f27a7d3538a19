// three's own splat renderer on the same file and the same flight as the viewer: what we are measured against.
import { PerspectiveCamera, Scene, WebGPURenderer } from "three/webgpu";
import { SPZLoader } from "three/addons/loaders/SPZLoader.js";
import { GaussianSplat } from "three/addons/objects/GaussianSplat.js";
import { fromBase64 } from "../src/wire";

interface Flight {
  readonly file: string;
  readonly matrices: readonly (readonly number[])[];
  readonly fov: number;
}

async function fly({ file, matrices, fov }: Flight): Promise<number[]> {
  const canvas = document.querySelector("canvas");
  if (!canvas) throw new Error("no canvas");
  const renderer = new WebGPURenderer({ canvas, antialias: false, forceWebGL: true });
  renderer.setSize(canvas.clientWidth, canvas.clientHeight, false);
  await renderer.init();
  const geometry = await new Promise((resolve, reject) => { new SPZLoader().parse(fromBase64(file), resolve, reject); });
  const splats = new GaussianSplat(geometry as ConstructorParameters<typeof GaussianSplat>[0]);
  // SPZ's axes are right, up, back.
  splats.quaternion.set(1, 0, 0, 0);
  const scene = new Scene().add(splats);
  const camera = new PerspectiveCamera(fov, canvas.clientWidth / canvas.clientHeight, 0.01, 1000);
  camera.matrixAutoUpdate = false;
  const times: number[] = [];
  let last = performance.now();
  for (const matrix of matrices) {
    camera.matrix.fromArray([...matrix]);
    camera.matrixWorldNeedsUpdate = true;
    renderer.render(scene, camera);
    await new Promise((resolve) => { requestAnimationFrame(resolve); });
    const now = performance.now();
    times.push(now - last);
    last = now;
  }
  return times;
}

Reflect.set(globalThis, "fly", fly);
