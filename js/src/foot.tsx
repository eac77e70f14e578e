// What is wrong, what is going on, and how it was measured.

import { type Child, Fragment, h } from './dom'
import type { ViewProps } from './load'
import type { Store } from './store'
import { code } from './table'
import { type HeatMap, State } from './wire'

export function Failure({ store, frame }: ViewProps): Child {
  const error = store.error.value
  if (!error) return null
  const kept = store.onScreen.length > 0
  const { editor } = store.bundles.value
  return (
    <div class="failure" data-testid="nbp-error" role="alert">
      {editor ? editor.failure({ store, frame }) : <b>{error.title}</b>}
      {error.traceback && (
        <details class="trace">
          <summary>Traceback</summary>
          <pre>{error.traceback}</pre>
        </details>
      )}
      {kept && (
        <button type="button" class="button" onClick={() => store.goBack()}>
          {error.callback ? 'Close' : 'Go back to the last finished sweep'}
        </button>
      )}
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
        {store.notice.value ||
          (store.tab.value !== 'sweep'
            ? ''
            : idle
              ? text || store.once('counts', store.current, () => counts(store.current))
              : text)}
      </span>
      <span class="push" />
      {store.tab.value === 'sweep' && (
        <>
          <span class="dim wide-only">arrows move · Enter pins · d turns the direction</span>
          <code class="not-narrow">
            {cell ? code(shown.component, cell, { over: [...shown.over] }) : 'no selection'}
          </code>
        </>
      )}
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
