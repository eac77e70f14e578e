// Numbers and tokens as people read them.

const MINUS = '−'
const LEAST = 0.015

const withMinus = (text: string, negative: boolean): string => (negative ? MINUS + text : text)

/** In cells, ticks and tables: ".96", "−.39", "1.04"; "" when next to nothing. */
export function cellNumber(value: number): string {
  return Number.isFinite(value) && Math.abs(value) >= LEAST ? tableNumber(value) : ''
}

export function tableNumber(value: number): string {
  if (!Number.isFinite(value)) return 'none'
  const text = Math.abs(value).toFixed(2)
  return Number(text) === 0 ? '0' : withMinus(text.replace(/^0/, ''), value < 0)
}

/** In read-outs: "+0.96", "−0.39", "0.00". */
export function readNumber(value: number, digits = 2): string {
  if (!Number.isFinite(value)) return 'no value'
  const text = Math.abs(value).toFixed(digits)
  return Number(text) === 0 ? text : (value < 0 ? MINUS : '+') + text
}

export const tick = (value: number): string =>
  value === 0 ? '0' : (value > 0 ? '+' : MINUS) + String(Math.abs(value)).replace(/^0\./, '.')

/** A probability as a percentage: "81", "0.9", "<0.1". */
export function percent(prob: number | undefined): string {
  if (prob === undefined || !Number.isFinite(prob)) return '–'
  const p = 100 * prob
  if (p < 0.1) return p === 0 ? '0' : '<0.1'
  return p < 1 ? p.toFixed(1) : p.toFixed(0)
}

export const plural = (unit: string, value: number): string =>
  /^(logit|nat|bit|place)$/.test(unit) && Math.abs(value) !== 1 ? `${unit}s` : unit

export interface Piece {
  text: string
  mark: boolean
}

const MARKS: Record<string, string> = { ' ': '·', '\n': '↵', '\t': '⇥' }
const JOINERS = /[\u200c\u200d]/u
const isControl = (c: string): boolean => /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cs}]/u.test(c)

/**
 * A token as visible pieces: its own text, and marks for leading spaces, line breaks, tabs and controls.
 * Joiners inside a word or an emoji stay: they shape what is seen.
 */
export function pieces(token: string): Piece[] {
  const out: Piece[] = []
  const add = (text: string, mark: boolean): void => {
    const last = out.at(-1)
    if (last?.mark === mark) last.text += text
    else out.push({ text, mark })
  }
  const bare = token.replace(/^ +/, '')
  const end = token.length - (/\s\s+$/.exec(token)?.[0].length ?? 0)
  const joins = Array.from(bare).some((c) => !JOINERS.test(c))
  Array.from(token).forEach((c, i) => {
    if (c === ' ' && i >= token.length - bare.length && i < end) add(c, false)
    else if (joins && JOINERS.test(c)) add(c, false)
    else if (MARKS[c]) add(MARKS[c], true)
    else if (isControl(c))
      add(`U+${(c.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, '0')}`, true)
    else add(c, false)
  })
  return out
}

export const visible = (token: string): string =>
  pieces(token)
    .map((p) => p.text)
    .join('')

/** A token inside a sentence: its text without the space in front, or its marks when it has nothing else. */
export const plain = (token: string): string => visible(token.trim() === '' ? token : token.trimStart())
