"""The prompt editor in JupyterLab: live drafts, ways out, choices, undo and templates, and what Python received.

The tests share one open notebook and run in order of the file; each sets up what it needs through the page.
"""

import pytest

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
LONGER = "When Mary and John and Tom went to the store, Mary gave a drink to"
SETUP = """\
import nbpatch as nbp
from ipywidgets import Text, jslink

model = nbp.load("tiny")
drafts = []

def bench():
    return wb
"""
BENCH = f"""\
wb = nbp.Workbench(model, nbp.PromptPair({CLEAN!r}, {CORRUPTED!r}, " Mary", " John"))
wb.run()
wb
"""
EDITOR = f"""\
editor = nbp.PromptEditor(model, nbp.PromptPair({CLEAN!r}, {CORRUPTED!r}, " Mary", " John"))
other = Text()
jslink((editor, "clean"), (other, "value"))
display(other, editor)
"""


@pytest.fixture(scope="module")
def book(open_book):
    opened = open_book("editor.ipynb", SETUP, BENCH, EDITOR, "after = 1")
    opened.run(0)
    opened.run(1)
    opened.part("nbp-heatmap").wait_for(timeout=30_000)
    opened.part("nbp-pair").wait_for(timeout=30_000)
    return opened


@pytest.fixture
def at_rest(book):
    """The workbench with its first pair, run."""
    if book.part("nbp-error").count():
        book.part("nbp-error").get_by_role("button").click()
        book.eventually("bench().error", None)
    book.python(f"setattr(wb, 'pairs', nbp.PromptPair({CLEAN!r}, {CORRUPTED!r}, ' Mary', ' John'))")
    book.python("setattr(wb, 'component', 'resid_pre')")
    book.eventually("bench().status['state']", "done")
    book.eventually("bench().error", None)
    book.page.wait_for_function(
        "text => document.querySelector('[data-testid=nbp-clean]').value === text"
        " && !document.querySelector('[data-testid=nbp-error]')",
        arg=CLEAN,
    )
    return book


def tokens(book, part):
    return book.part(part).get_by_test_id("nbp-token").all_inner_texts()


def test_typing_shows_tokens_and_predictions_before_anything_is_run(at_rest):
    ran = at_rest.python("wb.spec['gen']")
    field = at_rest.part("nbp-corrupted")
    field.focus()
    field.fill(CORRUPTED.replace("Mary gave", "Peter gave"))
    at_rest.page.wait_for_function(
        "() => document.querySelector('[data-testid=nbp-tokens-corrupted]').innerText.includes('Peter')"
    )
    text = CORRUPTED.replace("Mary gave", "Peter gave")
    said = at_rest.part("nbp-draft-corrupted").locator("[data-of=wrong]").get_attribute("data-share")
    pair = f"nbp.PromptPair({text!r}, {CLEAN!r}, ' John', ' Mary')"
    share = at_rest.python(f"float(nbp.patch(model, {pair}, 'z', metric='prob').baselines['clean'].values.squeeze())")
    assert float(said) == pytest.approx(share, abs=1e-6)
    assert at_rest.part("nbp-corrupted").input_value() == text
    assert at_rest.python("[wb.spec['gen'], wb.pairs[0].corrupted]") == [ran, CORRUPTED]
    field.press("Escape")
    at_rest.page.wait_for_function(
        "() => !document.querySelector('[data-testid=nbp-tokens-corrupted]').innerText.includes('Peter')"
    )
    assert field.input_value() == CORRUPTED


def test_how_long_a_keystroke_takes_to_be_shown(at_rest, capsys):
    field = at_rest.part("nbp-clean")
    field.focus()
    times = []
    for word in ("Susan", "Peter", "Anna", "Paul", "Mary"):
        at_rest.page.evaluate(
            """word => {
                window.shown = null;
                const strip = document.querySelector('[data-testid=nbp-tokens-clean]');
                const input = document.querySelector('[data-testid=nbp-clean]');
                const began = performance.now();
                const seen = new MutationObserver(() => {
                    if (strip.children[2].innerText.includes(word)) window.shown = performance.now() - began;
                });
                seen.observe(strip, {subtree: true, childList: true, characterData: true});
                input.value = input.value.replace(/^When \\w+/, 'When ' + word);
                input.dispatchEvent(new InputEvent('input', {bubbles: true}));
            }""",
            word,
        )
        at_rest.page.wait_for_function("() => window.shown !== null")
        times.append(at_rest.page.evaluate("() => window.shown"))
    with capsys.disabled():
        print(f"\nkeystroke to shown, with the 60 ms rest: {', '.join(f'{one:.0f}' for one in times)} ms")
    field.press("Escape")


