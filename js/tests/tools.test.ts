import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { candidates, change, difference, lens, orderOf, readFilter, scaleOf } from '../src/arrange'
import { tone } from '../src/colour'
import { staticHost } from '../src/host'
import bundle from '../src/index'
import { keyAct } from '../src/keys'
import { svgOf } from '../src/save'
import { Store } from '../src/store'
import { at, cellOf, find, layOut } from '../src/table'
import { type Dict, decodeMap, type HeatMap, State } from '../src/wire'
import {
  BUFFERS,
  type Fake,
  fakeModel,
  floatBytes,
  head,
  heads,
  keyed,
  pair,
  spec,
  stateBytes,
  to64,
} from './fixture'

/** layer × head × pos, 2 × 3 × 4: row r has its largest |share| r/10 at column r % 4. */
function rows(): HeatMap {
  const values = Array.from({ length: 24 }, (_, i) =>
    i % 4 === Math.floor(i / 4) % 4 ? Math.floor(i / 4) / 10 : 0,
  )
  const more = {
    dims: ['layer', 'head', 'pos'],
    shape: [2, 3, 4],
    coords: { layer: [0, 1], head: [0, 1, 2], pos: [0, 1, 2, 3] },
    gap: 1,
  }
  return decodeMap(head(more), [floatBytes(values), stateBytes(values.map(() => 0))]) as HeatMap
}

const table = layOut(rows(), null)
const order = (sort: string, filter: string) =>
  orderOf(table, [rows()], sort, readFilter(filter, table, pair()))

describe('rows', () => {
  it.each([
    ['', '', null],
    ['', 'layers 0-1', null],
    ['', 'layer 1', [3, 4, 5]],
    ['', '1', [3, 4, 5]],
    ['', 'L0 h1-2', [1, 2]],
    ['', 'heads 0,2', [0, 2, 3, 5]],
    ['', 'head 1 and layer 0', [1]],
    ['', '≥ .3', [3, 4, 5]],
    ['', '|effect| >= 0.4', [4, 5]],
    ['', 'layer 1 > .4, head 2', [5]],
    ['', 'layer 9', []],
    ['strongest', '', [5, 4, 3, 2, 1, 0]],
    ['strongest', 'layer 0', [2, 1, 0]],
    ['place', '', [4, 1, 5, 2, 3, 0]],
    ['head', '', [0, 3, 1, 4, 2, 5]],
    ['nonsense', '', null],
  ])('sorted by “%s” and filtered by “%s”', (sort, filter, wanted) => {
    expect(order(sort, filter)).toEqual(wanted)
  })

  it('says what it does not understand and shows all rows', () => {
    expect(readFilter('layer x', table, pair())).toMatchObject({
      error: expect.stringContaining('“layer x”'),
    })
    expect(order('', 'layer x')).toBeNull()
  })

  it('stay true to cells: every shown cell is found again where it is drawn, with its own value', () => {
    const map = rows()
    const wanted = [5, 0, 3]
    const t = layOut(map, null, wanted)
    expect([t.rows.length, t.whole, t.sorted]).toEqual([3, 6, true])
    wanted.forEach((r, i) => {
      for (let c = 0; c < 4; c++) {
        expect(find(t, cellOf(t, i, c))).toEqual([i, c])
        expect(at(t, i, c)).toBe(4 * r + c)
      }
    })
    expect(find(t, { layer: 0, head: 1, pos: 0 })).toBeNull()
  })
})

