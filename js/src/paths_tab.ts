// The bundle of the Paths tab. It comes when the tab is opened.

import type { Later } from './load'
import { Paths } from './paths'
import style from './paths.css?inline'

export const bundle: Later = { style, view: Paths }
