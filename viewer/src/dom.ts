// Small words for building the page.
type Child = Node | string | null;
type Properties = Record<string, string | number | boolean | ((event: Event) => void) | undefined>;

/** An element: ``onclick`` and the like are listeners, the rest are attributes (false and undefined = none). */
export function el<K extends keyof HTMLElementTagNameMap>(tag: K, properties: Properties = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, String(value));
  }
  for (const child of children) if (child !== null) element.append(child);
  return element;
}

const PATHS = {
  frame: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5M9 12h6M12 9v6",
  orbit: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8ZM3 12c0-3 4-5 9-5s9 2 9 5-4 5-9 5-9-2-9-5Z",
  fly: "m3 11 18-8-8 18-2-8-8-2Z",
  camera: "M4 8h3l2-3h6l2 3h3v11H4V8Zm8 2a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7Z",
  help: "M9 9a3 3 0 1 1 4.5 2.6c-1 .6-1.5 1.1-1.5 2.4M12 17.5v.5",
  panel: "M4 6h10M18 6h2M4 12h2M10 12h10M4 18h8M16 18h4M14 4v4M6 10v4M12 16v4",
  previous: "m14 6-6 6 6 6",
  next: "m10 6 6 6-6 6",
  close: "M6 6l12 12M18 6 6 18",
  blink: "M2 12s4-7 10-7 10 7 10 7-4 7-10 7-10-7-10-7Zm10-3a3 3 0 1 0 0 6 3 3 0 0 0 0-6Z",
  ruler: "m3 16 13-13 5 5L8 21l-5-5Zm4-4 2 2m1-5 3 3m0-6 2 2",
  play: "M7 5v14l12-7L7 5Z",
  pause: "M8 5v14M16 5v14",
  full: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
} as const;
export type Icon = keyof typeof PATHS;

export function icon(name: Icon): SVGSVGElement {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** A square button with a picture; its name is spoken and shown on hover. */
export function iconButton(name: Icon, label: string, onclick: () => void, more: Properties = {}): HTMLButtonElement {
  return el("button", { type: "button", class: "icon", title: label, "aria-label": label, onclick, ...more }, icon(name));
}

export function button(label: string, onclick: () => void, more: Properties = {}): HTMLButtonElement {
  return el("button", { type: "button", onclick, ...more }, label);
}

export interface Switch {
  readonly row: HTMLElement;
  readonly input: HTMLInputElement;
  set(on: boolean): void;
}

export function toggle(label: string, on: boolean, change: (on: boolean) => void, key = ""): Switch {
  const input = el("input", { type: "checkbox", role: "switch", checked: on, onchange: () => change(input.checked) });
  const row = el("label", { class: "switch" }, el("span", {}, label), key ? el("kbd", {}, key) : null, input);
  return { row, input, set: (value) => { input.checked = value; change(value); } };
}

export interface Slider {
  readonly row: HTMLElement;
  readonly input: HTMLInputElement;
  set(value: number): void;
}

export function slider(label: string, range: readonly [number, number, number], value: number, change: (value: number) => void, show: (value: number) => string = String): Slider {
  const [min, max, step] = range;
  const output = el("output", {}, show(value));
  const input = el("input", { type: "range", min, max, step, value, "aria-label": label, oninput: () => update() });
  const update = () => {
    output.textContent = show(input.valueAsNumber);
    input.setAttribute("aria-valuetext", output.textContent);
    change(input.valueAsNumber);
  };
  const row = el("label", { class: "slider" }, el("span", {}, label), output, input);
  return { row, input, set: (next) => { input.value = String(next); update(); } };
}

export function section(title: string, open: boolean, ...children: Child[]): HTMLDetailsElement {
  return el("details", { open, class: "section" }, el("summary", {}, title), el("div", { class: "body" }, ...children));
}

/** Hands a file to the person. */
export function download(name: string, data: BlobPart, type: string): void {
  const address = URL.createObjectURL(new Blob([data], { type }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 30_000);
}

export function count(value: number): string {
  return value.toLocaleString("en").replaceAll(",", "\u202f");
}

/** Three significant digits without an exponent where that is readable. */
export function short(value: number): string {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-4 ? value.toExponential(2) : String(Number(value.toPrecision(size >= 100 ? 4 : 3)));
}
