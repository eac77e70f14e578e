// A scored circuit as the page has it: its strongest edges, and which of them lead to the answer.

import type { Answer } from './asking'
import { visible } from './format'
import { bytesOf, type Pair } from './wire'

export type Sign = 'all' | 'positive' | 'negative'

export interface End {
  kind: 'embed' | 'head' | 'mlp' | 'logits'
  layer: number
  head: number
}

export interface Edge {
  /** As Python writes it: "m2->a4.2.v @ 8". */
  name: string
  from: End
  /** Of a key or value that heads share, the first of them; `shared` says how many there are. */
  to: End
  shared: number
  input: '' | 'q' | 'k' | 'v'
  /** −1: the edge stands for all positions. */
  pos: number
  score: number
}

/** What Python says of the edges: see `described` in nbpatch/live/circuits.py. */
export interface Scored {
  layers: number
  heads: number
  kv_heads: number
  positions: number | null
  tokens: string[]
  total: number
  sent: number
  start: number
  sizes: number[]
  thresholds: number[]
  unit: string
  metric: string
  method: string
  points: number | null
  scored_on: number
  same: number
  others: number
  runs: boolean
  /** The strongest first. */
  edges: Edge[]
}

/** What Python says of the kept edges: see `measured` in nbpatch/live/circuits.py. */
export interface Faithful {
  n: number
  on: 'same' | 'others'
  edges: number
  negative: number
  threshold: number | null
  faithful?: number | null
  value?: number | null
  clean?: number
  empty?: number
  pairs?: number
  random?: { count: number; mean: number | null; low: number | null; high: number | null } | null
  curve?: [number, number][]
  done: boolean
}

function endOf(name: string, group: number): { end: End; shared: number } {
  const head = /^a(\d+)\.(kv)?(\d+)/.exec(name)
  if (head) {
    const shared = head[2] ? group : 1
    return { end: { kind: 'head', layer: Number(head[1]), head: Number(head[3]) * shared }, shared }
  }
  const mlp = /^m(\d+)$/.exec(name)
  const layer = mlp ? Number(mlp[1]) : -1
  return { end: { kind: mlp ? 'mlp' : name === 'logits' ? 'logits' : 'embed', layer, head: -1 }, shared: 1 }
}

export function decode(answer: Answer | undefined): Scored | null {
  const places = answer && bytesOf(answer.content, answer.buffers, 0)
  const strengths = answer && bytesOf(answer.content, answer.buffers, 1)
  if (!places || !strengths) return null
  const head = answer.content as unknown as Omit<Scored, 'edges'> & { senders: string[]; inputs: string[] }
  const at = new Int32Array(places.slice().buffer)
  const scores = new Float32Array(strengths.slice().buffer)
  const n = scores.length
  const group = Math.max(1, head.heads / head.kv_heads)
  const edges = Array.from(scores, (score, i): Edge => {
    const sender = head.senders[at[i] as number] as string
    const input = head.inputs[at[n + i] as number] as string
    const pos = at[2 * n + i] as number
    const { end, shared } = endOf(input, group)
    const letter = /\.([qkv])$/.exec(input)?.[1] ?? ''
    return {
      name: `${sender}->${input}${pos < 0 ? '' : ` @ ${pos}`}`,
      from: endOf(sender, 1).end,
      to: end,
      shared,
      input: letter as Edge['input'],
      pos,
      score,
    }
  })
  return { ...head, edges }
}

export const keyOf = (end: End): string => `${end.kind}${end.layer}.${end.head}`

/** The heads whose outputs an edge concerns; itself for anything else. */
export const receivers = (edge: Edge): End[] =>
  Array.from({ length: edge.shared }, (_, i) => ({
    ...edge.to,
    head: edge.to.head + (edge.shared > 1 ? i : 0),
  }))

/** Edges from which a path of these edges leads to the logits: `Circuit.prune` of nbpatch/graph.py. */
export function pruned(edges: readonly Edge[]): Edge[] {
  const out = new Map<string, Edge[]>()
  for (const edge of edges) {
    const key = keyOf(edge.from)
    const known = out.get(key)
    if (known) known.push(edge)
    else out.set(key, [edge])
  }
  const known = new Map<string, boolean>()
  /** Whether what an edge brings reaches the logits: keys and values concern all later positions too. */
  const leads = (edge: Edge): boolean => {
    if (edge.to.kind === 'logits') return true
    const key = `${keyOf(edge.to)}${edge.shared}${edge.input === 'k' || edge.input === 'v'}@${edge.pos}`
    const found = known.get(key)
    if (found !== undefined) return found
    const later = edge.input === 'k' || edge.input === 'v'
    const next = receivers(edge).flatMap((end) => out.get(keyOf(end)) ?? [])
    const answer = next.some((e) => (later ? e.pos >= edge.pos : e.pos === edge.pos) && leads(e))
    known.set(key, answer)
    return answer
  }
  return edges.filter(leads)
}

