// What hangs on the chosen cells: gestures, questions that wait until a choice has settled, and what answers show.

import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { arcsOf } from '../src/arcs'
import { type Both, both, explained, rankCorrelation } from '../src/estimate'
import { reaches, rectangle } from '../src/gestures'
import bundle from '../src/index'
import { pile, ticks } from '../src/spread'
import { strongestRows } from '../src/strongest'
import { layOut } from '../src/table'
import { type Dict, decodeMap, type HeatMap, State } from '../src/wire'
import { short } from '../src/words'
import {
  ATTENTION,
  BUFFERS,
  EFFECT,
  type Fake,
  fakeModel,
  floatBytes,
  head,
  heads,
  keyed,
  STATE,
  spec,
  stateBytes,
  weights,
} from './fixture'

let el: HTMLElement
let model: Fake
let cleanup: () => void

/** Lets so many milliseconds pass on a clock of the tests' own. */
const settle = (ms = 1) => vi.advanceTimersByTimeAsync(ms)
const get = <T extends HTMLElement>(id: string): T => el.querySelector(`[data-testid="${id}"]`) as T
const text = (id: string): string => get(id)?.textContent ?? ''
const asked = (kind: string): Dict[] => model.sent.filter((m) => m.type === 'ask' && m.kind === kind)

async function mount(first: Dict = {}): Promise<void> {
  model = fakeModel(first)
  cleanup = bundle.render({ model, el })
  model.post(head(), BUFFERS())
  await settle()
}

async function press(key: string, shiftKey = false): Promise<void> {
  get('nbp-heatmap').dispatchEvent(
    new KeyboardEvent('keydown', { key, shiftKey, bubbles: true, cancelable: true }),
  )
  await settle()
}

async function point(type: string, row: number, col: number, shiftKey = false): Promise<void> {
  const surface = el.querySelector('.surface') as HTMLElement
  const step = surface.getBoundingClientRect().width / 5 || Number.parseFloat(surface.style.width) / 5
  const at = { clientX: (col + 0.5) * step, clientY: row * 34 + 10, bubbles: true, button: 0, shiftKey }
  surface.dispatchEvent(new PointerEvent(type, { ...at, pointerType: 'mouse' }))
  await settle()
}

async function drag(from: [number, number], to: [number, number], shift = false): Promise<void> {
  await point('pointerdown', ...from, shift)
  await point('pointermove', ...to, shift)
  await point('pointerup', ...to, shift)
  await point('click', ...to, shift)
}

async function reply(kind: string, content: Dict, buffers: ArrayBuffer[] = []): Promise<void> {
  model.post({ v: 1, type: 'answer', kind, key: kind, id: asked(kind).at(-1)?.id, ...content }, buffers)
  await settle()
}

const TOLD: Dict = {
  direction: 'denoising',
  base: 'corrupted',
  tokens: [
    [' Mary', 0.03, 0.81, 'answer'],
    [' Anna', 0.71, 0.009, 'wrong'],
    [' he', 0.2, 0.05, ''],
  ],
  spread: { denoising: { values: [0.9, 0.95, null, 0.97], mean: 0.94, low: 0.91, high: 0.969 } },
}

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
  el = document.body.appendChild(document.createElement('div'))
})

afterEach(() => {
  cleanup?.()
  cleanup = () => {}
  document.body.replaceChildren()
  vi.useRealTimers()
})

