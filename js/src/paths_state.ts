// What the Paths tab is set to, how it is asked for, and the walk from receiver to receiver.

import { type Axis, type Ends, headAt, type Told, type Variant } from './paths_words'
import type { Signal } from './signal'
import type { Store } from './store'
import { type Direction, decodeMap, type HeatMap, isDict, type Trouble } from './wire'

interface Look {
  variant: Variant
  /** Null: as on the sweep. */
  direction: Direction | null
  metric: string | null
  cell: string | null
  pinned: boolean
}

/** Receivers that were left behind on the way to `at`, the nearest first. */
interface Walk {
  at: string
  before: string[]
}

const FIRST: Look = { variant: 'direct', direction: null, metric: null, cell: null, pinned: false }

export const endsOf = (store: Store): Signal<Ends> => store.own<Ends>('path', {})
export const lookOf = (store: Store): Signal<Look> => store.own<Look>('path-look', FIRST)
export const hoverOf = (store: Store): Signal<string | null> => store.own<string | null>('path-hover', null)
const walkOf = (store: Store): Signal<Walk> => store.own<Walk>('path-walk', { at: '', before: [] })

export function change(store: Store, next: Partial<Look>): void {
  const look = lookOf(store)
  look.value = { ...look.value, ...next }
}

/** The receivers behind the present one; a receiver that was picked starts a walk of its own. */
export function behind(store: Store): string[] {
  const walk = walkOf(store).value
  return walk.at === endsOf(store).value.receiver ? walk.before : []
}

/** What the controls say. In the tree the way walked so far is part of the path. */
export function toldOf(store: Store): Told {
  const { sender = null, receiver = null } = endsOf(store).value
  const { variant, direction, metric } = lookOf(store).value
  const shown = store.shown.value
  const hops = [receiver ?? 'logits', ...(variant === 'tree' ? behind(store) : [])]
  const axis: Axis = sender && !receiver ? 'receiver' : 'sender'
  return {
    axis,
    sender,
    receiver: axis === 'receiver' ? null : hops.filter((hop, i) => i === 0 || hop !== 'logits').join(' -> '),
    variant,
    direction: direction ?? (shown.direction === 'noising' ? 'noising' : 'denoising'),
    metric: metric ?? shown.metric,
  }
}

/** Opens the tab on one end or on one path. */
export function openOn(store: Store, ends: Ends): void {
  endsOf(store).value = ends
  change(store, { cell: null, pinned: false })
  hoverOf(store).value = null
  store.tab.value = 'paths'
  store.need('paths')
}

/** Makes what a map showed the receiver of the next: one step back along the circuit. */
export function goOn(store: Store, receiver: string): void {
  const now = endsOf(store).value.receiver ?? 'logits'
  walkOf(store).value = { at: receiver, before: [now, ...behind(store)] }
  openOn(store, { receiver })
}

/** Returns to a receiver that was left behind. */
export function goBackTo(store: Store, index: number): void {
  const before = behind(store)
  const receiver = before[index] as string
  walkOf(store).value = { at: receiver, before: before.slice(index + 1) }
  openOn(store, { receiver })
}

/** What Python answered, as the tab draws it. */
export interface Drawn {
  map: HeatMap | null
  /** What the map on screen was asked for: the controls may be ahead of it. */
  told: Told
  stale: boolean
  trouble: Trouble | null
  toCome: string[]
  leftOut: { what: string; why: string }[]
  card: string
  code: string
  /** Whether there is a map to go back to from a trouble. */
  back: Ends | null
}

interface Kept {
  of?: unknown
  map?: HeatMap | null
  good?: { ends: Ends; look: Look }
}

/** Asks for what the controls say and returns what is there. */
export function drawn(store: Store): Drawn {
  const told = toldOf(store)
  const { sender, receiver, variant, direction, metric } = told
  const asked = { sender: receiver ? null : sender, receiver, variant, direction, metric }
  store.ask('paths', { ...asked, pair: store.shown.value.pair })
  const answer = store.answer('paths')
  const waits = store.waits('paths')
  const content = answer?.content ?? {}
  const trouble = !waits && isDict(content.error) ? (content.error as unknown as Trouble) : null
  // Decoded once per answer, so that the canvas is painted once per answer.
  const kept = store.own<Kept>('path-kept', {}).value
  if (answer && answer !== kept.of) {
    kept.of = answer
    kept.map = isDict(content.map)
      ? decodeMap({ ...content.map, data64: content.data64 }, answer.buffers)
      : null
    if (!waits && kept.map) kept.good = { ends: endsOf(store).value, look: lookOf(store).value }
  }
  const was = (answer?.asked ?? asked) as unknown as Told
  const axis: Axis = content.axis === 'receiver' ? 'receiver' : 'sender'
  return {
    map: trouble || !answer ? null : (kept.map ?? null),
    told: { ...was, axis },
    stale: waits,
    trouble,
    toCome: (content.to_come as string[]) ?? [],
    leftOut: (content.left_out as Drawn['leftOut']) ?? [],
    card: String(content.words ?? ''),
    code: String(content.code ?? ''),
    back: kept.good?.ends ?? null,
  }
}

export function goBack(store: Store): void {
  const good = store.own<Kept>('path-kept', {}).value.good
  if (!good) return
  lookOf(store).value = good.look
  endsOf(store).value = good.ends
}

/** The chosen cell of the map on screen; of one path it is the sender. */
export function chosenOf(store: Store, map: HeatMap | null): string | null {
  const { sender, receiver } = endsOf(store).value
  const name = sender && receiver ? sender : lookOf(store).value.cell
  const list = map?.coords[map.dims[0] as string] ?? []
  return name !== null && list.includes(name) ? name : null
}

export function choose(store: Store, name: string | null): void {
  const ends = endsOf(store)
  const { sender, receiver } = ends.value
  change(store, { cell: name, ...(name ? {} : { pinned: false }) })
  if (sender && receiver) ends.value = name ? { sender: name, receiver } : { receiver }
}

/** Shows the attention of a head on the sweep. */
export function showAttention(store: Store, name: string): void {
  const at = headAt(name, store.spec.value.model)
  if (!at) return
  store.lookAt(at.layer, at.head)
  store.tab.value = 'sweep'
}
