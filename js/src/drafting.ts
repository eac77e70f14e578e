// What is being typed, as Python answered it, and how two prompts lie side by side.

import type { Store } from './store'
import type { Dict, Pair, Top } from './wire'

export type Column = [clean: number | null, corrupted: number | null]

export interface DraftSide {
  tokens: string[]
  top: Top
  answer: number | null
  wrong: number | null
}

/** Bold words, tokens and more words; what to send to have it done. */
export interface Repair {
  name: string
  before: string
  tokens: string[]
  after: string
  note: string
  action: string
  edit: Dict
}

export interface Draft {
  clean: DraftSide
  corrupted: DraftSide
  has_bos: boolean
  columns: Column[]
  spans: { kind: string; from: number; to: number; text: string }[]
  errors: Record<string, { text: string; seen: string; fix: string }>
  title?: string
  subtitle?: string
  line?: string
  answers: { answer: string[]; wrong: string[] }
  warnings: { text: string; about: string }[]
  repairs: Repair[]
}

/** What Python knows of the texts that are typed; null where none are, or before it answered. */
export function draftOf(store: Store): Draft | null {
  const { draft } = store.spec.value
  const found = store.drafting ? store.answer('draft') : undefined
  const fits = found?.asked.pair === store.shown.value.pair && found.content.columns
  return ((fits ? found.content : draft) as unknown as Draft | undefined) ?? null
}

export interface Slot {
  text: string
  pos: number
  differs: boolean
  /** Tokens before it that have no partner and no column. */
  more: string[]
}

export interface Lines {
  draft: Draft | null
  count: number
  clean: (Slot | null)[]
  corrupted: (Slot | null)[]
}

/** Both prompts on common columns: as they are run, or as they are typed. */
export function linesOf(store: Store): Lines {
  const draft = draftOf(store)
  if (!draft) return store.once('lines', [store.pair], () => atRest(store.pair))
  const text = (side: 'clean' | 'corrupted', pos: number | null): string | undefined =>
    pos === null ? undefined : draft[side].tokens[pos]
  const slots = (side: 0 | 1): (Slot | null)[] =>
    draft.columns.map((column) => {
      const pos = column[side]
      const both = [text('clean', column[0]), text('corrupted', column[1])]
      return pos === null ? null : { text: both[side] ?? '', pos, differs: both[0] !== both[1], more: [] }
    })
  return { draft, count: draft.columns.length, clean: slots(0), corrupted: slots(1) }
}

function atRest(pair: Pair): Lines {
  const slot = (text: string, pos: number, column: number, more: string[] = []): Slot => ({
    text,
    pos,
    differs: pair.differs.includes(column),
    more,
  })
  const clean = pair.clean_tokens.map((text, pos) => slot(text, pos, pos))
  const count = clean.length
  if (!pair.aligned) {
    const corrupted = pair.corrupted_tokens.map((text, pos) => slot(text, pos, pos))
    return { draft: null, count, clean, corrupted }
  }
  const partner = new Map(pair.aligned)
  let done = 0
  const corrupted = clean.map((_, column) => {
    const pos = partner.get(column)
    if (pos === undefined) return null
    const more = pair.corrupted_tokens.slice(done, pos)
    done = Math.max(done, pos + 1)
    return slot(pair.corrupted_tokens[pos] ?? '', pos, column, more)
  })
  return { draft: null, count, clean, corrupted }
}
