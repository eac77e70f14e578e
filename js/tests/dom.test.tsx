import { beforeEach, describe, expect, it, vi } from 'vitest'
import { Fragment, h, patch, type VNode } from '../src/dom'

let root: HTMLElement
let tree: VNode[]
const show = (next: Parameters<typeof patch>[2]) => {
  tree = patch(root, tree, next)
}

beforeEach(() => {
  root = document.createElement('div')
  tree = []
})

describe('drawing again', () => {
  it('keeps elements, and by key also when they move', () => {
    const list = (keys: string[]) => (
      <ul>
        {keys.map((k) => (
          <li key={k}>{k}</li>
        ))}
      </ul>
    )
    show(list(['a', 'b', 'c']))
    const [a, b] = [...root.querySelectorAll('li')]
    show(list(['c', 'b', 'a', 'd']))
    const now = [...root.querySelectorAll('li')]
    expect(now.map((li) => li.textContent).join('')).toBe('cbad')
    expect(now[2]).toBe(a)
    expect(now[1]).toBe(b)
    show(list([]))
    expect(root.innerHTML).toBe('<ul></ul>')
  })

  it('recognises what follows something that comes and goes', () => {
    const page = (open: boolean) => (
      <div>
        {open && <p>news</p>}
        <input class="field" />
      </div>
    )
    show(page(false))
    const input = root.querySelector('input')
    show(page(true))
    expect(root.querySelector('input')).toBe(input)
    expect(root.textContent).toBe('news')
    show(page(false))
    expect(root.querySelector('input')).toBe(input)
  })

  it('sets, changes and removes attributes; aria and data keep "false"', () => {
    show(
      <button
        type="button"
        title="a"
        disabled={true}
        aria-pressed={false}
        style={{ width: '3px', '--gap': '1px' }}
      />,
    )
    const button = root.firstChild as HTMLButtonElement
    expect(button.disabled).toBe(true)
    expect(button.getAttribute('aria-pressed')).toBe('false')
    expect(button.style.width).toBe('3px')
    show(<button type="button" disabled={false} style={{ width: '4px' }} />)
    expect(root.firstChild).toBe(button)
    expect([button.disabled, button.hasAttribute('title'), button.style.width]).toEqual([false, false, '4px'])
  })

  it('replaces handlers instead of adding them', () => {
    const [first, second] = [vi.fn(), vi.fn()]
    show(<button type="button" onClick={first} />)
    show(<button type="button" onClick={second} />)
    ;(root.firstChild as HTMLElement).click()
    expect([first.mock.calls.length, second.mock.calls.length]).toEqual([0, 1])
    show(<button type="button" />)
    ;(root.firstChild as HTMLElement).click()
    expect(second).toHaveBeenCalledTimes(1)
  })

  it('holds a controlled value and leaves a default one to the reader', () => {
    const page = (on: boolean) => (
      <p>
        <input type="radio" checked={on} />
        <input class="free" defaultValue="first" />
      </p>
    )
    show(page(true))
    const [radio, free] = [...root.querySelectorAll('input')] as [HTMLInputElement, HTMLInputElement]
    radio.checked = false
    free.value = 'typed'
    show(page(true))
    expect([radio.checked, free.value]).toEqual([true, 'typed'])
  })

  it('makes SVG as SVG', () => {
    show(
      <svg viewBox="0 0 1 1" aria-hidden="true">
        <path d="M0 0" />
      </svg>,
    )
    expect(root.querySelector('path')?.namespaceURI).toBe('http://www.w3.org/2000/svg')
    expect(root.querySelector('svg')?.getAttribute('viewBox')).toBe('0 0 1 1')
  })

  it('takes fragments, lists, numbers and nothing', () => {
    const Three = ({ children }: { children?: Parameters<typeof patch>[2] }) => <>{children}</>
    show(
      <Three>
        {1}
        {null}
        {['a', [<b key="b">x</b>]]}
      </Three>,
    )
    expect(root.innerHTML).toBe('1a<b>x</b>')
  })
})

it('paints again only when something it depends on changed', () => {
  const run = vi.fn()
  const page = (n: number, title: string) => <canvas title={title} paint={{ when: [n], run }} />
  show(page(1, 'a'))
  show(page(1, 'b'))
  expect(run).toHaveBeenCalledTimes(1)
  show(page(2, 'b'))
  expect(run).toHaveBeenCalledTimes(2)
  expect(run).toHaveBeenLastCalledWith(root.firstChild)
})

it('takes no harm when the host has emptied its element', () => {
  show(<p>here</p>)
  root.replaceChildren()
  expect(() => show([])).not.toThrow()
})
