// The map of paths: a row per layer, heads and MLPs side by side, embeddings or logits in a row of their own.

import { penOf } from './canvas'
import { type Child, h } from './dom'
import { drawMap, type Pen } from './draw'
import { plural, readNumber } from './format'
import { keyAct } from './keys'
import { Legend } from './legend'
import type { Frame } from './map'
import {
  type Box,
  boxAt,
  heightOf,
  type Layout,
  layOutPaths,
  nameAt,
  nameUnder,
  parts,
  placeOf,
} from './paths_layout'
import { change, choose, chosenOf, type Drawn, hoverOf, lookOf, toldOf } from './paths_state'
import { edge } from './paths_words'
import type { Store } from './store'
import { yardstick } from './table'
import { type HeatMap, State } from './wire'
import { finding } from './words'

interface MapProps {
  store: Store
  frame: Frame
  now: Drawn
  map: HeatMap
}

export function PathMap({ store, frame, now, map }: MapProps): Child {
  const { model } = store.spec.value
  const gutter = frame.narrow ? 52 : 64
  const right = frame.narrow ? 0 : 70
  const layout = layOutPaths(now.told.axis, model, frame.space - gutter - right, frame.narrow)
  const limit = store.limitOf([map])
  const chosen = chosenOf(store, map)
  const hover = hoverOf(store)
  const shown = hover.value ?? chosen
  const index = (map.coords[map.dims[0] as string] ?? []).indexOf(shown ?? '')
  const scale = { limit, log: false, note: '' }
  const look = {
    theme: frame.theme,
    scale,
    font: frame.font,
    background: frame.background,
    narrow: frame.narrow,
  }
  const run = (canvas: HTMLCanvasElement) => {
    const pen = penOf(canvas, layout.width, layout.total)
    if (!pen) return
    for (const { x, y, scene } of parts(map, layout, look)) {
      pen.save()
      pen.translate(x, y)
      drawMap(pen as Pen, scene)
      pen.restore()
    }
  }
  const when = [map, layout.width, layout.total, layout.cols, frame.theme, limit, frame.font, frame.narrow]
  const hit = (event: MouseEvent & { currentTarget: HTMLElement }): string | null => {
    const box = event.currentTarget.getBoundingClientRect()
    return nameUnder(layout, event.clientX - box.left, event.clientY - box.top)
  }
  const point = (name: string | null) => {
    if (name !== hover.value) hover.value = name
  }
  return (
    <div class={`maps${now.stale ? ' stale' : ''}`} style={{ '--gutter': `${gutter}px` }}>
      <Focusable store={store} layout={layout} now={now} map={map}>
        <div class="one">
          <Heads layout={layout} shown={shown} />
          <div class="body">
            <Layers layout={layout} shown={shown} narrow={frame.narrow} />
            <div
              class="surface"
              style={{ width: `${layout.width}px`, height: `${layout.total}px` }}
              onMouseMove={(e) => point(hit(e))}
              onMouseLeave={() => point(null)}
              onClick={(e) => {
                const name = hit(e)
                if (name) choose(store, name)
              }}
            >
              <canvas
                paint={{ when, run }}
                style={{ width: `${layout.width}px`, height: `${layout.total}px` }}
              />
              <Ring box={boxAt(layout, chosen)} kind={lookOf(store).value.pinned ? 'ring pinned' : 'ring'} />
              <Ring box={boxAt(layout, hover.value)} kind="outline" />
            </div>
            {!frame.narrow && (
              <Legend map={map} scale={scale} index={index} height={Math.min(150, layout.total)} />
            )}
          </div>
        </div>
      </Focusable>
      {frame.narrow && <Legend map={map} scale={scale} index={index} height={0} />}
      <Readout store={store} map={map} now={now} limit={limit} shown={shown} />
    </div>
  )
}

interface FocusProps {
  store: Store
  layout: Layout
  now: Drawn
  map: HeatMap
  children?: Child
}

