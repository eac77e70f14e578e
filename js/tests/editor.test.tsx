import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { Draft } from '../src/drafting'
import bundle from '../src/index'
import type { Dict } from '../src/wire'
import { BUFFERS, type Fake, fakeModel, head, pair, spec } from './fixture'

let el: HTMLElement
let model: Fake
let cleanup: () => void

const settle = () => new Promise((done) => setTimeout(done))
const rest = () => new Promise((done) => setTimeout(done, 80))
const get = <T extends HTMLElement>(id: string): T => el.querySelector(`[data-testid="${id}"]`) as T
const text = (id: string): string => get(id).textContent ?? ''
const of = (type: string): Dict[] => model.sent.filter((m) => m.type === type)
const asks = (kind: string): Dict[] => of('ask').filter((m) => m.kind === kind)
const tokens = (side: string): HTMLElement[] => [
  ...get(`nbp-tokens-${side}`).querySelectorAll<HTMLElement>('[data-testid=nbp-token]'),
]

const draft = (more: Partial<Draft> = {}): Draft => ({
  clean: { tokens: ['<s>', 'When', ' Tom'], top: [[' he', 0.6]], answer: 0.25, wrong: 0.125 },
  corrupted: { tokens: ['<s>', 'When', ' Ann', ' and'], top: [[' she', 0.7]], answer: 0.1, wrong: null },
  has_bos: true,
  columns: [
    [0, 0],
    [1, 1],
    [2, 2],
    [null, 3],
  ],
  spans: [{ kind: 'alone', from: 3, to: 4, text: '1 token without a partner' }],
  errors: { lengths: { text: 'The prompts have different numbers of tokens.', seen: '', fix: '' } },
  title: 'The prompts have different lengths:',
  subtitle: 'clean has 3 tokens, corrupted has 4.',
  line: 'Nothing was run.',
  answers: { answer: [' Mary'], wrong: [' Anna'] },
  warnings: [],
  repairs: [
    {
      name: 'remove',
      before: 'Take',
      tokens: [' and'],
      after: 'out of the corrupted prompt',
      note: '3 tokens each; one differs.',
      action: 'Remove',
      edit: { values: { corrupted: 'When Ann' } },
    },
  ],
  ...more,
})

async function mount(first: Dict = {}): Promise<void> {
  model = fakeModel(first)
  cleanup = bundle.render({ model, el })
  model.post(head(), BUFFERS())
  await settle()
}

async function type(id: string, value: string): Promise<HTMLInputElement> {
  const input = get<HTMLInputElement>(id)
  input.value = value
  input.dispatchEvent(new Event('input', { bubbles: true }))
  await rest()
  return input
}

async function press(input: HTMLElement, key: string): Promise<void> {
  input.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }))
  await settle()
}

async function answer(more: Partial<Draft> = {}): Promise<void> {
  const asked = asks('draft').at(-1) as Dict
  model.post({ v: 1, type: 'answer', kind: 'draft', key: asked.key, id: asked.id, ...draft(more) })
  await settle()
}

const past = { undo: true, redo: false, at: 1, items: [{ at: 0, text: 'Before', failed: true }] }

beforeEach(() => {
  el = document.body.appendChild(document.createElement('div'))
})

afterEach(() => {
  vi.useRealTimers()
  cleanup?.()
  document.body.replaceChildren()
})

describe('while a prompt is typed', () => {
  it('Python is asked once the fingers rest, with all fields as they are', async () => {
    await mount()
    const input = get<HTMLInputElement>('nbp-clean')
    vi.useFakeTimers()
    for (const value of ['When T', 'When To', 'When Tom']) {
      input.value = value
      input.dispatchEvent(new Event('input', { bubbles: true }))
      vi.advanceTimersByTime(40)
    }
    expect(asks('draft')).toEqual([])
    vi.advanceTimersByTime(40)
    vi.useRealTimers()
    expect(asks('draft')).toHaveLength(1)
    expect(asks('draft')[0]).toMatchObject({
      pair: 0,
      clean: 'When Tom',
      corrupted: 'When Anna and John',
      answer: ' Mary',
      wrong: ' Anna',
    })
    expect(of('edit')).toEqual([])
  })

  it('the strips show its tokens with holes, marks and the new prediction', async () => {
    await mount()
    await type('nbp-clean', 'When Tom')
    await answer()
    expect(tokens('clean').map((t) => t.dataset.differs)).toEqual(['false', 'false', 'true'])
    expect(tokens('corrupted').map((t) => t.dataset.pos)).toEqual(['0', '1', '2', '3'])
    expect(get('nbp-tokens-clean').querySelectorAll('.hole')).toHaveLength(1)
    expect(el.querySelector('.predicts')?.textContent).toContain('he 60%')
    const shares = [...get('nbp-draft-clean').querySelectorAll<HTMLElement>('[data-share]')]
    expect(shares.map((s) => [s.dataset.of, s.dataset.share])).toEqual([
      ['answer', '0.25'],
      ['wrong', '0.125'],
    ])
    expect(text('nbp-draft')).toContain('Not run yet')
  })

  it('Escape takes it back without a word to Python', async () => {
    await mount()
    const input = await type('nbp-clean', 'When Tom')
    await answer()
    await press(input, 'Escape')
    expect(tokens('clean')).toHaveLength(5)
    expect(of('edit')).toEqual([])
  })

  it('problems and warnings stand with the field they concern', async () => {
    await mount()
    await type('nbp-answer', ' Mary gave')
    await answer({
      errors: { answer: { text: 'The answer is 2 tokens.', seen: '', fix: "' Mary'" } },
      warnings: [{ text: 'The clean prompt ends in a space.', about: 'clean' }],
    })
    expect(get('nbp-draft').querySelector('[data-field=answer]')?.textContent).toContain('2 tokens')
    expect(get('nbp-draft').querySelector('[data-field=clean]')?.textContent).toContain('ends in a space')
  })

  it('what is typed stays when another prompt has been run meanwhile', async () => {
    await mount()
    await type('nbp-corrupted', 'When Eve')
    model.change('spec', spec({ pairs: [pair({ clean: 'When Bob and John' })] }))
    await settle()
    expect(asks('draft').at(-1)).toMatchObject({ clean: 'When Bob and John', corrupted: 'When Eve' })
  })
})

