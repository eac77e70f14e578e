// What travels between kernel and page: small synced traits, and versioned messages with arrays in binary buffers.

export const VERSION = 1;

const MAKERS = { float32: Float32Array, int8: Int8Array, uint8: Uint8Array };

export type Direction = "denoising" | "noising";
export type Axis = "layer" | "head" | "pos" | "dest" | "src";

/** What is asked for; the controls and the sentence say the same. */
export interface Spec {
  component: string;
  over: Axis[];
  direction: Direction | "both";
  metric: string;
  corruption: string;
}

/** The chosen cell by axis, and the head whose attention is shown. `pair` is −1 for the mean over pairs. */
export interface Selection {
  at: Partial<Record<Axis, number>> | null;
  look: [number, number] | null;
  pair: number;
  pinned: boolean;
}

export interface Problem {
  kind: string;
  what: string;
  rows: [string, string][];
  problems: Problem[];
}

export interface Status {
  state: "idle" | "running" | "done" | "cancelled" | "failed";
  gen: number;
  text: string;
  error: Problem | null;
}

export interface Progress {
  done: number;
  total: number;
}

/** The synced state. Screen state (hover, width, theme) is another type and never leaves the page. */
export interface Traits {
  spec: Spec;
  selection: Selection;
  status: Status;
  progress: Progress;
}

/** Something to choose; `why` says why it cannot be chosen, "" where it can. */
export interface Choice {
  name: string;
  label: string;
  why: string;
}

export interface Component extends Choice {
  over: Axis[];
}

export interface Metric extends Choice {
  unit: string;
}

export interface Pair {
  clean: string;
  corrupted: string;
  answer: string[];
  wrong: string[];
  clean_tokens: string[];
  corrupted_tokens: string[];
  differs: number[];
  aligned: [number, number][];
  clean_end: number;
  corrupted_end: number;
  has_bos: boolean;
  clean_top: [string, number][];
  corrupted_top: [string, number][];
}

export interface Bench {
  live: boolean;
  model: { name: string; layers: number; heads: number; kv_heads: number; device: string };
  components: Component[];
  metrics: Metric[];
  directions: Choice[];
  exports: string[];
  pairs: Pair[];
  baselines: Record<string, { clean: number[]; corrupted: number[] }>;
}

export interface SweepMeta {
  component: string;
  over: Axis[];
  sizes: number[];
  head_labels: string[];
  directions: Direction[];
  metrics: string[];
  complete: boolean;
  warnings: string[];
  card: string;
}

export interface AttentionMeta {
  pair: number;
  /** The one head these patterns are of; null where they are all heads'. */
  head: [number, number] | null;
  sizes: [number, number];
  why: string;
}

export interface FileMeta {
  name: string;
  mime: string;
}

export interface ArrayPart {
  name: string;
  dtype: keyof typeof MAKERS;
  shape: number[];
  /** Where this part begins, in elements of the whole array. */
  offset: number;
  bytes: number;
  b64?: string;
}

export interface Message {
  v: number;
  type: "bench" | "sweep" | "attention" | "file";
  id: number;
  gen: number;
  meta: unknown;
  /** How many messages with this id there are; each carries some of the arrays, or parts of them. */
  parts: number;
  arrays: ArrayPart[];
}

export type Numbers = Float32Array | Int8Array | Uint8Array;

export interface Delivery {
  type: Message["type"];
  gen: number;
  meta: unknown;
  arrays: Map<string, Numbers>;
}

export type Ask =
  | { type: "need"; plain: boolean }
  | { type: "ack"; of: number }
  | { type: "run"; spec: Spec; again: boolean }
  | { type: "edit"; pair: number; field: "clean" | "corrupted" | "answer" | "wrong"; text: string }
  | { type: "restore" }
  | { type: "cancel" }
  | { type: "attention"; pair: number; head: [number, number] }
  | { type: "export"; format: string };

/** Puts messages that came in parts together, and notices buffers that a host lost on the way. */
export class Assembly {
  private open = new Map<number, { meta: unknown; arrays: Map<string, Numbers>; left: number }>();

  /** Returns the delivery once its last part is here, "broken" when a buffer is missing, else null. */
  take(message: Message, buffers: readonly unknown[]): Delivery | "broken" | null {
    const entry = this.open.get(message.id) ?? { meta: message.meta, arrays: new Map(), left: message.parts };
    this.open.set(message.id, entry);
    for (const [number, part] of message.arrays.entries()) {
      const bytes = part.b64 === undefined ? viewed(buffers[number]) : unbase64(part.b64);
      if (bytes === null || bytes.byteLength !== part.bytes) {
        this.open.delete(message.id);
        return "broken";
      }
      fill(entry.arrays, part, bytes);
    }
    entry.left -= 1;
    if (entry.left > 0) return null;
    this.open.delete(message.id);
    return { type: message.type, gen: message.gen, meta: entry.meta, arrays: entry.arrays };
  }
}

function fill(arrays: Map<string, Numbers>, part: ArrayPart, bytes: Uint8Array): void {
  const Maker = MAKERS[part.dtype];
  const array = arrays.get(part.name) ?? new Maker(part.shape.reduce((a, b) => a * b, 1));
  arrays.set(part.name, array);
  // A copy: buffers need not start at a multiple of the element's size.
  array.set(new Maker(bytes.slice().buffer), part.offset);
}

function viewed(buffer: unknown): Uint8Array | null {
  if (!ArrayBuffer.isView(buffer)) return null;
  return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
}

function unbase64(text: string): Uint8Array {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}
