// How the later bundles, with the linked views, get into the page: once per page and version, whoever asks first.

import type { Scale, Theme } from './colour'
import type { Child } from './dom'
import type { Rows } from './geometry'
import type { ToolAct } from './keys'
import type { Frame } from './map'
import type { Side } from './sentence'
import type { Store } from './store'
import type { Table } from './table'
import type { HeatMap } from './wire'

/** What a view is drawn from. */
export interface ViewProps {
  store: Store
  frame: Frame
}
/** A map's surface as it lies on the page. */
export interface Surface {
  store: Store
  table: Table
  rows: Rows
  col: number
  theme: Theme
  /** Row and column under the pointer, or null beside the cells. */
  hit(event: MouseEvent & { currentTarget: HTMLDivElement }): [row: number, col: number] | null
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

/** Around the map: header, question, footer, the row of tools under it, and what keys do there: tools.js. */
export interface Tools {
  style: string
  header: View
  sentence: View
  bar: View
  directions: View
  progress: View
  failure: View
  card: View
  footer: View
  row: View
  corner(props: { store: Store }): Child
  lens(store: Store): Lens
  act(store: Store, act: ToolAct, near: HTMLElement): void
  /** Saves what is on screen without Python. */
  save(store: Store, kind: string, near: HTMLElement): void
  /** Called once per mounted widget; each returns what ends it. */
  starts: ((store: Store, page: Document) => () => void)[]
  /** Ctrl or Cmd with the wheel, over a map. */
  wheel(store: Store, event: WheelEvent & { currentTarget: HTMLElement }): void
}

/** What hangs on the map: views.js. */
export interface Views {
  style: string
  inspector: View
  attention: View
  scatter: View
  /** What the pointer does on a map beyond pointing, and what lies over its cells then. */
  hold(surface: Surface): { on: Record<string, unknown>; marks: Child }
  /** Whether a key on the map was one of a brush or a move, which is done then. */
  keys(store: Store, table: Table, event: KeyboardEvent): boolean
  /** Called after every drawing: asks Python for what is missing. */
  asks: ((store: Store) => void)[]
  /** Called once per mounted widget; each returns what ends it. */
  starts: ((store: Store, page: Document) => () => void)[]
}

/** What edits prompts and answers: editor.js. */
export interface Editors {
  style: string
  /** Below the token strips: what is being typed, how the prompts part, what is odd about them. */
  editor: View
  /** What is wrong with the prompts, in words. */
  failure: View
  /** In the inspector's place when prompts do not meet: what to do about it. */
  waysOut(store: Store): Child
  /** Warnings about the answers. */
  concerns(store: Store): Child
  menus: {
    pairs(store: Store): Child
    templates(store: Store): Child
    past(store: Store): Child
    key(store: Store, e: KeyboardEvent): void
  }
  picker: { list(store: Store, side: Side): Child; key(store: Store, side: Side, e: KeyboardEvent): boolean }
  /** Called after every drawing. */
  asks: ((store: Store) => void)[]
}

/** One view with its style: paths.js, circuit.js. */
export interface Later {
  style: string
  view: View
}

export interface Bundles {
  views: Views
  tools: Tools
  editor: Editors
  paths: Later
  circuit: Later
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
