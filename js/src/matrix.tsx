// One attention pattern as a matrix, and all of them as thumbnails.

import { penOf } from './canvas'
import { hasPatched, withPatched } from './cells'
import { attentionInk, css, diverging, mix, parse, pool, type Theme } from './colour'
import { type Child, h } from './dom'
import type { Frame } from './map'
import type { Look, Mode, Store } from './store'
import { TOKENS } from './style.generated'
import { indexIn, yardstick } from './table'
import type { Attention, HeatMap } from './wire'

/** Bytes up to which all layers are asked for, for the thumbnails. */
export const SMALL = 4e6

interface At {
  head: number
  dest: number
  src: number
}

export const weight = (a: Attention, run: number, { head, dest, src }: At): number =>
  a.values[((run * a.heads + head) * a.dest + dest) * a.src + src] ?? 0

const RUNS = ['clean', 'corrupted', 'patched']

/** Weight of one run, or clean − corrupted. */
export const weightIn = (data: Attention, mode: Mode, at: At): number =>
  mode === 'difference' ? weight(data, 0, at) - weight(data, 1, at) : weight(data, RUNS.indexOf(mode), at)

/** Moves destination and source with the arrow keys: down and up the rows, left and right along one. */
export function lookKeys(
  event: KeyboardEvent,
  at: { dest: number; src: number },
  n: readonly [dest: number, src: number],
  onLook: (look: Look) => void,
): void {
  const { key } = event
  const steps: Record<string, readonly [number, number]> = {
    ArrowUp: [-1, 0],
    ArrowDown: [1, 0],
    ArrowLeft: [0, -1],
    ArrowRight: [0, 1],
    Home: [0, -at.src],
    End: [0, at.dest - at.src],
  }
  const step = steps[key]
  if ((!step && key !== 'Escape') || event.ctrlKey || event.metaKey || event.altKey) return
  event.preventDefault()
  event.stopPropagation()
  if (!step) return onLook({ dest: null, src: null })
  const dest = Math.max(0, Math.min(n[0] - 1, at.dest + step[0]))
  onLook({ dest, src: Math.max(0, Math.min(dest, n[1] - 1, at.src + step[1])) })
}

/** One head's weights, or clean − corrupted [dest × src]. */
export function pattern(a: Attention, head: number, mode: Mode): Float32Array {
  const size = a.dest * a.src
  const of = (run: number) =>
    a.values.subarray((run * a.heads + head) * size, (run * a.heads + head + 1) * size)
  if (mode !== 'difference') return of(RUNS.indexOf(mode))
  const corrupted = of(1)
  return of(0).map((v, i) => v - (corrupted[i] as number))
}

interface Spot {
  x: number
  y: number
  size: number
}

/** Paints a pattern into a square; more tokens than pixels are pooled to the strongest. */
export function paint(
  pen: CanvasRenderingContext2D,
  values: Float32Array,
  n: readonly [number, number],
  spot: Spot,
  look: { mode: Mode; theme: Theme; gap: number },
): void {
  const { mode, theme, gap } = look
  const [rows, cols] = n
  const out = [Math.min(rows, Math.floor(spot.size)), Math.min(cols, Math.floor(spot.size))] as const
  const kept = pool(values, n, out)
  const bg = parse(TOKENS[theme].bg as string)
  const ink = parse(TOKENS[theme].ink as string)
  const most =
    mode === 'difference'
      ? Math.max(
          1e-6,
          values.reduce((m, v) => Math.max(m, Math.abs(v)), 0),
        )
      : 1
  const px = spot.size / Math.max(out[0], out[1])
  kept.forEach((index, i) => {
    const [r, c] = [Math.floor(i / out[1]), i % out[1]]
    if (c / out[1] > r / out[0] + 1e-9) return
    const v = values[index] ?? 0
    pen.fillStyle = css(
      mode === 'difference' ? diverging(v / most, theme) : mix(bg, ink, 0.035 + 0.965 * attentionInk(v)),
    )
    pen.fillRect(spot.x + c * px, spot.y + r * px, px - gap, px - gap)
  })
}

interface MatrixProps {
  data: Attention
  head: number
  mode: Mode
  frame: Frame
  at: { dest: number; src: number }
  onLook: (look: Look) => void
  count: number
  wide: boolean
}

/** Pixels per token, and of the whole, where `count` matrices stand side by side. */
export function matrixSize(
  data: Attention,
  frame: Frame,
  count: number,
  wide: boolean,
): { px: number; size: number } {
  const n = Math.max(data.dest, data.src)
  const space = frame.narrow
    ? frame.space - frame.grid.gutter
    : (frame.space - (wide ? 290 : 0) - 24 * (count - 1)) / count
  const px = Math.max(1, Math.min(14, Math.floor(space / n)))
  return { px, size: n > space ? space : px * n }
}

