// Beside the map of paths: one path as a number and the steps from it, the strongest paths, what to know of them.

import { type Child, Fragment, h } from './dom'
import { plural, readNumber, tableNumber } from './format'
import { choose, chosenOf, type Drawn, goOn, openOn, showAttention } from './paths_state'
import { brief, edge, endOf, inputOf, senderOf, strongestOf } from './paths_words'
import type { Store } from './store'
import { reason, yardstick } from './table'
import { Icon } from './ui'
import { type HeatMap, State } from './wire'
import { wordFor } from './words'

const MOST = 10

interface SideProps {
  store: Store
  now: Drawn
  map: HeatMap
}

export function PathSide(props: SideProps): Child {
  return (
    <aside class="inspector">
      <Chosen {...props} />
      <Strongest {...props} />
      <Notes now={props.now} />
    </aside>
  )
}

/** One path as a number, and where one can go on from it. */
function Chosen({ store, now, map }: SideProps): Child {
  const { model } = store.spec.value
  const chosen = chosenOf(store, map)
  const name = chosen ?? strongestOf(map, 1)[0]?.name
  if (!name)
    return (
      <section>
        <h4>No path with an effect</h4>
        <p class="note">No causal path: every sender writes after this receiver has read.</p>
      </section>
    )
  const index = (map.coords[map.dims[0] as string] ?? []).indexOf(name)
  const effect = map.effect[index] ?? Number.NaN
  const { by, share } = yardstick(map)
  const amount = `${readNumber(effect)} ${plural(map.unit, effect)}`.trim()
  return (
    <section data-testid="nbp-paths-chosen">
      <h4>
        <span>
          {!chosen && <span class="dim">Strongest: </span>}
          {edge(now.told, name, model.n_kv_heads < model.n_heads)}
        </span>
      </h4>
      {Number.isFinite(effect) ? (
        <p class="big">
          <b>{readNumber(share ? effect / by : effect)}</b>
          <span>
            {share ? `of the gap ${wordFor(map.key.direction, effect / by)}` : plural(map.unit, effect)}
            <br />
            {share ? amount : 'there is no gap to share out'}
          </span>
        </p>
      ) : (
        <p class="big none">{reason(map.state[index] ?? State.NotRun) || 'no value'}</p>
      )}
      <Steps store={store} now={now} name={name} there={Number.isFinite(effect)} />
    </section>
  )
}

const INPUTS = [
  ['q', 'queries'],
  ['k', 'keys'],
  ['v', 'values'],
] as const

/** What to look at next: a step back, a step forward, the head's attention. */
function Steps({
  store,
  now,
  name,
  there,
}: {
  store: Store
  now: Drawn
  name: string
  there: boolean
}): Child {
  const { model } = store.spec.value
  const end = endOf(name)
  const off = there ? '' : 'No causal path leads through here.'
  const button = (label: string, act: () => void, key: string, why = '') => (
    <button type="button" class="button" key={key} data-step={key} disabled={!!why} title={why} onClick={act}>
      {label}
    </button>
  )
  const backwards =
    now.told.axis === 'sender' && end?.kind === 'z' ? (
      <p class="steps">
        <span>Go on from here: make it the receiver, with its</span>
        {INPUTS.map(([kind, word]) =>
          button(word, () => goOn(store, inputOf(name, kind, model) as string), kind, off),
        )}
      </p>
    ) : (
      <p class="steps">
        {now.told.axis === 'sender' &&
          end?.kind === 'mlp_out' &&
          button(
            'Go on from here: make it the receiver',
            () => goOn(store, inputOf(name, 'q', model) as string),
            'mlp',
            off,
          )}
        {now.told.axis === 'receiver' &&
          button('Make it the receiver', () => openOn(store, { receiver: name }), 'receiver')}
      </p>
    )
  const next = now.told.axis === 'sender' ? name : senderOf(name, model)
  return (
    <>
      {backwards}
      <p class="steps">
        {next && button('Make it the sender', () => openOn(store, { sender: next }), 'sender')}
        {(end?.head ?? -1) >= 0 &&
          button('Show its attention', () => showAttention(store, name), 'attention')}
      </p>
    </>
  )
}

/** The strongest paths with a bar each, right of the middle where they restore or add. */
function Strongest({ store, map }: SideProps): Child {
  const list = strongestOf(map, MOST)
  const { by, share } = yardstick(map)
  const most = Math.max(1e-12, ...list.map((one) => Math.abs(one.effect / by)))
  const chosen = chosenOf(store, map)
  return (
    <section>
      <h4>
        Strongest paths
        <span class="key">{share ? 'share of the gap' : map.unit && plural(map.unit, 2)}</span>
      </h4>
      <table class="next strong" data-testid="nbp-paths-strongest">
        <tbody>
          {list.map(({ name, effect }) => {
            const part = effect / by
            const width = `${(50 * Math.abs(part)) / most}%`
            return (
              <tr key={name} class={name === chosen ? 'on' : ''}>
                <th scope="row">
                  <button type="button" aria-pressed={name === chosen} onClick={() => choose(store, name)}>
                    {brief(name)}
                  </button>
                </th>
                <td class="bars">
                  <i
                    class={part >= 0 ? 'pos' : 'neg'}
                    style={part >= 0 ? { left: '50%', width } : { right: '50%', width }}
                  />
                </td>
                <td class="num">{tableNumber(share ? part : effect)}</td>
              </tr>
            )
          })}
        </tbody>
      </table>
    </section>
  )
}

function Notes({ now }: { now: Drawn }): Child {
  return (
    <section class="careful">
      {now.leftOut.map(({ what, why }) => (
        <p key={what}>
          <Icon name="warn" />
          <span>
            <b>Without {what}.</b> {why}
          </span>
        </p>
      ))}
      <p>
        <Icon name="info" />
        <span>
          In Python: <code>wb.path</code> has these numbers; those of the first kind come from
          <br />
          <code>{now.code}</code>
        </span>
      </p>
    </section>
  )
}
