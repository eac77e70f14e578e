// Ends of paths in words: what `path_patch` names, how the tab says it, and the sentence over its map.

import { object, type Part } from './sentence'
import type { Direction, HeatMap, Pair, Spec } from './wire'

export type Variant = 'direct' | 'wang' | 'tree'
export type Axis = 'sender' | 'receiver'

/** What the tab is opened on, in path_patch's grammar; a receiver may be a chain of hops. */
export interface Ends {
  sender?: string
  receiver?: string
}

export interface End {
  kind: string
  layer: number
  head: number
}

export const VARIANTS: [Variant, string, string][] = [
  [
    'direct',
    'Direct',
    'The residual connection only: everything between sender and receiver stays as in the base run.',
  ],
  [
    'wang',
    'Wang et al.',
    'Wang et al. 2022: MLPs between sender and receiver are recomputed, all other heads stay as in the base run.',
  ],
  [
    'tree',
    'Tree',
    'Goldowsky-Dill et al. 2023: this path to the logits only. Everything else, behind the receiver too, stays as in the base run.',
  ],
]

export const isVariant = (text: string): text is Variant => /^(direct|wang|tree)$/.test(text)

/** Reads one end: "q[2.1]", "mlp[0]", "logits"; null for anything else. */
export function endOf(name: string): End | null {
  const match = /^\s*(z|mlp_out|embed|q|k|v|mlp|logits)\s*(?:\[\s*(\d+)\s*(?:\.\s*(\d+)\s*)?\])?\s*$/.exec(
    name,
  )
  return match
    ? { kind: match[1] as string, layer: Number(match[2] ?? -1), head: Number(match[3] ?? -1) }
    : null
}

export const hopsOf = (receiver: string): string[] => receiver.split('->').map((hop) => hop.trim())

const INPUTS: Record<string, string> = { q: 'queries', k: 'keys', v: 'values' }

/** "head 2.1’s queries", "MLP 0", "the logits". Key–value heads shared by query heads are named as such. */
export function say(name: string, grouped: boolean): string {
  const end = endOf(name)
  if (!end) return name.trim().split(/\s+/).length > 1 ? name.trim().split(/\s+/).join(', ') : name
  const { kind, layer, head } = end
  if (kind === 'z') return `head ${layer}.${head}`
  if (kind === 'mlp_out' || kind === 'mlp') return `MLP ${layer}`
  if (kind === 'embed') return 'the embeddings'
  if (kind === 'logits') return 'the logits'
  return `${grouped && kind !== 'q' ? 'key–value ' : ''}head ${layer}.${head}’s ${INPUTS[kind]}`
}

/** As in a table: "2.1", "2.1 q", "mlp 0", "embeddings". */
export function brief(name: string): string {
  const end = endOf(name)
  if (!end) return name
  const { kind, layer, head } = end
  if (kind === 'z') return `${layer}.${head}`
  if (kind === 'mlp_out' || kind === 'mlp') return `mlp ${layer}`
  return kind === 'embed' ? 'embeddings' : kind === 'logits' ? 'logits' : `${layer}.${head} ${INPUTS[kind]}`
}

/** All senders or receivers of a model, in path_patch's grammar, layer by layer. */
export function names(
  axis: Axis,
  model: Spec['model'],
): { first: string[]; layers: string[][]; last: string[] } {
  const heads = (kind: string, layer: number, n: number) =>
    Array.from({ length: n }, (_, h) => `${kind}[${layer}.${h}]`)
  const { n_layers, n_heads, n_kv_heads } = model
  const layers = Array.from({ length: n_layers }, (_, l) =>
    axis === 'sender'
      ? [...heads('z', l, n_heads), `mlp_out[${l}]`]
      : [...heads('q', l, n_heads), ...heads('k', l, n_kv_heads), ...heads('v', l, n_kv_heads), `mlp[${l}]`],
  )
  return axis === 'sender' ? { first: ['embed'], layers, last: [] } : { first: [], layers, last: ['logits'] }
}

/** The query head whose attention an end is about; null where it has none. */
export function headAt(name: string, model: Spec['model']): { layer: number; head: number } | null {
  const end = endOf(name)
  if (!end || end.head < 0) return null
  const shared = /^[kv]$/.test(end.kind) ? Math.max(1, Math.round(model.n_heads / model.n_kv_heads)) : 1
  return { layer: end.layer, head: end.head * shared }
}

/** The receiver that makes a head or an MLP send something else: one of its inputs. */
export function inputOf(sender: string, kind: 'q' | 'k' | 'v', model: Spec['model']): string | null {
  const end = endOf(sender)
  if (end?.kind === 'mlp_out') return `mlp[${end.layer}]`
  if (end?.kind !== 'z') return null
  const shared = kind === 'q' ? 1 : Math.max(1, Math.round(model.n_heads / model.n_kv_heads))
  return `${kind}[${end.layer}.${Math.floor(end.head / shared)}]`
}

