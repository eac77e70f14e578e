// The least that a page of linked views needs: values that say when they change.

export interface Signal<T> {
  value: T
}

/** Values that share one list of watchers. Setting a value to itself says nothing. */
export class Board {
  private readonly watchers = new Set<() => void>()

  cell<T>(first: T): Signal<T> {
    let now = first
    const told = () => this.tell()
    return {
      get value() {
        return now
      },
      set value(next) {
        if (Object.is(next, now)) return
        now = next
        told()
      },
    }
  }

  tell(): void {
    for (const watcher of [...this.watchers]) watcher()
  }

  /** Calls back after every change; returns what stops that. */
  watch(watcher: () => void): () => void {
    this.watchers.add(watcher)
    return () => this.watchers.delete(watcher)
  }
}
