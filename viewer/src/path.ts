// Camera paths: keyframes, playing them, and files that `scenetx render --path` takes.
import { CatmullRomCurve3, Quaternion, Vector3 } from "three";
import { button, download, el, icon, section, slider } from "./dom";
import { type Eye, eyeOf, intrinsics, type Lens, poseRows, PLAIN_LENS } from "./eye";
import type { Drawing } from "./overlay";
import type { Controls } from "./controls";
import { record } from "./record";
import type { Stage } from "./stage";

const FPS = 30;
const FILE_WIDTH = 1280;
const MOST_IMPORTED = 24; // frames of a file without keyframes become so many keyframes

export interface PathHost {
  readonly name: () => string;
  readonly say: (text: string, level: "info" | "error") => void;
}

export class PathTool {
  keys: Eye[] = [];
  seconds = 6;
  readonly root: HTMLElement;
  private closed = false;
  private playing = false;
  private at = 0;
  private readonly list = el("ol", { class: "keyframes" });
  private readonly playButton = button("Play", () => this.play(), { disabled: true });
  private readonly scrub = slider("Place on the path", [0, 1, 0.001], 0, (t) => this.scrubTo(t), (t) => `${(t * this.seconds).toFixed(1)} s`);
  private readonly file = el("input", { type: "file", accept: ".json,application/json", hidden: true, "aria-label": "Camera path file", onchange: () => void this.open() });
  private readonly movie = button("Video", () => void this.video(), { disabled: true, title: "Save the path as a video" });
  private readonly save = button("Save", () => this.export(), { disabled: true, title: "Save the path for scenetx render --path" });
  private readonly duration: ReturnType<typeof slider>;

  constructor(
    private readonly stage: Stage,
    private readonly controls: Controls,
    private readonly host: PathHost,
  ) {
    this.duration = slider("Length", [1, 60, 1], this.seconds, (seconds) => { this.seconds = seconds; }, (seconds) => `${seconds} s`);
    const loop = el("input", { type: "checkbox", role: "switch", onchange: () => { this.closed = loop.checked; this.update(); } });
    this.root = section(
      "Camera path",
      false,
      el("div", { class: "row" }, button("Add this view", () => this.add(), { title: "Add a keyframe (K)" }), this.playButton),
      this.list,
      this.scrub.row,
      this.duration.row,
      el("label", { class: "switch" }, el("span", {}, "End where it begins"), loop),
      el("div", { class: "row" }, this.save, button("Open", () => this.file.click(), { title: "Open a camera path" }), this.movie),
      this.file,
    );
    stage.tickers.add((passed) => this.tick(passed));
    this.update();
  }

  add(): void {
    this.keys.push(this.stage.eye);
    this.update();
  }

  play(): void {
    if (this.keys.length < 2) return;
    this.playing = !this.playing;
    if (this.at >= 1) this.at = 0;
    this.controls.stop();
    this.update();
  }

  stop(): void {
    if (!this.playing) return;
    this.playing = false;
    this.update();
  }

  /** The eye at a share of the path: Catmull-Rom through the keyframes, equal time between them. */
  sample(t: number): Eye {
    const keys = this.closed && this.keys.length > 2 ? [...this.keys, ...this.keys.slice(0, 1)] : this.keys;
    const first = keys[0] ?? this.stage.eye;
    if (keys.length < 2) return first;
    const place = Math.min(Math.max(t, 0), 1) * (keys.length - 1);
    const piece = Math.min(Math.floor(place), keys.length - 2);
    const u = place - piece;
    const around = [-1, 0, 1, 2].map((shift) => this.neighbour(keys, piece + shift)) as [Eye, Eye, Eye, Eye];
    const curve = new CatmullRomCurve3(keys.map((key) => key.position), false, "centripetal");
    const mix = (read: (eye: Eye) => number) => spline(around.map(read) as [number, number, number, number], u);
    const lens: Lens = { tanX: mix((eye) => eye.lens.tanX), tanY: mix((eye) => eye.lens.tanY), shiftX: mix((eye) => eye.lens.shiftX), shiftY: mix((eye) => eye.lens.shiftY) };
    const position = this.closed ? new Vector3(mix((e) => e.position.x), mix((e) => e.position.y), mix((e) => e.position.z)) : curve.getPoint(place / (keys.length - 1));
    return { position, quaternion: turnBetween(around, u), distance: Math.max(mix((eye) => eye.distance), 1e-9), lens };
  }