/** The part that takes the focus and the keys. The chosen cell is named for screen readers. */
function Focusable({ store, layout, now, map, children }: FocusProps): Child {
  const chosen = chosenOf(store, map)
  const at = placeOf(layout, chosen)
  const onKeyDown = (event: KeyboardEvent) => {
    const told = toldOf(store)
    const size = { rows: layout.rows.length, cols: layout.cols }
    const act = keyAct(event, { at, ...size, direction: told.direction })
    if (!act) return
    event.preventDefault()
    event.stopPropagation()
    if (act.do === 'move') choose(store, nameAt(layout, act.row, act.col))
    else if (act.do === 'pin') change(store, { pinned: !!chosen && !lookOf(store).value.pinned })
    else if (act.do === 'clear') choose(store, null)
    else change(store, { direction: told.direction === 'denoising' ? 'noising' : 'denoising' })
  }
  return (
    <div
      class="grid"
      data-testid="nbp-paths-map"
      role="grid"
      tabIndex={0}
      aria-activedescendant={`${store.id}pc`}
      aria-label={now.told.axis === 'sender' ? 'Effect of each sender' : 'Effect through each receiver'}
      aria-rowcount={layout.rows.length}
      aria-colcount={layout.cols}
      data-rows={layout.rows.length}
      data-cols={layout.cols}
      data-final={map.final && !now.stale}
      data-lm-suppress-shortcuts="true"
      onKeyDown={onKeyDown}
    >
      <div role="row" class="hidden" aria-rowindex={(at?.[0] ?? 0) + 1}>
        <div role="gridcell" id={`${store.id}pc`} aria-colindex={(at?.[1] ?? 0) + 1} aria-selected={!!at}>
          {chosen ? readout(store, map, now, chosen) : 'no cell selected'}
        </div>
      </div>
      {children}
    </div>
  )
}

/** "Head 1.0 → head 2.1’s queries: +0.03 of the gap restored, +0.33 logits." */
export function readout(store: Store, map: HeatMap, now: Drawn, name: string): string {
  const { model } = store.spec.value
  const words = edge(now.told, name, model.n_kv_heads < model.n_heads)
  return `${words}: ${finding(map, { [map.dims[0] as string]: name })}.`
}

/** Over the columns: what each band is, and its heads. */
function Heads({ layout, shown }: { layout: Layout; shown: string | null }): Child {
  const at = placeOf(layout, shown)
  const alone = at && layout.rows[at[0]]?.alone
  return (
    <div class="path-heads" aria-hidden="true" style={{ width: `${layout.width}px` }}>
      {layout.bands.map((band) => (
        <div key={band.kind} style={{ left: `${band.x}px`, width: `${band.col * band.cols}px` }}>
          <span class="title">{band.title}</span>
          {band.cols > 1 && (
            <span class="numbers">
              {Array.from({ length: band.cols }, (_, c) => (
                <span key={c} class={!alone && at?.[1] === band.from + c ? 'on' : ''}>
                  {band.col >= 16 || c % 4 === 0 ? c : ''}
                </span>
              ))}
            </span>
          )}
        </div>
      ))}
    </div>
  )
}

function Layers({ layout, shown, narrow }: { layout: Layout; shown: string | null; narrow: boolean }): Child {
  const at = placeOf(layout, shown)
  return (
    <div class="rownames" aria-hidden="true">
      {layout.rows.map((row, r) => {
        const tall = heightOf(layout, row)
        const style = { top: `${row.top}px`, height: `${tall}px`, 'line-height': `${tall}px` }
        return (
          <span key={row.name} class={at?.[0] === r ? 'on' : ''} style={style}>
            {row.name === '0' && !narrow && 'layer '}
            {row.name}
          </span>
        )
      })}
    </div>
  )
}

function Ring({ box, kind }: { box: Box | null; kind: string }): Child {
  if (!box) return null
  const style = { left: `${box.x}px`, top: `${box.y}px`, width: `${box.w}px`, height: `${box.h}px` }
  return <i class={kind} style={style} />
}

interface ReadoutProps {
  store: Store
  map: HeatMap
  now: Drawn
  limit: number
  shown: string | null
}

function Readout({ store, map, now, limit, shown }: ReadoutProps): Child {
  const gap = `${readNumber(map.gap).replace(/^\+/, '')} ${plural(map.unit, map.gap)}`.trim()
  return (
    <div class="under">
      <span data-testid="nbp-paths-readout" aria-live="polite">
        {shown ? readout(store, map, now, shown) : 'Point at a cell, or move with the arrow keys.'}
      </span>
      <span class="dim">
        {yardstick(map).share
          ? `Colour: effect as a share of the gap (${gap})`
          : 'Colour: effect over the largest; there is no gap to share out'}
        {limit < 1 && `, ±${String(limit).replace(/^0/, '')} at most`}
        {map.state.includes(State.NoPath) && '; hatched: no causal path'}
      </span>
    </div>
  )
}
