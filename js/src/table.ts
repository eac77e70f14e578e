// How a map of any axes lies on a page: which axis is columns, which cells are rows.

import { type Cell, type HeatMap, type Label, type Pair, type Spec, State } from './wire'

export interface Table {
  map: HeatMap
  /** Axis along the columns. */
  col: string
  cols: Label[]
  /** One entry per row: the coordinates that are the same along it. */
  rows: Cell[]
  rowAxes: string[]
  /** Flat index into `effect` of each row's first cell, and the step from column to column. */
  start: number[]
  step: number
  /** Axes that are held at one value (the chosen head of a pattern map). */
  fixed: Cell
  /** How many rows the map has; `rows` may be some of them. */
  whole: number
  /** Rows stand in another order than the map's, so neighbours need not belong together. */
  sorted: boolean
}

const COLUMN_ORDER = ['src', 'pos', 'dest', 'head', 'layer']

/** Axes of which one value is shown at a time: those of the head in a map of patterns. */
export const heldAxes = (dims: readonly string[]): string[] =>
  dims.includes('dest') && dims.includes('src') ? dims.filter((a) => a === 'layer' || a === 'head') : []

/**
 * Lays a map out; of a map with `dest` and `src` only the chosen layer and head is shown.
 * `order` names the rows to show and their order, by their numbers in the map.
 */
export function layOut(map: HeatMap, chosen: Cell | null, order: readonly number[] | null = null): Table {
  const dims = map.dims
  const col =
    dims.length === 1
      ? (dims[0] as string)
      : (COLUMN_ORDER.find((a) => dims.includes(a)) ?? (dims.at(-1) as string))
  const held = heldAxes(dims)
  const rowAxes = dims.filter((a) => a !== col && !held.includes(a))
  const strides = dims.map((_, i) => map.shape.slice(i + 1).reduce((a, b) => a * b, 1))
  const fixed: Cell = {}
  let offset = 0
  const best = held.length ? unravel(map, strongest(map)) : {}
  for (const axis of held) {
    const labels = map.coords[axis] ?? []
    const wanted = chosen?.[axis] ?? best[axis]
    const at = Math.max(0, wanted === undefined ? 0 : labels.indexOf(wanted))
    fixed[axis] = labels[at] ?? at
    offset += at * (strides[dims.indexOf(axis)] as number)
  }
  let rows: { cell: Cell; at: number }[] = [{ cell: {}, at: offset }]
  for (const axis of rowAxes) {
    const stride = strides[dims.indexOf(axis)] as number
    rows = rows.flatMap((row) =>
      (map.coords[axis] ?? []).map((label, i) => ({
        cell: { ...row.cell, [axis]: label },
        at: row.at + i * stride,
      })),
    )
  }
  const whole = rows.length
  if (order) rows = order.flatMap((r) => rows[r] ?? [])
  return {
    map,
    col,
    cols: map.coords[col] ?? [],
    rows: rows.map((r) => r.cell),
    rowAxes,
    start: rows.map((r) => r.at),
    step: strides[dims.indexOf(col)] as number,
    fixed,
    whole,
    sorted: !!order?.some((r, i) => i > 0 && r < (order[i - 1] as number)),
  }
}

export const at = (t: Table, row: number, col: number): number => (t.start[row] as number) + col * t.step

export const cellOf = (t: Table, row: number, col: number): Cell => ({
  ...t.fixed,
  ...t.rows[row],
  [t.col]: t.cols[col] as Label,
})

/** Row and column of a selection, or null when it lies outside of what is shown. */
export function find(t: Table, cell: Cell | null): [row: number, col: number] | null {
  if (!cell) return null
  if (Object.entries(t.fixed).some(([axis, label]) => cell[axis] !== label)) return null
  const col = t.cols.indexOf(cell[t.col] as Label)
  const row = t.rows.findIndex((r) => t.rowAxes.every((axis) => r[axis] === cell[axis]))
  return row < 0 || col < 0 ? null : [row, col]
}

/** Flat index of a cell in a map with the same axes, or −1. */
export function indexIn(map: HeatMap, cell: Cell | null): number {
  if (!cell) return -1
  let flat = 0
  for (const [i, axis] of map.dims.entries()) {
    const k = (map.coords[axis] ?? []).indexOf(cell[axis] as Label)
    if (k < 0) return -1
    flat = flat * (map.shape[i] as number) + k
  }
  return flat
}

export function unravel(map: HeatMap, index: number): Cell {
  const cell: Cell = {}
  let rest = index
  for (let i = map.dims.length - 1; i >= 0; i--) {
    const n = map.shape[i] as number
    const axis = map.dims[i] as string
    cell[axis] = (map.coords[axis] ?? [])[rest % n] ?? rest % n
    rest = Math.floor(rest / n)
  }
  return cell
}

/** Flat index of the largest |effect|, 0 when there is none. */
export function strongest(map: HeatMap): number {
  if (map.best !== undefined) return map.best
  let best = 0
  let most = -1
  map.effect.forEach((v, i) => {
    if (Math.abs(v) > most) {
      most = Math.abs(v)
      best = i
    }
  })
  map.best = best
  return best
}

export const NO_GAP = 1e-4

/** What an effect is divided by for its colour: the gap, or the largest effect where there is no gap. */
export function yardstick(map: HeatMap): { by: number; share: boolean } {
  if (Math.abs(map.gap) >= NO_GAP) return { by: map.gap, share: true }
  return { by: Math.abs(map.effect[strongest(map)] ?? 0) || 1, share: false }
}

/** All effects of the maps as the colour sees them. */
export function* shares(maps: readonly HeatMap[]): Generator<number> {
  for (const map of maps) {
    const { by } = yardstick(map)
    for (const v of map.effect) yield v / by
  }
}

/** Why a cell shows no measured number; "" where it shows one. */
export function reason(state: number): string {
  if (state === State.Exact) return 'exactly 0 by construction, not run'
  if (state === State.NotRun) return 'not run'
  if (state === State.NoPosition) return 'no such position in this pair'
  if (state === State.NoPath) return 'no causal path: the receiver comes first'
  if (state === State.Failed) return 'no value: the run gave not-a-number'
  return state === State.Estimate ? 'estimate' : ''
}

/** "layer 4, head 2, position 8". */
export function place(cell: Cell): string {
  const words: Record<string, string> = { pos: 'position', dest: 'from', src: 'to' }
  const order = ['layer', 'head', 'pos', 'dest', 'src']
  return order
    .filter((axis) => axis in cell)
    .map((axis) => `${words[axis] ?? axis} ${cell[axis]}`)
    .join(', ')
}

/** The token at a cell's position on the clean side. */
export function tokenAt(cell: Cell, pair: Pair): string | undefined {
  const pos = cell.pos ?? cell.src ?? cell.dest
  return typeof pos === 'number' ? pair.clean_tokens[pos] : undefined
}

/** "resid_pre[4, 8]", as Python names it. */
export const code = (component: string, cell: Cell, spec: Pick<Spec, 'over'>): string =>
  `${component}[${spec.over.map((axis) => (axis in cell ? cell[axis] : ':')).join(', ')}]`