  drawing(): Drawing {
    if (this.keys.length < 2 || this.playing || !(this.root as HTMLDetailsElement).open) return { lines: [], marks: [] };
    const steps = Math.min(24 * this.keys.length, 240);
    const places = Array.from({ length: steps + 1 }, (_, i) => this.sample(i / steps).position);
    const lines = places.slice(1).map((to, i) => ({ from: places[i] ?? to, to, kind: "box" }));
    return { lines, marks: this.keys.map((key) => ({ at: key.position })) };
  }

  /** The file's content. */
  toJson(): string {
    const { width, height } = this.size();
    const count = Math.max(2, Math.round(this.seconds * FPS));
    const last = this.closed ? count : count - 1;
    const frames = Array.from({ length: count }, (_, i) => this.frame(this.sample(i / last), width, height));
    const keyframes = this.keys.map((eye) => ({ ...this.frame(eye, width, height), lens: eye.lens, distance: eye.distance }));
    return JSON.stringify({ fps: FPS, width, height, seconds: this.seconds, closed: this.closed, frames, keyframes });
  }

  fromJson(text: string): void {
    const root: unknown = JSON.parse(text);
    if (!isPath(root)) throw new Error("it holds no frames with world_from_cam and K");
    const { width, height } = root;
    const stride = Math.max(1, Math.ceil(root.frames.length / MOST_IMPORTED));
    const chosen = root.keyframes ?? root.frames.filter((_, i) => i % stride === 0 || i === root.frames.length - 1);
    const eyes = chosen.map((frame) => {
      const [[fx = 1, , cx = 0] = [], [, fy = 1, cy = 0] = []] = frame.K;
      const eye = eyeOf({ world_from_cam: frame.world_from_cam.flat(), lens: [fx, fy, cx, cy], width, height }, frame.distance ?? this.stage.radius);
      return { ...eye, lens: frame.lens ?? eye.lens };
    });
    if (eyes.some((eye) => !eye.position.toArray().every(Number.isFinite) || !eye.quaternion.toArray().every(Number.isFinite))) throw new Error("a frame holds numbers that are none");
    this.keys = eyes;
    this.closed = root.closed ?? false;
    this.duration.set(Math.min(60, Math.max(1, root.seconds ?? root.frames.length / (root.fps || FPS))));
    this.update();
  }

