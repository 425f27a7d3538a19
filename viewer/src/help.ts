// What keys, mouse and fingers do.
import { el } from "./dom";

const KEYS: readonly (readonly [string, string])[] = [
  ["Turn about", "drag · arrows"],
  ["Slide", "right drag · shift + drag · two fingers"],
  ["Nearer, farther", "wheel · pinch · + −"],
  ["Move through the scene", "W A S D, Q E down and up"],
  ["Fly instead of turning about", "V"],
  ["Turn about this point", "double click"],
  ["Stand where a photo was taken", "click a camera"],
  ["Next, previous photo", "] ["],
  ["Blink photo and render", "B"],
  ["Show everything", "F"],
  ["Splats, points, cameras, grid", "1 2 3 4"],
  ["Measure", "M"],
  ["Add a keyframe, play the path", "K, space"],
  ["Save a picture", "P"],
  ["Leave a photo or tool", "Esc"],
];

export function helpDialog(): HTMLDialogElement {
  const items = KEYS.map(([what, how]) => el("li", {}, el("span", {}, what), el("kbd", {}, how)));
  return el(
    "dialog",
    { "aria-labelledby": "help-title" },
    el("h2", { id: "help-title" }, "Keys, mouse and fingers"),
    el("ul", { class: "keys" }, ...items),
    el("form", { method: "dialog" }, el("button", { class: "main" }, "Close")),
  );
}
