// Light or dark is the host's decision; this reads it and follows changes.

import { luminance, type Rgb, type Theme } from './colour'

const HOST_BACKGROUNDS = ['--jp-layout-color0', '--vscode-editor-background']

function rgbOf(text: string): Rgb | null {
  const hex = /^#([\da-f]{3}|[\da-f]{6})$/i.exec(text)?.[1]
  if (hex) {
    const full = hex.length === 3 ? hex.replace(/./g, '$&$&') : hex
    return [0, 2, 4].map((i) => Number.parseInt(full.slice(i, i + 2), 16)) as Rgb
  }
  const named: Record<string, Rgb> = { white: [255, 255, 255], black: [0, 0, 0] }
  const numbers = /^rgba?\(\s*(\d+)[ ,]+(\d+)[ ,]+(\d+)/.exec(text)
  return numbers ? ([numbers[1], numbers[2], numbers[3]].map(Number) as Rgb) : (named[text] ?? null)
}

export interface Look {
  theme: Theme
  /** The host's own background where it is near white or near black. */
  background: string | null
}

export function look(el: Element): Look {
  const page = el.ownerDocument
  const view = page.defaultView
  const style = view?.getComputedStyle(el)
  for (const name of HOST_BACKGROUNDS) {
    const text = style?.getPropertyValue(name).trim() ?? ''
    const rgb = rgbOf(text)
    if (!rgb) continue
    const l = luminance(rgb)
    return { theme: l < 0.3 ? 'dark' : 'light', background: l > 0.9 || l < 0.03 ? text : null }
  }
  const theme = said(page) ?? (view?.matchMedia?.('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')
  return { theme, background: null }
}

/** What the page says of itself in attributes and classes; null when it says nothing. */
function said(page: Document): Theme | null {
  const jupyter = page.querySelector('[data-jp-theme-light]')?.getAttribute('data-jp-theme-light')
  if (jupyter) return jupyter === 'false' ? 'dark' : 'light'
  const [html, body] = [page.documentElement, page.body]
  const words = [html.className, html.dataset.theme, body?.className, body?.dataset.theme].join(' ')
  if (/\bdark\b/.test(words)) return 'dark'
  return /\blight\b/.test(words) ? 'light' : null
}

/** Calls back when the host may have changed its theme; returns what stops that. */
export function followTheme(el: Element, changed: () => void): () => void {
  const page = el.ownerDocument
  const view = page.defaultView
  const observer = view ? new view.MutationObserver(changed) : null
  const names = ['class', 'style', 'data-theme', 'data-jp-theme-light', 'data-jp-theme-name']
  for (const target of [page.documentElement, page.body])
    if (target) observer?.observe(target, { attributes: true, attributeFilter: names })
  const query = view?.matchMedia?.('(prefers-color-scheme: dark)')
  query?.addEventListener?.('change', changed)
  return () => {
    observer?.disconnect()
    query?.removeEventListener?.('change', changed)
  }
}
