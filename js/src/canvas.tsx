// A canvas that is painted anew whenever what it shows, or the screen's pixel ratio, changes.

import { type Child, h } from './dom'
import { drawMap, type Part, type Pen, raster, type Scene } from './draw'

/** Sizes a canvas for the screen and returns its pen in CSS pixels; null where there is none (no 2-D context). */
export function penOf(
  canvas: HTMLCanvasElement,
  width: number,
  height: number,
  ratio?: number,
): CanvasRenderingContext2D | null {
  const scale = ratio ?? canvas.ownerDocument.defaultView?.devicePixelRatio ?? 1
  const [w, h] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))]
  if (canvas.width !== w) canvas.width = w
  if (canvas.height !== h) canvas.height = h
  const pen = canvas.getContext('2d')
  pen?.setTransform(scale, 0, 0, scale, 0, 0)
  return pen
}

export interface Sheet {
  scene: Scene
  pooled: boolean
  width: number
  /** The part that is drawn where the whole would be too large for a canvas. */
  part: Part | null
}

export function Canvas({ scene, pooled, width, part }: Sheet): Child {
  const all = part ?? { x: 0, y: 0, w: width, h: scene.rows.total }
  const run = (canvas: HTMLCanvasElement) => {
    const pen = penOf(canvas, all.w, all.h)
    if (!pen) return
    pen.translate(-all.x, -all.y)
    if (pooled) paintRaster(pen, scene, width, all)
    else drawMap(pen as Pen, scene, all)
  }
  const { table, rows, grid, theme, scale, numbers, font } = scene
  const { x, y, w, h: tall } = all
  const look = [theme, scale.limit, scale.log, numbers, font, pooled]
  const when = [table.map, table.start, rows.height, grid.col, x, y, w, tall, ...look]
  const style = { width: `${w}px`, height: `${tall}px`, transform: `translate(${x}px,${y}px)` }
  return <canvas paint={{ when, run }} style={style} />
}

/** Puts the colours of a large map on the page: a line of pixels stretched over each row that is in sight. */
function paintRaster(pen: CanvasRenderingContext2D, scene: Scene, width: number, seen: Part): void {
  const { rows } = scene
  const small = raster(scene, width)
  const sheet = pen.canvas.ownerDocument.createElement('canvas')
  const [w, h] = [small.width, small.height]
  if (!h) return
  Object.assign(sheet, { width: w, height: h })
  sheet.getContext('2d')?.putImageData(new ImageData(small.data, w, h), 0, 0)
  pen.clearRect(seen.x, seen.y, seen.w, seen.h)
  pen.imageSmoothingEnabled = false
  rows.top.forEach((top, r) => {
    if (top + rows.height > seen.y && top < seen.y + seen.h)
      pen.drawImage(sheet, 0, r, w, 1, 0, top, width, rows.height)
  })
}

/** Canvases larger than this, in pixels, are refused by some browsers and slow in all. */
const LARGEST = { side: 8000, area: 4e6 }
export const STEP = 256

/** The part of a map of this size that is drawn around what is scrolled into view; null for all of it. */
export function partOf(
  size: { w: number; h: number },
  seen: { x: number; y: number; w: number; h: number },
): Part | null {
  if (size.w <= LARGEST.side && size.h <= LARGEST.side && size.w * size.h <= LARGEST.area) return null
  const span = (at: number, long: number, whole: number): [number, number] => {
    const from = Math.max(0, at - STEP)
    return [from, Math.min(whole, at + long + 2 * STEP) - from]
  }
  const [x, w] = span(seen.x, seen.w, size.w)
  const [y, h] = span(seen.y, seen.h, size.h)
  return { x, y, w, h }
}
