// The page's state. One store per mounted view; nothing lives at module level.

import { limitOf } from './colour'
import { Heads } from './heads'
import type { Host } from './host'
import { type Change, defaultOver, type Exported, headNumber, prompts, type Shown, shownOf } from './shown'
import type { Signal } from './signal'
import { indexIn, shares } from './table'
import {
  type Attention,
  type Buffers,
  bytesOf,
  type Cell,
  type Dict,
  decodeAttention,
  decodeMap,
  directionsOf,
  type HeatMap,
  type MapKey,
  mapName,
  OTHER,
  type Pair,
  type Spec,
  type Status,
  type Trouble,
  VERSION,
} from './wire'

export type { Exported, Look, Mode, Shown } from './shown'
export type { Field } from './typing'

const PATIENCE = 4000
const SILENT = 'Python does not answer. It may be busy; if its kernel is gone, run the cell again.'
const LOST = 'The kernel is gone. This is what was measured; run the cell again for more.'

/** What the workbench shows under its header. */
export type Tab = 'sweep' | 'paths' | 'circuit'

export class Store extends Heads {
  readonly spec: Signal<Spec>
  readonly status: Signal<Status>
  readonly error: Signal<Trouble | null>
  readonly selection: Signal<Cell | null>
  /** Cells that are patched together. */
  readonly brushed: Signal<Cell[]>
  readonly hover = this.cell<Cell | null>(null)
  readonly pinned = this.cell(false)
  readonly shown: Signal<Shown>
  readonly maps = this.cell<ReadonlyMap<string, HeatMap>>(new Map())
  /** The estimates that exact values took the place of, or will. */
  readonly estimates = this.cell<ReadonlyMap<string, HeatMap>>(new Map())
  readonly tab = this.cell<Tab>('sweep')
  /** Tells this view's radio groups from those of other views of the page. */
  readonly id = `nbp${Math.random().toString(36).slice(2)}`
  readonly exported = this.cell<Exported | null>(null)
  /** Width of the root, so that what depends on it need not guess; 0 until measured. */
  readonly width = this.cell(0)

  get pair(): Pair {
    return this.spec.value.pairs[this.shown.value.pair] ?? (this.spec.value.pairs[0] as Pair)
  }

  /** The maps of the current controls, one per direction; those not here yet are absent. */
  get current(): HeatMap[] {
    return this.mapsFor(this.shown.value)
  }

  /** The maps on screen: the wanted ones, until they arrive the last ones shown of the same prompts. */
  get onScreen(): HeatMap[] {
    const now = this.current
    if (now.length) this.last = now
    return now.length ? now : this.last
  }

  /** The selected cell where the map on screen has it; a selection of other axes waits for its map. */
  get chosen(): Cell | null {
    const map = this.onScreen[0]
    return map && indexIn(map, this.selection.value) >= 0 ? this.selection.value : null
  }

  private last: HeatMap[] = []
  private limited: { maps: readonly HeatMap[]; limit: number } = { maps: [], limit: 1 }
  private newest = 0
  private pending: Dict = {}
  private heard = false
  /** Takes the store off its host. */
  readonly close: () => void

  constructor(host: Host) {
    super(host)
    const now = host.read()
    this.spec = this.cell(now.spec)
    this.status = this.cell(now.status)
    this.error = this.cell(now.error)
    this.selection = this.cell(now.selection)
    this.brushed = this.cell(now.brushed)
    this.shown = this.cell(shownOf(now.spec))
    if (now.version > VERSION) this.warnNewer(now.version)
    this.close = host.listen({
      spec: (spec) => this.onSpec(spec),
      status: (status) => this.onStatus(status),
      error: (error) => this.onError(error),
      selection: (cell) => this.onSelection(cell),
      brushed: (cells) => this.brush(cells, false),
      message: (content, buffers) => this.onMessage(content, buffers),
      kernel: (there) => this.onKernel(there),
    })
    for (const one of now.saved) this.onMap(decodeMap({ v: VERSION, gen: 0, ...one }, []))
    host.send({ type: 'need' })
    this.need('views')
    this.need('tools')
    if (!host.live) return
    if (now.spec.can_run) this.need('editor')
    // A widget restored from a saved notebook sends into the void, and no host says so.
    const silent = setTimeout(() => {
      if (!this.heard && !this.notice.value) this.notice.value = SILENT
    }, PATIENCE)
    const off = this.close
    this.close = () => {
      clearTimeout(silent)
      off()
    }
  }

  // ---- from Python

  private onSpec(spec: Spec): void {
    const before = this.spec.value
    if (prompts(before) !== prompts(spec)) {
      this.maps.value = new Map()
      this.estimates.value = new Map()
      this.attention.value = new Map()
      this.asked.clear()
      this.forget()
      this.last = []
      this.hover.value = null
      this.keepTyping(before, spec)
    }
    const told = shownOf(spec)
    for (const name of Object.keys(this.pending)) {
      const field = name as keyof Shown
      if (JSON.stringify(told[field]) === JSON.stringify(this.pending[field])) delete this.pending[field]
    }
    this.spec.value = spec
    this.shown.value = { ...told, ...this.pending }
    if (this.drafting) this.askDraft()
  }

  private onStatus(status: Status): void {
    this.newest = Math.max(this.newest, status.gen || 0)
    this.status.value = status
    if (status.state !== 'running' && this.host.live)
      this.needOnce(`${prompts(this.spec.value)}${status.gen}`)
  }

