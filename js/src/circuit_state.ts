// What a circuit view keeps on its page, and what it asks Python.

import type { Answer } from './asking'
import { decode, type Edge, type Faithful, nearest, type Scored, type Sign } from './circuit_data'
import type { NodeBox } from './circuit_layout'
import type { Store } from './store'
import type { Cell, Trouble } from './wire'

const WAIT = 150

export interface Controls {
  method: string
  positions: boolean
  show: Sign
  /** Pairs on which the kept edges are run. */
  on: 'same' | 'others'
  /** How many rows of the table are shown. */
  rows: number
}

const FIRST: Controls = { method: 'eap-ig', positions: true, show: 'all', on: 'same', rows: 12 }

export const controls = (store: Store): Controls => store.own('circuit.controls', FIRST).value

export function control(store: Store, change: Partial<Controls>): void {
  store.own('circuit.controls', FIRST).value = { ...controls(store), ...change }
}

export const isAlone = (store: Store): boolean => store.spec.value.view === 'circuit'

// ---- how many edges are kept

interface Wanted {
  n: number
  by: number
}

const wanted = (store: Store) => store.own<Wanted | null>('circuit.n', null)
const moving = (store: Store) => store.own('circuit.moving', false)

/** How many edges are kept: as set last, here or in Python. */
export function keptNumber(store: Store, data: Scored): number {
  const [here, there] = [wanted(store).value, store.spec.value.kept]
  const n = here && here.by === (there?.by ?? 0) ? here.n : (there?.n ?? data.start)
  return Math.min(n, data.total)
}

/** Keeps another number of edges; Python is asked once the slider has rested. */
export function keep(store: Store, data: Scored, n: number): void {
  const timer = store.own('circuit.timer', { id: 0 }).value
  clearTimeout(timer.id)
  timer.id = Number(
    setTimeout(() => {
      moving(store).value = false
    }, WAIT),
  )
  moving(store).value = true
  wanted(store).value = { n: nearest(data, n), by: store.spec.value.kept?.by ?? 0 }
}

// ---- what Python says

export interface Told {
  data: Scored | null
  faithful: Faithful | null
  /** Whether what is shown of the faithfulness is of other edges than those kept. */
  old: boolean
  waits: boolean
  error: Trouble | null
  unfaithful: Trouble | null
}

const troubleOf = (content: Record<string, unknown> | undefined): Trouble | null =>
  (content?.error as Trouble | undefined) ?? null

/** Asks for what is missing and returns what is there. */
export function told(store: Store): Told {
  const { method, positions, on } = controls(store)
  const scoring = isAlone(store) ? {} : { method, positions }
  store.ask('circuit', scoring)
  const answer = store.answer('circuit')
  const error = troubleOf(answer?.content)
  const last = store.own<{ of?: Answer; data?: Scored | null }>('circuit.decoded', {}).value
  if (last.of !== answer) Object.assign(last, { of: answer, data: error ? null : decode(answer) })
  const data = last.data ?? null
  const waits = store.waits('circuit')
  if (data && !waits && !moving(store).value)
    store.ask('faithful', { ...scoring, n: keptNumber(store, data), on: data.others ? on : 'same' })
  const said = store.answer('faithful')
  const unfaithful = troubleOf(said?.content)
  const faithful = said && !unfaithful ? (said.content as unknown as Faithful) : null
  const old = !data || faithful?.n !== keptNumber(store, data) || waits || store.waits('faithful')
  return { data, faithful, old, waits, error, unfaithful }
}

// ---- what is chosen

export type Picked = { edge: string } | { node: string; pos: number } | null

export function picked(store: Store): Picked {
  if (!isAlone(store)) return store.own<Picked>('circuit.picked', null).value
  const cell = store.selection.value
  if (typeof cell?.edge === 'string') return { edge: cell.edge }
  return typeof cell?.node === 'string' ? { node: cell.node, pos: Number(cell.pos ?? -1) } : null
}

export function pick(store: Store, next: Picked): void {
  if (!isAlone(store)) {
    store.own<Picked>('circuit.picked', null).value = next
    return
  }
  const cell: Cell | null =
    next && ('edge' in next || next.pos >= 0) ? { ...next } : next && { node: next.node }
  store.choose(cell)
}

export const hovered = (store: Store) => store.own<string | null>('circuit.hover', null)

const NAMES = { embed: 'embed', logits: 'logits', mlp: 'm', head: 'a' } as const

/** A node as Python writes it: "a2.1". */
export const nameOf = ({ end }: Pick<NodeBox, 'end'>): string =>
  end.kind === 'head' ? `a${end.layer}.${end.head}` : end.kind === 'mlp' ? `m${end.layer}` : NAMES[end.kind]

export const isPicked = (now: Picked, node: NodeBox): boolean =>
  !!now && 'node' in now && now.node === nameOf(node) && (now.pos < 0 || now.pos === node.pos)

/** Whether an edge is chosen, or one end of it is. */
export function touches(now: Picked, edge: Edge): boolean {
  if (!now) return false
  if ('edge' in now) return now.edge === edge.name
  const sends =
    nameOf({ end: edge.from }) === now.node && (now.pos < 0 || edge.pos < 0 || edge.pos === now.pos)
  const later = edge.input === 'k' || edge.input === 'v'
  const layer = edge.to.kind === 'head' ? edge.to : null
  const reads = layer
    ? now.node.startsWith(`a${layer.layer}.`) &&
      Number(now.node.split('.')[1]) >= layer.head &&
      Number(now.node.split('.')[1]) < layer.head + edge.shared
    : nameOf({ end: edge.to }) === now.node
  const here = now.pos < 0 || edge.pos < 0 || (later ? edge.pos <= now.pos : edge.pos === now.pos)
  return sends || (reads && (edge.to.kind === 'logits' || here))
}
