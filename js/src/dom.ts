// A view layer of one page: JSX to plain nodes, and the smallest change from one tree to the next.
//
// The whole widget is drawn anew from its store on every change, so components are plain functions without state.
// A canvas is painted by its `paint` property, again only when one of the values in `when` is another one.

export interface VNode {
  tag: string
  key: string | number | undefined
  props: Props
  kids: VNode[]
  el?: Node
}

type Props = Record<string, unknown>
export type Child = VNode | string | number | boolean | null | undefined | Child[]

export interface Paint<E> {
  when: readonly unknown[]
  run: (el: E) => void
}

type On<K extends Event, E> = (event: K & { currentTarget: E }) => void

interface Attributes<E> {
  key?: string | number
  class?: string
  style?: Record<string, string | number>
  paint?: Paint<E>
  children?: Child
  onClick?: On<MouseEvent, E>
  onMouseMove?: On<MouseEvent, E>
  onMouseEnter?: On<MouseEvent, E>
  onMouseLeave?: On<MouseEvent, E>
  onKeyDown?: On<KeyboardEvent, E>
  onChange?: On<Event, E>
  onInput?: On<Event, E>
  onMouseDown?: On<MouseEvent, E>
  onToggle?: On<Event, E>
  onFocus?: On<FocusEvent, E>
  onClose?: On<Event, E>
  onBlur?: On<FocusEvent, E>
  onFocusOut?: On<FocusEvent, E>
  [name: string]: unknown
}

type Html = { [T in keyof HTMLElementTagNameMap]: Attributes<HTMLElementTagNameMap[T]> }
type Svg = {
  [T in
    | 'svg'
    | 'g'
    | 'path'
    | 'circle'
    | 'rect'
    | 'text'
    | 'tspan'
    | 'line'
    | 'polyline'
    | 'title']: Attributes<SVGElement>
}

type Component = (props: never) => Child

const TEXT = '#'
const HOLE = '!'
const SVG = 'http://www.w3.org/2000/svg'

export function h(tag: string | Component, props: Props | null, ...children: Child[]): Child {
  const { key, ...rest } = props ?? {}
  if (typeof tag === 'function') {
    const made = tag({ ...rest, children } as never)
    return key !== undefined && isNode(made) ? { ...made, key: key as VNode['key'] } : made
  }
  return { tag, key: key as VNode['key'], props: rest, kids: flat(children) }
}

export declare namespace h {
  namespace JSX {
    type Element = Child
    type ElementType = string | Component
    type IntrinsicElements = Html & Svg
    interface ElementChildrenAttribute {
      children: unknown
    }
    interface IntrinsicAttributes {
      key?: string | number
    }
  }
}

export const Fragment = ({ children }: { children?: Child }): Child => children

/** Children in one list. What is absent keeps its place, so that what follows is recognised again. */
function flat(children: Child): VNode[] {
  if (Array.isArray(children)) return children.flatMap(flat)
  if (children === null || children === undefined || typeof children === 'boolean') return [leaf(HOLE, '')]
  return typeof children === 'object' ? [children] : [leaf(TEXT, String(children))]
}

const isNode = (x: Child): x is VNode => typeof x === 'object' && x !== null && !Array.isArray(x)

const leaf = (tag: string, text: string): VNode => ({ tag, key: undefined, props: { text }, kids: [] })

type Later = (() => void)[]

/** Makes `parent` show `next` where it showed `old`; returns what to hand in as `old` the next time. */
export function patch(parent: Element, old: readonly VNode[], next: Child): VNode[] {
  const later: Later = []
  const nodes = flat(next)
  children(parent, old, nodes, later)
  for (const run of later) run()
  return nodes
}

/** Whether one list of nodes takes the other's place node by node, as on most drawings. */
const inStep = (old: readonly VNode[], next: readonly VNode[]): boolean =>
  old.length === next.length && next.every((n, i) => n.tag === old[i]?.tag && n.key === old[i]?.key)

function children(parent: Element, old: readonly VNode[], next: readonly VNode[], later: Later): void {
  if (inStep(old, next)) {
    next.forEach((node, i) => void update(parent, old[i], node, later))
    return
  }
  const keyed = new Map(old.map((o) => [o.key, o]))
  const loose = old.filter((o) => o.key === undefined)
  const used = new Set<VNode>()
  let i = 0
  for (const node of next) {
    const before = node.key === undefined ? loose[i++] : keyed.get(node.key)
    const same = before?.tag === node.tag && !used.has(before) ? before : undefined
    if (same) used.add(same)
    update(parent, same, node, later)
  }
  for (const o of old) if (!used.has(o)) (o.el as ChildNode).remove()
  let after: Node | null = null
  for (let k = next.length - 1; k >= 0; k--) {
    const el = (next[k] as VNode).el as Node
    if (el.parentNode !== parent || el.nextSibling !== after) parent.insertBefore(el, after)
    after = el
  }
}

function update(parent: Element, old: VNode | undefined, node: VNode, later: Later): void {
  // A node that was kept, not made anew, is on the page as it is.
  if (old === node) return
  const page = parent.ownerDocument
  if (node.tag === TEXT || node.tag === HOLE) {
    node.el = old?.el ?? page.createTextNode('')
    if (node.props.text !== old?.props.text) node.el.nodeValue = node.props.text as string
    return
  }
  const svg = node.tag === 'svg' || parent.namespaceURI === SVG
  node.el = old?.el ?? (svg ? page.createElementNS(SVG, node.tag) : page.createElement(node.tag))
  const el = node.el as HTMLElement
  children(el, old?.kids ?? [], node.kids, later)
  const before = old?.props ?? {}
  for (const name in before) if (!(name in node.props)) set(el, name, undefined, before[name])
  for (const name in node.props) set(el, name, node.props[name], before[name])
  const paint = node.props.paint as Paint<HTMLElement> | undefined
  const painted = (before.paint as Paint<HTMLElement> | undefined)?.when
  if (paint && !(painted && paint.when.every((v, i) => Object.is(v, painted[i]))))
    later.push(() => paint.run(el))
}

type Listening = HTMLElement & { nbpOn?: Record<string, ((event: Event) => void) | undefined> }

function hear(this: Listening, event: Event): void {
  this.nbpOn?.[event.type]?.call(this, event)
}

const styleText = (style: unknown): string =>
  Object.entries((style ?? {}) as Props)
    .map(([name, value]) => `${name}:${value}`)
    .join(';')

function set(el: Listening, name: string, value: unknown, old: unknown): void {
  if (name === 'value' || name === 'checked') {
    const field = el as unknown as Props
    if (field[name] !== value) field[name] = value
  } else if (name === 'defaultValue') {
    if (old === undefined) (el as HTMLInputElement).value = String(value)
  } else if (value === old || name === 'paint') return
  else if (name.startsWith('on')) {
    const type = name.slice(2).toLowerCase()
    el.nbpOn ??= {}
    if (!(type in el.nbpOn)) el.addEventListener(type, hear as EventListener)
    el.nbpOn[type] = value as (event: Event) => void
  } else if (name === 'style') {
    const text = styleText(value)
    if (text !== styleText(old)) el.style.cssText = text
  } else if (value === undefined || value === null || (value === false && !/^(aria|data)-/.test(name)))
    el.removeAttribute(name)
  else el.setAttribute(name, value === true && !/^(aria|data)-/.test(name) ? '' : String(value))
}
