import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import {
  answerText,
  decode,
  type Edge,
  grouped,
  keptOf,
  nearest,
  pathOf,
  placeOf,
  pruned,
  type Scored,
  stepped,
  thresholdOf,
} from '../src/circuit_data'
import { short, towards } from '../src/circuit_draw'
import { columnsOf, layOut, standing } from '../src/circuit_layout'
import bundle from '../src/index'
import type { Dict } from '../src/wire'
import { BUFFERS, type Fake, fakeModel, head, pair, spec } from './fixture'

const SENDERS = ['embed', 'a0.0', 'a0.1', 'm0', 'a1.0', 'a1.1', 'm1']
const INPUTS = [
  ...['a0.0.q', 'a0.1.q', 'a0.0.k', 'a0.1.k', 'a0.0.v', 'a0.1.v', 'm0'],
  ...['a1.0.q', 'a1.1.q', 'a1.0.k', 'a1.1.k', 'a1.0.v', 'a1.1.v', 'm1', 'logits'],
]

/** Edges as Python sends them; the strongest first. */
const EDGES: [string, string, number, number][] = [
  ['embed', 'm0', 2, 3],
  ['m0', 'a1.1.v', 2, 2],
  ['a1.1', 'logits', 4, 1.5],
  ['embed', 'm1', 2, -1],
  ['m1', 'logits', 4, 0.5],
  ['embed', 'a0.0.q', 1, 0.25],
]

const message = (edges = EDGES, more: Dict = {}): { content: Dict; buffers: ArrayBuffer[] } => ({
  content: {
    v: 1,
    type: 'answer',
    kind: 'circuit',
    key: 'circuit',
    layers: 2,
    heads: 2,
    kv_heads: 2,
    senders: SENDERS,
    inputs: INPUTS,
    positions: 5,
    tokens: [],
    total: 90,
    sent: edges.length,
    start: 4,
    sizes: [1, 2, 4, 20, 90],
    thresholds: [3, 2, 1, 0.1, 0],
    unit: 'logit',
    metric: 'logit difference',
    method: 'eap-ig',
    points: 5,
    scored_on: 1,
    same: 1,
    others: 0,
    runs: true,
    ...more,
  },
  buffers: [
    new Int32Array([
      ...edges.map(([s]) => SENDERS.indexOf(s)),
      ...edges.map(([, r]) => INPUTS.indexOf(r)),
      ...edges.map(([, , p]) => p),
    ]).buffer,
    new Float32Array(edges.map(([, , , score]) => score)).buffer,
  ],
})

const scored = (edges = EDGES, more: Dict = {}): Scored =>
  decode({ ...message(edges, more), asked: {} }) as Scored
const names = (edges: readonly Edge[]): string[] => edges.map((e) => e.name)

describe('edges', () => {
  it('are named as Python names them', () => {
    expect(names(scored().edges).slice(0, 3)).toEqual(['embed->m0 @ 2', 'm0->a1.1.v @ 2', 'a1.1->logits @ 4'])
    expect(names(scored([['embed', 'm0', -1, 1]]).edges)).toEqual(['embed->m0'])
    expect(decode(undefined)).toBeNull()
  })

  it('lead to the answer through keys and values from earlier positions, through all else only on their own', () => {
    expect(names(pruned(scored().edges))).toEqual([
      'embed->m0 @ 2',
      'm0->a1.1.v @ 2',
      'a1.1->logits @ 4',
      'm1->logits @ 4',
    ])
  })

  it('of a key-value head feed all heads that share it', () => {
    const inputs = ['a0.kv1.k', 'logits']
    const more = { senders: ['embed', 'a0.1', 'a0.3'], inputs, heads: 4, kv_heads: 2, layers: 1 }
    const bytes = [new Int32Array([0, 2, 1, 0, 1, 1, 0, 1, 1]).buffer, new Float32Array([3, 2, 1]).buffer]
    const data = decode({ content: { ...message().content, ...more }, buffers: bytes, asked: {} }) as Scored
    expect(names(data.edges)).toEqual(['embed->a0.kv1.k @ 0', 'a0.3->logits @ 1', 'a0.1->logits @ 1'])
    expect(pruned(data.edges)).toHaveLength(3)
    expect(pruned(data.edges.filter((_, i) => i !== 1))).toHaveLength(1)
    expect(pathOf(data.edges[0] as Edge)).toEqual({ sender: 'embed', receiver: 'k[0.1]' })
  })

  it('are all kept where not all that matter are here', () => {
    expect(keptOf(scored(), 5)).toHaveLength(4)
    expect(keptOf(scored(), 50)).toHaveLength(6)
  })

  it('are named for path patching as it names senders and receivers', () => {
    expect(scored().edges.map(pathOf).slice(0, 3)).toEqual([
      { sender: 'embed', receiver: 'mlp[0]' },
      { sender: 'mlp_out[0]', receiver: 'v[1.1]' },
      { sender: 'z[1.1]', receiver: 'logits' },
    ])
  })
})

