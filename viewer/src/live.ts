// What is going on at the server: stages with a time to go, the curve of the fit, the tracker's state and its path.
import { BufferAttribute, BufferGeometry, Line, LineBasicMaterial, LineSegments, Vector3 } from "three";
import { count, el, section } from "./dom";
import { poseMatrix } from "./eye";
import type { Curve, Progress, Track } from "./messages";
import type { Stage } from "./stage";
import { floats, jpeg } from "./wire";

const STATUS: Readonly<Record<Track["status"], string>> = {
  starting: "starting",
  tracking: "tracking",
  weak: "unsure: the place may be off",
  lost: "lost: go back to what was seen before",
  done: "finished",
};

export class LivePanel {
  readonly root: HTMLDetailsElement;
  /** Where the tracked camera was last. */
  place: Vector3 | null = null;
  private readonly stageName = el("strong", {}, "");
  private readonly toGo = el("span", {}, "");
  private readonly message = el("p", {}, "");
  private readonly fill = el("i", {});
  private readonly bar = el("div", { class: "bar", role: "progressbar", "aria-label": "Stage", "aria-valuemin": 0, "aria-valuemax": 100 }, this.fill);
  private readonly plot = el("canvas", { hidden: true, role: "img", "aria-label": "Loss and PSNR over the steps" });
  private readonly numbers = el("div", { class: "numbers", hidden: true });
  private readonly trackLine = el("p", { hidden: true });
  private readonly legend = el("div", { class: "legend", hidden: true }, el("span", { class: "now" }, el("i"), "the camera and its way"), el("span", { class: "key" }, el("i"), "pictures kept in the map"));
  private readonly picture = el("img", { alt: "The newest frame", hidden: true });
  private readonly path = new Line(new BufferGeometry(), new LineBasicMaterial({ color: "#62d98b" }));
  private readonly camera = new LineSegments(new BufferGeometry(), new LineBasicMaterial({ color: "#62d98b" }));
  private readonly keyframes = new LineSegments(new BufferGeometry(), new LineBasicMaterial({ color: "#f3c065" }));
  private curve: Curve | null = null;
  /** When the stage should be over, on this page's clock; null = nobody knows. */
  private due: number | null = null;
  private percent = 0;
  private timer = 0;

  constructor(private readonly stage: Stage) {
    this.root = section("Live", true, el("div", { class: "live" }, el("div", { class: "numbers" }, this.stageName, this.toGo), this.bar, this.message, this.plot, this.numbers, this.trackLine, this.legend, this.picture));
    this.root.hidden = true;
    // A panel that was closed has no size to draw for.
    new ResizeObserver(() => this.drawPlot()).observe(this.plot);
    for (const line of [this.path, this.camera, this.keyframes]) {
      line.frustumCulled = false;
      line.visible = false;
      stage.world.add(line);
    }
  }

  takeProgress(progress: Progress): void {
    this.root.hidden = progress.finished;
    this.stageName.textContent = progress.title;
    this.percent = Math.round(progress.fraction * 100);
    this.fill.style.width = `${this.percent}%`;
    this.bar.setAttribute("aria-valuenow", String(this.percent));
    this.message.textContent = progress.message;
    this.due = progress.remaining === null ? null : performance.now() + 1000 * progress.remaining;
    window.clearInterval(this.timer);
    if (!progress.finished) this.timer = window.setInterval(() => this.countDown(), 1000);
    this.countDown();
  }

  /** Goes on between messages; a time that is over has been wrong. */
  private countDown(): void {
    const left = this.due === null ? 0 : (this.due - performance.now()) / 1000;
    this.toGo.textContent = left > 0 ? `${time(left)} to go` : `${this.percent} %`;
  }

  takeCurve(curve: Curve): void {
    this.root.hidden = false;
    this.plot.hidden = this.numbers.hidden = false;
    const loss = curve.loss.at(-1);
    const psnr = curve.psnr.at(-1);
    const step = el("span", {}, `step ${count(curve.steps.at(-1) ?? 0)} of ${count(curve.total)}`);
    const lossText = loss === undefined ? null : el("span", { class: "loss" }, `loss ${loss.toPrecision(3)}`);
    const psnrText = psnr === undefined ? null : el("span", { class: "psnr" }, `${psnr.toFixed(1)} dB`);
    this.numbers.replaceChildren(...[step, lossText, psnrText].filter((each) => each !== null));
    this.curve = curve;
    this.drawPlot();
  }

