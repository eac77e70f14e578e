// The scale of a map: what its colours mean, and where the value is that one points at.

import { type Scale, tone } from './colour'
import { type Child, h } from './dom'
import { tick } from './format'
import { yardstick } from './table'
import type { HeatMap } from './wire'

interface LegendProps {
  map: HeatMap
  scale: Pick<Scale, 'limit' | 'log' | 'note'>
  /** The cell that is pointed at or chosen, or −1. */
  index: number
  /** Upright beside the map, or lying under it when 0. */
  height: number
  /** Whether a lying scale says what it shows; an upright one has no room. */
  words?: boolean
}

export function Legend({ map, scale, index, height, words }: LegendProps): Child {
  const { limit, log, note } = scale
  const { by, share } = yardstick(map)
  const value = tone((map.effect[index] ?? Number.NaN) / by, scale)
  const lying = height === 0
  const at = (v: number) => ({ [lying ? 'left' : 'bottom']: `${50 + 50 * Math.max(-1, Math.min(1, v))}%` })
  // A logarithm is read by its decades: one tick on each side says which it is.
  const between = log && limit > 0.1 ? [0.1, -0.1] : []
  return (
    <div
      class={`legend${lying ? ' lying' : ''}`}
      style={lying ? {} : { height: `${height}px` }}
      aria-hidden="true"
    >
      <i class="ramp" />
      {Number.isFinite(value) && <i class="pointer" style={at(value)} />}
      <span class="hi">{tick(limit)}</span>
      <span class="mid">0</span>
      <span class="lo">{tick(-limit)}</span>
      {lying && words && (
        <span class="what">
          {map.parts ? 'difference of shares' : share ? 'share of the gap' : 'of the largest'}
          <br />
          dots: exactly 0
        </span>
      )}
      {between.map((v) => (
        <span key={v} class="tick" style={at(tone(v, scale))}>
          {tick(v)}
        </span>
      ))}
      {note && <span class="beyond">{note}</span>}
    </div>
  )
}
