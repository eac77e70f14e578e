// How good the estimate was: a point for each cell that has both an estimate and an exact value.

import { estimateOf } from './cells'
import { css, diverging } from './colour'
import { type Child, h } from './dom'
import { readNumber, tableNumber } from './format'
import { same } from './gestures'
import type { Frame } from './map'
import type { Store } from './store'
import { unravel, yardstick } from './table'
import { type Cell, type HeatMap, State } from './wire'
import { short, title } from './words'

const WIDTH = 268
const HEIGHT = 190
const PAD = { left: 10, right: 12, top: 14, bottom: 16 }
/** The strongest of them are drawn; R² and ρ are of all. */
const MOST = 800

export interface Both {
  cell: Cell
  estimate: number
  exact: number
}

/** Cells with both, as shares of the gap, the weakest first. What is exactly 0 by construction was not estimated. */
export function both(estimate: HeatMap, exact: HeatMap): Both[] {
  const by = yardstick(exact).by
  const out: Both[] = []
  exact.effect.forEach((v, i) => {
    const e = (estimate.effect[i] ?? Number.NaN) / by
    if (exact.state[i] === State.Measured && Number.isFinite(v) && Number.isFinite(e))
      out.push({ cell: unravel(exact, i), estimate: e, exact: v / by })
  })
  const size = (p: Both): number => Math.max(Math.abs(p.estimate), Math.abs(p.exact))
  return out.sort((p, q) => size(p) - size(q))
}

/** R² of taking estimates for exact values: 1 − squared errors / squared deviations from the mean. */
export function explained(points: readonly Both[]): number {
  const mean = points.reduce((sum, p) => sum + p.exact, 0) / points.length
  const off = points.reduce((sum, p) => sum + (p.exact - p.estimate) ** 2, 0)
  const spread = points.reduce((sum, p) => sum + (p.exact - mean) ** 2, 0)
  return spread > 0 ? 1 - off / spread : Number.NaN
}

/** Places of values in order, equal ones sharing the middle of theirs. */
function ranks(values: readonly number[]): number[] {
  const order = values.map((_, i) => i).sort((a, b) => (values[a] as number) - (values[b] as number))
  const out: number[] = new Array(values.length)
  for (let from = 0; from < order.length; ) {
    let to = from
    while (to + 1 < order.length && values[order[to + 1] as number] === values[order[from] as number]) to++
    for (let k = from; k <= to; k++) out[order[k] as number] = (from + to) / 2
    from = to + 1
  }
  return out
}

/** Spearman's rank correlation. */
export function rankCorrelation(points: readonly Both[]): number {
  const [a, b] = [ranks(points.map((p) => p.estimate)), ranks(points.map((p) => p.exact))]
  const middle = (points.length - 1) / 2
  const sum = (f: (i: number) => number): number => points.reduce((s, _, i) => s + f(i), 0)
  const [da, db] = [a, b].map((list) => (i: number) => (list[i] as number) - middle) as [
    (i: number) => number,
    (i: number) => number,
  ]
  return sum((i) => da(i) * db(i)) / Math.sqrt(sum((i) => da(i) ** 2) * sum((i) => db(i) ** 2))
}

interface Counted {
  estimate?: HeatMap
  exact?: HeatMap
  points: Both[]
  r2: number
  rho: number
}

/** Counted once for each two maps: a running sweep brings new ones many times a second. */
function counted(store: Store, estimate: HeatMap, exact: HeatMap): Counted {
  const kept = store.own<Counted>('against', { points: [], r2: Number.NaN, rho: Number.NaN }).value
  if (kept.estimate === estimate && kept.exact === exact) return kept
  const points = both(estimate, exact)
  return Object.assign(kept, {
    estimate,
    exact,
    points,
    r2: explained(points),
    rho: rankCorrelation(points),
  })
}

