// Where a circuit's nodes and edges stand: positions are columns, layers go downwards.

import { called, type Edge, type End, keyOf, receivers } from './circuit_data'

export interface NodeBox {
  key: string
  end: End
  pos: number
  label: string
  x: number
  y: number
  w: number
  h: number
}

/** Positions next to each other: one with nodes, or a run without any. */
export interface Column {
  first: number
  last: number
  folded: boolean
  x: number
  width: number
}

export interface Band {
  /** Layers from to; −1 and `layers` stand for tokens and answer. */
  first: number
  last: number
  top: number
  height: number
}

export interface Curve {
  edge: Edge
  d: string
  middle: [number, number]
  /** Further places an edge reaches: a key or value concerns all later positions. */
  beside: boolean
}

export interface Drawing {
  nodes: NodeBox[]
  columns: Column[]
  bands: Band[]
  curves: Curve[]
  width: number
  height: number
}

export interface Room {
  width: number
  gutter: number
  layers: number
  positions: number | null
  narrow: boolean
}

const BOX = { mlp: [46, 22], head: [30, 30], embed: [50, 24], logits: [118, 28] } as const
const HEAD_STEP = 44
const TOP = 66
const ROW = { heads: 46, mlp: 44, empty: 15 }

const place = (end: End, pos: number): string => `${keyOf(end)}@${pos}`

/** The positions at which each node stands, by its key: where it writes, else where it reads. */
export function standing(edges: readonly Edge[], last: number): Map<string, { end: End; at: Set<number> }> {
  const found = new Map<string, { end: End; at: Set<number> }>()
  const stand = (end: End, pos: number) => {
    const known = found.get(keyOf(end)) ?? { end, at: new Set<number>() }
    known.at.add(pos)
    found.set(keyOf(end), known)
  }
  for (const e of edges) stand(e.from, e.pos)
  const later = (e: Edge): boolean => e.input === 'k' || e.input === 'v'
  for (const e of edges)
    if (e.to.kind === 'logits') stand(e.to, e.pos < 0 ? -1 : last)
    else if (!later(e)) stand(e.to, e.pos)
  for (const e of edges) {
    const writes = (end: End): boolean => [...(found.get(keyOf(end))?.at ?? [])].some((p) => p >= e.pos)
    if (later(e) && !receivers(e).some(writes)) stand(e.to, e.pos)
  }
  return found
}

/** The places an edge leads to, the one that writes most first. */
function targets(
  edge: Edge,
  nodes: ReadonlyMap<string, NodeBox>,
  strength: ReadonlyMap<string, number>,
): NodeBox[] {
  const later = edge.input === 'k' || edge.input === 'v'
  const found: NodeBox[] = []
  for (const end of receivers(edge))
    for (const node of nodes.values())
      if (keyOf(node.end) === keyOf(end))
        if (end.kind === 'logits' || (later ? node.pos >= edge.pos : node.pos === edge.pos)) found.push(node)
  return found.sort((a, b) => (strength.get(b.key) ?? 0) - (strength.get(a.key) ?? 0))
}

/** Columns from left to right; positions without a node fold up. */
export function columnsOf(used: ReadonlySet<number>, room: Room, need: (pos: number) => number): Column[] {
  if (room.positions === null)
    return [
      {
        first: -1,
        last: -1,
        folded: false,
        x: room.gutter,
        width: Math.max(room.width - room.gutter, need(-1)),
      },
    ]
  const columns: Column[] = []
  for (let pos = 0; pos < room.positions; pos++) {
    const folded = !used.has(pos)
    const before = columns.at(-1)
    if (folded && before?.folded) before.last = pos
    else columns.push({ first: pos, last: pos, folded, x: 0, width: folded ? 0 : need(pos) })
  }
  const folds = columns.filter((c) => c.folded)
  const taken = columns.reduce((sum, c) => sum + c.width, 0)
  const left = room.width - room.gutter - taken
  const least = room.narrow ? 34 : 56
  for (const c of folds) {
    const most = Math.min(150, 46 * (c.last - c.first + 1) + 30)
    c.width = Math.max(least, Math.min(most, left / (folds.length + 0.5)))
  }
  const spare = Math.max(0, left - folds.reduce((sum, c) => sum + c.width, 0))
  const open = columns.length - folds.length
  let x = room.gutter
  for (const c of columns) {
    if (!c.folded) c.width += Math.min(spare / open, 150)
    c.x = x
    x += c.width
  }
  return columns
}

