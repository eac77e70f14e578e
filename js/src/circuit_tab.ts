// The bundle of the Circuit tab and of the circuit view. It comes when it is opened.

import { CircuitTab } from './circuit'
import style from './circuit.css?inline'
import type { Later } from './load'

export const bundle: Later = { style, view: CircuitTab }
