// Scenes that only a model can draw: the server renders for our camera, quickly while it moves, well when it rests.
import { SRGBColorSpace, Texture } from "three";
import { intrinsics, poseRows, toText } from "./eye";
import type { Picture } from "./messages";
import type { Source } from "./source";
import type { Stage } from "./stage";
import { jpeg } from "./wire";

const REST = 220; // milliseconds without movement before a good picture is asked for
const MOST_WAITING = 2;

export class Stream {
  active = false;
  private asked = 0;
  private answered = 0;
  private last = "";
  private timer = 0;
  private texture: Texture | null = null;

  constructor(
    private readonly stage: Stage,
    private readonly source: () => Source | undefined,
  ) {
    stage.afterDraw.add(() => this.update());
  }

  async take(picture: Picture): Promise<void> {
    this.answered = Math.max(this.answered, picture.request);
    const bitmap = await createImageBitmap(jpeg(picture.data), { imageOrientation: "flipY" });
    if (picture.request < this.answered) {
      bitmap.close();
      return;
    }
    const texture = new Texture(bitmap);
    texture.colorSpace = SRGBColorSpace;
    texture.flipY = false;
    texture.needsUpdate = true;
    this.stage.scene.background = texture;
    const old = this.texture;
    this.texture = texture;
    if (old) {
      (old.image as ImageBitmap).close();
      old.dispose();
    }
    this.stage.draw();
  }

  /** A new connection knows nothing of what was asked. */
  restart(): void {
    this.answered = this.asked;
    this.last = "";
    this.stage.draw();
  }

  private update(): void {
    if (!this.active) return;
    const now = `${toText(this.stage.eye)} ${this.stage.width} ${this.stage.height}`;
    if (now === this.last) return;
    const first = this.last === "";
    this.last = now;
    window.clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.ask(false), first ? 0 : REST);
    if (!first && this.asked - this.answered < MOST_WAITING) this.ask(true);
  }

  private ask(moving: boolean): void {
    const { eye, width, height } = this.stage;
    const ratio = Math.min(globalThis.devicePixelRatio || 1, 2);
    const size = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))] as const;
    const request = this.asked + 1;
    const sent = this.source()?.send({ type: "CameraRequest", request, world_from_cam: poseRows(eye), lens: intrinsics(eye.lens, ...size), width: size[0], height: size[1], moving });
    if (sent) this.asked = request;
    else this.last = "";
  }
}
