// Builds the widget's bundles into the Python package; --check only says whether the committed ones are fresh.
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build, transform } from 'esbuild'

/** The later bundles and their entries; nbpatch/view/widgets.py knows the same names. */
const LATER = {
  views: 'views',
  tools: 'tools_tab',
  editor: 'editor_tab',
  paths: 'paths_tab',
  circuit: 'circuit_tab',
}
const BUDGET = 60_000
const LIMIT = 80_000
const here = dirname(fileURLToPath(import.meta.url))
const folder = join(here, '..', 'nbpatch', 'view', 'static')

/** Returns the code of one entry, everything it imports included. */
async function bundle(entry, define = {}) {
  const made = await build({
    absWorkingDir: here,
    entryPoints: [`src/${entry}.ts`],
    bundle: true,
    minify: true,
    write: false,
    format: 'esm',
    target: 'es2022',
    charset: 'utf8',
    legalComments: 'none',
    jsxFactory: 'h',
    jsxFragment: 'Fragment',
    define: { 'define.amd': 'false', VERSIONS: '{}', ...define },
    plugins: [{ name: 'css-as-text', setup: cssAsText }],
  })
  return made.outputFiles[0].text
}

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

function put(name, code) {
  const size = Buffer.byteLength(code)
  if (size > LIMIT) throw new Error(`${name} has ${size} bytes; the limit is ${LIMIT}`)
  const target = join(folder, name)
  if (process.argv.includes('--check')) {
    if (readFileSync(target, 'utf8') !== code)
      throw new Error('nbpatch/view/static is not what js/ builds: run "make js"')
  } else {
    mkdirSync(folder, { recursive: true })
    writeFileSync(target, code)
  }
  console.log(`${name} ${size} bytes${size > BUDGET ? `, over the budget of ${BUDGET}` : ''}`)
}

const versions = {}
for (const [name, entry] of Object.entries(LATER)) {
  const code = await bundle(entry)
  versions[name] = createHash('sha256').update(code).digest('hex').slice(0, 12)
  put(`${name}.js`, code)
}
put('workbench.js', await bundle('index', { VERSIONS: JSON.stringify(versions) }))