describe('a question about a cell', () => {
  it('is asked when the choice has settled, once, and not of cells passed over', async () => {
    await mount()
    await press('ArrowDown')
    for (let i = 0; i < 3; i++) await press('ArrowRight')
    expect(asked('cell')).toEqual([])
    await settle(90)
    expect(asked('cell')).toMatchObject([{ cell: { layer: 0, pos: 3 }, layer: 0 }])
    model.change('selection', { pos: 3, layer: 0 })
    await settle(90)
    expect(asked('cell')).toHaveLength(1)
    await press('Escape')
    await settle(90)
    expect(asked('cell')).toHaveLength(1)
  })

  it('waits for a running sweep, and a hover asks nothing', async () => {
    await mount({ status: { state: 'running', gen: 1 }, selection: { layer: 1, pos: 2 } })
    await point('mousemove', 0, 2)
    await settle(90)
    expect(asked('cell')).toEqual([])
    model.change('status', { state: 'done', gen: 1 })
    await settle(90)
    expect(asked('cell')).toMatchObject([{ cell: { layer: 1, pos: 2 } }])
  })

  it('shows next tokens before and after, and falls back to the prompts', async () => {
    await mount({ selection: { layer: 1, pos: 2 } })
    expect(get('nbp-logits').dataset.of).toBe('prompts')
    await settle(90)
    await reply('cell', TOLD)
    expect(get('nbp-logits').dataset.of).toBe('patched')
    expect(text('nbp-logits')).toContain('corrupted  patched')
    const rows = [...get('nbp-logits').querySelectorAll('tr')].map((row) => row.textContent)
    expect(rows[0]).toContain('answer')
    expect(rows[0]).toContain('3 → 81 %')
    expect(rows[1]).toContain('71 → 0.9 %')
    const bars = [...get('nbp-logits').querySelectorAll<HTMLElement>('.bars i')].map((i) => i.style.width)
    expect(bars[1]).toBe('100%')
    await press('ArrowRight')
    expect(get('nbp-logits').querySelector('.old')).not.toBeNull()
    await press('Escape')
    expect(get('nbp-logits').dataset.of).toBe('prompts')
  })

  it('shows the spread with mean and interval, one dot a pair that has a value', async () => {
    await mount({ selection: { layer: 1, pos: 2 } })
    expect(get('nbp-spread')).toBeNull()
    await settle(90)
    await reply('cell', TOLD)
    expect(get('nbp-spread').querySelectorAll('circle')).toHaveLength(3)
    expect(text('nbp-spread')).toContain('Spread over 4 pairs')
    expect(get('nbp-spread').querySelector('.amount')?.textContent).toBe('0.94 [0.91, 0.97]')
    expect(text('nbp-spread')).toContain('1 pair has no value')
  })

  it('says loudly that a run is not the one the sweep measured', async () => {
    await mount({ selection: { layer: 1, pos: 2 } })
    await settle(90)
    await reply('cell', {
      error: { title: 'another value than the sweep', lines: ['seen: 1 here, 2 there'] },
    })
    expect(get('nbp-wrong-answer').getAttribute('role')).toBe('alert')
    expect(text('nbp-wrong-answer')).toContain('seen: 1 here, 2 there')
    expect(get('nbp-logits').dataset.of).toBe('prompts')
  })

  it('leaves no timer behind a widget that is gone', async () => {
    await mount()
    await press('ArrowDown')
    cleanup()
    cleanup = () => {}
    await settle(90)
    expect(asked('cell')).toEqual([])
  })
})