describe('the slider', () => {
  it('knows the threshold of each number it can stand for', () => {
    const data = scored()
    expect(thresholdOf(data, 2)).toBe(2)
    expect(thresholdOf(data, 4)).toBe(1)
    expect(thresholdOf(data, 20)).toBe(0.1)
    expect(thresholdOf(data, 21)).toBeNull()
    expect(thresholdOf(data, 0)).toBeNull()
    expect([nearest(data, 5.4), nearest(data, 30), nearest(data, 500), nearest(data, 0)]).toEqual([
      5, 20, 90, 1,
    ])
  })

  it('moves by keys and never gets stuck', () => {
    const data = scored()
    const path = [4]
    for (let i = 0; i < 8; i++) path.push(stepped('ArrowRight', path.at(-1) as number, data) as number)
    expect(path).toEqual([4, 5, 6, 20, 90, 90, 90, 90, 90])
    expect(stepped('ArrowLeft', 90, data)).toBe(20)
    expect(stepped('ArrowLeft', 1, data)).toBe(1)
    expect(stepped('End', 3, data)).toBe(90)
    expect(stepped('x', 3, data)).toBeNull()
    expect(placeOf(90, 90)).toBe(1)
    expect(placeOf(1, 1)).toBe(1)
  })
})

describe('the layout', () => {
  const room = { width: 700, gutter: 76, layers: 2, positions: 5, narrow: false }
  const kept = () => keptOf(scored(), 5)

  it('stands a head where it writes, not where its values come from', () => {
    const at = standing(kept(), 4)
    expect([...(at.get('head1.1')?.at ?? [])]).toEqual([4])
    expect([...(at.get('mlp0.-1')?.at ?? [])]).toEqual([2])
    expect([...(at.get('logits-1.-1')?.at ?? [])]).toEqual([4])
  })

  it('stands a head that writes nothing where it reads', () => {
    const data = scored([['m0', 'a1.1.v', 2, 2]])
    expect([...(standing(data.edges, 4).get('head1.1')?.at ?? [])]).toEqual([2])
  })

  it('folds positions without a node and keeps columns beside each other', () => {
    const { columns } = layOut(kept(), room)
    expect(columns.map((c) => [c.first, c.last, c.folded])).toEqual([
      [0, 1, true],
      [2, 2, false],
      [3, 3, true],
      [4, 4, false],
    ])
    for (const [i, c] of columns.slice(1).entries())
      expect(c.x).toBeCloseTo((columns[i]?.x ?? 0) + (columns[i]?.width ?? 0))
    expect(columns.at(-1)?.x).toBeLessThan(700)
  })

  it('goes downwards from the tokens to the answer and hides no node behind another', () => {
    const many: [string, string, number, number][] = [
      ...EDGES,
      ['a0.0', 'logits', 4, 1],
      ['a0.1', 'logits', 4, 1],
      ['m0', 'logits', 4, 1],
      ['a1.0', 'logits', 4, 1],
    ]
    const { nodes, height, width } = layOut(scored(many).edges, room)
    const y = (key: string) => nodes.find((n) => n.key === key)?.y ?? Number.NaN
    const down = [
      y('embed-1.-1@2'),
      y('head0.0@4'),
      y('mlp0.-1@4'),
      y('head1.1@4'),
      y('mlp1.-1@4'),
      y('logits-1.-1@4'),
    ]
    expect(down).toEqual([...down].sort((a, b) => a - b))
    for (const a of nodes) {
      expect(a.y + a.h / 2).toBeLessThan(height)
      expect(a.x + a.w / 2).toBeLessThanOrEqual(width)
      for (const b of nodes)
        if (a !== b) {
          const apart = Math.abs(a.x - b.x) >= (a.w + b.w) / 2 || Math.abs(a.y - b.y) >= (a.h + b.h) / 2
          expect(apart, `${a.key} and ${b.key}`).toBe(true)
        }
    }
  })

  it('draws every edge, negative ones bowed left of what stands between', () => {
    const data = scored([
      ['embed', 'm1', 4, -1],
      ['embed', 'm0', 4, 1],
      ['m0', 'm1', 4, 1],
      ['m1', 'logits', 4, 2],
    ])
    const { curves, nodes } = layOut(data.edges, room)
    expect(curves).toHaveLength(4)
    const x = nodes[0]?.x as number
    expect(curves.find((c) => c.edge.score < 0)?.middle[0]).toBeLessThan(x - 10)
    expect(curves.find((c) => c.edge.name === 'embed->m0 @ 4')?.middle[0]).toBeCloseTo(x)
  })

  it('draws a value into every later place its head writes at, the strongest first', () => {
    const data = scored([
      ['m0', 'a1.1.v', 2, 2],
      ['a1.1', 'logits', 4, 1],
      ['a1.1', 'm1', 3, 0.5],
      ['m1', 'logits', 4, 0.1],
    ])
    const curves = layOut(data.edges, room).curves.filter((c) => c.edge.name === 'm0->a1.1.v @ 2')
    expect(curves.map((c) => c.beside)).toEqual([false, true])
  })

  it('has one column without positions', () => {
    const data = scored(
      EDGES.map(([s, r, , score]) => [s, r, -1, score]),
      { positions: null },
    )
    const { columns, nodes, curves } = layOut(keptOf(data, 5), { ...room, positions: null })
    expect(columns).toHaveLength(1)
    expect(nodes.map((n) => n.label)).toContain('tokens')
    expect(curves.length).toBe(5)
  })

  it('folds layers without a node into one band', () => {
    const { bands } = layOut(kept(), { ...room, layers: 6 })
    expect(bands.map((b) => [b.first, b.last])).toEqual([
      [-1, -1],
      [0, 0],
      [1, 1],
      [2, 5],
      [6, 6],
    ])
  })

  it('gives a column the room its heads take', () => {
    const columns = columnsOf(new Set([1]), { ...room, width: 300 }, () => 400)
    expect(columns.find((c) => !c.folded)?.width).toBe(400)
  })

  it('walks to the next node in a direction', () => {
    const { nodes } = layOut(kept(), room)
    const start = nodes.find((n) => n.key === 'embed-1.-1@2')
    expect(start && towards('ArrowDown', start, nodes)?.key).toBe('mlp0.-1@2')
    expect(start && towards('ArrowUp', start, nodes)).toBeNull()
  })
})

