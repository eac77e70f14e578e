// The head that is looked at: its attention, how it is shown, and how it follows the selection.

import { headNumber, type Look, type Mode, strongestHead } from './shown'
import type { Signal } from './signal'
import { Typing } from './typing'
import type { Attention, Cell, HeatMap } from './wire'

export abstract class Heads extends Typing {
  abstract readonly selection: Signal<Cell | null>
  abstract readonly maps: Signal<ReadonlyMap<string, HeatMap>>
  abstract get current(): HeatMap[]
  abstract choose(cell: Cell | null): void

  readonly attention = this.cell<ReadonlyMap<string, Attention>>(new Map())
  readonly mode = this.cell<Mode>('clean')
  readonly head = this.cell<{ layer: number; head: number } | null>(null)
  /** Cell of an attention matrix under the pointer. */
  readonly look = this.cell<Look>({ dest: null, src: null })
  /** What is here or on its way. */
  protected asked = new Set<string>()

  lookTo(look: Look): void {
    const now = this.look.value
    if (now.dest !== look.dest || now.src !== look.src) this.look.value = look
  }

  /** Shows a head's attention; where the map is over heads, its cell becomes the selection. */
  lookAt(layer: number, head: number): void {
    this.head.value = { layer, head }
    const map = this.current[0]
    if (map?.dims.length !== 2 || !map.dims.includes('head') || !map.dims.includes('layer')) return
    const labels = map.coords.head ?? []
    const label = labels.findLast((l) => (headNumber(l, this.spec.value) ?? 0) <= head)
    if (label !== undefined) this.choose({ layer, head: label })
    this.head.value = { layer, head }
  }

  /** Asks for a layer's attention unless it is here or on its way. */
  wantAttention(layer: number): void {
    const name = `${this.shown.value.pair}.${layer}`
    if (this.attention.value.has(name) || this.asked.has(name) || !this.spec.value.can_run) return
    this.asked.add(name)
    this.host.send({ type: 'attention', layer })
  }

  attentionOf(layer: number): Attention | undefined {
    return this.attention.value.get(`${this.shown.value.pair}.${layer}`)
  }

  /** The head whose attention is shown: the chosen one, else the strongest known, else one that is there. */
  get looking(): { layer: number; head: number } {
    if (this.head.value) return this.head.value
    const known = strongestHead([...this.current, ...this.maps.value.values()], this.spec.value)
    if (known) return known
    const layer = this.spec.value.can_run ? undefined : [...this.attention.value.values()][0]?.layer
    return { layer: layer ?? Number(this.selection.value?.layer ?? 0), head: 0 }
  }
}
