// Beside the chosen cell: what it is can be made the sender or the receiver of paths.

import { type Child, h } from './dom'
import { openOn } from './paths_state'
import type { Store } from './store'
import type { Cell } from './wire'

/** What a cell of the sweep is as an end of paths, in path_patch's grammar; null where it is none. */
export function endsOfCell(
  store: Store,
  cell: Cell | null,
): { sender: string | null; receiver: string | null } {
  const { component } = store.shown.value
  const { model } = store.spec.value
  const none = { sender: null, receiver: null }
  const layer = cell?.layer
  if (layer === undefined) return none
  if (component === 'mlp_out') return { sender: `mlp_out[${layer}]`, receiver: `mlp[${layer}]` }
  const label = String(cell?.head ?? '').replace('kv', '')
  if (!/^\d+$/.test(label)) return none
  const head = Number(label)
  const shared = Math.max(1, Math.round(model.n_heads / model.n_kv_heads))
  if (component === 'z' || component === 'head_out')
    return { sender: `z[${layer}.${head}]`, receiver: `q[${layer}.${head}]` }
  if (component === 'q') return { sender: `z[${layer}.${head}]`, receiver: `q[${layer}.${head}]` }
  if (component === 'k' || component === 'v')
    return { sender: `z[${layer}.${head * shared}]`, receiver: `${component}[${layer}.${head}]` }
  return none
}

export function PathButtons({ store, cell }: { store: Store; cell: Cell | null }): Child {
  const { sender, receiver } = endsOfCell(store, cell)
  if (!sender || !receiver || !store.spec.value.can_run) return null
  const input = /^q/.test(receiver)
    ? 'queries'
    : /^k/.test(receiver)
      ? 'keys'
      : /^v/.test(receiver)
        ? 'values'
        : ''
  return (
    <p class="steps" data-testid="nbp-path-buttons">
      <button
        type="button"
        class="button"
        title="Paths: where does it act?"
        onClick={() => openOn(store, { sender })}
      >
        As sender
      </button>
      <button
        type="button"
        class="button"
        title={input ? `Paths: what acts on its ${input}?` : 'Paths: what acts on its input?'}
        onClick={() => openOn(store, { receiver })}
      >
        As receiver
      </button>
    </p>
  )
}