describe('a brush', () => {
  it('is a drag over cells: Python gets them, and is asked what they do together', async () => {
    await mount()
    await point('pointerdown', 0, 1)
    await point('pointermove', 1, 2)
    expect(el.querySelector('.brush-count')?.textContent).toBe('4 cells together')
    await point('pointerup', 1, 2)
    await point('click', 1, 2)
    const cells = [
      { layer: 0, pos: 1 },
      { layer: 0, pos: 2 },
      { layer: 1, pos: 1 },
      { layer: 1, pos: 2 },
    ]
    expect(model.data.brushed).toEqual(cells)
    expect(model.data.selection).toBeNull()
    expect(el.querySelectorAll('.surface .brush')).toHaveLength(1)
    await settle(90)
    expect(asked('together')).toMatchObject([{ cells }])
    await reply('together', { together: { denoising: 6.48 }, sum: { denoising: 8.91 } })
    expect(text('nbp-together')).toContain('+0.80')
    expect(text('nbp-together')).toContain('single ones add up to +1.10')
  })

  it('is extended with shift and arrows, and cleared with Escape or another choice', async () => {
    await mount({ selection: { layer: 0, pos: 1 } })
    await press('ArrowRight', true)
    await press('ArrowDown', true)
    expect(model.data.brushed).toHaveLength(4)
    await press('ArrowLeft', true)
    expect(model.data.brushed).toEqual([
      { layer: 0, pos: 1 },
      { layer: 1, pos: 1 },
    ])
    await press('Escape')
    expect(model.data.brushed).toEqual([])
    expect(model.data.selection).toEqual({ layer: 0, pos: 1 })
    await press('ArrowRight', true)
    await press('ArrowDown')
    expect(model.data.brushed).toEqual([])
  })

  it('grows with shift held', async () => {
    await mount()
    await drag([0, 0], [0, 1])
    await drag([1, 3], [1, 4], true)
    expect(model.data.brushed).toHaveLength(4)
    expect(el.querySelectorAll('.surface .brush')).toHaveLength(4)
  })

  it('can be set in Python, and is not told back', async () => {
    await mount()
    const brushed = [
      { layer: 0, pos: 0 },
      { layer: 1, pos: 4 },
    ]
    model.change('brushed', brushed)
    await settle()
    expect(text('nbp-together')).toContain('2 cells together')
    expect(model.data.brushed).toBe(brushed)
  })

  it('can be drawn over the points of both directions', async () => {
    const both = { component: 'z', over: ['layer', 'head'] }
    const wide = vi.spyOn(HTMLElement.prototype, 'clientWidth', 'get').mockReturnValue(1200)
    await mount({ spec: spec({ ...both, direction: 'both' }) })
    const values = { denoising: [0, 0.8, 4, 8], noising: [0, -6, -3, 0] }
    for (const [direction, list] of Object.entries(values))
      model.post(heads({ key: keyed({ ...both, direction }), direction }), [
        floatBytes(list),
        stateBytes([0, 0, 0, 0]),
      ])
    await settle()
    wide.mockRestore()
    const svg = el.querySelector('.scatter') as SVGElement
    expect(svg.textContent).toContain('1 head: works with others (AND)')
    const at = (type: string, clientX: number, clientY: number) =>
      svg.dispatchEvent(new PointerEvent(type, { clientX, clientY, button: 0, bubbles: true }))
    at('pointerdown', 0, 0)
    at('pointermove', 430, 430)
    at('pointerup', 430, 430)
    await settle()
    expect(model.data.brushed).toHaveLength(4)
  })

  it('needs Python', async () => {
    await mount({ spec: spec({ can_run: false }) })
    await drag([0, 1], [1, 2])
    expect(model.data.brushed).toEqual([])
  })
})

describe('a move', () => {
  it('is a drag of the chosen cell, with a ghost, and fades what cannot change', async () => {
    await mount({ selection: { layer: 0, pos: 2 } })
    await point('pointerdown', 0, 2)
    await point('pointermove', 1, 3)
    expect(el.querySelectorAll('.ghost-cell')).toHaveLength(1)
    const fades = [...el.querySelectorAll<HTMLElement>('.fade')].map((i) => i.style.width)
    expect(fades).toHaveLength(3)
    await point('pointerup', 1, 3)
    await point('click', 1, 3)
    expect(asked('move')).toMatchObject([{ from: { layer: 0, pos: 2 }, to: { layer: 1, pos: 3 } }])
    expect(model.data.selection).toEqual({ layer: 0, pos: 2 })
    await reply('move', { from: 'resid_pre[0] @ 2', to: 'resid_pre[1] @ 3', effects: { denoising: 0.972 } })
    expect(text('nbp-moved')).toBe(
      'resid_pre[0] @ 2 put into resid_pre[1] @ 3: +0.12 of the gap restored, +0.97 logits. ',
    )
  })

  it('goes by keys: m takes up, m puts down, Escape lets go', async () => {
    await mount({ selection: { layer: 0, pos: 2 } })
    await press('m')
    await press('ArrowRight')
    expect(el.querySelectorAll('.ghost-cell')).toHaveLength(1)
    await press('m')
    expect(asked('move')).toMatchObject([{ from: { layer: 0, pos: 2 }, to: { layer: 0, pos: 3 } }])
    await press('m')
    await press('Escape')
    expect(el.querySelectorAll('.ghost-cell')).toHaveLength(0)
    expect(model.data.selection).toEqual({ layer: 0, pos: 3 })
  })
})