  private onError(error: Trouble | null): void {
    this.error.value = error
    if (!error) return
    this.pending = {}
    this.shown.value = shownOf(this.spec.value)
    this.keepFailed(error)
  }

  private onSelection(cell: Cell | null): void {
    if (JSON.stringify(cell) !== JSON.stringify(this.selection.value)) this.choose(cell, false)
  }

  private onMessage(content: Dict, buffers: Buffers): void {
    this.heard = true
    if (this.notice.value === SILENT) this.notice.value = ''
    if (Number(content.v) > VERSION) return this.warnNewer(Number(content.v))
    if (content.v !== VERSION) return
    if (content.type === 'bundle') return this.onBundle(content, bytesOf(content, buffers, 0))
    if (content.type === 'answer') return this.onAnswer(content, buffers)
    if (content.type === 'export') {
      const bytes = bytesOf(content, buffers, 0)
      this.exported.value = { ...content, ...(bytes ? { bytes } : {}) } as Exported
    } else if (content.type === 'map') this.onMap(decodeMap(content, buffers))
    else if (content.type === 'attention')
      this.onAttention(decodeAttention(content, buffers, this.shown.value.pair))
  }

  /** Without a kernel what is here stays, and what needs Python is off. */
  private onKernel(there: boolean): void {
    const told = this.host.read().spec
    this.notice.value = there ? '' : LOST
    this.spec.value = there ? told : { ...told, can_run: false }
    this.pending = {}
    if (!there && !this.current.length) this.shown.value = shownOf(told)
    if (this.status.value.state === 'running')
      this.status.value = { ...this.status.value, state: 'cancelled' }
  }

  private onMap(map: HeatMap | null): void {
    if (!map || map.gen < this.newest) return
    this.newest = map.gen
    if (map.estimate) this.estimates.value = new Map(this.estimates.value).set(mapName(map.key), map)
    this.maps.value = new Map(this.maps.value).set(mapName(map.key), map)
  }

  private onAttention(layer: Attention | null): void {
    if (layer) this.attention.value = new Map(this.attention.value).set(`${layer.pair}.${layer.layer}`, layer)
  }

  private warnNewer(version: number): void {
    this.notice.value = `Python speaks version ${version} of the widget's language, this page version ${VERSION}: reload the page.`
  }

  /** Asks again for everything when a finished run left nothing to draw; at most once for each reason. */
  private needOnce(why: string): void {
    if (this.current.length || this.error.value || this.asked.has(why)) return
    this.asked.add(why)
    this.host.send({ type: 'need' })
  }

  // ---- what is there

  mapsFor(shown: Shown): HeatMap[] {
    return directionsOf(shown.direction).flatMap(
      (direction) => this.map({ ...shown, over: [...shown.over], direction }) ?? [],
    )
  }

  map(key: MapKey): HeatMap | undefined {
    return (
      this.maps.value.get(mapName(key)) ??
      (key.pair === 'mean' ? undefined : this.maps.value.get(mapName({ ...key, pair: 'mean' })))
    )
  }

  /** ± limit of the colours of the maps on screen; counted once for each set of maps. */
  limitOf(maps: readonly HeatMap[]): number {
    if (maps.length !== this.limited.maps.length || maps.some((m, i) => m !== this.limited.maps[i]))
      this.limited = {
        maps,
        limit: limitOf(
          shares(maps),
          maps.every((m) => m.final),
        ),
      }
    return this.limited.limit
  }

  /** Whether a change of the controls can be answered: by the kernel, or from maps already here. */
  can(change: Change): boolean {
    if (this.spec.value.can_run) return true
    const next = this.applied(change)
    return this.mapsFor(next).length === directionsOf(next.direction).length
  }

  /** The controls after a change; another component comes with axes it has. */
  private applied(change: Change): Shown {
    const next: Shown = { ...this.shown.value, ...change }
    if (change.component && !change.over && change.component !== this.shown.value.component) {
      const known = [...this.maps.value.values()].find((m) => m.key.component === change.component)
      next.over = known?.key.over ?? defaultOver(change.component)
    }
    if (change.corruption && change.corruption !== OTHER) next.direction = 'noising'
    return next
  }

  // ---- from the page

  set(change: Change): void {
    const next = this.applied(change)
    const asked: Dict = { ...change }
    if (change.component && next.over !== this.shown.value.over) asked.over = [...next.over]
    if (change.corruption) asked.direction = next.direction
    if (this.host.live) Object.assign(this.pending, asked)
    if (next.pair !== this.shown.value.pair) this.typing.value = {}
    this.shown.value = next
    this.hover.value = null
    this.host.send({ type: 'set', ...asked })
  }

  choose(cell: Cell | null, tell = true): void {
    this.selection.value = cell
    if (!cell) this.pinned.value = false
    const head = headNumber(cell?.head, this.spec.value)
    if (typeof cell?.layer === 'number' && head !== null) this.head.value = { layer: cell.layer, head }
    if (!tell) return
    this.host.select(cell)
    this.brush([])
  }

  brush(cells: Cell[], tell = true): void {
    if (!cells.length && !this.brushed.value.length) return
    this.brushed.value = cells
    if (tell) this.host.brush(cells)
  }
}
