// Where the page gets its data from: a live kernel behind an anywidget model, or a document in the page.

import {
  type Buffers,
  type Cell,
  type Dict,
  isDict,
  type Spec,
  type StaticDocument,
  type Status,
  type Trouble,
  VERSION,
} from './wire'

/** The parts of anywidget's model that are used; the same from 0.9.21 to 0.11. */
export interface Model {
  get(name: string): unknown
  set(name: string, value: unknown): void
  save_changes(): void
  on(event: string, handler: Listener): void
  off(event: string, handler: Listener): void
  send(content: Dict, callbacks?: unknown, buffers?: ArrayBuffer[]): void
}

// biome-ignore lint/complexity/noBannedTypes: anywidget passes other arguments to each event
export type Listener = Function

export interface Events {
  spec(spec: Spec): void
  status(status: Status): void
  error(error: Trouble | null): void
  selection(cell: Cell | null): void
  brushed(cells: Cell[]): void
  message(content: Dict, buffers: Buffers): void
  /** The kernel is gone, or there again. */
  kernel(there: boolean): void
}

/** What a new view starts from. */
export interface Now {
  spec: Spec
  status: Status
  error: Trouble | null
  selection: Cell | null
  brushed: Cell[]
  version: number
  /** Maps that are in the widget's state, so that a notebook opened without a kernel has them. */
  saved: Dict[]
}

export interface Host {
  /** Whether there is a kernel that can run what is missing. */
  readonly live: boolean
  read(): Now
  send(content: Dict): void
  select(cell: Cell | null): void
  brush(cells: Cell[]): void
  /** Calls back on every change; returns what takes the listeners off again. */
  listen(events: Events): () => void
}

const IDLE: Status = { state: 'idle', text: '', done: 0, total: 0, gen: 0 }

export function liveHost(model: Model): Host {
  let count = 0
  let told: Events | null = null
  /** Whether the message left the page: a comm whose kernel is gone throws. */
  const send = (content: Dict): boolean => {
    try {
      model.send({ v: VERSION, id: ++count, ...content })
      return true
    } catch {
      told?.kernel(false)
      return false
    }
  }
  const cell = (): Cell | null => (isDict(model.get('selection')) ? (model.get('selection') as Cell) : null)
  const brushed = (): Cell[] => (model.get('brushed') as Cell[] | undefined) ?? []
  const status = (): Status => ({ ...IDLE, ...(model.get('status') as Partial<Status>) })
  const trouble = (): Trouble | null => (model.get('error') as Trouble | null) ?? null
  return {
    live: true,
    read: () => ({
      spec: model.get('spec') as Spec,
      status: status(),
      error: trouble(),
      selection: cell(),
      brushed: brushed(),
      version: Number(model.get('schema_version') ?? VERSION),
      saved: (model.get('saved') as Dict[] | undefined) ?? [],
    }),
    send: (content) => void send(content),
    select(next) {
      model.set('selection', next)
      model.save_changes()
    },
    brush(cells) {
      model.set('brushed', cells)
      model.save_changes()
    },
    listen(events) {
      told = events
      const on: [string, Listener][] = [
        ['change:spec', () => events.spec(model.get('spec') as Spec)],
        ['change:status', () => events.status(status())],
        ['change:error', () => events.error(trouble())],
        ['change:selection', () => events.selection(cell())],
        ['change:brushed', () => events.brushed(brushed())],
        [
          'msg:custom',
          (content: unknown, buffers?: Buffers) => isDict(content) && events.message(content, buffers ?? []),
        ],
        ['comm_live_update', () => send({ type: 'need' }) && events.kernel(true)],
      ]
      for (const [event, handler] of on) model.on(event, handler)
      return () => {
        told = null
        for (const [event, handler] of on) model.off(event, handler)
      }
    },
  }
}

export function staticHost(page: StaticDocument): Host {
  return {
    live: false,
    read: () => ({
      spec: { ...page.spec, can_run: false },
      status: { ...IDLE, state: 'done' },
      error: null,
      selection: page.selection ?? null,
      brushed: page.brushed ?? [],
      version: page.v,
      saved: [],
    }),
    send() {},
    select() {},
    brush() {},
    listen(events) {
      for (const map of page.maps) events.message({ v: page.v, gen: 0, ...map, type: 'map' }, [])
      for (const layer of page.attention ?? []) events.message({ v: page.v, ...layer, type: 'attention' }, [])
      return () => {}
    },
  }
}
