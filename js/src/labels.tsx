// What stands around a heat map: column and row names, brackets below.

import { type Child, h } from './dom'
import { visible } from './format'
import type { Rows } from './geometry'
import type { Store } from './store'
import { indexIn, type Table } from './table'
import { TokenText } from './ui'
import { type HeatMap, type Pair, State } from './wire'

const LINE = 12
const POSITIONS = /^(pos|src|dest)$/

/** Names over the columns: upright tokens where the strips are wrapped, numbers for axes that are no positions. */
export function Columns(props: {
  store: Store
  table: Table
  col: number
  upright: boolean
  /** The strips do not lie on these columns. */
  own: boolean
}): Child {
  const { store, table, col, upright, own } = props
  const cell = store.hover.value ?? store.chosen
  const tokens = POSITIONS.test(table.col)
  if (col < 10 || (tokens && !upright && !own)) return null
  const pair = store.pair
  const letters = Math.max(...table.cols.map((label) => String(label).length))
  const every = Math.ceil((7 * letters + 4) / col)
  return (
    <div class={`columns${tokens && upright ? ' tokens' : ''}`} aria-hidden="true">
      {!tokens && <span class="axis">{table.col}</span>}
      {table.cols.map((label, c) => {
        const on = cell?.[table.col] === label
        const which = `column ${table.map.key.direction} ${c} ${on}`
        return store.once(which, [pair, table, col, upright], () =>
          tokens ? (
            <span
              key={label}
              class={`${on ? 'on' : ''}${pair.differs.includes(Number(label)) ? ' differs' : ''}`}
              style={{ width: `${col}px` }}
              title={full(pair, Number(label))}
            >
              <span class={upright ? 'up' : ''}>{name(pair, Number(label))}</span>
            </span>
          ) : (
            <span key={label} class={on ? 'on' : ''} style={{ width: `${col}px` }}>
              {c % every === 0 || on ? label : ''}
            </span>
          ),
        )
      })}
    </div>
  )
}

const name = (pair: Pair, pos: number): Child =>
  pos === 0 && pair.has_bos ? 'bos' : <TokenText text={pair.clean_tokens[pos] ?? String(pos)} />

/** "position 3 ‘Mary’": what a name that is cut stands for. */
const full = (pair: Pair, pos: number): string =>
  `position ${pos} ‘${visible(pair.clean_tokens[pos] ?? String(pos))}’`

export function RowNames(props: { store: Store; table: Table; rows: Rows; narrow: boolean }): Child {
  const { store, table, rows, narrow } = props
  const cell = store.hover.value ?? store.chosen
  const [first, second] = table.rowAxes
  // Low rows have a name only now and then, taller than the row itself.
  const each = Math.ceil(LINE / rows.height)
  const high = Math.max(LINE, rows.height)
  return (
    <div class="rownames" aria-hidden="true">
      {table.rows.map((row, r) => {
        const on = table.rowAxes.every((axis) => cell?.[axis] === row[axis])
        const start = r === 0 || table.rows[r - 1]?.[first as string] !== row[first as string]
        const style = {
          top: `${(rows.top[r] as number) - (high - rows.height) / 2}px`,
          height: `${high}px`,
          'line-height': `${high}px`,
        }
        if (second === undefined) {
          if (r % each) return null
          return (
            <span
              key={r}
              class={on ? 'on' : ''}
              style={style}
              title={first === 'dest' ? full(store.pair, Number(row.dest)) : ''}
            >
              {r === 0 && first === 'layer' && !narrow && 'layer '}
              {first === 'dest' ? name(store.pair, Number(row.dest)) : row[first as string]}
            </span>
          )
        }
        return (
          <span key={r} class={`two${on ? ' on' : ''}`} style={style}>
            <span class="outer">
              {start && (r === 0 && !narrow ? `${first} ${row[first as string]}` : row[first as string])}
            </span>
            {!narrow &&
              (rows.height >= 12 &&
              (on ||
                rows.height >= 20 ||
                table.sorted ||
                Number(row[second]) % 2 === 0 ||
                typeof row[second] === 'string')
                ? row[second]
                : '')}
          </span>
        )
      })}
    </div>
  )
}

interface Mark {
  from: number
  to: number
  text: string
  title?: string
}

/** Brackets under a map over positions: what is the same, what differs, where the answer is read. */
export function marks(map: HeatMap, pair: Pair): Mark[] {
  const differs = pair.differs.filter((p) => p < pair.clean_tokens.length)
  const first = differs[0]
  const last = differs.at(-1)
  if (first === undefined || last === undefined) return []
  const out: Mark[] = []
  const zero = map.dims.includes('layer') && map.state[indexIn(map, startOf(map))] === State.Exact
  const same = Math.min(first, pair.aligned?.find(([a, b]) => a !== b)?.[0] ?? first)
  if (same > 0)
    out.push({
      from: 0,
      to: same - 1,
      text: zero ? 'same tokens so far: exactly 0, not run' : 'same tokens so far',
    })
  out.push({ from: first, to: last, text: differs.length > 1 ? 'differ' : 'differs' })
  if (pair.clean_end > last) out.push({ from: pair.clean_end, to: pair.clean_end, text: 'answer read here' })
  return out
}

const startOf = (map: HeatMap) =>
  Object.fromEntries(map.dims.map((axis) => [axis, map.coords[axis]?.[0] ?? 0]))

export function BottomMarks({ store, table, col }: { store: Store; table: Table; col: number }): Child {
  if (table.col !== 'pos') return null
  return (
    <div class="marks" aria-hidden="true">
      {marks(table.map, store.pair).map((m) => {
        const width = (m.to - m.from + 1) * col
        const room = m.text.length * 5.6
        return (
          <span
            key={m.from}
            class={m.from === store.pair.clean_end ? 'last' : ''}
            title={m.text}
            style={{ left: `${m.from * col}px`, width: `${width - 1}px` }}
          >
            <span>{m.from > 0 || room < width + 40 ? m.text : width > 70 ? 'same so far' : ''}</span>
          </span>
        )
      })}
    </div>
  )
}
