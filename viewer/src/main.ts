// The page's start: parts are made, joined, and fed with messages.
import { Viewer } from "./viewer";
import { fail } from "./notices";
import style from "./style.css?inline";

function canDraw(): boolean {
  const context = document.createElement("canvas").getContext("webgl2");
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return context !== null;
}

function start(): void {
  const sheet = document.createElement("style");
  sheet.textContent = style;
  document.head.append(sheet);
  if (!canDraw()) {
    fail("This browser cannot draw the scene", "It offers no WebGL2.", "Switch on hardware acceleration in its settings, update it, or open the page in another browser.");
    return;
  }
  try {
    // The one name the page has in the global scope: for tests and for people who script it.
    Reflect.set(globalThis, "scenetx", new Viewer(document.body));
  } catch (error) {
    fail("The viewer could not start", String(error), "Reload the page; if it stays so, update the browser.");
  }
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