it('knows what a value put somewhere can change', () => {
  const target = { layer: 1, pos: 3 }
  expect(reaches(target, target)).toBe(true)
  expect(reaches(target, { layer: 2, pos: 3 })).toBe(true)
  expect(reaches(target, { layer: 2, pos: 2 })).toBe(false)
  expect(reaches(target, { layer: 1, pos: 4 })).toBe(false)
  expect(reaches({ layer: 1, head: 3 }, { layer: 2, head: 0 })).toBe(true)
  expect(reaches({ pos: 1 }, { pos: 2 })).toBe(false)
})

it('brushes the rectangle between two cells in either order', () => {
  const table = layOut(decodeMap(head(), BUFFERS()) as HeatMap, null)
  const cells = rectangle(table, { layer: 1, pos: 3 }, { layer: 0, pos: 2 })
  expect(cells.map(short)).toEqual(['0 at 2', '0 at 3', '1 at 2', '1 at 3'])
})

describe('attention', () => {
  const patched = Float32Array.from({ length: 50 }, (_, i) => (i % 5) / 10)

  async function withAttention(): Promise<void> {
    await mount({ selection: { layer: 0, pos: 2 } })
    const small = { component: 'z', over: ['layer', 'head'] }
    model.post(heads({ key: keyed(small) }), [floatBytes([0, 0, 4, 1]), stateBytes([0, 0, 0, 0])])
    model.post({ ...ATTENTION, layer: 1 }, [weights().buffer as ArrayBuffer])
    model.post({ ...ATTENTION, layer: 0 }, [weights().buffer as ArrayBuffer])
    await settle(90)
    await reply('cell', { ...TOLD, layer: asked('cell').at(-1)?.layer, shape: [2, 5, 5] }, [patched.buffer])
  }

  it('of the patched run stands beside the others', async () => {
    await mount({ selection: { layer: 0, pos: 2 } })
    await settle()
    expect(el.querySelectorAll('.matrix')).toHaveLength(0)
    cleanup()
    await withAttention()
    expect(el.querySelectorAll('.matrix')).toHaveLength(4)
    expect(text('nbp-attention-readout')).toMatch(/patched \.\d0/)
    expect(el.querySelectorAll('.bar-col .third')).toHaveLength(5)
    const picker = get<HTMLSelectElement>('nbp-attention-head')
    const first = picker.value
    picker.value = first.startsWith('1') ? '0.1' : '1.1'
    picker.dispatchEvent(new Event('change'))
    await settle()
    expect(el.querySelectorAll('.matrix')).toHaveLength(3)
    picker.value = first
    picker.dispatchEvent(new Event('change'))
    await settle()
    expect(el.querySelectorAll('.matrix')).toHaveLength(4)
    await press('ArrowRight')
    expect(el.querySelectorAll('.matrix')).toHaveLength(3)
    expect(el.querySelector('.unpatched')?.textContent).toContain('Running')
  })

  it('is walked with the arrow keys, which stay there', async () => {
    await withAttention()
    const matrix = el.querySelector('.matrix') as HTMLElement
    const key = (name: string) =>
      matrix.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true, cancelable: true }))
    key('ArrowUp')
    await settle()
    key('Home')
    await settle()
    expect(text('nbp-attention-readout')).toContain('from ·and 3 to <s> 0')
    key('End')
    await settle()
    key('ArrowRight')
    await settle()
    expect(text('nbp-attention-readout')).toContain('from ·and 3 to ·and 3')
    key('Home')
    await settle()
    key('ArrowLeft')
    await settle()
    expect(text('nbp-attention-readout')).toContain('from ·and 3 to <s> 0')
    expect(model.data.selection).toEqual({ layer: 0, pos: 2 })
  })

  it('can be arcs on the prompt’s columns', async () => {
    await withAttention()
    get('nbp-attention-kind').querySelector<HTMLInputElement>('[value=arcs]')?.click()
    await settle()
    expect(el.querySelectorAll('.matrix')).toHaveLength(0)
    const near = [...get('nbp-attention-arcs').querySelectorAll('.near')]
    expect(near.length).toBeGreaterThan(1)
    const wide = near.map((p) => Number(p.getAttribute('stroke-width')))
    expect(wide).toEqual([...wide].sort((a, b) => a - b))
  })

  it('makes an arc of each weight that can be seen, the strongest last', () => {
    const arcs = arcsOf(Float32Array.from([1, 0, 0, 0.3, 0.7, 0, 0.01, 0, 0.99]), [3, 3])
    expect(arcs.map((a) => [a.dest, a.src])).toEqual([
      [1, 0],
      [1, 1],
      [2, 2],
      [0, 0],
    ])
  })
})

