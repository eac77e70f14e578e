// How the chosen cell's effect is spread over pairs: a dot for each, the mean, its interval.

import { heardOfCell, type Spread as Told } from './cells'
import { type Child, h } from './dom'
import { tableNumber } from './format'
import type { Store } from './store'
import { type Direction, directionsOf } from './wire'

const WIDTH = 268
const PAD = 10
const DOT = 3.6
const BASE = 46

interface Laid {
  x: number
  y: number
  pair: number
}

/** Dots on a line, piled up where they would meet; high piles are pressed together. */
export function pile(values: readonly (number | null)[], X: (v: number) => number): Laid[] {
  const spots = values.flatMap((v, pair) => (v === null ? [] : [{ x: X(v), pair }]))
  spots.sort((a, b) => a.x - b.x)
  const laid: Laid[] = []
  for (const spot of spots) {
    let level = 0
    while (laid.some((d) => d.y === level && Math.abs(d.x - spot.x) < 2 * DOT)) level++
    laid.push({ ...spot, y: level })
  }
  const top = Math.max(0, ...laid.map((d) => d.y))
  const step = top > 5 ? (5 * 2 * DOT) / top : 2 * DOT
  return laid.map((d) => ({ ...d, y: BASE - 5 - d.y * step }))
}

/** Steps of an axis that people read: 1, 2 or 5 of a power of ten, four to six of them. */
export function ticks(low: number, high: number): number[] {
  const span = Math.max(1e-9, high - low)
  const power = 10 ** Math.floor(Math.log10(span / 4))
  const step = power * ([1, 2, 5, 10].find((m) => span / (m * power) <= 6) ?? 10)
  const out: number[] = []
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) out.push(v)
  return out
}

function label(value: number, all: readonly number[]): string {
  const step = Math.abs((all[1] ?? 1) - (all[0] ?? 0))
  const digits = Math.max(0, Math.min(4, Math.ceil(-Math.log10(step) - 1e-9)))
  const text = Math.abs(value).toFixed(digits).replace(/^0\./, '.')
  return Number(text) === 0 ? '0' : (value < 0 ? '−' : '') + text
}

export function SpreadOver({ store }: { store: Store }): Child {
  const heard = heardOfCell(store)
  const told = heard?.told?.spread ?? {}
  const shown = directionsOf(store.shown.value.direction).filter((d) => told[d])
  const first = shown[0] && told[shown[0]]
  if (!first) return null
  const one = shown.length === 1
  const missing = first.values.filter((v) => v === null).length
  return (
    <section class={heard?.old ? 'spread old' : 'spread'} data-testid="nbp-spread" aria-busy={!!heard?.old}>
      <h4>
        Spread over {first.values.length} pairs
        {one && <Amount told={first} />}
      </h4>
      {shown.map((d) => (
        <Dots key={d} told={told[d] as Told} direction={d} name={!one} now={store.shown.value.pair} />
      ))}
      <p class="note">
        Bar: mean and 95 % bootstrap interval, as shares of the gap.
        {missing > 0 && ` ${missing} ${missing === 1 ? 'pair has' : 'pairs have'} no value.`}
      </p>
    </section>
  )
}

const number = (v: number | null): string => (v === null ? 'none' : tableNumber(v).replace(/^(−?)\./, '$10.'))

function Amount({ told }: { told: Told }): Child {
  return (
    <span class="amount">
      <b>{number(told.mean)}</b> [{number(told.low)}, {number(told.high)}]
    </span>
  )
}

function Dots(props: { told: Told; direction: Direction; name: boolean; now: number }): Child {
  const { told, direction, name, now } = props
  const there = told.values.filter((v): v is number => v !== null)
  const all = [...there, ...[told.mean, told.low, told.high].filter((v): v is number => v !== null)]
  if (!there.length) return <p class="note">No pair has a value.</p>
  const middle = (Math.max(...all) + Math.min(...all)) / 2
  const half = Math.max(0.01, (Math.max(...all) - Math.min(...all)) / 2)
  const [low, high] = [middle - half * 1.1, middle + half * 1.1]
  // What is lost grows to the right, as what is restored does.
  const lost = (told.mean ?? 0) < 0
  const turned = lost && direction === 'noising'
  const X = (v: number): number => {
    const share = (v - low) / (high - low)
    return PAD + (turned ? 1 - share : share) * (WIDTH - 2 * PAD)
  }
  const marks = ticks(low, high)
  const word = direction === 'denoising' ? 'restores' : 'loses'
  return (
    <div class="dots">
      {name && (
        <p class="spread-name">
          {word} <Amount told={told} />
        </p>
      )}
      <svg
        class={lost ? 'beeswarm neg' : 'beeswarm pos'}
        viewBox={`0 0 ${WIDTH} ${BASE + 18}`}
        role="img"
        aria-label={`Share of the gap of ${there.length} pairs: mean ${number(told.mean)}, 95 % interval ${number(told.low)} to ${number(told.high)}, from ${number(Math.min(...there))} to ${number(Math.max(...there))}`}
      >
        <path class="axis" d={`M0 ${BASE}H${WIDTH}`} />
        {marks.map((v) => (
          <text key={v} x={X(v)} y={BASE + 15} text-anchor="middle">
            {label(v, marks)}
          </text>
        ))}
        {pile(told.values, X).map((d) => (
          <circle key={d.pair} cx={d.x} cy={d.y} r={DOT} class={d.pair === now ? 'now' : ''} />
        ))}
        {told.low !== null && told.high !== null && (
          <path class="interval" d={`M${X(told.low)} ${BASE}H${X(told.high)}`} />
        )}
        {told.mean !== null && <path class="mean" d={`M${X(told.mean)} ${BASE - 5}v10`} />}
      </svg>
    </div>
  )
}
