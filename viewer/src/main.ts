// The page's start: the scene is on its way, and its splats are being read, while the viewer is built around them.
import { fail } from "./notices";
import { PageSource, SocketSource, type Source } from "./source";
import { SplatWork } from "./splatwork";
import { NoWebGL } from "./stage";
import style from "./style.css?inline";
import { Viewer } from "./viewer";

const PATIENCE = 80; // milliseconds that the viewer is not begun for: a server on this machine has sent its splats by then

function socketAddress(path: string): URL {
  const address = new URL(path, location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  return address;
}

function build(source: Source, work: SplatWork): void {
  try {
    // The one name the page has in the global scope: for tests and for people who script it.
    Reflect.set(globalThis, "scenetx", new Viewer(document.body, source, work));
  } catch (error) {
    if (error instanceof NoWebGL) fail("This browser cannot draw the scene", "It offers no WebGL2.", "Switch on hardware acceleration in its settings, update it, or open the page in another browser.");
    else fail("The viewer could not start", String(error), "Reload the page; if it stays so, update the browser.");
  }
}

function start(): void {
  const sheet = document.createElement("style");
  sheet.textContent = style;
  document.head.append(sheet);
  const work = new SplatWork();
  const socket = document.documentElement.dataset["socket"];
  if (!socket) {
    build(new PageSource((splats) => work.begin(splats)), work);
    return;
  }
  const timer = window.setTimeout(() => begin(), PATIENCE);
  const source = new SocketSource(socketAddress(socket), (splats) => {
    work.begin(splats);
    begin();
  });
  let begun = false;
  const begin = () => {
    window.clearTimeout(timer);
    if (!begun) build(source, work);
    begun = true;
  };
}

start();
