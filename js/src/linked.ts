// A single view's traits, joined to the page's state both ways, so that links between widgets work in the page alone.

import type { Model } from './host'
import type { Mode } from './shown'
import type { Store } from './store'
import type { Choice } from './wire'

interface Joint {
  trait: string
  get(): unknown
  set(value: unknown): void
}

function jointsOf(store: Store): Joint[] {
  const direction = (trait: string): Joint => ({
    trait,
    get: () => store.shown.value.direction,
    set: (value) => {
      store.shown.value = { ...store.shown.value, direction: value as Choice }
    },
  })
  const head = (trait: 'layer' | 'head'): Joint => ({
    trait,
    get: () => store.looking[trait],
    set: (value) => {
      store.head.value = { ...store.looking, [trait]: Number(value) }
    },
  })
  const mode: Joint = {
    trait: 'mode',
    get: () => store.mode.value,
    set: (value) => {
      store.mode.value = value as Mode
    },
  }
  switch (store.spec.value.view) {
    case 'direction':
      return [direction('value')]
    case 'map':
      return [direction('direction')]
    case 'attention':
      return [head('layer'), head('head'), mode]
    default:
      return []
  }
}

/** Keeps traits and page the same, the trait leading at first; returns what ends that. */
export function linkTraits(model: Model, store: Store): () => void {
  const stops = jointsOf(store).map(({ trait, get, set }) => {
    const pull = () => {
      if (model.get(trait) !== get()) set(model.get(trait))
    }
    const push = () => {
      if (model.get(trait) === get()) return
      model.set(trait, get())
      model.save_changes()
    }
    pull()
    model.on(`change:${trait}`, pull)
    const unwatch = store.watch(push)
    return () => {
      unwatch()
      model.off(`change:${trait}`, pull)
    }
  })
  return () => {
    for (const stop of stops) stop()
  }
}