/** What sends when a receiver gets another input: its head, or its MLP. */
export function senderOf(receiver: string, model: Spec['model']): string | null {
  const end = endOf(receiver)
  if (end?.kind === 'mlp') return `mlp_out[${end.layer}]`
  const at = headAt(receiver, model)
  return at && `z[${at.layer}.${at.head}]`
}

const text = (t: string): Part => ({ kind: 'text', text: t })
const bold = (t: string): Part => ({ kind: 'bold', text: t })

export interface Told {
  axis: Axis
  /** The end that is held, or both ends of one path. */
  sender: string | null
  receiver: string | null
  variant: Variant
  direction: Direction
  metric: string
}

/** The sentence over the map: which parts, along which way, restore or take away what. */
export function pathSentence(told: Told, pair: Pair, spec: Pick<Spec, 'metrics' | 'model'>): Part[] {
  const { axis, sender, receiver, variant, direction, metric } = told
  const grouped = spec.model.n_kv_heads < spec.model.n_heads
  const label = spec.metrics.find((m) => m.name === metric)?.label ?? ''
  const what = object({ component: 'z', over: [], direction, metric }, pair, label)
  const verb = direction === 'denoising' ? 'restore' : 'take away'
  const run = bold(direction === 'denoising' ? 'clean' : 'corrupted')
  const many = sender === 'embed' || (sender ?? '').trim().includes(' ')
  const end = [text(' is '), run, text('?')]
  if (axis === 'receiver' && sender) {
    const way =
      variant === 'direct'
        ? ' sends them directly'
        : variant === 'wang'
          ? ' sends them, directly or through MLPs,'
          : ' sends directly to them, and they to the logits only,'
    return [
      text('Which receivers '),
      bold(verb),
      text(' '),
      ...what,
      text(' when what '),
      bold(say(sender, grouped)),
      text(many ? way.replace(' sends', ' send') : way),
      ...end,
    ]
  }
  const who = sender
    ? [text(many ? 'Do ' : 'Does '), bold(say(sender, grouped)), text(' ')]
    : [text('Which heads, MLPs or embeddings ')]
  const it = !sender || many ? 'they send' : 'it sends'
  return [
    ...who,
    bold(verb),
    text(' '),
    ...what,
    text(` when what ${it} `),
    ...way(receiver ?? 'logits', variant, grouped),
    ...end,
  ]
}

/** "directly to head 2.1’s queries, and from there only to the logits,". */
function way(receiver: string, variant: Variant, grouped: boolean): Part[] {
  const hops = hopsOf(receiver)
  const parts = [text(variant === 'wang' ? 'to ' : 'directly to '), bold(say(hops[0] as string, grouped))]
  if (variant === 'tree' && hops.at(-1) !== 'logits') hops.push('logits')
  if (variant === 'wang') parts.push(text(', directly or through MLPs,'))
  for (const hop of hops.slice(1))
    parts.push(
      text(
        variant === 'tree'
          ? ', from there only to '
          : variant === 'wang'
            ? ' from there to '
            : ', from there to ',
      ),
      bold(say(hop, grouped)),
      ...(variant === 'wang' ? [text(',')] : []),
    )
  if (variant !== 'wang' && hops.length > 1) parts.push(text(','))
  return parts
}

/** What stays as it was, in one sentence; it depends on the variant and on whether the path ends in the logits. */
export function frozen(told: Told): string {
  const base = told.direction === 'denoising' ? 'corrupted' : 'clean'
  if (told.variant === 'tree') return `Only this path changes: everything else stays as in the ${base} run.`
  const held =
    told.variant === 'direct'
      ? `Between the two everything stays as in the ${base} run`
      : `Between the two MLPs are recomputed and all other heads stay as in the ${base} run`
  const ends = told.axis === 'sender' && hopsOf(told.receiver ?? 'logits').at(-1) === 'logits'
  return `${held}${ends ? '' : '; what the receiver then puts out flows on to the answer'}.`
}

/** "Head 1.0 → head 2.1’s queries". */
export function edge(told: Told, cell: string, grouped: boolean): string {
  const [from, to] = told.axis === 'sender' ? [cell, told.receiver ?? 'logits'] : [told.sender ?? '', cell]
  const route = hopsOf(to).map((hop) => say(hop, grouped))
  const words = [say(from, grouped), ...route].join(' → ')
  return words.charAt(0).toUpperCase() + words.slice(1)
}

/** Names of a map's cells with a value, the strongest first. */
export function strongestOf(map: HeatMap, most: number): { name: string; effect: number }[] {
  const list = map.coords[map.dims[0] as string] ?? []
  return list
    .map((name, i) => ({ name: String(name), effect: map.effect[i] as number }))
    .filter(({ effect }) => Number.isFinite(effect))
    .sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect))
    .slice(0, most)
}
