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

/** A map with more cells than pixels: one pixel per block, the strongest cell of each. */
export function drawPooled(pen: Pen, scene: Scene, width: number, part?: Part): void {
  const { table, rows, theme } = scene
  const by = yardstick(table.map).by
  const shape = [table.rows.length, table.cols.length] as const
  const out = [Math.min(shape[0], Math.floor(rows.total)), Math.min(shape[1], Math.floor(width))] as const
  const values = new Float32Array(shape[0] * shape[1])
  for (let r = 0; r < shape[0]; r++)
    for (let c = 0; c < shape[1]; c++)
      values[r * shape[1] + c] = (table.map.effect[at(table, r, c)] as number) / by
  const kept = pool(values, shape, out)
  const h = rows.total / out[0]
  const w = width / out[1]
  const shades = Array.from({ length: 2 * SHADES + 1 }, (_, i) => css(diverging(i / SHADES - 1, theme)))
  const { x: left, y: top, w: wide, h: tall } = part ?? { x: 0, y: 0, w: width, h: rows.total }
  kept.forEach((index, i) => {
    const [x, y] = [(i % out[1]) * w, Math.floor(i / out[1]) * h]
    if (x + w < left || x > left + wide || y + h < top || y > top + tall) return
    const value = values[index] ?? Number.NaN
    const shade = Math.round(SHADES * (1 + Math.max(-1, Math.min(1, tone(value, scene.scale)))))
    pen.fillStyle = shades[shade] ?? (TOKENS[theme].bg2 as string)
    pen.fillRect(x, y, w, h)
  })
}

export const isPooled = (scene: Pick<Scene, 'grid' | 'rows'>): boolean =>
  scene.grid.col < 2 || scene.rows.height < 2