describe('prompts that do not meet', () => {
  const fail = async () => {
    await mount()
    const input = await type('nbp-corrupted', 'When Ann and')
    await press(input, 'Enter')
    model.change('error', { title: 'the prompts have different numbers', lines: [], field: 'clean' })
    await settle()
    await answer()
  }

  it('are shown apart, with what the stretches are called and ways out', async () => {
    await fail()
    expect(text('nbp-error')).toContain('clean has 3 tokens, corrupted has 4.')
    expect(get('nbp-apart-clean').querySelectorAll('.hole')).toHaveLength(1)
    expect(get('nbp-draft').querySelector<HTMLElement>('.bracket')?.title).toBe('1 token without a partner')
    expect(get('nbp-corrupted').closest('.bad')).not.toBeNull()
    expect(get('nbp-clean').closest('.bad')).toBeNull()
    expect(get('nbp-heatmap').dataset.cols).toBe('5')
  })

  it('are repaired by one click, with what else was typed', async () => {
    await fail()
    get('nbp-ways').querySelector<HTMLElement>('[data-repair=remove]')?.click()
    await settle()
    expect(of('edit').at(-1)).toMatchObject({
      pair: 0,
      values: { clean: 'When Mary and John', corrupted: 'When Ann', answer: ' Mary' },
    })
    expect(get('nbp-error')).toBeNull()
  })

  it('come back as they were typed in a view that did not type them', async () => {
    await mount()
    const texts = { clean: 'When Tom', corrupted: 'When Ann and', answer: ' Mary', wrong: ' Anna' }
    model.change('error', { title: 'no', lines: [], field: 'clean', typed: { pair: 0, texts } })
    await settle()
    expect(get<HTMLInputElement>('nbp-clean').value).toBe('When Tom')
    expect(asks('draft').at(-1)).toMatchObject(texts)
  })
})

describe('an answer', () => {
  const open = async () => {
    await mount()
    const input = get<HTMLInputElement>('nbp-wrong')
    input.dispatchEvent(new FocusEvent('focus'))
    await settle()
    return input
  }

  it('is chosen by keys from the likeliest tokens of its run', async () => {
    const input = await open()
    const options = [...el.querySelectorAll<HTMLElement>('[role=option]')]
    expect(options.map((o) => o.dataset.token)).toEqual([' Anna', ' he'])
    expect(input.getAttribute('aria-expanded')).toBe('true')
    await press(input, 'ArrowDown')
    await press(input, 'ArrowDown')
    expect(input.getAttribute('aria-activedescendant')).toBe(options[1]?.id)
    await press(input, 'Enter')
    expect(of('edit')).toMatchObject([{ field: 'wrong', value: ' he' }])
    expect(el.querySelector('[role=listbox]')).toBeNull()
  })

  it('is chosen by the pointer, and typed as before', async () => {
    const input = await open()
    const option = el.querySelectorAll('[role=option]')[1]
    option?.dispatchEvent(new MouseEvent('mousedown', { bubbles: true, cancelable: true }))
    await settle()
    expect(of('edit')).toMatchObject([{ field: 'wrong', value: ' he' }])
    input.value = ' Tom'
    await press(input, 'Enter')
    expect(of('edit').at(-1)).toMatchObject({ value: ' Tom' })
  })
})

