// What the controls say, and how it follows from what Python says.

import type { View } from './sentence'
import { strongest, unravel } from './table'
import { type HeatMap, type Label, OTHER, type Spec } from './wire'

export type Mode = 'clean' | 'corrupted' | 'patched' | 'difference'
export interface Shown extends View {
  pair: number
}
export interface Look {
  dest: number | null
  src: number | null
}
export interface Exported {
  kind: string
  filename?: string
  mime?: string
  text?: string
  bytes?: Uint8Array
}
export type Change = Partial<Omit<Shown, 'over'>> & { over?: string[] }

export const defaultOver = (component: string): string[] =>
  /^(z|q|k|v|pattern|scores|head_out)$/.test(component)
    ? ['layer', 'head']
    : component === 'embed'
      ? ['pos']
      : ['layer', 'pos']

/** Query head of a label of the head axis: "kv1" stands for the first head of its group. */
export function headNumber(label: Label | undefined, spec: Pick<Spec, 'model'>): number | null {
  if (typeof label === 'number') return label
  const kv = /^kv(\d+)$/.exec(label ?? '')
  return kv ? Number(kv[1]) * Math.max(1, Math.round(spec.model.n_heads / spec.model.n_kv_heads)) : null
}

/** Layer and head of the strongest cell of the first map over heads. */
export function strongestHead(maps: readonly HeatMap[], spec: Spec): { layer: number; head: number } | null {
  const map = maps.find((m) => m.dims.includes('head') && m.dims.includes('layer'))
  if (!map) return null
  const cell = unravel(map, strongest(map))
  const head = headNumber(cell.head, spec)
  return head === null ? null : { layer: Number(cell.layer), head }
}

export const shownOf = ({ component, over, direction, metric, pair, corruption = OTHER }: Spec): Shown => ({
  component,
  over,
  direction,
  metric,
  pair,
  corruption,
})
/** What all maps belong to: with other prompts they are worth nothing. */
export const prompts = (spec: Spec): string =>
  JSON.stringify(spec.pairs.map((p) => [p.clean, p.corrupted, p.answer, p.wrong]))
