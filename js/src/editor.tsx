// Below the token strips: what the model makes of what is typed, how the prompts part, what is odd about them.

import { Answer } from './answer'
import { type Child, Fragment, h } from './dom'
import { type Draft, type DraftSide, draftOf, linesOf } from './drafting'
import { percent } from './format'
import type { ViewProps } from './load'
import type { Store } from './store'
import { columnOf, Place } from './strips'
import { Chip, Icon, Run } from './ui'

const LIKELY = 5
const SIDES = ['clean', 'corrupted'] as const
const ANSWERS = ['answer', 'wrong'] as const

export function Editor({ store, frame }: ViewProps): Child {
  const draft = draftOf(store)
  const alone = store.spec.value.view === 'prompts'
  const failed = !!store.error.value
  return (
    <div class="editor" data-testid="nbp-draft" data-drafting={store.drafting}>
      {draft && draft.spans.length > 0 && <Stretches store={store} draft={draft} frame={frame} />}
      {alone && <Answers store={store} />}
      {draft && (
        <>
          {!failed && <Likely draft={draft} />}
          {store.drafting && !failed && !alone && (
            <p class="dim">Not run yet. Enter runs it, Escape takes it back.</p>
          )}
          <Problems draft={draft} alone={alone} />
        </>
      )}
      {!draft && <Notes store={store} about={['clean', 'corrupted']} />}
      {alone && draft && draft.repairs.length > 0 && <Ways store={store} draft={draft} />}
      {failed && !alone && store.onScreen.length > 0 && (
        <p class="kept">
          <b>Last finished sweep</b> <span class="dim">kept; belongs to “{brief(store.pair.clean)}”</span>
        </p>
      )}
    </div>
  )
}

const brief = (text: string): string => (text.length > 48 ? `${text.slice(0, 46).trimEnd()}…` : text)

const Answers = ({ store }: { store: Store }): Child => (
  <p class="answers">
    {ANSWERS.map((side) => (
      <span key={side}>
        <span class="dim">{side}</span>{' '}
        <Answer store={store} side={side} tokens={draftOf(store)?.answers[side] ?? store.pair[side]} />
      </span>
    ))}
  </p>
)

