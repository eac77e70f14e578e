// Dragging on the map, and the keys that do the same: a brush over cells, or one cell's value into another's place.

import { css, diverging, type Theme } from './colour'
import { type Child, h } from './dom'
import { boxOf } from './draw'
import type { Rows } from './geometry'
import type { Surface } from './load'
import type { Store } from './store'
import { cellOf, find, indexIn, type Table, yardstick } from './table'
import type { Cell, HeatMap } from './wire'

type At = [row: number, col: number]

interface Drag {
  kind: 'brush' | 'move'
  from: Cell
  to: Cell
}

/** What the pointer is doing; only what changes the picture is a signal. */
interface Hand {
  pressed: Cell | null
  /** A click follows the end of a drag; it is no choice of a cell. */
  dropped: boolean
}

const hand = (store: Store): Hand => store.own<Hand>('hand', { pressed: null, dropped: false }).value
const dragOf = (store: Store) => store.own<Drag | null>('drag', null)
/** The cell whose value is being carried by keys. */
const carried = (store: Store) => store.own<Cell | null>('carried', null)
/** The fixed corner of a brush that keys extend, and the one that moves. */
const corners = (store: Store) => store.own<[Cell, Cell] | null>('corners', null)

export const same = (a: Cell | null | undefined, b: Cell | null | undefined): boolean =>
  !!a && !!b && Object.keys(a).length === Object.keys(b).length && Object.keys(a).every((k) => a[k] === b[k])

/** The brushed cells that are on the map on screen. */
export function together(store: Store): Cell[] {
  const map = store.onScreen[0]
  return map ? store.brushed.value.filter((cell) => indexIn(map, cell) >= 0) : []
}

/** All cells of the rectangle between two cells, row by row. */
export function rectangle(table: Table, one: Cell, other: Cell): Cell[] {
  const [a, b] = [find(table, one), find(table, other)]
  if (!a || !b) return []
  const [top, bottom] = [Math.min(a[0], b[0]), Math.max(a[0], b[0])]
  const [left, right] = [Math.min(a[1], b[1]), Math.max(a[1], b[1])]
  const out: Cell[] = []
  for (let r = top; r <= bottom; r++) for (let c = left; c <= right; c++) out.push(cellOf(table, r, c))
  return out
}

/** Whether a value put into `target` can change `cell`: itself, and what comes later in layers and positions. */
export function reaches(target: Cell, cell: Cell): boolean {
  if (same(target, cell)) return true
  const [from, to] = [target, cell].map((c) => c.pos ?? c.dest)
  if (typeof from === 'number' && typeof to === 'number' && to < from) return false
  return target.layer !== undefined && Number(cell.layer) > Number(target.layer)
}

/** Puts one cell's value of the source run into another's place; Python says what comes of it. */
export function drop(store: Store, from: Cell, to: Cell): void {
  if (!same(from, to)) store.ask('move', { from, to })
}

/** What is carried and where it would go: by the pointer, or by keys with the selection. */
function carrying(store: Store): { from: Cell; to: Cell } | null {
  const drag = dragOf(store).value
  if (drag) return drag.kind === 'move' ? drag : null
  const from = carried(store).value
  return from && store.chosen ? { from, to: store.chosen } : null
}

const can = (store: Store): boolean => store.spec.value.can_run

export function hold(surface: Surface): { on: Record<string, unknown>; marks: Child } {
  const { store, table, hit } = surface
  type Pointed = PointerEvent & { currentTarget: HTMLDivElement }
  const at = (event: Pointed): Cell | null => {
    const found = hit(event)
    return found && cellOf(table, ...found)
  }
  const drag = dragOf(store)
  const now = hand(store)
  const on = {
    onPointerDown(event: Pointed) {
      now.dropped = false
      // A finger that drags scrolls the page.
      now.pressed = event.button === 0 && event.pointerType !== 'touch' && can(store) ? at(event) : null
    },
    onPointerMove(event: Pointed) {
      const to = at(event)
      if (!now.pressed || !to) return
      if (!drag.value) {
        if (same(to, now.pressed)) return
        const kind = same(now.pressed, store.chosen) && !event.shiftKey ? 'move' : 'brush'
        event.currentTarget.setPointerCapture?.(event.pointerId)
        drag.value = { kind, from: now.pressed, to }
      } else if (!same(drag.value.to, to)) drag.value = { ...drag.value, to }
    },
    onPointerUp(event: Pointed) {
      const { value } = drag
      now.pressed = null
      if (!value) return
      now.dropped = true
      drag.value = null
      if (value.kind === 'move') return drop(store, value.from, value.to)
      const cells = rectangle(table, value.from, value.to)
      const kept = event.shiftKey ? store.brushed.value.filter((c) => !cells.some((d) => same(c, d))) : []
      corners(store).value = [value.from, value.to]
      store.brush([...kept, ...cells])
    },
    onPointerCancel() {
      now.pressed = null
      drag.value = null
    },
    onClick(event: Pointed) {
      const cell = at(event)
      if (cell && !now.dropped) store.choose(cell)
      now.dropped = false
    },
  }
  return { on, marks: <Marks {...surface} /> }
}

