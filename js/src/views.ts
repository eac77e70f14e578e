// The second bundle: all views that hang on the map. It comes behind the first, so that the map need not wait for it.

import { AttentionPanel, askForAttention } from './attention'
import attention from './attention.css?inline'
import { askForCells, quiet } from './cells'
import { hold, keys } from './gestures'
import { Inspector } from './inspector'
import type { Views } from './load'
import room from './room.css?inline'
import { handExports, saveHere } from './save'
import { Quadrants } from './scatter'
import side from './side.css?inline'

export const bundle: Views = {
  // Rules for the room there is come last, so they stand again behind those of this bundle.
  style: [side, attention, room].join(''),
  inspector: Inspector,
  attention: AttentionPanel,
  scatter: Quadrants,
  hold,
  keys,
  save: saveHere,
  asks: [askForAttention, askForCells],
  starts: [handExports, quiet],
}
