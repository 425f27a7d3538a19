// The page's end of splatworker.ts.
import type { SplatData } from "./messages";
import type { Packed } from "./splatpack";
import type { Filter, Sight } from "./splatsort";
import type { Answer, Question, Sorted } from "./splatworker";
// oxlint-disable-next-line import/default -- made by the bundler
import SplatWorker from "./splatworker?worker&inline";

/** ``id`` names the file or level to `SplatWork.sort`. */
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
  private readonly waiting = new Map<number, Waiting>();
  private readonly begun = new WeakMap<SplatData, Promise<Loaded>>();
  private tables = 0;
  private questions = 0;

  constructor() {
    this.worker.addEventListener("message", ({ data }: MessageEvent<Answer>) => {
      const asked = this.waiting.get(data.number);
      this.waiting.delete(data.number);
      if ("failed" in data) asked?.reject(new Error(data.failed));
      else asked?.resolve(data);
    });
    this.worker.addEventListener("error", (event) => {
      for (const { reject } of this.waiting.values()) reject(new Error(event.message || "the browser does not let the page work in the background"));
      this.waiting.clear();
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
    const id = ++this.tables;
    const copy = data.slice();
    const answer = await this.ask({ kind: "load", id, format, data: copy }, [copy.buffer]);
    if (!("packed" in answer) || !answer.packed) throw new Error("the worker answered something else");
    return { id, packed: answer.packed };
  }

  /** At most ``count`` splats that look like those of the file ``of``, to be drawn at ``place``; null = a newer file, or level
   * for that place, has been asked for. */
  async level(of: number, place: string, filter: Filter, count: number): Promise<Loaded | null> {
    const id = ++this.tables;
    const answer = await this.ask({ kind: "level", id, of, place, filter, count }, []);
    return "packed" in answer && answer.packed ? { id, packed: answer.packed } : null;
  }

  async sort(id: number, sight: Sight, filter: Filter, order: Uint32Array<ArrayBuffer>): Promise<Sorted> {
    const answer = await this.ask({ kind: "sort", id, sight, filter, order }, [order.buffer]);
    if (!("sorted" in answer)) throw new Error("the worker answered something else");
    return answer.sorted;
  }

  private ask(request: Question["request"], given: ArrayBuffer[]): Promise<Answer> {
    const number = ++this.questions;
    return new Promise((resolve, reject) => {
      this.waiting.set(number, { resolve, reject });
      this.worker.postMessage({ number, request } satisfies Question, given);
    });
  }
}