/** How far from the column's middle each of its heads in one layer stands: right, left, further right, … */
export const aside = (i: number, step = HEAD_STEP): number =>
  (i % 2 ? -1 : 1) * (Math.floor(i / 2) + 1) * step

export function layOut(edges: readonly Edge[], room: Room): Drawing {
  const last = (room.positions ?? 0) - 1
  const stands = [...standing(edges, last).values()]
  const heads = new Map<string, End[]>()
  for (const { end, at } of stands)
    if (end.kind === 'head')
      for (const pos of at)
        heads.set(`${end.layer}@${pos}`, [...(heads.get(`${end.layer}@${pos}`) ?? []), end])
  for (const list of heads.values()) list.sort((a, b) => a.head - b.head)
  const used = new Set(stands.flatMap(({ at }) => [...at]))
  if (last >= 0) used.add(last)
  const need = (pos: number): number => {
    let most = 0
    for (const [key, list] of heads) if (key.endsWith(`@${pos}`)) most = Math.max(most, list.length)
    const span = 2 * (Math.ceil(most / 2) * HEAD_STEP + (most ? 20 : 0))
    return Math.max(pos === last ? 126 : 76, span)
  }
  const columns = columnsOf(used, room, need)
  const columnOf = (pos: number): Column =>
    columns.find((c) => pos >= c.first && pos <= c.last) ?? (columns[0] as Column)
  const { bands, y, height } = rowsOf(stands, room)
  const nodes = new Map<string, NodeBox>()
  for (const { end, at } of stands)
    for (const pos of at) {
      const column = columnOf(pos)
      const mates = heads.get(`${end.layer}@${pos}`) ?? []
      const [w, h] = BOX[end.kind]
      const step = Math.min(HEAD_STEP * 1.6, Math.max(HEAD_STEP, column.width / (mates.length + 2)))
      const by =
        end.kind === 'head' ? aside(mates.indexOf(end), room.positions === null ? step : HEAD_STEP) : 0
      const key = place(end, pos)
      nodes.set(key, {
        key,
        end,
        pos,
        label: called(end, pos),
        x: column.x + column.width / 2 + by,
        y: y(end),
        w,
        h,
      })
    }
  const width = Math.max(room.width, ...columns.map((c) => c.x + c.width))
  return { nodes: [...nodes.values()], columns, bands, curves: curves(edges, nodes), width, height }
}

/** Rows from the tokens down to the answer; layers without a node are low, and those next to each other one band. */
function rowsOf(stands: readonly { end: End }[], room: Room) {
  const has = (layer: number, kind: End['kind']) =>
    stands.some(({ end }) => end.layer === layer && end.kind === kind)
  const bands: Band[] = [{ first: -1, last: -1, top: 24, height: TOP - 4 }]
  let top = 24 + TOP - 4
  for (let layer = 0; layer < room.layers; layer++) {
    const height = (has(layer, 'head') ? ROW.heads : 0) + (has(layer, 'mlp') ? ROW.mlp : 0)
    const before = bands.at(-1) as Band
    const empty = (b: Band) => b.first >= 0 && b.height === ROW.empty + 6
    if (!height && empty(before)) before.last = layer
    else {
      bands.push({ first: layer, last: layer, top, height: height ? height + 14 : ROW.empty + 6 })
      top += height ? height + 14 : ROW.empty + 6
    }
  }
  bands.push({ first: room.layers, last: room.layers, top, height: 58 })
  const y = (end: End): number => {
    if (end.kind === 'embed') return TOP
    const layer = end.kind === 'logits' ? room.layers : end.layer
    const band = bands.find((b) => layer >= b.first && layer <= b.last) as Band
    if (end.kind === 'logits') return band.top + 28
    if (end.kind === 'head') return band.top + 7 + ROW.heads / 2
    return band.top + 7 + (has(end.layer, 'head') ? ROW.heads : 0) + ROW.mlp / 2
  }
  return { bands, y, height: top + 60 }
}

