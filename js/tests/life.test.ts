import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import bundle from '../src/index'
import type { Dict } from '../src/wire'
import {
  ATTENTION,
  BUFFERS,
  type Fake,
  fakeModel,
  floatBytes,
  head,
  heads,
  spec,
  stateBytes,
  weights,
} from './fixture'

let el: HTMLElement
let model: Fake
let cleanup: () => void

const settle = () => new Promise((done) => setTimeout(done))
const get = <T extends HTMLElement>(id: string): T => el.querySelector(`[data-testid="${id}"]`) as T
const of = (type: string): Dict[] => model.sent.filter((m) => m.type === type)

async function mount(first: Dict = {}, maps = true): Promise<void> {
  model = fakeModel(first)
  cleanup = bundle.render({ model, el })
  if (maps) model.post(head(), BUFFERS())
  await settle()
}

beforeEach(() => {
  el = document.body.appendChild(document.createElement('div'))
})

afterEach(() => {
  cleanup?.()
  document.body.replaceChildren()
})

describe('attention', () => {
  it('is asked for once and shown for the chosen head in all modes', async () => {
    await mount({ spec: spec({ component: 'z', over: ['layer', 'head'] }) }, false)
    model.post(heads(), [floatBytes([0, 0, 4, 1]), stateBytes([0, 0, 0, 0])])
    await settle()
    expect(get('nbp-attention').dataset).toMatchObject({ layer: '1', head: '0', mode: 'clean' })
    expect(of('attention').filter((m) => m.layer === 1)).toHaveLength(1)
    model.post({ ...ATTENTION, layer: 1 }, [weights().buffer as ArrayBuffer])
    await settle()
    expect(get('nbp-attention').querySelectorAll('figure')).toHaveLength(4)
    get('nbp-attention-mode').querySelector<HTMLInputElement>('[value=difference]')?.click()
    await settle()
    expect(get('nbp-attention').dataset.mode).toBe('difference')
    expect(get('nbp-attention-mode').querySelector<HTMLInputElement>('[value=patched]')?.disabled).toBe(false)
  })

  it('follows the selected head', async () => {
    await mount({ spec: spec({ component: 'z', over: ['layer', 'head'] }) }, false)
    model.post(heads(), [floatBytes([0, 0, 4, 1]), stateBytes([0, 0, 0, 0])])
    model.change('selection', { layer: 0, head: 1 })
    await settle()
    expect(get('nbp-attention').dataset).toMatchObject({ layer: '0', head: '1' })
  })
})

it('leaves no listener, observer or timer behind', async () => {
  const held: string[] = []
  for (const target of [document, window, document.body, document.documentElement] as EventTarget[]) {
    const [add, remove] = [target.addEventListener.bind(target), target.removeEventListener.bind(target)]
    vi.spyOn(target, 'addEventListener').mockImplementation((type, ...rest) => {
      held.push(type)
      add(type, ...rest)
    })
    vi.spyOn(target, 'removeEventListener').mockImplementation((type, ...rest) => {
      held.splice(held.indexOf(type), 1)
      remove(type, ...rest)
    })
  }
  const [watching, stopped] = [
    vi.spyOn(MutationObserver.prototype, 'observe'),
    vi.spyOn(MutationObserver.prototype, 'disconnect'),
  ]
  const [sizing, sized] = [
    vi.spyOn(ResizeObserver.prototype, 'observe'),
    vi.spyOn(ResizeObserver.prototype, 'disconnect'),
  ]
  const query = { matches: true, addEventListener: vi.fn(), removeEventListener: vi.fn() }
  vi.spyOn(window, 'matchMedia').mockReturnValue(query as unknown as MediaQueryList)
  const timers = vi.spyOn(globalThis, 'setInterval')
  await mount()
  expect(model.count()).toBe(7)
  expect(get('nbp-root').dataset.theme).toBe('dark')
  cleanup()
  await settle()
  expect(model.count()).toBe(0)
  expect(held).toEqual([])
  expect(query.addEventListener.mock.calls).toEqual(query.removeEventListener.mock.calls)
  expect(query.addEventListener).toHaveBeenCalledTimes(1)
  expect(watching).toHaveBeenCalled()
  expect(stopped).toHaveBeenCalledTimes(1)
  expect(sizing).toHaveBeenCalledTimes(1)
  expect(sized).toHaveBeenCalledTimes(1)
  expect(timers).not.toHaveBeenCalled()
  expect(el.childNodes).toHaveLength(0)
  model.post(head(), BUFFERS())
  await settle()
  expect(el.childNodes).toHaveLength(0)
})

it('keeps two views of one page apart', async () => {
  await mount()
  const second = document.body.appendChild(document.createElement('div'))
  const stop = bundle.render({ model: fakeModel(), el: second })
  const name = (root: HTMLElement) => root.querySelector<HTMLInputElement>('[type=radio]')?.name
  expect(name(el)).not.toBe(name(second))
  stop()
  expect(get('nbp-root')).not.toBeNull()
})

