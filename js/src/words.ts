// A cell in words, for the read-out, the inspector and screen readers.

import { plain, plural, readNumber } from './format'
import { indexIn, place, reason, tokenAt, yardstick } from './table'
import { type Cell, type Direction, type HeatMap, type Pair, State } from './wire'

const capital = (t: string): string => t.charAt(0).toUpperCase() + t.slice(1)

export const wordFor = (direction: Direction, share: number): string =>
  direction === 'denoising' ? 'restored' : share > 0 ? 'added' : 'lost'

/** What one map says of a cell: "+0.96 of the gap restored, +7.76 logits". */
export function finding(map: HeatMap, cell: Cell): string {
  const index = indexIn(map, cell)
  if (index < 0) return 'not on this map'
  const state = map.state[index] ?? State.NotRun
  const effect = map.effect[index] ?? Number.NaN
  if (Number.isNaN(effect)) return reason(state) || 'no value'
  if (map.parts) {
    const [one, other] = map.parts.map((m) => readNumber((m.effect[index] ?? Number.NaN) / yardstick(m).by))
    return `${readNumber(effect)} of the gap, ${one} minus ${other}`
  }
  const { by, share } = yardstick(map)
  const amount = `${readNumber(effect)} ${plural(map.unit, effect)}`.trim()
  const text = share
    ? `${readNumber(effect / by)} of the gap ${wordFor(map.key.direction, effect / by)}, ${amount}`
    : `${amount}; there is no gap to share out`
  return state === State.Measured ? text : `${text} (${reason(state)})`
}

/** "Layer 4, position 8 ‘l’: +0.96 of the gap restored, +7.76 logits." */
export function readout(maps: readonly HeatMap[], cell: Cell, pair: Pair): string {
  const token = tokenAt(cell, pair)
  const where = capital(place(cell)) + (token === undefined ? '' : ` ‘${plain(token)}’`)
  return `${where}: ${maps.map((m) => finding(m, cell)).join('; ')}.`
}

export const title = (cell: Cell): string => capital(place(cell))

/** "4.2 at 19": a cell in the least words, for labels and tables. */
export function short(cell: Cell): string {
  const unit = cell.head ?? cell.neuron
  const at = cell.pos ?? cell.dest ?? cell.label
  const name = [cell.layer, unit].filter((v) => v !== undefined).join('.')
  const where = at === undefined ? '' : cell.layer === undefined ? String(at) : ` at ${at}`
  return `${name}${where}${cell.src === undefined ? '' : ` to ${cell.src}`}`
}
