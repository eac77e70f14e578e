// Builds the widget's one bundle into the Python package; --check only says whether the committed one is fresh.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build, transform } from 'esbuild'

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
  jsxFactory: 'h',
  jsxFragment: 'Fragment',
  define: { 'define.amd': 'false' },
  plugins: [{ name: 'css-as-text', setup: cssAsText }],
})

function cssAsText(plugin) {
  plugin.onResolve({ filter: /\.css\?inline$/ }, ({ path, resolveDir }) => ({
    path: join(resolveDir, path.replace('?inline', '')),
    namespace: 'css-as-text',
  }))
  plugin.onLoad({ filter: /./, namespace: 'css-as-text' }, async ({ path }) => {
    const { code } = await transform(readFileSync(path, 'utf8'), {
      loader: 'css',
      minify: true,
      charset: 'utf8',
    })
    return { contents: code.trim(), loader: 'text' }
  })
}

const code = result.outputFiles[0].text
if (code.length > LIMIT) throw new Error(`the bundle has ${code.length} bytes; the limit is ${LIMIT}`)
if (process.argv.includes('--check')) {
  if (readFileSync(target, 'utf8') !== code)
    throw new Error('nbpatch/view/static is not what js/ builds: run "make js"')
} else {
  mkdirSync(dirname(target), { recursive: true })
  writeFileSync(target, code)
}
const size = Buffer.byteLength(code)
console.log(`workbench.js ${size} bytes${size > BUDGET ? `, over the budget of ${BUDGET}` : ''}`)