describe('words', () => {
  it('shorten a run of tokens', () => {
    expect(short(['a', 'b'], 10)).toBe('a b')
    expect(short(['There', 'was', 'a', 'girl'], 14)).toBe('There … girl')
    expect(short(['There', 'was', 'a', 'grandmother'], 9)).toBe('There …')
    expect(short(['grandmother'], 5)).toBe('gran…')
  })

  it('group thousands and name the answer', () => {
    expect([grouped(28), grouped(11824)]).toEqual(['28', '11 824'])
    expect(answerText(pair())).toBe('·Mary − ·Anna')
    expect(answerText(pair({ wrong: [] }))).toBe('·Mary')
    expect(answerText(pair({ answer: [] }))).toBe('answer')
  })
})

// ---- on the page

let el: HTMLElement
let model: Fake
let cleanup: () => void
const settle = (ms = 0) => new Promise((done) => setTimeout(done, ms))
const get = <T extends Element>(id: string): T => el.querySelector(`[data-testid="${id}"]`) as T
const asks = (kind: string): Dict[] => model.sent.filter((m) => m.type === 'ask' && m.kind === kind)

const FAITHFUL: Dict = {
  v: 1,
  type: 'answer',
  kind: 'faithful',
  key: 'faithful',
  n: 4,
  on: 'same',
  edges: 3,
  negative: 0,
  threshold: 1,
  faithful: 0.63,
  value: 1.79,
  clean: 4.8,
  empty: -3.3,
  pairs: 1,
  random: { count: 5, mean: 0, low: -0.1, high: 0.1 },
  curve: [
    [4, -0.2],
    [20, 0.7],
    [90, 1],
  ],
  done: true,
}

