// Paints a table of cells onto a canvas: colours, numbers, and the four kinds of nothing, each its own way.

import { css, diverging, mix, parse, pool, type Rgb, type Scale, type Theme, textOn, tone } from './colour'
import { cellNumber } from './format'
import type { Grid, Rows } from './geometry'
import { TOKENS } from './style.generated'
import { at, type Table, yardstick } from './table'
import { State } from './wire'

/** The parts of a 2-D context that are used, so that tests can watch what is drawn. */
export type Pen = Pick<
  CanvasRenderingContext2D,
  | 'fillStyle'
  | 'strokeStyle'
  | 'lineWidth'
  | 'font'
  | 'textAlign'
  | 'textBaseline'
  | 'fillRect'
  | 'fillText'
  | 'beginPath'
  | 'moveTo'
  | 'lineTo'
  | 'stroke'
  | 'fill'
  | 'rect'
  | 'arc'
  | 'roundRect'
  | 'save'
  | 'restore'
  | 'clip'
  | 'clearRect'
  | 'strokeRect'
>

/** A part of a map, in pixels. */
export interface Part {
  x: number
  y: number
  w: number
  h: number
}

export interface Scene {
  table: Table
  grid: Pick<Grid, 'col'>
  rows: Rows
  theme: Theme
  scale: Pick<Scale, 'limit' | 'log'>
  numbers: boolean
  font: string
  background: string
}

/** Draws all cells, or those of a part. */
export function drawMap(pen: Pen, scene: Scene, part?: Part): void {
  const { table, grid, rows } = scene
  const { x, y, w, h } = part ?? { x: 0, y: 0, w: grid.col * table.cols.length, h: rows.total }
  pen.clearRect(x, y, w, h)
  const from = Math.max(0, Math.floor(x / grid.col))
  const to = Math.min(table.cols.length, Math.ceil((x + w) / grid.col))
  const by = yardstick(table.map).by
  pen.font = `11px ${scene.font}`
  pen.textAlign = 'center'
  pen.textBaseline = 'middle'
  rows.top.forEach((top, r) => {
    if (top + rows.height <= y || top >= y + h) return
    for (let c = from; c < to; c++) drawCell(pen, scene, by, [r, c])
  })
}

export function boxOf(scene: Pick<Scene, 'grid' | 'rows'>, row: number, col: number): Part {
  const gap = scene.grid.col < 14 || scene.rows.height < 10 ? 0.5 : 1
  return {
    x: col * scene.grid.col,
    y: scene.rows.top[row] as number,
    w: scene.grid.col - gap,
    h: scene.rows.height - gap,
  }
}

function drawCell(pen: Pen, scene: Scene, by: number, [row, col]: readonly [number, number]): void {
  const { table, theme } = scene
  const index = at(table, row, col)
  const box = boxOf(scene, row, col)
  const value = (table.map.effect[index] as number) / by
  const state = table.map.state[index] ?? State.NotRun
  if (state === State.Exact) return dot(pen, box, theme)
  if (state === State.NotRun) return frame(pen, box, theme)
  if (state === State.NoPosition || state === State.NoPath || state === State.Failed || Number.isNaN(value))
    return nothing(pen, box, theme, state)
  const place = tone(value, scene.scale)
  const colour = diverging(place, theme)
  if (state === State.Estimate) return estimate(pen, box, boosted(place, theme))
  pen.fillStyle = css(colour)
  fillRound(pen, box)
  const text = scene.numbers ? cellNumber(value) : ''
  if (!text) return
  pen.fillStyle = textOn(colour)
  pen.fillText(text, box.x + box.w / 2, box.y + box.h / 2 + 0.5)
}

/** Half of a hatched cell is background, so its colour is made stronger. */
const boosted = (share: number, theme: Theme): Rgb =>
  diverging(share === 0 ? 0 : Math.sign(share) * (0.28 + 0.72 * Math.min(1, Math.abs(share))), theme)

function fillRound(pen: Pen, { x, y, w, h }: Part): void {
  if (w < 8 || h < 8) return pen.fillRect(x, y, w, h)
  pen.beginPath()
  pen.roundRect(x, y, w, h, 2)
  pen.fill()
}

