"""The live widget for everyone, in JupyterLab: axe-core, the keyboard alone, little motion, little room."""

import pytest
from axe import violations
from host import PROMPTS

CELL = f'%%patch --component z --over "layer head" --direction both -o result\n{PROMPTS}'
CONTROLS = (
    "nbp-export", "nbp-answer", "nbp-wrong", "nbp-direction", "nbp-component", "nbp-metric", "nbp-run", "nbp-clean",
    "nbp-corrupted", "nbp-heatmap", "nbp-attention-mode", "nbp-card",
)  # fmt: skip
FOCUSED = """() => {
    const here = document.activeElement, root = document.querySelector('[data-testid=nbp-root]');
    if (!root.contains(here)) return null;
    const ringed = node => {
        const s = getComputedStyle(node);
        return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 1;
    };
    const around = [];
    for (let n = here; n && n !== root; n = n.parentElement) around.push(n);
    const field = here.matches('input:not([type=radio]), textarea');
    return {
        ids: around.map(n => n.dataset.testid).filter(Boolean),
        what: here.outerHTML.slice(0, 120),
        ring: around.some(ringed) || (field && getComputedStyle(here).opacity === '1'),
        named: !!(here.getAttribute('aria-label') || here.textContent.trim() || here.labels?.[0]?.textContent.trim()),
    };
}"""


@pytest.fixture(scope="module")
def book(open_book):
    opened = open_book("everyone.ipynb", "%load_ext nbpatch", CELL)
    opened.run(0)
    opened.run(1)
    opened.part("nbp-attention").wait_for(timeout=30_000)
    opened.page.wait_for_timeout(500)
    return opened


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_axe_finds_nothing_in_the_widget(book, theme):
    book.command("apputils:change-theme", theme=theme)
    dark = theme.endswith("Dark")
    book.page.wait_for_function(
        "theme => document.querySelector('[data-testid=nbp-root]').dataset.theme === theme",
        arg="dark" if dark else "light",
    )
    book.page.wait_for_timeout(500)
    found = violations(book.page)
    assert found == [], "\n".join(found)


def test_the_tab_key_reaches_every_control_and_each_shows_that_it_is_there(book):
    book.page.evaluate(
        """() => {
            const root = document.querySelector('[data-testid=nbp-root]');
            root.tabIndex = -1;
            root.focus();
            root.removeAttribute('tabindex');
        }"""
    )
    reached, bare, nameless = set(), [], []
    for _ in range(120):
        book.page.keyboard.press("Tab")
        here = book.page.evaluate(FOCUSED)
        if here is None:
            break
        reached.update(here["ids"])
        if not here["ring"]:
            bare.append(here["what"])
        if not here["named"]:
            nameless.append(here["what"])
    assert here is None, "the Tab key never leaves the widget"
    assert [one for one in CONTROLS if one not in reached] == []
    assert bare == []
    assert nameless == []


def test_keys_on_a_button_press_it_and_leave_the_notebook_alone(book):
    before = book.cells(), book.active()
    button = book.page.locator(".nbp .dashed").first
    button.focus()
    book.page.keyboard.press("Enter")
    assert book.page.evaluate("() => document.activeElement.dataset.testid") == "nbp-component"
    button.focus()
    for key in ("d", "d", "b", "m", "x"):
        book.page.keyboard.press(key)
    assert (book.cells(), book.active()) == before


def test_what_changes_is_said(book):
    for name in ("nbp-status", "nbp-readout"):
        assert book.part(name).get_attribute("aria-live") == "polite", name
    book.part("nbp-heatmap").focus()
    book.page.keyboard.press("ArrowRight")
    book.page.keyboard.press("ArrowRight")
    active = book.part("nbp-heatmap").get_attribute("aria-activedescendant")
    said = book.page.locator(f"[id='{active}']").text_content()
    book.wait_for_text(book.part("nbp-readout"), "(?i)layer 0.*head 1")
    assert "Layer 0, head 1" in said


def test_nothing_moves_for_those_who_want_it_so(book):
    book.page.emulate_media(reduced_motion="reduce")
    moving = book.page.evaluate(
        """() => [...document.querySelectorAll('[data-testid=nbp-root], [data-testid=nbp-root] *')].filter(e => {
            const s = getComputedStyle(e);
            const some = text => text.split(',').some(t => parseFloat(t) > 0);
            return some(s.transitionDuration) || some(s.animationDuration);
        }).map(e => e.outerHTML.slice(0, 100))"""
    )
    book.page.emulate_media(reduced_motion="no-preference")
    assert moving == []


@pytest.mark.parametrize("width", [360, 700])
def test_it_fits_a_narrow_output(book, width, screens):
    book.page.evaluate(
        "width => { document.querySelector('[data-testid=nbp-root]').parentElement.style.width = `${width}px` }", width
    )
    book.page.wait_for_timeout(500)
    root = book.part("nbp-root")
    over = root.evaluate(
        """root => {
            const edge = root.getBoundingClientRect().right + 1;
            const clipped = e => { for (let n = e.parentElement; n !== root; n = n.parentElement)
                if (getComputedStyle(n).overflowX !== 'visible') return true; };
            return [...root.querySelectorAll('*')].filter(e => {
                const box = e.getBoundingClientRect();
                const there = e.checkVisibility() && getComputedStyle(e).opacity !== '0' && box.width > 1;
                return there && box.right > edge && !clipped(e);
            }).map(e => e.outerHTML.slice(0, 100));
        }"""
    )
    root.screenshot(path=screens / f"lab-{width}.png")
    assert over == []
    assert book.errors == []
