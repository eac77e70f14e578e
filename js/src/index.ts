// The bundle's two doors: anywidget's render, and a page that carries its own data.

import { show } from './app'
import { type Host, liveHost, type Model, staticHost } from './host'
import { linkTraits } from './linked'
import { type BundleName, type Bundles, keep } from './load'
import { Store } from './store'
import type { StaticDocument } from './wire'

function mount(el: HTMLElement, host: Host, link?: (store: Store) => () => void): () => void {
  const store = new Store(host)
  const unlink = link?.(store)
  const remove = show(el, store)
  return () => {
    remove()
    unlink?.()
    store.close()
  }
}

/** Draws a page without a kernel, by default from the page's own #nbp-data; returns what takes it off again. */
export function mountStatic(
  el: HTMLElement,
  page?: StaticDocument,
  bundles: Partial<Bundles> = {},
): () => void {
  for (const [name, one] of Object.entries(bundles)) keep(name as BundleName, Promise.resolve(one))
  return mount(
    el,
    staticHost(page ?? JSON.parse(el.ownerDocument.getElementById('nbp-data')?.textContent ?? 'null')),
  )
}

export default {
  render: ({ model, el }: { model: Model; el: HTMLElement }): (() => void) =>
    mount(el, liveHost(model), (store) => linkTraits(model, store)),
}
