import { describe, expect, it } from 'vitest'
import { gridFor, rowAt, rowsOf } from '../src/geometry'
import { keyAct, type Stand } from '../src/keys'
import { at, cellOf, find, indexIn, layOut, place, reason, strongest, unravel, yardstick } from '../src/table'
import { type Dict, decodeMap, type HeatMap, State } from '../src/wire'
import { finding, readout } from '../src/words'
import { BUFFERS, floatBytes, head, heads, pair, stateBytes } from './fixture'

const map = (over: Dict = {}): HeatMap => decodeMap(head(over), BUFFERS()) as HeatMap

function big(dims: string[], shape: number[], more: Dict = {}): HeatMap {
  const n = shape.reduce((a, b) => a * b, 1)
  const coords = Object.fromEntries(
    dims.map((d, i) => [d, Array.from({ length: shape[i] ?? 0 }, (_, k) => k)]),
  )
  const values = Array.from({ length: n }, (_, i) => i / n)
  return decodeMap(head({ dims, shape, coords, ...more }), [
    floatBytes(values),
    stateBytes(values.map(() => 0)),
  ]) as HeatMap
}

describe('laying out', () => {
  it('puts positions on columns and layers on rows', () => {
    const t = layOut(map(), null)
    expect([t.col, t.rows.length, t.cols.length]).toEqual(['pos', 2, 5])
    expect(at(t, 1, 2)).toBe(7)
    expect(cellOf(t, 1, 2)).toEqual({ layer: 1, pos: 2 })
  })

  it('puts heads on columns where there is no position', () => {
    expect(layOut(big(['layer', 'head'], [2, 3]), null).col).toBe('head')
  })

  it('makes rows of layer and head for three axes', () => {
    const t = layOut(big(['layer', 'head', 'pos'], [2, 3, 4]), null)
    expect(t.rows).toHaveLength(6)
    expect(t.rows[4]).toEqual({ layer: 1, head: 1 })
    expect(at(t, 4, 3)).toBe(1 * 12 + 1 * 4 + 3)
  })

  it('shows one head of a map with dest and src: the chosen one, else the strongest', () => {
    const four = big(['layer', 'head', 'dest', 'src'], [2, 2, 3, 3])
    const chosen = layOut(four, { layer: 0, head: 1 })
    expect(chosen.fixed).toEqual({ layer: 0, head: 1 })
    expect([chosen.rows.length, chosen.col, at(chosen, 2, 1)]).toEqual([3, 'src', 9 + 7])
    expect(layOut(four, null).fixed).toEqual({ layer: 1, head: 1 })
    expect(find(chosen, { layer: 1, head: 1, dest: 0, src: 0 })).toBeNull()
  })

  it('finds cells again', () => {
    const t = layOut(map(), null)
    expect(find(t, { layer: 1, pos: 3 })).toEqual([1, 3])
    expect(find(t, { layer: 7, pos: 3 })).toBeNull()
    expect(find(t, null)).toBeNull()
    expect(indexIn(map(), { layer: 1, pos: 2 })).toBe(7)
    expect(indexIn(map(), { layer: 1 })).toBe(-1)
    expect(unravel(map(), 7)).toEqual({ layer: 1, pos: 2 })
    expect(strongest(map())).toBe(7)
  })

  it('keeps named heads', () => {
    const kv = decodeMap(heads({ coords: { layer: [0, 1], head: ['kv0', 'kv1'] } }), [
      floatBytes([1, 2, 3, 4]),
      stateBytes([0, 0, 0, 0]),
    ])
    expect(unravel(kv as HeatMap, 3)).toEqual({ layer: 1, head: 'kv1' })
  })
})

