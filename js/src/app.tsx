// The whole widget, top to bottom, and what it knows of the room it has.

import { type Child, Fragment, h, patch, type VNode } from './dom'
import { gridFor, NARROW, UPRIGHT, WIDE } from './geometry'
import type { ViewProps } from './load'
import { followTheme, type Look, look } from './look'
import { type Frame, HeatMaps } from './map'
import { Sheets } from './sheets'
import type { Store } from './store'
import { Strips } from './strips'
import { ROOM, STYLE } from './style'
import { TOKENS } from './style.generated'

const SIDE = 304
const GUESS = 900

/** Sizes of everything that lies on the token grid, from the width of the root. */
export function frameFor(width: number, tokens: readonly string[], seen: Look, font: string): Frame {
  const narrow = width < NARROW
  const wide = width >= WIDE
  const space = Math.floor(width - 2 - (wide ? SIDE + 1 : 0) - (narrow ? 24 : 40))
  const longest = Math.max(4, ...tokens.map((t) => t.length))
  const grid = gridFor(space, tokens.length, narrow, Math.max(44, Math.min(76, longest * 8 + 12)))
  const upright = narrow || grid.col < UPRIGHT
  const background = seen.background ?? (TOKENS[seen.theme].bg as string)
  return { grid, space, narrow, upright, theme: seen.theme, font, background }
}

/** Styles in the order in which they count; those of later bundles come when they do. */
function stylesOf(store: Store): (string | undefined)[] {
  const { views, tools, editor, paths, circuit } = store.bundles.value
  return [STYLE, views?.style, tools?.style, editor?.style, paths?.style, circuit?.style, ROOM]
}

interface Room {
  seen: Look
  font: string
}

function App({ store, room }: { store: Store; room: Room }): Child {
  const frame = frameFor(store.width.value || GUESS, store.pair.clean_tokens, room.seen, room.font)
  const { theme, background } = room.seen
  const { editor } = store.bundles.value
  const view = store.spec.value.view ?? 'workbench'
  return (
    <div
      class="nbp"
      data-testid="nbp-root"
      data-theme={theme}
      data-view={view}
      style={background ? { '--bg': background } : {}}
      onKeyDown={(e) => {
        editor?.menus.key(store, e)
        keepKeys(e)
      }}
    >
      <div class={view === 'workbench' ? 'inside' : 'inside alone'}>
        {view === 'workbench' ? <Whole store={store} frame={frame} /> : one(view, { store, frame })}
      </div>
    </div>
  )
}

/** Keys without a modifier stay here: "d d" on a focused button would delete a cell of JupyterLab, Enter would edit it. */
function keepKeys(event: KeyboardEvent): void {
  const { key } = event
  const passes = key === 'Tab' || key === 'Escape' || (key === 'Enter' && event.shiftKey)
  if (!(passes || event.ctrlKey || event.metaKey || event.altKey)) event.stopPropagation()
}

/** One view by itself, as a widget of its own. */
function one(view: string, props: ViewProps): Child {
  const { store, frame } = props
  const { views, tools, circuit } = store.bundles.value
  switch (view) {
    case 'direction':
      return tools?.directions(props)
    case 'prompts':
      return <Prompts store={store} frame={frame} />
    case 'map':
      return <Maps store={store} frame={frame} />
    case 'attention':
      return views?.attention(props)
    default:
      return circuit?.view(props)
  }
}

const Prompts = ({ store, frame }: ViewProps): Child => (
  <>
    <Strips store={store} place={{ grid: frame.grid, wrap: frame.upright }} />
    {store.bundles.value.editor?.editor({ store, frame })}
  </>
)

const Maps = ({ store, frame }: ViewProps): Child => (
  <div class="sweep">
    <Prompts store={store} frame={frame} />
    <div class="pair-of-views">
      <HeatMaps store={store} frame={frame} />
      {store.bundles.value.views?.scatter({ store, frame })}
    </div>
  </div>
)

/** The room of what comes with a later bundle, kept free so that nothing jumps. */
const HEADER = { 'min-height': '41px' }
const BAR = { 'min-height': '44px' }
const SENTENCE = { 'min-height': '77px' }

