// From an effect to a colour, and from many cells to few pixels.

import { SCALE } from './style.generated'

export type Theme = 'light' | 'dark'
export type Rgb = [number, number, number]

export const parse = (hex: string): Rgb =>
  [1, 3, 5].map((i) => Number.parseInt(hex.slice(i, i + 2), 16)) as Rgb

export const mix = (a: Rgb, b: Rgb, t: number): Rgb =>
  a.map((x, i) => Math.round(x + ((b[i] as number) - x) * t)) as Rgb

/** The colour of a share of the gap; beyond ±1 the ends are kept. */
export function diverging(share: number, theme: Theme): Rgb {
  const anchors = SCALE[theme]
  const place = ((Math.min(1, Math.max(-1, share)) + 1) / 2) * (anchors.length - 1)
  const low = Math.min(Math.floor(place), anchors.length - 2)
  return mix(parse(anchors[low] as string), parse(anchors[low + 1] as string), place - low)
}

export const css = (c: Rgb): string => `rgb(${c.join(' ')})`

export function luminance(c: Rgb): number {
  const [r, g, b] = c.map((v) => {
    const s = v / 255
    return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4
  }) as Rgb
  return 0.2126 * r + 0.7152 * g + 0.0722 * b
}

const DARK_TEXT = '#111418'

/** White or near-black, whichever contrasts more. */
export function textOn(c: Rgb): string {
  const l = luminance(c)
  return 1.05 / (l + 0.05) > (l + 0.05) / (luminance(parse(DARK_TEXT)) + 0.05) ? '#FFFFFF' : DARK_TEXT
}

/** One neutral ramp from background to ink for attention weights. */
export const attentionInk = (weight: number): number => Math.max(0, weight) ** 0.6 * 0.92

/** How shares become colours: evenly up to ± limit, or by a logarithm that is symmetric and even near 0. */
export interface Scale {
  limit: number
  log: boolean
  /** Said under the legend: how many cells lie beyond the limit. */
  note: string
}

/** Up to this share the symmetric logarithm is next to even. */
const EVEN = 0.01

/** Where on the colours a share lies, −1 … 1. */
export function tone(share: number, { limit, log }: Pick<Scale, 'limit' | 'log'>): number {
  if (!log) return share / limit
  return (Math.sign(share) * Math.log1p(Math.abs(share) / EVEN)) / Math.log1p(limit / EVEN)
}

/** ± limit of the colours: 1, or less when a whole finished map is weak. */
export function limitOf(shares: Iterable<number>, final: boolean): number {
  let most = 0
  for (const s of shares) if (Number.isFinite(s)) most = Math.max(most, Math.abs(s))
  if (!final || most === 0) return 1
  return [0.1, 0.25].find((limit) => most <= limit) ?? 1
}

/**
 * Keeps from each block of cells the one with the largest |value|, so that a single strong cell never disappears.
 *
 * Returns for each of the pixels [out rows × out cols] the index of the kept cell; a cell without value loses to any.
 */
export function pool(
  values: ArrayLike<number>,
  shape: readonly [rows: number, cols: number],
  out: readonly [rows: number, cols: number],
): Int32Array {
  const [rows, cols] = shape
  const [outRows, outCols] = out
  const kept = new Int32Array(outRows * outCols).fill(-1)
  for (let r = 0; r < rows; r++) {
    const line = Math.floor((r * outRows) / rows) * outCols
    for (let c = 0; c < cols; c++) {
      const at = line + Math.floor((c * outCols) / cols)
      const i = r * cols + c
      const best = kept[at] as number
      if (best < 0 || rank(values[i]) > rank(values[best])) kept[at] = i
    }
  }
  return kept
}

const rank = (v: number | undefined): number => (v === undefined || Number.isNaN(v) ? -1 : Math.abs(v))
