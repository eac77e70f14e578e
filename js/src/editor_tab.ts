// The bundle that edits prompts and answers: drafts, ways out, menus, the picker. Only where there is a kernel.

import { answerNotes, askForDraft, Editor, Failed, waysOut } from './editor'
import style from './editor.css?inline'
import type { Editors } from './load'
import { menus } from './menus'
import { picker } from './picker'

export const bundle: Editors = {
  style,
  editor: Editor,
  failure: Failed,
  waysOut,
  concerns: answerNotes,
  menus,
  picker,
  asks: [askForDraft],
}
