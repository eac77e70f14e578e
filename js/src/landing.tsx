// While a sweep runs, in the chosen cell's place: how far it is, and its strongest cells so far beside their estimates.

import { estimateOf } from './cells'
import { css, diverging } from './colour'
import { type Child, Fragment, h } from './dom'
import { tableNumber } from './format'
import type { Frame } from './map'
import type { Store } from './store'
import { strongestRows } from './strongest'
import { indexIn, yardstick } from './table'
import { type HeatMap, State } from './wire'
import { short, title } from './words'

const ROWS = 7

/** Whether there is a run to tell of, and no cell that one is looking at. */
export const isLanding = (store: Store): boolean => {
  const { state, total } = store.status.value
  return state === 'running' && total > 0 && !store.chosen
}

export function Landing({ store, frame }: { store: Store; frame: Frame }): Child {
  const { done, total, seconds_left: left } = store.status.value
  const map = store.onScreen.length === 1 ? store.onScreen[0] : undefined
  return (
    <>
      <section data-testid="nbp-landing">
        <h4>Landing</h4>
        <div class="big">
          <b>{done}</b>
          <span>
            of {total} cells exact
            <br />
            {left ? `about ${Math.max(1, Math.round(left))} s left` : '\u00a0'}
          </span>
        </div>
        <p class="note">Changing any control starts a new run. Cancel keeps what has landed.</p>
      </section>
      {map && <SoFar store={store} frame={frame} map={map} />}
    </>
  )
}

function SoFar({ store, frame, map }: { store: Store; frame: Frame; map: HeatMap }): Child {
  const estimate = estimateOf(store, map)
  const by = yardstick(map).by
  const rows = strongestRows([map], ROWS, State.Measured).map(({ cell, shares: [exact = Number.NaN] }) => ({
    cell,
    exact,
    guess: estimate === undefined ? Number.NaN : (estimate.effect[indexIn(map, cell)] ?? Number.NaN) / by,
  }))
  if (!rows.length) return null
  const most = Math.max(...rows.flatMap((r) => [Math.abs(r.exact), Math.abs(r.guess) || 0]))
  const wide = (v: number): string => `${Number.isFinite(v) ? (100 * Math.abs(v)) / most : 0}%`
  return (
    <section data-testid="nbp-so-far">
      <h4>
        Strongest so far
        {estimate && <span class="key guess">estimate</span>}
      </h4>
      <table class="strongest so-far">
        <tbody>
          {rows.map(({ cell, exact, guess }) => (
            <tr key={JSON.stringify(cell)}>
              <th scope="row">
                <button type="button" aria-label={title(cell)} onClick={() => store.choose(cell)}>
                  {short(cell)}
                </button>
              </th>
              <td class="effect">
                <i style={{ width: wide(exact), background: css(diverging(exact, frame.theme)) }} />
                {Number.isFinite(guess) && <s style={{ left: wide(guess) }} />}
              </td>
              <td class="num">{tableNumber(exact)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  )
}
