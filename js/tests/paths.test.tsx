import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import bundle from '../src/index'
import { layOutPaths, nameAt, nameUnder, parts, placeOf } from '../src/paths_layout'
import {
  endOf,
  frozen,
  hopsOf,
  inputOf,
  names,
  pathSentence,
  say,
  senderOf,
  type Told,
} from '../src/paths_words'
import { sentenceText } from '../src/sentence'
import { type Dict, type HeatMap, State } from '../src/wire'
import { type Fake, fakeModel, floatBytes, heads, pair, spec, stateBytes } from './fixture'

const MODEL = { name: 'm', n_layers: 3, n_heads: 4, n_kv_heads: 2, device: 'cpu' }
const SPEC = spec({ model: MODEL })

const told = (more: Partial<Told> = {}): Told => ({
  axis: 'sender',
  sender: null,
  receiver: 'q[2.1]',
  variant: 'direct',
  direction: 'denoising',
  metric: 'logit_diff',
  ...more,
})
const asked = (more: Partial<Told>): string => sentenceText(pathSentence(told(more), pair(), SPEC))

describe('ends in words', () => {
  it('reads what path_patch names, and nothing else', () => {
    expect(endOf('z[0.12]')).toEqual({ kind: 'z', layer: 0, head: 12 })
    expect(endOf('mlp[3]')).toEqual({ kind: 'mlp', layer: 3, head: -1 })
    expect(endOf('embed')).toEqual({ kind: 'embed', layer: -1, head: -1 })
    for (const no of ['', 'resid_pre[1]', 'q[1.2] -> logits', 'z[0.1] z[0.2]']) expect(endOf(no)).toBeNull()
    expect(hopsOf('v[1.0] -> q[2.1] -> logits')).toEqual(['v[1.0]', 'q[2.1]', 'logits'])
  })

  it('names all parts of a model in the same grammar', () => {
    const senders = names('sender', MODEL)
    expect([...senders.first, ...senders.layers.flat(), ...senders.last]).toHaveLength(1 + 3 * 5)
    const receivers = names('receiver', MODEL).layers.flat()
    expect(receivers).toHaveLength(3 * (4 + 2 + 2 + 1))
    expect(receivers.every((name) => endOf(name))).toBe(true)
  })

  it('finds the key–value head of a query head and back', () => {
    expect(inputOf('z[1.3]', 'q', MODEL)).toBe('q[1.3]')
    expect(inputOf('z[1.3]', 'k', MODEL)).toBe('k[1.1]')
    expect(inputOf('mlp_out[2]', 'q', MODEL)).toBe('mlp[2]')
    expect(inputOf('embed', 'q', MODEL)).toBeNull()
    expect(senderOf('v[1.1]', MODEL)).toBe('z[1.2]')
    expect(senderOf('mlp[2]', MODEL)).toBe('mlp_out[2]')
    expect(senderOf('logits', MODEL)).toBeNull()
    expect(say('k[1.1]', true)).toBe('key–value head 1.1’s keys')
    expect(say('k[1.1]', false)).toBe('head 1.1’s keys')
  })
})

describe('the sentence', () => {
  it('is true to the variant, the direction and the ends', () => {
    const start = 'Which heads, MLPs or embeddings restore  Mary over  Anna when what they send '
    expect(asked({})).toBe(`${start}directly to head 2.1’s queries is clean?`)
    expect(asked({ variant: 'wang' })).toBe(
      `${start}to head 2.1’s queries, directly or through MLPs, is clean?`,
    )
    expect(asked({ variant: 'tree', receiver: 'v[1.0] -> q[2.1]' })).toBe(
      `${start}directly to key–value head 1.0’s values, from there only to head 2.1’s queries, from there only to the logits, is clean?`,
    )
    expect(asked({ variant: 'tree', receiver: 'logits' })).toBe(asked({ receiver: 'logits' }))
    expect(asked({ sender: 'z[1.0]', direction: 'noising' })).toBe(
      'Does head 1.0 take away  Mary over  Anna when what it sends directly to head 2.1’s queries is corrupted?',
    )
    expect(asked({ sender: 'embed' })).toMatch(/^Do the embeddings restore .* when what they send /)
    expect(asked({ axis: 'receiver', sender: 'mlp_out[0]', receiver: null })).toBe(
      'Which receivers restore  Mary over  Anna when what MLP 0 sends them directly is clean?',
    )
    expect(asked({ metric: 'prob' })).toContain('restore the probability of  Mary when')
  })

  it('says what stays frozen', () => {
    expect(frozen(told())).toMatch(/^Between the two everything stays as in the corrupted run; what/)
    expect(frozen(told({ receiver: 'logits' }))).toMatch(/corrupted run\.$/)
    expect(frozen(told({ variant: 'wang', direction: 'noising' }))).toMatch(
      /MLPs are recomputed and all other heads stay as in the clean run;/,
    )
    expect(frozen(told({ variant: 'tree' }))).toMatch(/^Only this path changes/)
  })
})