def test_prompts_of_unequal_length_are_shown_apart_and_repaired(at_rest, screens):
    at_rest.type_into("nbp-corrupted", LONGER)
    at_rest.part("nbp-ways").wait_for()
    assert "clean has 15 tokens, corrupted has 17" in at_rest.part("nbp-error").inner_text()
    assert at_rest.part("nbp-apart-clean").locator(".hole").count() == 2
    assert at_rest.python("wb.error['field']") == "clean"
    at_rest.page.screenshot(path=screens / "editor-error.png")
    at_rest.part("nbp-ways").locator("[data-repair=add]").click()
    at_rest.eventually("wb.pairs[0].clean", CLEAN.replace("John went", "John and Tom went"))
    at_rest.eventually("wb.status['state']", "done")
    assert at_rest.python("[wb.result.data.sizes['pos'], wb.pairs[0].corrupted]") == [17, LONGER]
    assert at_rest.part("nbp-heatmap").get_attribute("data-cols") == "17"


def test_positions_paired_by_word_are_run(at_rest, screens):
    at_rest.type_into("nbp-corrupted", LONGER)
    at_rest.part("nbp-ways").locator("[data-repair=align]").click()
    at_rest.eventually("wb.error", None)
    at_rest.eventually("wb.status['state']", "done")
    at_rest.eventually("wb.pairs[0].align and wb.pairs[0].align[14]", 16)
    same = at_rest.python(
        "float(abs(nbp.patch(model, wb.pairs, 'resid_pre').data['logit_diff'] - wb.result.data['logit_diff']).max())"
    )
    assert same < 1e-5
    assert len(tokens(at_rest, "nbp-tokens-corrupted")) == 15
    at_rest.page.screenshot(path=screens / "editor-aligned.png")
    at_rest.part("nbp-undo").click()
    at_rest.eventually("wb.pairs[0].align", None)
    at_rest.eventually("wb.pairs[0].corrupted", CORRUPTED)


def test_going_back_keeps_the_finished_sweep_and_redo_brings_what_failed(at_rest):
    at_rest.type_into("nbp-corrupted", LONGER)
    at_rest.part("nbp-ways").wait_for()
    at_rest.part("nbp-error").get_by_role("button").click()
    at_rest.eventually("wb.error", None)
    assert at_rest.part("nbp-corrupted").input_value() == CORRUPTED
    at_rest.part("nbp-redo").click()
    at_rest.part("nbp-ways").wait_for()
    assert at_rest.python("wb.error['title']").startswith("the prompts have different")


def test_an_answer_is_chosen_from_the_likeliest_tokens_by_keys(at_rest, screens):
    field = at_rest.part("nbp-wrong")
    field.focus()
    choices = at_rest.part("nbp-root").locator("[role=option][data-token]")
    choices.nth(3).wait_for()
    at_rest.page.screenshot(path=screens / "editor-picker.png")
    chosen = choices.nth(1).get_attribute("data-token")
    field.press("ArrowDown")
    field.press("ArrowDown")
    field.press("Enter")
    at_rest.eventually("list(wb.pairs[0].wrong)", [chosen])
    at_rest.eventually("wb.result.provenance['pairs'][0]['wrong']", [chosen])


def test_a_template_makes_pairs_and_the_picker_goes_among_them(at_rest, screens):
    at_rest.part("nbp-templates").locator("summary").click()
    at_rest.part("nbp-templates").locator("[data-template=docstring]").wait_for()
    at_rest.page.screenshot(path=screens / "editor-templates.png")
    assert at_rest.part("nbp-templates").locator("[data-template=docstring]").is_disabled()
    at_rest.part("nbp-templates").locator("[data-template=pronouns]").click()
    at_rest.eventually("len(wb.pairs)", 8)
    at_rest.eventually("wb.status['state']", "done")
    at_rest.part("nbp-pair").locator("summary").click()
    at_rest.page.screenshot(path=screens / "editor-pairs.png")
    at_rest.part("nbp-pair").locator("[data-pair='3']").click()
    at_rest.eventually("wb.spec['pair']", 3)
    at_rest.part("nbp-pair").locator("summary").click()
    at_rest.part("nbp-pair-remove").click()
    at_rest.eventually("len(wb.pairs)", 7)
    at_rest.eventually("wb.status['state']", "done")
    at_rest.part("nbp-heatmap").focus()
    at_rest.page.keyboard.press("Control+z")
    at_rest.eventually("len(wb.pairs)", 8)
    at_rest.part("nbp-history").locator("summary").click()
    at_rest.page.screenshot(path=screens / "editor-history.png")
    at_rest.part("nbp-history").get_by_role("button", name=CLEAN[:30]).first.click()
    at_rest.eventually("wb.pairs[0].clean", CLEAN)
    assert at_rest.cells() == 4


