// A canvas that is painted anew whenever what it shows, or the screen's pixel ratio, changes.

import { type Child, h } from './dom'
import { drawMap, drawPooled, type Pen, type Scene } from './draw'

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

export function Canvas({ scene, pooled, width }: { scene: Scene; pooled: boolean; width: number }): Child {
  const height = scene.rows.total
  const run = (canvas: HTMLCanvasElement) => {
    const pen = penOf(canvas, width, height)
    if (!pen) return
    if (pooled) drawPooled(pen as Pen, scene, width)
    else drawMap(pen as Pen, scene)
  }
  const { table, grid, theme, limit, numbers, font } = scene
  const when = [table.map, table.start[0], grid.col, height, theme, limit, numbers, font, pooled]
  return <canvas paint={{ when, run }} style={{ width: `${width}px`, height: `${height}px` }} />
}
