// What is on screen as one picture, for any pen: sentence, names, cells, legend, what the colours mean.

import { css, diverging, tone } from './colour'
import { drawMap, type Pen } from './draw'
import { plain, plural, readNumber, tick, visible } from './format'
import { rowsOf } from './geometry'
import { lensOf } from './lens'
import type { Lens } from './load'
import { tablesOf } from './map'
import { sentence } from './sentence'
import type { Store } from './store'
import { SCALE } from './style.generated'
import { find, type Table, yardstick } from './table'
import { readout, wordFor } from './words'

/** A pen that can also move its origin. */
export type Brush = Pen & { translate(x: number, y: number): void }

const FONT = 'system-ui, sans-serif'
const INK = '#16191E'
const INK2 = '#555D68'
const LEFT = 84
const RIGHT = 96
const EDGE = 16
const LEAST = 640

interface Plan {
  store: Store
  lens: Lens
  tables: Table[]
  col: number
  width: number
  title: string[]
  notes: string[]
}

/** The sentence over the map as plain text. */
export const heading = (store: Store): string =>
  sentence(store.shown.value, store.pair, store.spec.value)
    .map((p) => (p.kind === 'token' ? plain(p.text) : p.text))
    .join('')

function planOf(store: Store): Plan {
  const lens = lensOf(store)
  const tables = tablesOf(store, lens)
  const cols = tables[0]?.cols.length ?? 1
  const col = Math.max(2, Math.min(40, Math.floor(1200 / cols)))
  const width = Math.max(LEAST, 2 * EDGE + LEFT + col * cols + RIGHT)
  const notes = [meaning(lens), store.spec.value.model.name]
  const cell = store.chosen
  if (cell) notes.unshift(readout(lens.maps, cell, store.pair))
  return { store, lens, tables, col, width, title: wrap(heading(store), (width - 2 * EDGE) / 8), notes }
}

function meaning({ maps, minus, scale }: Lens): string {
  const [map] = maps
  if (!map) return ''
  const gap = `${readNumber(map.gap).replace(/^\+/, '')} ${plural(map.unit, map.gap)}`.trim()
  const what = minus
    ? `difference of shares of the gap, minus ${minus}`
    : yardstick(map).share
      ? `effect as a share of the gap (${gap})`
      : 'effect over the largest; there is no gap to share out'
  return `Colour: ${what}${scale.log ? ', logarithmic' : ''}${scale.note ? `; ${scale.note}` : ''}`
}

/** Text in lines of about so many characters: a pen for files cannot measure text. */
export function wrap(text: string, most: number): string[] {
  const lines = ['']
  for (const word of text.split(' ')) {
    const last = lines.at(-1) as string
    if (last && last.length + word.length + 1 > most) lines.push(word)
    else lines[lines.length - 1] = last ? `${last} ${word}` : word
  }
  return lines
}

/** Size of the picture, and what draws it. */
export function picture(store: Store): { width: number; height: number; draw(pen: Brush): void } {
  const plan = planOf(store)
  const { tables, width, title, notes } = plan
  const rows = tables[0] ? rowsOf(tables[0], false) : { top: [], height: 0, total: 0 }
  const both = tables.length > 1
  const each = 24 + (both ? 20 : 0) + Math.max(rows.total, 110) + 12
  const height = 2 * EDGE + 24 * title.length + each * tables.length + 16 * notes.length
  return {
    width,
    height,
    draw(pen) {
      pen.fillStyle = '#FFFFFF'
      pen.fillRect(0, 0, width, height)
      pen.textBaseline = 'alphabetic'
      let y = EDGE + 14
      for (const line of title) {
        write(pen, line, EDGE, y, { size: 16 })
        y += 24
      }
      for (const table of tables) {
        one(pen, plan, table, y, both)
        y += each
      }
      notes.forEach((note, i) => {
        write(pen, note, EDGE, y + 4 + 16 * i, { size: 11, ink: INK2 })
      })
    },
  }
}

interface Hand {
  size?: number
  ink?: string
  align?: CanvasTextAlign
  bold?: boolean
}

