import { describe, expect, it } from 'vitest'
import { bytesOf, decodeAttention, decodeMap, mapName } from '../src/wire'
import { ATTENTION, BUFFERS, EFFECT, head, STATE, to64, weights } from './fixture'

describe('a map message', () => {
  it('is read from binary buffers', () => {
    const map = decodeMap(head(), BUFFERS())
    expect([...(map?.effect ?? [])].slice(0, 8)).toEqual([...new Float32Array(EFFECT)].slice(0, 8))
    expect(map?.effect[8]).toBeNaN()
    expect([...(map?.state ?? [])]).toEqual(STATE)
    expect(map?.key.direction).toBe('denoising')
  })

  it('is read from a view with an odd byte offset, as comms hand them out', () => {
    const [effect, state] = BUFFERS() as [ArrayBuffer, ArrayBuffer]
    const odd = new Uint8Array(effect.byteLength + 3)
    odd.set(new Uint8Array(effect), 3)
    const map = decodeMap(head(), [new DataView(odd.buffer, 3), new DataView(state)])
    expect(map?.effect[7]).toBeCloseTo(7.776, 5)
  })

  it('is read from base64 in data64, and from effect64 and state64', () => {
    const [effect, state] = BUFFERS().map(to64)
    expect(decodeMap(head({ data64: [effect, state] }), [])?.effect[2]).toBeCloseTo(4.05, 5)
    expect(decodeMap(head({ effect64: effect, state64: state }), [])?.state[8]).toBe(4)
  })

  it('is refused when its buffers do not fit its shape', () => {
    expect(decodeMap(head({ shape: [3, 5] }), BUFFERS())).toBeNull()
    expect(decodeMap(head(), [])).toBeNull()
    expect(decodeMap(head({ key: null }), BUFFERS())).toBeNull()
  })

  it('does not share memory with the buffer it came in', () => {
    const buffers = BUFFERS()
    const map = decodeMap(head(), buffers)
    new Float32Array(buffers[0] as ArrayBuffer).fill(9)
    expect(map?.effect[0]).toBe(0)
  })
})

describe('an attention message', () => {
  it('keeps runs, heads, dest and src apart', () => {
    const layer = decodeAttention(ATTENTION, [weights().buffer as ArrayBuffer], 3)
    expect(layer).toMatchObject({ layer: 0, pair: 3, heads: 2, dest: 5, src: 5 })
    expect(layer?.values[8]).toBeCloseTo(0.1, 6)
  })

  it('takes data64 as text or as a list', () => {
    const text = to64(weights().buffer as ArrayBuffer)
    expect(decodeAttention({ ...ATTENTION, data64: text }, [], 0)?.values.length).toBe(100)
    expect(decodeAttention({ ...ATTENTION, data64: [text], pair: 1 }, [], 0)?.pair).toBe(1)
    expect(decodeAttention({ ...ATTENTION, shape: [2, 2, 5] }, [], 0)).toBeNull()
  })
})

it('prefers a binary buffer to text', () => {
  expect(bytesOf({ data64: [btoa('x')] }, [Uint8Array.of(1, 2).buffer], 0)).toEqual(Uint8Array.of(1, 2))
  expect(bytesOf({}, [], 0)).toBeNull()
})

it('names maps apart by every part of their key', () => {
  const key = {
    component: 'z',
    over: ['layer', 'head'],
    direction: 'denoising' as const,
    metric: 'prob',
    pair: 0,
  }
  const other = [
    { ...key, component: 'q' },
    { ...key, over: ['layer'] },
    { ...key, metric: 'kl' },
    { ...key, pair: 1 },
  ]
  expect(new Set([key, ...other].map(mapName)).size).toBe(5)
})
