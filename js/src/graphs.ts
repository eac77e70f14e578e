// The third bundle: paths and circuits. It comes when its tab is opened.

import { CircuitTab } from './circuit'
import circuit from './circuit.css?inline'
import type { Graphs } from './load'
import { Paths } from './paths'
import paths from './paths.css?inline'

export const bundle: Graphs = { style: [paths, circuit].join(''), paths: Paths, circuit: CircuitTab }
