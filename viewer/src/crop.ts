// A box around the part that is wanted: seen at once, pulled by its faces, saved without loss.
import { Quaternion, Vector3 } from "three";
import { button, count, download, el, section, slider } from "./dom";
import type { Drawing } from "./overlay";
import { isInside } from "./pick";
import { cut, tableOf } from "./splatfile";
import type { Box, SplatLayer } from "./splats";
import type { Stage } from "./stage";

const HANDLE_PIXELS = 16;

export interface CropHost {
  readonly up: () => Vector3;
  readonly center: () => Vector3;
  readonly name: () => string;
  readonly say: (text: string, level: "info" | "error") => void;
}

export class CropTool {
  box: Box | null = null;
  readonly root: HTMLElement;
  private readonly kept = el("p", { role: "status" });
  private readonly more: HTMLElement;
  private readonly main = button("Add a crop box", () => this.toggle(), { "aria-pressed": "false" });
  private counting = 0;

  constructor(
    private readonly stage: Stage,
    private readonly splats: SplatLayer,
    private readonly host: CropHost,
  ) {
    const turn = slider("Turn", [-90, 90, 1], 0, (degrees) => this.turn(degrees), (degrees) => `${degrees}°`);
    this.more = el("div", { hidden: true, class: "body inner" }, el("p", {}, "Pull the blue dots; what is outside is hidden."), turn.row, this.kept, button("Save the crop (.spz)", () => void this.save(), { class: "main" }));
    this.root = section("Crop", false, el("div", { class: "row" }, this.main), this.more);
  }

  toggle(): void {
    if (this.box) this.set(null);
    else this.set(this.first(0));
  }

  set(box: Box | null): void {
    this.box = box;
    this.splats.setBox(box);
    this.more.hidden = box === null;
    this.main.textContent = box ? "Remove the crop box" : "Add a crop box";
    this.main.setAttribute("aria-pressed", String(box !== null));
    window.clearTimeout(this.counting);
    if (box) this.counting = window.setTimeout(() => void this.showCount(), 120);
  }

  /** A drag that begins on a handle moves that face. */
  grab(x: number, y: number): ((x: number, y: number, done: boolean) => void) | null {
    const box = this.box;
    if (!box) return null;
    const near = this.handles()
      .map((handle) => ({ ...handle, at: this.stage.project(handle.place) }))
      .filter(({ at }) => at !== null && Math.hypot(at.x - x, at.y - y) < HANDLE_PIXELS)
      .toSorted((a, b) => (a.at?.depth ?? 0) - (b.at?.depth ?? 0))[0];
    if (!near) return null;
    return (toX, toY) => this.pull(near.axis, near.sign, box, toX, toY);
  }

  drawing(): Drawing {
    const box = this.box;
    if (!box) return { lines: [], marks: [] };
    const corner = (i: number): Vector3 => {
      const place = box.center.clone();
      box.axes.forEach((axis, k) => place.addScaledVector(axis, (i & (1 << k) ? 1 : -1) * box.half.getComponent(k)));
      return place;
    };
    const lines = [];
    for (let i = 0; i < 8; i++) {
      for (const bit of [1, 2, 4]) if ((i & bit) === 0) lines.push({ from: corner(i), to: corner(i | bit), kind: "box" });
    }
    return { lines, marks: this.handles().map(({ place }) => ({ at: place, kind: "handle" })) };
  }

  private first(degrees: number): Box {
    const size = this.stage.radius * 0.5;
    return { center: this.host.center(), axes: axesAbout(this.host.up(), degrees), half: new Vector3(size, size, size) };
  }

  private turn(degrees: number): void {
    if (this.box) this.set({ ...this.box, axes: axesAbout(this.host.up(), degrees) });
  }

  private handles(): { axis: number; sign: 1 | -1; place: Vector3 }[] {
    const box = this.box;
    if (!box) return [];
    return ([0, 1, 2] as const).flatMap((axis) =>
      ([1, -1] as const).map((sign) => ({ axis, sign, place: box.center.clone().addScaledVector(box.axes[axis], sign * box.half.getComponent(axis)) })),
    );
  }

  /** The face goes where the ray comes closest to the handle's axis; the opposite face stays. */
  private pull(index: number, sign: 1 | -1, start: Box, x: number, y: number): void {
    const axis = start.axes[index as 0 | 1 | 2];
    const { origin, direction } = this.stage.ray(x, y);
    const between = start.center.clone().sub(origin);
    const slant = axis.dot(direction);
    const across = 1 - slant * slant;
    if (across < 1e-4) return;
    const along = (direction.dot(between) * slant - axis.dot(between)) / across;
    const fixed = -sign * start.half.getComponent(index);
    const moved = sign > 0 ? Math.max(along, fixed + this.stage.radius * 0.01) : Math.min(along, fixed - this.stage.radius * 0.01);
    const half = start.half.clone().setComponent(index, Math.abs(moved - fixed) / 2);
    this.set({ ...start, center: start.center.clone().addScaledVector(axis, (moved + fixed) / 2), half });
  }

  private async inside(): Promise<number[]> {
    const { file } = this.splats;
    const box = this.box;
    if (!file || !box) return [];
    const table = await tableOf(file);
    const kept: number[] = [];
    for (let i = 0; i < table.count; i++) if (isInside(box, table.positions, i)) kept.push(i);
    return kept;
  }

  private async showCount(): Promise<void> {
    const kept = await this.inside().catch(() => []);
    this.kept.textContent = `${count(kept.length)} of ${count(this.splats.count)} splats are inside.`;
  }

  private async save(): Promise<void> {
    const { file } = this.splats;
    if (!file) return;
    try {
      const kept = await this.inside();
      if (kept.length === 0) throw new Error("no splat is inside the box");
      download(`${this.host.name()}-crop.${file.format}`, await cut(file, kept), "application/octet-stream");
      this.host.say(`${count(kept.length)} splats saved.`, "info");
    } catch (error) {
      this.host.say(`The crop was not saved: ${error instanceof Error ? error.message : String(error)}.`, "error");
    }
  }
}

function axesAbout(up: Vector3, degrees: number): [Vector3, Vector3, Vector3] {
  const helper = Math.abs(up.x) < 0.9 ? new Vector3(1, 0, 0) : new Vector3(0, 1, 0);
  const side = helper.projectOnPlane(up).normalize().applyQuaternion(new Quaternion().setFromAxisAngle(up, (degrees * Math.PI) / 180));
  return [side, new Vector3().crossVectors(up, side), up.clone()];
}
