// Moving: orbit or fly with mouse, fingers and keys; flights from one eye to another.
import { Quaternion, Vector3 } from "three";
import { between, type Eye, forward, lookAt, targetOf } from "./eye";
import type { Stage } from "./stage";

export type Mode = "orbit" | "fly";
const CLICK_PIXELS = 5;
const TURN = 3.2; // radians for a drag across the window
const KEYS: Readonly<Record<string, readonly [number, number, number]>> = {
  KeyW: [0, 0, -1], KeyS: [0, 0, 1], KeyA: [-1, 0, 0], KeyD: [1, 0, 0], KeyQ: [0, -1, 0], KeyE: [0, 1, 0],
};

interface Finger {
  x: number;
  y: number;
  readonly startX: number;
  readonly startY: number;
  readonly button: number;
}

export class Controls {
  mode: Mode = "orbit";
  up = new Vector3(0, 0, 1);
  /** The person moved the eye (not a flight). */
  onMove: () => void = () => undefined;
  onClick: (x: number, y: number) => void = () => undefined;
  onDoubleClick: (x: number, y: number) => void = () => undefined;
  onHover: (x: number, y: number) => void = () => undefined;
  /** True = a tool takes this drag; it gets the movements. */
  onGrab: (x: number, y: number) => ((x: number, y: number, done: boolean) => void) | null = () => null;
  private readonly fingers = new Map<number, Finger>();
  private readonly keys = new Set<string>();
  private grabbed: ((x: number, y: number, done: boolean) => void) | null = null;
  private spin = { x: 0, y: 0 };
  private flight: { from: Eye; to: Eye; seconds: number; passed: number; done: () => void } | null = null;
  private readonly calm = globalThis.matchMedia?.("(prefers-reduced-motion: reduce)").matches ?? false;

