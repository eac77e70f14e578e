import { afterEach, beforeEach, expect, it } from 'vitest'
import { mountStatic } from '../src/index'
import { csvOf } from '../src/save'
import { type Dict, decodeMap, type HeatMap, type StaticDocument } from '../src/wire'
import { ATTENTION, BUFFERS, head, keyed, spec, to64, weights } from './fixture'

let el: HTMLElement
let cleanup: () => void

const settle = () => new Promise((done) => setTimeout(done))
const get = <T extends HTMLElement>(id: string): T => el.querySelector(`[data-testid="${id}"]`) as T

const stored = (more: Dict): Dict => {
  const [effect64, state64] = BUFFERS().map(to64)
  return { ...head(more), gen: undefined, effect64, state64 }
}

const page = (): StaticDocument =>
  JSON.parse(
    JSON.stringify({
      v: 1,
      spec: spec({ exports: ['png', 'csv'] }),
      maps: [
        stored({}),
        stored({ key: keyed({ direction: 'noising' }), direction: 'noising' }),
        stored({ key: keyed({ component: 'attn_out' }) }),
      ],
      attention: [{ ...ATTENTION, v: undefined, data64: to64(weights().buffer as ArrayBuffer) }],
      selection: { layer: 1, pos: 2 },
    }),
  )

beforeEach(() => {
  el = document.body.appendChild(document.createElement('div'))
})

afterEach(() => {
  cleanup()
  document.body.replaceChildren()
})

it('draws everything without a kernel', async () => {
  cleanup = mountStatic(el, page())
  await settle()
  expect(get('nbp-heatmap').dataset).toMatchObject({ rows: '2', cols: '5' })
  expect(get('nbp-readout').textContent).toContain('+0.96 of the gap restored')
  expect(get('nbp-attention').querySelectorAll('canvas').length).toBeGreaterThan(0)
})

it('turns direction and component over what is there', async () => {
  cleanup = mountStatic(el, page())
  await settle()
  get('nbp-direction').querySelector<HTMLInputElement>('[value=both]')?.click()
  await settle()
  expect(el.querySelectorAll('.one')).toHaveLength(2)
  const select = get<HTMLSelectElement>('nbp-component')
  expect([...select.options].filter((o) => !o.disabled).map((o) => o.value)).toEqual(
    ['resid_pre', 'resid_mid'].slice(0, 1),
  )
  get('nbp-direction').querySelector<HTMLInputElement>('[value=denoising]')?.click()
  await settle()
  select.value = 'attn_out'
  select.dispatchEvent(new Event('change'))
  await settle()
  expect(el.textContent).toContain('Which attention outputs are')
})

it('turns off what it cannot serve, with a reason', async () => {
  cleanup = mountStatic(el, page())
  await settle()
  const z = [...el.querySelectorAll<HTMLButtonElement>('.tab')].find((t) => t.textContent === 'z')
  expect(z?.disabled).toBe(true)
  expect(z?.title).toMatch(/notebook/)
  expect(get<HTMLButtonElement>('nbp-run').disabled).toBe(true)
  expect(get<HTMLButtonElement>('nbp-run').title).toMatch(/kernel/)
  expect(get<HTMLInputElement>('nbp-clean').readOnly).toBe(true)
  expect([...get<HTMLSelectElement>('nbp-metric').options].find((o) => o.value === 'prob')?.disabled).toBe(
    true,
  )
})

it('finds its data in the page when none is handed in', async () => {
  const script = document.body.appendChild(document.createElement('script'))
  script.type = 'application/json'
  script.id = 'nbp-data'
  script.textContent = JSON.stringify(page())
  cleanup = mountStatic(el)
  await settle()
  expect(get('nbp-heatmap').dataset.rows).toBe('2')
})

it('writes cells as CSV with names quoted', () => {
  const map = decodeMap(head({ coords: { layer: [0, 1], pos: ['a"b', 1, 2, 3, 4] } }), BUFFERS()) as HeatMap
  const lines = csvOf([map]).split('\n')
  cleanup = () => {}
  expect(lines[0]).toBe('direction,layer,pos,effect,share,state')
  expect(lines[1]).toBe('denoising,0,"a""b",0,0,1')
  expect(lines[9]).toBe('denoising,1,3,,,4')
  expect(lines).toHaveLength(12)
})
