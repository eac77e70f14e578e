// The heat map: canvases on the strips' grid, labels, legend, read-out; pointer and keys.

import { Canvas, partOf, STEP } from './canvas'
import type { Theme } from './colour'
import { type Child, h } from './dom'
import { boxOf, isPooled } from './draw'
import { plural, readNumber } from './format'
import { columnIn, type Grid, type Rows, rowAt, rowsOf, UPRIGHT } from './geometry'
import { keyAct } from './keys'
import { BottomMarks, Columns, RowNames } from './labels'
import { Legend } from './legend'
import { lensOf } from './lens'
import type { Lens } from './load'
import type { Store } from './store'
import { cellOf, find, heldAxes, indexIn, layOut, type Table, yardstick } from './table'
import { Turn } from './ui'
import { type Choice, type HeatMap, OTHER } from './wire'
import { readout } from './words'

export interface Frame {
  grid: Grid
  /** Pixels from the gutter's left edge to the end of the right column. */
  space: number
  narrow: boolean
  upright: boolean
  theme: Theme
  font: string
  background: string
}

export function HeatMaps({ store, frame }: { store: Store; frame: Frame }): Child {
  const lens = lensOf(store)
  const tables = tablesOf(store, lens)
  const first = tables[0]
  const col = first ? columnWidth(first, frame, lens, tables.length > 1) : 0
  const side = lens.square ? Math.max(LOWEST, col) : undefined
  const times = Math.max(1, lens.zoom)
  const rows = store.once('rows', [first, frame.narrow, times, side], () =>
    first ? rowsOf(first, frame.narrow, { times, side }) : null,
  )
  const stale = !store.current.length && tables.length > 0
  return (
    <div
      class={`maps${stale || (store.error.value && !store.error.value.callback) ? ' stale' : ''}`}
      style={{ '--gutter': `${frame.grid.gutter}px` }}
    >
      <Focusable store={store} table={first} maps={lens.maps}>
        {tables.map((table) => (
          <OneMap
            key={table.map.key.direction}
            store={store}
            table={table}
            rows={rows as Rows}
            frame={frame}
            lens={lens}
            col={col}
          />
        ))}
        {!first && (
          <p class="empty">{store.status.value.text || 'Nothing measured yet. Press ▶ to run the sweep.'}</p>
        )}
      </Focusable>
      <Readout store={store} lens={lens} />
      <div class="tools">{store.bundles.value.tools?.row({ store, frame })}</div>
    </div>
  )
}

/** The maps laid out; once for every set of maps and order of rows, not for every movement of the pointer. */
export function tablesOf(store: Store, lens: Lens): Table[] {
  const chosen = store.selection.value
  const held = heldAxes(lens.maps[0]?.dims ?? []).map((axis) => chosen?.[axis])
  return store.once('tables', [...lens.maps, lens.order, ...held], () =>
    lens.maps.map((m) => layOut(m, chosen, lens.order)),
  )
}

