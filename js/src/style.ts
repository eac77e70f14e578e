// The widget's style sheet. It stands inside the widget's own root, so that shadow roots have it too.

import base from './base.css?inline'
import layout from './layout.css?inline'
import { SCALE, TOKENS } from './style.generated'
import views from './views.css?inline'

const variables = (theme: 'light' | 'dark'): string => {
  const colours = Object.entries(TOKENS[theme]).map(([name, value]) => `--${name}:${value};`)
  const ramp = SCALE[theme].join()
  return `${colours.join('')}--up:linear-gradient(to top,${ramp});--across:linear-gradient(to right,${ramp});color-scheme:${theme}`
}

export const STYLE: string = `.nbp{${variables('light')}}.nbp[data-theme=dark]{${variables('dark')}}${base}${layout}${views}`