/** The n strongest edges that lead to the answer. Where not all n are here nobody can tell, and all stay. */
export function keptOf(data: Scored, n: number): Edge[] {
  const strongest = data.edges.slice(0, n)
  return n > data.sent ? strongest : pruned(strongest)
}

export const ofSign = (edges: readonly Edge[], sign: Sign): Edge[] =>
  edges.filter((e) => sign === 'all' || (sign === 'positive' ? e.score >= 0 : e.score < 0))

/** The least |score| of the n strongest edges; null where only Python knows it. */
export function thresholdOf(data: Scored, n: number): number | null {
  if (n < 1) return null
  if (n <= data.sent) return Math.abs(data.edges[n - 1]?.score ?? Number.NaN)
  const at = data.sizes.indexOf(n)
  return at < 0 ? null : (data.thresholds[at] as number)
}

/** The numbers of edges, from all those sent on, whose thresholds are known. */
const beyond = (data: Scored): number[] => [data.sent, ...data.sizes.filter((size) => size > data.sent)]

/** A number of edges that the slider can stand for: beyond those sent, one whose threshold is known. */
export function nearest(data: Scored, n: number): number {
  const whole = Math.min(data.total, Math.max(1, Math.round(n)))
  if (whole <= data.sent) return whole
  return beyond(data).reduce(
    (best, size) => (Math.abs(size - whole) < Math.abs(best - whole) ? size : best),
    data.total,
  )
}

/** Where on the slider's logarithmic axis a number of edges stands, 0 to 1; and back. */
export const placeOf = (n: number, total: number): number =>
  total > 1 ? Math.log(Math.max(1, n)) / Math.log(total) : 1
export const countAt = (place: number, total: number): number => total ** place

/** The number of edges a key of the slider leads to; null for a key that is not the slider's. */
export function stepped(key: string, n: number, data: Scored): number | null {
  const by = Math.max(1, Math.round(n * 0.04))
  const far = Math.max(5, Math.round(n * 0.4))
  const to: Record<string, number> = {
    ArrowRight: n + by,
    ArrowUp: n + by,
    ArrowLeft: n - by,
    ArrowDown: n - by,
    PageUp: n + far,
    PageDown: n - far,
    Home: 1,
    End: data.total,
  }
  const next = to[key]
  if (next === undefined) return null
  const found = nearest(data, next)
  if (found !== n || next < 1 || next > data.total) return found
  // Beyond the edges sent, the next number that is known may lie further away than a step.
  const known = beyond(data)
  return known[known.indexOf(n) + Math.sign(next - n)] ?? found
}

/** What an end is called: "mlp 2", "4.2", "token 8". */
export function called(end: End, pos = -1): string {
  if (end.kind === 'embed') return pos < 0 ? 'tokens' : `token ${pos}`
  if (end.kind === 'mlp') return `mlp ${end.layer}`
  return end.kind === 'head' ? `${end.layer}.${end.head}` : 'answer'
}

export const receiverOf = (edge: Edge): string =>
  edge.shared > 1 ? `${edge.to.layer}.kv${edge.to.head / edge.shared}` : called(edge.to)

/** Sender and receiver as nbpatch's path patching names them: "z[2.1]", "q[3.0]", "mlp[2]". */
export function pathOf(edge: Edge): { sender: string; receiver: string } {
  const { from, to, input, shared } = edge
  const sender =
    from.kind === 'head'
      ? `z[${from.layer}.${from.head}]`
      : from.kind === 'mlp'
        ? `mlp_out[${from.layer}]`
        : 'embed'
  const receiver =
    to.kind === 'head'
      ? `${input}[${to.layer}.${to.head / shared}]`
      : to.kind === 'mlp'
        ? `mlp[${to.layer}]`
        : 'logits'
  return { sender, receiver }
}

/** "·she − ·he": what is predicted, and over what. */
export const answerText = (pair: Pair): string => {
  const [a, w] = [pair.answer[0], pair.wrong[0]]
  return a === undefined ? 'answer' : w === undefined ? visible(a) : `${visible(a)} − ${visible(w)}`
}

const NUMBER = /\B(?=(\d{3})+$)/g
/** "11 824". */
export const grouped = (n: number): string => String(n).replace(NUMBER, ' ')
