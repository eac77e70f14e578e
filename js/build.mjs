// Builds the widget's one bundle into the Python package; --check only says whether the committed one is fresh.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const BUDGET = 60_000
const LIMIT = 80_000
const here = dirname(fileURLToPath(import.meta.url))
const target = join(here, '..', 'nbpatch', 'view', 'static', 'workbench.js')

const result = await build({
  absWorkingDir: here,
  entryPoints: ['src/index.ts'],
  bundle: true,
  minify: true,
  write: false,
  format: 'esm',
  target: 'es2022',
  charset: 'utf8',
  legalComments: 'none',
  jsx: 'automatic',
  jsxImportSource: 'preact',
  define: { 'define.amd': 'false' },
  plugins: [{ name: 'tight-css', setup: tightCss }],
})

// White space in the style sheet's text is most of its size.
function tightCss(plugin) {
  plugin.onLoad({ filter: /src\/style(\.\w+)?\.ts$/ }, ({ path }) => {
    const source = readFileSync(path, 'utf8')
    const tight = path.endsWith('generated.ts') ? source : source.replace(/\n\s+/g, '\n').replace(/\n(?=[^`]*\n`)/g, '\n')
    return { contents: tight, loader: 'ts' }
  })
}

const code = result.outputFiles[0].text
if (code.length > LIMIT) throw new Error(`the bundle has ${code.length} bytes; the limit is ${LIMIT}`)
if (process.argv.includes('--check')) {
  if (readFileSync(target, 'utf8') !== code) throw new Error('nbpatch/view/static is not what js/ builds: run "make js"')
} else {
  mkdirSync(dirname(target), { recursive: true })
  writeFileSync(target, code)
}
const size = Buffer.byteLength(code)
console.log(`workbench.js ${size} bytes${size > BUDGET ? `, over the budget of ${BUDGET}` : ''}`)
