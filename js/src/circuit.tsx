// The Circuit tab: which edges carry the answer, how many are kept, and how faithful those are on their own.

import { type Edge, type Faithful, keptOf, type Scored, type Sign, thresholdOf } from './circuit_data'
import { Circuit } from './circuit_draw'
import { layOut } from './circuit_layout'
import { Refused, Side } from './circuit_side'
import { Slider } from './circuit_slider'
import { type Controls, control, controls, isAlone, keptNumber, told } from './circuit_state'
import { type Child, Fragment, h } from './dom'
import type { ViewProps } from './load'
import type { Frame } from './map'
import type { Store } from './store'
import { Chip, Icon, Select } from './ui'

const METHODS = [
  { value: 'eap-ig', label: 'EAP-IG, 5 points' },
  { value: 'eap', label: 'EAP' },
  { value: 'eap-ig-activations', label: 'EAP-IG (activations), 5 points' },
  { value: 'clean-corrupted', label: 'clean–corrupted' },
]
const NAMES: Record<string, string> = {
  eap: 'EAP',
  'eap-ig': 'EAP-IG',
  acdc: 'ACDC',
  ...{ 'eap-ig-activations': 'EAP-IG (activations)' },
}

/** So many edges are drawn at most: more are no picture. */
const MOST = 200

export function CircuitTab({ store, frame }: ViewProps): Child {
  const { data, faithful, old, waits, error, unfaithful } = told(store)
  return (
    <div class={`circuit-view${waits ? ' waiting' : ''}`}>
      <Question store={store} data={data} faithful={faithful} />
      <Controlling store={store} faithful={faithful} old={old} />
      {error ? (
        <div class="refusal">
          <Refused trouble={error} />
        </div>
      ) : data ? (
        <Whole store={store} frame={frame} data={data} faithful={faithful} old={old} trouble={unfaithful} />
      ) : (
        <p class="empty">{store.host.live ? 'Scoring every edge …' : 'Nothing here: there is no kernel.'}</p>
      )}
    </div>
  )
}

interface Parts {
  store: Store
  frame: Frame
  data: Scored
  faithful: Faithful | null
  old: boolean
  trouble: Parameters<typeof Refused>[0]['trouble'] | null
}

function Whole({ store, frame, data, faithful, old, trouble }: Parts): Child {
  const n = keptNumber(store, data)
  const kept = keptOf(data, n)
  const whole = n <= data.sent
  const exact = !old && faithful ? faithful.edges : null
  const threshold = thresholdOf(data, n) ?? (faithful?.n === n ? faithful.threshold : null)
  const gutter = frame.narrow ? 46 : 76
  const room = {
    width: frame.space,
    gutter,
    layers: data.layers,
    positions: data.positions,
    narrow: frame.narrow,
  }
  const drawn: readonly Edge[] = kept.slice(0, MOST)
  const beside = frame.space >= 720
  const width = Math.max(220, frame.space - (beside ? 266 : 0))
  return (
    <div class="main">
      <div class="circuit-main">
        <Circuit
          store={store}
          drawing={layOut(drawn, room)}
          kept={kept}
          unit={data.unit}
          theme={frame.theme}
          label={`Circuit of ${kept.length} edges. Arrow keys walk from node to node; Escape clears.`}
        />
        {kept.length > drawn.length && (
          <p class="note">
            Drawn: the strongest {drawn.length} of {whole ? kept.length : (exact ?? n)} edges.
          </p>
        )}
      </div>
      <div class={`circuit-foot${beside ? ' beside' : ''}`}>
        <Slider
          store={store}
          data={data}
          n={n}
          leading={whole ? kept.length : exact}
          threshold={threshold}
          faithful={faithful}
          old={old}
          width={width}
        />
      </div>
      <Side store={store} data={data} kept={kept} faithful={faithful} old={old} trouble={trouble} />
    </div>
  )
}

