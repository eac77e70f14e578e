// What is wrong, what is going on, and how it was measured.

import { type Child, h } from './dom'
import type { Store } from './store'
import { Token } from './strips'
import { code } from './table'
import { Run } from './ui'
import { type HeatMap, State, type Trouble } from './wire'

export function Failure({ store }: { store: Store }): Child {
  const error = store.error.value
  if (!error) return null
  const kept = store.current.length > 0
  return (
    <div class="failure" data-testid="nbp-error" role="alert">
      <p class="sentence">
        <b>{error.title}</b>
      </p>
      {error.lines.map((line) => (
        <p key={line} class="line">
          {line}
        </p>
      ))}
      {error.traceback && (
        <details class="trace">
          <summary>Traceback</summary>
          <pre>{error.traceback}</pre>
        </details>
      )}
      {error.strips && <Apart strips={error.strips} />}
      {kept && (
        <button type="button" class="button" onClick={() => store.goBack()}>
          {error.callback ? 'Close' : 'Go back to the last finished sweep'}
        </button>
      )}
    </div>
  )
}

/** Both prompts' tokens, marked from the position where they part. */
function Apart({ strips }: { strips: NonNullable<Trouble['strips']> }): Child {
  return (
    <div class="strips wrap">
      {(['clean', 'corrupted'] as const).map((side) => (
        <div key={side} class="strip">
          <span class="name">
            <Run run={side} />
            {side}, {strips[side].length} tokens
          </span>
          <div class="over">
            <div class="row">
              {strips[side].map((text, i) => (
                <Token key={i} text={text} pos={i} differs={i >= strips.parts} />
              ))}
            </div>
          </div>
        </div>
      ))}
    </div>
  )
}

const cells = (n: number): string => `${n.toLocaleString('en').replace(/,/g, ' ')} cell${n === 1 ? '' : 's'}`

/** "59 cells run exactly · 41 exactly 0 by construction". */
export function counts(maps: readonly HeatMap[]): string {
  const of = (state: number): number =>
    maps.reduce((n, m) => n + m.state.reduce((k, s) => k + (s === state ? 1 : 0), 0), 0)
  const parts: [number, (n: number) => string][] = [
    [of(State.Measured), (n) => `${cells(n)} run exactly`],
    [of(State.Exact), (n) => `${n} exactly 0 by construction`],
    [of(State.Estimate), (n) => `${n} estimated`],
    [of(State.NotRun), (n) => `${n} not run`],
    [of(State.NoPosition), (n) => `${n} without a position`],
    [of(State.NoPath), (n) => `${n} without a causal path`],
    [of(State.Failed), (n) => `${n} failed`],
  ]
  return parts.flatMap(([n, text]) => (n ? [text(n)] : [])).join(' · ')
}

export function Footer({ store }: { store: Store }): Child {
  const { state, text } = store.status.value
  const cell = store.chosen
  const shown = store.shown.value
  const idle = state === 'idle' || (state === 'done' && !text)
  return (
    <footer role="group" aria-label="State" class={store.error.value ? 'bad' : ''}>
      <span data-testid="nbp-status" aria-live="polite" data-state={state}>
        {store.notice.value || (idle ? text || counts(store.current) : text)}
      </span>
      <span class="push" />
      <span class="dim wide-only">arrows move · Enter pins · d turns the direction</span>
      <code class="not-narrow">
        {cell ? code(shown.component, cell, { over: [...shown.over] }) : 'no selection'}
      </code>
    </footer>
  )
}

export function Card({ store }: { store: Store }): Child {
  return (
    <details class="card" data-testid="nbp-card">
      <summary>How this was measured</summary>
      <pre>{store.spec.value.card}</pre>
    </details>
  )
}
