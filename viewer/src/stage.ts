// The window onto the scene: renderer, camera, and a picture drawn only when something changed.
import { Color, Group, PerspectiveCamera, Scene, Vector3, WebGLRenderer } from "three";
import { type Eye, fit, PLAIN_LENS } from "./eye";
import { FULL, Pace, type Quality } from "./pace";

/** Called before each drawn frame with the seconds since the last one; true = keep drawing. */
type Ticker = (seconds: number) => boolean;

/** What a picture is for. */
export interface Wanted {
  /** It is kept (a screenshot, a video): all there is goes into it, however long that takes. */
  readonly whole: boolean;
  /** The share of the splats that it should be drawn from. */
  readonly share: number;
}

/** The browser has no WebGL2, or it is switched off. */
export class NoWebGL extends Error {}

const EXTENT = 5; // what the scene's radius becomes: three's thresholds and half floats expect ordinary sizes
const FIRST: Quality = { detail: 0.5, share: 1 }; // the first picture is a quick one
const BUSY = 60; // milliseconds between two looks at the graphics card from which the page's own work is to blame
const SETTLE = 180; // milliseconds of rest before the full picture

export class Stage {
  readonly renderer: WebGLRenderer;
  readonly scene = new Scene();
  readonly camera = new PerspectiveCamera();
  /** Everything in world units; scaled so that the scene has an ordinary size. */
  readonly world = new Group();
  readonly tickers = new Set<Ticker>();
  readonly beforeDraw = new Set<(wanted: Wanted) => void>();
  readonly afterDraw = new Set<() => void>();
  /** What a picture from the camera as it stands, at rest or one that is kept, has to wait for. */
  readonly settling = new Set<(whole: boolean) => Promise<void>>();
  /** Called when the full picture has come to rest, with the share of the splats that will be wanted when things move. */
  readonly rested = new Set<(next: number) => void>();
  readonly pace = new Pace();
  /** Clipping, as multiples of the scene's radius. */
  clip = { near: 0.002, far: 200 };
  eye: Eye = { position: new Vector3(0, 0, 0), quaternion: new PerspectiveCamera().quaternion, distance: 1, lens: PLAIN_LENS };
  radius = 1;
  frames = 0;
  private readonly fullRatio = Math.min(globalThis.devicePixelRatio || 1, 2);
  private quality = FIRST;
  /** The eye is no longer where the last picture was seen from. */
  private moved = false;
  private restTimer = 0;
  /** Counts movements: what was begun at rest ends with the next one. */
  private movements = 0;
  /** The full picture is next. */
  private coming = false;
  private pending = 0;
  private last = 0;
  private size = { width: 0, height: 0 };
  private holding = 0;

  constructor(readonly canvas: HTMLCanvasElement) {
    const context = canvas.getContext("webgl2", { alpha: true, antialias: false, powerPreference: "high-performance" });
    if (!context) throw new NoWebGL("no WebGL2");
    this.renderer = new WebGLRenderer({ canvas, context });
    this.renderer.setPixelRatio(this.fullRatio * this.quality.detail);
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
    this.apply(); // what asks for rays and places before the next frame asks from here, not from where the last one was
    this.moved = true;
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

  /** The full picture as soon as it is ready to be drawn, unless something moves before. */
  async rest(): Promise<void> {
    window.clearTimeout(this.restTimer);
    this.restTimer = -1;
    const { movements } = this;
    this.apply();
    try {
      await this.settle(false);
    } finally {
      if (movements === this.movements) {
        this.restTimer = 0;
        this.setQuality(FULL);
        this.coming = true;
        this.draw();
      }
    }
  }

  /** The picture now: as it would be drawn anyway, or the one that is kept. */
  drawNow(whole: boolean): void {
    if (whole) this.setQuality(FULL);
    this.apply();
    this.render(whole);
  }

  /** The full picture from ``eye`` with all its splats in their right order, drawn before this returns. */
  async steady(eye: Eye): Promise<void> {
    this.eye = eye;
    this.apply();
    await this.settle(true);
    this.drawNow(true);
  }

  private async settle(whole: boolean): Promise<void> {
    for (const settle of this.settling) await settle(whole);
  }

  /** Once the graphics card has done what it was asked to; false = other work of the page has held that up. */
  async finished(): Promise<boolean> {
    const context = this.renderer.getContext() as WebGL2RenderingContext;
    const fence = context.fenceSync(context.SYNC_GPU_COMMANDS_COMPLETE, 0);
    if (!fence) return false;
    context.flush();
    let free = true;
    while (context.clientWaitSync(fence, 0, 0) === context.TIMEOUT_EXPIRED) {
      const before = performance.now();
      await new Promise((resolve) => { setTimeout(resolve, 5); });
      free &&= performance.now() - before < BUSY;
    }
    context.deleteSync(fence);
    return free;
  }

  private render(whole: boolean): void {
    for (const prepare of this.beforeDraw) prepare({ whole, share: this.quality.share });
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
    this.drawNow(false);
    if (this.coming && this.quality === FULL) void this.time();
    this.coming = false;
    this.frames += 1;
    for (const done of this.afterDraw) done();
    this.last = moving ? now : 0;
    if (moving) this.draw();
  }

  /** Slow machines get fewer pixels and splats while things move, all of them at rest. */
  private adapt(moving: boolean, interval: number): void {
    if (moving && interval > 0) this.pace.took(interval);
    if (moving || this.moved) {
      if (this.restTimer > 0) window.clearTimeout(this.restTimer);
      this.restTimer = 0;
      this.movements += 1;
      if (this.quality !== FIRST) this.setQuality(this.pace.quality);
    }
    this.moved = false;
    const coarse = this.quality !== FULL;
    if (coarse && !moving && this.restTimer === 0 && this.holding === 0) this.restTimer = window.setTimeout(() => void this.rest(), SETTLE);
  }

  /** How long the picture takes that has just been asked for. */
  private async time(): Promise<void> {
    const start = performance.now();
    if (await this.finished()) this.pace.full((performance.now() - start) / 1000);
    for (const act of this.rested) act(this.pace.quality.share);
  }

  private setQuality(quality: Quality): void {
    if (quality.detail !== this.quality.detail) this.renderer.setPixelRatio(this.fullRatio * quality.detail);
    this.quality = quality;
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
    this.render(false);
    this.draw();
  }
}