  private frame(eye: Eye, width: number, height: number) {
    const rows = poseRows(eye);
    const [fx, fy, cx, cy] = intrinsics(eye.lens, width, height);
    return { world_from_cam: [0, 4, 8, 12].map((i) => rows.slice(i, i + 4)), K: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] };
  }

  private size(): { width: number; height: number } {
    return { width: FILE_WIDTH, height: Math.max(2, Math.round((FILE_WIDTH * this.stage.height) / this.stage.width / 2) * 2) };
  }

  private neighbour(keys: readonly Eye[], index: number): Eye {
    const last = keys.length - 1;
    const inside = this.closed ? (index + last) % last : Math.min(Math.max(index, 0), last);
    return keys[inside] ?? { position: new Vector3(), quaternion: new Quaternion(), distance: 1, lens: PLAIN_LENS };
  }

  private tick(passed: number): boolean {
    if (!this.playing) return false;
    this.at += passed / this.seconds;
    if (this.at >= 1) {
      this.at = this.closed ? this.at % 1 : 1;
      if (!this.closed) this.stop();
    }
    this.scrub.input.value = String(this.at);
    this.stage.look(this.sample(this.at));
    return this.playing;
  }

  private scrubTo(t: number): void {
    this.at = t;
    if (this.keys.length > 1) this.stage.look(this.sample(t));
  }

  private update(): void {
    const some = this.keys.length > 1;
    this.playButton.disabled = this.movie.disabled = this.save.disabled = this.scrub.input.disabled = !some;
    this.playButton.replaceChildren(icon(this.playing ? "pause" : "play"), this.playing ? "Pause" : "Play");
    this.list.replaceChildren(
      ...this.keys.map((eye, i) =>
        el(
          "li",
          {},
          button(`Keyframe ${i + 1}`, () => void this.controls.fly(eye), { title: "Go there" }),
          button("↑", () => this.shift(i), { "aria-label": `Keyframe ${i + 1} earlier`, disabled: i === 0 }),
          button("×", () => this.remove(i), { "aria-label": `Remove keyframe ${i + 1}` }),
        ),
      ),
    );
    this.stage.draw();
  }

  private shift(index: number): void {
    this.keys.splice(index - 1, 0, ...this.keys.splice(index, 1));
    this.update();
  }

  private remove(index: number): void {
    this.keys.splice(index, 1);
    this.update();
  }

  private export(): void {
    download(`${this.host.name()}-path.json`, this.toJson(), "application/json");
  }

  private async open(): Promise<void> {
    const file = this.file.files?.[0];
    this.file.value = "";
    if (file) await this.openFile(file);
  }

  async openFile(file: File): Promise<void> {
    try {
      this.fromJson(await file.text());
      this.host.say(`${this.keys.length} keyframes opened.`, "info");
    } catch (error) {
      this.host.say(`${file.name} is no camera path: ${error instanceof Error ? error.message : String(error)}.`, "error");
    }
  }

  private async video(): Promise<void> {
    this.stop();
    const back = this.stage.eye;
    this.movie.disabled = true;
    try {
      const { data, type, suffix } = await record(this.stage, (t) => this.sample(t), this.seconds, FPS, (share) => { this.movie.textContent = `${Math.round(share * 100)} %`; });
      download(`${this.host.name()}-path.${suffix}`, data, type);
    } catch (error) {
      this.host.say(`No video was made: ${error instanceof Error ? error.message : String(error)}. Save the path and use scenetx render --path instead.`, "error");
    }
    this.movie.textContent = "Video";
    this.movie.disabled = false;
    this.stage.look(back);
  }
}

type Four<T> = readonly [T, T, T, T];

function spline([a, b, c, d]: Four<number>, u: number): number {
  return b + 0.5 * u * (c - a + u * (2 * a - 5 * b + 4 * c - d + u * (3 * (b - c) + d - a)));
}

/** The spline on the quaternions' four numbers, all on one side: smooth, and never far from the great circle. */
function turnBetween(eyes: Four<Eye>, u: number): Quaternion {
  const quaternions = eyes.map((eye) => eye.quaternion.clone());
  const middle = quaternions[1] ?? new Quaternion();
  for (const each of quaternions) if (each.dot(middle) < 0) each.set(-each.x, -each.y, -each.z, -each.w);
  const part = (read: (q: Quaternion) => number) => spline(quaternions.map(read) as unknown as Four<number>, u);
  return new Quaternion(part((q) => q.x), part((q) => q.y), part((q) => q.z), part((q) => q.w)).normalize();
}

interface PathFrame {
  readonly world_from_cam: number[][];
  readonly K: number[][];
  readonly lens?: Lens;
  readonly distance?: number;
}

interface PathFile {
  readonly fps: number;
  readonly width: number;
  readonly height: number;
  readonly frames: readonly PathFrame[];
  readonly keyframes?: readonly PathFrame[];
  readonly seconds?: number;
  readonly closed?: boolean;
}

function isMatrix(value: unknown, side: number): boolean {
  return Array.isArray(value) && value.length === side && value.every((row) => Array.isArray(row) && row.length === side && row.every(Number.isFinite));
}

function areFrames(list: unknown): boolean {
  return Array.isArray(list) && list.length > 0 && list.every((each: Partial<PathFrame>) => isMatrix(each.world_from_cam, 4) && isMatrix(each.K, 3));
}

function isPath(value: unknown): value is PathFile {
  if (typeof value !== "object" || value === null) return false;
  const { width, height, frames, keyframes } = value as Record<string, unknown>;
  return Number(width) > 0 && Number(height) > 0 && areFrames(frames) && (keyframes === undefined || areFrames(keyframes));
}

