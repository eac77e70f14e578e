// What is asked of Python for the chosen cells once a choice has settled, and what it answered.

import { same, together } from './gestures'
import type { Store } from './store'
import {
  type Attention,
  bytesOf,
  type Cell,
  type Dict,
  type Direction,
  directionsOf,
  type HeatMap,
  type Trouble,
} from './wire'

/** Milliseconds a choice must stand before Python is asked: arrow keys pass over many cells. */
const SETTLED = 60

export interface Spread {
  values: (number | null)[]
  mean: number | null
  low: number | null
  high: number | null
}

export type TokenRow = [token: string, before: number, after: number, kind: string]

/** What Python says of one cell. */
export interface Told {
  cell: Cell
  direction: Direction
  base: 'clean' | 'corrupted'
  spread: Partial<Record<Direction, Spread>>
  tokens?: TokenRow[]
  value?: number | null
  note?: string
}

interface Timer {
  said: string
  clock: ReturnType<typeof setTimeout> | undefined
}

const timer = (store: Store, kind: string): Timer =>
  store.own<Timer>(`asks ${kind}`, { said: '', clock: undefined }).value

/** Asks once the same question has stood for a moment; null is no question. */
function later(store: Store, kind: string, content: Dict | null): void {
  const held = timer(store, kind)
  const said = content ? JSON.stringify([content, store.shown.value]) : ''
  if (held.said === said) return
  held.said = said
  clearTimeout(held.clock)
  if (content) held.clock = setTimeout(() => store.ask(kind, content), SETTLED)
}

/** A cell with its axes in one order: Python sends back what it was told in an order of its own. */
const ordered = (cell: Cell): Cell =>
  Object.fromEntries(Object.entries(cell).sort(([a], [b]) => (a < b ? -1 : 1)))

/** Called after every drawing. Nothing is asked while a sweep runs: its worker would answer behind it anyway. */
export function askForCells(store: Store): void {
  const map = store.current[0]
  const ready = map && store.spec.value.can_run && store.status.value.state !== 'running'
  const cell = ready ? store.chosen : null
  const cells = ready ? together(store) : []
  const { layer } = store.looking
  later(store, 'cell', cell && { cell: ordered(cell), layer, gen: map?.gen })
  later(store, 'together', cells.length > 1 ? { cells: cells.map(ordered), gen: map?.gen } : null)
}

/** Lets no question out of a widget that is gone. */
export const quiet = (store: Store) => (): void => {
  for (const kind of ['cell', 'together']) clearTimeout(timer(store, kind).clock)
}

export interface Heard<T> {
  told: T | null
  error: Trouble | null
  /** Whether it is about what was chosen before. */
  old: boolean
}

/** What Python said last of a cell; nothing where none is chosen. */
export function heardOfCell(store: Store): Heard<Told> | null {
  const answer = store.answer('cell')
  const cell = store.chosen
  if (!answer || !cell || together(store).length > 1) return null
  const error = (answer.content.error as Trouble | undefined) ?? null
  const told = error ? null : (answer.content as unknown as Told)
  const shown = directionsOf(store.shown.value.direction)[0]
  const old = !same(answer.asked.cell as Cell, cell) || (!!told && told.direction !== shown)
  return { told, error, old: old || store.waits('cell') }
}

export interface Joint {
  together: Partial<Record<Direction, number | null>>
  sum: Partial<Record<Direction, number | null>>
}

export function heardTogether(store: Store): Heard<Joint> | null {
  const answer = store.answer('together')
  const cells = together(store)
  if (!answer || cells.length < 2) return null
  const error = (answer.content.error as Trouble | undefined) ?? null
  const asked = answer.asked.cells as Cell[]
  const old = asked.length !== cells.length || !cells.every((cell, i) => same(cell, asked[i]))
  return {
    told: error ? null : (answer.content as unknown as Joint),
    error,
    old: old || store.waits('together'),
  }
}

interface Kept {
  base?: Attention
  content?: Dict
  made?: Attention
}

/** A layer's attention with the patched run as its third, where Python has sent that for the chosen cell. */
export function withPatched(store: Store, layer: number): Attention | undefined {
  const base = store.attentionOf(layer)
  const answer = store.answer('cell')
  const heard = heardOfCell(store)
  if (!base || !answer || !heard || heard.old || answer.content.layer !== layer) return base
  const kept = store.own<Kept>('patched', {}).value
  if (kept.base === base && kept.content === answer.content && kept.made) return kept.made
  const bytes = bytesOf(answer.content, answer.buffers, 0)
  const size = base.heads * base.dest * base.src
  if (bytes?.length !== 4 * size) return base
  const values = new Float32Array(3 * size)
  values.set(base.values.subarray(0, 2 * size))
  values.set(new Float32Array(bytes.slice().buffer), 2 * size)
  kept.base = base
  kept.content = answer.content
  kept.made = { ...base, values }
  return kept.made
}

export const hasPatched = (a: Attention): boolean => a.values.length >= 3 * a.heads * a.dest * a.src

/** The estimates that belong to a map. */
export function estimateOf(store: Store, map: HeatMap): HeatMap | undefined {
  for (const one of store.estimates.value.values())
    if (JSON.stringify(one.key) === JSON.stringify(map.key) && one.effect.length === map.effect.length)
      return one
  return undefined
}
