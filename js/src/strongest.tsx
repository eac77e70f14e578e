// The strongest cells of both directions beside each other.

import { css, diverging } from './colour'
import { type Child, h } from './dom'
import { tableNumber } from './format'
import { same } from './gestures'
import type { Frame } from './map'
import type { Store } from './store'
import { unravel, yardstick } from './table'
import type { Cell, HeatMap } from './wire'
import { short, title } from './words'

const ROWS = 8

interface Row {
  cell: Cell
  shares: number[]
}

/** The cells with the larger effect in either direction, the strongest first; those of one state only, or of any. */
export function strongestRows(maps: readonly HeatMap[], count = ROWS, state?: number): Row[] {
  const first = maps[0]
  if (!first || maps.some((m) => m.effect.length !== first.effect.length)) return []
  const by = maps.map((m) => yardstick(m).by)
  const sizes = new Float64Array(first.effect.length)
  maps.forEach((m, k) => {
    m.effect.forEach((v, i) => {
      const size = state === undefined || m.state[i] === state ? Math.abs(v / (by[k] as number)) : 0
      if (size > (sizes[i] as number)) sizes[i] = size
    })
  })
  return largest(sizes, count).map((i) => ({
    cell: unravel(first, i),
    shares: maps.map((m, k) => (m.effect[i] ?? Number.NaN) / (by[k] as number)),
  }))
}

/** Where the largest numbers above 0 are, the largest first: without sorting all of a map in every drawing. */
function largest(sizes: Float64Array, count: number): number[] {
  const best: number[] = []
  sizes.forEach((size, i) => {
    if (size <= (best.length < count ? 0 : (sizes[best.at(-1) as number] as number))) return
    const place = best.findIndex((other) => (sizes[other] as number) < size)
    best.splice(place < 0 ? best.length : place, 0, i)
    best.length = Math.min(best.length, count)
  })
  return best
}

export function Strongest({ store, frame }: { store: Store; frame: Frame }): Child {
  const maps = store.onScreen
  const rows = maps.length === 2 ? strongestRows(maps) : []
  if (!rows.length) return null
  const most = Math.max(...rows.flatMap((r) => r.shares.map((v) => Math.abs(v) || 0)))
  const heads = maps[0]?.dims.join() === 'layer,head'
  return (
    <section data-testid="nbp-strongest">
      <h4>
        Strongest {heads ? 'heads' : 'cells'}
        <span class="key">by larger effect</span>
      </h4>
      <table class="strongest">
        <thead>
          <tr>
            <th scope="col">{heads ? 'head' : 'cell'}</th>
            <th scope="col" colspan="2">
              restores
            </th>
            <th scope="col" colspan="2">
              loses
            </th>
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={JSON.stringify(row.cell)} class={same(row.cell, store.chosen) ? 'on' : ''}>
              <th scope="row">
                <button
                  type="button"
                  aria-label={`${short(row.cell)}: ${title(row.cell)}`}
                  aria-pressed={same(row.cell, store.chosen)}
                  onClick={() => store.choose(row.cell)}
                >
                  {short(row.cell)}
                </button>
              </th>
              {row.shares.flatMap((v, k) => [
                <td key={`b${k}`} class={`effect ${v < 0 ? 'left' : 'right'}`}>
                  <i
                    style={{
                      width: `${Number.isFinite(v) ? (100 * Math.abs(v)) / most : 0}%`,
                      background: css(diverging(v || 0, frame.theme)),
                    }}
                  />
                </td>,
                <td key={`n${k}`} class="num">
                  {tableNumber(v)}
                </td>,
              ])}
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  )
}
