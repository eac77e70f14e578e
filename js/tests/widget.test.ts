import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import bundle from '../src/index'
import type { Dict } from '../src/wire'
import { BUFFERS, type Fake, fakeModel, head, keyed, pair, spec } from './fixture'

let el: HTMLElement
let model: Fake
let cleanup: () => void

const settle = () => new Promise((done) => setTimeout(done))
const get = <T extends HTMLElement>(id: string): T => el.querySelector(`[data-testid="${id}"]`) as T
const text = (id: string): string => get(id).textContent ?? ''
const of = (type: string): Dict[] => model.sent.filter((m) => m.type === type)

async function mount(first: Dict = {}, maps = true): Promise<void> {
  model = fakeModel(first)
  cleanup = bundle.render({ model, el })
  if (maps) model.post(head(), BUFFERS())
  await settle()
}

async function press(key: string): Promise<KeyboardEvent> {
  const event = new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true })
  get('nbp-heatmap').dispatchEvent(event)
  await settle()
  return event
}

beforeEach(() => {
  el = document.body.appendChild(document.createElement('div'))
})

afterEach(() => {
  cleanup?.()
  document.body.replaceChildren()
})

describe('a new view', () => {
  it('asks for all data and names what tests and people look for', async () => {
    await mount()
    expect(model.sent[0]).toMatchObject({ v: 1, type: 'need' })
    const ids =
      'nbp-root nbp-clean nbp-corrupted nbp-tokens-clean nbp-tokens-corrupted nbp-answer nbp-wrong nbp-direction nbp-component nbp-metric nbp-corruption nbp-run nbp-progress nbp-status nbp-heatmap nbp-readout nbp-attention nbp-attention-mode nbp-logits nbp-export nbp-card'
    expect(ids.split(' ').filter((id) => !get(id))).toEqual([])
  })

  it('draws the map that arrives and counts its cells', async () => {
    await mount({}, false)
    expect(get('nbp-heatmap').dataset.rows).toBe('0')
    model.post(head(), BUFFERS())
    await settle()
    expect(get('nbp-heatmap').dataset).toMatchObject({ rows: '2', cols: '5' })
    expect(get('nbp-heatmap').querySelectorAll('canvas')).toHaveLength(1)
    expect(text('nbp-status')).toBe(
      '4 cells run exactly · 3 exactly 0 by construction · 1 estimated · 1 not run · 1 failed',
    )
  })

  it('takes base64 instead of buffers', async () => {
    await mount({}, false)
    const data64 = BUFFERS().map((b) => btoa(String.fromCharCode(...new Uint8Array(b))))
    model.post(head({ data64 }))
    await settle()
    expect(get('nbp-heatmap').dataset.cols).toBe('5')
  })

  it('ignores maps of a run that was overtaken', async () => {
    await mount()
    model.change('status', { state: 'running', gen: 5, done: 0, total: 9, text: '' })
    model.post(head({ gen: 4, gap: 1 }), BUFFERS())
    await settle()
    expect(el.textContent).toContain('share of the gap (8.10 logits)')
    model.post(head({ gen: 5, gap: 4 }), BUFFERS())
    await settle()
    expect(el.textContent).toContain('share of the gap (4.00 logits)')
  })

  it('says so when Python speaks a newer version, and stays up', async () => {
    await mount({ schema_version: 2 })
    expect(text('nbp-status')).toMatch(/version 2/)
    model.post({ v: 3, type: 'map' })
    model.post({ v: 1, type: 'something new' })
    await settle()
    expect(text('nbp-status')).toMatch(/version 3/)
    expect(get('nbp-heatmap').dataset.rows).toBe('2')
  })
})

