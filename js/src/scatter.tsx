// Both directions against each other: what restores, what is necessary, and what is both.

import { css, diverging } from './colour'
import { type Child, h } from './dom'
import { tick } from './format'
import { together } from './gestures'
import type { Frame } from './map'
import type { Store } from './store'
import { unravel, yardstick } from './table'
import type { Cell, HeatMap } from './wire'
import { short } from './words'

const THRESHOLD = 0.1
const SIZE = 430
const PAD = { left: 42, right: 12, top: 8, bottom: 38 }
const MOST = 1500

interface Point {
  x: number
  y: number
  cell: Cell
  size: number
}

/** Share restored by denoising against share lost by noising, strongest last so that it lies on top. */
export function points(restore: HeatMap, lose: HeatMap): Point[] {
  const [a, b] = [yardstick(restore).by, yardstick(lose).by]
  const out: Point[] = []
  restore.effect.forEach((v, i) => {
    const [x, y] = [v / a, -(lose.effect[i] ?? Number.NaN) / b]
    if (Number.isFinite(x) && Number.isFinite(y))
      out.push({ x, y, cell: unravel(restore, i), size: Math.max(Math.abs(x), Math.abs(y)) })
  })
  return out.sort((p, q) => p.size - q.size).slice(-MOST)
}

/** A box drawn over points, in the picture's own units. */
interface Lasso {
  x0: number
  y0: number
  x1: number
  y1: number
}

/** Dragging over points brushes their cells, as dragging over cells does. */
function lassoing(store: Store, all: readonly Point[], X: (v: number) => number, Y: (v: number) => number) {
  const box = store.own<Lasso | null>('lasso', null)
  const spot = (e: PointerEvent & { currentTarget: SVGElement }): [number, number] => {
    const { left, top, width } = e.currentTarget.getBoundingClientRect()
    const scale = SIZE / (width || SIZE)
    return [(e.clientX - left) * scale, (e.clientY - top) * scale]
  }
  return {
    onPointerDown(e: PointerEvent & { currentTarget: SVGElement }) {
      if (e.button !== 0 || e.pointerType === 'touch' || !store.spec.value.can_run) return
      const [x, y] = spot(e)
      box.value = { x0: x, y0: y, x1: x, y1: y }
    },
    onPointerMove(e: PointerEvent & { currentTarget: SVGElement }) {
      if (!box.value) return
      e.currentTarget.setPointerCapture?.(e.pointerId)
      const [x1, y1] = spot(e)
      box.value = { ...box.value, x1, y1 }
    },
    onPointerUp() {
      const { value } = box
      box.value = null
      if (!value || Math.hypot(value.x1 - value.x0, value.y1 - value.y0) < 5) return
      const within = (v: number, a: number, b: number): boolean => v >= Math.min(a, b) && v <= Math.max(a, b)
      const inside = all.filter(
        (p) => within(X(p.x), value.x0, value.x1) && within(Y(p.y), value.y0, value.y1),
      )
      store.brush(inside.map((p) => p.cell))
    },
    onPointerCancel() {
      box.value = null
    },
  }
}

function LassoBox({ store }: { store: Store }): Child {
  const box = store.own<Lasso | null>('lasso', null).value
  if (!box) return null
  const { x0, y0, x1, y1 } = box
  return (
    <rect
      class="lasso"
      x={Math.min(x0, x1)}
      y={Math.min(y0, y1)}
      width={Math.abs(x1 - x0)}
      height={Math.abs(y1 - y0)}
    />
  )
}

const heads = (n: number): string => `${n} ${n === 1 ? 'head' : 'heads'}`