/** Likeliest next tokens of both prompts, and what they give to the answers. */
function Likely({ draft }: { draft: Draft }): Child {
  return (
    <table class="likely">
      <tbody>
        {SIDES.map((side) => (
          <tr key={side}>
            <th scope="row">
              <Run run={side} />
              <span class="hidden">{side}</span>
            </th>
            <td>
              {draft[side].top.slice(0, LIKELY).map(([token, prob]) => (
                <span key={token} class="one">
                  <Chip text={token} /> <span class="dim">{percent(prob)}%</span>
                </span>
              ))}
              {!draft[side].top.length && <span class="dim">no prediction</span>}
            </td>
            <td class="num" data-testid={`nbp-draft-${side}`}>
              {ANSWERS.map((name) => chance(draft[side], name))}
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  )
}

const chance = (side: DraftSide, name: 'answer' | 'wrong'): Child => {
  const share = side[name]
  return (
    share !== null && (
      <span key={name} class="one" data-of={name} data-share={share}>
        <span class="dim">{name}</span> <b>{percent(share)}%</b>
      </span>
    )
  )
}

/** What the stretches of prompts that do not meet are called: under the strips, or with strips of their own. */
function Stretches({ store, draft, frame }: ViewProps & { draft: Draft }): Child {
  if (store.error.value) return <Apart store={store} draft={draft} space={frame.space} />
  if (frame.upright) return <p class="dim">{draft.spans.map((span) => span.text).join(' · ')}</p>
  const col = columnOf(store, frame.grid, linesOf(store))
  return <Brackets draft={draft} gutter={frame.grid.gutter} col={col} />
}

const Brackets = ({ draft, gutter, col }: { draft: Draft; gutter: number; col: number }): Child => (
  <div class="brackets" style={{ 'margin-left': `${gutter}px` }}>
    {draft.spans.map((span) => (
      <span
        key={span.from}
        class={`bracket ${span.kind}`}
        style={{ left: `${span.from * col}px`, width: `${(span.to - span.from) * col}px` }}
        title={span.text}
      >
        <span>{shorter(span.text, (span.to - span.from) * col)}</span>
      </span>
    ))}
  </div>
)

/** A name as far as its stretch has room; a short stretch between two others keeps one word. */
const shorter = (text: string, room: number): string =>
  text.length * 5.8 <= room + 60
    ? text
    : text.replace(/ (tokens? without a partner)$/, ' alone').replace(/^same words, shifted/, 'shifted')

/** Both prompts with holes where tokens have no partner, and what each stretch is called. */
function Apart({ store, draft, space }: { store: Store; draft: Draft; space: number }): Child {
  const lines = linesOf(store)
  const gutter = space < 480 ? 24 : 84
  const col = Math.max(28, Math.min(49, Math.floor((space - gutter - 40) / Math.max(1, lines.count))))
  const numbers = (side: 'clean' | 'corrupted') => (
    <div class="strip numbers" aria-hidden="true">
      <span class="name" />
      <span class="row">
        {lines[side].map((slot, i) => (
          <span key={i}>{slot?.pos}</span>
        ))}
      </span>
    </div>
  )
  const most = Math.max(...SIDES.map((side) => draft[side].tokens.length))
  return (
    <div class="apart" tabindex="0" role="group" aria-label="Tokens of both prompts side by side">
      <div class="strips" style={{ '--gutter': `${gutter}px`, '--col': `${col}px` }}>
        {numbers('clean')}
        {SIDES.map((side) => (
          <div key={side} class="strip">
            <span class="name">
              <Run run={side} />
              {gutter > 24 && side}
            </span>
            <div class="row" data-testid={`nbp-apart-${side}`}>
              {lines[side].map((slot, i) => (
                <Place key={i} slot={slot} bos={draft.has_bos} />
              ))}
            </div>
            <b class={draft[side].tokens.length === most ? 'count longer' : 'count'}>
              {draft[side].tokens.length}
            </b>
          </div>
        ))}
        {numbers('corrupted')}
        <Brackets draft={draft} gutter={gutter} col={col} />
      </div>
    </div>
  )
}

const NAMES: Record<string, string> = {
  clean: 'Clean prompt',
  corrupted: 'Corrupted prompt',
  answer: 'Answer',
  wrong: 'Wrong answer',
}

/** What is wrong or odd, field by field; that prompts do not meet is said where they are shown apart. */
function Problems({ draft, alone }: { draft: Draft; alone: boolean }): Child {
  const { lengths, ...errors } = draft.errors
  return (
    <div class="problems" aria-live="polite">
      {lengths && alone && (
        <p class="wrong">
          <b>{draft.title}</b> {draft.subtitle}
        </p>
      )}
      {Object.entries(errors).map(([field, error]) => (
        <p key={field} class="wrong" data-field={field}>
          <b>{NAMES[field] ?? field}:</b> {error.text} {error.seen && <span class="dim">{error.seen}</span>}{' '}
          {error.fix && <span class="dim">Try {error.fix}</span>}
        </p>
      ))}
      {draft.warnings.map(({ text, about }) => (
        <Note key={text} text={text} about={about} />
      ))}
    </div>
  )
}

const Note = ({ text, about }: { text: string; about: string }): Child => (
  <p class="note-line" data-field={about}>
    <Icon name="info" />
    <span>{text}</span>
  </p>
)

function Notes({ store, about }: { store: Store; about: string[] }): Child {
  const { warnings, concerns } = store.spec.value
  const mine = warnings.filter((_, i) => about.includes(concerns?.[i] ?? ''))
  return mine.map((text) => <Note key={text} text={text} about={about[0] ?? ''} />)
}

/** Warnings of the sweep on screen that concern its answers. */
export const answerNotes = (store: Store): Child => <Notes store={store} about={['answer', 'wrong']} />

/** What is wrong, in words: of prompts that do not meet, how long they are and what that means. */
export function Failed({ store }: ViewProps): Child {
  const error = store.error.value
  const draft = draftOf(store)
  if (!error) return null
  if (draft?.title && error.field !== 'answer' && error.field !== 'wrong')
    return (
      <>
        <p class="sentence">
          <b>{draft.title}</b> {draft.subtitle}
        </p>
        <p class="line">{draft.line}</p>
      </>
    )
  return (
    <>
      <p class="sentence">
        <b>{error.title.charAt(0).toUpperCase() + error.title.slice(1)}</b>
      </p>
      {error.lines.map((line) => (
        <p key={line} class="line">
          {line}
        </p>
      ))}
    </>
  )
}

/** What repairs there are for prompts that do not meet, in the inspector's place; nothing where there are none. */
export function waysOut(store: Store): Child {
  const draft = store.error.value ? draftOf(store) : null
  if (!draft?.repairs.length) return null
  return (
    <aside class="inspector">
      <Ways store={store} draft={draft} />
    </aside>
  )
}

function Ways({ store, draft }: { store: Store; draft: Draft }): Child {
  const pair = store.shown.value.pair
  const repair = (edit: Draft['repairs'][number]['edit']) => {
    // What is typed in the other fields goes with the repair.
    const values = { ...store.texts, ...(edit.values as object) }
    store.turn('edit', { pair, ...edit, values })
  }
  return (
    <section class="ways" data-testid="nbp-ways">
      <h4>Ways out</h4>
      {draft.repairs.map((one, i) => (
        <div key={one.name} class="way">
          <p>
            <b>
              {one.before}{' '}
              {one.tokens.map((token, k) => (
                <span key={k} class="chip differs">
                  {token === '…' ? token : <Chip text={token} />}
                </span>
              ))}{' '}
              {one.after}
            </b>
            <br />
            <span class="dim">{one.note}</span>
          </p>
          <button
            type="button"
            class={i ? 'button' : 'button first'}
            data-repair={one.name}
            onClick={() => repair(one.edit)}
          >
            {one.action}
          </button>
        </div>
      ))}
    </section>
  )
}

/** After a failed edit: asks how the prompts stand to each other, and what repairs them. */
export function askForDraft(store: Store): void {
  if (store.drafting && store.error.value) store.askDraft()
}
