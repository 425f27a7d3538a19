// Reads splat files and puts splats in order, beside the page's own thread. Answers come in the order of the questions.
import { readSplats } from "./splatfile";
import { pack, type Packed } from "./splatpack";
import { type Filter, type Sight, Sorter } from "./splatsort";

export interface LoadRequest {
  readonly kind: "load";
  readonly id: number;
  readonly format: "spz" | "ply";
  readonly data: Uint8Array;
}

export interface SortRequest {
  readonly kind: "sort";
  /** Of the loaded file that is meant: another one may have come meanwhile. */
  readonly id: number;
  readonly sight: Sight;
  readonly filter: Filter;
  /** To be filled. */
  readonly order: Uint32Array<ArrayBuffer>;
}

export interface Sorted {
  readonly order: Uint32Array<ArrayBuffer>;
  /** How many of them; null = the file is no longer loaded. */
  readonly count: number | null;
}

export type Request = LoadRequest | SortRequest;
export type Answer = { readonly packed: Packed } | { readonly sorted: Sorted } | { readonly failed: string };

let loaded = -1;
let sorter: Sorter | null = null;
let before: Promise<void> = Promise.resolve();

async function answer(request: Request): Promise<void> {
  if (request.kind === "sort") {
    const count = request.id === loaded && sorter ? sorter.sort(request.sight, request.filter, request.order) : null;
    postMessage({ sorted: { order: request.order, count } } satisfies Answer, { transfer: [request.order.buffer] });
    return;
  }
  const table = await readSplats(request);
  const packed = pack(table);
  const { count, positions, scales, opacities } = table;
  sorter = new Sorter({ count, positions, scales, opacities });
  loaded = request.id;
  postMessage({ packed } satisfies Answer, { transfer: [packed.places.buffer, packed.shapes.buffer, packed.sh.buffer] });
}

addEventListener("message", ({ data }: MessageEvent<Request>) => {
  before = before.then(() => answer(data)).catch((error: unknown) => {
    postMessage({ failed: error instanceof Error ? error.message : String(error) } satisfies Answer);
  });
});
