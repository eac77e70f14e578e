// The bundle of what stands around a map: header, question and footer, its tools and keys, files made of it.

import { Bar, Directions, Progress } from './bar'
import bar from './bar.css?inline'
import { Card, Failure, Footer } from './foot'
import { Header, Sentence } from './head'
import head from './head.css?inline'
import type { Tools } from './load'
import { handExports, saveHere } from './save'
import { tools } from './tools'
import toolbar from './tools.css?inline'

export const bundle: Tools = {
  ...tools,
  style: [head, bar, toolbar].join(''),
  header: Header,
  sentence: Sentence,
  bar: Bar,
  directions: Directions,
  progress: Progress,
  failure: Failure,
  card: Card,
  footer: Footer,
  save: saveHere,
  starts: [handExports],
}
