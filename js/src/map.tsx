// The heat map: canvases on the strips' grid, labels, legend, read-out; pointer and keys.

import { Canvas } from './canvas'
import type { Theme } from './colour'
import { type Child, h } from './dom'
import { boxOf, isPooled } from './draw'
import { plural, readNumber } from './format'
import { type Grid, type Rows, rowAt, rowsOf } from './geometry'
import { keyAct } from './keys'
import { BottomMarks, Columns, Legend, RowNames } from './labels'
import type { Store } from './store'
import { cellOf, find, layOut, type Table, yardstick } from './table'
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
  const maps = store.onScreen
  const chosen = store.selection.value
  const tables = maps.map((m) => layOut(m, chosen))
  const first = tables[0]
  const limit = store.limitOf(maps)
  const rows = first ? rowsOf(first, frame.narrow) : null
  const stale = !store.current.length && maps.length > 0
  return (
    <div
      class={`maps${stale || store.error.value ? ' stale' : ''}`}
      style={{ '--gutter': `${frame.grid.gutter}px` }}
    >
      <Focusable store={store} table={first} maps={maps}>
        {tables.map((table) => (
          <OneMap
            key={table.map.key.direction}
            store={store}
            table={table}
            rows={rows as Rows}
            frame={frame}
            limit={limit}
          />
        ))}
        {!first && (
          <p class="empty">{store.status.value.text || 'Nothing measured yet. Press ▶ to run the sweep.'}</p>
        )}
      </Focusable>
      <Readout store={store} limit={limit} />
    </div>
  )
}

/** The part that takes the focus and the keys. The active cell is named for screen readers. */
function Focusable(props: {
  store: Store
  table: Table | undefined
  maps: HeatMap[]
  children?: Child
}): Child {
  const { store, table, maps } = props
  const where = table ? find(table, store.chosen) : null
  const onKeyDown = (event: KeyboardEvent) => {
    if (!table) return
    if (store.bundles.value.views?.keys(store, table, event)) return
    const act = keyAct(event, {
      at: where,
      rows: table.rows.length,
      cols: table.cols.length,
      direction: store.shown.value.direction,
    })
    if (!act) return
    event.preventDefault()
    event.stopPropagation()
    if (act.do === 'move') store.choose(cellOf(table, act.row, act.col))
    else if (act.do === 'pin') store.pinned.value = !!store.chosen && !store.pinned.value
    else if (act.do === 'clear') store.choose(null)
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

type Pointed = MouseEvent & { currentTarget: HTMLDivElement }

interface OneProps {
  store: Store
  table: Table
  rows: Rows
  frame: Frame
  limit: number
}

function OneMap({ store, table, rows, frame, limit }: OneProps): Child {
  const both = store.onScreen.length > 1
  const direction = table.map.key.direction
  const grid = { ...frame.grid, col: columnWidth(table, frame, both) }
  const scene = {
    table,
    rows,
    limit,
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
  return (
    <div class="one" data-direction={direction}>
      {both && (
        <p class="which">
          <Turn into={direction === 'denoising' ? 'corrupted' : 'clean'} />
          <b>{direction === 'denoising' ? 'Denoise' : 'Noise'}</b> share of the gap{' '}
          {direction === 'denoising' ? 'restored' : 'lost'}
        </p>
      )}
      <Columns store={store} table={table} col={grid.col} upright={frame.upright} />
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
          <Canvas scene={scene} pooled={isPooled(scene)} width={width} />
          <Ring
            box={ringBox(table, scene, store.chosen)}
            kind={store.pinned.value ? 'ring pinned' : 'ring'}
          />
          <Ring box={ringBox(table, scene, store.hover.value)} kind="outline" />
          {held?.marks}
        </div>
        {!frame.upright && (
          <Legend
            store={store}
            map={table.map}
            limit={limit}
            height={Math.min(150, Math.max(96, rows.total))}
          />
        )}
      </div>
      {!frame.upright && <BottomMarks store={store} table={table} col={grid.col} />}
      {frame.upright && <Legend store={store} map={table.map} limit={limit} height={0} />}
    </div>
  )
}

/** Position axes lie on the strips' columns; other axes have columns of their own. */
function columnWidth(table: Table, frame: Frame, both: boolean): number {
  if (/^(pos|src|dest)$/.test(table.col)) return frame.grid.col
  const most = frame.narrow ? 48 : both ? 44 : 56
  return Math.max(
    12,
    Math.min(most, Math.floor((frame.space - frame.grid.gutter - frame.grid.right) / table.cols.length)),
  )
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

function Readout({ store, limit }: { store: Store; limit: number }): Child {
  const maps = store.onScreen
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
          (share
            ? `Colour: effect as a share of the gap (${gap})`
            : 'Colour: effect over the largest; there is no gap to share out')}
        {map && limit < 1 && `, ±${String(limit).replace(/^0/, '')} at most`}
      </span>
    </div>
  )
}
