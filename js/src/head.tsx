// The top of the widget: pairs, model, export; the sentence; the facts.

import { Answer } from './answer'
import { type Child, Fragment, h } from './dom'
import { lensOf } from './lens'
import { facts, type Part, type Side, sentence } from './sentence'
import type { Store, Tab } from './store'
import { Icon } from './ui'

const brief = (text: string): string => (text.length > 24 ? `${text.slice(0, 22).trimEnd()}…` : text)
const many = (n: number, word: string): string => `${n} ${word}${n === 1 ? '' : 's'}`

export function Header({ store }: { store: Store }): Child {
  const spec = store.spec.value
  const now = store.shown.value.pair
  const { model } = spec
  const menus = store.bundles.value.editor?.menus
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
    <div class="top" data-lm-suppress-shortcuts="true">
      <Tabs store={store} />
      {turn(-1)}
      <span class="pairname">
        Pair {now + 1} of {spec.pairs.length}
      </span>
      {menus ? menus.pairs(store) : <span class="quote wide-only">“{brief(store.pair.clean)}”</span>}
      {turn(1)}
      {spec.can_run && menus?.templates(store)}
      <span class="model">
        {model.name}
        <span class="not-narrow">
          {' '}
          · {many(model.n_layers, 'layer')} × {many(model.n_heads, 'head')} · {model.device.toUpperCase()}
        </span>
      </span>
      {spec.can_run && menus?.past(store)}
      <Export store={store} />
      {store.bundles.value.tools?.corner({ store })}
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
              if (tab !== 'sweep') store.need(tab)
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
  nc: 'Whole result (netCDF)',
  html: 'Page that works offline (HTML)',
  python: 'Copy as Python',
  magic: 'Copy as %%patch cell',
}

function Export({ store }: { store: Store }): Child {
  const choose = (kind: string, near: HTMLElement) => {
    const box = near.closest('details')
    if (box) box.open = false
    // A drawing is of this screen, with its order of rows and its colours, which Python does not know.
    if (store.host.live && kind !== 'svg') store.host.send({ type: 'export', kind })
    else store.bundles.value.tools?.save(store, kind, near)
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
  const { minus } = lensOf(store)
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
        {minus && <span class="minus"> The map shows this minus {minus}.</span>}
        {rest.map((side) => (
          <span key={side} class="rest">
            {' '}
            {side === 'answer' ? 'Answer' : 'Wrong'} <Answer store={store} side={side} tokens={pair[side]} />
          </span>
        ))}
      </p>
      {store.bundles.value.editor?.concerns(store)}
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
