import { describe, expect, it } from 'vitest'
import { css, diverging } from '../src/colour'
import { drawMap, isPooled, type Pen, raster, type Scene } from '../src/draw'
import { rowsOf } from '../src/geometry'
import { layOut } from '../src/table'
import { decodeMap, type HeatMap, State } from '../src/wire'
import { BUFFERS, floatBytes, head, stateBytes } from './fixture'

/** A pen that writes down what it is told, cell by cell. */
function recorder() {
  const log: string[] = []
  const methods = [
    'fillRect',
    'fillText',
    'arc',
    'roundRect',
    'rect',
    'stroke',
    'fill',
    'strokeRect',
    'clip',
    'moveTo',
    'lineTo',
    'clearRect',
    'beginPath',
    'save',
    'restore',
  ]
  const pen: Record<string, unknown> = {}
  for (const name of methods)
    pen[name] = (...args: unknown[]) => {
      const style = /^fill/.test(name) ? pen.fillStyle : /stroke/i.test(name) ? pen.strokeStyle : ''
      log.push(
        `${name} ${args.map((a) => (typeof a === 'number' ? Math.round(a) : a)).join(' ')} ${String(style)}`,
      )
    }
  return { pen: pen as unknown as Pen, log }
}

function scene(map: HeatMap, more: Partial<Scene> = {}): Scene {
  const table = layOut(map, null)
  return {
    table,
    rows: rowsOf(table, false),
    grid: { col: 40 },
    theme: 'light',
    scale: { limit: 1, log: false },
    numbers: true,
    font: 'x',
    background: '#fff',
    ...more,
  }
}

/** The log of one cell with a value and a state. */
function cell(value: number, state: number): string[] {
  const map = decodeMap(head({ shape: [1, 1], coords: { layer: [0], pos: [0] } }), [
    floatBytes([value]),
    stateBytes([state]),
  ]) as HeatMap
  const { pen, log } = recorder()
  drawMap(pen, scene(map))
  return log.filter((l) => !l.startsWith('clearRect'))
}

const kinds = (log: string[]): string => log.map((l) => l.split(' ')[0]).join(',')

describe('the four kinds of nothing', () => {
  const zero = cell(0, State.Measured)
  const exact = cell(0, State.Exact)
  const estimate = cell(0, State.Estimate)
  const failed = cell(Number.NaN, State.Failed)
  const absent = cell(Number.NaN, State.NoPosition)
  const waiting = cell(Number.NaN, State.NotRun)

  it('all look different', () => {
    expect(new Set([zero, exact, estimate, failed, absent, waiting].map((l) => l.join('\n'))).size).toBe(6)
  })

  it('measured zero is a neutral fill', () => {
    expect(zero.join()).toContain(`fill  ${css(diverging(0, 'light'))}`)
    expect(kinds(zero)).not.toMatch(/arc|clip|fillText/)
  })

  it('exactly zero is a dot and nothing else', () => {
    expect(kinds(exact)).toBe('beginPath,arc,fill')
  })

  it('an estimate rises, a missing value falls and has an outline', () => {
    const slope = (log: string[]): number => {
      const at = log.findIndex((l) => l.startsWith('moveTo'))
      const y = (l: string | undefined): number => Number(l?.split(' ')[2])
      return Math.sign(y(log[at + 1]) - y(log[at]))
    }
    expect(slope(estimate)).toBe(-1)
    expect(slope(failed)).toBe(1)
    expect(kinds(failed)).toMatch(/strokeRect$/)
    expect(kinds(estimate)).not.toContain('strokeRect')
  })

  it('not run is an empty frame', () => {
    expect(kinds(waiting)).toBe('strokeRect')
  })

  it('a value that is not a number is never filled, whatever its state says', () => {
    expect(kinds(cell(Number.NaN, State.Measured))).toContain('clip')
  })
})

it('colours by the share of the gap and prints it', () => {
  const log = cell(3.24, State.Measured).join('\n')
  expect(log).toContain(css(diverging(0.4, 'light')))
  expect(log).toMatch(/fillText \.40/)
  expect(cell(-8.1, State.Measured).join('\n')).toContain(css(diverging(-1, 'light')))
})

it('makes the hatch of an estimate stronger than its fill would be', () => {
  const share = 0.28 + 0.72 * 0.5
  expect(cell(4.05, State.Estimate).join('\n')).toContain(css(diverging(share, 'light')))
})

it('prints no numbers where they have no room', () => {
  const map = decodeMap(head(), BUFFERS()) as HeatMap
  const { pen, log } = recorder()
  drawMap(pen, scene(map, { numbers: false }))
  expect(log.some((l) => l.startsWith('fillText'))).toBe(false)
})

it('shows the one strong cell of a map with more cells than pixels', () => {
  const [rows, cols] = [50, 4000]
  const effect = new Float32Array(rows * cols)
  effect[17 * cols + 3210] = 8.1
  const shape = {
    shape: [rows, cols],
    coords: { layer: [...Array(rows).keys()], pos: [...Array(cols).keys()] },
  }
  const map = decodeMap(head(shape), [effect.buffer, new Uint8Array(rows * cols).buffer]) as HeatMap
  const small = scene(map, { grid: { col: 0.2 } })
  expect(isPooled(small)).toBe(true)
  const { width, height, data } = raster(small, 800)
  expect([width, height]).toEqual([800, rows])
  const strong = [...diverging(1, 'light'), 255].join()
  const found = Array.from({ length: width * height }, (_, i) => i).filter(
    (i) => data.slice(4 * i, 4 * i + 4).join() === strong,
  )
  expect(found).toEqual([17 * 800 + Math.floor(3210 / 5)])
})
