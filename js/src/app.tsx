// The whole widget, top to bottom, and what it knows of the room it has.

import { AttentionPanel, askForAttention } from './attention'
import { Bar, Progress } from './bar'
import { type Child, h, patch, type VNode } from './dom'
import { Card, Failure, Footer } from './foot'
import { gridFor, NARROW, UPRIGHT, WIDE } from './geometry'
import { Header, Sentence } from './head'
import { Inspector } from './inspector'
import { followTheme, type Look, look } from './look'
import { type Frame, HeatMaps } from './map'
import { handOver } from './save'
import { Quadrants } from './scatter'
import type { Store } from './store'
import { Strips } from './strips'
import { STYLE } from './style'
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

interface Room {
  seen: Look
  font: string
}

function App({ store, room }: { store: Store; room: Room }): Child {
  const frame = frameFor(store.width.value || GUESS, store.pair.clean_tokens, room.seen, room.font)
  const { theme, background } = room.seen
  return (
    <div
      class="nbp"
      data-testid="nbp-root"
      data-theme={theme}
      style={background ? { '--bg': background } : {}}
    >
      <style>{STYLE}</style>
      <div class="inside">
        <Header store={store} />
        <Failure store={store} />
        <Sentence store={store} />
        <Bar store={store} />
        <Progress store={store} />
        <div class="main">
          <div class="sweep">
            <Strips store={store} place={{ grid: frame.grid, wrap: frame.upright }} />
            <div class="pair-of-views">
              <HeatMaps store={store} frame={frame} />
              <Quadrants store={store} frame={frame} />
            </div>
          </div>
          <Inspector store={store} />
          <AttentionPanel store={store} frame={frame} />
        </div>
        <Card store={store} />
        <Footer store={store} />
      </div>
    </div>
  )
}

/** Draws the widget into an element and keeps it true to its store; returns what takes it off again. */
export function show(el: HTMLElement, store: Store): () => void {
  const page = el.ownerDocument
  const view = page.defaultView as Window & typeof globalThis
  let room: Room = { seen: look(el), font: 'sans-serif' }
  let tree: VNode[] = []
  let due = false
  let gone = false
  const draw = () => {
    due = false
    if (gone) return
    tree = patch(el, tree, <App store={store} room={room} />)
    askForAttention(store)
  }
  const soon = () => {
    if (!due) queueMicrotask(draw)
    due = true
  }
  draw()
  const root = el.querySelector('.nbp') as HTMLElement
  const measure = () => {
    room = { seen: look(el), font: view.getComputedStyle(root).fontFamily || room.font }
    store.width.value = root.clientWidth
    soon()
  }
  measure()
  draw()
  const observer = view.ResizeObserver ? new view.ResizeObserver(measure) : null
  observer?.observe(root)
  const stops = [store.watch(soon), followTheme(el, measure), handExports(store, page)]
  return () => {
    gone = true
    observer?.disconnect()
    for (const stop of stops) stop()
    patch(el, tree, [])
  }
}

/** Hands what Python exported to the browser as it arrives. */
function handExports(store: Store, page: Document): () => void {
  let last = store.exported.value
  return store.watch(() => {
    const made = store.exported.value
    if (!made || made === last) return
    last = made
    handOver(page, made).then((said) => {
      store.notice.value = said
    })
  })
}
