// The least that a page of linked views needs: values that say when they change.

export interface Signal<T> {
  value: T
}

/** Values that share one list of watchers. Setting a value to itself says nothing. */
export class Board {
  private readonly watchers = new Set<() => void>()
  private readonly made = new Map<string, { when: readonly unknown[]; value: unknown }>()

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

  /** What is made anew only when one of the values in `when` is another one than at the last call. */
  once<T>(name: string, when: readonly unknown[], make: () => T): T {
    const old = this.made.get(name)
    if (old?.when.length === when.length && when.every((v, i) => Object.is(v, old.when[i])))
      return old.value as T
    const value = make()
    this.made.set(name, { when, value })
    return value
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
