import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import bundle from '../src/index'
import type { Dict } from '../src/wire'
import {
  BUFFERS,
  EFFECT,
  type Fake,
  fakeModel,
  floatBytes,
  head,
  STATE,
  spec,
  stateBytes,
  to64,
} from './fixture'

let el: HTMLElement
let model: Fake
let cleanup: () => void

const settle = () => new Promise((done) => setTimeout(done))
const get = <T extends HTMLElement>(id: string): T => el.querySelector(`[data-testid="${id}"]`) as T
const turn = async (direction: string) => {
  get('nbp-direction').querySelector<HTMLInputElement>(`[value=${direction}]`)?.click()
  await settle()
}
const cut = () => {
  model.send = () => {
    throw new Error('Cannot send')
  }
}

async function mount(first: Dict = {}): Promise<void> {
  model = fakeModel(first)
  cleanup = bundle.render({ model, el })
  model.post(head(), BUFFERS())
  await settle()
}

beforeEach(() => {
  el = document.body.appendChild(document.createElement('div'))
})

afterEach(() => {
  cleanup()
  document.body.replaceChildren()
})

it('says on the next action that the kernel is gone, and keeps the map', async () => {
  await mount()
  cut()
  await turn('noising')
  expect(get('nbp-status').textContent).toMatch(/^The kernel is gone/)
  expect(get('nbp-direction').querySelector<HTMLInputElement>('[value=denoising]')?.checked).toBe(true)
  expect(get('nbp-heatmap').dataset).toMatchObject({ rows: '2', cols: '5' })
  expect(get<HTMLButtonElement>('nbp-run').disabled).toBe(true)
})

it('says so at once where the host does, and takes it back when the kernel answers again', async () => {
  await mount({ status: { state: 'running', gen: 1, done: 1, total: 9 } })
  const send = model.send
  cut()
  model.fire('comm_live_update')
  await settle()
  expect(get('nbp-status').textContent).toMatch(/^The kernel is gone/)
  expect(get('nbp-cancel')).toBeNull()
  model.send = send
  model.fire('comm_live_update')
  await settle()
  expect(get('nbp-status').textContent).not.toMatch(/gone/)
  expect(get<HTMLButtonElement>('nbp-run').disabled).toBe(false)
})

it('shows the maps of its saved state before Python says anything', async () => {
  model = fakeModel({
    saved: [{ ...head(), effect64: to64(floatBytes(EFFECT)), state64: to64(stateBytes(STATE)) }],
    spec: spec(),
  })
  cleanup = bundle.render({ model, el })
  await settle()
  expect(get('nbp-heatmap').dataset).toMatchObject({ rows: '2', cols: '5' })
})

it('says when Python does not answer, until it does', async () => {
  vi.useFakeTimers()
  try {
    model = fakeModel()
    cleanup = bundle.render({ model, el })
    await vi.advanceTimersByTimeAsync(3000)
    expect(get('nbp-status').textContent).not.toMatch(/does not answer/)
    await vi.advanceTimersByTimeAsync(2000)
    expect(get('nbp-status').textContent).toMatch(/^Python does not answer/)
    model.post(head(), BUFFERS())
    await vi.advanceTimersByTimeAsync(1)
    expect(get('nbp-status').textContent).not.toMatch(/does not answer/)
    cleanup()
    expect(vi.getTimerCount()).toBe(0)
  } finally {
    vi.useRealTimers()
  }
})

it("shows a callback's error with its traceback on request", async () => {
  await mount()
  model.change('error', {
    title: 'A callback',
    lines: ['in: x.py'],
    traceback: '<b>Traceback',
    callback: true,
  })
  await settle()
  const box = get('nbp-error')
  expect(box.querySelector('details')?.open).toBe(false)
  expect(box.querySelector('details pre')?.textContent).toBe('<b>Traceback')
  const close = [...box.querySelectorAll('button')].find((b) => b.textContent === 'Close')
  close?.click()
  await settle()
  expect(get('nbp-error')).toBeNull()
})
