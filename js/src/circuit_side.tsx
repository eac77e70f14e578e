// Beside the circuit: how faithful it is, its strongest edges, the chosen one in words, what to be careful with.

import { Chosen } from './circuit_chosen'
import { called, type Edge, type Faithful, grouped, ofSign, receiverOf, type Scored } from './circuit_data'
import { control, controls, hovered, isAlone, type Picked, pick, picked, touches } from './circuit_state'
import { type Child, Fragment, h } from './dom'
import { plural, readNumber } from './format'
import type { Store } from './store'
import { Icon } from './ui'
import type { Trouble } from './wire'

interface Props {
  store: Store
  data: Scored
  kept: readonly Edge[]
  faithful: Faithful | null
  old: boolean
  trouble: Trouble | null
}

export function Side(props: Props): Child {
  return (
    <aside class="inspector">
      <Kept {...props} />
      <Strongest {...props} />
      <Chosen {...props} />
      <Careful {...props} />
    </aside>
  )
}

function Kept({ data, faithful, old, trouble, kept, store }: Props): Child {
  const said = faithful && typeof faithful.clean === 'number' ? faithful : null
  const random = !old && said ? said.random : undefined
  const unit = plural(data.unit, said?.value ?? 0)
  const known = data.sent >= (faithful?.n ?? 0) || !old
  const negative = kept.filter((e) => e.score < 0).length
  return (
    <section class={old ? 'kept old' : 'kept'} aria-live="polite" data-testid="nbp-faithful">
      <h4>Kept circuit</h4>
      {!data.runs && (
        <p class="note">
          Nothing is run: there is no model. nbp.CircuitView(circuit, model) runs the kept edges.
        </p>
      )}
      {trouble && <Refused trouble={trouble} />}
      {data.runs && !trouble && (
        <>
          <div class="big">
            <b>
              {said
                ? typeof said.faithful === 'number'
                  ? readNumber(said.faithful).replace('+', '')
                  : 'none'
                : '…'}
            </b>
            <span>
              faithful: {said ? readNumber(said.value ?? Number.NaN) : '…'} {unit},
              <br />
              clean model {said ? readNumber(said.clean as number) : '…'}
            </span>
          </div>
          {said && typeof said.faithful !== 'number' && (
            <p class="note">
              There is no gap to share out: the whole model and nothing kept measure the same.
            </p>
          )}
        </>
      )}
      <dl>
        {data.runs && (
          <>
            <dt>nothing kept</dt>
            <dd>{said ? readNumber(said.empty as number) : '…'}</dd>
            <dt>
              {said?.random?.count ?? 5} random sets of {grouped(faithful?.edges ?? kept.length)} edges
            </dt>
            <dd title={random ? `mean; the lowest and the highest: ${spread(random)}` : ''}>
              {random && random.mean !== null ? readNumber(random.mean).replace('+', '') : '…'}
            </dd>
          </>
        )}
        <dt>negative edges kept</dt>
        <dd>
          {known && data.sent >= kept.length && !(faithful && faithful.n > data.sent)
            ? `${negative} of ${grouped(kept.length)}`
            : `${grouped(faithful?.negative ?? 0)} of ${grouped(faithful?.edges ?? 0)}`}
        </dd>
      </dl>
      {said && said.on === 'others' && (
        <p class="note">
          On {said.pairs} held-out {said.pairs === 1 ? 'pair' : 'pairs'}.{' '}
          {data.same > 0 && (
            <button type="button" class="link" onClick={() => control(store, { on: 'same' })}>
              Back to the pair it was found on
            </button>
          )}
        </p>
      )}
    </section>
  )
}

const spread = ({ low, high }: NonNullable<Faithful['random']>): string =>
  `${readNumber(low ?? Number.NaN)} to ${readNumber(high ?? Number.NaN)}`

export function Refused({ trouble }: { trouble: Trouble }): Child {
  return (
    <div class="refused" role="alert" data-testid="nbp-error">
      <p>
        <b>{trouble.title}</b>
      </p>
      {trouble.lines.map((line) => (
        <p key={line} class="line">
          {line}
        </p>
      ))}
    </div>
  )
}

