// Attention of the chosen head on both runs, beside the map that led to it.

import { Arcs } from './arcs'
import { hasPatched, heardOfCell, withPatched } from './cells'
import { type Child, h } from './dom'
import { plain, tableNumber, visible } from './format'
import { together } from './gestures'
import type { Frame } from './map'
import { Matrix, matrixSize, SMALL, Thumbnails, weight, weightIn } from './matrix'
import type { Signal } from './signal'
import type { Look, Mode, Store } from './store'
import { Run, Select } from './ui'
import type { Attention } from './wire'

const MODES: Mode[] = ['clean', 'corrupted', 'patched', 'difference']

/** From and to: under the pointer, else named by the selection, else the answer position and where it looks most. */
function focusOf(
  store: Store,
  layer: Attention | undefined,
  head: number,
  look: Look,
): { dest: number; src: number } {
  const cell = store.chosen
  const pair = store.pair
  const dest = look.dest ?? (typeof cell?.dest === 'number' ? cell.dest : pair.clean_end)
  const named = cell?.src ?? (cell?.dest === undefined ? cell?.pos : undefined)
  let src = look.src ?? (typeof named === 'number' && named < dest ? named : -1)
  if (src < 0 && layer)
    for (let s = 0, most = -1; s <= dest && s < layer.src; s++) {
      const w = weight(layer, 0, { head, dest, src: s })
      if (w > most) [most, src] = [w, s]
    }
  return { dest, src: Math.max(0, src) }
}

export function AttentionPanel({ store, frame }: { store: Store; frame: Frame }): Child {
  const look = store.look.value
  const { layer, head } = store.looking
  const wide = store.width.value >= 1100
  const data = withPatched(store, layer)
  const mode = store.mode.value
  const at = focusOf(store, data, head, look)
  const modes = frame.narrow ? [mode] : MODES.filter((m) => m !== 'patched' || store.spec.value.can_run)
  const arcs = store.own('arcs', false)
  const onLook = (next: Look) => store.lookTo(next)
  if (!data && !store.spec.value.can_run && !store.attention.value.size) return null
  return (
    <section
      class="attention"
      data-testid="nbp-attention"
      data-layer={layer}
      data-head={head}
      data-mode={mode}
    >
      <div class="att-head">
        <h4>
          Attention of layer {layer}, head {head}
        </h4>
        <HeadPicker store={store} />
        {data && (
          <span class="dim" aria-live="polite" data-testid="nbp-attention-readout">
            from <b>{visible(store.pair.clean_tokens[at.dest] ?? '')}</b> {at.dest} to{' '}
            <b>{visible(store.pair.clean_tokens[at.src] ?? '')}</b> {at.src}
            <span class="hidden">: {said(data, { head, ...at })}</span>
          </span>
        )}
        <span class="push" />
        <Modes store={store} />
        <Kinds arcs={arcs} id={store.id} />
      </div>
      {data && arcs.value && (
        <Arcs
          store={store}
          frame={frame}
          data={data}
          head={head}
          mode={mode === 'patched' && !hasPatched(data) ? 'clean' : mode}
          at={at}
          onLook={onLook}
        />
      )}
      {data && arcs.value ? null : data ? (
        <div class="att-body">
          {wide && <Thumbnails store={store} theme={frame.theme} look={{ layer, head }} />}
          {modes.map((m) => (
            <figure key={m} class={m === mode ? 'on' : ''}>
              <figcaption>
                <span>
                  {m !== 'difference' && <Run run={m} />} {m}
                </span>
                <span class="dim">
                  {m === 'patched' && !hasPatched(data)
                    ? ''
                    : tableNumber(weightIn(data, m, { head, ...at }))}
                </span>
              </figcaption>
              {m === 'patched' && !hasPatched(data) ? (
                <p
                  class="unpatched"
                  style={{ width: `${matrixSize(data, frame, modes.length, wide).size}px` }}
                >
                  {unpatched(store)}
                </p>
              ) : (
                <Matrix
                  data={data}
                  head={head}
                  mode={m}
                  frame={frame}
                  at={at}
                  onLook={onLook}
                  count={modes.length}
                  wide={wide}
                />
              )}
            </figure>
          ))}
        </div>
      ) : (
        <p class="empty">{waiting(store, layer)}</p>
      )}
      {data && <Bars store={store} frame={frame} data={data} head={head} dest={at.dest} />}
    </section>
  )
}

/** Asks for what the panel needs: the head's layer, and all layers for the thumbnails where they are small. */
export function askForAttention(store: Store): void {
  const { n_layers, n_heads } = store.spec.value.model
  store.wantAttention(store.looking.layer)
  const small = n_layers * n_heads * store.pair.clean_tokens.length ** 2 * 8 <= SMALL
  if (store.width.value >= 1100 && small && store.status.value.state !== 'running')
    for (let layer = 0; layer < n_layers; layer++) store.wantAttention(layer)
}

const waiting = (store: Store, layer: number): string =>
  store.spec.value.can_run
    ? `Reading the attention of layer ${layer} …`
    : `The attention of layer ${layer} is not in this page.`

