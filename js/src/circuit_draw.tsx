// The circuit itself: tokens on top, layers downwards, edges in the colour of their sign and as wide as they are strong.

import { answerText, type Edge, ofSign } from './circuit_data'
import type { Band, Column, Curve, Drawing, NodeBox } from './circuit_layout'
import { controls, hovered, isPicked, nameOf, type Picked, pick, picked, touches } from './circuit_state'
import { css, diverging, type Theme } from './colour'
import { type Child, Fragment, h } from './dom'
import { plural, readNumber, visible } from './format'
import type { Store } from './store'

const WIDEST = 6.1
const THINNEST = 0.9
const PALEST = 0.45

const widthOf = (edge: Edge, most: number): number =>
  Math.max(THINNEST, (WIDEST * Math.abs(edge.score)) / (most || 1))

export const colourOf = (score: number, most: number, theme: Theme): string =>
  css(diverging(Math.sign(score) * Math.max(PALEST, Math.abs(score) / (most || 1)), theme))

interface Props {
  store: Store
  drawing: Drawing
  kept: readonly Edge[]
  unit: string
  theme: Theme
  label: string
}

export function Circuit(props: Props): Child {
  const { store, drawing, kept, theme } = props
  const now = picked(store)
  const point = hovered(store)
  const most = Math.max(1e-12, ...kept.map((e) => Math.abs(e.score)))
  const order = [...drawing.curves].reverse()
  const shown = new Set(ofSign(kept, controls(store).show).map((e) => e.name))
  const lit = (c: Curve): boolean => now !== null && touches(now, c.edge)
  const marked = drawing.curves.find((c) => c.edge.name === point.value) ?? onlyEdge(now, drawing.curves)
  return (
    <div class="drawing" data-testid="nbp-circuit" data-edges={kept.length}>
      <svg
        width={drawing.width}
        height={drawing.height}
        viewBox={`0 0 ${drawing.width} ${drawing.height}`}
        role="group"
        tabindex="0"
        aria-label={props.label}
        data-lm-suppress-shortcuts="true"
        onKeyDown={(e) => keyed(e, store, drawing)}
      >
        {drawing.bands.map((band) => (
          <Row key={band.first} band={band} width={drawing.width} layers={drawing.bands.at(-1)?.first ?? 0} />
        ))}
        {drawing.columns.map((column) => (
          <Head key={column.first} store={store} column={column} />
        ))}
        <g class="edges">
          {order.map((c, i) => (
            <Line
              key={`${c.edge.name}${i}`}
              curve={c}
              width={widthOf(c.edge, most)}
              colour={colourOf(c.edge.score, most, theme)}
              faint={!shown.has(c.edge.name) || (now !== null && 'node' in now && !lit(c))}
              on={now !== null && 'edge' in now && lit(c)}
            />
          ))}
        </g>
        <g class="hits">
          {order
            .filter((c) => shown.has(c.edge.name))
            .map((c, i) => (
              <path
                key={`${c.edge.name}${i}`}
                d={c.d}
                data-edge={c.edge.name}
                onMouseEnter={() => {
                  point.value = c.edge.name
                }}
                onMouseLeave={() => {
                  if (point.value === c.edge.name) point.value = null
                }}
                onClick={() => pick(store, { edge: c.edge.name })}
              />
            ))}
        </g>
        {drawing.nodes.map((node) => (
          <Node key={node.key} store={store} node={node} on={ends(now, node)} />
        ))}
        {marked && <Label curve={marked} unit={props.unit} width={drawing.width} />}
      </svg>
    </div>
  )
}

const onlyEdge = (now: Picked, curves: readonly Curve[]): Curve | undefined =>
  now && 'edge' in now ? curves.find((c) => c.edge.name === now.edge) : undefined

/** Whether a node is chosen, or is an end of the chosen edge. */
function ends(now: Picked, node: NodeBox): boolean {
  if (!now) return false
  if ('node' in now) return isPicked(now, node)
  const [edge = '', place] = now.edge.split(' @ ')
  const [from, to = ''] = edge.split('->')
  const name = nameOf(node)
  const here = place === undefined || node.pos === Number(place)
  if (from === name && here) return true
  return to.replace(/\.[qkv]$/, '') === name && (here || /\.[kv]$/.test(to) || to === 'logits')
}

function Row({ band, width, layers }: { band: Band; width: number; layers: number }): Child {
  const { first, last, top, height } = band
  const name = first < 0 ? 'tokens' : first === layers ? 'answer' : first === 0 ? 'layer 0' : String(first)
  const text = last > first ? `${first === 0 ? 'layers 0' : first}–${last}` : name
  const y = first < 0 ? 66 : first === layers ? top + 28 : top + height / 2
  return (
    <g class="row">
      {first >= 0 && <line x1="0" x2={width} y1={top} y2={top} />}
      <text x="0" y={y + 4}>
        {text}
      </text>
    </g>
  )
}

