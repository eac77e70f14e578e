// The answer, or the wrong one, as chips with the input that changes it lying over them.

import { type Child, h } from './dom'
import type { Side } from './sentence'
import type { Store } from './store'
import { Chip } from './ui'

/** Chips shown of an answer with many alternatives. */
const SHOWN = 4

export function Answer(props: { store: Store; side: Side; tokens: readonly string[] }): Child {
  const { store, side, tokens } = props
  const value = store.written(side)
  const bad = store.error.value?.field === side
  const off = !store.spec.value.can_run
  const { editor } = store.bundles.value
  const open = store.picking.value?.side === side && !off
  const commit = (input: HTMLInputElement) => store.edit(side, input.value)
  return (
    <span class={`answer${bad ? ' bad' : ''}`}>
      {tokens.slice(0, SHOWN).map((t) => (
        <Chip key={t} text={t} />
      ))}
      {!tokens.length && <span class="chip none">none</span>}
      {tokens.length > SHOWN && <span class="chip">+{tokens.length - SHOWN}</span>}
      <input
        data-testid={`nbp-${side}`}
        aria-label={side === 'answer' ? 'Answer' : 'Wrong answer'}
        title={
          off ? 'No kernel: this page shows what was measured.' : 'Several answers: put " | " between them'
        }
        role="combobox"
        autocomplete="off"
        aria-autocomplete="list"
        aria-expanded={open}
        aria-controls={`${store.id}${side}`}
        aria-activedescendant={
          open && (store.picking.value?.at ?? -1) >= 0 ? `${store.id}${side}${store.picking.value?.at}` : null
        }
        defaultValue={store.texts[side]}
        key={`${store.resets.value}${value}`}
        readOnly={off}
        spellcheck="false"
        onFocus={() => {
          store.picking.value = { side, at: -1 }
          store.askDraft()
        }}
        onInput={(e) => store.type(side, e.currentTarget.value)}
        onBlur={(e) => {
          store.picking.value = null
          commit(e.currentTarget)
        }}
        onKeyDown={(e) => {
          e.stopPropagation()
          if (editor?.picker.key(store, side, e)) return
          if (e.key === 'Enter') commit(e.currentTarget)
          if (e.key === 'Escape') {
            e.currentTarget.value = value
            commit(e.currentTarget)
          }
        }}
      />
      {open && editor?.picker.list(store, side)}
    </span>
  )
}