/** A map over all senders or receivers; each effect is its place in the list, over 100. */
function whole(axis: 'sender' | 'receiver'): HeatMap {
  const kinds = axis === 'sender' ? ['z', 'mlp_out', 'embed'] : ['q', 'k', 'v', 'mlp', 'logits']
  const { first, layers, last } = names(axis, MODEL)
  const all = [...layers.flat(), ...first, ...last]
  const list = kinds.flatMap((kind) => all.filter((name) => endOf(name)?.kind === kind))
  return {
    ...(heads() as unknown as HeatMap),
    dims: [axis],
    shape: [list.length],
    coords: { [axis]: list },
    effect: Float32Array.from(list, (_, i) => i / 100),
    state: new Uint8Array(list.length),
  }
}

describe('the layout', () => {
  it('gives every part one cell, and finds it again by name and under the pointer', () => {
    for (const axis of ['sender', 'receiver'] as const) {
      const layout = layOutPaths(axis, MODEL, 700, false)
      const map = whole(axis)
      for (const name of map.coords[axis] as string[]) {
        const at = placeOf(layout, name)
        expect(at, name).not.toBeNull()
        const [row, col] = at as [number, number]
        expect(nameAt(layout, row, col)).toBe(name)
        const band = layout.bands.findLast((b) => b.from <= col)
        const x = (band?.x ?? 0) + (col - (band?.from ?? 0) + 0.5) * (band?.col ?? 0)
        expect(nameUnder(layout, x, (layout.rows[row]?.top ?? 0) + 3)).toBe(name)
      }
      expect(nameUnder(layout, -1, 5)).toBeNull()
    }
  })

  it('paints each cell with the effect of its own name', () => {
    for (const axis of ['sender', 'receiver'] as const) {
      const map = whole(axis)
      const layout = layOutPaths(axis, MODEL, 700, false)
      const look = {
        theme: 'light',
        scale: { limit: 1, log: false },
        font: 'x',
        background: '#fff',
        narrow: false,
      } as const
      const painted = parts(map, layout, look).flatMap(({ scene: { table } }) =>
        table.start.flatMap((start) => table.cols.map((_, c) => start + c * table.step)),
      )
      expect(painted.sort((a, b) => a - b)).toEqual([...map.effect.keys()])
      const values = parts(map, layout, look).find(({ scene }) => scene.table.cols.length === 4)?.scene.table
      expect(map.coords[axis]?.[(values?.start[2] ?? 0) + 1]).toBe(axis === 'sender' ? 'z[2.1]' : 'q[2.1]')
    }
  })

  it('never shrinks a column below 12 pixels, and knows many layers', () => {
    const layout = layOutPaths('receiver', { ...MODEL, n_layers: 40, n_heads: 32, n_kv_heads: 32 }, 300, true)
    expect(layout.bands[0]?.col).toBe(12)
    expect(layout.height).toBe(13)
    expect(layout.rows.at(-1)).toMatchObject({ name: 'logits', alone: true })
  })
})

// ---- in the page

let el: HTMLElement
let model: Fake
let cleanup: () => void
const settle = () => new Promise((done) => setTimeout(done))
const get = <T extends HTMLElement>(id: string): T => el.querySelector(`[data-testid="${id}"]`) as T
const text = (id: string): string => get(id).textContent ?? ''
const questions = (): Dict[] => model.sent.filter((m) => m.type === 'ask' && m.kind === 'paths')

const SMALL = ['z[0.0]', 'z[0.1]', 'z[1.0]', 'z[1.1]', 'mlp_out[0]', 'mlp_out[1]', 'embed']

