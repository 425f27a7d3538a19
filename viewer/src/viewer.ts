// The viewer: joins stage, layers, controls, tools and the source of messages.
import { Vector3 } from "three";
import { Address } from "./address";
import { Controls } from "./controls";
import { CropTool } from "./crop";
import { count, download, el, iconButton } from "./dom";
import { lookAt } from "./eye";
import { FrustumLayer } from "./frustums";
import { Grid } from "./grid";
import { helpDialog } from "./help";
import { LivePanel } from "./live";
import { MeasureTool } from "./measure";
import type { FromServer, PointData, SceneInfo, Similarity, SplatData } from "./messages";
import { fail, Notices } from "./notices";
import { Overlay } from "./overlay";
import { ShowPanel } from "./panel";
import { PathTool } from "./path";
import { PhotoMode } from "./photo";
import { isInside, pickSplat } from "./pick";
import { allOf, groundOf, meanOf, moved, startOf } from "./places";
import { PointLayer } from "./points";
import type { Source, Taker } from "./source";
import { isAntialiased, tableOf } from "./splatfile";
import { SplatLayer } from "./splats";
import type { SplatWork } from "./splatwork";
import { Stage } from "./stage";
import { Stream } from "./stream";

const LONGEST_HOLD = 1000; // milliseconds; where the splats take longer, the cameras are shown first

export class Viewer implements Taker {
  readonly stage: Stage;
  readonly controls: Controls;
  readonly splats: SplatLayer;
  readonly points: PointLayer;
  readonly frustums: FrustumLayer;
  readonly grid: Grid;
  readonly photo: PhotoMode;
  readonly panel: ShowPanel;
  readonly measure: MeasureTool;
  readonly crop: CropTool;
  readonly path: PathTool;
  readonly live: LivePanel;
  readonly stream: Stream;
  readonly notices = new Notices();
  info: SceneInfo | null = null;
  /** Times of the first things, milliseconds since the page's start. */
  readonly times: Record<string, number> = {};
  private readonly address: Address;
  private readonly root = el("main", { id: "viewer", class: "opening" });
  private readonly heading = el("h1", {}, document.title.replace(/ · scenetx$/, ""));
  private readonly summary = el("p", {}, "");
  private readonly opening = el("div", { class: "card" }, "Opening the scene …");
  private readonly loading = el("div", { class: "loading" }, this.opening);
  private readonly label = el("div", { class: "label", hidden: true });
  private readonly side = el("aside", { class: "panel card", "aria-label": "Settings" });
  private readonly modeButton: HTMLButtonElement;
  private readonly help = helpDialog();
  private placed = false;
  private asked = false;
  private touched = false;
  /** What waits until the first splats are on the screen, by what it is about; null = nothing has to. */
  private later: Map<string, () => void> | null = null;
  private firstPicture: Promise<void> | undefined;
  private pictureShown: () => void = () => undefined;

  constructor(
    body: HTMLElement,
    readonly source: Source,
    work: SplatWork,
  ) {
    const canvas = el("canvas", { class: "stage", tabindex: 0, role: "application", "aria-label": "The scene in 3D. Arrow keys turn, plus and minus zoom, W A S D move; press H for all keys." });
    body.append(this.root);
    this.root.append(canvas);
    this.stage = new Stage(canvas);
    this.controls = new Controls(this.stage);
    this.splats = new SplatLayer(this.stage, work);
    this.points = new PointLayer(this.stage);
    this.frustums = new FrustumLayer(this.stage);
    this.grid = new Grid(this.stage);
    this.photo = new PhotoMode(this.stage, this.controls, this.frustums);
    this.panel = new ShowPanel(this.stage, this, () => this.address?.changed());
    this.address = new Address(() => this.stage.eye, this.panel.switches);
    this.modeButton = iconButton("fly", "Fly instead of turning about (V)", () => this.switchMode(), { "aria-pressed": "false" });
    this.measure = this.makeMeasure();
    const host = { name: () => fileName(this.info?.title), say: (text: string, level: "info" | "error") => this.notices.say(text, level), up: () => this.controls.up.clone(), center: () => new Vector3(...(this.info?.center ?? [0, 0, 0])) };
    this.crop = new CropTool(this.stage, this.splats, host);
    this.path = new PathTool(this.stage, this.controls, host);
    this.live = new LivePanel(this.stage);
    this.stream = new Stream(this.stage, () => this.source);
    const overlay = new Overlay(this.stage);
    for (const tool of [this.measure, this.crop, this.path]) overlay.add(() => tool.drawing());
    this.side.append(this.live.root, ...this.panel.sections, this.measure.root, this.crop.root, this.path.root);
    this.root.append(
      overlay.root,
      el("header", { class: "title card" }, this.heading, this.summary),
      this.photo.layer,
      this.label,
      this.side,
      this.toolbar(),
      el("div", { class: "bottom" }, this.measure.hint, this.photo.bar, this.photo.strip),
      this.loading,
      this.notices.root,
    );
    body.append(this.help);
    this.listen(canvas);
    this.panel.offer(false, false, false);
    this.openPanel(window.innerWidth > 700);
    window.setTimeout(() => this.showPanels(), LONGEST_HOLD);
    this.source.open(this);
  }

