// Where the messages come from: the page itself (static) or the server's socket, which is found again when it is lost.
import type { FromPage, FromServer } from "./messages";
import type { Notices } from "./notices";
import { decode, encode, fromBase64 } from "./wire";

export interface Source {
  readonly live: boolean;
  send(message: FromPage): boolean;
}

type Take = (message: FromServer) => void;
const FIRST_WAIT = 500;
const LONGEST_WAIT = 8000;

/** Frames inside the page, or in scripts beside it that hand theirs over by `scenetxPart`. */
export class PageSource implements Source {
  readonly live = false;

  constructor(take: Take, lost: (error: unknown) => void) {
    const parts = document.querySelectorAll<HTMLScriptElement>('script[type="application/x-scenetx"]');
    const beside = Reflect.get(globalThis, "scenetxParts") as string[] | undefined;
    const texts = [...Array.from(parts, (part) => part.textContent), ...(beside ?? [])];
    const expected = Number(document.documentElement.dataset["parts"] ?? texts.length);
    try {
      for (const text of texts) take(decode(fromBase64(text)));
      for (const part of parts) part.remove();
      if (texts.length < expected) throw new Error(`${expected - texts.length} of ${expected} parts of the scene are missing`);
    } catch (error) {
      lost(error);
    }
  }

  send(): boolean {
    return false;
  }
}

export class SocketSource implements Source {
  readonly live = true;
  private socket: WebSocket | null = null;
  private wait = FIRST_WAIT;
  private ended = false;
  /** The server has nothing more to say: it may go. */
  private done = false;

  constructor(
    private readonly address: URL,
    private readonly take: Take,
    private readonly notices: Notices,
  ) {
    this.connect();
    globalThis.addEventListener("online", () => this.retryNow());
    globalThis.addEventListener("pagehide", () => {
      this.ended = true;
      this.socket?.close();
    });
  }

  send(message: FromPage): boolean {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(encode(message));
    return true;
  }

  private connect(): void {
    const socket = new WebSocket(this.address);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.addEventListener("open", () => {
      this.wait = FIRST_WAIT;
      this.notices.clear("server");
      document.documentElement.dataset["connection"] = "open";
    });
    socket.addEventListener("message", (event: MessageEvent<ArrayBuffer>) => {
      try {
        const message = decode(event.data);
        this.done = message.type === "Track" && message.status === "done";
        this.take(message);
      } catch (error) {
        this.notices.say(`A message of the server could not be read: ${String(error)}. Reload the page.`, "error", "message");
      }
    });
    socket.addEventListener("close", () => this.lost(socket));
  }

  private lost(socket: WebSocket): void {
    if (this.ended || socket !== this.socket) return;
    document.documentElement.dataset["connection"] = "lost";
    if (this.done) this.notices.say("Tracking has finished; what was shown can still be looked at.", "info", "server");
    else this.notices.say("The server does not answer; what was loaded can still be looked at. Start `scenetx view` again: this page finds it by itself.", "warning", "server");
    window.setTimeout(() => this.connect(), this.wait);
    this.wait = Math.min(this.wait * 1.7, LONGEST_WAIT);
  }

  private retryNow(): void {
    if (this.socket?.readyState === WebSocket.CLOSED) this.connect();
  }
}