describe('the keyboard on the map', () => {
  it('moves the selection, tells Python and keeps the key to itself', async () => {
    await mount()
    const outside = vi.fn()
    document.body.addEventListener('keydown', outside)
    const event = await press('ArrowDown')
    await press('ArrowRight')
    await press('End')
    expect(model.data.selection).toEqual({ layer: 0, pos: 4 })
    expect(event.defaultPrevented).toBe(true)
    expect(outside).not.toHaveBeenCalled()
    // "a" would insert a cell in JupyterLab; what the host does with a modifier stays the host's.
    await press('a')
    expect(outside).not.toHaveBeenCalled()
    get('nbp-heatmap').dispatchEvent(new KeyboardEvent('keydown', { key: 's', ctrlKey: true, bubbles: true }))
    expect(outside).toHaveBeenCalledTimes(1)
    document.body.removeEventListener('keydown', outside)
  })

  it('reads the cell out', async () => {
    await mount({ selection: { layer: 1, pos: 2 } })
    expect(text('nbp-readout')).toBe('Layer 1, position 2 ‘Mary’: +0.96 of the gap restored, +7.78 logits.')
    expect(get('nbp-heatmap').querySelector('[role=gridcell]')?.textContent).toBe(text('nbp-readout'))
  })

  it('pins with Enter, clears with Escape', async () => {
    await mount({ selection: { layer: 1, pos: 2 } })
    await press('Enter')
    expect(el.querySelector('.pinned')).not.toBeNull()
    await press('Escape')
    expect(model.data.selection).toBeNull()
    expect(el.querySelector('.pinned')).toBeNull()
  })

  it('turns the direction with d', async () => {
    await mount()
    await press('d')
    expect(of('set')).toMatchObject([{ direction: 'noising' }])
    expect(el.textContent).toContain('necessary to keep')
  })
})

describe('controls', () => {
  it('send what changed, with the axes the component has', async () => {
    await mount()
    const select = get<HTMLSelectElement>('nbp-component')
    select.value = 'z'
    select.dispatchEvent(new Event('change'))
    await settle()
    expect(of('set')).toMatchObject([{ component: 'z', over: ['layer', 'head'] }])
    expect(el.textContent).toContain('Which attention heads are')
  })

  it('show at once what is already here and keep it while Python catches up', async () => {
    await mount()
    model.post(head({ key: keyed({ direction: 'noising' }), direction: 'noising' }), BUFFERS())
    const noise = get('nbp-direction').querySelector<HTMLInputElement>('[value=noising]') as HTMLInputElement
    noise.click()
    await settle()
    model.change('spec', spec())
    await settle()
    expect(el.querySelector('.one')?.getAttribute('data-direction')).toBe('noising')
    model.change('spec', spec({ direction: 'noising' }))
    model.change('spec', spec({ direction: 'both' }))
    await settle()
    expect(el.querySelectorAll('.one')).toHaveLength(2)
  })

  it('are off with a reason where the model cannot do it', async () => {
    await mount()
    const tab = [...el.querySelectorAll<HTMLButtonElement>('.tab')].find((t) => t.textContent === 'mlp_out')
    expect(tab?.disabled).toBe(true)
    expect(tab?.title).toBe('no MLP here')
    expect(get<HTMLSelectElement>('nbp-corruption').value).toBe('counterfactual')
  })

  it('run, and cancel in the same place while running', async () => {
    await mount()
    get('nbp-run').click()
    model.change('status', { state: 'running', done: 3, total: 12, text: 'Running: 3 of 12', gen: 1 })
    await settle()
    expect(get('nbp-run')).toBeNull()
    expect(get('nbp-progress').getAttribute('aria-valuenow')).toBe('3')
    expect(text('nbp-status')).toBe('Running: 3 of 12')
    get('nbp-cancel').click()
    expect(model.sent.slice(-2).map((m) => m.type)).toContain('cancel')
    await settle()
    expect(get('nbp-status').textContent).toMatch(/^Cancelling/)
    expect(get('nbp-status').dataset.state).toBe('running')
    expect(of('run')).toHaveLength(1)
  })

  it('export through Python', async () => {
    await mount()
    get('nbp-export').querySelector<HTMLElement>('[data-kind=csv]')?.click()
    expect(of('export')).toMatchObject([{ kind: 'csv' }])
  })
})