  /** Everything that comes from the server or the page arrives here. */
  take(message: FromServer): Promise<void> | undefined {
    if (message.type === "SceneInfo") this.takeScene(message);
    else if (message.type === "SplatData") {
      void this.takeSplats(message);
      return this.firstPicture;
    } else if (message.type === "PointData") this.afterwards("points", () => this.takePoints(message));
    else if (message.type === "PhotoData") this.afterwards(`photo ${message.name}`, () => this.photo.addPhoto(message.name, message.data));
    else if (message.type === "Notice") this.notices.say(message.text, message.level);
    else if (message.type === "Progress") {
      this.live.takeProgress(message);
      this.opening.textContent = `${message.title} … ${Math.round(100 * message.fraction)} %`;
    }
    else if (message.type === "Curve") this.live.takeCurve(message);
    else if (message.type === "Track") {
      const before = this.live.place;
      this.live.takeTrack(message);
      if (!before && this.live.place) this.keepInSight(0);
      this.opening.textContent = "Finding where the camera is …";
    }
    else if (message.type === "Picture") void this.stream.take(message);
    return undefined;
  }

  /** Everything in the picture, from the side the cameras are on. */
  frameAll(seconds = 0.8): Promise<void> {
    if (!this.info) return Promise.resolve();
    this.photo.leave();
    const cameras = this.panel.switches.frustums.input.checked;
    return this.controls.fly(allOf(this.info, this.controls.up, this.stage.width / this.stage.height, cameras, this.live.place ?? undefined), seconds);
  }

  /** The surface at a window pixel: of the splats, else of the points. */
  async pick(x: number, y: number): Promise<Vector3 | null> {
    const { origin, direction } = this.stage.ray(x, y);
    const { file } = this.splats;
    const { box } = this.crop;
    if (file && this.panel.switches.splats.input.checked) {
      const table = await tableOf(file).catch((error: unknown) => {
        this.notices.say(`Nothing can be picked: ${error instanceof Error ? error.message : String(error)}.`, "error");
        return null;
      });
      const found = table && pickSplat(table, origin, direction, (index) => box === null || isInside(box, table.positions, index));
      if (found) return found;
    }
    return this.points.pick(origin, direction, (6 * this.stage.eye.lens.tanX) / this.stage.width);
  }

  async screenshot(): Promise<void> {
    await this.stage.steady(this.stage.eye);
    this.stage.canvas.toBlob((picture) => {
      if (picture) download(`${fileName(this.info?.title)}.png`, picture, "image/png");
    });
    this.stage.draw();
  }

  private takeScene(info: SceneInfo): void {
    this.info = info;
    document.title = `${info.title} · scenetx`;
    this.heading.textContent = info.title;
    this.controls.up.set(...info.up).normalize();
    this.stage.setRadius(info.radius);
    this.waitFor(info);
    this.frustums.load(info.views);
    this.afterwards("pictures", () => {
      this.frustums.loadPictures();
      this.photo.load(info.views);
      document.body.classList.toggle("has-strip", info.views.length > 0);
    });
    this.offer(info);
    this.stream.active = info.rendered;
    this.stream.restart();
    if (info.splats === 0 && !this.asked) this.panel.switches.points.set(true);
    if (!this.asked) this.firstEye(info);
    else this.keepInSight(0.8);
    this.placeGrid();
    if (info.splats === 0) this.loading.hidden = true;
  }

  private takePoints(points: PointData): void {
    this.points.load(points, this.panel.switches.points.input.checked);
    this.placeGrid();
    if (this.info) this.offer(this.info);
    this.loading.hidden = this.loading.hidden || !this.info?.splats;
  }

  /** The first splats are what is waited for, so all that can come after them does. */
  private waitFor(info: SceneInfo): void {
    if (info.splats === 0) this.showPanels();
    if (info.splats === 0 || this.firstPicture) return;
    this.later = new Map();
    this.firstPicture = new Promise((resolve) => { this.pictureShown = resolve; });
    this.stage.hold(LONGEST_HOLD);
    this.splats.warm();
  }

  /** Until then they would only keep a slow machine from the picture. */
  private showPanels(): void {
    this.root.classList.remove("opening");
  }

  private afterwards(name: string, act: () => void): void {
    if (this.later) this.later.set(name, act);
    else act();
  }

