// Where the messages come from: the page itself (static) or the server's socket, which is found again when it is lost.
import type { FromPage, FromServer, SplatData } from "./messages";
import type { Notices } from "./notices";
import { decode, encode, fromBase64 } from "./wire";

export interface Source {
  readonly live: boolean;
  /** Hands over every message, those too that came before there was anybody to take them. */
  open(taker: Taker): void;
  send(message: FromPage): boolean;
}

export interface Taker {
  readonly notices: Notices;
  /** A promise is given for what the rest can wait for. */
  take(message: FromServer): Promise<void> | undefined;
  broken(error: unknown): void;
}

/** viewer.html opens it, so that the scene comes while this script is being read. */
interface EarlySocket {
  readonly socket: WebSocket;
  readonly frames: readonly ArrayBuffer[];
  readonly take: (event: MessageEvent<ArrayBuffer>) => void;
}

/** Told of splats as soon as they are there: reading them takes longest. */
type Ahead = (splats: SplatData) => void;

const FIRST_WAIT = 500;
const LONGEST_WAIT = 8000;

/** Frames inside the page, or in scripts beside it that hand theirs over by `scenetxPart`. */
export class PageSource implements Source {
  readonly live = false;
  private readonly texts: string[];
  private readonly expected: number;
  private readonly first: FromServer[] = [];
  private failure: unknown = null;

  constructor(ahead: Ahead) {
    const parts = document.querySelectorAll<HTMLScriptElement>('script[type="application/x-scenetx"]');
    const beside = Reflect.get(globalThis, "scenetxParts") as string[] | undefined;
    this.texts = [...Array.from(parts, (part) => part.textContent), ...(beside ?? [])];
    for (const part of parts) part.remove();
    this.expected = Number(document.documentElement.dataset["parts"] ?? this.texts.length);
    try {
      // The scene, then its splats: the order they are written in.
      for (const text of this.texts.splice(0, 2)) {
        const message = decode(fromBase64(text));
        this.first.push(message);
        if (message.type === "SplatData") ahead(message);
      }
    } catch (error) {
      this.failure = error;
    }
  }

  open(taker: Taker): void {
    void this.hand(taker);
  }

  send(): boolean {
    return false;
  }

  private async hand(taker: Taker): Promise<void> {
    const found = this.first.length + this.texts.length;
    try {
      for (const message of this.first.splice(0)) await taker.take(message);
      if (this.failure) throw this.failure;
      while (this.texts.length > 0) await taker.take(decode(fromBase64(this.texts.shift() ?? "")));
      if (found < this.expected) throw new Error(`${this.expected - found} of ${this.expected} parts of the scene are missing`);
    } catch (error) {
      taker.broken(error);
    }
  }
}

export class SocketSource implements Source {
  readonly live = true;
  private socket: WebSocket | null = null;
  private taker: Taker | null = null;
  private waiting: FromServer[] = [];
  private failures: unknown[] = [];
  private wait = FIRST_WAIT;
  private ended = false;
  /** The server has nothing more to say: it may go. */
  private done = false;

  constructor(
    private readonly address: URL,
    private readonly ahead: Ahead,
  ) {
    this.connect(Reflect.get(globalThis, "scenetxSocket") as EarlySocket | undefined);
    globalThis.addEventListener("online", () => this.retryNow());
    globalThis.addEventListener("pagehide", () => {
      this.ended = true;
      this.socket?.close();
    });
  }

  open(taker: Taker): void {
    this.taker = taker;
    for (const error of this.failures.splice(0)) this.unread(error);
    for (const message of this.waiting.splice(0)) void taker.take(message);
    if (this.socket?.readyState === WebSocket.CLOSED) this.sayLost();
  }

  send(message: FromPage): boolean {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(encode(message));
    return true;
  }

  /** ``early``: one that the page's head has opened, and what it has said. */
  private connect(early?: EarlySocket): void {
    const socket = early?.socket ?? new WebSocket(this.address);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    if (early) socket.removeEventListener("message", early.take);
    socket.addEventListener("open", () => this.opened());
    socket.addEventListener("message", (event: MessageEvent<ArrayBuffer>) => this.read(event.data));
    socket.addEventListener("close", () => this.lost(socket));
    if (socket.readyState === WebSocket.OPEN) this.opened();
    for (const frame of early?.frames ?? []) this.read(frame);
    if (socket.readyState === WebSocket.CLOSED) this.lost(socket);
  }

  private opened(): void {
    this.wait = FIRST_WAIT;
    this.taker?.notices.clear("server");
    document.documentElement.dataset["connection"] = "open";
  }

  private read(frame: ArrayBuffer): void {
    try {
      this.receive(decode(frame));
    } catch (error) {
      this.unread(error);
    }
  }

  private receive(message: FromServer): void {
    this.done = message.type === "Track" && message.status === "done";
    if (this.taker) {
      void this.taker.take(message);
      return;
    }
    this.waiting.push(message);
    if (message.type === "SplatData") this.ahead(message);
  }

  private unread(error: unknown): void {
    if (this.taker) this.taker.notices.say(`A message of the server could not be read: ${String(error)}. Reload the page.`, "error", "message");
    else this.failures.push(error);
  }

  private lost(socket: WebSocket): void {
    if (this.ended || socket !== this.socket) return;
    document.documentElement.dataset["connection"] = "lost";
    this.sayLost();
    window.setTimeout(() => this.connect(), this.wait);
    this.wait = Math.min(this.wait * 1.7, LONGEST_WAIT);
  }

  private sayLost(): void {
    if (this.done) this.taker?.notices.say("Tracking has finished; what was shown can still be looked at.", "info", "server");
    else this.taker?.notices.say("The server does not answer; what was loaded can still be looked at. Start `scenetx view` again: this page finds it by itself.", "warning", "server");
  }

  private retryNow(): void {
    if (this.socket?.readyState === WebSocket.CLOSED) this.connect();
  }
}
