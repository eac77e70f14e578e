// The third bundle: paths and circuits. It comes when its tab is opened.

import { CircuitTab } from './circuit'
import circuit from './circuit.css?inline'
import type { Graphs } from './load'

export const bundle: Graphs = { style: circuit, paths: () => null, circuit: CircuitTab }
