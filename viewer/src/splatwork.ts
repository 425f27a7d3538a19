// The page's end of splatworker.ts.
import type { SplatData } from "./messages";
import type { Packed } from "./splatpack";
import type { Filter, Sight } from "./splatsort";
import type { Answer, Request, Sorted } from "./splatworker";
// oxlint-disable-next-line import/default -- made by the bundler
import SplatWorker from "./splatworker?worker&inline";

/** ``id`` names the file to `SplatWork.sort`. */
export interface Loaded {
  readonly id: number;
  readonly packed: Packed;
}

interface Waiting {
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: Error) => void;
}

export class SplatWork {
  private readonly worker = new SplatWorker();
  private waiting: Waiting[] = [];
  private readonly begun = new WeakMap<SplatData, Promise<Loaded>>();
  private files = 0;

  constructor() {
    this.worker.addEventListener("message", ({ data }: MessageEvent<Answer>) => {
      const first = this.waiting.shift();
      if ("failed" in data) first?.reject(new Error(data.failed));
      else first?.resolve(data);
    });
    this.worker.addEventListener("error", (event) => {
      for (const { reject } of this.waiting) reject(new Error(event.message || "the browser does not let the page work in the background"));
      this.waiting = [];
    });
  }

  /** Begins to read a file that `load` will be asked for. */
  begin(file: SplatData): void {
    const reading = this.read(file);
    reading.catch(() => undefined); // said by `load`
    this.begun.set(file, reading);
  }

  load(file: SplatData): Promise<Loaded> {
    const reading = this.begun.get(file) ?? this.read(file);
    this.begun.delete(file);
    return reading;
  }

  private async read({ format, data }: SplatData): Promise<Loaded> {
    const id = ++this.files;
    const copy = data.slice();
    const answer = await this.ask({ kind: "load", id, format, data: copy }, copy.buffer);
    if (!("packed" in answer)) throw new Error("answers came in another order than questions");
    return { id, packed: answer.packed };
  }

  async sort(id: number, sight: Sight, filter: Filter, order: Uint32Array<ArrayBuffer>): Promise<Sorted> {
    const answer = await this.ask({ kind: "sort", id, sight, filter, order }, order.buffer);
    if (!("sorted" in answer)) throw new Error("answers came in another order than questions");
    return answer.sorted;
  }

  private ask(request: Request, given: ArrayBuffer): Promise<Answer> {
    return new Promise((resolve, reject) => {
      this.waiting.push({ resolve, reject });
      this.worker.postMessage(request, [given]);
    });
  }
}
