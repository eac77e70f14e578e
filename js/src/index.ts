// The bundle's two doors: anywidget's render, and a page that carries its own data.

import { h, render as draw } from 'preact'
import { App } from './app'
import { type Host, liveHost, type Model, staticHost } from './host'
import { Store } from './store'
import type { StaticDocument } from './wire'

function mount(el: HTMLElement, host: Host): () => void {
  const store = new Store(host)
  draw(h(App, { store }), el)
  return () => {
    draw(null, el)
    store.close()
  }
}

/** Draws a page without a kernel; returns what takes it off again. */
export const mountStatic = (el: HTMLElement, page: StaticDocument): (() => void) => mount(el, staticHost(page))

export default {
  render: ({ model, el }: { model: Model; el: HTMLElement }): (() => void) => mount(el, liveHost(model)),
}
