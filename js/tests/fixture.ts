// One small sweep in every form the page meets it, and a stand-in for anywidget's model.

import type { Listener, Model } from '../src/host'
import { type Dict, type Pair, type Spec, State } from '../src/wire'

export const TOKENS = ['<s>', 'When', ' Mary', ' and', ' John']

export const pair = (more: Partial<Pair> = {}): Pair => ({
  clean: 'When Mary and John',
  corrupted: 'When Anna and John',
  answer: [' Mary'],
  wrong: [' Anna'],
  clean_tokens: TOKENS,
  corrupted_tokens: ['<s>', 'When', ' Anna', ' and', ' John'],
  differs: [2],
  has_bos: true,
  clean_end: 4,
  corrupted_end: 4,
  clean_top: [
    [' Mary', 0.8],
    [' Anna', 0.1],
  ],
  corrupted_top: [
    [' Anna', 0.7],
    [' he', 0.2],
  ],
  metrics: { logit_diff: { clean: 4.8, corrupted: -3.3 } },
  ...more,
})

const NAMES = ['resid_pre', 'resid_mid', 'resid_post', 'attn_out', 'mlp_out', 'z', 'q', 'k', 'v', 'pattern']

export const spec = (more: Partial<Spec> = {}): Spec => ({
  pairs: [pair()],
  pair: 0,
  component: 'resid_pre',
  over: ['layer', 'pos'],
  direction: 'denoising',
  metric: 'logit_diff',
  metrics: [
    { name: 'logit_diff', unit: 'logit', label: 'logit difference' },
    { name: 'prob', unit: '', label: 'probability' },
  ],
  components: NAMES.map((name) => ({
    name,
    label: name,
    short: name,
    works: name !== 'mlp_out',
    reason: 'no MLP here',
  })),
  model: { name: 'tiny', n_layers: 2, n_heads: 2, n_kv_heads: 2, device: 'cpu' },
  warnings: [],
  card: 'nbpatch card',
  can_run: true,
  exports: ['png', 'csv', 'html', 'python', 'magic'],
  ...more,
})

export const EFFECT = [0, 0, 4.05, 0, 0, 0, 0, 7.776, Number.NaN, -0.81]
export const STATE = [
  State.Exact,
  State.Exact,
  0,
  0,
  0,
  State.Exact,
  State.NotRun,
  0,
  State.Failed,
  State.Estimate,
]

export const head = (more: Dict = {}): Dict => ({
  v: 1,
  type: 'map',
  gen: 1,
  key: {
    component: 'resid_pre',
    over: ['layer', 'pos'],
    direction: 'denoising',
    metric: 'logit_diff',
    pair: 0,
  },
  direction: 'denoising',
  dims: ['layer', 'pos'],
  shape: [2, 5],
  coords: { layer: [0, 1], pos: [0, 1, 2, 3, 4] },
  unit: 'logit',
  gap: 8.1,
  base: -3.3,
  clean: 4.8,
  corrupted: -3.3,
  name: 'effect',
  final: true,
  ...more,
})

export const keyed = (change: Dict): Dict => ({ ...(head().key as Dict), ...change })
export const floatBytes = (values: readonly number[]): ArrayBuffer => new Float32Array(values).buffer
export const stateBytes = (values: readonly number[]): ArrayBuffer => new Uint8Array(values).buffer
export const BUFFERS = (): ArrayBuffer[] => [floatBytes(EFFECT), stateBytes(STATE)]

export const to64 = (buffer: ArrayBuffer): string => btoa(String.fromCharCode(...new Uint8Array(buffer)))

export const heads = (more: Dict = {}): Dict =>
  head({
    key: keyed({ component: 'z', over: ['layer', 'head'] }),
    dims: ['layer', 'head'],
    shape: [2, 2],
    coords: { layer: [0, 1], head: [0, 1] },
    ...more,
  })

export const ATTENTION: Dict = { v: 1, type: 'attention', layer: 0, head_count: 2, shape: [2, 2, 5, 5] }
export const weights = (): Float32Array => Float32Array.from({ length: 100 }, (_, i) => (i % 7) / 10)

export interface Fake extends Model {
  data: Dict
  sent: Dict[]
  /** How many handlers are on. */
  count(): number
  change(name: string, value: unknown): void
  post(content: Dict, buffers?: ArrayBuffer[]): void
  fire(event: string): void
}

export function fakeModel(first: Dict = {}): Fake {
  const on = new Map<string, Set<Listener>>()
  const tell = (event: string, ...args: unknown[]) => {
    for (const handler of [...(on.get(event) ?? [])]) handler(...args)
  }
  const data: Dict = {
    spec: spec(),
    selection: null,
    brushed: [],
    status: { state: 'idle', gen: 0 },
    error: null,
    schema_version: 1,
    ...first,
  }
  const sent: Dict[] = []
  return {
    data,
    sent,
    get: (name) => data[name],
    set: (name, value) => {
      data[name] = value
    },
    save_changes() {},
    on: (event, handler) => void on.set(event, (on.get(event) ?? new Set()).add(handler)),
    off: (event, handler) => void on.get(event)?.delete(handler),
    send: (content) => void sent.push(content),
    count: () => [...on.values()].reduce((n, set) => n + set.size, 0),
    change(name, value) {
      data[name] = value
      tell(`change:${name}`)
    },
    fire: tell,
    post: (content, buffers = []) => tell('msg:custom', content, buffers),
  }
}
