// What the tools under the map ask for, made into a lens: order and choice of rows, scale, comparison.

import { limitOf, type Scale } from './colour'
import { tick } from './format'
import { beyond, plainLens } from './lens'
import type { Lens } from './load'
import type { Signal } from './signal'
import type { Store } from './store'
import { at, heldAxes, layOut, shares, type Table, yardstick } from './table'
import { type Cell, type HeatMap, type Label, type MapKey, mapName, type Pair, State } from './wire'

export interface Tooling {
  scale: 'symmetric' | 'clipped' | 'log'
  /** "" for the map's own order, "strongest", "place", or an axis of the rows. */
  sort: string
  filter: string
  /** 1: as large as there is room for. */
  zoom: number
  square: boolean
  /** What is subtracted, as `against` names it; "" for nothing. */
  minus: string
}

const FIRST: Tooling = { scale: 'symmetric', sort: '', filter: '', zoom: 1, square: false, minus: '' }

export const toolsOf = (store: Store): Signal<Tooling> => store.own('tools', FIRST)

export function change(store: Store, what: Partial<Tooling>): void {
  const now = toolsOf(store)
  now.value = { ...now.value, ...what }
}

export function lens(store: Store): Lens {
  const plain = plainLens(store)
  const { scale, sort, filter, zoom, square, minus } = toolsOf(store).value
  const other = candidates(store, plain.maps).find((c) => c.value === minus)
  const maps = other
    ? store.once('difference', [...plain.maps, ...other.maps], () =>
        plain.maps.map((m, i) => difference(m, other.maps[i] as HeatMap)),
      )
    : plain.maps
  const table = wholeTable(store, maps)
  const order = store.once('order', [...maps, table, sort, filter, store.pair], () =>
    table ? orderOf(table, maps, sort, readFilter(filter, table, store.pair)) : null,
  )
  const seen = store.once('scale', [...maps, scale], () => scaleOf(maps, scale))
  return { maps, order, scale: seen, zoom, square, minus: other?.full ?? '' }
}

/** All rows of the first map, in its own order. */
export function wholeTable(store: Store, maps: readonly HeatMap[]): Table | null {
  const [first] = maps
  const chosen = store.selection.value
  const held = heldAxes(first?.dims ?? []).map((axis) => chosen?.[axis])
  return store.once('whole', [first, ...held], () => (first ? layOut(first, chosen) : null))
}

// ---- scale

/** Share of the cells that a clipped scale shows within its limit. */
const KEPT = 0.98

export function scaleOf(maps: readonly HeatMap[], kind: Tooling['scale']): Scale {
  const whole = widest(maps)
  if (kind === 'clipped') {
    const sizes = Float64Array.from(
      [...shares(maps)].filter((s) => Number.isFinite(s) && s !== 0).map(Math.abs),
    )
    sizes.sort()
    const limit = rounded(sizes[Math.ceil(KEPT * sizes.length) - 1] ?? whole)
    const n = beyond(maps, limit)
    const least = tick(limit).slice(1)
    return { limit, log: false, note: `clipped: ${n} ${n === 1 ? 'cell exceeds' : 'cells exceed'} ${least}` }
  }
  const n = beyond(maps, whole)
  return { limit: whole, log: kind === 'log', note: n ? `${n} beyond` : '' }
}

/** Two digits, rounded up: the cell that sets the limit lies within it. */
function rounded(size: number): number {
  const unit = 10 ** (Math.floor(Math.log10(size)) - 1)
  return Number((Math.ceil(size / unit - 1e-3) * unit).toPrecision(2))
}

/** The limit of the maps; a difference of shares may well be twice the gap. */
function widest(maps: readonly HeatMap[]): number {
  const limit = limitOf(
    shares(maps),
    maps.every((m) => m.final),
  )
  return maps.some((m) => m.parts) && beyond(maps, limit) ? 2 : limit
}

// ---- rows

interface Test {
  keeps(row: Cell): boolean
  /** Smallest |share| that a kept row reaches somewhere. */
  least: number
}
export type Filter = Test | { error: string }

const WORDS: Record<string, string> = {
  dest: 'dest|from|position|pos',
  pos: 'pos|position',
  layer: 'layer|l',
  head: 'head|h',
}
const SIZE = /(?:\|?effect\|?\s*|share\s*)?(?:≥|>=|>)\s*(\d*\.?\d+)/g

const LIST = '(?:kv)?\\d+(?:\\s*[-–,]\\s*(?:kv)?\\d+)*'

/** Reads "layers 2-3", "head 4", "≥ .1", together or alone; a number alone is about the first axis of the rows. */
export function readFilter(text: string, table: Table, pair: Pair): Filter {
  let left = text.trim().toLowerCase()
  let least = 0
  left = left.replace(SIZE, (_, size: string) => {
    least = Math.max(least, Number(size))
    return ' '
  })
  const wanted: [axis: string, test: (label: Label) => boolean][] = []
  for (const axis of table.rowAxes) {
    const name = `(?<![\\w.])(?:${WORDS[axis] ?? axis})s?[ :=]*(${LIST})(?![\\w.])`
    left = left.replace(new RegExp(name, 'g'), (_, list: string) => {
      wanted.push([axis, inRanges(list)])
      return ' '
    })
  }
  left = left.replace(/\band\b|[\s,]+/g, ' ').trim()
  const [first] = table.rowAxes
  if (first && new RegExp(`^${LIST}$`).test(left)) {
    wanted.push([first, inRanges(left)])
    left = ''
  }
  const tokens = left && table.rowAxes.includes('dest')
  if (left && !tokens) return { error: `“${left}” is no row. Write “layers 2-3”, “head 4” or “≥ .1”.` }
  return {
    least,
    keeps: (row) =>
      wanted.every(([axis, test]) => test(row[axis] as Label)) &&
      (!tokens || (pair.clean_tokens[Number(row.dest)] ?? '').toLowerCase().includes(left)),
  }
}