/** Why the patched run is not shown. */
function unpatched(store: Store): string {
  if (together(store).length > 1) return 'Choose one cell to see its run.'
  if (!store.chosen) return 'Choose a cell on the map to see its run.'
  const heard = heardOfCell(store)
  const nothing = heard && !heard.old && (heard.error || heard.told?.note)
  return nothing ? 'There is no patched run to show.' : 'Running the patched cell …'
}

/** The weights of all runs in words. */
const said = (data: Attention, at: { head: number; dest: number; src: number }): string =>
  MODES.filter((m) => m !== 'difference' && (m !== 'patched' || hasPatched(data)))
    .map((m) => `${m} ${tableNumber(weightIn(data, m, at))}`)
    .join(', ')

/** Matrices, or arcs over the prompt. */
function Kinds({ arcs, id }: { arcs: Signal<boolean>; id: string }): Child {
  return (
    <div
      class="segments"
      role="radiogroup"
      aria-label="Show attention as"
      data-testid="nbp-attention-kind"
      data-lm-suppress-shortcuts="true"
    >
      {['Matrix', 'Arcs'].map((name) => {
        const on = arcs.value === (name === 'Arcs')
        return (
          <label key={name} class={on ? 'on' : ''}>
            <input
              type="radio"
              name={`${id}k`}
              value={name.toLowerCase()}
              checked={on}
              onKeyDown={(e) => e.stopPropagation()}
              onChange={() => {
                arcs.value = name === 'Arcs'
              }}
            />
            {name}
          </label>
        )
      })}
    </div>
  )
}

function HeadPicker({ store }: { store: Store }): Child {
  const { n_layers, n_heads } = store.spec.value.model
  const { layer, head } = store.looking
  const there = (l: number): boolean => store.spec.value.can_run || !!store.attentionOf(l)
  const options = Array.from(
    { length: n_layers * n_heads },
    (_, i) => [Math.floor(i / n_heads), i % n_heads] as const,
  )
    .filter(([l]) => there(l))
    .map(([l, h]) => ({ value: `${l}.${h}`, label: `${l}.${h}` }))
  return (
    <Select
      testid="nbp-attention-head"
      name="Attention head"
      prefix="head"
      value={`${layer}.${head}`}
      options={options}
      onChange={(value) => {
        const [l, h] = value.split('.').map(Number)
        store.lookAt(l ?? 0, h ?? 0)
      }}
    />
  )
}

function Modes({ store }: { store: Store }): Child {
  const now = store.mode.value
  return (
    <div
      class="segments"
      role="radiogroup"
      aria-label="Attention of"
      data-testid="nbp-attention-mode"
      data-lm-suppress-shortcuts="true"
    >
      {MODES.map((mode) => {
        const off = mode === 'patched' && !store.spec.value.can_run ? 'The patched run needs Python.' : ''
        return (
          <label key={mode} class={`${mode === now ? 'on' : ''}${off ? ' off' : ''}`} title={off}>
            <input
              type="radio"
              name={`${store.id}m`}
              value={mode}
              checked={mode === now}
              disabled={!!off}
              onKeyDown={(e) => e.stopPropagation()}
              onChange={() => {
                store.mode.value = mode
              }}
            />
            {mode}
          </label>
        )
      })}
    </div>
  )
}

/** Where one position looks, as bars on the prompt's own columns. */
function Bars(props: { store: Store; frame: Frame; data: Attention; head: number; dest: number }): Child {
  const { store, frame, data, head, dest } = props
  const pair = store.pair
  const { gutter, col } = frame.grid
  const height = (run: number, src: number): string => `${100 * weight(data, run, { head, dest, src })}%`
  const width = Math.max(2, Math.min(11, Math.floor(col / (hasPatched(data) ? 4 : 3.2))))
  return (
    <div class="looks">
      <p class="att-head">
        <span class="dim">
          Where <b>{plain(pair.clean_tokens[dest] ?? '')}</b> at {dest} looks
        </span>
        <span class="push" />
        <span class="key">
          <i class="solid" /> clean <i class="hollow" /> corrupted
          {hasPatched(data) && ' '}
          {hasPatched(data) && <i class="third" />}
          {hasPatched(data) && ' patched'}
        </span>
      </p>
      <div
        class="bars"
        style={{ 'margin-left': `${gutter}px`, width: `${col * data.src}px` }}
        aria-hidden="true"
      >
        <span class="one-line" />
        <span class="half-line" />
        {Array.from({ length: data.src }, (_, src) => (
          <span key={src} class="bar-col" style={{ width: `${col}px`, '--w': `${width}px` }}>
            <i class="solid" style={{ height: height(0, src) }} />
            <i class="hollow" style={{ height: height(1, src) }} />
            {hasPatched(data) && <i class="third" style={{ height: height(2, src) }} />}
          </span>
        ))}
      </div>
      {!frame.upright && (
        <div class="bar-names" style={{ 'margin-left': `${gutter}px` }} aria-hidden="true">
          {pair.clean_tokens.map((t, i) => (
            <span key={i} class={pair.differs.includes(i) ? 'on' : ''} style={{ width: `${col}px` }}>
              {i === 0 && pair.has_bos ? 'bos' : visible(t)}
              {pair.differs.includes(i) && `/${visible(pair.corrupted_tokens[i] ?? '').replace(/^·/, '')}`}
            </span>
          ))}
        </div>
      )}
    </div>
  )
}
