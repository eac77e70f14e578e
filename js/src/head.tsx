// The top of the widget: pairs, model, export; the sentence; the facts.

import { type Child, Fragment, h } from './dom'
import { facts, type Part, type Side, sentence } from './sentence'
import type { Store, Tab } from './store'
import { Chip, Icon } from './ui'

const brief = (text: string): string => (text.length > 24 ? `${text.slice(0, 22).trimEnd()}…` : text)
const many = (n: number, word: string): string => `${n} ${word}${n === 1 ? '' : 's'}`

export function Header({ store }: { store: Store }): Child {
  const spec = store.spec.value
  const now = store.shown.value.pair
  const { model } = spec
  const turn = (by: number) => {
    const pair = now + by
    const off = pair < 0 || pair >= spec.pairs.length || !store.can({ pair })
    const title = by < 0 ? 'Previous pair' : 'Next pair'
    return (
      <button
        type="button"
        class="ghost"
        aria-label={title}
        title={title}
        disabled={off}
        onClick={() => store.set({ pair })}
      >
        <Icon name={by < 0 ? 'left' : 'right'} />
      </button>
    )
  }
  return (
    <div class="top">
      <Tabs store={store} />
      {turn(-1)}
      <span class="pairname">
        Pair {now + 1} of {spec.pairs.length}
      </span>
      <span class="quote wide-only">“{brief(store.pair.clean)}”</span>
      {turn(1)}
      <span class="model">
        {model.name}
        <span class="not-narrow">
          {' '}
          · {many(model.n_layers, 'layer')} × {many(model.n_heads, 'head')} · {model.device.toUpperCase()}
        </span>
      </span>
      <Export store={store} />
    </div>
  )
}

const TABS: [Tab, string][] = [
  ['sweep', 'Sweep'],
  ['paths', 'Paths'],
  ['circuit', 'Circuit'],
]

/** Sweep, paths or circuit; the latter two need a kernel. */
function Tabs({ store }: { store: Store }): Child {
  const now = store.tab.value
  if (!store.spec.value.can_run) return null
  return (
    <div class="segments tabs-of-views" role="radiogroup" aria-label="View" data-testid="nbp-tab">
      {TABS.map(([tab, label]) => (
        <label key={tab} class={tab === now ? 'on' : ''}>
          <input
            type="radio"
            name={`${store.id}t`}
            value={tab}
            checked={tab === now}
            onKeyDown={(e) => e.stopPropagation()}
            onChange={() => {
              store.tab.value = tab
              if (tab !== 'sweep') store.need('graphs')
            }}
          />
          {label}
        </label>
      ))}
    </div>
  )
}

const KINDS: Record<string, string> = {
  png: 'Picture (PNG)',
  svg: 'Drawing (SVG)',
  csv: 'Numbers (CSV)',
  html: 'Page that works offline (HTML)',
  python: 'Copy as Python',
  magic: 'Copy as %%patch cell',
}

function Export({ store }: { store: Store }): Child {
  const choose = (kind: string, near: HTMLElement) => {
    const box = near.closest('details')
    if (box) box.open = false
    if (store.host.live) store.host.send({ type: 'export', kind })
    else store.bundles.value.views?.save(store, kind, near)
  }
  return (
    <details
      class="export"
      data-testid="nbp-export"
      onKeyDown={(e) => {
        if (e.key === 'Escape') e.currentTarget.open = false
      }}
      onFocusOut={(e) => {
        if (!e.currentTarget.contains(e.relatedTarget as Node | null)) e.currentTarget.open = false
      }}
    >
      <summary aria-label="Export">
        <Icon name="export" />
        <span class="not-narrow">Export</span>
      </summary>
      <div class="menu">
        {store.spec.value.exports.map((kind) => (
          <button type="button" key={kind} data-kind={kind} onClick={(e) => choose(kind, e.currentTarget)}>
            {KINDS[kind] ?? kind}
          </button>
        ))}
      </div>
    </details>
  )
}

export function Sentence({ store }: { store: Store }): Child {
  const shown = store.shown.value
  const spec = store.spec.value
  const pair = store.pair
  const parts = sentence(shown, pair, spec)
  const sides = parts.flatMap((p) => (p.kind === 'token' ? [p.side] : []))
  const rest = (['answer', 'wrong'] as Side[]).filter((side) => !sides.includes(side))
  return (
    <div class="say">
      <p class="sentence">
        {parts.map((part, i) => (
          <Words key={`${part.kind}${i}`} part={part} store={store} />
        ))}
      </p>
      <p class="facts">
        {facts(shown, pair, spec)}
        {rest.map((side) => (
          <span key={side} class="rest">
            {' '}
            {side === 'answer' ? 'Answer' : 'Wrong'} <Answer store={store} side={side} tokens={pair[side]} />
          </span>
        ))}
      </p>
    </div>
  )
}

function Words({ part, store }: { part: Part; store: Store }): Child {
  if (part.kind === 'bold') return <b>{part.text}</b>
  if (part.kind === 'token') return <Answer store={store} side={part.side} tokens={part.tokens} />
  if (part.kind === 'text') return <>{part.text}</>
  return (
    <button
      type="button"
      class="dashed"
      onClick={(e) =>
        e.currentTarget.closest('.nbp')?.querySelector<HTMLElement>(`[data-testid=nbp-${part.link}]`)?.focus()
      }
    >
      {part.text}
    </button>
  )
}

/** The answer (or the wrong answer) as chips, with the input that changes it lying over them. */
function Answer({ store, side, tokens }: { store: Store; side: Side; tokens: readonly string[] }): Child {
  const value = store.written(side)
  const wrong = store.error.value?.field === side
  const off = !store.spec.value.can_run
  const commit = (input: HTMLInputElement) => store.edit(side, input.value)
  return (
    <span class={`answer${wrong ? ' bad' : ''}`}>
      {tokens.length ? tokens.map((t) => <Chip key={t} text={t} />) : <span class="chip none">none</span>}
      <input
        data-testid={`nbp-${side}`}
        aria-label={side === 'answer' ? 'Answer' : 'Wrong answer'}
        title={
          off ? 'No kernel: this page shows what was measured.' : 'Several answers: put " | " between them'
        }
        defaultValue={value}
        key={`${store.resets.value}${value}`}
        readOnly={off}
        spellcheck="false"
        onBlur={(e) => commit(e.currentTarget)}
        onKeyDown={(e) => {
          e.stopPropagation()
          if (e.key === 'Enter') commit(e.currentTarget)
          if (e.key === 'Escape') {
            e.currentTarget.value = value
            commit(e.currentTarget)
          }
        }}
      />
    </span>
  )
}
