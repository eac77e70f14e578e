// What views get from Python on their own account: later bundles, and answers to questions.

import type { Host } from './host'
import { type BundleName, type Bundles, isOurs, keep, load, loaded } from './load'
import type { Shown } from './shown'
import { Board, type Signal } from './signal'
import type { Buffers, Dict } from './wire'

/** What Python answered to a question of a view, and what was asked. */
export interface Answer {
  content: Dict
  buffers: Buffers
  asked: Dict
}

export abstract class Asking extends Board {
  abstract readonly shown: Signal<Shown>
  readonly notice = this.cell('')
  /** The later bundles that are here. */
  readonly bundles = this.cell<Partial<Bundles>>({})
  private readonly answers = this.cell<ReadonlyMap<string, Answer>>(new Map())
  private readonly questions = new Map<string, { said: string; id: number; content: Dict }>()
  private readonly owned = new Map<string, Signal<unknown>>()
  private readonly begged = new Set<BundleName>()
  private count = 0

  constructor(readonly host: Host) {
    super()
  }

  /** Gets a later bundle, from this page or from Python. */
  need(name: BundleName): void {
    const here = loaded(name)
    if (here) this.take(name, here)
    else if (!this.begged.has(name)) this.host.send({ type: 'bundle', name })
    this.begged.add(name)
  }

  private take<N extends BundleName>(name: N, bundle: Promise<Bundles[N]>): void {
    bundle.then(
      (here) => {
        this.bundles.value = { ...this.bundles.value, [name]: here }
      },
      (error: unknown) => {
        this.notice.value = `A part of the page did not load: ${error}`
      },
    )
  }

  protected onBundle({ name, version }: Dict, text: Uint8Array | null): void {
    const which = name as BundleName
    if (!text || this.bundles.value[which]) return
    if (isOurs(which, version)) this.take(which, loaded(which) ?? keep(which, load(text)))
    else this.notice.value = 'Python has another version of this page: run the cell again.'
  }

  protected onAnswer(content: Dict, buffers: Buffers): void {
    const key = String(content.key)
    const question = this.questions.get(key)
    if (!question || content.id !== question.id) return
    const answer = { content, buffers, asked: question.content }
    this.answers.value = new Map(this.answers.value).set(key, answer)
  }

  /**
   * Asks Python for what one view needs. What was asked last under the same key is not asked again; a newer question
   * makes Python drop the older one, and its answer is ignored here.
   */
  ask(kind: string, content: Dict = {}, key = kind): void {
    if (!this.host.live) return
    const said = JSON.stringify([kind, content, this.shown.value])
    if (this.questions.get(key)?.said === said) return
    const id = ++this.count
    this.questions.set(key, { said, id, content })
    this.host.send({ type: 'ask', kind, key, id, ...content })
  }

  /** The newest answer under a key: perhaps to an older question, until the newest one is answered. */
  answer(key: string): Answer | undefined {
    return this.answers.value.get(key)
  }

  /** Whether the newest question under a key has no answer yet. */
  waits(key: string): boolean {
    const question = this.questions.get(key)
    return !!question && this.answers.value.get(key)?.content.id !== question.id
  }

  /** What a view keeps for itself on this page: sorting, a tab, a threshold. */
  own<T>(name: string, first: T): Signal<T> {
    const found = this.owned.get(name) ?? this.cell<unknown>(first)
    this.owned.set(name, found)
    return found as Signal<T>
  }

  /** Lets every question be asked anew: its answer was about other prompts. */
  protected forget(): void {
    this.questions.clear()
    this.answers.value = new Map()
  }
}
