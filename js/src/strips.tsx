// The two prompts as token strips on the map's columns, each with its input lying over it.

import { type Child, Fragment, h } from './dom'
import { type Lines, linesOf, type Slot } from './drafting'
import { percent } from './format'
import type { Grid } from './geometry'
import type { Store } from './store'
import { Run, TokenText } from './ui'
import type { Cell, Pair, Top } from './wire'

type Side = 'clean' | 'corrupted'

export interface Place {
  grid: Grid
  /** Strips wrap as text instead of lying on columns. */
  wrap: boolean
}

/** Positions a cell names. */
export const positions = (cell: Cell | null): number[] =>
  cell ? [cell.pos, cell.src, cell.dest].filter((p): p is number => typeof p === 'number') : []

/** The width of a column: a longer draft takes the room of the pair on screen, the map below stays where it is. */
export const columnOf = (store: Store, grid: Grid, { draft, count }: Lines): number =>
  draft ? Math.min(grid.col, (grid.col * store.pair.clean_tokens.length) / Math.max(1, count)) : grid.col

export function Strips({ store, place }: { store: Store; place: Place }): Child {
  const { grid, wrap } = place
  const lines = linesOf(store)
  const chosen = positions(store.hover.value ?? store.chosen)
  const kind = `${wrap ? ' wrap' : grid.col < 36 ? ' tight' : ''}${lines.draft ? ' drafting' : ''}`
  return (
    <div
      class={`strips${kind}`}
      style={{ '--gutter': `${grid.gutter}px`, '--col': `${columnOf(store, grid, lines)}px` }}
    >
      {!wrap && (
        <div class="strip numbers" aria-hidden="true">
          <span class="name" />
          <span class="row">
            {lines.clean.map((slot, i) => (
              <span key={i} class={slot && chosen.includes(slot.pos) ? 'on' : ''}>
                {slot?.pos}
              </span>
            ))}
          </span>
        </div>
      )}
      <Strip store={store} side="clean" lines={lines} chosen={chosen} />
      <Strip store={store} side="corrupted" lines={lines} chosen={chosen} />
    </div>
  )
}

function Strip(props: { store: Store; side: Side; lines: Lines; chosen: number[] }): Child {
  const { store, side, lines, chosen } = props
  const pair = store.pair
  const { draft } = lines
  const top = draft?.[side].top ?? (side === 'clean' ? pair.clean_top : pair.corrupted_top)
  const bos = draft ? draft.has_bos : pair.has_bos
  const other = side === 'clean' ? 'corrupted' : 'clean'
  const longer = draft && draft[side].tokens.length > draft[other].tokens.length
  const bad = draft?.errors.lengths
    ? store.error.value && longer
    : store.error.value?.field === side || !!draft?.errors[side]
  return (
    <div class="strip">
      <span class="name">
        <Run run={side} />
        {side}
      </span>
      <div class={`over${bad ? ' bad' : ''}`}>
        <div class="row" data-testid={`nbp-tokens-${side}`}>
          {lines[side].map((slot, i) => {
            const on = chosen.includes(lines.clean[i]?.pos ?? -1)
            return store.once(`${side}${i}${on}`, [slot, bos], () => (
              <Place key={i} slot={slot} bos={bos} on={on} />
            ))
          })}
        </div>
        <Prompt store={store} side={side} pair={pair} />
      </div>
      <Prediction top={top} />
    </div>
  )
}

/** A token, or the hatched hole where the other prompt has one. */
export function Place({ slot, bos, on }: { slot: Slot | null; bos: boolean; on?: boolean }): Child {
  if (!slot) return <span class="token hole" title="No token stands here" />
  const { text, pos, more } = slot
  const first = pos === 0 && bos
  return (
    <span
      class={`token${slot.differs ? ' differs' : ''}${first ? ' bos' : ''}${on ? ' on' : ''}${more.length ? ' more' : ''}`}
      data-testid="nbp-token"
      data-pos={pos}
      data-differs={slot.differs}
      title={more.length ? `Before it, not patched: ${more.join('')}` : text.length > 5 ? text : ''}
    >
      {first ? 'bos' : <TokenText text={text} />}
    </span>
  )
}

function Prompt({ store, side, pair }: { store: Store; side: Side; pair: Pair }): Child {
  const off = !store.spec.value.can_run
  const commit = (input: HTMLInputElement) => store.edit(side, input.value)
  return (
    <input
      key={`${store.resets.value}${pair[side]}`}
      data-testid={`nbp-${side}`}
      aria-label={`${side === 'clean' ? 'Clean' : 'Corrupted'} prompt`}
      title={off ? 'No kernel: this page shows what was measured.' : 'Click to change the prompt'}
      defaultValue={store.texts[side]}
      readOnly={off}
      spellcheck="false"
      onInput={(e) => store.type(side, e.currentTarget.value)}
      onBlur={(e) => commit(e.currentTarget)}
      onKeyDown={(e) => {
        e.stopPropagation()
        if (e.key === 'Enter') commit(e.currentTarget)
        if (e.key === 'Escape') {
          e.currentTarget.value = pair[side]
          commit(e.currentTarget)
        }
      }}
    />
  )
}

function Prediction({ top }: { top: Top }): Child {
  const [token, prob] = top[0] ?? []
  return (
    <span class="predicts" title="Most likely next token">
      {token !== undefined && (
        <>
          →{' '}
          <b>
            <TokenText text={token} />
          </b>{' '}
          <span class="dim">{percent(prob)}%</span>
        </>
      )}
    </span>
  )
}
