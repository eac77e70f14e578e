// What travels between Python and the page, and the ways to read it. Version 1.

export const VERSION = 1

/** The corruption that takes values from the other prompt of a pair. */
export const OTHER = 'counterfactual'

export type Direction = 'denoising' | 'noising'
export type Choice = Direction | 'both'
export type Label = number | string
export type Cell = Record<string, Label>
export type Top = [token: string, prob: number][]

export interface Pair {
  clean: string
  corrupted: string
  answer: string[]
  wrong: string[]
  clean_tokens: string[]
  corrupted_tokens: string[]
  differs: number[]
  has_bos: boolean
  clean_end: number
  corrupted_end: number
  clean_top: Top
  corrupted_top: Top
  metrics: Record<string, { clean: number; corrupted: number }>
  /** Clean and corrupted positions that stand for each other; absent where all do. */
  aligned?: [number, number][]
}

export interface Spec {
  pairs: Pair[]
  pair: number
  component: string
  over: string[]
  direction: Choice
  /** Where values come from; absent in pages of older versions: the other prompt. */
  corruption?: string
  corruptions?: { name: string; label: string; off: string; words: string }[]
  metric: string
  metrics: { name: string; unit: string; label: string }[]
  components: { name: string; label: string; short: string; works: boolean; reason: string }[]
  model: { name: string; n_layers: number; n_heads: number; n_kv_heads: number; device: string }
  warnings: string[]
  /** The field that each warning concerns; null for one about the sweep. */
  concerns?: (string | null)[]
  /** Pairs that were there before, newest first. */
  history?: Past
  /** What is known of the prompts, in a widget that edits them and runs nothing. */
  draft?: Dict
  card: string
  can_run: boolean
  /** What of the widget is shown: all of it, or one view by itself. */
  view?: 'workbench' | 'prompts' | 'direction' | 'map' | 'attention' | 'circuit'
  exports: string[]
  /** Of a circuit by itself: how many edges are kept, and a count of how often Python said so. */
  kept?: { n: number; by: number }
}

export interface Past {
  undo: boolean
  redo: boolean
  at: number
  items: { at: number; text: string; failed: boolean }[]
}

export interface Status {
  state: 'idle' | 'running' | 'done' | 'cancelled' | 'error'
  text: string
  done: number
  total: number
  seconds_left?: number | null
  gen: number
}

export interface Trouble {
  title: string
  lines: string[]
  field?: string
  /** The pair that could not be run, as it was typed. */
  typed?: { pair: number; texts: Record<string, string> }
  /** What Python was doing, for an error that nobody expected. */
  traceback?: string
  /** A user's callback raised it; the sweep is whole. */
  callback?: boolean
}

export interface MapKey {
  component: string
  over: string[]
  direction: Direction
  corruption?: string
  metric: string
  pair: number | 'mean'
}

export const State = {
  Measured: 0,
  Exact: 1,
  NotRun: 2,
  NoPosition: 3,
  Failed: 4,
  NoPath: 5,
  Estimate: 6,
} as const

export interface HeatMap {
  gen: number
  key: MapKey
  dims: string[]
  shape: number[]
  coords: Record<string, Label[]>
  unit: string
  gap: number
  base: number
  clean: number
  corrupted: number
  final: boolean
  /** Whether its numbers are estimates of what a sweep will find. */
  estimate?: boolean
  effect: Float32Array
  state: Uint8Array
  /** Index of the largest |effect| once it was looked for. */
  best?: number
  /** Of a difference of two maps: the two. */
  parts?: readonly [HeatMap, HeatMap]
}

export interface Attention {
  layer: number
  pair: number
  heads: number
  dest: number
  src: number
  /** [run (clean, corrupted), head, dest, src] */
  values: Float32Array
}

export interface StaticDocument {
  v: number
  spec: Spec
  maps: Dict[]
  attention?: Dict[]
  selection?: Cell | null
  brushed?: Cell[]
}

export type Dict = Record<string, unknown>
export type Buffers = readonly unknown[]

export const isDict = (x: unknown): x is Dict => typeof x === 'object' && x !== null && !Array.isArray(x)

export function bytesOf64(text: string): Uint8Array {
  const raw = atob(text)
  const bytes = new Uint8Array(raw.length)
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i)
  return bytes
}

/** The bytes of buffer `i` of a message: a binary buffer, else base64 text under `name` or in `data64`. */
export function bytesOf(message: Dict, buffers: Buffers, i: number, name?: string): Uint8Array | null {
  const buffer = buffers[i]
  if (buffer instanceof ArrayBuffer) return new Uint8Array(buffer)
  if (ArrayBuffer.isView(buffer)) return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength)
  const list = message.data64
  const texts = [name && message[name], Array.isArray(list) ? list[i] : i === 0 && list]
  const text = texts.find((t) => typeof t === 'string' && t !== '')
  return typeof text === 'string' ? bytesOf64(text) : null
}

/** Little-endian float32, copied so that any byte offset will do. */
const floats = (bytes: Uint8Array): Float32Array => new Float32Array(bytes.slice().buffer)
const size = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1)

export function decodeMap(message: Dict, buffers: Buffers): HeatMap | null {
  const effect = bytesOf(message, buffers, 0, 'effect64')
  const state = bytesOf(message, buffers, 1, 'state64')
  const shape = message.shape as number[]
  if (!effect || !state || !Array.isArray(shape) || !isDict(message.key)) return null
  const count = size(shape)
  if (effect.length !== 4 * count || state.length !== count) return null
  const head = message as unknown as Omit<HeatMap, 'effect' | 'state'>
  const direction = (message.direction ?? head.key.direction) as Direction
  return {
    ...head,
    gen: Number(message.gen ?? 0),
    key: { ...head.key, direction },
    effect: floats(effect),
    state: state.slice(),
  }
}

export function decodeAttention(message: Dict, buffers: Buffers, pair: number): Attention | null {
  const bytes = bytesOf(message, buffers, 0, 'data64')
  const shape = message.shape as number[]
  if (!bytes || !Array.isArray(shape) || shape.length !== 4 || bytes.length !== 4 * size(shape)) return null
  const [, heads = 0, dest = 0, src = 0] = shape
  return {
    layer: Number(message.layer),
    pair: Number(message.pair ?? pair),
    heads,
    dest,
    src,
    values: floats(bytes),
  }
}

export const mapName = (key: MapKey): string =>
  JSON.stringify([key.component, key.over, key.direction, key.metric, key.pair, key.corruption ?? OTHER])

export const directionsOf = (choice: Choice): Direction[] =>
  choice === 'both' ? ['denoising', 'noising'] : [choice]