describe('geometry', () => {
  it('never makes columns smaller than 12 or wider than asked', () => {
    expect(gridFor(1000, 20, false).col).toBe(41)
    expect(gridFor(336, 100, true).col).toBe(12)
    expect(gridFor(1000, 3, false, 64).col).toBe(64)
  })

  it('makes very many columns fit, so that they are pooled and not scrolled for metres', () => {
    expect(gridFor(1000, 1024, false).col).toBeCloseTo(830 / 1024)
  })

  it('keeps layers apart in many rows and finds rows by height', () => {
    const t = layOut(big(['layer', 'head', 'pos'], [3, 8, 4]), null)
    const rows = rowsOf(t, false)
    expect(rows.height).toBe(13)
    expect((rows.top[8] as number) - (rows.top[7] as number)).toBe(21)
    expect(rowAt(rows, (rows.top[8] as number) + 1)).toBe(8)
    expect(rowAt(rows, (rows.top[8] as number) - 3)).toBe(-1)
    expect(rowsOf(layOut(map(), null), false).height).toBe(34)
  })
})

describe('keys', () => {
  const stand: Stand = { at: [1, 2], rows: 12, cols: 5, direction: 'denoising' }
  const act = (key: string, more: Partial<KeyboardEvent> = {}, from: Stand = stand) =>
    keyAct({ key, ctrlKey: false, metaKey: false, altKey: false, ...more }, from)
  const to = (row: number, col: number) => ({ do: 'move', row, col })

  it.each([
    ['ArrowUp', 0, 2],
    ['ArrowDown', 2, 2],
    ['ArrowLeft', 1, 1],
    ['ArrowRight', 1, 3],
    ['Home', 1, 0],
    ['End', 1, 4],
    ['PageUp', 0, 2],
    ['PageDown', 6, 2],
  ])('%s moves', (key, row, col) => {
    expect(act(key)).toEqual(to(row, col))
  })

  it('stops at the edges and starts in the corner', () => {
    expect(act('ArrowUp', {}, { ...stand, at: [0, 0] })).toEqual(to(0, 0))
    expect(act('PageDown', {}, { ...stand, at: [11, 4] })).toEqual(to(11, 4))
    expect(act('ArrowRight', {}, { ...stand, at: null })).toEqual(to(0, 0))
    expect(act('End', { ctrlKey: true })).toEqual(to(11, 4))
  })

  it('pins, clears and turns the direction round', () => {
    expect(act('Enter')).toEqual({ do: 'pin' })
    expect(act('Escape')).toEqual({ do: 'clear' })
    expect(act('d')).toEqual({ do: 'turn', direction: 'noising' })
    expect(act('d', {}, { ...stand, direction: 'both' })).toEqual({ do: 'turn', direction: 'denoising' })
  })

  it('leaves other keys to the host', () => {
    expect(act('a')).toBeNull()
    expect(act('Enter', { ctrlKey: true })).toBeNull()
    expect(act('ArrowUp', { altKey: true })).toBeNull()
    expect(act('ArrowUp', {}, { ...stand, rows: 0 })).toBeNull()
  })
})

describe('a cell in words', () => {
  it('names place, token, share and amount', () => {
    expect(readout([map()], { layer: 1, pos: 2 }, pair())).toBe(
      'Layer 1, position 2 ‘Mary’: +0.96 of the gap restored, +7.78 logits.',
    )
  })

  it('says lost for noising, and why there is no value', () => {
    const noise = decodeMap(head({ direction: 'noising' }), BUFFERS()) as HeatMap
    expect(finding(noise, { layer: 1, pos: 4 })).toBe('−0.10 of the gap lost, −0.81 logits (estimate)')
    expect(finding(map(), { layer: 1, pos: 3 })).toMatch(/not-a-number/)
    expect(finding(map(), { layer: 0, pos: 0 })).toMatch(/exactly 0 by construction/)
    expect(finding(map(), { layer: 9, pos: 0 })).toBe('not on this map')
    expect(reason(State.NoPosition)).toMatch(/no such position/)
    expect(reason(State.NoPath)).toMatch(/no causal path/)
  })

  it('does not divide by a gap that is none', () => {
    const flat = map({ gap: 0 })
    expect(yardstick(flat)).toEqual({ by: Math.abs(Math.fround(7.776)), share: false })
    expect(finding(flat, { layer: 1, pos: 2 })).toBe('+7.78 logits; there is no gap to share out')
  })

  it('names all axes', () => {
    expect(place({ layer: 1, head: 'kv0', dest: 4, src: 2 })).toBe('layer 1, head kv0, from 4, to 2')
  })
})