describe('scale', () => {
  it('is clipped at the 98th percentile of what is not 0, and says how many cells are beyond', () => {
    const values = [...Array.from({ length: 98 }, () => 0.1), 0.5, 0.9, 0, 0, 0]
    const map = decodeMap(
      head({ shape: [1, 103], coords: { layer: [0], pos: [...values.keys()] }, gap: 1 }),
      [floatBytes(values), stateBytes(values.map(() => 0))],
    ) as HeatMap
    expect(scaleOf([map], 'clipped')).toEqual({ limit: 0.1, log: false, note: 'clipped: 2 cells exceed .1' })
    const few = decodeMap(head({ gap: 10 }), [floatBytes(ten(4.94)), stateBytes(ten(0))]) as HeatMap
    expect(scaleOf([few], 'clipped')).toMatchObject({ limit: 0.5, note: 'clipped: 0 cells exceed .5' })
    expect(scaleOf([map], 'symmetric')).toEqual({ limit: 1, log: false, note: '' })
  })

  it('is symmetric, fixed at 0 and ±limit, and steeper near 0 when logarithmic', () => {
    for (const log of [true, false]) {
      const scale = { limit: 0.5, log }
      expect([-0.5, 0, 0.5].map((v) => tone(v, scale))).toEqual([-1, 0, 1])
      expect(tone(-0.2, scale)).toBeCloseTo(-tone(0.2, scale))
    }
    expect(tone(0.05, { limit: 0.5, log: true })).toBeGreaterThan(0.4)
  })
})

const stored = (more: Dict, values: number[]): Dict => ({
  ...head(more),
  effect64: to64(floatBytes(values)),
  state64: to64(stateBytes(values.map(() => 0))),
})
const ten = (x: number): number[] => Array.from({ length: 10 }, () => x)

function store(more: Dict[] = []): Store {
  const maps = [
    stored({ gap: 10 }, ten(8)),
    stored({ gap: 10, key: keyed({ direction: 'noising' }), direction: 'noising' }, ten(-6)),
    stored({ gap: 2, key: keyed({ metric: 'prob' }) }, ten(0.5)),
    ...more,
  ]
  return new Store(staticHost({ v: 1, spec: spec({ can_run: false }), maps }))
}

describe('comparison', () => {
  it('offers finished sweeps with the same cells, by what is other about them', () => {
    const s = store([
      stored({ key: keyed({ component: 'z' }), coords: { layer: [0, 1], pos: [0, 1, 2, 3, 9] } }, ten(1)),
      stored({ key: keyed({ component: 'q' }), final: false }, ten(1)),
      stored({ key: keyed({ component: 'attn_out' }), gap: 0 }, ten(1)),
    ])
    expect(candidates(s, s.onScreen).map((c) => c.label)).toEqual(['noise', 'prob'])
  })

  it('of both directions subtracts each from its own', () => {
    const s = store([
      stored(
        { gap: 2, key: keyed({ metric: 'prob', direction: 'noising' }), direction: 'noising' },
        ten(-1.5),
      ),
    ])
    s.shown.value = { ...s.shown.value, direction: 'both' }
    const [only, ...none] = candidates(s, s.onScreen)
    expect([only?.label, none.length]).toEqual(['prob', 0])
    change(s, { minus: only?.value ?? '' })
    expect(lens(s).maps.map((m) => m.effect[0])).toEqual(
      [0.8 - 0.25, -0.6 + 0.75].map((v) => expect.closeTo(v)),
    )
  })

  it('is in shares of each gap, and says which two numbers it is made of', () => {
    const s = store()
    change(s, { minus: candidates(s, s.onScreen)[0]?.value ?? '' })
    const seen = lens(s)
    expect(seen.maps[0]?.effect[3]).toBeCloseTo(1.4)
    expect(seen.scale.limit).toBe(2)
    expect(seen.minus).toBe('resid_pre, noise, logit diff')
    s.shown.value = { ...s.shown.value, direction: 'noising' }
    expect(lens(s).minus).toBe('')
  })

  it('has a value only where both have one', () => {
    const one = decodeMap(head(), BUFFERS()) as HeatMap
    const same = difference(one, one)
    expect([...same.effect].map((v) => (Number.isNaN(v) ? 'none' : v))).toEqual([
      0,
      0,
      0,
      0,
      0,
      0,
      0,
      0,
      'none',
      0,
    ])
    expect([...same.state]).toEqual([...one.state])
    const failed = decodeMap(head(), [BUFFERS()[0], stateBytes(ten(State.Failed))]) as HeatMap
    expect([...difference(one, failed).state]).toEqual(ten(State.Failed))
  })
})

