import { describe, expect, it } from 'vitest'
import { attentionInk, diverging, limitOf, luminance, parse, pool, textOn } from '../src/colour'
import { cellNumber, percent, pieces, readNumber, tableNumber, tick, visible } from '../src/format'
import { SCALE } from '../src/style.generated'

describe('numbers', () => {
  it('are short in cells and full in read-outs', () => {
    expect([0.96, -0.39, 1.04, 0.0149, Number.NaN].map(cellNumber)).toEqual(['.96', '−.39', '1.04', '', ''])
    expect([0.96, -0.39, 0.001, Number.NaN].map((v) => readNumber(v))).toEqual([
      '+0.96',
      '−0.39',
      '0.00',
      'no value',
    ])
    expect([0, -0.001, 0.5].map(tableNumber)).toEqual(['0', '0', '.50'])
    expect([1, -0.25, 0].map(tick)).toEqual(['+1', '−.25', '0'])
    expect([0.805, 0.009, 0.0001, undefined].map(percent)).toEqual(['81', '0.9', '<0.1', '–'])
  })
})

describe('tokens', () => {
  it('show what cannot be seen', () => {
    expect(visible(' Mary')).toBe('·Mary')
    expect(visible('\n\t')).toBe('↵⇥')
    expect(visible('a b')).toBe('a b')
    expect(visible('a\u202eb')).toBe('aU+202Eb')
    expect(visible('  ')).toBe('··')
    expect(visible('  a b ')).toBe('··a b ')
    expect(visible(' \n')).toBe('·↵')
    expect(visible('a\u200db')).toBe('a\u200db')
    expect(visible('\u200d')).toBe('U+200D')
  })

  it('tell marks from text', () => {
    expect(pieces(' x')).toEqual([
      { text: '·', mark: true },
      { text: 'x', mark: false },
    ])
    expect(pieces('·')).toEqual([{ text: '·', mark: false }])
  })
})

describe.each(['light', 'dark'] as const)('the %s scale', (theme) => {
  it('meets its anchors and is kept beyond them', () => {
    const anchors = SCALE[theme]
    anchors.forEach((hex, i) => {
      expect(diverging(-1 + i / 5, theme)).toEqual(parse(hex))
    })
    expect(diverging(7, theme)).toEqual(parse(anchors.at(-1) as string))
    expect(diverging(-7, theme)).toEqual(parse(anchors[0] as string))
  })

  it('has readable numbers on every colour', () => {
    for (let x = -1; x <= 1; x += 0.05) {
      const colour = diverging(x, theme)
      const [a, b] = [luminance(colour), luminance(parse(textOn(colour)))].sort((p, q) => q - p) as [
        number,
        number,
      ]
      expect((a + 0.05) / (b + 0.05)).toBeGreaterThan(4.2)
    }
  })
})

it('limits colours only for a finished weak map', () => {
  expect(limitOf([0.05, -0.02], true)).toBe(0.1)
  expect(limitOf([0.2], true)).toBe(0.25)
  expect(limitOf([0.2], false)).toBe(1)
  expect(limitOf([0.3, Number.NaN], true)).toBe(1)
  expect(limitOf([], true)).toBe(1)
})

it('weighs attention on one ramp', () => {
  expect(attentionInk(0)).toBe(0)
  expect(attentionInk(1)).toBeCloseTo(0.92)
  expect(attentionInk(-1)).toBe(0)
})

describe('pooling', () => {
  it('keeps the one hot cell of a big map', () => {
    const [rows, cols] = [300, 1000]
    const values = new Float32Array(rows * cols)
    values[123 * cols + 777] = -0.9
    const kept = pool(values, [rows, cols], [100, 250])
    expect(kept.length).toBe(100 * 250)
    expect([...kept]).toContain(123 * cols + 777)
    expect(kept[41 * 250 + 194]).toBe(123 * cols + 777)
  })

  it('lets any number beat a missing one and keeps all cells where there is room', () => {
    expect([...pool([Number.NaN, 0.1, Number.NaN, Number.NaN], [1, 4], [1, 2])]).toEqual([1, 2])
    expect([...pool([1, 2, 3, 4], [2, 2], [2, 2])]).toEqual([0, 1, 2, 3])
  })
})
