// The window onto the scene: renderer, camera, and a picture drawn only when something changed.
import { Color, Group, PerspectiveCamera, Scene, Vector3, WebGLRenderer } from "three";
import { type Eye, fit, PLAIN_LENS } from "./eye";

/** Called before each drawn frame with the seconds since the last one; true = keep drawing. */
type Ticker = (seconds: number) => boolean;

/** The browser has no WebGL2, or it is switched off. */
export class NoWebGL extends Error {}

const EXTENT = 5; // what the scene's radius becomes: three's thresholds and half floats expect ordinary sizes
const SLOW_FRAME = 0.05; // seconds; slower frames are drawn smaller while something moves
const SETTLE = 180; // milliseconds of rest before the full picture

export class Stage {
  readonly renderer: WebGLRenderer;
  readonly scene = new Scene();
  readonly camera = new PerspectiveCamera();
  /** Everything in world units; scaled so that the scene has an ordinary size. */
  readonly world = new Group();
  readonly tickers = new Set<Ticker>();
  readonly beforeDraw = new Set<() => void>();
  readonly afterDraw = new Set<() => void>();
  /** What a picture from the camera as it stands has to wait for to be whole. */
  readonly settling = new Set<() => Promise<void>>();
  /** Clipping, as multiples of the scene's radius. */
  clip = { near: 0.002, far: 200 };
  eye: Eye = { position: new Vector3(0, 0, 0), quaternion: new PerspectiveCamera().quaternion, distance: 1, lens: PLAIN_LENS };
  radius = 1;
  frames = 0;
  frameSeconds = 0;
  private readonly fullRatio = Math.min(globalThis.devicePixelRatio || 1, 2);
  /** The first picture is a quick one. */
  private detail = 0.5;
  private restTimer = 0;
  private pending = 0;
  private last = 0;
  private size = { width: 0, height: 0 };
  private holding = 0;

  constructor(readonly canvas: HTMLCanvasElement) {
    const context = canvas.getContext("webgl2", { alpha: true, antialias: false, powerPreference: "high-performance" });
    if (!context) throw new NoWebGL("no WebGL2");
    this.renderer = new WebGLRenderer({ canvas, context });
    this.renderer.setPixelRatio(this.fullRatio * this.detail);
    this.scene.add(this.world);
    this.camera.matrixAutoUpdate = true;
    this.background("#101114");
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.resize();
  }

  /** The scene's sphere: sets the scale of everything. */
  setRadius(radius: number): void {
    this.radius = radius > 0 && Number.isFinite(radius) ? radius : 1;
    this.world.scale.setScalar(this.unit);
    this.world.updateMatrixWorld(true);
    this.apply();
    this.draw();
  }

  get unit(): number {
    return EXTENT / this.radius;
  }

  get width(): number {
    return this.size.width;
  }

  get height(): number {
    return this.size.height;
  }

  background(color: string): void {
    this.scene.background = new Color(color);
    this.draw();
  }

  look(eye: Eye): void {
    this.eye = eye;
    this.draw();
  }

  /** Draws nothing before `release`, or so many milliseconds: an empty picture costs as much time as the one to come. */
  hold(longest: number): void {
    if (this.holding === 0) this.holding = window.setTimeout(() => this.release(), longest);
    window.cancelAnimationFrame(this.pending);
    this.pending = 0;
  }

  release(): void {
    window.clearTimeout(this.holding);
    this.holding = 0;
    this.draw();
  }

  /** One picture soon. */
  draw(): void {
    if (this.holding !== 0) return;
    if (this.pending === 0) this.pending = requestAnimationFrame((now) => this.frame(now));
  }

  /** The full picture soon. */
  rest(): void {
    window.clearTimeout(this.restTimer);
    this.restTimer = 0;
    this.setDetail(1);
    this.draw();
  }

  /** The picture now, at full size, for screenshots and videos. */
  drawNow(): void {
    this.setDetail(1);
    this.apply();
    this.render();
  }

  /** The full picture from ``eye`` with its splats in their right order, drawn before this returns. */
  async steady(eye: Eye): Promise<void> {
    this.eye = eye;
    this.apply();
    for (const settle of this.settling) await settle();
    this.drawNow();
  }

