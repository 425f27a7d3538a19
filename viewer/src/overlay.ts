// Lines, marks and words drawn over the picture at places of the scene.
import type { Vector3 } from "three";
import type { Stage } from "./stage";

const SPACE = "http://www.w3.org/2000/svg";

interface Line {
  readonly from: Vector3;
  readonly to: Vector3;
  readonly text?: string;
  readonly kind?: string;
}

interface Mark {
  readonly at: Vector3;
  readonly kind?: string;
}

/** What one tool draws; asked before every drawn frame. */
export interface Drawing {
  readonly lines: readonly Line[];
  readonly marks: readonly Mark[];
}

export class Overlay {
  readonly root = document.createElementNS(SPACE, "svg");
  private readonly sources = new Set<() => Drawing>();
  private filled = false;

  constructor(private readonly stage: Stage) {
    this.root.setAttribute("class", "overlay");
    this.root.setAttribute("aria-hidden", "true");
    stage.afterDraw.add(() => this.update());
  }

  add(source: () => Drawing): void {
    this.sources.add(source);
  }

  private update(): void {
    const drawings = Array.from(this.sources, (source) => source());
    const empty = drawings.every((each) => each.lines.length === 0 && each.marks.length === 0);
    if (empty && !this.filled) return;
    this.filled = !empty;
    this.root.replaceChildren();
    for (const { lines, marks } of drawings) {
      for (const line of lines) this.line(line);
      for (const mark of marks) this.mark(mark);
    }
  }

  private line({ from, to, text, kind }: Line): void {
    const a = this.stage.project(from);
    const b = this.stage.project(to);
    if (!a || !b) return;
    for (const name of kind ? [kind] : ["shadow", ""]) {
      this.element("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, class: name });
    }
    if (text) this.element("text", { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 - 9 }).textContent = text;
  }

  private mark({ at, kind }: Mark): void {
    const place = this.stage.project(at);
    if (place) this.element("circle", { cx: place.x, cy: place.y, r: 5, class: kind ?? "" });
  }

  private element(name: string, attributes: Record<string, string | number>): SVGElement {
    const element = document.createElementNS(SPACE, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
    this.root.append(element);
    return element;
  }
}