/** The workbench: header, question, and what its tab shows. */
function Whole(props: ViewProps): Child {
  const { store, frame } = props
  const { views, tools, editor, paths, circuit } = store.bundles.value
  const tab = store.tab.value
  const error = store.error.value
  return (
    <>
      {tools ? tools.header(props) : <div style={HEADER} />}
      {tools?.failure(props)}
      {tab === 'paths' && paths?.view({ store, frame })}
      {tab === 'circuit' && circuit?.view({ store, frame })}
      {tab === 'sweep' && (
        <>
          {tools ? tools.sentence(props) : <div style={SENTENCE} />}
          {tools ? tools.bar(props) : <div style={BAR} />}
          {tools?.progress(props)}
          <div class={`main${error ? ' failed' : ''}${/^c/.test(error?.field ?? '') ? ' open' : ''}`}>
            <Maps store={store} frame={frame} />
            {editor?.waysOut(store) || views?.inspector({ store, frame }) || <aside class="inspector" />}
            {views?.attention({ store, frame })}
          </div>
          {tools?.card(props)}
        </>
      )}
      {tools ? tools.footer(props) : <Waiting store={store} />}
    </>
  )
}

/** What is to be said before the footer is here, or where Python is not there to send it. */
const Waiting = ({ store }: { store: Store }): Child =>
  store.notice.value && (
    <footer role="group" aria-label="State">
      <span data-testid="nbp-status" aria-live="polite" data-state={store.status.value.state}>
        {store.notice.value}
      </span>
    </footer>
  )

/** Draws the widget into an element and keeps it true to its store; returns what takes it off again. */
export function show(el: HTMLElement, store: Store): () => void {
  const page = el.ownerDocument
  const view = page.defaultView as Window & typeof globalThis
  let room: Room = { seen: look(el), font: 'sans-serif' }
  const sheets = new Sheets(el)
  let tree: VNode[] = []
  let due = false
  /** Whether this frame has its drawing already: what comes now waits for the next one. */
  let drawn = false
  let frame = 0
  let gone = false
  let attached = false
  const draw = () => {
    due = false
    if (gone) return
    // A view that its host took off the page and keeps, as JupyterLab does when an output is updated, asks for nothing.
    attached ||= el.isConnected
    if (attached && !el.isConnected) return
    sheets.wear(stylesOf(store))
    tree = patch(el, tree, <App store={store} room={room} />)
    const { views, editor } = store.bundles.value
    for (const ask of [...(views?.asks ?? []), ...(editor?.asks ?? [])]) ask(store)
  }
  const soon = () => {
    if (!due && !drawn) queueMicrotask(drawInFrame)
    due = true
  }
  const drawInFrame = () => {
    drawn = true
    frame = view.requestAnimationFrame(() => {
      drawn = false
      if (due) drawInFrame()
    })
    if (due) draw()
  }
  // Keys act on what they see: one that follows another in the same frame must find where the first has led.
  const flush = () => {
    if (due) draw()
  }
  el.addEventListener('keydown', flush, true)
  if (store.spec.value.view === 'circuit') store.need('circuit')
  draw()
  const root = el.querySelector('.nbp') as HTMLElement
  const measure = () => {
    sheets.wear(stylesOf(store))
    room = { seen: look(el), font: view.getComputedStyle(root).fontFamily || room.font }
    store.width.value = root.clientWidth
    soon()
  }
  measure()
  draw()
  const observer = view.ResizeObserver ? new view.ResizeObserver(measure) : null
  observer?.observe(root)
  const stops = [store.watch(soon), followTheme(el, measure)]
  const begun = new Set<object>()
  const start = () => {
    for (const one of [store.bundles.value.views, store.bundles.value.tools]) {
      if (gone || !one || begun.has(one)) continue
      begun.add(one)
      stops.push(...one.starts.map((begin) => begin(store, page)))
    }
  }
  const unwatch = store.watch(start)
  start()
  return () => {
    gone = true
    view.cancelAnimationFrame(frame)
    el.removeEventListener('keydown', flush, true)
    unwatch()
    observer?.disconnect()
    for (const stop of stops) stop()
    patch(el, tree, [])
    sheets.off()
  }
}
