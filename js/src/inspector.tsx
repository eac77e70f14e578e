// Beside the map: the selected cell as a number and on its rail, the next tokens, what to be careful with.

import { type Child, h } from './dom'
import { percent, plural, readNumber, visible } from './format'
import { PathButtons } from './path_buttons'
import type { Store } from './store'
import { indexIn, reason, strongest, tokenAt, unravel, yardstick } from './table'
import { Chip, Icon, Run } from './ui'
import { type Cell, type HeatMap, OTHER, State } from './wire'
import { title, wordFor } from './words'

export function Inspector({ store }: { store: Store }): Child {
  return (
    <aside class="inspector">
      <Chosen store={store} />
      <NextTokens store={store} />
      <Careful store={store} />
    </aside>
  )
}

function Chosen({ store }: { store: Store }): Child {
  const maps = store.onScreen
  const map = maps[0]
  const cell = store.chosen ?? (map ? unravel(map, strongest(map)) : null)
  const picked = !!store.chosen
  const token = cell ? tokenAt(cell, store.pair) : undefined
  const pinned = store.pinned.value
  return (
    <section>
      <h4>
        <span>
          {!picked && cell && map && <span class="dim">Strongest: </span>}
          {cell && map ? title(cell) : 'No cell yet'} {token !== undefined && <Chip text={token} />}
        </span>
        <button
          type="button"
          class="ghost"
          aria-pressed={pinned}
          aria-label="Pin"
          title={picked ? 'Pin (Enter)' : 'Select a cell first.'}
          disabled={!picked}
          onClick={() => {
            store.pinned.value = !pinned
          }}
        >
          <Icon name="pin" fill={pinned} />
        </button>
      </h4>
      <div class="bigs">
        {cell && maps.map((m) => <Big key={m.key.direction} map={m} cell={cell} one={maps.length === 1} />)}
      </div>
      {cell && maps.length === 1 && map && <Rail map={map} cell={cell} store={store} />}
      <PathButtons store={store} cell={store.chosen} />
    </section>
  )
}

function Big({ map, cell, one }: { map: HeatMap; cell: Cell; one: boolean }): Child {
  const index = indexIn(map, cell)
  const effect = map.effect[index] ?? Number.NaN
  const state = map.state[index] ?? State.NotRun
  const { by, share } = yardstick(map)
  if (!Number.isFinite(effect)) return <p class="big none">{reason(state) || 'no value'}</p>
  const value = share ? effect / by : effect
  const amount = `${readNumber(effect)} ${plural(map.unit, effect)}`
  return (
    <div class={`big${one ? '' : ' half'}`}>
      <b>{readNumber(value)}</b>
      <span>
        {share ? `of the gap ${wordFor(map.key.direction, value)}` : plural(map.unit, effect)}
        <br />
        {state === State.Exact ? 'exactly 0, not run' : share ? amount : 'there is no gap to share out'}
      </span>
    </div>
  )
}