async function answer(
  effects: readonly number[],
  more: Dict = {},
  states?: readonly number[],
): Promise<void> {
  const question = questions().at(-1)
  const map = heads({
    key: { component: 'p', over: ['sender'], direction: 'denoising', metric: 'logit_diff', pair: 0 },
    dims: ['sender'],
    shape: [SMALL.length],
    coords: { sender: SMALL },
  })
  const state = states ?? effects.map((v) => (Number.isNaN(v) ? State.NoPath : 0))
  const said = { v: 1, type: 'answer', kind: 'paths', key: 'paths', id: question?.id, axis: 'sender', map }
  model.post({ ...said, to_come: [], left_out: [], words: 'card', code: 'nbp.path_patch()', ...more }, [
    floatBytes(effects),
    stateBytes(state),
  ])
  await settle()
}

const EFFECTS = [0.81, 4.05, Number.NaN, Number.NaN, -1.62, Number.NaN, 0]

async function open(more: Dict = {}): Promise<void> {
  model = fakeModel(more)
  cleanup = bundle.render({ model, el })
  await settle()
  get('nbp-tab').querySelector<HTMLInputElement>('[value=paths]')?.click()
  await settle()
}

async function select(id: string, value: string): Promise<void> {
  const field = get<HTMLSelectElement>(id)
  field.value = value
  field.dispatchEvent(new Event('change'))
  await settle()
}

async function press(key: string): Promise<void> {
  get('nbp-paths-map').dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }))
  await settle()
}

const step = async (name: string) => {
  get('nbp-paths').querySelector<HTMLButtonElement>(`[data-step=${name}]`)?.click()
  await settle()
}

beforeEach(() => {
  el = document.body.appendChild(document.createElement('div'))
})
afterEach(() => {
  cleanup?.()
  document.body.replaceChildren()
})