  /** The first splats are on the screen, or will never be. */
  private goOn(): void {
    if (this.splats.count > 0) this.times["picture"] ??= performance.now();
    const waiting = this.later ?? new Map<string, () => void>();
    this.later = null;
    this.showPanels();
    void this.stage.rest();
    for (const act of waiting.values()) act();
    this.pictureShown();
  }

  /** What is only being discovered stays in sight as it grows, until somebody looks at it their own way. */
  private keepInSight(seconds: number): void {
    if (this.info?.live && this.info.views.length === 0 && !this.touched) void this.frameAll(seconds);
  }

  /** What there is to see; of a scene that is being made the splats come later. */
  private offer(info: SceneInfo): void {
    const splats = this.splats.count || info.splats;
    const points = this.points.count || info.points;
    const parts: readonly [number, string][] = [[info.views.length, "photo"], [splats, "splat"], [points, "point"]];
    this.summary.textContent = parts.filter(([number]) => number > 0).map(([number, what]) => `${count(number)} ${what}${number === 1 ? "" : "s"}`).join(" · ");
    this.panel.offer(splats > 0, points > 0, info.views.length > 0);
  }

  private firstEye(info: SceneInfo): void {
    this.asked = true;
    // Where there is nothing else, the ground shows how things lie.
    if (info.splats === 0 && info.points === 0 && !info.rendered) this.panel.switches.grid.set(true);
    const wanted = this.address.read();
    if (wanted) this.stage.look(wanted);
    else if (info.views.length > 0 && (info.splats > 0 || info.rendered)) this.stage.look(startOf(info));
    else void this.frameAll(0);
  }

  private async takeSplats(data: SplatData): Promise<void> {
    try {
      await this.splats.load(data);
      if (this.info) this.offer(this.info);
      // The points were shown in the splats' place.
      if (this.times["splats"] === undefined && this.info?.splats === 0) this.panel.switches.points.set(false);
      this.times["splats"] ??= performance.now();
      this.stage.release();
    } catch (error) {
      this.broken(error);
    }
    this.loading.hidden = true;
  }

  broken(error: unknown): void {
    this.loading.hidden = true;
    this.stage.release();
    this.goOn();
    const what = error instanceof Error ? error.message : String(error);
    if (this.info) this.notices.say(`Not all of the scene could be opened: ${what}.`, "error", "broken");
    else fail("The scene could not be opened", `${what}.`, "The file may be cut short: copy it again, or write it anew with `scenetx export SCENE page.html`.");
  }

  private placeGrid(): void {
    if (this.info) this.grid.place(groundOf(this.info, this.controls.up, this.points.positions), this.controls.up, this.info.radius);
  }

  private makeMeasure(): MeasureTool {
    const tool = new MeasureTool({
      editable: () => this.info?.editable ?? false,
      apply: (change) => this.source.send(change) && this.follow(change),
      preview: (change) => this.preview(change),
      cameraCenter: () => (this.info ? meanOf(this.info) : this.stage.eye.position.clone()),
      redraw: () => this.stage.draw(),
      say: (text) => this.notices.say(text, "warning"),
    });
    tool.onChange = () => this.stage.canvas.classList.toggle("cross", tool.picking !== "none");
    return tool;
  }

  /** The scene is about to change its frame: the eye goes along. */
  private follow(change: Similarity): boolean {
    this.photo.leave();
    this.crop.set(null);
    this.path.keys = this.path.keys.map((eye) => moved(eye, change));
    this.stage.look(moved(this.stage.eye, change));
    return true;
  }

  private preview({ rotation }: Similarity): void {
    // Up becomes +z: in the old frame that is the rotation's last row.
    const [x = 0, y = 0, z = 1] = rotation.slice(6);
    const turned = rotation[0] !== 1 || rotation[4] !== 1;
    if (turned) this.controls.up.set(x, y, z);
    this.placeGrid();
  }

  private toolbar(): HTMLElement {
    const more = iconButton("panel", "Settings", () => this.openPanel(Boolean(this.side.hidden)), { "aria-expanded": "true", id: "settings" });
    return el(
      "div",
      { class: "tools card", role: "toolbar", "aria-label": "Tools" },
      iconButton("frame", "Show everything (F)", () => void this.frameAll()),
      this.modeButton,
      iconButton("ruler", "Measure (M)", () => this.startMeasuring()),
      iconButton("camera", "Save a picture (P)", () => void this.screenshot()),
      iconButton("help", "Keys and help (H)", () => this.help.showModal()),
      more,
    );
  }

  private openPanel(open: boolean): void {
    this.side.hidden = !open;
    document.getElementById("settings")?.setAttribute("aria-expanded", String(open));
    document.body.classList.toggle("panel-open", open);
  }

  private startMeasuring(): void {
    this.openPanel(true);
    (this.measure.root as HTMLDetailsElement).open = true;
    this.measure.start("length");
  }

