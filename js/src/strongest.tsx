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

/** The cells with the larger effect in either direction, the strongest first. */
export function strongestRows(maps: readonly HeatMap[], count = ROWS): Row[] {
  const first = maps[0]
  if (!first || maps.some((m) => m.effect.length !== first.effect.length)) return []
  const by = maps.map((m) => yardstick(m).by)
  const size = (i: number): number =>
    Math.max(...maps.map((m, k) => Math.abs((m.effect[i] ?? 0) / (by[k] as number)) || 0))
  const order = Array.from(first.effect, (_, i) => i).sort((a, b) => size(b) - size(a))
  return order
    .slice(0, count)
    .filter((i) => size(i) > 0)
    .map((i) => ({
      cell: unravel(first, i),
      shares: maps.map((m, k) => (m.effect[i] ?? Number.NaN) / (by[k] as number)),
    }))
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
