// The header's menus: which pair, pairs to start from, what was there before.

import { type Child, Fragment, h } from './dom'
import type { Store } from './store'
import { Icon } from './ui'
import type { Dict } from './wire'

const ICONS = {
  undo: 'M6 3 2.8 6.2 6 9.4M3 6.2h6.2a3.6 3.6 0 0 1 0 7.2H6.5',
  redo: 'M10 3l3.2 3.2L10 9.4M13 6.2H6.8a3.6 3.6 0 0 0 0 7.2h2.7',
  clock: 'M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8M8 4.6V8l2.4 1.6',
} as const

const brief = (text: string, most = 26): string =>
  text.length > most ? `${text.slice(0, most - 2).trimEnd()}…` : text

const Drawn = ({ name }: { name: keyof typeof ICONS }): Child => (
  <svg class="icon" viewBox="0 0 16 16" aria-hidden="true">
    <path d={ICONS[name]} />
  </svg>
)

interface MenuProps {
  testid: string
  name: string
  label: Child
  kind?: string
  onOpen?: () => void
  children?: Child
}

/** A button that opens a list; closes on Escape, on a choice and when the focus leaves it. */
function Menu({ testid, name, label, kind, onOpen, children }: MenuProps): Child {
  return (
    <details
      class={`drop ${kind ?? ''}`}
      data-testid={testid}
      onToggle={(e) => {
        if (e.currentTarget.open) onOpen?.()
      }}
      onClick={(e) => {
        const at = e.target as HTMLElement
        if (at.closest('button:not([disabled])')) e.currentTarget.open = false
      }}
      onKeyDown={(e) => {
        const box = e.currentTarget
        const step = { ArrowDown: 1, ArrowUp: -1 }[e.key]
        if (e.key === 'Escape' && box.open) {
          box.open = false
          box.querySelector('summary')?.focus()
        } else if (step) {
          const all = [...box.querySelectorAll<HTMLElement>('summary, button:not([disabled])')]
          const root = box.getRootNode() as Document | ShadowRoot
          box.open = true
          all[all.indexOf(root.activeElement as HTMLElement) + step]?.focus()
          e.preventDefault()
        } else return
        e.stopPropagation()
      }}
      onFocusOut={(e) => {
        if (!e.currentTarget.contains(e.relatedTarget as Node | null)) e.currentTarget.open = false
      }}
    >
      <summary aria-label={name} title={name}>
        {label}
      </summary>
      <div class="menu" tabindex="-1">
        {children}
      </div>
    </details>
  )
}

function pairs(store: Store): Child {
  const { pairs: all, can_run } = store.spec.value
  const now = store.shown.value.pair
  return (
    <Menu
      testid="nbp-pair"
      name="Choose a pair"
      kind="from-left"
      label={
        <>
          <span class="quote wide-only">“{brief(store.pair.clean, 24)}”</span>
          <Icon name="down" />
        </>
      }
    >
      {all.map((one, pair) => (
        <button
          type="button"
          key={pair}
          data-pair={pair}
          aria-current={pair === now}
          disabled={!store.can({ pair })}
          onClick={() => store.set({ pair })}
        >
          <span class="dim">{pair + 1}</span> {brief(one.clean, 44)}
        </button>
      ))}
      {can_run && (
        <span class="acts">
          <button type="button" data-testid="nbp-pair-add" onClick={() => act(store, 'add')}>
            Add a copy of this pair
          </button>
          <button
            type="button"
            data-testid="nbp-pair-remove"
            disabled={all.length < 2}
            title={all.length < 2 ? 'The only pair cannot be removed.' : ''}
            onClick={() => act(store, 'remove')}
          >
            Remove this pair
          </button>
        </span>
      )}
    </Menu>
  )
}

const act = (store: Store, what: string): void =>
  store.turn('pairs', { do: what, pair: store.shown.value.pair })

interface Template {
  name: string
  label: string
  off: string
  example: string
}

function Templates({ store }: { store: Store }): Child {
  const found = store.answer('templates')?.content as
    | (Dict & { templates?: Template[]; of: number })
    | undefined
  const list = found?.templates ?? []
  return (
    <Menu
      testid="nbp-templates"
      name="Start from a task"
      kind="from-left templates"
      onOpen={() => store.ask('templates')}
      label={
        <>
          <span class="not-narrow">Templates</span>
          <span class="narrow-only">Tasks</span>
          <Icon name="down" />
        </>
      }
    >
      {list.map(({ name, label, off, example }) => (
        <button
          type="button"
          key={name}
          data-template={name}
          disabled={!!off}
          title={off}
          onClick={() => store.turn('template', { name })}
        >
          {label}
          <span class="dim">{off || `“${brief(example, 48)}”`}</span>
        </button>
      ))}
      {list.length < (found?.of ?? 1) && (
        <span class="dim soon">Looking for words that fit this tokenizer …</span>
      )}
    </Menu>
  )
}

function past(store: Store): Child {
  const { history } = store.spec.value
  if (!history) return null
  const error = !!store.error.value
  const button = (what: 'undo' | 'redo', name: string, on: boolean) => (
    <button
      type="button"
      class="ghost"
      data-testid={`nbp-${what}`}
      aria-label={name}
      title={name}
      disabled={!on}
      onClick={() => store.turn('pairs', { do: what })}
    >
      <Drawn name={what} />
    </button>
  )
  return (
    <span class="past">
      {button('undo', 'Undo the last change of the pairs', history.undo || error)}
      {button('redo', 'Redo', history.redo)}
      <Menu testid="nbp-history" name="Pairs that were here before" label={<Drawn name="clock" />}>
        {history.items.map(({ at, text, failed }) => (
          <button
            type="button"
            key={at}
            data-at={at}
            aria-current={at === history.at}
            onClick={() => store.turn('pairs', { do: 'return', at })}
          >
            {brief(text, 48)}
            {failed && <span class="dim"> not run</span>}
          </button>
        ))}
      </Menu>
    </span>
  )
}

/** Undo and redo where no text field has them of its own. */
function key(store: Store, e: KeyboardEvent): void {
  const typing = (e.target as HTMLElement).closest('input, textarea, select')
  const text = typing && !/^(radio|checkbox|range)$/.test(typing.getAttribute('type') ?? '')
  if (text || !(e.ctrlKey || e.metaKey) || e.altKey || !store.spec.value.history) return
  const letter = e.key.toLowerCase()
  if (letter !== 'z' && letter !== 'y') return
  store.turn('pairs', { do: letter === 'y' || e.shiftKey ? 'redo' : 'undo' })
  e.preventDefault()
  e.stopPropagation()
}

const templates = (store: Store): Child => <Templates store={store} />

export const menus = { pairs, templates, past, key }
