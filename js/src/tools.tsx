// The row of tools under the map: scale, order and choice of rows, comparison, zoom, copy.

import { candidates, change, lens, readFilter, type Tooling, toolsOf, wholeTable } from './arrange'
import { Corner } from './corner'
import { type Child, h } from './dom'
import type { ToolAct } from './keys'
import { plainLens } from './lens'
import type { Lens, Tools, ViewProps } from './load'
import { copyText } from './save'
import type { Store } from './store'
import type { Table } from './table'
import { Select } from './ui'
import { readout } from './words'

const SCALES: { value: Tooling['scale']; label: string }[] = [
  { value: 'symmetric', label: 'symmetric' },
  { value: 'clipped', label: 'clipped' },
  { value: 'log', label: 'logarithmic' },
]

function Row({ store }: ViewProps): Child {
  const now = toolsOf(store).value
  const seen = lens(store)
  const table = wholeTable(store, seen.maps)
  if (!table) return null
  return (
    <div class="tool-row" role="group" aria-label="How the map is shown" data-lm-suppress-shortcuts="true">
      <Select
        testid="nbp-scale"
        name="Scale of the colours"
        prefix="scale"
        value={now.scale}
        options={SCALES}
        onChange={(scale) => change(store, { scale: scale as Tooling['scale'] })}
      />
      <Sort store={store} table={table} />
      <Filter store={store} table={table} seen={seen} />
      <Compare store={store} />
      <span class="push" />
      <Zoom store={store} />
    </div>
  )
}

const AXES: Record<string, string> = { dest: 'position', pos: 'position' }

function Sort({ store, table }: { store: Store; table: Table }): Child {
  const [first = '', ...more] = table.rowAxes
  const options = [
    { value: '', label: AXES[first] ?? first },
    ...more.map((axis) => ({ value: axis, label: axis })),
  ]
  options.push({ value: 'strongest', label: 'strongest effect' })
  if (/^(pos|src)$/.test(table.col))
    options.push({ value: 'place', label: first === 'dest' ? 'position looked at' : 'position' })
  const { sort } = toolsOf(store).value
  const one = table.rows.length < 2
  return (
    <Select
      testid="nbp-sort"
      name="Order of the rows"
      prefix="sort"
      value={options.some((o) => o.value === sort) ? sort : ''}
      options={options}
      {...(one ? { off: 'There is one row.' } : {})}
      onChange={(value) => change(store, { sort: value })}
    />
  )
}

function Filter({ store, table, seen }: { store: Store; table: Table; seen: Lens }): Child {
  const { filter } = toolsOf(store).value
  const read = readFilter(filter, table, store.pair)
  const error = 'error' in read ? read.error : ''
  const count = seen.order?.length ?? table.rows.length
  const fewer = filter.trim() !== ''
  return (
    <label class={`filter${error ? ' bad' : ''}`} title={error || 'layers 2-3, head 4, ≥ .1'}>
      <span class="prefix">rows</span>
      <input
        data-testid="nbp-filter"
        aria-label="Filter rows"
        aria-invalid={!!error}
        placeholder="all"
        size={12}
        spellcheck="false"
        value={filter}
        onInput={(e: Event & { currentTarget: HTMLInputElement }) =>
          change(store, { filter: e.currentTarget.value })
        }
        onKeyDown={(e) => {
          e.stopPropagation()
          if (e.key === 'Escape') change(store, { filter: '' })
        }}
      />
      <output data-testid="nbp-rows" aria-live="polite">
        {error ? 'not understood' : fewer ? `${count} of ${table.rows.length}` : ''}
      </output>
    </label>
  )
}

function Compare({ store }: { store: Store }): Child {
  const found = candidates(store, plainLens(store).maps)
  const { minus } = toolsOf(store).value
  return (
    <Select
      testid="nbp-compare"
      name="Subtract another sweep"
      prefix="minus"
      value={found.some((c) => c.value === minus) ? minus : ''}
      options={[{ value: '', label: 'nothing' }, ...found.map(({ value, label }) => ({ value, label }))]}
      {...(found.length
        ? {}
        : { off: 'No other finished sweep of the same cells is here. Run another direction or metric.' })}
      onChange={(value) => change(store, { minus: value })}
    />
  )
}