it('zooms, copies, shows keys and takes the screen by keys of the map', () => {
  const stand = { at: null, rows: 2, cols: 2, direction: 'both' } as const
  const act = (key: string, ctrlKey = false) => keyAct({ key, ctrlKey, metaKey: false, altKey: false }, stand)
  expect(['+', '=', '-', '0'].map((k) => act(k))).toEqual([1, 1, -1, 0].map((by) => ({ do: 'zoom', by })))
  expect([act('c', true), act('?'), act('f')]).toEqual([{ do: 'copy' }, { do: 'keys' }, { do: 'full' }])
  expect([act('c'), act('+', true), act('f', true)]).toEqual([null, null, null])
})

describe('on the page', () => {
  let el: HTMLElement
  let model: Fake
  let cleanup: () => void
  const settle = () => new Promise((done) => setTimeout(done))
  const get = <T extends HTMLElement>(id: string): T => el.querySelector(`[data-testid="${id}"]`) as T
  const set = (id: string, value: string, event = 'change') => {
    get<HTMLSelectElement>(id).value = value
    get(id).dispatchEvent(new Event(event))
    return settle()
  }

  beforeEach(async () => {
    el = document.body.appendChild(document.createElement('div'))
    model = fakeModel({ spec: spec({ component: 'z', over: ['layer', 'head'], exports: ['svg', 'nc'] }) })
    cleanup = bundle.render({ model, el })
    model.post(heads(), [floatBytes([0, 1, -7, 3]), stateBytes([0, 0, 0, 0])])
    await settle()
  })

  afterEach(() => {
    cleanup()
    document.body.replaceChildren()
  })

  it('sorting moves rows and names, and keys choose the cell that is seen', async () => {
    await set('nbp-sort', 'strongest')
    expect([...el.querySelectorAll('.rownames > span')].map((s) => s.textContent)).toEqual(['layer 1', '0'])
    get('nbp-heatmap').dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowDown' }))
    expect(model.data.selection).toEqual({ layer: 1, head: 0 })
  })

  it('a filter counts the rows it leaves, and an odd one is refused beside it', async () => {
    await set('nbp-filter', 'layer 1', 'input')
    expect(get('nbp-rows').textContent).toBe('1 of 2')
    expect(get('nbp-heatmap').dataset.rows).toBe('1')
    await set('nbp-filter', 'nothing', 'input')
    expect(get('nbp-filter').getAttribute('aria-invalid')).toBe('true')
    expect(get('nbp-heatmap').dataset.rows).toBe('2')
    await set('nbp-filter', 'layer 7', 'input')
    expect(get('nbp-rows').textContent).toBe('0 of 2')
  })

  it('a drawing is made here, a netCDF in Python', async () => {
    const made = vi.spyOn(URL, 'createObjectURL')
    get('nbp-export').querySelector<HTMLElement>('[data-kind=svg]')?.click()
    expect(made).toHaveBeenCalledOnce()
    expect(model.sent.some((m) => m.type === 'export')).toBe(false)
    get('nbp-export').querySelector<HTMLElement>('[data-kind=nc]')?.click()
    expect(model.sent.at(-1)).toMatchObject({ type: 'export', kind: 'nc' })
  })

  it('the list of keys opens, and is gone when it is closed', async () => {
    get('nbp-keys').click()
    await settle()
    const list = get<HTMLDialogElement>('nbp-keys-list')
    expect(list.open).toBe(true)
    list.close()
    await settle()
    expect(get('nbp-keys-list')).toBeNull()
  })
})

it('a drawing is well-formed whatever the tokens hold', () => {
  const tokens = ['<s>', '</text>&"\'', '\n', '\u0007', '\ud800']
  const data = spec({ pairs: [pair({ clean_tokens: tokens, answer: ['<b>'] })], can_run: false })
  const s = new Store(staticHost({ v: 1, spec: data, maps: [stored({}, ten(4))] }))
  const drawn = new DOMParser().parseFromString(svgOf(s), 'image/svg+xml')
  expect(drawn.querySelector('parsererror')).toBeNull()
  expect(drawn.querySelector('title')?.textContent).toContain('restore <b>')
  const texts = [...drawn.querySelectorAll('text')].map((t) => t.textContent)
  expect(texts).toEqual(expect.arrayContaining(['↵', '.49']))
})
