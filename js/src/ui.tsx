// Small parts that others are made of.

import { type Child, h } from './dom'
import { pieces } from './format'

/** A token's text with its invisible characters shown; the text itself is only ever set as text. */
export function TokenText({ text }: { text: string }): Child {
  return (
    <bdi class="tt">
      {pieces(text).map((p) =>
        p.mark ? (
          <span key={p.text} class="ws" aria-hidden="true">
            {p.text}
          </span>
        ) : (
          p.text
        ),
      )}
    </bdi>
  )
}

export const Chip = ({ text }: { text: string }): Child => (
  <span class="chip">
    <TokenText text={text} />
  </span>
)

const PATHS = {
  left: 'M10 3.5 5.5 8l4.5 4.5',
  right: 'M6 3.5 10.5 8 6 12.5',
  down: 'M4.5 6.5 8 10l3.5-3.5',
  export: 'M8 2.5v7.5M4.8 7 8 10.2 11.2 7M2.5 13.5h11',
  pin: 'M5.5 2.5h5l-.8 4.2 2 2.3H4.3l2-2.3zM8 9v4.5',
  check: 'M3 8.5 6.5 12 13 4.5',
  warn: 'M8 2.2 14.6 13.6H1.4zM8 6.4v3.4M8 11.4v.6',
  info: 'M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8M8 7.2v4M8 4.7v.6',
} as const

export function Icon({ name, fill }: { name: keyof typeof PATHS; fill?: boolean }): Child {
  return (
    <svg class="icon" viewBox="0 0 16 16" aria-hidden="true">
      <path d={PATHS[name]} class={fill ? 'solid' : ''} />
    </svg>
  )
}

export const Play = (): Child => (
  <svg class="icon" viewBox="0 0 16 16" aria-hidden="true">
    <path d="M4.5 3v10l8-5z" class="only" />
  </svg>
)

export const Square = (): Child => (
  <svg class="icon" viewBox="0 0 16 16" aria-hidden="true">
    <path d="M4 4h8v8H4z" class="only" />
  </svg>
)

/** ●→○ denoise, ○→● noise. */
export function Turn({ into }: { into: 'corrupted' | 'clean' }): Child {
  const filled = into === 'corrupted' ? 3.5 : 16.5
  const hollow = into === 'corrupted' ? 16.5 : 3.5
  return (
    <svg class="icon turn" viewBox="0 0 20 16" aria-hidden="true">
      <circle cx={filled} cy="8" r="2.9" class="only" />
      <circle cx={hollow} cy="8" r="2.4" />
      <path d="M7.6 8h4.6M10.6 6.2 12.4 8l-1.8 1.8" />
    </svg>
  )
}

export const Run = ({ run }: { run: 'clean' | 'corrupted' | 'patched' }): Child => (
  <span class={`run ${run}`} aria-hidden="true" />
)

/** A select that looks like the rest; `title` explains it or why it is off. */
export function Select(props: {
  testid: string
  name: string
  value: string
  prefix?: string
  options: { value: string; label: string; off?: string }[]
  off?: string
  onChange: (value: string) => void
  children?: Child
}): Child {
  const { testid, name, value, prefix, options, off, onChange, children } = props
  return (
    <label class={`select${off ? ' off' : ''}`} title={off ?? ''}>
      {prefix && <span class="prefix">{prefix}</span>}
      {children}
      <select
        data-testid={testid}
        aria-label={name}
        disabled={!!off}
        value={value}
        onChange={(e) => onChange(e.currentTarget.value)}
      >
        {options.map((o) => (
          <option
            key={o.value}
            value={o.value}
            disabled={!!o.off}
            title={o.off ?? ''}
            selected={o.value === value}
          >
            {o.label}
          </option>
        ))}
      </select>
      <Icon name="down" />
    </label>
  )
}
