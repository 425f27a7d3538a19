// Standing where a photo was taken: the photo over the render, with a slider between them, and blinking.
import { button, el, iconButton } from "./dom";
import { eyeOf, fit, lensOf } from "./eye";
import type { Controls } from "./controls";
import type { FrustumLayer } from "./frustums";
import type { ViewInfo } from "./messages";
import type { Stage } from "./stage";
import { jpeg } from "./wire";

const BLINK = 600; // milliseconds a picture

export class PhotoMode {
  views: readonly ViewInfo[] = [];
  current: ViewInfo | null = null;
  readonly bar: HTMLElement;
  readonly layer: HTMLElement;
  readonly strip: HTMLElement;
  onChange: () => void = () => undefined;
  private readonly photos = new Map<string, string>();
  private readonly image = el("img", { alt: "", draggable: "false" });
  private readonly line = el("div", { class: "cut" });
  private readonly share = el("input", { type: "range", min: 0, max: 100, step: 1, value: 50, "aria-label": "Share of the photo shown", oninput: () => this.place() });
  private readonly label = el("strong", {});
  private readonly detail = el("small", {});
  private readonly blinkButton: HTMLButtonElement;
  private blinking = 0;

  constructor(
    private readonly stage: Stage,
    private readonly controls: Controls,
    private readonly frustums: FrustumLayer,
  ) {
    this.blinkButton = button("Blink", () => this.blink(), { "aria-pressed": "false", title: "Blink between photo and render (B)" });
    this.layer = el("div", { class: "photo", hidden: true }, this.image, this.line);
    this.bar = el(
      "div",
      { class: "photobar card", hidden: true, role: "group", "aria-label": "Photo and render" },
      iconButton("previous", "Previous photo ([)", () => this.step(-1)),
      el("div", { class: "name" }, this.label, this.detail),
      iconButton("next", "Next photo (])", () => this.step(1)),
      el("label", { class: "share" }, el("span", {}, "photo"), this.share, el("span", {}, "render")),
      this.blinkButton,
      iconButton("close", "Leave the photo (Esc)", () => this.leave()),
    );
    this.strip = el("nav", { class: "strip card", "aria-label": "Photos", hidden: true });
    stage.afterDraw.add(() => this.place());
    this.image.addEventListener("error", () => { this.layer.hidden = true; });
  }

  load(views: readonly ViewInfo[]): void {
    this.views = views;
    for (const old of this.strip.querySelectorAll("img")) URL.revokeObjectURL(old.src);
    this.strip.replaceChildren(
      ...views.map((view) => {
        const use = view.held_out ? "held out" : "training";
        const picture = el("img", { alt: "", loading: "lazy", width: 96, height: 64 });
        if (view.thumbnail.length > 0) picture.src = URL.createObjectURL(jpeg(view.thumbnail));
        return el(
          "button",
          { type: "button", class: view.held_out ? "held" : "train", title: `${view.name} (${use})`, "aria-label": `Photo ${view.name}, ${use}`, onclick: () => void this.enter(view) },
          picture,
        );
      }),
    );
    this.strip.hidden = views.length === 0;
  }

  addPhoto(name: string, data: Uint8Array): void {
    const old = this.photos.get(name);
    if (old) URL.revokeObjectURL(old);
    this.photos.set(name, URL.createObjectURL(jpeg(data)));
    if (this.current?.name === name) this.showImage(this.current);
  }

  async enter(view: ViewInfo, seconds = 0.9): Promise<void> {
    this.stopBlinking();
    this.current = view;
    this.layer.hidden = true;
    this.bar.hidden = false;
    this.label.textContent = view.name;
    const score = view.psnr === null ? "" : ` · ${view.psnr.toFixed(1)} dB`;
    this.detail.textContent = (view.held_out ? "held out of the fit" : "used for the fit") + score;
    this.detail.className = view.held_out ? "held" : "train";
    this.frustums.choose(view.name);
    this.markStrip();
    await this.controls.fly(eyeOf(view, this.stage.eye.distance), seconds);
    if (this.current !== view) return;
    this.showImage(view);
    this.onChange();
  }

  /** The person moved away: the photo no longer lies over the render. */
  moved(): void {
    if (!this.current) return;
    this.leave();
  }

  leave(): void {
    if (!this.current) return;
    this.stopBlinking();
    this.current = null;
    this.layer.hidden = true;
    this.bar.hidden = true;
    this.frustums.choose(null);
    this.markStrip();
    this.onChange();
  }

  step(by: number): void {
    if (this.views.length === 0) return;
    const at = this.views.findIndex((view) => view.name === this.current?.name);
    const view = this.views[(at + by + this.views.length) % this.views.length];
    if (view) void this.enter(view);
  }

  setShare(percent: number): void {
    this.share.value = String(percent);
    this.place();
  }

  blink(): void {
    if (!this.current) return;
    if (this.blinking) {
      this.stopBlinking();
      return;
    }
    this.blinkButton.setAttribute("aria-pressed", "true");
    let photo = true;
    this.setShare(100);
    this.blinking = window.setInterval(() => {
      photo = !photo;
      this.setShare(photo ? 100 : 0);
    }, BLINK);
  }

  private stopBlinking(): void {
    if (!this.blinking) return;
    window.clearInterval(this.blinking);
    this.blinking = 0;
    this.blinkButton.setAttribute("aria-pressed", "false");
    this.setShare(50);
  }

  private markStrip(): void {
    [...this.strip.children].forEach((child, i) => {
      const here = this.views[i] === this.current;
      child.setAttribute("aria-current", String(here));
      if (here) child.scrollIntoView({ block: "nearest", inline: "center" });
    });
  }

  private showImage(view: ViewInfo): void {
    const address = this.photos.get(view.name) ?? view.photo;
    if (!address) {
      this.detail.textContent += " · the photo is not in this page";
      return;
    }
    this.image.src = address;
    this.image.alt = `Photo ${view.name}`;
    this.layer.hidden = false;
    this.place();
  }

  /** The photo's rectangle in the window, cut at the slider. */
  private place(): void {
    if (!this.current || this.layer.hidden) return;
    const lens = lensOf(this.current);
    const { shareX, shareY } = fit(lens, this.stage.width, this.stage.height);
    const width = this.stage.width * shareX;
    const height = this.stage.height * shareY;
    const percent = this.share.valueAsNumber;
    const style = this.layer.style;
    style.width = `${width}px`;
    style.height = `${height}px`;
    style.left = `${(this.stage.width - width) / 2}px`;
    style.top = `${(this.stage.height - height) / 2}px`;
    this.image.style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
    this.line.style.left = `${percent}%`;
    this.line.hidden = percent === 0 || percent === 100;
  }
}
