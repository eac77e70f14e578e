// What a key does on the heat map, apart from any page.

import type { Choice } from './wire'

/** What the tools around the map do. */
export type ToolAct = { do: 'zoom'; by: 1 | 0 | -1 } | { do: 'copy' } | { do: 'keys' } | { do: 'full' }

export type Act =
  | { do: 'move'; row: number; col: number }
  | { do: 'pin' }
  | { do: 'clear' }
  | { do: 'turn'; direction: Choice }
  | ToolAct

export interface Stand {
  /** Where the selection is; null when nothing is selected. */
  at: readonly [row: number, col: number] | null
  rows: number
  cols: number
  direction: Choice
}

const PAGE = 5
const NEXT: Record<Choice, Choice> = { denoising: 'noising', noising: 'both', both: 'denoising' }

const TOOLS: Record<string, ToolAct> = {
  '+': { do: 'zoom', by: 1 },
  '=': { do: 'zoom', by: 1 },
  '-': { do: 'zoom', by: -1 },
  '0': { do: 'zoom', by: 0 },
  '?': { do: 'keys' },
  f: { do: 'full' },
}

/** The act of a key, or null for a key that is not the map's. */
export function keyAct(
  event: Pick<KeyboardEvent, 'key' | 'ctrlKey' | 'metaKey' | 'altKey'>,
  stand: Stand,
): Act | null {
  const { key } = event
  const whole = event.ctrlKey || event.metaKey
  if (event.altKey) return null
  if (whole && key === 'c') return { do: 'copy' }
  if (!whole && key in TOOLS) return TOOLS[key] as ToolAct
  if (key === 'Enter' && !whole) return { do: 'pin' }
  if (key === 'Escape') return { do: 'clear' }
  if (key === 'd' && !whole) return { do: 'turn', direction: NEXT[stand.direction] }
  const [row, col] = stand.at ?? [0, 0]
  const to = target(key, whole, row, col, stand)
  if (!to || stand.rows === 0 || stand.cols === 0) return null
  if (!stand.at && key.startsWith('Arrow')) return { do: 'move', row: 0, col: 0 }
  return { do: 'move', row: clamp(to[0], stand.rows), col: clamp(to[1], stand.cols) }
}

const clamp = (x: number, n: number): number => Math.min(n - 1, Math.max(0, x))

function target(key: string, whole: boolean, row: number, col: number, s: Stand): [number, number] | null {
  switch (key) {
    case 'ArrowUp':
      return [row - 1, col]
    case 'ArrowDown':
      return [row + 1, col]
    case 'ArrowLeft':
      return [row, col - 1]
    case 'ArrowRight':
      return [row, col + 1]
    case 'Home':
      return [whole ? 0 : row, 0]
    case 'End':
      return [whole ? s.rows - 1 : row, s.cols - 1]
    case 'PageUp':
      return [row - PAGE, col]
    case 'PageDown':
      return [row + PAGE, col]
    default:
      return null
  }
}
