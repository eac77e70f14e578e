// The choices of an answer field: the likeliest next tokens of its run, by pointer or by keys.

import { type Child, h } from './dom'
import type { Draft } from './drafting'
import { percent } from './format'
import type { Side } from './sentence'
import type { Store } from './store'
import { Chip, Run } from './ui'
import type { Top } from './wire'

const runOf = (side: Side): 'clean' | 'corrupted' => (side === 'answer' ? 'clean' : 'corrupted')

/** The likeliest tokens but those of the other field: as many as Python knows of what is typed now, else those of the sweep. */
function choices(store: Store, side: Side): Top {
  const run = runOf(side)
  const found = store.answer('draft')?.content as unknown as Partial<Draft> | undefined
  const known = run === 'clean' ? store.pair.clean_top : store.pair.corrupted_top
  const top = found?.[run]?.top.length ? found[run].top : known
  const taken = side === 'answer' ? store.pair.wrong : store.pair.answer
  return top.filter(([token]) => !taken.includes(token))
}

function choose(store: Store, side: Side, input: HTMLInputElement, token: string): void {
  input.value = token
  store.edit(side, token)
  store.picking.value = null
}

/** Moves the choices to the left as far as they would stick out of the widget. */
function inside(list: HTMLElement): void {
  const root = list.closest('.nbp')?.getBoundingClientRect()
  const over = list.getBoundingClientRect().right - (root?.right ?? 0) + 8
  if (root && over > 0) list.style.left = `${-over}px`
}

function list(store: Store, side: Side): Child {
  const at = store.picking.value?.at
  return (
    <span
      class="choices"
      paint={{ when: [side, store.width.value], run: inside }}
      role="listbox"
      id={`${store.id}${side}`}
      aria-label={`Likeliest after the ${runOf(side)} prompt`}
    >
      <span class="dim heading" aria-hidden="true">
        <Run run={runOf(side)} /> {runOf(side)} run’s likeliest
      </span>
      {choices(store, side).map(([token, prob], i) => (
        <span
          key={token}
          id={`${store.id}${side}${i}`}
          role="option"
          class={i === at ? 'choice on' : 'choice'}
          aria-selected={i === at}
          data-token={token}
          onMouseDown={(e) => {
            e.preventDefault()
            const input = e.currentTarget.closest('.answer')?.querySelector('input')
            if (input) choose(store, side, input, token)
          }}
        >
          <Chip text={token} /> <span class="dim">{percent(prob)}%</span>
        </span>
      ))}
    </span>
  )
}

/** Takes arrow keys, Enter on a choice and the Escape that closes them; returns whether it did. */
function key(store: Store, side: Side, e: KeyboardEvent): boolean {
  const all = choices(store, side)
  const input = e.currentTarget as HTMLInputElement
  const picking = store.picking.value
  if (e.key === 'ArrowDown' || e.key === 'ArrowUp') {
    const from = picking?.at ?? -1
    const at = e.key === 'ArrowDown' ? Math.min(from + 1, all.length - 1) : Math.max(from - 1, -1)
    store.picking.value = { side, at }
    e.preventDefault()
    return true
  }
  const chosen = all[picking?.at ?? -1]
  if (e.key === 'Enter' && chosen) {
    choose(store, side, input, chosen[0])
    return true
  }
  if (e.key === 'Enter') store.picking.value = null
  if (e.key === 'Escape' && picking) store.picking.value = null
  return false
}

export const picker = { list, key }
