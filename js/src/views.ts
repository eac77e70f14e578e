// The second bundle: all views that hang on the map. It comes behind the first, so that the map need not wait for it.

import { AttentionPanel, askForAttention } from './attention'
import attention from './attention.css?inline'
import { askForCells, quiet } from './cells'
import { hold, keys } from './gestures'
import { Inspector } from './inspector'
import type { Views } from './load'
import steps from './path_buttons.css?inline'
import { Quadrants } from './scatter'
import side from './side.css?inline'

export const bundle: Views = {
  style: [side, attention, steps].join(''),
  inspector: Inspector,
  attention: AttentionPanel,
  scatter: Quadrants,
  hold,
  keys,
  asks: [askForAttention, askForCells],
  starts: [quiet],
}