function Question({
  store,
  data,
  faithful,
}: {
  store: Store
  data: Scored | null
  faithful: Faithful | null
}): Child {
  const pair = store.pair
  const logits = store.shown.value.metric === 'logit_diff'
  const [answer, wrong] = [pair.answer, logits ? pair.wrong : []]
  const chips = (tokens: readonly string[]): Child => tokens.map((t) => <Chip key={t} text={t} />)
  const metric = data?.metric ?? ''
  return (
    <div class="say">
      <p class="sentence">
        Which <b class="plain">connections</b> carry{' '}
        {answer.length > 0 ? (
          <>
            {!logits && metric && `the ${metric} of `}
            {chips(answer)}
            {wrong.length > 0 && <> over {chips(wrong)}</>}
          </>
        ) : (
          'what is measured'
        )}{' '}
        from the changed word to the answer, and <b>how much do they restore on their own</b>?
      </p>
      <p class="facts">{data ? facts(data, faithful) : ' '}</p>
    </div>
  )
}

function facts(data: Scored, faithful: Faithful | null): string {
  const name = NAMES[data.method] ?? data.method
  const points = data.points ? ` (${data.points} points)` : ''
  const on = data.scored_on > 0 ? ` on ${data.scored_on === 1 ? 'one pair' : `${data.scored_on} pairs`}` : ''
  const scored = name ? `Edges scored by ${name}${points}${on}` : 'Edges without a method'
  if (!data.runs) return `${scored}.`
  const held = faithful?.on === 'others' ? ', on held-out pairs' : ''
  return `${scored}; everything outside the kept edges runs on the corrupted prompt${held}.`
}

const SHOW: [Sign, string][] = [
  ['all', 'all'],
  ['positive', 'positive'],
  ['negative', 'negative'],
]

function Controlling({
  store,
  faithful,
  old,
}: {
  store: Store
  faithful: Faithful | null
  old: boolean
}): Child {
  const now = controls(store)
  const alone = isAlone(store)
  const metrics = store.spec.value.metrics.map((m) => ({ value: m.name, label: m.name.replace(/_/g, ' ') }))
  return (
    <div class="bar">
      {!alone && (
        <>
          <span class="label not-narrow">scores</span>
          <Select
            testid="nbp-scores"
            name="How edges are scored"
            value={now.method}
            options={METHODS}
            onChange={(method) => control(store, { method })}
          />
          <span class="label not-narrow">edges by</span>
          <Segments
            store={store}
            name="Edges by"
            testid="nbp-by-position"
            value={now.positions ? 'position' : 'summed'}
            options={[
              ['position', 'position'],
              ['summed', 'sum over positions'],
            ]}
            onChange={(value) => {
              control(store, { positions: value === 'position' })
            }}
          />
        </>
      )}
      <span class="label not-narrow">show</span>
      <Segments
        store={store}
        name="Edges shown"
        testid="nbp-sign"
        value={now.show}
        options={SHOW}
        onChange={(show) => control(store, { show: show as Controls['show'] })}
      />
      <span class="push" />
      {!alone && (
        <Select
          testid="nbp-metric"
          name="Metric"
          prefix="metric"
          value={store.shown.value.metric}
          options={metrics}
          onChange={(metric) => store.set({ metric })}
        />
      )}
      {faithful && !old && typeof faithful.faithful === 'number' && (
        <span class="count exact" title="The kept circuit was run; its edges' scores are estimates.">
          <Icon name="check" />
          exact
        </span>
      )}
    </div>
  )
}

function Segments(props: {
  store: Store
  name: string
  testid: string
  value: string
  options: readonly [string, string][]
  onChange: (value: string) => void
}): Child {
  const { store, name, testid, value, options, onChange } = props
  return (
    <div
      class="segments"
      role="radiogroup"
      aria-label={name}
      data-testid={testid}
      data-lm-suppress-shortcuts="true"
    >
      {options.map(([one, label]) => (
        <label key={one} class={one === value ? 'on' : ''}>
          <input
            type="radio"
            name={`${store.id}${testid}`}
            value={one}
            checked={one === value}
            onKeyDown={(e) => e.stopPropagation()}
            onChange={() => onChange(one)}
          />
          {label}
        </label>
      ))}
    </div>
  )
}