/** corrupted ○, clean ● and the patched run ◆ on one line, in the metric's unit. */
function Rail({ map, cell, store }: { map: HeatMap; cell: Cell; store: Store }): Child {
  const effect = map.effect[indexIn(map, cell)] ?? Number.NaN
  if (!Number.isFinite(effect) || !yardstick(map).share) return null
  const patched = map.base + effect
  const at = (v: number): number => (v - map.corrupted) / map.gap
  const low = Math.min(0, at(patched))
  const high = Math.max(1, at(patched))
  const x = (v: number): string => `${(100 * (at(v) - low)) / (high - low)}%`
  const [from, to] = [Math.min(at(map.base), at(patched)), Math.max(at(map.base), at(patched))]
  const pair = store.pair
  const span = {
    left: `${(100 * (from - low)) / (high - low)}%`,
    width: `${(100 * (to - from)) / (high - low)}%`,
  }
  const names = pair.answer[0] && pair.wrong[0] && map.key.metric === 'logit_diff'
  return (
    <div class="rail-box">
      <div class="rail">
        <i class="half" style={{ left: `${(100 * (0.5 - low)) / (high - low)}%` }} />
        <i class={effect / map.gap >= 0 ? 'span pos' : 'span neg'} style={span} />
        <i class="end corrupted" style={{ left: x(map.corrupted) }} />
        <i class="end clean" style={{ left: x(map.clean) }} />
        <i class="end patched" style={{ left: x(patched) }} />
        <span class="text" style={{ left: x(map.corrupted) }}>
          {readNumber(map.corrupted)}
          <br />
          corrupted
        </span>
        <span class="text" style={{ left: x(map.clean) }}>
          {readNumber(map.clean)}
          <br />
          clean
        </span>
      </div>
      <p class="note">
        {names &&
          `logit(${visible(pair.answer[0] as string)}) − logit(${visible(pair.wrong[0] as string)}); `}
        <Run run="patched" /> patched run {readNumber(patched)}
      </p>
    </div>
  )
}

/** The likeliest next tokens of both runs: hollow the corrupted one, solid the clean one. */
function NextTokens({ store }: { store: Store }): Child {
  const pair = store.pair
  const clean = new Map(pair.clean_top)
  const corrupted = new Map(pair.corrupted_top)
  const names = [
    ...new Set([...pair.answer.slice(0, 1), ...pair.wrong.slice(0, 1), ...clean.keys(), ...corrupted.keys()]),
  ]
  const below = (list: Map<string, number>, t: string): string =>
    list.has(t) || !list.size
      ? percent(list.get(t))
      : `<${percent(Math.min(...list.values())).replace('<', '')}`
  const most = Math.max(1e-9, ...clean.values(), ...corrupted.values())
  const width = (p: number | undefined): string => `${(100 * (p ?? 0)) / most}%`
  const kind = (t: string): string =>
    pair.answer.includes(t) ? 'answer' : pair.wrong.includes(t) ? 'wrong' : ''
  return (
    <section data-testid="nbp-logits">
      <h4>
        Next token
        <span class="key">
          <i class="hollow" /> corrupted <i class="solid" /> clean
        </span>
      </h4>
      <table class="next">
        <tbody>
          {names.slice(0, 6).map((t) => (
            <tr key={t}>
              <th scope="row">
                <Chip text={t} /> <span class="dim">{kind(t)}</span>
              </th>
              <td class="bars">
                <i class="hollow" style={{ width: width(corrupted.get(t)) }} />
                <i class="solid" style={{ width: width(clean.get(t)) }} />
              </td>
              <td class="num">
                {below(corrupted, t)} → <b>{below(clean, t)}</b> %
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  )
}

function Careful({ store }: { store: Store }): Child {
  const { direction } = store.shown.value
  // Python lists this warning too; here it comes with the action that settles it.
  const { warnings: all, concerns } = store.spec.value
  // What concerns a prompt or an answer stands beside it.
  const warnings = all.filter((w, i) => !w.startsWith('One direction only') && !concerns?.[i])
  const ablated = (store.shown.value.corruption ?? OTHER) !== OTHER
  const one = direction === 'both' || ablated ? null : direction
  if (!one && !warnings.length) return null
  return (
    <section class="careful">
      {one && (
        <p>
          <Icon name="warn" />
          <span>
            <b>One direction only.</b>{' '}
            {one === 'denoising'
              ? 'Denoising does not show parts that only work together.'
              : 'Noising misses parts that a backup can replace.'}{' '}
            {store.can({ direction: 'both' }) && (
              <button type="button" class="link" onClick={() => store.set({ direction: 'both' })}>
                Run Both
              </button>
            )}
          </span>
        </p>
      )}
      {warnings.map((text) => (
        <p key={text}>
          <Icon name="info" />
          <span>{text}</span>
        </p>
      ))}
    </section>
  )
}
