// Attention as arcs over the prompt's own columns: from each position to those it looks at.

import { type Child, h } from './dom'
import { visible } from './format'
import type { Frame } from './map'
import { lookKeys, pattern } from './matrix'
import type { Look, Mode, Store } from './store'
import type { Attention } from './wire'

const HIGH = 132
const FLOOR = 6
/** The strongest arcs of all destinations are drawn faintly; more are a grey patch. */
const MOST = 300
const LEAST = 0.02

export interface Arc {
  dest: number
  src: number
  weight: number
}

/** The arcs of one head, the weakest first, so that the strongest lie on top. */
export function arcsOf(values: Float32Array, n: readonly [dest: number, src: number]): Arc[] {
  const out: Arc[] = []
  for (let dest = 0; dest < n[0]; dest++)
    for (let src = 0; src <= Math.min(dest, n[1] - 1); src++) {
      const weight = values[dest * n[1] + src] ?? 0
      if (Math.abs(weight) >= LEAST) out.push({ dest, src, weight })
    }
  return out.sort((a, b) => Math.abs(a.weight) - Math.abs(b.weight))
}

interface ArcsProps {
  store: Store
  frame: Frame
  data: Attention
  head: number
  mode: Mode
  at: { dest: number; src: number }
  onLook: (look: Look) => void
}

export function Arcs({ store, frame, data, head, mode, at, onLook }: ArcsProps): Child {
  const { gutter, col } = frame.grid
  const pair = store.pair
  const width = col * data.src
  const all = arcsOf(pattern(data, head, mode), [data.dest, data.src])
  const faint = all.filter((a) => a.dest !== at.dest).slice(-MOST)
  const near = all.filter((a) => a.dest === at.dest)
  const path = (a: Arc): string => curve(a, col, data.src)
  const hue = (a: Arc): string => (mode === 'difference' ? (a.weight > 0 ? ' more' : ' less') : '')
  const names = mode === 'corrupted' ? pair.corrupted_tokens : pair.clean_tokens
  return (
    <div
      class="arcs"
      data-testid="nbp-attention-arcs"
      style={{ 'margin-left': `${gutter}px`, width: `${width}px` }}
      role="application"
      tabIndex={0}
      aria-label={`Attention, ${mode}, as arcs: arrow keys choose from where to where`}
      data-lm-suppress-shortcuts="true"
      onKeyDown={(e) => lookKeys(e, at, [data.dest, data.src], onLook)}
      onMouseLeave={() => onLook({ dest: null, src: null })}
    >
      <svg viewBox={`0 0 ${width} ${HIGH}`} width={width} height={HIGH} aria-hidden="true">
        {faint.map((a) => (
          <path
            key={`${a.dest}.${a.src}`}
            class={`arc${hue(a)}`}
            d={path(a)}
            stroke-width={0.5 + Math.abs(a.weight)}
            stroke-opacity={(0.04 + 0.14 * Math.abs(a.weight)).toFixed(3)}
          />
        ))}
        {near.map((a) => (
          <path
            key={`n${a.dest}.${a.src}`}
            class={`arc near${hue(a)}${a.src === at.src ? ' on' : ''}`}
            data-src={a.src}
            d={path(a)}
            stroke-width={(0.6 + 5 * Math.abs(a.weight)).toFixed(2)}
            stroke-opacity={(0.25 + 0.75 * Math.abs(a.weight)).toFixed(3)}
          />
        ))}
      </svg>
      <div class="bar-names" aria-hidden="true">
        {Array.from({ length: data.src }, (_, i) => (
          <span
            key={i}
            class={`${i === at.dest ? 'on dest' : ''}${i === at.src ? ' on' : ''}`}
            style={{ width: `${col}px` }}
            onMouseEnter={() => onLook({ dest: i, src: null })}
          >
            {col < 20 ? '·' : i === 0 && pair.has_bos ? 'bos' : visible(names[i] ?? '')}
          </span>
        ))}
      </div>
    </div>
  )
}

/** Half an ellipse between two columns, the farther the higher; a position that looks at itself is a small loop. */
function curve({ dest, src }: Arc, col: number, n: number): string {
  const [from, to] = [(dest + 0.5) * col, (src + 0.5) * col]
  const floor = HIGH - FLOOR
  if (dest === src) {
    const r = Math.min(5, col / 4)
    return `M${from - r} ${floor}a${r} ${r} 0 1 1 ${2 * r} 0`
  }
  const rx = (from - to) / 2
  const share = (dest - src) / Math.max(1, n - 1)
  const ry = Math.min(Math.max(rx, 6), 10 + (floor - 14) * share ** 0.7)
  return `M${from} ${floor}A${rx} ${ry} 0 0 0 ${to} ${floor}`
}
