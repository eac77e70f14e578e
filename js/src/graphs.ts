// The third bundle: paths and circuits. It comes when its tab is opened.

import type { Graphs } from './load'
import { Paths } from './paths'
import paths from './paths.css?inline'

export const bundle: Graphs = { style: [paths].join(''), paths: Paths, circuit: () => null }
