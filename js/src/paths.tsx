// The Paths tab: one end of a path is chosen, the map shows the other; and a step back along the circuit.

import { type Child, Fragment, h } from './dom'
import type { ViewProps } from './load'
import { Controls } from './paths_bar'
import { PathMap } from './paths_map'
import { PathSide } from './paths_side'
import { behind, type Drawn, drawn, endsOf, goBack, goBackTo, toldOf } from './paths_state'
import { frozen, pathSentence, say } from './paths_words'
import { facts, type Part } from './sentence'
import type { Store } from './store'
import { Chip } from './ui'
import type { HeatMap } from './wire'

export function Paths({ store, frame }: ViewProps): Child {
  const now = drawn(store)
  const { map } = now
  return (
    <div class="paths" data-testid="nbp-paths">
      <Question store={store} map={map} />
      <Controls store={store} now={now} />
      {now.trouble && <Refused store={store} now={now} />}
      {map && (
        <div class="main">
          <div class="sweep">
            <Walked store={store} />
            <PathMap store={store} frame={frame} now={now} map={map} />
          </div>
          <PathSide store={store} now={now} map={map} />
        </div>
      )}
      {!map && !now.trouble && <p class="empty sweep">{waiting(store)}</p>}
      {map && now.card && (
        <details class="card">
          <summary>How this was measured</summary>
          <pre>{now.card}</pre>
        </details>
      )}
    </div>
  )
}

const waiting = (store: Store): string =>
  store.spec.value.can_run
    ? 'Running the paths. A sweep that is running comes first.'
    : 'No kernel: paths are run in a notebook.'

/** The sentence, always true to the controls, and the facts under it. */
function Question({ store, map }: { store: Store; map: HeatMap | null }): Child {
  const spec = store.spec.value
  const told = toldOf(store)
  const { metric, direction } = told
  const measured =
    map?.key.metric === metric ? { [metric]: { clean: map.clean, corrupted: map.corrupted } } : {}
  const pair = { ...store.pair, metrics: { ...store.pair.metrics, ...measured } }
  return (
    <div class="say">
      <p class="sentence" data-testid="nbp-paths-sentence">
        {pathSentence(told, pair, spec).map((part, i) => (
          <Words key={`${part.kind}${i}`} part={part} />
        ))}
      </p>
      <p class="facts">
        {facts({ component: 'z', over: [], direction, metric }, pair, spec)} {frozen(told)}
      </p>
    </div>
  )
}

function Words({ part }: { part: Part }): Child {
  if (part.kind === 'bold') return <b>{part.text}</b>
  if (part.kind === 'token')
    return (
      <>
        {part.tokens.map((token) => (
          <Chip key={token} text={token} />
        ))}
      </>
    )
  return <>{part.text}</>
}

function Refused({ store, now }: { store: Store; now: Drawn }): Child {
  const { trouble, back } = now
  return (
    <div class="failure" data-testid="nbp-paths-error" role="alert">
      <p class="sentence">
        <b>{trouble?.title}</b>
      </p>
      {(trouble?.lines ?? []).map((line) => (
        <p key={line} class="line">
          {line}
        </p>
      ))}
      <button
        type="button"
        class="button"
        onClick={() => {
          if (back) goBack(store)
          else store.tab.value = 'sweep'
        }}
      >
        {back ? 'Go back to the last map' : 'Back to the sweep'}
      </button>
    </div>
  )
}

/** The walk from receiver to receiver; each step leads back to its map. */
function Walked({ store }: { store: Store }): Child {
  const before = behind(store)
  const { receiver } = endsOf(store).value
  const { model } = store.spec.value
  if (!before.length || !receiver) return null
  const grouped = model.n_kv_heads < model.n_heads
  const steps = before.map((name, i) => ({ name, i })).reverse()
  return (
    <nav class="walk" aria-label="Receivers walked through" data-testid="nbp-paths-walk">
      {steps.map(({ name, i }) => (
        <span key={i}>
          <button type="button" class="link" onClick={() => goBackTo(store, i)}>
            {say(name, grouped)}
          </button>
          <span class="hidden">, which receives from </span>
          <span aria-hidden="true">←</span>
        </span>
      ))}
      <b aria-current="step">{say(receiver, grouped)}</b>
    </nav>
  )
}
