// What of the maps is shown before any tool is used; the tools (tools.js) build on it.

import type { Lens } from './load'
import type { Store } from './store'
import { shares } from './table'
import type { HeatMap } from './wire'

/** How many cells of the maps lie beyond a limit of the colours. */
export function beyond(maps: readonly HeatMap[], limit: number): number {
  let n = 0
  for (const share of shares(maps)) if (Math.abs(share) > limit * 1.005) n++
  return n
}

/** The maps of the controls as they are. */
export function plainLens(store: Store): Lens {
  const maps = store.onScreen
  const limit = store.limitOf(maps)
  const far = store.once('beyond', [...maps, limit], () => beyond(maps, limit))
  const scale = { limit, log: false, note: far ? `${far} beyond` : '' }
  return { maps, order: null, scale, zoom: 1, square: false, minus: '' }
}

export const lensOf = (store: Store): Lens => store.bundles.value.tools?.lens(store) ?? plainLens(store)