describe('menus', () => {
  const click = async (id: string, inside = '') => {
    const at = inside ? get(id).querySelector<HTMLElement>(inside) : get(id)
    at?.click()
    await settle()
  }

  it('choose a pair, add and remove one', async () => {
    await mount({ spec: spec({ pairs: [pair(), pair({ clean: 'Other' })], history: past }) })
    await click('nbp-pair', '[data-pair="1"]')
    expect(of('set').at(-1)).toMatchObject({ pair: 1 })
    await click('nbp-pair-add')
    await click('nbp-pair-remove')
    expect(of('pairs')).toMatchObject([
      { do: 'add', pair: 1 },
      { do: 'remove', pair: 1 },
    ])
  })

  it('undo, redo and return to what was there', async () => {
    await mount({ spec: spec({ history: past }) })
    expect(get<HTMLButtonElement>('nbp-redo').disabled).toBe(true)
    await click('nbp-undo')
    expect(text('nbp-history')).toContain('not run')
    await click('nbp-history', '[data-at="0"]')
    expect(of('pairs')).toMatchObject([{ do: 'undo' }, { do: 'return', at: 0 }])
  })

  it('Control+Z undoes on the map and is left to text fields', async () => {
    await mount({ spec: spec({ history: past }) })
    const undo = (shiftKey = false) =>
      new KeyboardEvent('keydown', { key: 'z', ctrlKey: true, shiftKey, bubbles: true, cancelable: true })
    get('nbp-clean').dispatchEvent(undo())
    get('nbp-component').dispatchEvent(undo())
    expect(of('pairs')).toEqual([])
    const event = undo()
    get('nbp-heatmap').dispatchEvent(event)
    get('nbp-heatmap').dispatchEvent(undo(true))
    expect(of('pairs')).toMatchObject([{ do: 'undo' }, { do: 'redo' }])
    expect(event.defaultPrevented).toBe(true)
  })

  it('templates are asked for when opened; those that cannot be built say why', async () => {
    await mount({ spec: spec({ history: past }) })
    expect(asks('templates')).toEqual([])
    const box = get<HTMLDetailsElement>('nbp-templates')
    box.open = true
    box.dispatchEvent(new Event('toggle'))
    const asked = asks('templates')[0] as Dict
    const templates = [
      { name: 'ioi', label: 'Indirect object', off: '', example: 'When' },
      { name: 'docstring', label: 'Docstring', off: 'Too few arguments.', example: '' },
    ]
    model.post({ v: 1, type: 'answer', kind: 'templates', key: 'templates', id: asked.id, templates, of: 2 })
    await settle()
    const off = box.querySelector<HTMLButtonElement>('[data-template=docstring]')
    expect(off?.disabled).toBe(true)
    expect(off?.title).toBe('Too few arguments.')
    await click('nbp-templates', '[data-template=ioi]')
    expect(of('template')).toMatchObject([{ name: 'ioi' }])
    expect(box.open).toBe(false)
  })
})

describe('at rest', () => {
  it('warnings about prompts and answers stand beside them, all others in the inspector', async () => {
    const warnings = ['About the prompts.', 'About the answer.', 'About the sweep.']
    await mount({ spec: spec({ warnings, concerns: ['corrupted', 'answer', null] }) })
    expect(text('nbp-draft')).toContain('About the prompts.')
    expect(el.querySelector('.say')?.textContent).toContain('About the answer.')
    expect(el.querySelector('.inspector')?.textContent).toContain('About the sweep.')
    expect(el.querySelector('.inspector')?.textContent).not.toContain('About the prompts.')
  })

  it('aligned prompts of unequal length show each token under its partner', async () => {
    const aligned: [number, number][] = [
      [0, 0],
      [1, 1],
      [3, 4],
      [4, 5],
    ]
    const corrupted_tokens = ['<s>', 'When', ' A', ' B', ' and', ' John']
    await mount({ spec: spec({ pairs: [pair({ aligned, corrupted_tokens, differs: [2] })] }) })
    expect(tokens('corrupted').map((t) => t.dataset.pos)).toEqual(['0', '1', '4', '5'])
    expect(get('nbp-tokens-corrupted').children[2]?.className).toContain('hole')
    expect(tokens('corrupted')[2]?.title).toContain(' A B')
  })

  it('a prompt editor of its own shows its draft, its answers and its ways out', async () => {
    await mount({ spec: spec({ view: 'prompts', draft: draft() as unknown as Dict }) })
    expect(get('nbp-answer')).not.toBeNull()
    expect(get('nbp-ways')).not.toBeNull()
    expect(get('nbp-heatmap')).toBeNull()
    expect(tokens('corrupted')).toHaveLength(4)
  })

  it('nothing is typed, undone or started without a kernel', async () => {
    const sent = vi.spyOn(console, 'error')
    await mount({ spec: spec({ can_run: false }) })
    expect(get<HTMLInputElement>('nbp-clean').readOnly).toBe(true)
    expect(get('nbp-undo')).toBeNull()
    expect(get('nbp-templates')).toBeNull()
    expect(sent).not.toHaveBeenCalled()
  })
})
