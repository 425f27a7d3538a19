// Sentences to the person: passing ones, lasting ones, and the one that takes the page when nothing can be shown.
import { el, iconButton } from "./dom";

export class Notices {
  readonly root = el("div", { class: "notices", role: "status", "aria-live": "polite" });
  private readonly lasting = new Map<string, HTMLElement>();

  /** Goes away by itself unless ``name`` is given: then it stays until `clear`. */
  say(text: string, level: "info" | "warning" | "error" = "info", name = ""): void {
    this.clear(name);
    const notice = el("div", { class: `card notice ${level}` }, el("span", {}, text));
    notice.append(iconButton("close", "Close this message", () => notice.remove()));
    this.root.append(notice);
    if (name) this.lasting.set(name, notice);
    else setTimeout(() => notice.remove(), level === "info" ? 4000 : 9000);
  }

  clear(name: string): void {
    this.lasting.get(name)?.remove();
    this.lasting.delete(name);
  }
}

/** Nothing can be shown: says why and what to do. */
export function fail(title: string, what: string, todo: string): void {
  document.querySelector(".failure")?.remove();
  document.body.append(el("div", { class: "failure", role: "alert" }, el("div", { class: "card" }, el("h2", {}, title), el("p", {}, what), el("p", {}, todo))));
}