export function keys(store: Store, table: Table, event: KeyboardEvent): boolean {
  const done = event.ctrlKey || event.metaKey || event.altKey ? false : act(store, table, event)
  if (done) {
    event.preventDefault()
    event.stopPropagation()
  }
  return done
}

const STEPS: Record<string, At> = {
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
}

function act(store: Store, table: Table, { key, shiftKey }: KeyboardEvent): boolean {
  const chosen = store.chosen
  if (key === 'Escape') return letGo(store)
  if (key === 'm' && chosen && can(store)) {
    const from = carried(store).value
    carried(store).value = from ? null : chosen
    if (from) drop(store, from, chosen)
    return true
  }
  const step = shiftKey ? STEPS[key] : undefined
  if (!step || !can(store)) return false
  const brushed = together(store).length ? corners(store).value : null
  const [fixed, moving] = brushed ?? [chosen, chosen]
  const from = find(table, moving)
  if (!fixed || !from) return false
  const clamp = (v: number, n: number): number => Math.min(n - 1, Math.max(0, v))
  const [row, col] = [
    clamp(from[0] + step[0], table.rows.length),
    clamp(from[1] + step[1], table.cols.length),
  ]
  const to = cellOf(table, row, col)
  corners(store).value = [fixed, to]
  const cells = rectangle(table, fixed, to)
  store.brush(cells.length > 1 ? cells : [])
  return true
}

/** Ends what is going on, whatever it is; false when nothing was. */
function letGo(store: Store): boolean {
  const busy = !!dragOf(store).value || !!carried(store).value || store.brushed.value.length > 0
  dragOf(store).value = null
  carried(store).value = null
  hand(store).pressed = null
  store.brush([])
  return busy
}

// ---- what lies over the cells

interface Box {
  x: number
  y: number
  w: number
  h: number
}

const place = ({ x, y, w, h: high }: Box) => ({
  left: `${x}px`,
  top: `${y}px`,
  width: `${w}px`,
  height: `${high}px`,
})

function Marks({ store, table, rows, col, theme }: Surface): Child {
  const scene = { grid: { col }, rows }
  const drag = dragOf(store).value
  const cells = drag?.kind === 'brush' ? rectangle(table, drag.from, drag.to) : together(store)
  const boxes = outline(table, cells, (at) => boxOf(scene, ...at))
  const move = carrying(store)
  const target = move && find(table, move.to)
  const source = move && find(table, move.from)
  return (
    <span class="marks-over">
      {move &&
        faded(table, rows, col, move.to).map((box, i) => <i key={i} class="fade" style={place(box)} />)}
      {boxes.map((box, i) => (
        <i key={`b${i}`} class="brush" style={place(box)} />
      ))}
      {drag && boxes[0] && cells.length > 1 && (
        <span class="brush-count" style={{ left: `${boxes[0].x}px`, top: `${boxes[0].y}px` }}>
          {cells.length} cells together
        </span>
      )}
      {source && <i class="brush" style={place(boxOf(scene, ...source))} />}
      {move && target && (
        <i
          class="ghost-cell"
          style={{
            ...place(boxOf(scene, ...target)),
            background: colourOf(store, table.map, move.from, theme),
          }}
        />
      )}
    </span>
  )
}

function colourOf(store: Store, map: HeatMap, cell: Cell, theme: Theme): string {
  const share = (map.effect[indexIn(map, cell)] ?? 0) / yardstick(map).by / store.limitOf(store.onScreen)
  return css(diverging(Number.isFinite(share) ? share : 0, theme))
}

/** One box where cells fill a rectangle, else one for each. */
function outline(table: Table, cells: readonly Cell[], boxAt: (at: At) => Box): Box[] {
  const spots = cells.flatMap((cell) => {
    const at = find(table, cell)
    return at ? [at] : []
  })
  if (!spots.length) return []
  const [r, c] = [spots.map((s) => s[0]), spots.map((s) => s[1])]
  const first: At = [Math.min(...r), Math.min(...c)]
  const last: At = [Math.max(...r), Math.max(...c)]
  if ((last[0] - first[0] + 1) * (last[1] - first[1] + 1) !== spots.length) return spots.map(boxAt)
  const [a, b] = [boxAt(first), boxAt(last)]
  return [{ x: a.x, y: a.y, w: b.x + b.w - a.x, h: b.y + b.h - a.y }]
}

/** Boxes over all cells that a value at `target` cannot change, one for each run along a row. */
function faded(table: Table, rows: Rows, col: number, target: Cell): Box[] {
  const out: Box[] = []
  table.rows.forEach((_, r) => {
    let start = -1
    for (let c = 0; c <= table.cols.length; c++) {
      const off = c < table.cols.length && !reaches(target, cellOf(table, r, c))
      if (off && start < 0) start = c
      if (off || start < 0) continue
      out.push({ x: start * col, y: rows.top[r] as number, w: (c - start) * col, h: rows.height })
      start = -1
    }
  })
  return out
}
