// Where the cells of a map of paths lie, and what its canvas is made of.

import { boxOf, type Scene } from './draw'
import type { Rows } from './geometry'
import { type Axis, endOf } from './paths_words'
import type { Table } from './table'
import type { HeatMap, Spec } from './wire'

interface Band {
  kind: string
  title: string
  cols: number
  /** First column of the band, counted over all bands. */
  from: number
  x: number
  col: number
}

export interface Layout {
  bands: Band[]
  /** Top of each row; what stands alone (embeddings, logits) has a row of its own. */
  rows: { name: string; top: number; alone: boolean }[]
  cols: number
  height: number
  width: number
  total: number
  /** Width of the cell that stands alone. */
  alone: number
}

const HEADED = /^(z|q|k|v)$/
const APART = 14
const LEAST = 12
const TITLES: Record<string, string> = {
  z: 'heads',
  mlp_out: 'MLP',
  q: 'queries',
  k: 'keys',
  v: 'values',
  mlp: 'MLP',
}

/** Where everything lies in `space` pixels; columns stop shrinking at 12, from there the map scrolls. */
export function layOutPaths(axis: Axis, model: Spec['model'], space: number, narrow: boolean): Layout {
  const kinds: [string, number][] =
    axis === 'sender'
      ? [
          ['z', model.n_heads],
          ['mlp_out', 1],
        ]
      : [
          ['q', model.n_heads],
          ['k', model.n_kv_heads],
          ['v', model.n_kv_heads],
          ['mlp', 1],
        ]
  const cols = kinds.reduce((n, [, size]) => n + size, 0)
  const fits = Math.floor((space - APART * (kinds.length - 1)) / cols)
  const col = Math.max(LEAST, Math.min(narrow ? 48 : 56, fits))
  const bands: Band[] = []
  let [x, from] = [0, 0]
  for (const [kind, size] of kinds) {
    const width = size === 1 ? Math.max(28, col) : col
    bands.push({ kind, title: TITLES[kind] as string, cols: size, from, x, col: width })
    x += width * size + APART
    from += size
  }
  const height = model.n_layers > 16 ? 13 : narrow ? 27 : 34
  const rows: Layout['rows'] = []
  const layers = Array.from({ length: model.n_layers }, (_, l) => String(l))
  let top = 0
  for (const name of axis === 'sender' ? ['embed', ...layers] : [...layers, 'logits']) {
    const alone = !/^\d/.test(name)
    if (alone && top) top += 8
    rows.push({ name, top, alone })
    top += Math.max(height, alone ? 20 : 0) + (alone && !rows[1] ? 8 : 0)
  }
  const first = bands[0] as Band
  return { bands, rows, cols, height, width: x - APART, total: top, alone: first.col * first.cols }
}

export const heightOf = (layout: Layout, row: Layout['rows'][number]): number =>
  row.alone ? Math.max(20, layout.height) : layout.height

export function nameAt(layout: Layout, row: number, col: number): string | null {
  const at = layout.rows[row]
  if (!at) return null
  if (at.alone) return at.name
  const band = layout.bands.findLast((b) => b.from <= col)
  if (!band || col >= layout.cols) return null
  return HEADED.test(band.kind) ? `${band.kind}[${at.name}.${col - band.from}]` : `${band.kind}[${at.name}]`
}

export function placeOf(layout: Layout, name: string | null): [row: number, col: number] | null {
  const end = name === null ? null : endOf(name)
  if (!end) return null
  const row = layout.rows.findIndex((r) => r.name === (end.layer < 0 ? end.kind : String(end.layer)))
  if (row < 0) return null
  if (end.layer < 0) return [row, 0]
  const band = layout.bands.find((b) => b.kind === end.kind)
  return band ? [row, band.from + Math.max(0, end.head)] : null
}

export interface Box {
  x: number
  y: number
  w: number
  h: number
}

export function boxAt(layout: Layout, name: string | null): Box | null {
  const at = placeOf(layout, name)
  const row = at && layout.rows[at[0]]
  if (!at || !row) return null
  if (row.alone) return { x: 0, y: row.top, w: layout.alone - 1, h: heightOf(layout, row) - 1 }
  const band = layout.bands.findLast((b) => b.from <= at[1]) as Band
  const rows = { top: [row.top], height: layout.height, total: 0 }
  const box = boxOf({ grid: band, rows }, 0, at[1] - band.from)
  return { ...box, x: box.x + band.x }
}

interface Part {
  x: number
  y: number
  scene: Scene
}

/** What the map is made of: a scene for each band, then one for what stands alone, each with its left top corner. */
export function parts(
  map: HeatMap,
  layout: Layout,
  look: Pick<Scene, 'theme' | 'scale' | 'font' | 'background'> & { narrow: boolean },
): Part[] {
  const { narrow, ...rest } = look
  const list = map.coords[map.dims[0] as string] ?? []
  const scene = (first: string, cols: number, col: number, rows: Rows): Scene => {
    const start = list.indexOf(first)
    const table: Table = {
      map,
      col: 'part',
      cols: Array.from({ length: cols }, (_, c) => c),
      rows: rows.top.map((_, layer) => ({ layer })),
      rowAxes: ['layer'],
      start: rows.top.map((_, r) => start + r * cols),
      step: 1,
      fixed: {},
      whole: rows.top.length,
      sorted: false,
    }
    return { ...rest, table, grid: { col }, rows, numbers: col >= 28 && rows.height >= 13 && !narrow }
  }
  const { height, total } = layout
  const top = layout.rows.filter((r) => !r.alone).map((r) => r.top)
  const made = layout.bands.map((b) => {
    const first = HEADED.test(b.kind) ? `${b.kind}[0.0]` : `${b.kind}[0]`
    return { x: b.x, y: 0, scene: scene(first, b.cols, b.col, { top, height, total }) }
  })
  for (const row of layout.rows.filter((r) => r.alone)) {
    const tall = heightOf(layout, row)
    const rows = { top: [0], height: tall, total: tall }
    made.push({ x: 0, y: row.top, scene: scene(row.name, 1, layout.alone, rows) })
  }
  return made
}

export function nameUnder(layout: Layout, x: number, y: number): string | null {
  const row = layout.rows.findIndex((r) => y >= r.top && y < r.top + heightOf(layout, r))
  if (row < 0) return null
  if (layout.rows[row]?.alone) return x >= 0 && x < layout.alone ? nameAt(layout, row, 0) : null
  const band = layout.bands.find((b) => x >= b.x && x < b.x + b.col * b.cols)
  return band ? nameAt(layout, row, band.from + Math.floor((x - band.x) / band.col)) : null
}
