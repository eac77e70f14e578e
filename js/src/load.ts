// How the later bundles, with the linked views, get into the page: once per page and version, whoever asks first.

import type { Scale } from './colour'
import type { Child } from './dom'
import type { ToolAct } from './keys'
import type { Frame } from './map'
import type { Store } from './store'
import type { HeatMap } from './wire'

/** What a view is drawn from. */
export interface ViewProps {
  store: Store
  frame: Frame
}
export type View = (props: ViewProps) => Child

/** How the map on screen is shown: what of it, in which order, in which colours, how large. */
export interface Lens {
  /** What is drawn: the maps of the controls, or their difference from other ones. */
  maps: readonly HeatMap[]
  /** Rows in order, by their numbers in the map; null for all of them as they are. */
  order: readonly number[] | null
  scale: Scale
  zoom: number
  square: boolean
  /** What is subtracted, in words; "" for nothing. */
  minus: string
}

/** Around the map: the row of tools under it, two buttons in the header, and what keys do there. */
export interface Tools {
  row: View
  corner(props: { store: Store }): Child
  lens(store: Store): Lens
  act(store: Store, act: ToolAct, near: HTMLElement): void
  /** Ctrl or Cmd with the wheel, over a map. */
  wheel(store: Store, event: WheelEvent & { currentTarget: HTMLElement }): void
}

/** What hangs on the map: views.js. */
export interface Views {
  style: string
  inspector: View
  attention: View
  scatter: View
  tools?: Tools
  /** Saves what is on screen without Python. */
  save(store: Store, kind: string, near: HTMLElement): void
  /** Called after every drawing: asks Python for what is missing. */
  asks: ((store: Store) => void)[]
  /** Called once per mounted widget; each returns what ends it. */
  starts: ((store: Store, page: Document) => () => void)[]
}

/** Paths and circuits: graphs.js. */
export interface Graphs {
  style: string
  paths: View
  circuit: View
}

export interface Bundles {
  views: Views
  graphs: Graphs
}
export type BundleName = keyof Bundles

/** What the build calls this version of each later bundle. */
declare const VERSIONS: Record<BundleName, string>

type Page = Record<symbol, Promise<unknown> | undefined>
const keyOf = (name: BundleName): symbol => Symbol.for(`nbpatch.${name}.${VERSIONS[name]}`)

/** What this page has loaded before, perhaps for another widget. */
export const loaded = <N extends BundleName>(name: N): Promise<Bundles[N]> | undefined =>
  (globalThis as unknown as Page)[keyOf(name)] as Promise<Bundles[N]> | undefined

/** Makes a bundle known to all widgets of the page that are of this version. */
export function keep<N extends BundleName>(name: N, bundle: Promise<Bundles[N]>): Promise<Bundles[N]> {
  ;(globalThis as unknown as Page)[keyOf(name)] = bundle
  return bundle
}

export const isOurs = (name: BundleName, version: unknown): boolean => VERSIONS[name] === version

/** Loads a bundle from its text, as anywidget loads the first. */
export async function load<N extends BundleName>(text: Uint8Array): Promise<Bundles[N]> {
  const url = URL.createObjectURL(new Blob([text.slice()], { type: 'text/javascript' }))
  try {
    const found = (await import(/* @vite-ignore */ url)) as { bundle: Bundles[N] }
    return found.bundle
  } finally {
    URL.revokeObjectURL(url)
  }
}
