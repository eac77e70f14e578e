// The sentence over the map: always true to the controls.

import { plural, readNumber } from './format'
import { type Choice, OTHER, type Pair, type Spec } from './wire'

/** One run of text of the sentence; `link` names the control it opens. */
export type Part =
  | { kind: 'text'; text: string }
  | { kind: 'bold'; text: string }
  | { kind: 'link'; text: string; link: 'component' | 'corruption' }
  | { kind: 'token'; text: string; side: Side; tokens: readonly string[] }

export type Side = 'answer' | 'wrong'

export interface View {
  component: string
  over: readonly string[]
  direction: Choice
  metric: string
  corruption?: string
}

const RESIDUAL = 'positions of the residual stream'

const SUBJECT: Record<string, string> = {
  embed: 'token embeddings',
  resid_pre: RESIDUAL,
  resid_mid: `${RESIDUAL} after attention`,
  resid_post: `${RESIDUAL} after the MLP`,
  attn_out: 'attention outputs',
  mlp_out: 'MLP outputs',
  z: 'attention heads',
  head_out: 'attention heads',
  q: 'heads’ queries',
  k: 'heads’ keys',
  v: 'heads’ values',
  pattern: 'attention patterns',
  scores: 'attention scores',
  mlp_post: 'neurons',
}

const THING: Record<string, string> = {
  embed: 'embedding',
  attn_out: 'output',
  mlp_out: 'output',
  z: 'output',
  head_out: 'output',
  q: 'query',
  k: 'key',
  v: 'value',
  pattern: 'pattern',
  scores: 'scores',
  mlp_post: 'activation',
}

/** What the clean prompt gets under an ablation. */
const ABLATED: Record<string, (thing: string) => string> = {
  zero: () => 'zero in their place',
  mean: (thing) => `their mean ${thing}`,
  resample: (thing) => `their ${thing} from another pair`,
}

/** {S} of the sentence. */
export function subject(view: View, grouped: boolean): string {
  const { component, over } = view
  let name = SUBJECT[component] ?? component
  if (grouped && (component === 'k' || component === 'v')) name = `key–value ${name}`
  if (/^resid/.test(component) && !over.includes('pos')) name = name.replace('positions', 'layers')
  if (/^(z|head_out|q|k|v)$/.test(component) && over.includes('pos')) name += ', at which positions,'
  return name
}

const text = (t: string): Part => ({ kind: 'text', text: t })
const bold = (t: string): Part => ({ kind: 'bold', text: t })

/** What is to be restored or kept, in the words of the metric. */
export function object(view: View, pair: Pair, label: string): Part[] {
  const answer = tokens(pair.answer, 'answer')
  const wrong = tokens(pair.wrong, 'wrong')
  switch (view.metric) {
    case 'logit_diff':
      return wrong.length ? [...answer, text(' over '), ...wrong] : answer
    case 'prob':
      return [text('the probability of '), ...answer]
    case 'log_prob':
      return [text('the log probability of '), ...answer]
    case 'rank':
      return [text('the rank of '), ...answer]
    case 'kl':
      return [text('the clean prediction')]
    case 'accuracy':
      return [...answer, text(' as the prediction')]
    default:
      return [text(label || view.metric)]
  }
}

const tokens = (list: readonly string[], side: Side): Part[] =>
  list.length ? [{ kind: 'token', text: list.join(' or '), side, tokens: list }] : []

export function sentence(view: View, pair: Pair, spec: Pick<Spec, 'metrics' | 'model'>): Part[] {
  const grouped = spec.model.n_kv_heads < spec.model.n_heads
  const label = spec.metrics.find((m) => m.name === view.metric)?.label ?? ''
  const S: Part = { kind: 'link', text: subject(view, grouped), link: 'component' }
  const what = object(view, pair, label)
  const restore = bold('sufficient to restore')
  const keep = bold('necessary to keep')
  if (view.direction === 'both')
    return [
      text('Which '),
      S,
      text(' are '),
      restore,
      text(', and which are '),
      keep,
      text(', '),
      ...what,
      text('?'),
    ]
  const denoise = view.direction === 'denoising'
  const thing = THING[view.component] ?? 'value'
  const given =
    ABLATED[view.corruption ?? OTHER]?.(thing) ?? `their ${denoise ? 'clean' : 'corrupted'} ${thing}`
  return [
    text('Which '),
    S,
    text(' are '),
    denoise ? restore : keep,
    text(' '),
    ...what,
    text(` when the ${denoise ? 'corrupted' : 'clean'} prompt gets `),
    { kind: 'link', text: given, link: 'corruption' },
    text('?'),
  ]
}

export const sentenceText = (parts: readonly Part[]): string => parts.map((p) => p.text).join('')

const capital = (t: string): string => t.charAt(0).toUpperCase() + t.slice(1)

/** Where the values of an ablation come from, in Python's words where it has run. */
const ablation = (view: View, spec: Pick<Spec, 'corruptions'>): string =>
  (view.corruption ?? OTHER) === OTHER
    ? ''
    : spec.corruptions?.find((c) => c.name === view.corruption)?.words || 'Base: clean.'

/** The line under the sentence: the metric on both runs, the gap, which run is changed and by what. */
export function facts(view: View, pair: Pair, spec: Pick<Spec, 'metrics' | 'corruptions'>): string {
  const measured = pair.metrics[view.metric]
  const metric = spec.metrics.find((m) => m.name === view.metric)
  const runs =
    view.direction === 'both'
      ? 'Denoising changes the corrupted run, noising the clean run.'
      : view.direction === 'denoising'
        ? 'Base: corrupted. Source: clean.'
        : ablation(view, spec) || 'Base: clean. Source: corrupted.'
  if (!measured) return runs
  const gap = measured.clean - measured.corrupted
  const unit = plural(metric?.unit ?? '', gap)
  const name = capital(metric?.label || view.metric)
  const size = readNumber(gap).replace(/^\+/, '')
  return `${name}: clean ${readNumber(measured.clean)}, corrupted ${readNumber(measured.corrupted)}, so the gap is ${size}${unit && ` ${unit}`}. ${runs}`
}