  /** Once the graphics card has done what it was asked to. */
  async finished(): Promise<void> {
    const context = this.renderer.getContext() as WebGL2RenderingContext;
    const fence = context.fenceSync(context.SYNC_GPU_COMMANDS_COMPLETE, 0);
    if (!fence) return;
    context.flush();
    while (context.clientWaitSync(fence, 0, 0) === context.TIMEOUT_EXPIRED) await new Promise((resolve) => { setTimeout(resolve, 5); });
    context.deleteSync(fence);
  }

  private render(): void {
    for (const prepare of this.beforeDraw) prepare();
    this.renderer.render(this.scene, this.camera);
  }

  /** World point to window pixels; null behind the camera. */
  project(point: Vector3): { x: number; y: number; depth: number } | null {
    const local = point.clone().multiplyScalar(this.unit).applyMatrix4(this.camera.matrixWorldInverse);
    if (local.z > -1e-6) return null;
    const depth = -local.z / this.unit;
    local.applyMatrix4(this.camera.projectionMatrix);
    return { x: ((local.x + 1) / 2) * this.width, y: ((1 - local.y) / 2) * this.height, depth };
  }

  /** The ray through a window pixel, world units. */
  ray(x: number, y: number): { origin: Vector3; direction: Vector3 } {
    const far = new Vector3((x / this.width) * 2 - 1, 1 - (y / this.height) * 2, 0.5).unproject(this.camera).divideScalar(this.unit);
    return { origin: this.eye.position.clone(), direction: far.sub(this.eye.position).normalize() };
  }

  private frame(now: number): void {
    this.pending = 0;
    const seconds = this.last > 0 ? Math.min((now - this.last) / 1000, 0.2) : 1 / 60;
    const interval = this.last > 0 ? (now - this.last) / 1000 : 0;
    let moving = false;
    for (const ticker of this.tickers) moving = ticker(seconds) || moving;
    this.adapt(moving, interval);
    this.apply();
    this.render();
    this.frames += 1;
    for (const done of this.afterDraw) done();
    this.last = moving ? now : 0;
    if (moving) this.draw();
  }

  /** Slow machines get fewer pixels while things move, all of them at rest. */
  private adapt(moving: boolean, interval: number): void {
    if (!moving) {
      if (this.detail < 1 && this.restTimer === 0 && this.holding === 0) {
        this.restTimer = window.setTimeout(() => this.rest(), SETTLE);
      }
      return;
    }
    window.clearTimeout(this.restTimer);
    this.restTimer = 0;
    if (interval === 0) return;
    this.frameSeconds = this.frameSeconds === 0 ? interval : this.frameSeconds * 0.7 + interval * 0.3;
    if (this.frameSeconds > SLOW_FRAME && this.detail > 0.5) this.setDetail(this.detail - 0.25);
    else if (this.frameSeconds < SLOW_FRAME / 3 && this.detail < 1) this.setDetail(this.detail + 0.25);
  }

  private setDetail(detail: number): void {
    if (detail === this.detail) return;
    this.detail = detail;
    this.frameSeconds = 0;
    this.renderer.setPixelRatio(this.fullRatio * detail);
  }

  private apply(): void {
    const { position, quaternion, lens } = this.eye;
    const { scaleX, scaleY } = fit(lens, this.width, this.height);
    this.camera.position.copy(position).multiplyScalar(this.unit);
    this.camera.quaternion.copy(quaternion);
    this.camera.updateMatrixWorld(true);
    const near = this.clip.near * EXTENT;
    const far = this.clip.far * EXTENT;
    // Off-centre: a point straight ahead lands on the principal point.
    const x = lens.shiftX * lens.tanX * scaleX;
    const y = -lens.shiftY * lens.tanY * scaleY;
    const depth = (far + near) / (near - far);
    this.camera.projectionMatrix.set(scaleX, 0, -x, 0, 0, scaleY, -y, 0, 0, 0, depth, (2 * far * near) / (near - far), 0, 0, -1, 0);
    this.camera.projectionMatrixInverse.copy(this.camera.projectionMatrix).invert();
    this.camera.near = near;
    this.camera.far = far;
    this.camera.fov = (2 * Math.atan(1 / scaleY) * 180) / Math.PI;
  }

  private resize(): void {
    const width = Math.max(1, this.canvas.clientWidth);
    const height = Math.max(1, this.canvas.clientHeight);
    this.size = { width, height };
    this.renderer.setSize(width, height, false);
    // The drawing buffer is empty after a change of size: show something before the next frame is due.
    this.apply();
    this.render();
    this.draw();
  }
}
