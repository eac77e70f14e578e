// The later bundles are there from the start, as on a page that has shown a widget before.
import { bundle as graphs } from '../src/graphs'
import { keep } from '../src/load'
import { bundle as views } from '../src/views'

keep('views', Promise.resolve(views))
keep('graphs', Promise.resolve(graphs))