export function Quadrants({ store, frame }: { store: Store; frame: Frame }): Child {
  const [restore, lose] = store.onScreen
  if (!restore || !lose || restore.effect.length !== lose.effect.length || frame.narrow) return null
  if (restore.dims.join() !== 'layer,head' || store.width.value < 900) return null
  const all = points(restore, lose)
  const high = Math.max(0.3, ...all.map((p) => Math.max(p.x, p.y))) * 1.08
  const low = Math.min(-0.06, ...all.map((p) => Math.min(p.x, p.y))) * 1.08
  const at = (v: number): number => (v - low) / (high - low)
  const X = (v: number): number => PAD.left + at(v) * (SIZE - PAD.left - PAD.right)
  const Y = (v: number): number => SIZE - PAD.bottom - at(v) * (SIZE - PAD.top - PAD.bottom)
  const ticks = [0, 0.25, 0.5, 0.75, 1].filter((v) => v < high)
  const both = all.filter((p) => p.x >= THRESHOLD && p.y >= THRESHOLD).length
  const only = all.filter((p) => p.x >= THRESHOLD && p.y < THRESHOLD).length
  const lost = all.filter((p) => p.x < THRESHOLD && p.y >= THRESHOLD).length
  const brushed = new Set(together(store).map((cell) => JSON.stringify(cell)))
  const selected = JSON.stringify(store.hover.value ?? store.chosen)
  const [right, top, edge] = [SIZE - PAD.right, PAD.top, X(THRESHOLD)]
  return (
    <svg
      class="scatter"
      viewBox={`0 0 ${SIZE} ${SIZE}`}
      role="img"
      aria-label="Share restored against share lost, one point per head"
      {...lassoing(store, all, X, Y)}
    >
      <rect class="area" x={edge} y={top} width={right - edge} height={Y(THRESHOLD) - top} />
      <path class="axis" d={`M${PAD.left} ${top}V${SIZE - PAD.bottom}H${right}`} />
      <path class="diagonal" d={`M${X(low)} ${Y(low)}L${X(high)} ${Y(high)}`} />
      <path class="cut" d={`M${edge} ${top}V${SIZE - PAD.bottom}M${PAD.left} ${Y(THRESHOLD)}H${right}`} />
      {ticks.map((v) => (
        <g key={v} class="tick">
          <text x={X(v)} y={SIZE - PAD.bottom + 14} text-anchor="middle">
            {tick(v).replace('+', '')}
          </text>
          <text x={PAD.left - 6} y={Y(v) + 3} text-anchor="end">
            {tick(v).replace('+', '')}
          </text>
        </g>
      ))}
      <text class="name" x={right} y={SIZE - 6} text-anchor="end">
        sufficient: share restored by denoising →
      </text>
      <text class="name" transform={`translate(10 ${top}) rotate(-90)`} text-anchor="end">
        necessary: share lost by noising →
      </text>
      <text class="quadrant" x={edge + 6} y={top + 14}>
        sufficient and necessary
      </text>
      <text class="quadrant thin" x={edge + 6} y={top + 28}>
        {heads(both)}
      </text>
      <text class="quadrant" x={right - 6} y={Y(THRESHOLD) + 15} text-anchor="end">
        sufficient, not necessary
      </text>
      <text class="quadrant thin" x={right - 6} y={Y(THRESHOLD) + 29} text-anchor="end">
        {heads(only)}: a backup can replace it (OR)
      </text>
      <text class="quadrant" transform={`translate(${edge - 19} ${top + 4}) rotate(-90)`} text-anchor="end">
        necessary, not sufficient
      </text>
      <text
        class="quadrant thin"
        transform={`translate(${edge - 6} ${top + 4}) rotate(-90)`}
        text-anchor="end"
      >
        {heads(lost)}: works with others (AND)
      </text>
      <text x={edge + 4} y={SIZE - PAD.bottom - 6}>
        threshold {tick(THRESHOLD).replace('+', '')}0
      </text>
      {all.map((p, i) => {
        const on = JSON.stringify(p.cell) === selected || brushed.has(JSON.stringify(p.cell))
        const strong = p.size >= THRESHOLD
        return (
          <g key={short(p.cell)} class="point" onClick={() => store.choose(p.cell)}>
            <circle
              cx={X(p.x)}
              cy={Y(p.y)}
              r={on ? 6 : 4.5}
              fill={css(diverging(Math.max(p.x, p.y), frame.theme))}
              class={on ? 'on' : ''}
              onMouseEnter={() => {
                store.hover.value = p.cell
              }}
              onMouseLeave={() => {
                store.hover.value = null
              }}
            />
            {(on || (strong && i >= all.length - 8)) && (
              <text
                x={X(p.x) + (at(p.x) > 0.9 ? -9 : 9)}
                y={Y(p.y) + 4}
                text-anchor={at(p.x) > 0.9 ? 'end' : 'start'}
                class={on ? 'on' : ''}
              >
                {short(p.cell)}
              </text>
            )}
          </g>
        )
      })}
      <LassoBox store={store} />
    </svg>
  )
}
