// One grid for token strips and map: widths of gutter and columns, heights and places of rows.

import type { Table } from './table'

export interface Grid {
  gutter: number
  col: number
  right: number
}

export const NARROW = 640
export const WIDE = 1100
const LEAST = 12
/** Columns up to which a map scrolls inside itself; more are made smaller, and pooled below 2 pixels. */
const SCROLLS = 320

/** The grid of `count` columns in `space` pixels; columns stop shrinking at 12, from there the map scrolls; very many shrink on. */
export function gridFor(space: number, count: number, narrow: boolean, most = 64): Grid {
  const gutter = narrow ? 24 : 84
  const right = narrow ? 0 : 86
  return { gutter, right, col: columnIn(space - gutter - right, count, most) }
}

/** Width of each of `count` columns in `space` pixels. */
export function columnIn(space: number, count: number, most: number): number {
  const fits = space / Math.max(1, count)
  return count > SCROLLS ? fits : Math.max(LEAST, Math.min(most, Math.floor(fits)))
}

/** Below this many pixels a column cannot hold a token: strips wrap, labels stand upright. */
export const UPRIGHT = 27

export interface Rows {
  top: number[]
  height: number
  total: number
}

const GAP = 8

/** What a zoom makes of the rows: `times` as high as they would be, or all `side` pixels high. */
export interface Stretch {
  times?: number
  side?: number | undefined
}

/** Places of rows: 34 high, 13 when there are many, layers 8 apart when rows are layer × something. */
export function rowsOf(table: Table, narrow: boolean, { times = 1, side }: Stretch = {}): Rows {
  const n = table.rows.length
  const grouped = table.rowAxes.length > 1 && !table.sorted
  let height = n > 16 ? 13 : narrow ? 27 : 34
  if (table.rowAxes[0] === 'dest' || n > 60) height = n > 24 ? (n > 80 ? 3 : 8) : n > 16 ? 13 : 22
  height = side ?? height * times
  const top: number[] = []
  let y = 0
  for (let r = 0; r < n; r++) {
    const first = table.rowAxes[0] as string
    if (grouped && r > 0 && table.rows[r]?.[first] !== table.rows[r - 1]?.[first]) y += GAP
    top.push(y)
    y += height
  }
  return { top, height, total: y }
}

export function rowAt(rows: Rows, y: number): number {
  return rows.top.findIndex((top) => y >= top && y < top + rows.height)
}