describe('an estimate', () => {
  const estimate = [0, 0, 4, 1, 0.5, 0, 0, 6, 1, -1]
  const measured = [0, 0, 4.05, 0.4, 0.6, 0, 0, 7.776, 0.9, -0.81]

  it('stands against exact values, with R² and rank correlation of the page’s own', async () => {
    await mount()
    model.post(head({ estimate: true }), [
      floatBytes(estimate),
      stateBytes(estimate.map(() => State.Estimate)),
    ])
    await settle()
    expect(get('nbp-estimate')).toBeNull()
    const states = measured.map((v, i) => (v === 0 ? State.Exact : i === 9 ? State.Estimate : State.Measured))
    model.post(head(), [floatBytes(measured), stateBytes(states)])
    await settle()
    expect(get('nbp-estimate').dataset.points).toBe('5')
    expect(text('nbp-estimate')).toContain('R² 0.91')
    expect(text('nbp-estimate')).toContain('ρ 0.82')
    const circle = get('nbp-estimate').querySelector('circle:last-of-type') as unknown as HTMLElement
    circle.dispatchEvent(new MouseEvent('click', { bubbles: true }))
    await settle()
    expect(model.data.selection).toEqual({ layer: 1, pos: 2 })
    expect(el.querySelector('.rail .guess')).not.toBeNull()
  })

  const point = (estimate: number, exact: number): Both => ({ cell: {}, estimate, exact })

  it('is judged as Python judges it', () => {
    const points = [point(0, 0), point(1, 2), point(2, 2), point(4, 3)]
    expect(explained(points)).toBeCloseTo(1 - 2 / 4.75, 9)
    expect(rankCorrelation(points)).toBeCloseTo(0.9486832980505139, 9)
    expect(explained([point(1, 2)])).toBeNaN()
    expect(rankCorrelation([point(1, 2), point(1, 3)])).toBeNaN()
  })

  it('counts only cells that were run', () => {
    const exact = decodeMap(head(), BUFFERS()) as HeatMap
    const guess = { ...exact, effect: Float32Array.from(estimate) }
    expect(both(guess, exact)).toHaveLength(4)
  })
})

it('lists the strongest cells of both directions by the larger effect', () => {
  const [a, b] = [
    [0, -1, 4, 1],
    [0, -6, -3, 0],
  ].map((v) => decodeMap(heads(), [floatBytes(v), stateBytes([0, 0, 0, 0])]) as HeatMap) as [HeatMap, HeatMap]
  const rows = strongestRows([a, b])
  expect(rows.map((r) => short(r.cell))).toEqual(['0.1', '1.0', '1.1'])
  expect(rows[0]?.shares[1]).toBeCloseTo(-6 / 8.1, 5)
})

