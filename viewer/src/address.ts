// The view in the address bar: a link opens at the same place with the same things shown.
import { type Eye, fromText, toText } from "./eye";
import type { Switch } from "./dom";

const QUIET = 250; // milliseconds after the last change

export class Address {
  private timer = 0;

  constructor(
    private readonly eye: () => Eye,
    private readonly switches: Readonly<Record<string, Switch>>,
  ) {}

  /** The eye the address asks for, after its switches were set. */
  read(): Eye | null {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const [name, each] of Object.entries(this.switches)) {
      const value = asked.get(name);
      if (value === "0" || value === "1") each.set(value === "1");
    }
    const text = asked.get("eye");
    return text ? fromText(text) : null;
  }

  changed(): void {
    window.clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.write(), QUIET);
  }

  private write(): void {
    const parts = [`eye=${toText(this.eye())}`];
    for (const [name, each] of Object.entries(this.switches)) parts.push(`${name}=${each.input.checked ? 1 : 0}`);
    try {
      history.replaceState(null, "", `#${parts.join("&")}`);
    } catch {
      // A sandboxed frame has no address to write to; the view then has no link.
    }
  }
}