function Strongest({ store, data, kept }: Props): Child {
  const { show, rows } = controls(store)
  const now = picked(store)
  const node = now && 'node' in now ? now : null
  const list = ofSign(kept, show).filter((e) => !node || touches(node, e))
  const most = Math.max(1e-12, ...list.map((e) => Math.abs(e.score)))
  const both = list.some((e) => e.score < 0)
  const name = node && nodeName(node)
  const left = list.length - rows
  return (
    <section>
      <h4>
        <span>{name ? `Edges of ${name}` : 'Strongest edges'}</span>
        <span class="key">{plural(data.unit, 0)}</span>
      </h4>
      {!list.length && (
        <p class="note">{kept.length ? 'None of this sign.' : 'No edge that leads to the answer is kept.'}</p>
      )}
      <ul class="edge-list">
        {list.slice(0, rows).map((e) => (
          <Row key={e.name} store={store} edge={e} now={now} most={most} both={both} />
        ))}
      </ul>
      {left > 0 && (
        <button type="button" class="link" onClick={() => control(store, { rows: rows + 40 })}>
          {Math.min(left, 40)} more
        </button>
      )}
      {node && (
        <button type="button" class="link" onClick={() => pick(store, null)}>
          All edges
        </button>
      )}
    </section>
  )
}

const nodeName = (node: { node: string; pos: number }): string => {
  const name = node.node
    .replace(/^a/, '')
    .replace(/^m(\d)/, 'mlp $1')
    .replace('embed', 'tokens')
  const words = name === 'logits' ? 'the answer' : name
  return node.pos < 0 || node.node === 'logits' ? words : `${words} at ${node.pos}`
}

function Row(props: { store: Store; edge: Edge; now: Picked; most: number; both: boolean }): Child {
  const { store, edge, now, most, both } = props
  const on = !!now && 'edge' in now && now.edge === edge.name
  const share = Math.abs(edge.score) / most
  const zero = both ? 28 : 0
  const width = share * (100 - 2 * zero + (both ? 28 : 0))
  const point = hovered(store)
  return (
    <li>
      <button
        type="button"
        class={on ? 'on' : ''}
        aria-pressed={on}
        title={edge.name}
        onClick={() => pick(store, on ? null : { edge: edge.name })}
        onMouseEnter={() => {
          point.value = edge.name
        }}
        onMouseLeave={() => {
          point.value = null
        }}
        onKeyDown={(e) => {
          if (e.key === 'Enter' || e.key === ' ') e.stopPropagation()
        }}
      >
        <span class="name">
          {called(edge.from, edge.pos)} <span class="dim">→</span> {receiverOf(edge)}
          {edge.input && <span class="dim"> {edge.input}</span>}
          {edge.pos >= 0 && edge.from.kind !== 'embed' && <span class="at"> @{edge.pos}</span>}
        </span>
        <span class="strip-of">
          <i
            class={edge.score < 0 ? 'neg' : 'pos'}
            style={
              edge.score < 0
                ? { right: `${100 - zero}%`, width: `${Math.min(zero, width)}%` }
                : { left: `${zero}%`, width: `${Math.min(100 - zero, width)}%` }
            }
          />
        </span>
        <span class="num">{readNumber(edge.score)}</span>
      </button>
    </li>
  )
}

function Careful({ store, data, faithful }: Props): Child {
  if (!data.scored_on) return null
  if (controls(store).on === 'others' && data.others) return null
  if (!data.same && faithful?.on === 'others') return null
  return (
    <section class="careful">
      <p>
        <Icon name="warn" />
        <span>
          <b>
            {data.runs ? 'Found and scored on the same ' : 'Scored on '}
            {data.scored_on === 1
              ? data.runs
                ? 'pair.'
                : 'one pair.'
              : data.runs
                ? 'pairs.'
                : `${data.scored_on} pairs.`}
          </b>{' '}
          The score may not hold elsewhere.{' '}
          {data.others > 0 ? (
            <button type="button" class="link" onClick={() => control(store, { on: 'others' })}>
              Evaluate on {data.others} held-out {data.others === 1 ? 'pair' : 'pairs'}
            </button>
          ) : (
            <Elsewhere store={store} data={data} />
          )}
        </span>
      </p>
    </section>
  )
}

/** What would give other pairs to run the kept edges on. */
function Elsewhere({ store, data }: Pick<Props, 'store' | 'data'>): Child {
  if (isAlone(store)) return <>Hand in others: nbp.CircuitView(circuit, model, pairs).</>
  if (data.positions !== null && store.spec.value.pairs.length > 1)
    return (
      <>
        The other pairs have other lengths.{' '}
        <button type="button" class="link" onClick={() => control(store, { positions: false })}>
          Sum edges over positions
        </button>
      </>
    )
  return <>Add pairs to the workbench to evaluate on them: wb.pairs = [pair, other].</>
}
