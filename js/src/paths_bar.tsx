// The controls of the Paths tab: both ends, the variant, the direction, the metric.

import { type Child, h } from './dom'
import { change, type Drawn, endsOf, toldOf } from './paths_state'
import { type Axis, isVariant, names, say, VARIANTS } from './paths_words'
import type { Store } from './store'
import { Icon, Select, Turn } from './ui'
import { type Direction, directionsOf } from './wire'

const WORDS: Record<Direction, string> = { denoising: 'Denoise', noising: 'Noise' }

export function Controls({ store, now }: { store: Store; now: Drawn }): Child {
  const { variant, direction, metric } = toldOf(store)
  const off = !store.spec.value.can_run
  return (
    <div class="bar">
      <Picker store={store} axis="sender" />
      <span class="arrow" aria-hidden="true">
        →
      </span>
      <Picker store={store} axis="receiver" />
      <Segments
        store={store}
        name="variant"
        value={variant}
        options={VARIANTS.map(([value, label, title]) => ({ value, label, title }))}
        onChange={(value) => isVariant(value) && change(store, { variant: value })}
      />
      <Segments
        store={store}
        name="direction"
        value={direction}
        options={directionsOf('both').map((value) => ({ value, label: WORDS[value], title: '' }))}
        onChange={(value) => change(store, { direction: value as Direction })}
      />
      <span class="push" />
      <Select
        testid="nbp-paths-metric"
        name="Metric"
        prefix="metric"
        value={metric}
        options={store.spec.value.metrics.map((m) => ({ value: m.name, label: m.name.replace(/_/g, ' ') }))}
        {...(off ? { off: 'No kernel: paths are run in a notebook.' } : {})}
        onChange={(value) => change(store, { metric: value })}
      />
      <span class="work count" data-testid="nbp-paths-status" aria-live="polite">
        {progress(now)}
      </span>
    </div>
  )
}

function progress(now: Drawn): Child {
  if (now.stale) return 'Running'
  if (now.trouble) return 'not run'
  if (now.toCome.length) return `Running: ${now.toCome.join(', ')} to come`
  return (
    <span class="exact">
      <Icon name="check" />
      exact
    </span>
  )
}

interface SegmentsProps {
  store: Store
  name: 'variant' | 'direction'
  value: string
  options: { value: string; label: string; title: string }[]
  onChange: (value: string) => void
}

function Segments({ store, name, value, options, onChange }: SegmentsProps): Child {
  return (
    <div
      class="segments"
      role="radiogroup"
      aria-label={name === 'variant' ? 'What stays frozen' : 'Direction'}
      data-testid={`nbp-paths-${name}`}
      data-lm-suppress-shortcuts="true"
    >
      {options.map((o) => (
        <label key={o.value} class={o.value === value ? 'on' : ''} title={o.title}>
          <input
            type="radio"
            name={`${store.id}p${name}`}
            value={o.value}
            checked={o.value === value}
            onChange={() => onChange(o.value)}
            onKeyDown={(e) => e.stopPropagation()}
          />
          {name === 'direction' && <Turn into={o.value === 'denoising' ? 'corrupted' : 'clean'} />}
          {o.label}
        </label>
      ))}
    </div>
  )
}

/** One end of the path, or all of them; in the words of path_patch as values. */
function Picker({ store, axis }: { store: Store; axis: Axis }): Child {
  const ends = endsOf(store)
  const { model, can_run } = store.spec.value
  const { sender, receiver } = ends.value
  const value = (axis === 'sender' ? sender : (receiver ?? (sender ? '' : 'logits'))) ?? ''
  const { first, layers, last } = names(axis, model)
  const grouped = model.n_kv_heads < model.n_heads
  const option = (name: string) => (
    <option key={name} value={name} selected={name === value}>
      {say(name, grouped)}
    </option>
  )
  const known = value === '' || first.includes(value) || last.includes(value) || layers.flat().includes(value)
  const pick = (name: string) => {
    const next = { ...ends.value, [axis]: name }
    if (!name) delete next[axis]
    // Without an end nothing would be held: the logits are where every path ends.
    ends.value = next.sender || next.receiver ? next : { receiver: 'logits' }
    change(store, { cell: null, pinned: false })
  }
  return (
    <label class="select" title={axis === 'sender' ? 'What sends' : 'What receives'}>
      <span class="prefix">{axis === 'sender' ? 'from' : 'to'}</span>
      <select
        data-testid={`nbp-paths-${axis}`}
        aria-label={axis === 'sender' ? 'Sender' : 'Receiver'}
        data-lm-suppress-shortcuts="true"
        disabled={!can_run}
        value={value}
        onKeyDown={(e) => e.stopPropagation()}
        onChange={(e) => pick(e.currentTarget.value)}
      >
        <option value="" selected={value === ''} disabled={axis === 'receiver' && !sender}>
          every {axis}
        </option>
        {!known && option(value)}
        {axis === 'receiver' && last.map(option)}
        {first.map(option)}
        {layers.map((list, layer) => (
          <optgroup key={layer} label={`layer ${layer}`}>
            {list.map(option)}
          </optgroup>
        ))}
      </select>
      <Icon name="down" />
    </label>
  )
}
