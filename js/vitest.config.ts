import { defineConfig } from 'vitest/config'

export default defineConfig({
  oxc: { jsx: { runtime: 'classic', pragma: 'h', pragmaFrag: 'Fragment', development: false } },
  test: { environment: 'happy-dom', include: ['tests/*.test.{ts,tsx}'], restoreMocks: true },
})
