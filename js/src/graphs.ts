// The third bundle: paths and circuits. It comes when its tab is opened.

import type { Graphs } from './load'

export const bundle: Graphs = { style: '', paths: () => null, circuit: () => null }
