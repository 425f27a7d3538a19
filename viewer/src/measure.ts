// Measuring between two points; a known length sets the scale, three points of the ground set the up axis.
import { Quaternion, Vector3, Matrix4 } from "three";
import { button, download, el, section, short } from "./dom";
import type { Similarity } from "./messages";
import type { Drawing } from "./overlay";

export type Picking = "none" | "length" | "up";

/** What the tool needs of the viewer. */
export interface MeasureHost {
  /** The server writes frames back; a static page offers a file. */
  readonly editable: () => boolean;
  readonly apply: (change: Similarity) => boolean;
  /** Shows the change in a page that cannot be written to. */
  readonly preview: (change: Similarity) => void;
  readonly cameraCenter: () => Vector3;
  readonly redraw: () => void;
  readonly say: (text: string) => void;
}

const STEPS = { none: "", length: "Click two points of the scene.", up: "Click three points of the ground." } as const;

export class MeasureTool {
  picking: Picking = "none";
  readonly root: HTMLElement;
  readonly hint = el("div", { class: "hint card", hidden: true, role: "status" });
  onChange: () => void = () => undefined;
  private points: Vector3[] = [];
  private scale = 1;
  private readonly result = el("output", { class: "big" }, "");
  private readonly known = el("input", { type: "number", min: 0, step: "any", placeholder: "for example 0.30", "aria-label": "True length between the two points" });
  private readonly setScale = button("Set the scale", () => this.applyScale());
  private readonly setUp = button("Set the up axis", () => this.applyUp(), { hidden: true });
  private readonly measureButton = button("Measure", () => this.start("length"), { "aria-pressed": "false" });
  private readonly upButton = button("Up axis", () => this.start("up"), { "aria-pressed": "false" });
  private readonly scaleRow = el("div", { class: "row", hidden: true }, this.known, this.setScale);

  constructor(private readonly host: MeasureHost) {
    this.root = section("Measure and align", false, el("div", { class: "row" }, this.measureButton, this.upButton), this.result, this.scaleRow, this.setUp);
  }

  /** Starts picking, or ends it when it was this. */
  start(picking: Picking): void {
    this.picking = this.picking === picking ? "none" : picking;
    this.points = [];
    this.update();
  }

  stop(): void {
    this.picking = "none";
    this.points = [];
    this.update();
  }

  /** A point of the scene was clicked. */
  add(point: Vector3): void {
    const wanted = this.picking === "length" ? 2 : 3;
    if (this.points.length >= wanted) this.points = [];
    this.points.push(point);
    this.update();
  }

  get length(): number | null {
    const [a, b] = this.points;
    return this.picking === "length" && a && b ? a.distanceTo(b) * this.scale : null;
  }

  drawing(): Drawing {
    const [a, b, c] = this.points;
    const length = this.length;
    const lines = [];
    if (a && b) lines.push({ from: a, to: b, ...(length === null ? {} : { text: short(length) }) });
    if (b && c && a) lines.push({ from: b, to: c }, { from: c, to: a });
    return { lines, marks: this.points.map((at) => ({ at })) };
  }

  private update(): void {
    const length = this.length;
    this.result.textContent = length === null ? "" : `${short(length)} units`;
    this.scaleRow.hidden = length === null;
    this.setUp.hidden = !(this.picking === "up" && this.points.length === 3);
    this.measureButton.setAttribute("aria-pressed", String(this.picking === "length"));
    this.upButton.setAttribute("aria-pressed", String(this.picking === "up"));
    const done = this.points.length === (this.picking === "length" ? 2 : 3);
    this.hint.textContent = STEPS[this.picking];
    this.hint.hidden = this.picking === "none" || done;
    this.onChange();
    this.host.redraw();
  }

  private applyScale(): void {
    const wanted = this.known.valueAsNumber;
    const length = this.length;
    if (length === null || !(wanted > 0)) {
      this.host.say("Type the true length first, in the unit you want (metres, say).");
      return;
    }
    const scale = wanted / length;
    if (!this.hand({ type: "Similarity", scale, rotation: [1, 0, 0, 0, 1, 0, 0, 0, 1], translation: [0, 0, 0] })) this.scale *= scale;
    this.update();
  }

  private applyUp(): void {
    const [a, b, c] = this.points;
    if (!a || !b || !c) return;
    const normal = b.clone().sub(a).cross(c.clone().sub(a));
    if (normal.length() < 1e-9 * a.distanceTo(b) * a.distanceTo(c)) {
      this.host.say("The three points lie on a line: choose them farther apart.");
      return;
    }
    normal.normalize();
    if (normal.dot(this.host.cameraCenter().sub(a)) < 0) normal.negate();
    const turn = new Quaternion().setFromUnitVectors(normal, new Vector3(0, 0, 1));
    const m = new Matrix4().makeRotationFromQuaternion(turn).transpose().elements;
    const rotation = [0, 1, 2, 4, 5, 6, 8, 9, 10].map((i) => m[i] ?? 0);
    const height = a.clone().applyQuaternion(turn).z;
    this.hand({ type: "Similarity", scale: 1, rotation, translation: [0, 0, -height] });
    this.stop();
  }

  /** True when the server took it: then the scene itself changes. */
  private hand(change: Similarity): boolean {
    if (this.host.editable() && this.host.apply(change)) {
      this.points = [];
      return true;
    }
    this.host.preview(change);
    const { scale, rotation, translation } = change;
    download("frame.json", JSON.stringify({ scale, rotation, translation }, null, 1), "application/json");
    this.host.say("This page cannot change the scene's files: frame.json was saved; `scenetx view SCENE --frame frame.json` applies it.");
    return false;
  }
}