async function answer(kind: string, content: Dict, buffers: ArrayBuffer[] = []): Promise<void> {
  model.post({ ...content, id: asks(kind).at(-1)?.id }, buffers)
  await settle()
}

async function open(first: Dict = {}, more: Dict = {}): Promise<void> {
  model = fakeModel(first)
  cleanup = bundle.render({ model, el })
  model.post(head(), BUFFERS())
  await settle()
  el.querySelector<HTMLInputElement>('[data-testid=nbp-tab] [value=circuit]')?.click()
  await settle()
  const { content, buffers } = message(EDGES, more)
  await answer('circuit', content, buffers)
}

async function press(key: string, on: Element): Promise<Event> {
  const event = new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true })
  on.dispatchEvent(event)
  await settle()
  return event
}

beforeEach(() => {
  el = document.body.appendChild(document.createElement('div'))
})

afterEach(() => {
  cleanup?.()
  document.body.replaceChildren()
  vi.useRealTimers()
})

describe('the tab', () => {
  it('draws the kept edges and says how faithful they are once Python has run them', async () => {
    await open()
    expect(asks('circuit')[0]).toMatchObject({ method: 'eap-ig', positions: true })
    expect(asks('faithful')[0]).toMatchObject({ n: 4, on: 'same' })
    const circuit = get<HTMLElement>('nbp-circuit')
    expect(circuit.dataset.edges).toBe('3')
    expect(circuit.querySelectorAll('.hits path')).toHaveLength(3)
    expect(get('nbp-faithful').textContent).toContain('…')
    await answer('faithful', FAITHFUL)
    expect(get('nbp-faithful').textContent).toContain('0.63')
    expect(get('nbp-faithful').textContent).toContain('nothing kept−3.30')
    expect(get('nbp-faithful').textContent).toContain('5 random sets of 3 edges0.00')
    expect(el.textContent).toContain('fewer than 20 edges do worse than none')
    expect(el.textContent).toContain('1 of them leads nowhere and is left out')
  })

  it('shows the old number dimmed while the slider moves, and asks when it rests', async () => {
    await open()
    await answer('faithful', FAITHFUL)
    const slider = get<HTMLInputElement>('nbp-threshold')
    expect(slider.getAttribute('aria-valuetext')).toBe('4 of 90 edges, score at least 1.00 logits')
    const event = await press('ArrowRight', slider)
    expect(event.defaultPrevented).toBe(true)
    expect(slider.getAttribute('aria-valuetext')).toBe('5 of 90 edges, score at least 0.50 logits')
    expect(get<HTMLElement>('nbp-circuit').dataset.edges).toBe('4')
    expect(get('nbp-faithful').className).toBe('kept old')
    expect(el.querySelector('.curve .value')?.textContent).toBe('…')
    expect(asks('faithful')).toHaveLength(1)
    await settle(200)
    expect(asks('faithful').at(-1)).toMatchObject({ n: 5 })
    await answer('faithful', { ...FAITHFUL, n: 5, faithful: 0.7 })
    expect(get('nbp-faithful').className).toBe('kept')
    expect(el.querySelector('.curve .value')?.textContent).toBe('0.70')
  })

  it('takes a drag of the slider', async () => {
    await open()
    const slider = get<HTMLInputElement>('nbp-threshold')
    slider.value = String((1000 * Math.log(2)) / Math.log(90))
    slider.dispatchEvent(new Event('input', { bubbles: true }))
    await settle()
    expect(slider.getAttribute('aria-valuetext')).toMatch(/^2 of 90/)
  })

  it('reads out an edge and offers its path and its attention', async () => {
    await open()
    const row = el.querySelectorAll<HTMLButtonElement>('.edge-list button')[1] as HTMLButtonElement
    row.click()
    await settle()
    expect(row.getAttribute('aria-pressed')).toBe('true')
    expect(el.querySelector('.drawing .label')?.textContent).toBe('v · +2.00 logits')
    expect(el.textContent).toContain('Enters head 1.1 as a value.')
    const button = (text: string) =>
      [...el.querySelectorAll('button')].find((b) => b.textContent === text) as HTMLButtonElement
    button('Show attention').click()
    await settle()
    expect(get<HTMLInputElement>('nbp-heatmap')).toBeTruthy()
    expect(el.querySelector('[data-testid=nbp-attention] h4')?.textContent).toContain('layer 1, head 1')
  })

  it('walks from node to node by keys and lists the edges of one', async () => {
    await open()
    const svg = el.querySelector('.drawing svg') as Element
    await press('ArrowDown', svg)
    const event = await press('ArrowDown', svg)
    expect(event.defaultPrevented).toBe(true)
    expect(el.querySelectorAll('.node.on')).toHaveLength(1)
    expect(el.textContent).toContain('Edges of')
    await press('Escape', svg)
    expect(el.querySelectorAll('.node.on')).toHaveLength(0)
  })

  it('shows one sign and keeps the circuit', async () => {
    await open({}, {})
    el.querySelector<HTMLInputElement>('[data-testid=nbp-sign] [value=negative]')?.click()
    await settle()
    expect(el.querySelectorAll('.hits path')).toHaveLength(0)
    expect(get<HTMLElement>('nbp-circuit').dataset.edges).toBe('3')
    expect(el.textContent).toContain('None of this sign.')
  })

  it('says what a model cannot do, with the way out', async () => {
    model = fakeModel()
    cleanup = bundle.render({ model, el })
    await settle()
    el.querySelector<HTMLInputElement>('[data-testid=nbp-tab] [value=circuit]')?.click()
    await settle()
    const error = { title: 'no graph of edges', lines: ['try: nbp.attribute'] }
    await answer('circuit', { v: 1, type: 'answer', kind: 'circuit', key: 'circuit', error })
    expect(get('nbp-error').textContent).toBe('no graph of edgestry: nbp.attribute')
    expect(get('nbp-circuit')).toBeNull()
    expect(get('nbp-scores')).toBeTruthy()
  })

  it('offers pairs that the edges were not scored on', async () => {
    await open({}, { others: 3 })
    const link = [...el.querySelectorAll('button')].find(
      (b) => b.textContent === 'Evaluate on 3 held-out pairs',
    )
    link?.click()
    await settle()
    expect(asks('faithful').at(-1)).toMatchObject({ on: 'others' })
  })
})

