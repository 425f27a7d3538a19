// The side panel: what is shown and how it looks.
import { el, section, slider, type Slider, type Switch, toggle } from "./dom";
import type { FrustumLayer } from "./frustums";
import type { Grid } from "./grid";
import type { PointLayer } from "./points";
import type { SplatLayer } from "./splats";
import type { Stage } from "./stage";

export interface Layers {
  readonly splats: SplatLayer;
  readonly points: PointLayer;
  readonly frustums: FrustumLayer;
  readonly grid: Grid;
}

const depth = (value: number) => 4 * (value / 100) ** 2;
const percent = (value: number) => `${Math.round(value)} %`;

export class ShowPanel {
  readonly sections: HTMLElement[];
  readonly switches: Readonly<Record<"splats" | "points" | "frustums" | "thumbnails" | "grid", Switch>>;
  private readonly budget: Slider;
  private readonly legend: HTMLElement;

  constructor(stage: Stage, layers: Layers, change: () => void) {
    const also = (act: (on: boolean) => void) => (on: boolean) => { act(on); change(); };
    this.switches = {
      splats: toggle("Splats", true, also((on) => layers.splats.show(on)), "1"),
      points: toggle("Points", false, also((on) => layers.points.show(on)), "2"),
      frustums: toggle("Cameras", true, also((on) => layers.frustums.show(on)), "3"),
      thumbnails: toggle("Photos in the cameras", true, also((on) => layers.frustums.showThumbnails(on))),
      grid: toggle("Grid and axes", false, also((on) => layers.grid.show(on)), "4"),
    };
    layers.grid.show(false);
    this.budget = slider("Splat budget", [1, 100, 1], 100, (value) => layers.splats.setBudget(value / 100), percent);
    const color = el("input", { type: "color", value: "#101114", "aria-label": "Background colour", oninput: () => stage.background(color.value) });
    this.legend = el("div", { class: "legend" }, el("span", { class: "train" }, el("i"), "used for the fit"), el("span", { class: "held" }, el("i"), "held out"));
    this.sections = [
      section("Show", true, ...Object.values(this.switches).map((each) => each.row), this.legend),
      section(
        "Look",
        false,
        this.budget.row,
        slider("Least opacity of a splat", [0, 90, 1], 0, (value) => layers.splats.setLeastOpacity(value / 100), percent).row,
        slider("Point size", [1, 12, 0.5], 3, (value) => layers.points.setSize(value), (value) => `${value} px`).row,
        slider("Least confidence of a point", [0, 100, 1], 0, (value) => layers.points.setLeastConfidence(value / 100), percent).row,
        slider("Camera size", [-2, 2, 0.1], 0, (value) => layers.frustums.setSize(2 ** value), (value) => `${(2 ** value).toFixed(1)} ×`).row,
        slider("Cut what is nearer than", [0, 100, 1], 0, (value) => this.clip(stage, value, null), percent).row,
        slider("Cut what is farther than", [0, 100, 1], 100, (value) => this.clip(stage, null, value), (value) => (value === 100 ? "nothing" : percent(value))).row,
        slider("View-dependent colour", [0, 3, 1], 3, (value) => layers.splats.setMaxSh(value), (value) => `degree ${value}`).row,
        el("label", { class: "switch" }, el("span", {}, "Background"), color),
      ),
    ];
  }

  /** Leaves out what the scene does not have. */
  offer(splats: boolean, points: boolean, photos: boolean): void {
    const { switches } = this;
    this.budget.row.hidden = switches.splats.row.hidden = !splats;
    switches.points.row.hidden = !points;
    this.legend.hidden = switches.frustums.row.hidden = switches.thumbnails.row.hidden = !photos;
  }

  /** Percent of four radii, squared so that near things can be cut finely. */
  private clip(stage: Stage, near: number | null, far: number | null): void {
    if (near !== null) stage.clip.near = Math.max(0.002, depth(near));
    if (far !== null) stage.clip.far = far === 100 ? 200 : Math.max(0.01, depth(far));
    stage.draw();
  }
}
