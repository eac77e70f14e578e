// Files and clipboard: what Python made, and on a page without a kernel what the page can make itself.

import { penOf } from './canvas'
import { drawMap } from './draw'
import { rowsOf } from './geometry'
import type { Exported, Store } from './store'
import { layOut, unravel } from './table'
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

/** PNG or CSV of what is on screen, made by the page. */
export function saveHere(store: Store, kind: string, near: HTMLElement): void {
  const page = near.ownerDocument
  const maps = store.current
  const stem = `nbpatch-${store.shown.value.component}`
  if (kind === 'csv') return download(page, `${stem}.csv`, new Blob([csvOf(maps)], { type: 'text/csv' }))
  const map = maps[0]
  if (kind !== 'png' || !map) return
  const table = layOut(map, store.selection.value)
  const rows = rowsOf(table, false)
  const canvas = page.createElement('canvas')
  const [col, left, top] = [40, 40, 24]
  const [width, height] = [left + col * table.cols.length + 8, top + rows.total + 8]
  const pen = penOf(canvas, width, height, 2)
  if (!pen) return
  const font = 'sans-serif'
  pen.fillStyle = '#FFFFFF'
  pen.fillRect(0, 0, width, height)
  pen.font = `11px ${font}`
  pen.fillStyle = '#555D68'
  pen.textAlign = 'center'
  table.cols.forEach((label, c) => {
    const token = table.col === 'pos' ? store.pair.clean_tokens[Number(label)] : undefined
    pen.fillText(String(token ?? label), left + (c + 0.5) * col, 16, col)
  })
  table.rows.forEach((row, r) => {
    pen.fillText(
      table.rowAxes.map((a) => row[a]).join('.'),
      left / 2,
      top + (rows.top[r] as number) + rows.height / 2 + 4,
      left,
    )
  })
  pen.translate(left, top)
  drawMap(pen, {
    table,
    rows,
    grid: { col },
    theme: 'light',
    limit: 1,
    numbers: true,
    font,
    background: '#FFFFFF',
  })
  canvas.toBlob((blob) => blob && download(page, `${stem}.png`, blob), 'image/png')
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
