// The next token: before and after the patch of the chosen cell, else of the two prompts.

import { heardOfCell, type TokenRow } from './cells'
import { type Child, h } from './dom'
import { percent } from './format'
import type { Store } from './store'
import { Chip } from './ui'
import { Wrong } from './wrong'

interface Row {
  token: string
  kind: string
  /** A probability, or less than it where a token is not among the likeliest. */
  before: number | undefined
  after: number | undefined
  texts: [before: string, after: string]
}

/** The likeliest next tokens of two runs: hollow the one before, solid the one after. */
export function NextTokens({ store }: { store: Store }): Child {
  const heard = heardOfCell(store)
  const rows = heard?.told?.tokens
  const shown = rows ? rows.map(ofRun) : ofPrompts(store)
  const names = rows ? [heard?.told?.base ?? '', 'patched'] : ['corrupted', 'clean']
  const most = Math.max(1e-9, ...shown.flatMap((r) => [r.before ?? 0, r.after ?? 0]))
  const width = (p: number | undefined): string => `${(100 * (p ?? 0)) / most}%`
  return (
    <section data-testid="nbp-logits" data-of={rows ? 'patched' : 'prompts'}>
      <h4>
        Next token
        <span class="key">
          <i class="hollow" /> {names[0]} <i class="solid" /> {names[1]}
        </span>
      </h4>
      {heard?.error && <Wrong error={heard.error} />}
      {heard?.told?.note && <p class="note">{heard.told.note}</p>}
      <table class={heard?.old ? 'next old' : 'next'} aria-busy={!!heard?.old}>
        <caption class="hidden">
          Probability of the next token, {names[0]} run and {names[1]} run
        </caption>
        <colgroup>
          <col class="next-token" />
          <col />
          <col class="num" />
        </colgroup>
        <tbody>
          {shown.map((r, i) => (
            <tr key={`${r.token}${i}`}>
              <th scope="row">
                <Chip text={r.token} /> <span class="dim">{r.kind}</span>
              </th>
              <td class="bars">
                <i class="hollow" style={{ width: width(r.before) }} />
                <i class="solid" style={{ width: width(r.after) }} />
              </td>
              <td class="num">
                {r.texts[0]} → <b>{r.texts[1]}</b> %
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  )
}

const ofRun = ([token, before, after, kind]: TokenRow): Row => ({
  token,
  kind,
  before,
  after,
  texts: [percent(before), percent(after)],
})

function ofPrompts(store: Store): Row[] {
  const pair = store.pair
  const clean = new Map(pair.clean_top)
  const corrupted = new Map(pair.corrupted_top)
  const names = [
    ...new Set([...pair.answer.slice(0, 1), ...pair.wrong.slice(0, 1), ...clean.keys(), ...corrupted.keys()]),
  ]
  const below = (list: Map<string, number>, t: string): string =>
    list.has(t) || !list.size
      ? percent(list.get(t))
      : `<${percent(Math.min(...list.values())).replace('<', '')}`
  const kind = (t: string): string =>
    pair.answer.includes(t) ? 'answer' : pair.wrong.includes(t) ? 'wrong' : ''
  return names.slice(0, 6).map((token) => ({
    token,
    kind: kind(token),
    before: corrupted.get(token),
    after: clean.get(token),
    texts: [below(corrupted, token), below(clean, token)],
  }))
}