function curves(edges: readonly Edge[], nodes: ReadonlyMap<string, NodeBox>): Curve[] {
  const strength = new Map<string, number>()
  for (const e of edges) {
    const key = place(e.from, e.pos)
    strength.set(key, Math.max(strength.get(key) ?? 0, Math.abs(e.score)))
  }
  const all: Curve[] = []
  for (const edge of edges) {
    const from = nodes.get(place(edge.from, edge.pos))
    if (!from) continue
    targets(edge, nodes, strength).forEach((to, i) => {
      const { d, middle } = curve(from, to, edge, nodes)
      all.push({ edge, d, middle, beside: i > 0 })
    })
  }
  return all
}

type Point = [number, number]

const at = (p: readonly Point[], t: number): Point => {
  const [a, b, c, d] = p as [Point, Point, Point, Point]
  const mix = (i: 0 | 1): number =>
    (1 - t) ** 3 * a[i] + 3 * (1 - t) ** 2 * t * b[i] + 3 * (1 - t) * t * t * c[i] + t ** 3 * d[i]
  return [mix(0), mix(1)]
}

/** Queries, keys and values of one head end beside each other. */
const ENDS = { q: -6, k: 0, v: 6, '': 0 } as const

function curve(from: NodeBox, to: NodeBox, edge: Edge, nodes: ReadonlyMap<string, NodeBox>) {
  const p = points(from, to, edge, nodes)
  const text = p.map(([x, y]) => `${round(x)} ${round(y)}`)
  return { d: `M${text[0]}C${text.slice(1).join(' ')}`, middle: at(p, 0.5) }
}

const round = (x: number): number => Math.round(10 * x) / 10

function points(from: NodeBox, to: NodeBox, edge: Edge, nodes: ReadonlyMap<string, NodeBox>): Point[] {
  const half = to.w / 2 - 12
  const into = to.end.kind === 'logits' ? Math.min(to.x + half, Math.max(to.x - half, from.x)) : to.x
  const dx = into - from.x
  const bottom: Point = [from.x, from.y + from.h / 2]
  const top: Point = [into, to.y - to.h / 2]
  if (Math.abs(dx) < 2) {
    const between = [...nodes.values()].some(
      (n) => Math.abs(n.x - from.x) < n.w / 2 && n.y > from.y && n.y < to.y && n !== to,
    )
    if (!between) return [bottom, bottom, top, top]
    // Past what stands between: what adds bows right, what takes away left.
    const side = edge.score < 0 ? -1 : 1
    const start: Point = [from.x + side * (from.w / 2 - 4), from.y + from.h / 2 - 4]
    const end: Point =
      to.end.kind === 'logits'
        ? [Math.min(to.x + half, Math.max(to.x - half, into + side * 12)), to.y - to.h / 2]
        : [into + side * (to.w / 2 - 4), to.y - to.h / 2 + 4]
    const out = 26 + 0.13 * (to.y - from.y)
    return [start, [start[0] + side * out, start[1] + 14], [end[0] + side * out, end[1] - 14], end]
  }
  if (Math.abs(dx) > 110 && to.end.kind === 'head') {
    const side = Math.sign(dx)
    const start: Point = [from.x + (side * from.w) / 2, from.y]
    const steep = to.y - from.y > 0.9 * Math.abs(dx)
    const end: Point = steep
      ? [to.x + ENDS[edge.input], to.y - to.h / 2]
      : [to.x - side * (to.w / 2), to.y + ENDS[edge.input]]
    const reach = 0.5 * Math.abs(end[0] - start[0])
    const last: Point = steep
      ? [end[0], end[1] - 0.45 * (end[1] - start[1])]
      : [end[0] - side * reach, end[1]]
    return [start, [start[0] + side * reach, start[1]], last, end]
  }
  const rise = 0.5 * Math.max(16, top[1] - bottom[1])
  if (to.end.kind === 'head') top[0] += ENDS[edge.input]
  return [bottom, [bottom[0], bottom[1] + rise], [top[0], top[1] - rise], top]
}
