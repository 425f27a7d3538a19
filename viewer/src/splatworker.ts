// Reads splat files, merges their splats and puts them in order, beside the page's own thread.
import { readSplats, type SplatTable } from "./splatfile";
import { coarser } from "./splatlevels";
import { pack, type Packed } from "./splatpack";
import { type Filter, type Sight, Sorter } from "./splatsort";

export interface LoadRequest {
  readonly kind: "load";
  /** Names the splats from now on; those of any file before are forgotten, and their levels. */
  readonly id: number;
  readonly format: "spz" | "ply";
  readonly data: Uint8Array;
}

export interface LevelRequest {
  readonly kind: "level";
  readonly id: number;
  /** The file that is merged. */
  readonly of: number;
  /** Where the level is drawn: a newer one for the same place takes its. */
  readonly place: string;
  readonly filter: Filter;
  readonly count: number;
}

export interface SortRequest {
  readonly kind: "sort";
  /** Of the file or level that is meant: another one may have come meanwhile. */
  readonly id: number;
  readonly sight: Sight;
  readonly filter: Filter;
  /** To be filled. */
  readonly order: Uint32Array<ArrayBuffer>;
}

export interface Sorted {
  readonly order: Uint32Array<ArrayBuffer>;
  /** How many of them; null = what was meant is no longer here. */
  readonly count: number | null;
}

/** What is asked, with a number that the answer has, too. */
export interface Question {
  readonly number: number;
  readonly request: LoadRequest | LevelRequest | SortRequest;
}

/** ``packed`` is null where a newer file or level has made this one needless. */
export type Reply = { readonly packed: Packed | null } | { readonly sorted: Sorted } | { readonly failed: string };
export type Answer = Reply & { readonly number: number };

interface File {
  readonly id: number;
  readonly table: SplatTable;
  readonly sorter: Sorter;
  readonly levels: Map<string, { readonly id: number; readonly sorter: Sorter | null }>;
}

let file: File | null = null;
let before: Promise<void> = Promise.resolve();

function buffersOf(packed: Packed): ArrayBuffer[] {
  return [packed.places.buffer, packed.shapes.buffer, packed.sh.buffer];
}

function say(number: number, reply: Reply, given: ArrayBuffer[] = []): void {
  postMessage({ ...reply, number } satisfies Answer, { transfer: given });
}

async function load(number: number, request: LoadRequest): Promise<void> {
  const table = await readSplats(request);
  const packed = pack(table);
  file = { id: request.id, table, sorter: new Sorter(table), levels: new Map() };
  say(number, { packed }, buffersOf(packed));
}

function sort(number: number, { id, sight, filter, order }: SortRequest): void {
  const sorter = file?.id === id ? file.sorter : [...(file?.levels.values() ?? [])].find((level) => level.id === id)?.sorter;
  say(number, { sorted: { order, count: sorter ? sorter.sort(sight, filter, order) : null } }, [order.buffer]);
}

/** In pieces, between which others are answered: the picture goes on while splats are merged. */
async function merge(number: number, { id, of, place, filter, count }: LevelRequest): Promise<void> {
  const from = file;
  if (from?.id !== of) {
    say(number, { packed: null });
    return;
  }
  from.levels.set(place, { id, sorter: null });
  const work = coarser(from.table, filter, count);
  for (let step = work.next(); ; step = work.next()) {
    if (file !== from || from.levels.get(place)?.id !== id) {
      say(number, { packed: null });
      return;
    }
    if (step.done) {
      const packed = pack(step.value);
      from.levels.set(place, { id, sorter: new Sorter(step.value) });
      say(number, { packed }, buffersOf(packed));
      return;
    }
    await new Promise((resolve) => { setTimeout(resolve); });
  }
}

addEventListener("message", ({ data: { number, request } }: MessageEvent<Question>) => {
  before = before.then(async () => {
    if (request.kind === "load") await load(number, request);
    else if (request.kind === "sort") sort(number, request);
    else void merge(number, request).catch((error: unknown) => fail(number, error));
  }).catch((error: unknown) => fail(number, error));
});

function fail(number: number, error: unknown): void {
  say(number, { failed: error instanceof Error ? error.message : String(error) });
}