  constructor(private readonly stage: Stage) {
    const canvas = stage.canvas;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", (event) => this.release(event));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", (event) => this.onDoubleClick(event.offsetX, event.offsetY));
    canvas.addEventListener("keydown", (event) => this.keyDown(event));
    globalThis.addEventListener("keyup", (event) => this.keys.delete(event.code));
    globalThis.addEventListener("blur", () => this.keys.clear());
    stage.tickers.add((seconds) => this.tick(seconds));
  }

  /** Goes there smoothly; at once where motion is not wanted. */
  fly(to: Eye, seconds = 0.8): Promise<void> {
    this.spin = { x: 0, y: 0 };
    this.flight?.done();
    this.flight = null;
    if (this.calm || seconds === 0) {
      this.stage.look(to);
      return Promise.resolve();
    }
    return new Promise((done) => {
      this.flight = { from: this.stage.eye, to, seconds, passed: 0, done };
      this.stage.draw();
    });
  }

  stop(): void {
    this.flight?.done();
    this.flight = null;
    this.spin = { x: 0, y: 0 };
  }

  /** Turns about what is looked at (orbit) or on the spot (fly), by shares of the window. */
  turn(dx: number, dy: number): void {
    const eye = this.stage.eye;
    const pivot = this.mode === "orbit" ? targetOf(eye) : eye.position;
    const sign = this.mode === "orbit" ? -1 : 1;
    const scale = this.mode === "orbit" ? TURN : TURN * Math.min(eye.lens.tanY, 1);
    const yaw = new Quaternion().setFromAxisAngle(this.up, sign * dx * scale);
    let quaternion = yaw.multiply(eye.quaternion);
    const angle = new Vector3(0, 0, -1).applyQuaternion(quaternion).angleTo(this.up);
    const wanted = Math.min(Math.max(angle - sign * -dy * scale, 0.04), Math.PI - 0.04);
    const right = new Vector3(1, 0, 0).applyQuaternion(quaternion);
    quaternion = new Quaternion().setFromAxisAngle(right, angle - wanted).multiply(quaternion);
    quaternion = this.levelled(quaternion, 0.15);
    const back = new Vector3(0, 0, 1).applyQuaternion(quaternion);
    const position = this.mode === "orbit" ? pivot.addScaledVector(back, eye.distance) : pivot.clone();
    this.changed({ ...eye, position, quaternion });
  }

  /** Slides across the picture, by window pixels: what is looked at stays under the pointer. */
  pan(dx: number, dy: number): void {
    const eye = this.stage.eye;
    const pixel = (2 * eye.distance * Math.max(eye.lens.tanX, eye.lens.tanY)) / Math.max(this.stage.width, this.stage.height);
    const shift = new Vector3(-dx * pixel, dy * pixel, 0).applyQuaternion(eye.quaternion);
    this.changed({ ...eye, position: eye.position.clone().add(shift) });
  }

  /** Nearer for factors below 1. In fly mode the eye moves along its axis instead. */
  zoom(factor: number): void {
    const eye = this.stage.eye;
    const least = this.stage.radius * 1e-3;
    const most = this.stage.radius * 40;
    const distance = Math.min(Math.max(eye.distance * factor, least), most);
    const ahead = this.mode === "orbit" ? eye.distance - distance : (1 - factor) * this.stage.radius * 0.5;
    const position = eye.position.clone().addScaledVector(forward(eye), ahead);
    this.changed({ ...eye, position, distance: this.mode === "orbit" ? distance : eye.distance });
  }

  private levelled(quaternion: Quaternion, share: number): Quaternion {
    const ahead = new Vector3(0, 0, -1).applyQuaternion(quaternion);
    if (Math.abs(ahead.dot(this.up)) > 0.98) return quaternion;
    const level = lookAt(new Vector3(), ahead, this.up, this.stage.eye.lens).quaternion;
    return quaternion.clone().slerp(level, share);
  }

  private changed(eye: Eye): void {
    this.flight?.done();
    this.flight = null;
    this.stage.look(eye);
    this.onMove();
  }

  private down(event: PointerEvent): void {
    this.stage.canvas.focus({ preventScroll: true });
    this.stage.canvas.setPointerCapture(event.pointerId);
    this.stop();
    const { offsetX: x, offsetY: y, button } = event;
    this.fingers.set(event.pointerId, { x, y, startX: x, startY: y, button });
    this.grabbed = this.fingers.size === 1 && button === 0 ? this.onGrab(x, y) : null;
  }

  private move(event: PointerEvent): void {
    const finger = this.fingers.get(event.pointerId);
    const { offsetX: x, offsetY: y } = event;
    if (!finger) {
      this.onHover(x, y);
      return;
    }
    if (this.grabbed) {
      this.grabbed(x, y, false);
    } else if (this.fingers.size >= 2) {
      this.pinch(finger, x, y);
    } else if (Math.hypot(x - finger.startX, y - finger.startY) > CLICK_PIXELS) {
      const side = finger.button !== 0 || event.shiftKey || event.ctrlKey;
      if (side) this.pan(x - finger.x, y - finger.y);
      else this.drag((x - finger.x) / this.stage.height, (y - finger.y) / this.stage.height);
    }
    finger.x = x;
    finger.y = y;
  }

  private drag(dx: number, dy: number): void {
    this.turn(dx, dy);
    this.spin = { x: this.spin.x * 0.5 + dx * 30, y: this.spin.y * 0.5 + dy * 30 };
  }

  /** Two fingers: their middle slides, their distance zooms. */
  private pinch(finger: Finger, x: number, y: number): void {
    const other = [...this.fingers.values()].find((each) => each !== finger);
    if (!other) return;
    const before = Math.hypot(finger.x - other.x, finger.y - other.y);
    const after = Math.hypot(x - other.x, y - other.y);
    if (before > 0 && after > 0) this.zoom(before / after);
    this.pan((x - finger.x) / 2, (y - finger.y) / 2);
  }

  private release(event: PointerEvent): void {
    const finger = this.fingers.get(event.pointerId);
    this.fingers.delete(event.pointerId);
    if (!finger) return;
    const { offsetX: x, offsetY: y } = event;
    if (this.grabbed) {
      this.grabbed(x, y, true);
      this.grabbed = null;
      return;
    }
    const still = Math.hypot(x - finger.startX, y - finger.startY) <= CLICK_PIXELS;
    if (still && event.type === "pointerup" && finger.button === 0 && this.fingers.size === 0) {
      this.spin = { x: 0, y: 0 };
      this.onClick(x, y);
    } else if (!still && !this.calm) {
      this.stage.draw(); // what was turned turns on for a moment
    }
  }

  private wheel(event: WheelEvent): void {
    event.preventDefault();
    this.stop();
    const pixels = event.deltaMode === 0 ? event.deltaY : event.deltaY * 30;
    this.zoom(Math.exp(Math.max(-240, Math.min(240, pixels)) * 0.0016));
  }

  private keyDown(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? 0.12 : 0.03;
    const turns: Record<string, readonly [number, number]> = {
      ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step],
    };
    const turn = turns[event.key];
    if (turn) this.turn(-turn[0], -turn[1]);
    else if (event.key === "+" || event.key === "=") this.zoom(0.9);
    else if (event.key === "-") this.zoom(1 / 0.9);
    else if (event.code in KEYS) this.keys.add(event.code);
    else return;
    event.preventDefault();
    this.stage.draw();
  }

  private tick(seconds: number): boolean {
    if (this.flight) return this.advance(seconds);
    let moving = false;
    if (this.keys.size > 0) {
      const step = new Vector3();
      for (const key of this.keys) step.add(new Vector3(...(KEYS[key] ?? [0, 0, 0])));
      step.applyQuaternion(this.stage.eye.quaternion).multiplyScalar(seconds * this.stage.radius * 0.6);
      this.changed({ ...this.stage.eye, position: this.stage.eye.position.clone().add(step) });
      moving = true;
    }
    const speed = Math.hypot(this.spin.x, this.spin.y);
    if (this.fingers.size === 0 && speed > 0.02 && !this.calm) {
      this.turn(this.spin.x * seconds * 0.5, this.spin.y * seconds * 0.5);
      const fade = Math.exp(-seconds / 0.13);
      this.spin = { x: this.spin.x * fade, y: this.spin.y * fade };
      moving = true;
    }
    return moving || this.fingers.size > 0;
  }

  private advance(seconds: number): boolean {
    const flight = this.flight;
    if (!flight) return false;
    flight.passed = Math.min(flight.passed + seconds / flight.seconds, 1);
    const t = flight.passed;
    const eased = t < 0.5 ? 4 * t ** 3 : 1 - (2 - 2 * t) ** 3 / 2;
    this.stage.look(t === 1 ? flight.to : between(flight.from, flight.to, eased));
    if (t < 1) return true;
    this.flight = null;
    flight.done();
    return false;
  }
}
