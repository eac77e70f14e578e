// The right end of the header: full screen, and a dialog that lists the keys.

import { type Child, Fragment, h } from './dom'
import type { ToolAct } from './keys'
import type { Store } from './store'

const FULL = 'M9.5 2.5h4v4M13.5 2.5 9.5 6.5M6.5 13.5h-4v-4M2.5 13.5l4-4'
const KEYS = 'M1.8 4h12.4v8.2H1.8zM4.2 6.6h.1M6.7 6.6h.1M9.2 6.6h.1M11.7 6.6h.1M4.6 9.6h6.8'

const GROUPS: [string, [keys: string, does: string][]][] = [
  [
    'On the map',
    [
      ['← ↑ → ↓', 'move the selection'],
      ['Home End', 'first and last column; with Ctrl, first and last cell'],
      ['PageUp PageDown', 'five rows up or down'],
      ['Enter', 'pin the selection'],
      ['Escape', 'clear the selection'],
      ['d', 'denoise, noise, both'],
      ['+ − 0', 'larger, smaller, fit; Ctrl and the wheel too'],
      ['Ctrl C', 'copy the read-out'],
      ['f', 'full screen; Escape leaves it'],
      ['?', 'this list'],
    ],
  ],
  [
    'Elsewhere',
    [
      ['Tab', 'from control to control'],
      ['← →', 'inside Denoise, Noise, Both'],
      ['Enter', 'use what was typed'],
      ['Escape', 'take back what was typed, close a menu'],
    ],
  ],
]

export function Corner(props: { store: Store; act: (act: ToolAct, near: HTMLElement) => void }): Child {
  const { store, act } = props
  const full = store.own('full', false).value
  const open = store.own('keys', false)
  const leave = full ? 'Leave full screen (Escape)' : 'Full screen (f)'
  return (
    <>
      <span class="corner">
        <Button
          testid="nbp-full"
          title={leave}
          path={FULL}
          on={full}
          act={(near) => act({ do: 'full' }, near)}
        />
        <Button testid="nbp-keys" title="Keys (?)" path={KEYS} act={(near) => act({ do: 'keys' }, near)} />
      </span>
      {open.value && (
        <dialog
          class="keys"
          data-testid="nbp-keys-list"
          aria-label="Keys"
          data-lm-suppress-shortcuts="true"
          paint={{ when: [], run: (box) => box.showModal() }}
          onClose={() => {
            open.value = false
          }}
          onKeyDown={(e) => e.stopPropagation()}
        >
          {GROUPS.map(([title, rows]) => (
            <div key={title}>
              <h4>{title}</h4>
              <dl>
                {rows.map(([keys, does]) => (
                  <div key={keys + does}>
                    <dt>
                      {keys.split(' ').map((k) => (
                        <kbd key={k}>{k}</kbd>
                      ))}
                    </dt>
                    <dd>{does}</dd>
                  </div>
                ))}
              </dl>
            </div>
          ))}
          <button type="button" class="button" onClick={(e) => e.currentTarget.closest('dialog')?.close()}>
            Close
          </button>
        </dialog>
      )}
    </>
  )
}

function Button(props: {
  testid: string
  title: string
  path: string
  on?: boolean
  act: (near: HTMLElement) => void
}): Child {
  const { testid, title, path, on, act } = props
  return (
    <button
      type="button"
      class="ghost"
      data-testid={testid}
      aria-label={title}
      aria-pressed={on ?? null}
      title={title}
      onClick={(e) => act(e.currentTarget)}
      onKeyDown={(e) => e.key !== 'Tab' && e.stopPropagation()}
    >
      <svg class="icon" viewBox="0 0 16 16" aria-hidden="true">
        <path d={path} />
      </svg>
    </button>
  )
}