function inRanges(list: string): (label: Label) => boolean {
  const ranges = list.split(',').map((part) => part.split(/[-–]/).map((n) => Number(n.replace(/\D/g, ''))))
  return (label) => {
    const n = Number(String(label).replace(/\D/g, ''))
    return ranges.some(([from = 0, to = from]) => n >= Math.min(from, to) && n <= Math.max(from, to))
  }
}

/** Numbers of the rows to show, in order; null when that is all of them as they are. */
export function orderOf(
  table: Table,
  maps: readonly HeatMap[],
  sort: string,
  filter: Filter,
): number[] | null {
  const test = 'error' in filter ? null : filter
  const axis = table.rowAxes.indexOf(sort) > 0 ? sort : ''
  if (!axis && sort !== 'strongest' && sort !== 'place' && !(test && filterOf(table, test))) return null
  const peaks = table.rows.map((_, r) => peak(table, maps, r))
  const kept = peaks.flatMap((p, r) =>
    !test || (test.keeps(table.rows[r] as Cell) && p.size >= test.least) ? [r] : [],
  )
  const size = (r: number): number => peaks[r]?.size ?? 0
  const place = (r: number): number => peaks[r]?.col ?? 0
  if (sort === 'strongest') kept.sort((a, b) => size(b) - size(a) || a - b)
  if (sort === 'place') kept.sort((a, b) => place(a) - place(b) || a - b)
  if (axis) {
    const order = table.map.coords[axis] ?? []
    const on = (r: number): number => order.indexOf(table.rows[r]?.[axis] as Label)
    kept.sort((a, b) => on(a) - on(b) || a - b)
  }
  return kept
}

/** Whether a filter leaves anything out by what it says, or by what the map has. */
const filterOf = (table: Table, test: Test): boolean =>
  test.least > 0 || table.rows.some((row) => !test.keeps(row))

/** The largest |share| of a row over all maps on screen, and its column; 0 for a row without values. */
function peak(table: Table, maps: readonly HeatMap[], row: number): { size: number; col: number } {
  let best = { size: 0, col: table.cols.length }
  for (const map of maps) {
    const { by } = yardstick(map)
    for (let c = 0; c < table.cols.length; c++) {
      const size = Math.abs((map.effect[at(table, row, c)] as number) / by)
      if (size > best.size) best = { size, col: c }
    }
  }
  return best
}

// ---- comparison

export interface Candidate {
  value: string
  /** What is other about it. */
  label: string
  full: string
  maps: HeatMap[]
}

/** Finished sweeps on this page with the same cells as those on screen. */
export function candidates(store: Store, maps: readonly HeatMap[]): Candidate[] {
  return store.once('candidates', [...maps, store.maps.value, store.spec.value], () => {
    const [first] = maps
    if (!first || !maps.every((m) => m.final && yardstick(m).share)) return []
    const cells = JSON.stringify([first.dims, first.coords])
    const fits = (m: HeatMap): boolean =>
      m.final &&
      m.key.pair === first.key.pair &&
      yardstick(m).share &&
      JSON.stringify([m.dims, m.coords]) === cells
    const both = maps.length > 1
    const all = [...store.maps.value.values()].filter(fits)
    return all.flatMap((one) => {
      if (both && one.key.direction !== first.key.direction) return []
      const others = maps.map((m) => (both ? store.map({ ...one.key, direction: m.key.direction }) : one))
      if (others.some((m, i) => !m || !fits(m) || mapName(m.key) === mapName((maps[i] as HeatMap).key)))
        return []
      const [label, full] = names(store, one.key, first.key, both)
      return [{ value: mapName({ ...one.key, pair: 'mean' }), label, full, maps: others as HeatMap[] }]
    })
  })
}

const TURNS = { denoising: 'denoise', noising: 'noise' }

function names(store: Store, key: MapKey, now: MapKey, both: boolean): [label: string, full: string] {
  const short = (k: MapKey): string =>
    store.spec.value.components.find((c) => c.name === k.component)?.short ?? k.component
  const parts = (k: MapKey): string[] => [
    short(k),
    both ? '' : TURNS[k.direction],
    k.metric.replace(/_/g, ' '),
  ]
  const here = parts(now)
  const all = parts(key)
  return [all.filter((p, i) => p !== here[i]).join(', '), all.filter((p) => p).join(', ')]
}

/** One map minus another, in shares of each one's gap. A cell that one of them lacks has no difference. */
export function difference(one: HeatMap, other: HeatMap): HeatMap {
  const [a, b] = [yardstick(one).by, yardstick(other).by]
  const effect = one.effect.map((v, i) => v / a - (other.effect[i] as number) / b)
  const state = one.state.map((s, i) => joined(s, other.state[i] as number))
  const { best: _, ...rest } = one
  return { ...rest, effect, state, gap: 1, unit: '', parts: [one, other] }
}

function joined(a: number, b: number): number {
  if (a === b) return a
  const missing = [State.Failed, State.NoPath, State.NoPosition, State.NotRun].find((s) => s === a || s === b)
  return missing ?? (a === State.Estimate || b === State.Estimate ? State.Estimate : State.Measured)
}
