// The second bundle: all views that hang on the map. It comes behind the first, so that the map need not wait for it.

import { AttentionPanel, askForAttention } from './attention'
import attention from './attention.css?inline'
import { answerNotes, askForDraft, Editor, Failed, waysOut } from './editor'
import editor from './editor.css?inline'
import { Inspector } from './inspector'
import type { Views } from './load'
import { menus } from './menus'
import steps from './path_buttons.css?inline'
import { picker } from './picker'
import { handExports, saveHere } from './save'
import { Quadrants } from './scatter'
import side from './side.css?inline'

export const bundle: Views = {
  style: [side, attention, editor, steps].join(''),
  inspector: Inspector,
  attention: AttentionPanel,
  scatter: Quadrants,
  editor: Editor,
  failure: Failed,
  waysOut,
  concerns: answerNotes,
  menus,
  picker,
  save: saveHere,
  asks: [askForAttention, askForDraft],
  starts: [handExports],
}
