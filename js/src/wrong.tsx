// An answer that is an error, beside the view that asked.

import { type Child, h } from './dom'
import type { Trouble } from './wire'

export function Wrong({ error }: { error: Trouble }): Child {
  return (
    <div class="wrong" role="alert" data-testid="nbp-wrong-answer">
      <b>{error.title}</b>
      {error.lines.map((line, i) => (
        <span key={i}>{line}</span>
      ))}
    </div>
  )
}
