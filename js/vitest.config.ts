import { defineConfig } from 'vitest/config'

export default defineConfig({
  oxc: { jsx: { runtime: 'classic', pragma: 'h', pragmaFrag: 'Fragment', development: false } },
  define: { VERSIONS: { views: 'test', tools: 'test', editor: 'test', paths: 'test', circuit: 'test' } },
  test: {
    setupFiles: ['tests/views.ts'],
    css: true,
    environment: 'happy-dom',
    include: ['tests/*.test.{ts,tsx}'],
    restoreMocks: true,
  },
})