it('keeps a selection of other axes for its own map', async () => {
  await mount({ selection: { layer: 1, head: 0 } })
  expect(get('nbp-readout').textContent).toMatch(/^Point at a cell/)
  expect(el.querySelector('.inspector')?.textContent).toContain('Strongest: Layer 1, position 2')
  expect(model.data.selection).toEqual({ layer: 1, head: 0 })
})

it.each([
  ['--jp-layout-color0', '#111111', 'dark'],
  ['--jp-layout-color0', 'white', 'light'],
  ['--vscode-editor-background', 'rgb(30, 30, 30)', 'dark'],
])('follows the host: %s %s is %s', async (name, value, theme) => {
  el.style.setProperty(name, value)
  await mount()
  expect(get('nbp-root').dataset.theme).toBe(theme)
})

it('follows a host that changes its theme later', async () => {
  await mount()
  document.body.dataset.jpThemeLight = 'false'
  await vi.waitFor(() => expect(get('nbp-root').dataset.theme).toBe('dark'))
  delete document.body.dataset.jpThemeLight
})

describe('style', () => {
  const rules = (root: Document | ShadowRoot) => root.adoptedStyleSheets.map((sheet) => sheet.cssRules.length)

  it('is there once for all widgets of a page, in the same order, and goes with the last of them', async () => {
    await mount()
    const once = [...document.adoptedStyleSheets]
    expect(once).toHaveLength(5)
    expect(once.every((sheet) => sheet.cssRules.length > 0)).toBe(true)
    const other = document.body.appendChild(document.createElement('div'))
    const off = bundle.render({ model: fakeModel(), el: other })
    await settle()
    expect(document.adoptedStyleSheets).toEqual(once)
    expect(document.querySelectorAll('style')).toHaveLength(0)
    cleanup()
    cleanup = () => {}
    expect(document.adoptedStyleSheets).toEqual(once)
    off()
    expect(document.adoptedStyleSheets).toEqual([])
  })

  it("is put into a shadow root for a widget in one, and leaves others' sheets", async () => {
    const root = el.attachShadow({ mode: 'open' })
    const theirs = new CSSStyleSheet()
    root.adoptedStyleSheets = [theirs]
    const inside = root.appendChild(document.createElement('div'))
    const off = bundle.render({ model: fakeModel(), el: inside })
    await settle()
    expect(root.adoptedStyleSheets[0]).toBe(theirs)
    expect(rules(root)).toHaveLength(6)
    expect(rules(document)).toEqual([])
    off()
    expect(root.adoptedStyleSheets).toEqual([theirs])
  })

  it('follows a widget that was drawn before it was on the page', async () => {
    const apart = document.createElement('div')
    const told: (() => void)[] = []
    vi.stubGlobal(
      'ResizeObserver',
      class {
        constructor(tell: () => void) {
          told.push(tell)
        }
        observe() {}
        disconnect() {}
      },
    )
    const off = bundle.render({ model: fakeModel(), el: apart })
    await settle()
    expect(rules(document)).toEqual([])
    el.append(apart)
    for (const tell of told) tell()
    vi.unstubAllGlobals()
    await settle()
    expect(rules(document)).toHaveLength(5)
    off()
    expect(rules(document)).toEqual([])
  })
})

describe('drawing', () => {
  it('is not waited for by keys: each begins where the one before it has led', async () => {
    const frames: FrameRequestCallback[] = []
    vi.spyOn(window, 'requestAnimationFrame').mockImplementation((run) => frames.push(run))
    await mount({ spec: spec({ component: 'z', over: ['layer', 'head'] }) }, false)
    model.post(heads(), [floatBytes([0, 0, 4, 1]), stateBytes([0, 0, 0, 0])])
    while (frames.length) {
      for (const run of frames.splice(0)) run(0)
      await settle()
    }
    for (const key of ['Home', 'ArrowDown', 'ArrowRight']) {
      get('nbp-heatmap').dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }))
      await settle()
    }
    expect(model.data.selection).toEqual({ layer: 1, head: 1 })
  })

  it('happens at once, and once more in the next frame however much comes until then', async () => {
    const frames: FrameRequestCallback[] = []
    vi.spyOn(window, 'requestAnimationFrame').mockImplementation((run) => frames.push(run))
    const frame = async () => {
      for (const run of frames.splice(0)) run(0)
      await settle()
    }
    await mount({ spec: spec({ component: 'z', over: ['layer', 'head'] }) }, false)
    while (frames.length) await frame()
    const seen: (string | null)[] = []
    const watch = new MutationObserver(() => seen.push(get('nbp-status').textContent))
    watch.observe(el, { subtree: true, characterData: true, childList: true })
    for (const text of ['one', 'two', 'three', 'four']) {
      model.change('status', { state: 'running', text, done: 1, total: 4, gen: 1 })
      await settle()
    }
    expect(seen).toEqual(['one'])
    await frame()
    expect(seen).toEqual(['one', 'four'])
    await frame()
    model.change('status', { state: 'running', text: 'five', done: 2, total: 4, gen: 1 })
    await settle()
    expect(seen).toEqual(['one', 'four', 'five'])
    watch.disconnect()
  })
})