/** The part that takes the focus and the keys. The active cell is named for screen readers. */
function Focusable(props: {
  store: Store
  table: Table | undefined
  maps: readonly HeatMap[]
  children?: Child
}): Child {
  const { store, table, maps } = props
  const where = table ? find(table, store.chosen) : null
  const onKeyDown = (event: KeyboardEvent & { currentTarget: HTMLElement }) => {
    if (!table) return
    if (store.bundles.value.views?.keys(store, table, event)) return
    const near = event.currentTarget
    const act = keyAct(event, {
      at: where,
      rows: table.rows.length,
      cols: table.cols.length,
      direction: store.shown.value.direction,
    })
    // Text that is marked is what people mean to copy.
    if (!act || (act.do === 'copy' && !near.ownerDocument.getSelection()?.isCollapsed)) return
    event.preventDefault()
    event.stopPropagation()
    if (act.do === 'move') {
      store.choose(cellOf(table, act.row, act.col))
      queueMicrotask(() =>
        near.querySelector('i.ring')?.scrollIntoView?.({ block: 'nearest', inline: 'nearest' }),
      )
    } else if (act.do === 'pin') store.pinned.value = !!store.chosen && !store.pinned.value
    else if (act.do === 'clear') store.choose(null)
    else if (act.do !== 'turn') store.bundles.value.tools?.act(store, act, near)
    else if (turnable(store, act.direction)) store.set({ direction: act.direction })
  }
  return (
    <div
      class="grid"
      data-testid="nbp-heatmap"
      role="grid"
      tabIndex={0}
      aria-activedescendant={`${store.id}c`}
      aria-label="Effect of each patch"
      aria-rowcount={table?.rows.length ?? 0}
      aria-colcount={table?.cols.length ?? 0}
      data-rows={table?.rows.length ?? 0}
      data-cols={table?.cols.length ?? 0}
      data-lm-suppress-shortcuts="true"
      onKeyDown={onKeyDown}
    >
      <div role="row" class="hidden" aria-rowindex={(where?.[0] ?? 0) + 1}>
        <div
          role="gridcell"
          id={`${store.id}c`}
          aria-colindex={(where?.[1] ?? 0) + 1}
          aria-selected={!!where}
        >
          {where && store.chosen ? readout(maps, store.chosen, store.pair) : 'no cell selected'}
        </div>
      </div>
      {props.children}
    </div>
  )
}

/** Whether the direction can be turned: an ablation has one only. */
const turnable = (store: Store, direction: Choice): boolean =>
  (store.shown.value.corruption ?? OTHER) === OTHER && store.can({ direction })
/** Rows are never lower than this: each keeps a pixel of its own. */
const LOWEST = 3

/** Rows in view are never taller than a screen. */
const TALLEST = 2000

type Pointed = MouseEvent & { currentTarget: HTMLDivElement }

interface OneProps {
  store: Store
  table: Table
  rows: Rows
  frame: Frame
  lens: Lens
  col: number
}

function OneMap({ store, table, rows, frame, lens, col }: OneProps): Child {
  const both = lens.maps.length > 1
  const { scale } = lens
  const direction = table.map.key.direction
  const grid = { ...frame.grid, col }
  const scene = {
    table,
    rows,
    scale,
    grid,
    theme: frame.theme,
    font: frame.font,
    background: frame.background,
    numbers: grid.col >= 28 && rows.height >= 13 && !frame.narrow,
  }
  const hit = (event: Pointed): [number, number] | null => {
    const box = event.currentTarget.getBoundingClientRect()
    const col = Math.floor((event.clientX - box.left) / grid.col)
    const row = rowAt(rows, event.clientY - box.top)
    return row < 0 || col < 0 || col >= table.cols.length ? null : [row, col]
  }
  const over = (event: Pointed) => {
    const at = hit(event)
    const next = at ? cellOf(table, ...at) : null
    if (JSON.stringify(next) !== JSON.stringify(store.hover.value)) store.hover.value = next
  }
  const width = grid.col * table.cols.length
  const held = store.bundles.value.views?.hold({ store, table, rows, col: grid.col, theme: frame.theme, hit })
  const loose = lens.zoom !== 1
  const scrolled = store.own(`scroll ${direction}`, '0 0')
  const [x = 0, y = 0] = scrolled.value.split(' ').map(Number)
  const part = partOf({ w: width, h: rows.total }, { x, y, w: frame.space, h: TALLEST })
  const upright = frame.upright || (loose && grid.col < UPRIGHT)
  const legend = { map: table.map, scale, index: indexIn(table.map, store.hover.value ?? store.chosen) }
  return (
    <div
      class={`one${loose || lens.square ? ' loose' : ''}`}
      data-direction={direction}
      onWheel={(e: WheelEvent & { currentTarget: HTMLElement }) => store.bundles.value.tools?.wheel(store, e)}
      onScroll={({ currentTarget: box }: Event & { currentTarget: HTMLElement }) => {
        scrolled.value = [box.scrollLeft, box.scrollTop].map((v) => Math.floor(v / STEP) * STEP).join(' ')
      }}
    >
      {both && (
        <p class="which">
          <Turn into={direction === 'denoising' ? 'corrupted' : 'clean'} />
          <b>{direction === 'denoising' ? 'Denoise' : 'Noise'}</b> share of the gap{' '}
          {direction === 'denoising' ? 'restored' : 'lost'}
        </p>
      )}
      <Columns store={store} table={table} col={grid.col} upright={upright} own={loose} />
      <div class="body">
        <RowNames store={store} table={table} rows={rows} narrow={frame.narrow} />
        <div
          class="surface"
          style={{ width: `${width}px`, height: `${rows.total}px` }}
          onMouseMove={over}
          onMouseLeave={() => {
            store.hover.value = null
          }}
          onClick={(e) => {
            const at = hit(e)
            if (at) store.choose(cellOf(table, ...at))
          }}
          {...held?.on}
        >
          <Canvas scene={scene} pooled={isPooled(scene)} width={width} part={part} />
          <Ring
            box={ringBox(table, scene, store.chosen)}
            kind={store.pinned.value ? 'ring pinned' : 'ring'}
          />
          <Ring box={ringBox(table, scene, store.hover.value)} kind="outline" />
          {held?.marks}
        </div>
        {!frame.upright && <Legend {...legend} height={Math.min(150, Math.max(96, rows.total))} />}
      </div>
      {!frame.upright && <BottomMarks store={store} table={table} col={grid.col} />}
      {frame.upright && <Legend {...legend} height={0} words />}
    </div>
  )
}

