// How many edges are kept: a slider whose track carries the faithfulness of every number of edges.

import { countAt, type Faithful, grouped, placeOf, type Scored, stepped } from './circuit_data'
import { keep } from './circuit_state'
import { type Child, h } from './dom'
import { plural, readNumber } from './format'
import type { Store } from './store'

const FINE = 1000
/** Half the thumb: the track begins and ends there. */
const PAD = 8
const HIGH = 58
const LEFT = 26

interface Props {
  store: Store
  data: Scored
  n: number
  /** How many of them lead to the answer; null until that is known. */
  leading: number | null
  threshold: number | null
  faithful: Faithful | null
  old: boolean
  width: number
}

export function Slider(props: Props): Child {
  const { store, data, n, leading, threshold, faithful, old, width } = props
  const { total, unit } = data
  const least = threshold === null ? '…' : threshold.toFixed(2)
  const units = plural(unit, 0)
  const lost = leading === null ? 0 : n - leading
  const inner = width - LEFT
  const said = `${n} of ${total} edges, score at least ${least}${units && ` ${units}`}`
  return (
    <div class="keeping">
      <div class="least">
        <h4>Keep edges with a score of at least</h4>
        <div class="big">
          <b>{least}</b>
          <span>
            {units}
            <br />
            {grouped(n)} of {grouped(total)} edges
          </span>
        </div>
        <p class="note">
          {lost > 0
            ? `${lost} of them ${lost === 1 ? 'leads' : 'lead'} nowhere and ${lost === 1 ? 'is' : 'are'} left out, which changes nothing.`
            : 'By |score|, the strongest first.'}
        </p>
      </div>
      <div class="track-box" style={{ width: `${width}px` }}>
        <Curve data={data} n={n} faithful={faithful} old={old} width={width} />
        <div class="track" style={{ 'margin-left': `${LEFT}px`, width: `${inner}px` }}>
          <i class="whole" />
          <i class="done" style={{ width: `${placeOf(n, total) * (inner - 2 * PAD)}px` }} />
          <input
            type="range"
            data-testid="nbp-threshold"
            data-lm-suppress-shortcuts="true"
            aria-label="Number of edges kept"
            aria-valuetext={said}
            title={said}
            min="0"
            max={FINE}
            step="any"
            value={String(FINE * placeOf(n, total))}
            onInput={(e: Event & { currentTarget: HTMLInputElement }) => {
              // Jumps on the way to a value that was rounded here would be taken for a move.
              const wish = countAt(Number(e.currentTarget.value) / FINE, total)
              keep(store, data, wish)
            }}
            onKeyDown={(e) => {
              if (e.ctrlKey || e.metaKey || e.altKey) return
              const next = stepped(e.key, n, data)
              if (next === null) return
              e.preventDefault()
              e.stopPropagation()
              keep(store, data, next)
            }}
          />
        </div>
        <Ticks total={total} inner={inner} />
        <p class="note">{caption(data, faithful)}</p>
      </div>
    </div>
  )
}

function caption(data: Scored, faithful: Faithful | null): string {
  if (!data.runs) return 'No faithfulness without a model: nbp.CircuitView(circuit, model).'
  const points = faithful?.curve ?? []
  const rises = points.findIndex(([, f]) => f > 0)
  const low = rises > 0 && points.slice(0, rises).some(([, f]) => f < -0.02)
  const more = low
    ? ` It falls below 0 before it rises: fewer than ${grouped((points[rises] as [number, number])[0])} edges do worse than none.`
    : ''
  const going = faithful && !faithful.done ? ' More points are being run.' : ''
  return `Line: faithfulness of the kept edges, each point run exactly.${more}${going}`
}

function Curve({ data, n, faithful, old, width }: Omit<Props, 'store' | 'leading' | 'threshold'>): Child {
  const points = faithful?.curve ?? []
  const values = points.map(([, f]) => f)
  const low = Math.min(0, ...values)
  const high = Math.max(1, ...values)
  const x = (k: number): number => LEFT + PAD + placeOf(k, data.total) * (width - LEFT - 2 * PAD)
  const y = (f: number): number => 10 + ((high - f) / (high - low)) * (HIGH - 16)
  const here = faithful && !old && typeof faithful.faithful === 'number' ? faithful.faithful : null
  const at = x(n)
  const label = here === null ? (data.runs ? '…' : '') : readNumber(here).replace('+', '')
  return (
    <svg
      class="curve"
      width={width}
      height={HIGH}
      viewBox={`0 0 ${width} ${HIGH}`}
      role="img"
      aria-label="Faithfulness by number of edges"
    >
      {[0, 1].map((f) => (
        <g key={f}>
          <line x1={LEFT} x2={width} y1={y(f)} y2={y(f)} />
          <text x={LEFT - 8} y={y(f) + 4} text-anchor="end">
            {f}
          </text>
        </g>
      ))}
      <polyline points={points.map(([k, f]) => `${x(k)},${y(f)}`).join(' ')} />
      {points.map(([k, f]) => (
        <circle key={k} cx={x(k)} cy={y(f)} r="2.2" />
      ))}
      <line class="now" x1={at} x2={at} y1="2" y2={HIGH} />
      {here !== null && <circle class="now" cx={at} cy={y(here)} r="4" />}
      <text
        class="value"
        x={at > LEFT + 44 ? at - 8 : at + 8}
        y="14"
        text-anchor={at > LEFT + 44 ? 'end' : 'start'}
      >
        {label}
      </text>
    </svg>
  )
}

function Ticks({ total, inner }: { total: number; inner: number }): Child {
  const end = `all ${grouped(total)} edges`
  const room = inner - 6.2 * end.length - 12
  const powers = [1, 10, 100, 1000, 10_000, 100_000].filter((k) => k < total)
  const x = (k: number): number => PAD + placeOf(k, total) * (inner - 2 * PAD)
  return (
    <div class="ticks" style={{ 'margin-left': `${LEFT}px`, width: `${inner}px` }}>
      {powers
        .filter((k) => x(k) < room)
        .map((k) => (
          <span key={k} style={{ left: `${x(k)}px` }}>
            {grouped(k)}
          </span>
        ))}
      <span class="last">{end}</span>
    </div>
  )
}
