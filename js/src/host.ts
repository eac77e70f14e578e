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
}

export interface Host {
  /** Whether there is a kernel that can run what is missing. */
  readonly live: boolean
  read(): {
    spec: Spec
    status: Status
    error: Trouble | null
    selection: Cell | null
    brushed: Cell[]
    version: number
  }
  send(content: Dict): void
  select(cell: Cell | null): void
  brush(cells: Cell[]): void
  /** Calls back on every change; returns what takes the listeners off again. */
  listen(events: Events): () => void
}

const IDLE: Status = { state: 'idle', text: '', done: 0, total: 0, gen: 0 }

export function liveHost(model: Model): Host {
  let count = 0
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
    }),
    send: (content) => model.send({ v: VERSION, id: ++count, ...content }),
    select(next) {
      model.set('selection', next)
      model.save_changes()
    },
    brush(cells) {
      model.set('brushed', cells)
      model.save_changes()
    },
    listen(events) {
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
      ]
      for (const [event, handler] of on) model.on(event, handler)
      return () => {
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
