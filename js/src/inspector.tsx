// Beside the map: the selected cell as a number and on its rail, the next tokens, what to be careful with.

import { estimateOf, type Heard, heardTogether, type Joint } from './cells'
import { type Child, h } from './dom'
import { EstimateAgainstExact } from './estimate'
import { plural, readNumber, visible } from './format'
import { together } from './gestures'
import { isLanding, Landing } from './landing'
import type { Frame } from './map'
import { NextTokens } from './next'
import { PathButtons } from './path_buttons'
import { SpreadOver } from './spread'
import type { Store } from './store'
import { Strongest } from './strongest'
import { indexIn, reason, strongest, tokenAt, unravel, yardstick } from './table'
import { Chip, Icon, Run } from './ui'
import { type Cell, type HeatMap, OTHER, State, type Trouble } from './wire'
import { short, title, wordFor } from './words'
import { Wrong } from './wrong'

export function Inspector({ store, frame }: { store: Store; frame: Frame }): Child {
  return (
    <aside class="inspector">
      {together(store).length > 1 ? (
        <Together store={store} />
      ) : isLanding(store) ? (
        <Landing store={store} frame={frame} />
      ) : (
        <Chosen store={store} />
      )}
      <EstimateAgainstExact store={store} frame={frame} />
      <Strongest store={store} frame={frame} />
      <NextTokens store={store} />
      <SpreadOver store={store} />
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
      <Moved store={store} />
    </section>
  )
}

/** What an estimate said of a cell that has an exact value by now. */
function estimateAt(store: Store, map: HeatMap, cell: Cell): number | null {
  const estimate = estimateOf(store, map)
  const value = estimate?.effect[indexIn(map, cell)]
  const exact = map.state[indexIn(map, cell)] === State.Measured
  return estimate !== map && exact && value !== undefined && Number.isFinite(value) ? value : null
}

/** Several cells in one run, beside what they add up to one by one. */
function Together({ store }: { store: Store }): Child {
  const cells = together(store)
  const heard = heardTogether(store)
  return (
    <section data-testid="nbp-together" aria-live="polite">
      <h4>
        <span>{cells.length} cells together</span>
        <button
          type="button"
          class="ghost"
          aria-label="Clear the brush"
          title="Clear (Escape)"
          onClick={() => store.brush([])}
        >
          ×
        </button>
      </h4>
      <p class="note">
        {cells.slice(0, 8).map(short).join(', ')}
        {cells.length > 8 && ` and ${cells.length - 8} more`}
      </p>
      {heard?.error && <Wrong error={heard.error} />}
      <div class={heard?.old ? 'bigs old' : 'bigs'}>
        {store.onScreen.map((map) => (
          <Joined
            key={map.key.direction}
            map={map}
            heard={heard}
            waits={!heard}
            live={store.spec.value.can_run}
          />
        ))}
      </div>
    </section>
  )
}

function Joined(props: { map: HeatMap; heard: Heard<Joint> | null; waits: boolean; live: boolean }): Child {
  const { map, heard, waits, live } = props
  const { by, share } = yardstick(map)
  const [all, sum] = [heard?.told?.together, heard?.told?.sum].map(
    (one) => one?.[map.key.direction] ?? Number.NaN,
  )
  const value = (v: number | undefined): string => readNumber((v ?? Number.NaN) / (share ? by : 1))
  if (waits) return <p class="note">{live ? 'Running them together …' : 'Patching together needs Python.'}</p>
  if (!heard?.told) return null
  const unit = plural(map.unit, all ?? 0)
  return (
    <div class="big together">
      <b>{value(all)}</b>
      <span>
        {share ? `of the gap ${wordFor(map.key.direction, (all ?? 0) / by)}` : unit}
        <br />
        single ones add up to <strong>{value(sum)}</strong>
      </span>
    </div>
  )
}

/** What came of putting one cell's value into another's place. */
function Moved({ store }: { store: Store }): Child {
  const answer = store.answer('move')
  const from = answer?.asked.from as Cell | undefined
  const here = !!from && !!store.onScreen[0] && indexIn(store.onScreen[0], from) >= 0
  if (!here && !store.waits('move')) return null
  if (!answer) return <p class="note">Running the move …</p>
  const error = answer.content.error as Trouble | undefined
  if (error) return <Wrong error={error} />
  const effects = answer.content.effects as Partial<Record<string, number | null>>
  return (
    <p class={store.waits('move') ? 'moved old' : 'moved'} data-testid="nbp-moved" aria-live="polite">
      {`${answer.content.from} put into ${answer.content.to}: `}
      {store.onScreen.map((map) => {
        const effect = effects[map.key.direction]
        if (effect === undefined) return null
        if (effect === null) return 'no value.'
        const { by, share } = yardstick(map)
        const amount = `${readNumber(effect)} ${plural(map.unit, effect)}`.trim()
        return (
          <span key={map.key.direction}>
            <b>{share ? readNumber(effect / by) : amount}</b>
            {share && ` of the gap ${wordFor(map.key.direction, effect / by)}, ${amount}`}.{' '}
          </span>
        )
      })}
    </p>
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
  const guess = estimateAt(store, map, cell)
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
        {guess !== null && <i class="guess" title="estimate" style={{ left: x(map.base + guess) }} />}
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
        {guess !== null && `; estimate ${readNumber(map.base + guess)}`}
      </p>
    </div>
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