  private drawPlot(): void {
    if (this.curve && this.plot.clientWidth > 0) drawCurve(this.plot, this.curve);
  }

  takeTrack(track: Track): void {
    this.root.hidden = false;
    this.stageName.textContent = `Frame ${count(track.frame)}`;
    this.toGo.textContent = time(track.seconds);
    this.bar.hidden = true;
    this.message.textContent = track.message;
    this.trackLine.hidden = this.legend.hidden = false;
    this.trackLine.replaceChildren("Status: ", el("b", { class: track.status }, STATUS[track.status]));
    if (track.picture.length > 0) {
      URL.revokeObjectURL(this.picture.src);
      this.picture.src = URL.createObjectURL(jpeg(track.picture));
      this.picture.hidden = false;
    }
    if (track.world_from_cam) this.place = new Vector3().setFromMatrixPosition(poseMatrix(track.world_from_cam));
    setPositions(this.path, floats(track.trajectory));
    setPositions(this.camera, track.world_from_cam ? Float32Array.from(pyramid(track.world_from_cam, track, this.stage.radius * 0.1)) : new Float32Array());
    const poses = floats(track.keyframes);
    const corners: number[] = [];
    for (let i = 0; i + 15 < poses.length; i += 16) corners.push(...pyramid([...poses.subarray(i, i + 16)], track, this.stage.radius * 0.05));
    setPositions(this.keyframes, Float32Array.from(corners));
    this.stage.draw();
  }
}

function setPositions(line: Line, positions: Float32Array): void {
  line.visible = positions.length > 0;
  line.geometry.dispose();
  line.geometry = new BufferGeometry();
  line.geometry.setAttribute("position", new BufferAttribute(positions, 3));
}

function pyramid(pose: readonly number[], { lens, width, height }: Pick<Track, "lens" | "width" | "height">, depth: number): number[] {
  const matrix = poseMatrix(pose);
  const [fx, fy, cx, cy] = lens;
  const at = (x: number, y: number) => new Vector3(((x - cx) / fx) * depth, ((y - cy) / fy) * depth, depth).applyMatrix4(matrix);
  const apex = new Vector3().setFromMatrixPosition(matrix);
  const [a, b, c, d] = [at(0, 0), at(width, 0), at(width, height), at(0, height)];
  return [apex, a, apex, b, apex, c, apex, d, a, b, b, c, c, d, d, a].flatMap((point) => point.toArray());
}

function time(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  return minutes < 60 ? `${minutes} min ${whole % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Loss falls (blue, logarithmic), PSNR rises (green dots): each over its own range. */
function drawCurve(canvas: HTMLCanvasElement, curve: Curve): void {
  const ratio = Math.min(globalThis.devicePixelRatio || 1, 2);
  const width = (canvas.width = Math.max(1, canvas.clientWidth) * ratio);
  const height = (canvas.height = Math.max(1, canvas.clientHeight) * ratio);
  const context = canvas.getContext("2d");
  if (!context) return;
  const x = (step: number) => (step / Math.max(1, curve.total)) * width;
  const scaled = (values: readonly number[]) => {
    const low = Math.min(...values);
    const high = Math.max(...values);
    return (value: number) => height * (0.92 - (0.84 * (value - low)) / Math.max(high - low, 1e-9));
  };
  context.lineWidth = 1.6 * ratio;
  context.strokeStyle = "#8ab4ff";
  const logs = curve.loss.map((loss) => Math.log(Math.max(loss, 1e-9)));
  const y = scaled(logs);
  context.beginPath();
  curve.steps.forEach((step, i) => context.lineTo(x(step), y(logs[i] ?? 0)));
  context.stroke();
  context.strokeStyle = context.fillStyle = "#62d98b";
  const yPsnr = scaled(curve.psnr);
  context.beginPath();
  curve.psnr_steps.forEach((step, i) => context.lineTo(x(step), yPsnr(curve.psnr[i] ?? 0)));
  context.stroke();
  for (const [i, step] of curve.psnr_steps.entries()) {
    context.beginPath();
    context.arc(x(step), yPsnr(curve.psnr[i] ?? 0), 2.6 * ratio, 0, 7);
    context.fill();
  }
}
