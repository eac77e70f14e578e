// The two prompts as token strips on the map's columns, each with its input lying over it.

import { type Child, Fragment, h } from './dom'
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

export function Strips({ store, place }: { store: Store; place: Place }): Child {
  const pair = store.pair
  const { grid, wrap } = place
  const chosen = positions(store.hover.value ?? store.chosen)
  return (
    <div
      class={`strips${wrap ? ' wrap' : grid.col < 36 ? ' tight' : ''}`}
      style={{ '--gutter': `${grid.gutter}px`, '--col': `${grid.col}px` }}
    >
      {!wrap && (
        <div class="strip numbers" aria-hidden="true">
          <span class="name" />
          <span class="row">
            {pair.clean_tokens.map((_, i) => (
              <span key={i} class={chosen.includes(i) ? 'on' : ''}>
                {i}
              </span>
            ))}
          </span>
        </div>
      )}
      <Strip store={store} side="clean" chosen={chosen} />
      <Strip store={store} side="corrupted" chosen={chosen} />
    </div>
  )
}

function Strip({ store, side, chosen }: { store: Store; side: Side; chosen: number[] }): Child {
  const pair = store.pair
  const tokens = side === 'clean' ? pair.clean_tokens : pair.corrupted_tokens
  const top = side === 'clean' ? pair.clean_top : pair.corrupted_top
  const bad = store.error.value?.field === side
  return (
    <div class="strip">
      <span class="name">
        <Run run={side} />
        {side}
      </span>
      <div class={`over${bad ? ' bad' : ''}`}>
        <div class="row" data-testid={`nbp-tokens-${side}`}>
          {tokens.map((text, i) => {
            const on = chosen.includes(i)
            return store.once(`${side}${i}${on}`, [pair], () => (
              <Token
                key={i}
                text={text}
                pos={i}
                differs={pair.differs.includes(i)}
                bos={i === 0 && pair.has_bos}
                on={on}
              />
            ))
          })}
        </div>
        <Prompt store={store} side={side} pair={pair} />
      </div>
      <Prediction top={top} />
    </div>
  )
}

export function Token(props: {
  text: string
  pos: number
  differs: boolean
  bos?: boolean
  on?: boolean
}): Child {
  const { text, pos, differs, bos, on } = props
  return (
    <span
      class={`token${differs ? ' differs' : ''}${bos ? ' bos' : ''}${on ? ' on' : ''}`}
      data-testid="nbp-token"
      data-pos={pos}
      data-differs={differs}
      title={text.length > 5 ? text : ''}
    >
      {bos ? 'bos' : <TokenText text={text} />}
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
      defaultValue={pair[side]}
      readOnly={off}
      spellcheck="false"
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
