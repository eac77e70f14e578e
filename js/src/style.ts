// The widget's style sheet. It stands inside the widget's own root, so that shadow roots have it too.

import base from './base.css?inline'
import map from './map.css?inline'
import room from './room.css?inline'
import strips from './strips.css?inline'
import { SCALE, TOKENS } from './style.generated'

const variables = (theme: 'light' | 'dark'): string => {
  const colours = Object.entries(TOKENS[theme]).map(([name, value]) => `--${name}:${value};`)
  const ramp = SCALE[theme].join()
  return `${colours.join('')}--up:linear-gradient(to top,${ramp});--across:linear-gradient(to right,${ramp});color-scheme:${theme}`
}

const themes = `.nbp{${variables('light')}}.nbp[data-theme=dark]{${variables('dark')}}`

export const STYLE: string = [themes, base, strips, map].join('')

/** What changes with the room there is; it comes after the styles of the later bundles, which it changes too. */
export const ROOM: string = room
