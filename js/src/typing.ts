// What is typed into prompts and answers: live while it is typed, sent when it is done, given up on request.

import { Asking } from './asking'
import type { Signal } from './signal'
import type { Dict, Spec, Trouble } from './wire'

/** What of a pair can be typed. */
export type Field = 'clean' | 'corrupted' | 'answer' | 'wrong'
type Texts = Partial<Record<Field, string>>

/** Milliseconds without a key before Python is asked about what is typed. */
const REST = 60

export abstract class Typing extends Asking {
  abstract readonly spec: Signal<Spec>
  abstract readonly error: Signal<Trouble | null>
  /** Counts up to make the inputs forget what was typed. */
  readonly resets = this.cell(0)
  /** The answer field whose choices are open, and the one that arrow keys are on. */
  readonly picking = this.cell<{ side: Field; at: number } | null>(null)
  /** What is typed of the pair on screen and not sent yet. */
  protected readonly typing = this.cell<Texts>({})
  /** What was sent of each pair last: Enter and the blur after it are one edit. */
  private sent: Record<number, Texts> = {}
  private timer: ReturnType<typeof setTimeout> | undefined

  /** What an input shows when nothing was typed: what the maps belong to, alternatives parted by bars. */
  written(field: Field, pair = this.shown.value.pair): string {
    const value = this.spec.value.pairs[pair]?.[field] ?? ''
    return typeof value === 'string' ? value : value.join(' | ')
  }

  /** The pair on screen as it is typed, or sent and not run, or written. */
  get texts(): Record<Field, string> {
    const sent = this.sent[this.shown.value.pair]
    const of = (field: Field) => this.typing.value[field] ?? sent?.[field] ?? this.written(field)
    return { clean: of('clean'), corrupted: of('corrupted'), answer: of('answer'), wrong: of('wrong') }
  }

  /** Whether what is typed or sent is another pair than the one on screen. */
  get drafting(): boolean {
    return [this.typing.value, this.sent[this.shown.value.pair] ?? {}].some((o) => Object.keys(o).length)
  }

  /** Takes what an input holds while it is typed; asks what it would be when the fingers rest. */
  type(field: Field, value: string): void {
    this.typing.value = { ...this.typing.value, [field]: value }
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.askDraft(), REST)
  }

  askDraft(): void {
    this.ask('draft', { pair: this.shown.value.pair, ...this.texts })
  }

  /** Sends what an input holds now, unless that is what was sent last. */
  edit(field: Field, value: string, pair = this.shown.value.pair): void {
    if (field in this.typing.value) {
      const { [field]: _, ...rest } = this.typing.value
      this.typing.value = rest
    }
    const { [field]: sent, ...others } = this.sent[pair] ?? {}
    const written = this.written(field, pair)
    if ((sent ?? written) === value) return
    this.sent[pair] = value === written ? others : { ...others, [field]: value }
    this.host.send({ type: 'edit', field, pair, value })
  }

  /** Asks for other pairs as a whole; what is typed is given up, and so is what failed. */
  turn(type: 'edit' | 'pairs' | 'template', content: Dict): void {
    this.error.value = null
    this.sent = {}
    this.typing.value = {}
    this.resets.value++
    this.host.send({ type, ...content })
  }

  /** Leaves a failed edit behind, here and in Python: the prompts show again what the maps belong to. */
  goBack(): void {
    this.turn('pairs', { do: 'back' })
  }

  /** Shows what could not be run where it was typed, also where that was in another view or long ago. */
  protected keepFailed({ typed }: Trouble): void {
    if (!typed || JSON.stringify(this.texts) === JSON.stringify(typed.texts)) return
    this.sent = { [typed.pair]: typed.texts }
    this.resets.value++
  }

  /** Other prompts have come: what was sent is done; what is typed stays where its input still shows the same text. */
  protected keepTyping(before: Spec, now: Spec): void {
    this.sent = {}
    const of = (spec: Spec, field: string) => JSON.stringify(spec.pairs[spec.pair]?.[field as Field])
    const kept = Object.entries(this.typing.value).filter(([field]) => of(before, field) === of(now, field))
    this.typing.value = Object.fromEntries(kept)
  }
}