/** Position axes lie on the strips' columns until they are zoomed; other axes have columns of their own. */
export function columnWidth(table: Table, frame: Frame, lens: Pick<Lens, 'zoom'>, both: boolean): number {
  const { gutter, right } = frame.grid
  const most = frame.narrow ? 48 : both ? 44 : 56
  const tokens = /^(pos|src|dest)$/.test(table.col)
  const col = tokens ? frame.grid.col : columnIn(frame.space - gutter - right, table.cols.length, most)
  return col * lens.zoom
}

function ringBox(
  table: Table,
  scene: { grid: { col: number }; rows: Rows },
  cell: Record<string, number | string> | null,
) {
  const at = find(table, cell)
  return at ? boxOf(scene, ...at) : null
}

function Ring({ box, kind }: { box: ReturnType<typeof ringBox>; kind: string }): Child {
  if (!box) return null
  return (
    <i
      class={kind}
      style={{ left: `${box.x}px`, top: `${box.y}px`, width: `${box.w}px`, height: `${box.h}px` }}
    />
  )
}

function Readout({ store, lens }: { store: Store; lens: Lens }): Child {
  const { maps, minus } = lens
  const { limit, log } = lens.scale
  const cell = store.hover.value ?? store.chosen
  const map = maps[0]
  const gap = map ? `${readNumber(map.gap).replace(/^\+/, '')} ${plural(map.unit, map.gap)}`.trim() : ''
  const share = map && yardstick(map).share
  return (
    <div class="under">
      <span data-testid="nbp-readout" aria-live="polite">
        {cell && map ? readout(maps, cell, store.pair) : 'Point at a cell, or move with the arrow keys.'}
      </span>
      <span class="dim">
        {map &&
          (minus
            ? `Colour: difference of shares of the gap, minus ${minus}`
            : share
              ? `Colour: effect as a share of the gap (${gap})`
              : 'Colour: effect over the largest; there is no gap to share out')}
        {map && limit < 1 && `, ±${String(limit).replace(/^0/, '')} at most`}
        {log && ', logarithmic'}
      </span>
    </div>
  )
}
