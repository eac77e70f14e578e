import { describe, expect, it } from 'vitest'
import { facts, sentence, sentenceText, subject } from '../src/sentence'
import type { Choice } from '../src/wire'
import { pair, spec } from './fixture'

const say = (
  component: string,
  direction: Choice,
  metric = 'logit_diff',
  over = ['layer', 'pos'],
  kv = 2,
): string =>
  sentenceText(
    sentence(
      { component, over, direction, metric },
      pair(),
      spec({ model: { ...spec().model, n_kv_heads: kv } }),
    ),
  )

// component: [what, what it gets]
const WORDS: Record<string, [string, string]> = {
  embed: ['token embeddings', 'embedding'],
  resid_pre: ['positions of the residual stream', 'value'],
  resid_mid: ['positions of the residual stream after attention', 'value'],
  resid_post: ['positions of the residual stream after the MLP', 'value'],
  attn_out: ['attention outputs', 'output'],
  mlp_out: ['MLP outputs', 'output'],
  z: ['attention heads', 'output'],
  q: ['heads’ queries', 'query'],
  k: ['heads’ keys', 'key'],
  v: ['heads’ values', 'value'],
  pattern: ['attention patterns', 'pattern'],
  scores: ['attention scores', 'scores'],
  mlp_post: ['neurons', 'activation'],
  head_out: ['attention heads', 'output'],
}

describe.each(Object.entries(WORDS))('%s', (component, [what, gets]) => {
  const over = /^(z|q|k|v|pattern|scores|head_out)$/.test(component) ? ['layer', 'head'] : ['layer', 'pos']

  it('denoising asks what is sufficient', () => {
    expect(say(component, 'denoising', 'logit_diff', over)).toBe(
      `Which ${what} are sufficient to restore  Mary over  Anna when the corrupted prompt gets their clean ${gets}?`,
    )
  })

  it('noising asks what is necessary', () => {
    expect(say(component, 'noising', 'logit_diff', over)).toBe(
      `Which ${what} are necessary to keep  Mary over  Anna when the clean prompt gets their corrupted ${gets}?`,
    )
  })

  it('both asks for both', () => {
    expect(say(component, 'both', 'logit_diff', over)).toBe(
      `Which ${what} are sufficient to restore, and which are necessary to keep,  Mary over  Anna?`,
    )
  })
})

it('names positions of heads and shared keys', () => {
  const view = { over: ['layer', 'head', 'pos'], direction: 'both' as const, metric: 'prob' }
  expect(subject({ ...view, component: 'z' }, false)).toBe('attention heads, at which positions,')
  expect(subject({ ...view, component: 'k', over: ['layer', 'head'] }, true)).toBe('key–value heads’ keys')
  expect(subject({ ...view, component: 'q', over: ['layer', 'head'] }, true)).toBe('heads’ queries')
  expect(subject({ ...view, component: 'resid_pre', over: ['layer'] }, false)).toBe(
    'layers of the residual stream',
  )
})

it.each([
  ['prob', 'the probability of  Mary'],
  ['log_prob', 'the log probability of  Mary'],
  ['rank', 'the rank of  Mary'],
  ['kl', 'the clean prediction'],
  ['my_metric', 'my_metric'],
])('metric %s is named in its own words', (metric, words) => {
  expect(say('resid_pre', 'denoising', metric)).toContain(`sufficient to restore ${words} when`)
})

it('marks what is bold and what opens a control', () => {
  const parts = sentence(
    { component: 'z', over: ['layer', 'head'], direction: 'denoising', metric: 'logit_diff' },
    pair(),
    spec(),
  )
  expect(parts.filter((p) => p.kind === 'bold').map((p) => p.text)).toEqual(['sufficient to restore'])
  expect(parts.flatMap((p) => (p.kind === 'link' ? [p.link] : []))).toEqual(['component', 'corruption'])
  expect(parts.flatMap((p) => (p.kind === 'token' ? [p.side] : []))).toEqual(['answer', 'wrong'])
})

it('states gap, base and source', () => {
  const view = {
    component: 'z',
    over: ['layer', 'head'],
    direction: 'denoising' as Choice,
    metric: 'logit_diff',
  }
  expect(facts(view, pair(), spec())).toBe(
    'Logit difference: clean +4.80, corrupted −3.30, so the gap is 8.10 logits. Base: corrupted. Source: clean.',
  )
  expect(facts({ ...view, direction: 'noising' }, pair(), spec())).toMatch(
    /Base: clean\. Source: corrupted\.$/,
  )
  expect(facts({ ...view, metric: 'prob' }, pair(), spec())).toBe('Base: corrupted. Source: clean.')
})

it.each([
  ['zero', 'when the clean prompt gets zero in their place?'],
  ['mean', 'when the clean prompt gets their mean output?'],
  ['resample', 'when the clean prompt gets their output from another pair?'],
])('an ablation by %s says what the clean prompt gets', (corruption, words) => {
  const view = { component: 'z', over: ['layer', 'head'], metric: 'logit_diff', corruption }
  const said = sentenceText(sentence({ ...view, direction: 'noising' }, pair(), spec()))
  expect(said).toContain('necessary to keep')
  expect(said.endsWith(words)).toBe(true)
  const corruptions = [{ name: corruption, label: '', off: '', words: 'Values came from 3 prompts.' }]
  expect(facts({ ...view, direction: 'noising' }, pair(), spec({ corruptions }))).toMatch(
    /logits\. Values came from 3 prompts\.$/,
  )
})