/** Exactly 0 by construction: a dot. */
function dot(pen: Pen, { x, y, w, h }: Part, theme: Theme): void {
  pen.fillStyle = css(mix(parse(TOKENS[theme].ink3 as string), parse(TOKENS[theme].bg as string), 0.55))
  pen.beginPath()
  pen.arc(x + w / 2, y + h / 2, Math.min(1.2, w / 6), 0, 2 * Math.PI)
  pen.fill()
}

/** Not run: an empty outline. */
function frame(pen: Pen, { x, y, w, h }: Part, theme: Theme): void {
  pen.strokeStyle = TOKENS[theme].line as string
  pen.lineWidth = 1
  pen.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1)
}

/** No value: −45° hatch and an outline; what is missing fainter than a failed run. */
function nothing(pen: Pen, box: Part, theme: Theme, state: number): void {
  const t = TOKENS[theme]
  hatch(pen, box, (state === State.Failed ? t.ink3 : t.edge) as string, {
    step: 5,
    width: 0.8,
    rising: false,
  })
  pen.strokeStyle = t.edge as string
  pen.lineWidth = 1
  pen.strokeRect(box.x + 0.5, box.y + 0.5, box.w - 1, box.h - 1)
}

/** An estimate: 45° hatch in the value's colour. */
const estimate = (pen: Pen, box: Part, colour: Rgb): void =>
  hatch(pen, box, css(colour), { step: 4.5, width: 2.2, rising: true })

function hatch(
  pen: Pen,
  box: Part,
  colour: string,
  look: { step: number; width: number; rising: boolean },
): void {
  const { x, y, w, h } = box
  pen.save()
  pen.beginPath()
  pen.rect(x, y, w, h)
  pen.clip()
  pen.strokeStyle = colour
  pen.lineWidth = look.width
  pen.beginPath()
  for (let d = -h; d < w; d += look.step) {
    pen.moveTo(x + d, look.rising ? y + h : y)
    pen.lineTo(x + d + h, look.rising ? y : y + h)
  }
  pen.stroke()
  pen.restore()
}

const SHADES = 256

/** A map as pixels, one line for each row. */
export interface Raster {
  width: number
  height: number
  data: Uint8ClampedArray<ArrayBuffer>
}

/**
 * The colours of a large map: one pixel per cell, or where there are more columns than pixels one per block, of its
 * strongest cell, so that a single strong cell never disappears.
 */
export function raster(scene: Scene, width: number): Raster {
  const { table, theme } = scene
  const by = yardstick(table.map).by
  const [height, cols] = [table.rows.length, table.cols.length]
  const wide = Math.max(1, Math.min(cols, Math.floor(width)))
  const shades = Array.from({ length: 2 * SHADES + 1 }, (_, i) => diverging(i / SHADES - 1, theme))
  const none = parse(TOKENS[theme].bg2 as string)
  const empty = parse(TOKENS[theme].bg as string)
  const data = new Uint8ClampedArray(4 * wide * height)
  const line = new Float32Array(cols)
  for (let r = 0; r < height; r++) {
    for (let c = 0; c < cols; c++) line[c] = (table.map.effect[at(table, r, c)] as number) / by
    const kept = pool(line, [1, cols], [1, wide])
    for (let x = 0; x < wide; x++) {
      const c = kept[x] as number
      const value = line[c] as number
      const shade = Math.round(SHADES * (1 + Math.max(-1, Math.min(1, tone(value, scene.scale)))))
      const state = table.map.state[at(table, r, c)]
      const blank = state === State.Exact || state === State.NotRun
      data.set([...(blank ? empty : (shades[shade] ?? none)), 255], 4 * (r * wide + x))
    }
  }
  return { width: wide, height, data }
}

/** Cells from which on a map is painted as a raster: they are too small for numbers and marks. */
const MANY = 20_000

export const isPooled = (scene: Scene): boolean =>
  scene.grid.col < 2 || (!scene.numbers && scene.table.rows.length * scene.table.cols.length > MANY)
