// The second bundle: all views that hang on the map. It comes behind the first, so that the map need not wait for it.

import { AttentionPanel, askForAttention } from './attention'
import attention from './attention.css?inline'
import { Inspector } from './inspector'
import type { Views } from './load'
import { handExports, saveHere } from './save'
import { Quadrants } from './scatter'
import side from './side.css?inline'
import { tools } from './tools'
import toolbar from './tools.css?inline'

export const bundle: Views = {
  style: [side, attention, toolbar].join(''),
  inspector: Inspector,
  attention: AttentionPanel,
  scatter: Quadrants,
  tools,
  save: saveHere,
  asks: [askForAttention],
  starts: [handExports],
}