export function Matrix({ data, head, mode, frame, at, onLook, count, wide }: MatrixProps): Child {
  const n = Math.max(data.dest, data.src)
  const { px, size } = matrixSize(data, frame, count, wide)
  const run = (canvas: HTMLCanvasElement) => {
    const pen = penOf(canvas, size, size)
    if (!pen) return
    pen.clearRect(0, 0, size, size)
    const look = { mode, theme: frame.theme, gap: px > 4 ? 1 : 0 }
    paint(pen, pattern(data, head, mode), [data.dest, data.src], { x: 0, y: 0, size }, look)
  }
  const when = [data, head, mode, frame.theme, size]
  const hit = (e: MouseEvent): Look => {
    const step = size / n
    const [src, dest] = [Math.floor(e.offsetX / step), Math.floor(e.offsetY / step)]
    return src >= 0 && dest < data.dest && src <= dest ? { dest, src } : { dest: null, src: null }
  }
  const step = size / n
  return (
    <div
      class="matrix"
      style={{ width: `${size}px`, height: `${size + 16}px` }}
      role="application"
      tabIndex={0}
      aria-label={`Attention, ${mode}: arrow keys choose from where to where`}
      data-lm-suppress-shortcuts="true"
      onKeyDown={(e) => lookKeys(e, at, [data.dest, data.src], onLook)}
    >
      <canvas
        paint={{ when, run }}
        style={{ width: `${size}px`, height: `${size}px` }}
        onMouseMove={(e) => onLook(hit(e))}
        onMouseLeave={() => onLook({ dest: null, src: null })}
      />
      <i class="dest" style={{ top: `${at.dest * step - 1}px`, height: `${Math.max(3, step)}px` }} />
      <i class="src" style={{ left: `${(at.src + 0.5) * step}px`, top: `${size + 3}px` }} />
    </div>
  )
}

/** All heads, a row per layer; the bar under one is its effect where a map over heads is here. */
export function Thumbnails({
  store,
  theme,
  look,
}: {
  store: Store
  theme: Theme
  look: { layer: number; head: number }
}): Child {
  const { n_layers, n_heads } = store.spec.value.model
  const cell = Math.max(8, Math.min(34, Math.floor(256 / n_heads)))
  const layers = Array.from({ length: n_layers }, (_, l) => l).filter((l) => store.attentionOf(l))
  const [width, height] = [n_heads * cell, layers.length * cell]
  const effects = [...store.maps.value.values()].find(
    (m) => m.key.component === 'z' && m.dims.join() === 'layer,head',
  )
  const mode = store.mode.value
  const run = (canvas: HTMLCanvasElement) => {
    const pen = penOf(canvas, width, height)
    if (!pen) return
    pen.clearRect(0, 0, width, height)
    for (const [row, layer] of layers.entries()) {
      const data = withPatched(store, layer)
      if (!data) continue
      // Of the patched run one layer is here; the others show the clean one, faintly.
      const shown = mode === 'patched' && !hasPatched(data) ? 'clean' : mode
      pen.globalAlpha = shown === mode ? 1 : 0.3
      for (let h = 0; h < n_heads; h++) {
        const spot = { x: h * cell, y: row * cell, size: cell - 4 }
        paint(pen, pattern(data, h, shown), [data.dest, data.src], spot, { mode, theme, gap: 0 })
        bar(pen, effects, { layer, head: h }, spot, theme)
      }
    }
  }
  const when = [store.attention.value, withPatched(store, look.layer), effects, mode, theme, width, height]
  const row = layers.indexOf(look.layer)
  return (
    <div class="thumbs">
      <p class="dim">heads, by layer{effects ? '; bar: effect of the head' : ''}</p>
      <div class="thumb-grid" style={{ width: `${width}px` }}>
        <span class="thumb-cols" aria-hidden="true">
          {Array.from({ length: n_heads }, (_, i) => (
            <span key={i} style={{ width: `${cell}px` }}>
              {n_heads <= 16 ? i : ''}
            </span>
          ))}
        </span>
        <span class="thumb-rows" aria-hidden="true">
          {layers.map((l) => (
            <span key={l} style={{ height: `${cell}px`, 'line-height': `${cell - 4}px` }}>
              {l}
            </span>
          ))}
        </span>
        <canvas
          paint={{ when, run }}
          style={{ width: `${width}px`, height: `${height}px` }}
          onClick={(e) => {
            const layer = layers[Math.floor(e.offsetY / cell)]
            if (layer !== undefined) store.lookAt(layer, Math.min(n_heads - 1, Math.floor(e.offsetX / cell)))
          }}
        />
        {row >= 0 && (
          <i
            class="ring"
            style={{
              left: `${look.head * cell - 2}px`,
              top: `${row * cell + 18 - 2}px`,
              width: `${cell}px`,
              height: `${cell}px`,
            }}
          />
        )}
      </div>
    </div>
  )
}

function bar(
  pen: CanvasRenderingContext2D,
  effects: HeatMap | undefined,
  cell: { layer: number; head: number },
  spot: Spot,
  theme: Theme,
): void {
  if (!effects) return
  const value = (effects.effect[indexIn(effects, cell)] ?? 0) / yardstick(effects).by
  if (!Number.isFinite(value)) return
  pen.fillStyle = css(diverging(value, theme))
  pen.fillRect(spot.x, spot.y + spot.size, spot.size, 3)
}
