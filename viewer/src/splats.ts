// The splats: Spark draws them; opacity filter, budget and crop preview happen in its per-splat program.
import { dyno, SplatFileType, SplatMesh } from "@sparkjsdev/spark";
import { Vector3 } from "three";
import type { SplatData } from "./messages";
import type { Stage } from "./stage";

/** A box in world units; ``axes`` are unit vectors, ``half`` half its sides. */
export interface Box {
  readonly center: Vector3;
  readonly axes: readonly [Vector3, Vector3, Vector3];
  readonly half: Vector3;
}

export class SplatLayer {
  /** The file as it came: cropping and picking read it. */
  file: SplatData | null = null;
  count = 0;
  private mesh: SplatMesh | null = null;
  private generation = 0;
  private budget = Number.POSITIVE_INFINITY;
  private shown = true;
  private readonly least = dyno.dynoFloat(0);
  private readonly boxCenter = dyno.dynoVec3(new Vector3());
  private readonly boxAxes = [0, 1, 2].map(() => dyno.dynoVec3(new Vector3())) as [Uniform3, Uniform3, Uniform3];

  constructor(private readonly stage: Stage) {}

  /** Replaces what is shown once the new splats are ready; a newer call wins over one that is still at work. */
  async load(file: SplatData): Promise<void> {
    const generation = ++this.generation;
    const mesh = new SplatMesh({
      fileBytes: file.data.slice(),
      fileType: file.format === "spz" ? SplatFileType.SPZ : SplatFileType.PLY,
      extSplats: true,
      raycastable: false,
      editable: false,
    });
    try {
      await mesh.initialized;
    } catch (error) {
      mesh.dispose();
      throw new Error(`the splats cannot be read (${String(error instanceof Error ? error.message : error)}); export the scene again`, {
        cause: error,
      });
    }
    if (generation !== this.generation) {
      mesh.dispose();
      return;
    }
    // SPZ's axes are right, up, back; the world's are right, down, forward.
    if (file.format === "spz") mesh.quaternion.set(1, 0, 0, 0);
    mesh.worldModifier = this.modifier();
    this.remove();
    this.mesh = mesh;
    this.file = file;
    this.count = mesh.extSplats?.numSplats ?? 0;
    this.stage.spark.preBlurAmount = file.antialiased ? 0 : 0.3;
    this.stage.spark.blurAmount = file.antialiased ? 0.3 : 0;
    this.stage.world.add(mesh);
    this.applyBudget();
    mesh.visible = this.shown;
    this.stage.draw();
  }

  show(shown: boolean): void {
    this.shown = shown;
    if (this.mesh) this.mesh.visible = shown;
    this.stage.draw();
  }

  /** At most so many splats, the most important ones. */
  setBudget(budget: number): void {
    this.budget = budget;
    this.applyBudget();
  }

  /** Splats fainter than this are not shown. */
  setLeastOpacity(opacity: number): void {
    this.least.value = opacity;
    this.changed();
  }

  setMaxSh(degree: number): void {
    if (!this.mesh) return;
    this.mesh.maxSh = degree;
    this.mesh.updateGenerator();
    this.stage.draw();
  }

  /** Shows only what is inside; null = everything. */
  setBox(box: Box | null): void {
    const unit = this.stage.unit;
    this.boxCenter.value.set(0, 0, 0);
    for (const axis of this.boxAxes) axis.value.set(0, 0, 0);
    if (box) {
      this.boxCenter.value.copy(box.center).multiplyScalar(unit);
      const half = box.half.toArray();
      box.axes.forEach((axis, i) => this.boxAxes[i]?.value.copy(axis).divideScalar((half[i] ?? 1) * unit));
    }
    this.changed();
  }

  private applyBudget(): void {
    const splats = this.mesh?.extSplats;
    if (splats) splats.numSplats = Math.min(this.count, this.budget);
    this.changed();
  }

  private changed(): void {
    this.mesh?.updateVersion();
    this.stage.draw();
  }

  private remove(): void {
    if (!this.mesh) return;
    this.stage.world.remove(this.mesh);
    this.mesh.dispose();
    this.mesh = null;
  }

  /** Opacity 0 for what is too faint or outside the box; Spark then leaves it out of sorting and drawing. */
  private modifier() {
    const zero = dyno.dynoConst("float", 0);
    const one = dyno.dynoConst("float", 1);
    return dyno.dynoBlock({ gsplat: dyno.Gsplat }, { gsplat: dyno.Gsplat }, ({ gsplat }) => {
      if (!gsplat) throw new Error("no splat");
      const { center, opacity } = dyno.splitGsplat(gsplat).outputs;
      const offset = dyno.sub(center, this.boxCenter);
      const [x, y, z] = this.boxAxes.map((axis) => dyno.abs(dyno.dot(offset, axis))) as [Float, Float, Float];
      const inside = dyno.lessThanEqual(dyno.max(x, dyno.max(y, z)), one);
      const keep = dyno.and(inside, dyno.greaterThanEqual(opacity, this.least));
      return { gsplat: dyno.combineGsplat({ gsplat, opacity: dyno.select(keep, opacity, zero) }) };
    });
  }
}

type Uniform3 = ReturnType<typeof dyno.dynoVec3<Vector3>>;
type Float = dyno.DynoVal<"float">;