describe('a swarm of dots', () => {
  it('piles up what would meet and leaves the rest on the line', () => {
    const laid = pile([10, 11, null, 30], (v) => v)
    expect(laid.map((d) => d.pair)).toEqual([0, 1, 3])
    expect(laid[1]?.y).toBeLessThan(laid[0]?.y ?? 0)
    expect(laid[2]?.y).toBe(laid[0]?.y)
  })

  it('has an axis of round numbers', () => {
    expect(ticks(0.938, 0.99).map((v) => v.toFixed(2))).toEqual([
      '0.94',
      '0.95',
      '0.96',
      '0.97',
      '0.98',
      '0.99',
    ])
    expect(ticks(-1, 1)).toHaveLength(5)
  })
})

const coords = (layers: number, positions: number): Dict => ({
  layer: Array.from({ length: layers }, (_, i) => i),
  pos: Array.from({ length: positions }, (_, i) => i),
})

describe('while a sweep runs', () => {
  const estimate = [0, 0, 4, 1, 0.5, 0, 0, 6, 1, -1]
  const running = (more: Dict = {}): Dict => ({
    state: 'running',
    text: 'Running',
    done: 3,
    total: 10,
    gen: 0,
    ...more,
  })

  async function begin(state: number[]): Promise<void> {
    await mount()
    model.post(head({ estimate: true }), [
      floatBytes(estimate),
      stateBytes(estimate.map(() => State.Estimate)),
    ])
    model.post(head({ final: false }), [floatBytes(EFFECT), stateBytes(state)])
    model.change('status', running({ seconds_left: 2.4 }))
    await settle()
  }

  it('says how far it is and shows the strongest exact cells beside their estimates', async () => {
    const guessed = EFFECT.map((_, i) => (i === 7 ? State.Estimate : (STATE[i] as number)))
    await begin(guessed)
    expect(text('nbp-landing')).toContain('3of 10 cells exactabout 2 s left')
    const rows = [...get('nbp-so-far').querySelectorAll('tr')]
    expect(rows.map((row) => row.querySelector('button')?.getAttribute('aria-label'))).toEqual([
      'Layer 0, position 2',
    ])
    const [bar, tick] = ['i', 's'].map((tag) => rows[0]?.querySelector<HTMLElement>(tag)?.style)
    expect(bar?.width).toBe('100%')
    expect(Number.parseFloat(tick?.left ?? '')).toBeCloseTo((100 * 4) / 4.05, 3)
  })

  it('gives its place to a cell that is chosen, and to the strongest when it ends', async () => {
    await begin([...STATE])
    get('nbp-so-far').querySelector('button')?.click()
    await settle()
    expect(get('nbp-landing')).toBeNull()
    expect(el.querySelector('.inspector')?.textContent).toContain('Layer 1, position 2')
    await press('Escape')
    expect(get('nbp-landing')).not.toBeNull()
    model.change('status', running({ state: 'done' }))
    await settle()
    expect(get('nbp-landing')).toBeNull()
    expect(el.querySelector('.inspector')?.textContent).toContain('Strongest: ')
  })

  it('finds the strongest without sorting, as sorting would', () => {
    const values = Array.from({ length: 500 }, (_, i) => Math.sin(i * i) * (i % 7 === 0 ? Number.NaN : 1))
    const map = decodeMap(head({ shape: [5, 100], dims: ['layer', 'pos'], coords: coords(5, 100) }), [
      floatBytes(values),
      stateBytes(values.map(() => State.Measured)),
    ]) as HeatMap
    const sorted = values
      .map((v, i) => [Math.abs(v) || 0, i] as const)
      .sort((a, b) => b[0] - a[0])
      .slice(0, 9)
    expect(strongestRows([map], 9).map(({ cell }) => 100 * Number(cell.layer) + Number(cell.pos))).toEqual(
      sorted.map(([, i]) => i),
    )
  })
})
