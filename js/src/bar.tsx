// The controls: direction, component, metric, source, run and cancel, and how far a run is.

import { type Child, h } from './dom'
import type { Store } from './store'
import { Icon, Play, Select, Square, Turn } from './ui'
import { type Choice, OTHER } from './wire'

const MISSING = 'Not in this page: run it in a notebook.'
const ABLATION = 'An ablation goes into the clean run: it restores nothing.'
const TABS = ['resid_pre', 'attn_out', 'mlp_out', 'z', 'q', 'k', 'v', 'pattern']
const DIRECTIONS: [Choice, string][] = [
  ['denoising', 'Denoise'],
  ['noising', 'Noise'],
  ['both', 'Both'],
]

export function Bar({ store }: { store: Store }): Child {
  const { metric } = store.shown.value
  const metrics = store.spec.value.metrics.map((m) => ({
    value: m.name,
    label: m.name.replace(/_/g, ' '),
    ...(store.can({ metric: m.name }) ? {} : { off: MISSING }),
  }))
  return (
    <div class="bar">
      <Directions store={store} />
      <Components store={store} />
      <span class="push" />
      <Select
        testid="nbp-metric"
        name="Metric"
        prefix="metric"
        value={metric}
        options={metrics}
        onChange={(value) => store.set({ metric: value })}
      />
      <Select
        testid="nbp-corruption"
        name="Source of the patched values"
        prefix="source"
        value={store.shown.value.corruption ?? OTHER}
        options={(store.spec.value.corruptions ?? [{ name: OTHER, label: 'other prompt', off: '' }]).map(
          ({ name, label, off }) => {
            const why = off || (store.can({ corruption: name }) ? '' : MISSING)
            return { value: name, label, ...(why ? { off: why } : {}) }
          },
        )}
        onChange={(corruption) => store.set({ corruption })}
      />
      <Work store={store} />
    </div>
  )
}

export function Directions({ store }: { store: Store }): Child {
  const now = store.shown.value.direction
  const ablates = (store.shown.value.corruption ?? OTHER) !== OTHER
  return (
    <div
      class="segments"
      role="radiogroup"
      aria-label="Direction"
      data-testid="nbp-direction"
      data-lm-suppress-shortcuts="true"
    >
      {DIRECTIONS.map(([value, label]) => {
        const off = ablates && value !== 'noising' ? ABLATION : store.can({ direction: value }) ? '' : MISSING
        return (
          <label key={value} class={`${value === now ? 'on' : ''}${off ? ' off' : ''}`} title={off}>
            <input
              type="radio"
              name={`${store.id}d`}
              value={value}
              checked={value === now}
              disabled={!!off}
              onChange={() => store.set({ direction: value })}
              onKeyDown={(e) => e.stopPropagation()}
            />
            {value !== 'both' && <Turn into={value === 'denoising' ? 'corrupted' : 'clean'} />}
            {label}
          </label>
        )
      })}
    </div>
  )
}

function Components({ store }: { store: Store }): Child {
  const now = store.shown.value.component
  const known = store.spec.value.components
  const why = (name: string): string => {
    const one = known.find((c) => c.name === name)
    if (one && !one.works) return one.reason || 'Not available for this model.'
    return store.can({ component: name }) ? '' : MISSING
  }
  const choose = (component: string) => store.set({ component })
  const tabs = known.filter((c) => TABS.includes(c.name))
  const beyond = tabs.some((c) => c.name === now) ? undefined : known.find((c) => c.name === now)
  return (
    <div class="tabs">
      {tabs.map((c) => (
        <button
          type="button"
          key={c.name}
          class={`tab${c.name === now ? ' on' : ''}`}
          aria-pressed={c.name === now}
          disabled={!!why(c.name)}
          title={why(c.name)}
          onClick={() => choose(c.name)}
        >
          {c.short}
        </button>
      ))}
      <span class={`more${beyond ? ' on' : ''}`}>
        <span class="word" aria-hidden="true">
          {beyond ? beyond.short : 'More'}
          <Icon name="down" />
        </span>
        <Select
          testid="nbp-component"
          name="Component"
          value={now}
          options={known.map((c) => {
            const off = why(c.name)
            return { value: c.name, label: c.short, ...(off ? { off } : {}) }
          })}
          onChange={choose}
        />
      </span>
    </div>
  )
}

function Work({ store }: { store: Store }): Child {
  const { state, done, total } = store.status.value
  const off = !store.spec.value.can_run
  if (state === 'running')
    return (
      <span class="work">
        <span class="count">
          {done} of {total}
        </span>
        <button
          type="button"
          class="button"
          data-testid="nbp-cancel"
          onClick={() => {
            // Said at once: the way to Python and back may take as long as the run has left.
            store.status.value = { ...store.status.value, text: 'Cancelling: what is finished is kept.' }
            store.host.send({ type: 'cancel' })
          }}
        >
          <Square />
          Cancel
        </button>
      </span>
    )
  const whole = store.current.length > 0 && store.current.every((m) => m.final)
  return (
    <span class="work">
      {whole && (
        <span class="count exact">
          <Icon name="check" />
          exact
        </span>
      )}
      <button
        type="button"
        class="ghost runs"
        data-testid="nbp-run"
        aria-label={whole ? 'Run again' : 'Run'}
        disabled={off}
        title={off ? 'No kernel: this page shows what was measured.' : whole ? 'Run again' : 'Run'}
        onClick={() => store.host.send({ type: 'run' })}
      >
        <Play />
        <span class="narrow-only">{whole ? 'Run again' : 'Run'}</span>
      </button>
    </span>
  )
}

export function Progress({ store }: { store: Store }): Child {
  const { state, done, total } = store.status.value
  const share = total > 0 ? done / total : 0
  return (
    <div
      class={`progress${state === 'running' ? ' on' : ''}`}
      data-testid="nbp-progress"
      role="progressbar"
      aria-label="Sweep"
      aria-valuemin={0}
      aria-valuemax={total}
      aria-valuenow={done}
    >
      <i style={{ width: `${100 * share}%` }} />
    </div>
  )
}