function Zoom({ store }: { store: Store }): Child {
  const { zoom, square } = toolsOf(store).value
  const button = (testid: string, title: string, text: string, act: ToolAct) => (
    <button
      type="button"
      class="ghost"
      data-testid={testid}
      aria-label={title}
      title={title}
      onClick={(e) => actOn(store, act, e.currentTarget)}
      onKeyDown={(e) => e.key !== 'Tab' && e.stopPropagation()}
    >
      {text}
    </button>
  )
  return (
    <span class="zoom">
      {button('nbp-zoom-out', 'Smaller (−)', '−', { do: 'zoom', by: -1 })}
      <output data-testid="nbp-zoom">{Math.round(100 * zoom)} %</output>
      {button('nbp-zoom-in', 'Larger (+)', '+', { do: 'zoom', by: 1 })}
      {button('nbp-fit', 'Fit (0)', 'fit', { do: 'zoom', by: 0 })}
      <button
        type="button"
        class={`ghost${square ? ' on' : ''}`}
        data-testid="nbp-square"
        aria-pressed={square}
        title="Square cells"
        onClick={() => change(store, { square: !square })}
        onKeyDown={(e) => e.key !== 'Tab' && e.stopPropagation()}
      >
        square
      </button>
      {button('nbp-copy', 'Copy the read-out (Ctrl C)', 'copy', { do: 'copy' })}
    </span>
  )
}

const STEP = 1.25
const WIDEST = 160

/** Zooms in, out or back; what lies at `point` stays where it is. */
function zoomBy(store: Store, near: HTMLElement, by: number, point?: { x: number; y: number }): void {
  const box = near.closest<HTMLElement>('.one') ?? near.closest('.maps')?.querySelector<HTMLElement>('.one')
  const surface = box?.querySelector<HTMLElement>('.surface')
  if (!box || !surface) return
  const before = surface.getBoundingClientRect()
  const seen = box.getBoundingClientRect()
  const { zoom } = toolsOf(store).value
  const cols = Number(box.closest<HTMLElement>('.grid')?.dataset.cols) || 1
  const around = (box.querySelector('.body')?.scrollWidth ?? before.width) - before.width
  const fit = Math.min(1, (zoom * (box.clientWidth - around)) / Math.max(1, before.width))
  const most = Math.max(1, (zoom * WIDEST * cols) / Math.max(1, before.width))
  const wanted = by === 0 ? fit : zoom * STEP ** by
  // Steps pass through 1, where positions lie on the strips again.
  const through = (zoom < 1 && wanted > 1) || (zoom > 1 && wanted < 1) || Math.abs(wanted - 1) < 0.02
  const next = through ? 1 : Math.min(most, Math.max(fit, wanted))
  const at = point ?? { x: seen.left + seen.width / 2, y: seen.top + seen.height / 2 }
  change(store, { zoom: next })
  queueMicrotask(() => {
    const after = surface.getBoundingClientRect()
    box.scrollLeft += after.left + ((at.x - before.left) / before.width) * after.width - at.x
    box.scrollTop += after.top + ((at.y - before.top) / before.height) * after.height - at.y
  })
}

function actOn(store: Store, act: ToolAct, near: HTMLElement): void {
  if (act.do === 'zoom') zoomBy(store, near, act.by)
  else if (act.do === 'copy') {
    const cell = store.hover.value ?? store.chosen
    const text = cell ? readout(lens(store).maps, cell, store.pair) : ''
    if (!text) {
      store.notice.value = 'Nothing to copy: select a cell first.'
      return
    }
    copyText(near, text).then((done) => {
      store.notice.value = done ? `Copied: ${text}` : 'This page may not copy to the clipboard.'
    })
  } else if (act.do === 'keys') store.own('keys', false).value = true
  else toggleFull(store, near)
}

/** The whole screen for the widget; where the page may not have it, the whole page. */
export function toggleFull(store: Store, near: HTMLElement): void {
  const root = near.closest<HTMLElement>('.nbp')
  const full = store.own('full', false)
  if (!root) return
  const end = () => {
    root.classList.remove('full')
    root.removeEventListener('keydown', onEscape, true)
    root.removeEventListener('fullscreenchange', changed)
    full.value = false
  }
  const changed = () => root.matches(':fullscreen') || end()
  const onEscape = (event: KeyboardEvent) => {
    if (event.key !== 'Escape' || (event.target as Element).closest('dialog,[role=menu],[role=listbox]'))
      return
    event.stopPropagation()
    end()
  }
  if (full.value) {
    if (root.matches(':fullscreen')) root.ownerDocument.exitFullscreen()
    else root.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' }))
    return
  }
  full.value = true
  root.addEventListener('fullscreenchange', changed)
  const inPage = () => {
    root.classList.add('full')
    // Before the controls, which keep their keys to themselves.
    root.addEventListener('keydown', onEscape, true)
  }
  if (root.requestFullscreen) root.requestFullscreen().catch(inPage)
  else inPage()
}

export const tools: Pick<Tools, 'row' | 'corner' | 'lens' | 'act' | 'wheel'> = {
  row: Row,
  corner: ({ store }) => Corner({ store, act: (act, near) => actOn(store, act, near) }),
  lens,
  act: actOn,
  wheel(store, event) {
    if (!event.ctrlKey && !event.metaKey) return
    event.preventDefault()
    const point = { x: event.clientX, y: event.clientY }
    if (event.deltaY) zoomBy(store, event.currentTarget, event.deltaY < 0 ? 1 : -1, point)
  },
}
