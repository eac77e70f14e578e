// Files and clipboard: what Python made, and on a page without a kernel what the page can make itself.

import { penOf } from './canvas'
import { SvgPen } from './pen'
import { type Brush, heading, picture } from './picture'
import type { Exported, Store } from './store'
import { unravel } from './table'
import type { HeatMap } from './wire'

export function download(page: Document, filename: string, blob: Blob): void {
  const url = URL.createObjectURL(blob)
  const link = page.createElement('a')
  link.href = url
  link.download = filename
  link.click()
  URL.revokeObjectURL(url)
}

/** Hands over an export from Python: text without a file name goes to the clipboard. Returns what to say. */
export async function handOver(page: Document, made: Exported): Promise<string> {
  const type = made.mime ?? 'text/plain'
  if (made.text !== undefined && (!made.filename || /^(python|magic)$/.test(made.kind))) {
    try {
      await page.defaultView?.navigator.clipboard.writeText(made.text)
      return 'Copied to the clipboard.'
    } catch {
      download(page, made.filename ?? `nbpatch-${made.kind}.txt`, new Blob([made.text], { type }))
      return 'No clipboard here: saved as a file.'
    }
  }
  const part = made.bytes ? made.bytes.slice() : (made.text ?? '')
  const filename = made.filename ?? `nbpatch.${made.kind}`
  download(page, filename, new Blob([part], { type }))
  return `Saved as ${filename}.`
}

const quoted = (x: unknown): string => `"${String(x).replace(/"/g, '""')}"`

/** All cells of the maps as CSV: coordinates, effect in the metric's unit, share of the gap, state. */
export function csvOf(maps: readonly HeatMap[]): string {
  const dims = maps[0]?.dims ?? []
  const lines = [['direction', ...dims, 'effect', 'share', 'state'].join(',')]
  for (const map of maps)
    map.effect.forEach((v, i) => {
      const cell = unravel(map, i)
      const labels = dims.map((d) => (typeof cell[d] === 'string' ? quoted(cell[d]) : cell[d]))
      lines.push(
        [
          map.key.direction,
          ...labels,
          Number.isNaN(v) ? '' : v,
          Number.isNaN(v) ? '' : v / map.gap,
          map.state[i],
        ].join(','),
      )
    })
  return `${lines.join('\n')}\n`
}

/** PNG, SVG or CSV of what is on screen, made by the page. */
export function saveHere(store: Store, kind: string, near: HTMLElement): void {
  const page = near.ownerDocument
  const maps = store.onScreen
  const stem = `nbpatch-${store.shown.value.component}`
  if (kind === 'csv') return download(page, `${stem}.csv`, new Blob([csvOf(maps)], { type: 'text/csv' }))
  if (!maps.length) return
  if (kind === 'svg')
    return download(page, `${stem}.svg`, new Blob([svgOf(store)], { type: 'image/svg+xml' }))
  if (kind !== 'png') return
  const { width, height, draw } = picture(store)
  const canvas = page.createElement('canvas')
  const pen = penOf(canvas, width, height, 2)
  if (!pen) return
  draw(pen as Brush)
  canvas.toBlob((blob) => blob && download(page, `${stem}.png`, blob), 'image/png')
}

/** What is on screen as an SVG: cells as shapes, every word as text. */
export function svgOf(store: Store): string {
  const { width, height, draw } = picture(store)
  const pen = new SvgPen()
  draw(pen)
  return pen.toString({ width, height }, heading(store))
}

/** Puts text on the clipboard, by the old way where a page may not use the new one; whether that worked. */
export async function copyText(near: HTMLElement, text: string): Promise<boolean> {
  const page = near.ownerDocument
  try {
    await page.defaultView?.navigator.clipboard.writeText(text)
    return true
  } catch {
    const field = page.createElement('textarea')
    field.value = text
    field.style.cssText = 'position:fixed;opacity:0'
    near.after(field)
    field.select()
    const done = page.execCommand?.('copy') ?? false
    field.remove()
    near.focus()
    return done
  }
}

/** Hands what Python exported to the browser as it arrives. */
export function handExports(store: Store, page: Document): () => void {
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