export function EstimateAgainstExact({ store, frame }: { store: Store; frame: Frame }): Child {
  const exact = store.onScreen.find((m) => !m.estimate && estimateOf(store, m))
  const estimate = exact && estimateOf(store, exact)
  if (!exact || !estimate || estimate === exact) return null
  const { points, r2, rho } = counted(store, estimate, exact)
  const text = (v: number): string => (Number.isFinite(v) ? readNumber(v).replace('+', '') : 'none')
  return (
    <section data-testid="nbp-estimate" data-points={points.length}>
      <h4>
        Estimate against exact
        <span class="key">
          R² <b>{text(r2)}</b> &nbsp; ρ <b>{text(rho)}</b>
        </span>
      </h4>
      {points.length > 0 ? (
        <Scatter store={store} frame={frame} points={points.slice(-MOST)} />
      ) : (
        <p class="note">No cell has both yet.</p>
      )}
    </section>
  )
}

function Scatter({ store, frame, points }: { store: Store; frame: Frame; points: Both[] }): Child {
  const all = points.flatMap((p) => [p.estimate, p.exact])
  const low = Math.min(0, ...all) - 0.03
  const high = Math.max(0.05, ...all) * 1.06
  const at = (v: number): number => (v - low) / (high - low)
  const X = (v: number): number => PAD.left + at(v) * (WIDTH - PAD.left - PAD.right)
  const Y = (v: number): number => HEIGHT - PAD.bottom - at(v) * (HEIGHT - PAD.top - PAD.bottom)
  const now = store.hover.value ?? store.chosen
  const tick = [1, 0.5, 0.2, 0.1, 0.05].find((v) => v < high * 0.8) ?? 0.02
  const named = points.slice(-2).filter((p) => Math.max(Math.abs(p.exact), Math.abs(p.estimate)) > high * 0.3)
  return (
    <svg
      class="against"
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      role="group"
      aria-label="Estimate against exact, one point per cell"
    >
      <path class="axis" d={`M${X(low)} ${Y(0)}H${X(high)}M${X(0)} ${Y(low)}V${Y(high)}`} />
      <path class="cut" d={`M${X(low)} ${Y(low)}L${X(high)} ${Y(high)}`} />
      <text x={X(tick)} y={Y(0) + 13} text-anchor="middle">
        {tableNumber(tick).replace(/0$/, '')}
      </text>
      <text x={X(0) - 4} y={Y(tick) + 3} text-anchor="end">
        {tableNumber(tick).replace(/0$/, '')}
      </text>
      <text x={X(high)} y={Y(0) + 13} text-anchor="end">
        estimate →
      </text>
      <text transform={`translate(${X(0) + 11} ${Y(high) + 2}) rotate(-90)`} text-anchor="end">
        exact →
      </text>
      {points.map((p) => (
        <Point
          key={JSON.stringify(p.cell)}
          store={store}
          frame={frame}
          point={p}
          x={X(p.estimate)}
          y={Y(p.exact)}
        />
      ))}
      {points
        .filter((p) => same(p.cell, now) || named.includes(p))
        .map((p) => {
          const left = at(p.estimate) > 0.55
          return (
            <text
              key={`t${JSON.stringify(p.cell)}`}
              class={same(p.cell, now) ? 'on' : ''}
              x={X(p.estimate) + (left ? -8 : 8)}
              y={Y(p.exact) + 4}
              text-anchor={left ? 'end' : 'start'}
            >
              {short(p.cell)}
            </text>
          )
        })}
    </svg>
  )
}

function Point(props: { store: Store; frame: Frame; point: Both; x: number; y: number }): Child {
  const { store, frame, point, x, y } = props
  const on = same(point.cell, store.hover.value ?? store.chosen)
  const pick = () => store.choose(point.cell)
  return (
    <circle
      cx={x}
      cy={y}
      r={on ? 5 : 3.4}
      class={on ? 'on' : ''}
      fill={css(diverging(point.exact / store.limitOf(store.onScreen), frame.theme))}
      role="button"
      tabIndex={on ? 0 : -1}
      aria-label={`${title(point.cell)}: estimate ${readNumber(point.estimate)}, exact ${readNumber(point.exact)}`}
      onClick={pick}
      onMouseEnter={() => {
        store.hover.value = point.cell
      }}
      onMouseLeave={() => {
        store.hover.value = null
      }}
    />
  )
}