describe('a circuit by itself', () => {
  const alone = (more: Dict = {}) => spec({ view: 'circuit', kept: { n: 4, by: 0 }, ...more } as never)

  it('follows Python, and tells it', async () => {
    await open({ spec: alone() })
    expect(get('nbp-tab')).toBeNull()
    expect(asks('faithful').at(-1)).toMatchObject({ n: 4 })
    await press('ArrowRight', get('nbp-threshold'))
    await settle(200)
    expect(asks('faithful').at(-1)).toMatchObject({ n: 5 })
    // An echo of an older wish does not turn the slider back.
    model.change('spec', alone({ kept: { n: 4, by: 0 } }))
    await settle()
    expect(get('nbp-threshold').getAttribute('aria-valuetext')).toMatch(/^5 of/)
    model.change('spec', alone({ kept: { n: 2, by: 1 } }))
    await settle()
    expect(get('nbp-threshold').getAttribute('aria-valuetext')).toMatch(/^2 of/)
    expect(asks('faithful').at(-1)).toMatchObject({ n: 2 })
    const row = el.querySelector('.edge-list button')
    expect(row).toBeNull()
  })

  it('hands the chosen edge to Python and takes one from there', async () => {
    await open({ spec: alone() })
    el.querySelector<HTMLButtonElement>('.edge-list button')?.click()
    await settle()
    expect(model.data.selection).toEqual({ edge: 'embed->m0 @ 2' })
    model.change('selection', { node: 'a1.1' })
    model.data.selection = { node: 'a1.1' }
    await settle()
    expect(el.textContent).toContain('Edges of 1.1')
  })

  it('says that nothing is run without a model', async () => {
    await open({ spec: alone({ can_run: false }) }, { runs: false })
    expect(get('nbp-faithful').textContent).toContain('there is no model')
    expect(el.querySelector('.curve .value')?.textContent).toBe('')
  })
})
