// The widget's style: one copy for all widgets of a document or shadow root. A copy in each of them would make the
// browser go through every one of its rules again, for the whole notebook, with each further widget.

type Root = Document | ShadowRoot

interface Used {
  sheet: CSSStyleSheet
  /** Where it comes among ours: later ones win. */
  rank: number
  users: number
}

const KEY = Symbol.for('nbpatch.sheets')

/** What the roots of this page wear of ours, by text; known to every copy of this module. */
function worn(root: Root): Map<string, Used> {
  const page = globalThis as unknown as Record<symbol, WeakMap<Root, Map<string, Used>> | undefined>
  page[KEY] ??= new WeakMap()
  const here = page[KEY].get(root) ?? new Map<string, Used>()
  page[KEY].set(root, here)
  return here
}

const isRoot = (node: Node): node is Root => 'adoptedStyleSheets' in node

/** The styles that one widget needs where it is. */
export class Sheets {
  private root: Root | null = null
  private readonly mine = new Set<string>()

  constructor(private readonly el: HTMLElement) {}

  /** Sees to it that the root the widget is in has these styles; one that is not there yet keeps its place. */
  wear(styles: readonly (string | undefined)[]): void {
    const root = this.el.getRootNode()
    if (!isRoot(root)) return
    if (root !== this.root) this.off()
    this.root = root
    const here = worn(root)
    let more = false
    styles.forEach((text, rank) => {
      if (text === undefined || this.mine.has(text)) return
      this.mine.add(text)
      const known = here.get(text)
      if (known) known.users++
      else here.set(text, { sheet: made(this.el, text), rank, users: 1 })
      more ||= !known
    })
    if (more) adopt(root, here, new Set())
  }

  /** Takes off what no other widget needs. */
  off(): void {
    if (!this.root) return
    const here = worn(this.root)
    const idle = new Set<CSSStyleSheet>()
    for (const text of this.mine) {
      const used = here.get(text) as Used
      if (--used.users > 0) continue
      here.delete(text)
      idle.add(used.sheet)
    }
    this.mine.clear()
    if (idle.size) adopt(this.root, here, idle)
    this.root = null
  }
}

function made(el: HTMLElement, text: string): CSSStyleSheet {
  const view = el.ownerDocument.defaultView as Window & typeof globalThis
  const sheet = new view.CSSStyleSheet()
  sheet.replaceSync(text)
  return sheet
}

/** Puts ours behind what others have adopted, in their order. */
function adopt(root: Root, here: ReadonlyMap<string, Used>, idle: ReadonlySet<CSSStyleSheet>): void {
  const ours = [...here.values()].sort((a, b) => a.rank - b.rank).map((used) => used.sheet)
  const others = [...root.adoptedStyleSheets].filter((sheet) => !idle.has(sheet) && !ours.includes(sheet))
  root.adoptedStyleSheets = [...others, ...ours]
}
