// The whole widget, top to bottom, and what it knows of the room it has.

import type { JSX } from 'preact'
import { useEffect, useLayoutEffect, useReducer, useRef, useState } from 'preact/hooks'
import { AttentionPanel } from './attention'
import { Bar, Progress } from './bar'
import { Card, Failure, Footer } from './foot'
import { gridFor, NARROW, UPRIGHT, WIDE } from './geometry'
import { Header, Sentence } from './head'
import { Inspector } from './inspector'
import { type Frame, HeatMaps } from './map'
import { handOver } from './save'
import { Quadrants } from './scatter'
import type { Store } from './store'
import { Strips } from './strips'
import { STYLE } from './style'
import { TOKENS } from './style.generated'
import { followTheme, type Look, look } from './look'

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

export function App({ store }: { store: Store }): JSX.Element {
  const root = useRef<HTMLDivElement>(null)
  const [seen, setSeen] = useState<Look>({ theme: 'light', background: null })
  const [font, setFont] = useState('sans-serif')
  const [, again] = useReducer((n: number) => n + 1, 0)
  useLayoutEffect(() => {
    const el = root.current
    const view = el?.ownerDocument.defaultView
    if (!el || !view) return
    const measure = () => {
      store.width.value = el.clientWidth
      setFont(view.getComputedStyle(el).fontFamily || 'sans-serif')
    }
    const themed = () => {
      const now = look(el.parentElement ?? el)
      setSeen((old) => (now.theme === old.theme && now.background === old.background ? old : now))
    }
    const unwatch = store.watch(() => again(undefined))
    measure()
    themed()
    const observer = view.ResizeObserver ? new view.ResizeObserver(measure) : null
    observer?.observe(el)
    const unfollow = followTheme(el, themed)
    return () => {
      observer?.disconnect()
      unfollow()
      unwatch()
    }
  }, [])
  useExports(store, root)
  const width = store.width.value || GUESS
  const frame = frameFor(width, store.pair.clean_tokens, seen, font)
  const focus = (testid: string) => root.current?.querySelector<HTMLElement>(`[data-testid="${testid}"]`)?.focus()
  const { theme, background } = seen
  return (
    <div
      ref={root}
      class="nbp"
      data-testid="nbp-root"
      data-theme={theme}
      style={background ? { '--bg': background } : {}}
    >
      <style>{STYLE}</style>
      <div class="inside">
        <Header store={store} />
        <Failure store={store} />
        <Sentence store={store} focus={focus} />
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

/** Hands what Python exported to the browser as it arrives. */
function useExports(store: Store, root: { current: HTMLElement | null }): void {
  const made = store.exported.value
  useEffect(() => {
    const page = root.current?.ownerDocument
    if (!made || !page) return
    handOver(page, made).then((said) => {
      store.notice.value = said
    })
  }, [made])
}
