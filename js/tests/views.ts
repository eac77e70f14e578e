// The later bundles are there from the start, as on a page that has shown a widget before.
import { vi } from 'vitest'
import { bundle as circuit } from '../src/circuit_tab'
import { bundle as editor } from '../src/editor_tab'
import { keep } from '../src/load'
import { bundle as paths } from '../src/paths_tab'
import { bundle as tools } from '../src/tools_tab'
import { bundle as views } from '../src/views'

keep('views', Promise.resolve(views))
keep('editor', Promise.resolve(editor))
keep('tools', Promise.resolve(tools))
keep('paths', Promise.resolve(paths))
keep('circuit', Promise.resolve(circuit))

// A frame comes as soon as a test waits for anything.
vi.stubGlobal('requestAnimationFrame', (run: FrameRequestCallback) => {
  queueMicrotask(() => run(performance.now()))
  return 0
})
