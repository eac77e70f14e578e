// A pen that writes SVG: what draws on a canvas draws a drawing, with text as text.

import type { Pen } from './draw'

const NAMES: Record<string, string> = { '&': 'amp', '<': 'lt', '>': 'gt', '"': 'quot' }
const plain = (text: string): string => text.replace(/[&<>"]/g, (c) => `&${NAMES[c]};`)

/** Colours as every viewer of SVG reads them. */
const colour = (style: unknown): string =>
  String(style).replace(
    /^rgb\((\d+) (\d+) (\d+)\)$/,
    (_, ...c: string[]) =>
      `#${c
        .slice(0, 3)
        .map((n) => Number(n).toString(16).padStart(2, '0'))
        .join('')}`,
  )

const n = (x: number): string => String(Math.round(100 * x) / 100)
/** Characters of a path after which another one begins. */
const LONGEST = 4000
const ANCHOR: Record<string, string> = { center: 'middle', right: 'end', end: 'end' }

export class SvgPen implements Pen {
  fillStyle: Pen['fillStyle'] = '#000'
  strokeStyle: Pen['strokeStyle'] = '#000'
  lineWidth = 1
  font = '11px sans-serif'
  textAlign: CanvasTextAlign = 'start'
  textBaseline: CanvasTextBaseline = 'alphabetic'
  private readonly out: string[] = []
  private path = ''
  private groups: number[] = [0]
  private clips = 0
  private fill0 = ''

  /** The drawing so far, with a title for those who cannot see it. */
  toString(size: { width: number; height: number }, title: string): string {
    const { width, height } = size
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${n(width)}" height="${n(height)}" viewBox="0 0 ${n(width)} ${n(height)}" font-family="system-ui, 'Segoe UI', Helvetica, Arial, sans-serif" role="img"><title>${plain(title)}</title>${this.out.join('')}</svg>\n`
  }

  /** Moves all that follows; ended by `restore`. */
  translate(x: number, y: number): void {
    this.open(`<g transform="translate(${n(x)} ${n(y)})">`)
  }

  save(): void {
    this.groups.push(0)
  }

  restore(): void {
    for (let k = this.groups.pop() ?? 0; k > 0; k--) this.out.push('</g>')
    if (!this.groups.length) this.groups.push(0)
    this.fill0 = ''
  }

  private open(tag: string): void {
    this.out.push(tag)
    this.groups.push((this.groups.pop() ?? 0) + 1)
    this.fill0 = ''
  }

  clip(): void {
    const id = `c${this.clips++}`
    this.out.push(`<clipPath id="${id}"><path d="${this.path}"/></clipPath>`)
    this.open(`<g clip-path="url(#${id})">`)
  }

  clearRect(): void {}

  beginPath(): void {
    this.path = ''
  }

  moveTo(x: number, y: number): void {
    this.path += `M${n(x)} ${n(y)}`
  }

  lineTo(x: number, y: number): void {
    this.path += `L${n(x)} ${n(y)}`
  }

  rect(x: number, y: number, w: number, h: number): void {
    this.path += `M${n(x)} ${n(y)}h${n(w)}v${n(h)}h${n(-w)}z`
  }

  roundRect(x: number, y: number, w: number, h: number): void {
    this.rect(x, y, w, h)
  }

  arc(x: number, y: number, r: number): void {
    this.path += `M${n(x - r)} ${n(y)}a${n(r)} ${n(r)} 0 1 0 ${n(2 * r)} 0a${n(r)} ${n(r)} 0 1 0 ${n(-2 * r)} 0z`
  }

  /** Neighbours of one colour become one path: a large map stays a small file. */
  fill(): void {
    const style = colour(this.fillStyle)
    const last = this.out.at(-1)
    if (last && last.length < LONGEST && this.fill0 === style)
      this.out[this.out.length - 1] = last.replace(/"\/>$/, () => `${this.path}"/>`)
    else this.out.push(`<path fill="${style}" d="${this.path}"/>`)
    this.fill0 = style
  }

  stroke(): void {
    this.fill0 = ''
    this.out.push(
      `<path fill="none" stroke="${colour(this.strokeStyle)}" stroke-width="${n(this.lineWidth)}" d="${this.path}"/>`,
    )
  }

  fillRect(x: number, y: number, w: number, h: number): void {
    this.path = ''
    this.rect(x, y, w, h)
    this.fill()
  }

  strokeRect(x: number, y: number, w: number, h: number): void {
    this.path = ''
    this.rect(x, y, w, h)
    this.stroke()
  }

  fillText(text: string, x: number, y: number): void {
    this.fill0 = ''
    const size = Number.parseFloat(/([\d.]+)px/.exec(this.font)?.[1] ?? '11')
    const weight = /^\s*(\d{3})\s/.exec(this.font)?.[1]
    const down = this.textBaseline === 'middle' ? 0.35 * size : 0
    const anchor = ANCHOR[this.textAlign]
    this.out.push(
      `<text x="${n(x)}" y="${n(y + down)}" font-size="${n(size)}"${weight ? ` font-weight="${weight}"` : ''}${anchor ? ` text-anchor="${anchor}"` : ''} fill="${colour(this.fillStyle)}" style="white-space:pre;unicode-bidi:isolate">${plain(text)}</text>`,
    )
  }
}