def wide(book, pixels):
    """Makes the widget that many pixels wide."""
    book.page.evaluate(
        "width => { document.querySelector('[data-testid=nbp-root]').parentElement.style.width = width }",
        f"{pixels}px" if pixels else "",
    )
    book.page.wait_for_timeout(150)


def beyond(book):
    """Returns what sticks out of the widget on the right and is not inside something that scrolls."""
    return book.page.evaluate(
        """() => {
            const root = document.querySelector('[data-testid=nbp-root]');
            const right = root.getBoundingClientRect().right + 1;
            const scrolls = el => el !== root && (/auto|scroll|hidden|clip/.test(getComputedStyle(el).overflowX)
                || scrolls(el.parentElement));
            return [...root.querySelectorAll('*')].filter(el => {
                const box = el.getBoundingClientRect();
                const there = el.checkVisibility() && box.width && !el.closest('svg, .hidden');
                return there && box.right > right && !scrolls(el.parentElement);
            }).map(el => el.className || el.tagName).slice(0, 5);
        }"""
    )


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_nothing_sticks_out_at_any_width(at_rest, screens, theme):
    book = at_rest
    book.command("apputils:change-theme", theme=f"JupyterLab {theme}")
    found = {}
    try:
        for pixels in (360, 800, 1400):
            wide(book, pixels)
            book.part("nbp-corrupted").fill(LONGER)
            book.page.locator("[data-testid=nbp-draft][data-drafting=true]").wait_for()
            book.page.wait_for_timeout(400)
            book.part("nbp-root").screenshot(path=screens / f"editor-{theme}-{pixels}-typing.png")
            found[pixels, "typing"] = beyond(book)
            book.part("nbp-corrupted").press("Enter")
            book.part("nbp-ways").wait_for()
            book.part("nbp-root").screenshot(path=screens / f"editor-{theme}-{pixels}-error.png")
            found[pixels, "error"] = beyond(book)
            book.part("nbp-error").get_by_role("button").click()
            book.eventually("wb.error", None)
            book.part("nbp-answer").focus()
            book.part("nbp-root").get_by_role("option").first.wait_for()
            book.part("nbp-root").screenshot(path=screens / f"editor-{theme}-{pixels}-picker.png")
            found[pixels, "picker"] = beyond(book)
            book.part("nbp-answer").press("Escape")
            book.part("nbp-templates").locator("summary").click()
            book.part("nbp-templates").locator("[data-template=docstring]").wait_for()
            book.part("nbp-root").screenshot(path=screens / f"editor-{theme}-{pixels}-menu.png")
            found[pixels, "menu"] = beyond(book)
            book.page.keyboard.press("Escape")
    finally:
        wide(book, 0)
        book.command("apputils:change-theme", theme="JupyterLab Light")
    assert not any(found.values()), found


def test_the_editor_alone_gives_its_texts_to_python_and_to_other_widgets(book, screens):
    book.run(2)
    alone = book.page.locator("[data-view=prompts]")
    alone.wait_for()
    field = alone.get_by_test_id("nbp-clean")
    field.focus()
    field.fill(CLEAN.replace("Mary and", "Susan and"))
    field.press("Enter")
    book.eventually("editor.clean", CLEAN.replace("Mary and", "Susan and"))
    book.eventually("other.value", CLEAN.replace("Mary and", "Susan and"))
    book.eventually("editor.pair.clean", CLEAN.replace("Mary and", "Susan and"))
    book.python(f"setattr(editor, 'corrupted', {LONGER.replace('Mary and', 'Susan and')!r})")
    alone.get_by_test_id("nbp-ways").wait_for()
    alone.screenshot(path=screens / "editor-alone-error.png")
    alone.get_by_test_id("nbp-ways").locator("button").first.click()
    book.eventually("len({len(editor.spec['draft'][side]['tokens']) for side in ('clean', 'corrupted')})", 1)
    assert book.python("editor.pair.align") is None
    alone.screenshot(path=screens / "editor-alone.png")
    assert not book.errors
    assert not book.strangers()