describe('the tab', () => {
  it('asks for what the logits receive, and shows what comes', async () => {
    await open()
    expect(questions()).toMatchObject([
      {
        sender: null,
        receiver: 'logits',
        variant: 'direct',
        direction: 'denoising',
        metric: 'logit_diff',
        pair: 0,
      },
    ])
    await answer(EFFECTS)
    expect(get('nbp-paths-map').dataset).toMatchObject({ rows: '3', cols: '3', final: 'true' })
    expect(questions()).toHaveLength(1)
    expect(text('nbp-paths-chosen')).toContain('Strongest: Head 0.1 → the logits+0.50of the gap restored')
    const rows = [...get('nbp-paths-strongest').querySelectorAll('tr')].map((tr) => tr.textContent)
    expect(rows).toEqual(['0.1.50', 'mlp 0−.20', '0.0.10', 'embeddings0'])
  })

  it('asks anew when a control changes, each with its own words', async () => {
    await open()
    await answer(EFFECTS)
    await select('nbp-paths-receiver', 'q[1.0]')
    expect(questions().at(-1)).toMatchObject({ receiver: 'q[1.0]', sender: null })
    expect(text('nbp-paths-status')).toBe('Running')
    expect(text('nbp-paths-sentence')).toContain('directly to head 1.0’s queries is clean')
    get('nbp-paths-variant').querySelector<HTMLInputElement>('[value=wang]')?.click()
    get('nbp-paths-direction').querySelector<HTMLInputElement>('[value=noising]')?.click()
    await settle()
    await select('nbp-paths-metric', 'prob')
    const last = { receiver: 'q[1.0]', variant: 'wang', direction: 'noising', metric: 'prob' }
    expect(questions().at(-1)).toMatchObject(last)
    expect(model.sent.some((m) => m.type === 'set')).toBe(false)
    await select('nbp-paths-sender', 'z[0.1]')
    await select('nbp-paths-receiver', '')
    expect(questions().at(-1)).toMatchObject({ sender: 'z[0.1]', receiver: null })
    expect(text('nbp-paths-sentence')).toMatch(/^Which receivers take away/)
  })

  it('moves with the keys, reads out, pins, and keeps keys to itself', async () => {
    await open()
    await answer(EFFECTS)
    const outside = vi.fn()
    document.body.addEventListener('keydown', outside)
    await press('ArrowDown')
    expect(text('nbp-paths-readout')).toBe(
      'The embeddings → the logits: 0.00 of the gap restored, 0.00 logits.',
    )
    await press('ArrowRight')
    await press('ArrowDown')
    expect(text('nbp-paths-readout')).toBe('Head 0.0 → the logits: +0.10 of the gap restored, +0.81 logits.')
    await press('End')
    expect(text('nbp-paths-readout')).toMatch(/^MLP 0 → the logits: −0\.20 of the gap/)
    await press('ArrowDown')
    expect(text('nbp-paths-readout')).toBe('MLP 1 → the logits: no causal path: the receiver comes first.')
    expect(get('nbp-paths').querySelector<HTMLButtonElement>('[data-step=mlp]')?.disabled).toBe(true)
    await press('Enter')
    expect(el.querySelector('.ring.pinned')).not.toBeNull()
    await press('d')
    expect(questions().at(-1)).toMatchObject({ direction: 'noising' })
    await press('Escape')
    expect(text('nbp-paths-readout')).toMatch(/^Point at a cell/)
    expect(outside).not.toHaveBeenCalled()
    document.body.removeEventListener('keydown', outside)
  })

  it('walks the circuit backwards and returns; the tree takes the way along', async () => {
    await open()
    await answer(EFFECTS)
    await step('v')
    expect(questions().at(-1)).toMatchObject({ receiver: 'v[0.1]' })
    expect(text('nbp-paths-walk')).toContain('the logits')
    await answer(EFFECTS)
    await step('q')
    await answer(EFFECTS)
    get('nbp-paths-variant').querySelector<HTMLInputElement>('[value=tree]')?.click()
    await settle()
    expect(questions().at(-1)).toMatchObject({ receiver: 'q[0.1] -> v[0.1]', variant: 'tree' })
    const back = [...get('nbp-paths-walk').querySelectorAll('button')]
    expect(back.map((b) => b.textContent)).toEqual(['the logits', 'head 0.1’s values'])
    back[0]?.click()
    await settle()
    expect(questions().at(-1)).toMatchObject({ receiver: 'logits' })
    expect(get('nbp-paths-walk')).toBeNull()
  })

  it('shows the attention of a head on the sweep', async () => {
    await open()
    await answer(EFFECTS)
    await step('attention')
    expect(get('nbp-paths')).toBeNull()
    expect(text('nbp-attention')).toContain('layer 0, head 1')
  })

  it('shows a refusal with its way out, and goes back to the map before', async () => {
    await open()
    await answer(EFFECTS)
    await select('nbp-paths-receiver', 'q[1.0]')
    await answer([], {
      map: undefined,
      error: { title: 'cannot be patched', lines: ['try: <b>another</b>'] },
    })
    expect(text('nbp-paths-error')).toContain('cannot be patched')
    expect(text('nbp-paths-error')).toContain('try: <b>another</b>')
    expect(get('nbp-paths-map')).toBeNull()
    get('nbp-paths-error').querySelector('button')?.click()
    await settle()
    expect(get<HTMLSelectElement>('nbp-paths-receiver').value).toBe('logits')
    await answer(EFFECTS)
    expect(get('nbp-paths-map').dataset.rows).toBe('3')
  })

  it('says what is still to come, and what was left out', async () => {
    await open()
    await answer(EFFECTS, { to_come: ['embeddings'], left_out: [{ what: 'MLPs', why: 'not exact here.' }] })
    expect(text('nbp-paths-status')).toBe('Running: embeddings to come')
    expect(text('nbp-paths')).toContain('Without MLPs. not exact here.')
  })
})

describe('from the sweep', () => {
  it('a head opens the tab as sender or as receiver', async () => {
    model = fakeModel({
      spec: spec({ component: 'z', over: ['layer', 'head'] }),
      selection: { layer: 1, head: 0 },
    })
    cleanup = bundle.render({ model, el })
    model.post(heads(), [floatBytes([1, 2, 3, 4]), stateBytes([0, 0, 0, 0])])
    await settle()
    const [sender, receiver] = [...get('nbp-path-buttons').querySelectorAll('button')]
    sender?.click()
    await settle()
    expect(questions().at(-1)).toMatchObject({ sender: 'z[1.0]', receiver: null })
    get('nbp-tab').querySelector<HTMLInputElement>('[value=sweep]')?.click()
    await settle()
    expect(receiver?.isConnected).toBe(false)
    get('nbp-path-buttons').querySelectorAll('button')[1]?.click()
    await settle()
    expect(questions().at(-1)).toMatchObject({ sender: null, receiver: 'q[1.0]' })
    expect(get<HTMLSelectElement>('nbp-paths-receiver').value).toBe('q[1.0]')
  })

  it('a residual stream is no end of a path', async () => {
    model = fakeModel({ selection: { layer: 1, pos: 2 } })
    cleanup = bundle.render({ model, el })
    await settle()
    expect(get('nbp-path-buttons')).toBeNull()
  })
})