function write(pen: Pen, text: string, x: number, y: number, hand: Hand = {}): void {
  pen.font = `${hand.bold ? '600 ' : ''}${hand.size ?? 11}px ${FONT}`
  pen.fillStyle = hand.ink ?? INK
  pen.textAlign = hand.align ?? 'left'
  pen.textBaseline = 'alphabetic'
  pen.fillText(text, x, y)
}

function one(pen: Brush, plan: Plan, table: Table, top: number, both: boolean): void {
  const { store, lens, col } = plan
  const rows = rowsOf(table, false)
  const direction = table.map.key.direction
  const head = both ? 20 : 0
  if (both) {
    const name = direction === 'denoising' ? 'Denoise' : 'Noise'
    write(pen, `${name}: share of the gap ${wordFor(direction, -1)}`, EDGE, top + 12, { bold: true })
  }
  const [left, y] = [EDGE + LEFT, top + head + 20]
  names(pen, plan, table, { left, top: y })
  pen.save()
  pen.translate(left, y)
  const scene = { table, rows, grid: { col }, theme: 'light' as const, scale: lens.scale }
  drawMap(pen, { ...scene, numbers: col >= 28 && rows.height >= 13, font: FONT, background: '#FFFFFF' })
  const at = find(table, store.chosen)
  if (at) {
    pen.strokeStyle = INK
    pen.lineWidth = 2
    pen.strokeRect(at[1] * col, rows.top[at[0]] as number, col - 1, rows.height - 1)
  }
  pen.restore()
  legend(pen, lens, left + col * table.cols.length + 24, y)
}

/** Long tokens are cut; the whole token stands in the prompt and in the numbers. */
const cut = (text: string, most: number): string => {
  const letters = [...new Intl.Segmenter().segment(text)].map((s) => s.segment)
  return letters.length > most ? `${letters.slice(0, most - 1).join('')}…` : text
}

function names(pen: Pen, plan: Plan, table: Table, at: { left: number; top: number }): void {
  const { store, col } = plan
  const rows = rowsOf(table, false)
  const token = (pos: unknown): string => visible(store.pair.clean_tokens[Number(pos)] ?? String(pos))
  const isToken = /^(pos|src|dest)$/.test(table.col)
  const every = Math.max(1, Math.ceil(24 / col))
  table.cols.forEach((label, c) => {
    if (c % every) return
    const differs = isToken && store.pair.differs.includes(Number(label))
    const text = isToken ? cut(token(label), Math.max(2, Math.floor((col * every - 4) / 7))) : String(label)
    const place = { align: 'center' as const, bold: differs, ink: differs ? INK : INK2 }
    write(pen, text, at.left + (c + 0.5) * col, at.top - 6, place)
  })
  if (!isToken) write(pen, table.col, at.left - 8, at.top - 6, { align: 'right', ink: INK2 })
  const each = Math.max(1, Math.ceil(11 / rows.height))
  table.rows.forEach((row, r) => {
    if (r % each) return
    const text = table.rowAxes
      .map((a) => (a === 'dest' ? cut(token(row[a]), 10) : `${r === 0 ? `${a} ` : ''}${row[a]}`))
      .join(' · ')
    const y = at.top + (rows.top[r] as number) + rows.height / 2 + 4
    write(pen, text, at.left - 8, y, { align: 'right', ink: INK2 })
  })
}

const TALL = 96

function legend(pen: Pen, { scale }: Lens, x: number, y: number): void {
  const shades = SCALE.light.length * 4
  for (let i = 0; i < shades; i++) {
    pen.fillStyle = css(diverging(1 - (2 * i) / (shades - 1), 'light'))
    pen.fillRect(x, y + (i * TALL) / shades, 8, TALL / shades + 0.5)
  }
  const ticks = [scale.limit, 0, -scale.limit, ...(scale.log && scale.limit > 0.1 ? [0.1, -0.1] : [])]
  for (const v of ticks)
    write(pen, tick(v), x + 14, y + 4 + (TALL / 2) * (1 - tone(v, scale)), { size: 10, ink: INK2 })
}