  private switchMode(): void {
    const fly = this.controls.mode === "orbit";
    this.controls.mode = fly ? "fly" : "orbit";
    this.modeButton.setAttribute("aria-pressed", String(fly));
  }

  private listen(canvas: HTMLCanvasElement): void {
    this.controls.onMove = () => {
      this.touched = true;
      this.photo.moved();
      this.path.stop();
      this.address.changed();
    };
    this.controls.onGrab = (x, y) => this.crop.grab(x, y);
    this.photo.onChange = () => this.address.changed();
    this.controls.onClick = (x, y) => void this.click(x, y);
    this.controls.onDoubleClick = (x, y) => void this.center(x, y);
    this.controls.onHover = (x, y) => this.hover(x, y);
    canvas.addEventListener("pointerleave", () => { this.label.hidden = true; });
    this.stage.afterDraw.add(() => {
      if (this.times["full"] !== undefined || this.splats.count === 0) return;
      if (this.later && !this.placed) {
        this.placed = true;
        void this.stage.finished().then(() => this.goOn());
      } else if (this.times["picture"] !== undefined) {
        void this.stage.finished().then(() => { this.times["full"] ??= performance.now(); });
      }
    });
    canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      fail("The graphics were interrupted", "The browser took the 3D context away; it mostly gives it back within seconds.", "If nothing comes, reload the page; with many tabs open, close some.");
    });
    canvas.addEventListener("webglcontextrestored", () => {
      document.querySelector(".failure")?.remove();
      this.splats.restore();
      this.stage.draw();
    });
    window.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("dragover", (event) => event.preventDefault());
    window.addEventListener("drop", (event) => {
      event.preventDefault();
      const file = event.dataTransfer?.files[0];
      if (file) void this.open(file);
    });
  }

  private hover(x: number, y: number): void {
    const view = this.frustums.pick(x, y);
    this.stage.canvas.classList.toggle("point", view !== null);
    this.label.hidden = view === null;
    if (!view) return;
    this.label.textContent = view.name;
    this.label.style.left = `${x}px`;
    this.label.style.top = `${y}px`;
  }

  /** A file dropped on the page: splats in place of ours, or a camera path. */
  private async open(file: File): Promise<void> {
    const suffix = file.name.toLowerCase().split(".").at(-1);
    if (suffix === "json") await this.path.openFile(file);
    else if (suffix !== "spz" && suffix !== "ply") this.notices.say(`${file.name} cannot be opened here: drop a .spz, .ply or camera path .json.`, "warning");
    else {
      const data: SplatData = { type: "SplatData", count: 0, antialiased: false, format: suffix, data: new Uint8Array(await file.arrayBuffer()) };
      await this.takeSplats({ ...data, antialiased: await isAntialiased(data).catch(() => false) });
    }
  }

  private async click(x: number, y: number): Promise<void> {
    if (this.measure.picking === "none") {
      const view = this.frustums.pick(x, y);
      if (view) await this.photo.enter(view);
      return;
    }
    const point = await this.pick(x, y);
    if (point) this.measure.add(point);
    else this.notices.say("There is no surface here.");
  }

  private async center(x: number, y: number): Promise<void> {
    if (this.measure.picking !== "none") return;
    const point = await this.pick(x, y);
    const eye = this.stage.eye;
    if (point) await this.controls.fly(lookAt(eye.position, point, this.controls.up, eye.lens), 0.5);
  }

  private key(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    const typing = target.matches("input:not([type=checkbox], [type=range], [type=color]), textarea, select");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || this.help.open) return;
    const flip = (name: keyof ShowPanel["switches"]) => {
      const each = this.panel.switches[name];
      each.set(!each.input.checked);
    };
    const acts: Record<string, () => void> = {
      f: () => void this.frameAll(),
      v: () => this.switchMode(),
      p: () => void this.screenshot(),
      h: () => this.help.showModal(),
      "?": () => this.help.showModal(),
      m: () => this.startMeasuring(),
      k: () => this.path.add(),
      " ": () => this.path.play(),
      b: () => this.photo.blink(),
      "[": () => this.photo.step(-1),
      "]": () => this.photo.step(1),
      "1": () => flip("splats"),
      "2": () => flip("points"),
      "3": () => flip("frustums"),
      "4": () => flip("grid"),
      Escape: () => this.escape(),
    };
    if (event.key === " " && target.matches("button, summary, input")) return;
    const act = acts[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    act();
    event.preventDefault();
  }

  private escape(): void {
    if (this.measure.picking === "none") this.photo.leave();
    else this.measure.stop();
  }
}

export function fileName(title: string | undefined): string {
  return (title ?? "scene").replaceAll(/[^\w.-]+/g, "-") || "scene";
}

