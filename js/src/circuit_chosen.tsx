// The chosen edge in words, and what to do with it.

import { called, type Edge, pathOf, receiverOf, type Scored } from './circuit_data'
import { isAlone, picked } from './circuit_state'
import { type Child, Fragment, h } from './dom'
import { plural, readNumber, tableNumber } from './format'
import type { Store } from './store'
import { Chip } from './ui'

interface Props {
  store: Store
  data: Scored
  kept: readonly Edge[]
}

const INPUTS = { q: 'a query', k: 'a key', v: 'a value' } as const

export function Chosen({ store, data, kept }: Props): Child {
  const now = picked(store)
  const edge = now && 'edge' in now ? data.edges.find((e) => e.name === now.edge) : undefined
  if (!edge)
    return (
      <section>
        <h4>No edge chosen</h4>
        <p class="note">Choose one in the drawing or in the list; arrow keys walk from node to node.</p>
      </section>
    )
  const tokens = store.pair.clean_tokens
  const at = edge.pos >= 0 ? tokens[edge.pos] : undefined
  const writes = edge.input === 'k' || edge.input === 'v' ? writesAt(kept, edge) : edge.pos
  const to = writes >= 0 && edge.to.kind !== 'logits' ? tokens[writes] : undefined
  const inKept = kept.some((e) => e.name === edge.name)
  const head = edge.to.kind === 'head' ? edge.to : edge.from.kind === 'head' ? edge.from : null
  return (
    <section>
      <h4>
        <span class="ends">
          {called(edge.from, -1)}{' '}
          {at !== undefined && (
            <>
              at <Chip text={at} />
            </>
          )}{' '}
          → {receiverOf(edge)}{' '}
          {to !== undefined && (
            <>
              at <Chip text={to} />
            </>
          )}
        </span>
      </h4>
      <p class="words">
        {enters(edge)} Patching it alone is estimated to change the metric by {readNumber(edge.score)}{' '}
        {plural(data.unit, edge.score)}. {attends(store, edge, writes)}
        {!inKept && 'It is not kept.'}
      </p>
      {!isAlone(store) && (
        <div class="acts">
          <button type="button" class="button" onClick={() => patchPath(store, edge)}>
            Patch this path
          </button>
          {head && (
            <button
              type="button"
              class="ghost"
              onClick={() => {
                store.lookAt(head.layer, head.head)
                store.tab.value = 'sweep'
              }}
            >
              Show attention
            </button>
          )}
        </div>
      )}
    </section>
  )
}

function enters(edge: Edge): string {
  if (edge.to.kind === 'logits') return 'Goes straight to the answer.'
  if (edge.to.kind === 'mlp') return `Is read by the MLP of layer ${edge.to.layer}.`
  const whose =
    edge.shared > 1
      ? `heads ${edge.to.layer}.${edge.to.head}–${edge.to.head + edge.shared - 1}`
      : `head ${receiverOf(edge)}`
  return `Enters ${whose} as ${INPUTS[edge.input as 'q']}.`
}

/** Where the head that an edge feeds writes most of what is kept. */
function writesAt(kept: readonly Edge[], edge: Edge): number {
  const mine = kept.find(
    (e) =>
      e.from.kind === 'head' &&
      e.from.layer === edge.to.layer &&
      e.from.head === edge.to.head &&
      e.pos >= edge.pos,
  )
  return mine?.pos ?? -1
}

/** How much a head attends, in the clean run, from where it writes to where an edge ends. */
function attends(store: Store, edge: Edge, writes: number): string {
  if (isAlone(store) || edge.to.kind !== 'head' || writes < 0 || edge.pos < 0 || edge.input === 'q') return ''
  store.wantAttention(edge.to.layer)
  const seen = store.attentionOf(edge.to.layer)
  const weight = seen?.values[(edge.to.head * seen.dest + writes) * seen.src + edge.pos]
  if (weight === undefined) return ''
  return `In the clean run position ${writes} attends to position ${edge.pos} with weight ${tableNumber(weight).replace(/^\./, '0.')}. `
}

function patchPath(store: Store, edge: Edge): void {
  store.own<{ sender?: string; receiver?: string }>('path', {}).value = pathOf(edge)
  store.tab.value = 'paths'
}