describe('prompts', () => {
  const commit = async (id: string, value: string) => {
    const input = get<HTMLInputElement>(id)
    input.value = value
    input.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', bubbles: true }))
    await settle()
  }

  it('are sent when committed, once for each change', async () => {
    await mount()
    await commit('nbp-clean', 'When Ann and John')
    await commit('nbp-wrong', ' Tom')
    for (const id of ['nbp-clean', 'nbp-wrong', 'nbp-corrupted'])
      get(id).dispatchEvent(new FocusEvent('blur'))
    expect(of('edit')).toMatchObject([
      { field: 'clean', pair: 0, value: 'When Ann and John' },
      { field: 'wrong', pair: 0, value: ' Tom' },
    ])
  })

  it('show an error where it is, keep what was typed and go back on request', async () => {
    await mount()
    await commit('nbp-clean', 'too short')
    model.change('error', {
      title: 'Lengths differ',
      lines: ['try  the same length'],
      field: 'clean',
    })
    await settle()
    expect(text('nbp-error')).toContain('Lengths differ')
    expect(get<HTMLInputElement>('nbp-clean').closest('.bad')).not.toBeNull()
    expect(get<HTMLInputElement>('nbp-clean').value).toBe('too short')
    get('nbp-error').querySelector('button')?.click()
    await settle()
    expect(get('nbp-error')).toBeNull()
    expect(get<HTMLInputElement>('nbp-clean').value).toBe('When Mary and John')
    expect(of('edit').map((m) => m.value)).toEqual(['too short'])
    expect(of('pairs')).toMatchObject([{ do: 'back' }])
  })

  it('take back what failed when the first text is typed again, or on Escape', async () => {
    await mount()
    const giveUp = () =>
      get('nbp-clean').dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape', bubbles: true }))
    giveUp()
    expect(of('edit')).toEqual([])
    await commit('nbp-clean', 'too short')
    await commit('nbp-clean', 'When Mary and John')
    await commit('nbp-clean', 'too long')
    giveUp()
    const sent = of('edit').map((m) => m.value)
    expect(sent).toEqual(['too short', 'When Mary and John', 'too long', 'When Mary and John'])
  })

  it('throw away the maps of other prompts', async () => {
    await mount()
    model.change('spec', spec({ pairs: [pair({ clean: 'Now Mary and John' })] }))
    await settle()
    expect(get('nbp-heatmap').dataset.rows).toBe('0')
  })

  it('mark tokens that differ, by position', async () => {
    await mount()
    const tokens = [...get('nbp-tokens-clean').querySelectorAll<HTMLElement>('[data-testid=nbp-token]')]
    expect(tokens.map((t) => t.dataset.differs)).toEqual(['false', 'false', 'true', 'false', 'false'])
    expect(tokens[2]?.dataset.pos).toBe('2')
  })
})

it('sets token text as text only', async () => {
  const evil = '<img src=x onerror=alert(1)></script>'
  const bad = pair({
    clean_tokens: ['<s>', evil, 'b', 'c', 'd'],
    answer: [evil],
    clean: evil,
    clean_top: [[evil, 0.9]],
  })
  await mount({ spec: spec({ pairs: [bad], warnings: [evil], card: evil }), selection: { layer: 0, pos: 1 } })
  expect(el.querySelectorAll('img, script')).toHaveLength(0)
  expect(text('nbp-tokens-clean')).toContain(evil)
  expect(text('nbp-readout')).toContain(evil)
})

describe('the source', () => {
  const corruptions = [
    { name: 'counterfactual', label: 'other prompt', off: '', words: '' },
    { name: 'zero', label: 'zero', off: '', words: '' },
    { name: 'mean', label: 'mean', off: 'Needs several pairs.', words: '' },
  ]

  it('turns to noising with an ablation, which has no other direction', async () => {
    await mount({ spec: spec({ corruptions }) })
    const source = get<HTMLSelectElement>('nbp-corruption')
    expect([...source.options].map((o) => o.disabled)).toEqual([false, false, true])
    source.value = 'zero'
    source.dispatchEvent(new Event('change', { bubbles: true }))
    await settle()
    expect(of('set')).toMatchObject([{ corruption: 'zero', direction: 'noising' }])
    const radios = [...get('nbp-direction').querySelectorAll('input')]
    expect(radios.map((r) => r.disabled)).toEqual([true, false, true])
    expect(radios.map((r) => r.checked)).toEqual([false, true, false])
  })
})