/** The top of a column: its position, and the tokens of a run in which nothing is kept. */
function Head({ store, column }: { store: Store; column: Column }): Child {
  if (column.first < 0) return null
  const x = column.x + column.width / 2
  const { first, last } = column
  const tokens = store.pair.clean_tokens.slice(first, last + 1).map(visible)
  const room = Math.floor((column.width - 8) / 6.4)
  return (
    <g class="top-of-column">
      <text class="index" x={x} y="28" text-anchor="middle">
        {last > first ? `${first}–${last}` : first}
      </text>
      {column.folded && (
        <>
          <text x={x} y="64" text-anchor="middle">
            {short(tokens, room)}
          </text>
          {column.width > 74 && (
            <text class="small" x={x} y="79" text-anchor="middle">
              no kept edge
            </text>
          )}
          <title>{`${tokens.join(' ')}: no kept edge`}</title>
        </>
      )}
    </g>
  )
}

/** Tokens in so many characters: the first ones and the last. */
export function short(tokens: readonly string[], room: number): string {
  const whole = tokens.join(' ')
  if (whole.length <= room) return whole
  if (tokens.length < 2) return room > 2 ? `${whole.slice(0, room - 1)}…` : '…'
  const [first = '', last = ''] = [tokens[0], tokens.at(-1)]
  if (first.length + last.length + 3 <= room) return `${first} … ${last}`
  return first.length + 2 <= room ? `${first} …` : '…'
}

function Line(props: { curve: Curve; width: number; colour: string; faint: boolean; on: boolean }): Child {
  const { curve, width, colour, faint, on } = props
  return (
    <g class={`${faint ? 'faint' : ''}${curve.beside ? ' beside' : ''}`}>
      {on && <path class="halo" d={curve.d} stroke-width={width + 6} />}
      {on && <path class="gap" d={curve.d} stroke-width={width + 3} />}
      <path d={curve.d} stroke={colour} stroke-width={width} />
    </g>
  )
}

function Node({ store, node, on }: { store: Store; node: NodeBox; on: boolean }): Child {
  const { x, y, w, h: high, end, pos } = node
  const pair = store.pair
  const differs = end.kind === 'embed' && (pos < 0 || pair.differs.includes(pos))
  const text = labelOf(store, node)
  const wide = end.kind === 'embed' || end.kind === 'logits' ? Math.max(w, 7.2 * text.length + 16) : w
  const choose = () => pick(store, isPicked(picked(store), node) ? null : { node: nameOf(node), pos })
  return (
    <g
      class={`node ${end.kind}${on ? ' on' : ''}${differs ? ' differs' : ''}`}
      data-node={node.key}
      onClick={choose}
    >
      {end.kind === 'head' ? (
        <circle cx={x} cy={y} r={w / 2} />
      ) : (
        <rect x={x - wide / 2} y={y - high / 2} width={wide} height={high} rx="4" />
      )}
      <text x={x} y={y + 4} text-anchor="middle">
        {text}
      </text>
    </g>
  )
}

/** What stands in a node: of a token that differs both, clean first. */
function labelOf(store: Store, { end, pos, label }: NodeBox): string {
  const pair = store.pair
  if (end.kind === 'logits') return answerText(pair)
  if (end.kind !== 'embed' || pos < 0) return label
  const [clean = label, corrupted = ''] = [pair.clean_tokens[pos], pair.corrupted_tokens[pos]]
  return pair.differs.includes(pos) ? `${visible(clean)} / ${visible(corrupted)}` : visible(clean)
}

function Label({ curve, unit, width }: { curve: Curve; unit: string; width: number }): Child {
  const { edge } = curve
  const amount = `${readNumber(edge.score)} ${plural(unit, edge.score)}`.trim()
  const text = [edge.input, amount].filter(Boolean).join(' · ')
  const w = 6.9 * text.length + 14
  const x = Math.min(width - w, Math.max(0, curve.middle[0] - w / 2))
  const y = curve.middle[1] - 11
  return (
    <g class="label">
      <rect x={x} y={y} width={w} height="21" rx="4" />
      <text x={x + w / 2} y={y + 14.5} text-anchor="middle">
        {text}
      </text>
    </g>
  )
}

const TOWARDS: Record<string, [number, number]> = {
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
}

/** The node that lies next in a direction: near, and not far aside. */
export function towards(key: string, from: NodeBox, nodes: readonly NodeBox[]): NodeBox | null {
  const [ax, ay] = TOWARDS[key] as [number, number]
  let best: [number, NodeBox] | null = null
  for (const node of nodes) {
    const [dx, dy] = [node.x - from.x, node.y - from.y]
    const ahead = dx * ax + dy * ay
    const cost = ahead + 2.5 * Math.abs(ax ? dy : dx)
    if (ahead > 1 && (!best || cost < best[0])) best = [cost, node]
  }
  return best?.[1] ?? null
}

function keyed(event: KeyboardEvent, store: Store, drawing: Drawing): void {
  const now = picked(store)
  if (event.key === 'Escape') pick(store, null)
  else if (event.key in TOWARDS) {
    const here = drawing.nodes.find((node) => ends(now, node))
    const next = here ? towards(event.key, here, drawing.nodes) : drawing.nodes.at(0)
    if (next) pick(store, { node: nameOf(next), pos: next.pos })
  } else return
  event.preventDefault()
  event.stopPropagation()
}
