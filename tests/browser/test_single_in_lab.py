"""Single views in JupyterLab: side by side in a layout container, linked in Python and in the page alone."""

import pytest

CLEAN = "When Mary and John went to the store, John gave a drink to"
SETUP = f"""\
import ipywidgets, traitlets
import nbpatch as nbp
model = nbp.load("tiny")
pair = nbp.PromptPair({CLEAN!r}, {CLEAN.replace("John gave", "Mary gave")!r}, " Mary", " John")
result = nbp.patch(model, pair, "z", direction="both")
toggle, other = nbp.DirectionToggle("both"), nbp.DirectionToggle()
heat, eyes = nbp.Heatmap(result), nbp.AttentionView(model, pair, layer=1, head=2)
traitlets.link((toggle, "value"), (heat, "direction"))
ipywidgets.jslink((toggle, "value"), (other, "value"))
"""
SHOW = 'ipywidgets.VBox([ipywidgets.HBox([toggle, other]), heat, eyes], layout={"width": "900px"})'


@pytest.fixture(scope="module")
def book(open_book):
    opened = open_book("single.ipynb", SETUP, SHOW)
    opened.run(0)
    opened.run(1)
    opened.part("nbp-heatmap").wait_for(timeout=30_000)
    opened.part("nbp-attention").wait_for(timeout=30_000)
    return opened


def test_a_click_on_the_toggle_turns_the_map_through_python(book):
    heatmap = book.part("nbp-heatmap")
    assert heatmap.locator("canvas").count() == 2
    book.turn("noising")
    book.eventually("heat.direction", "noising")
    assert book.python("toggle.value") == "noising"
    book.page.wait_for_function("() => document.querySelectorAll('[data-testid=nbp-heatmap] canvas').length === 1")


def test_a_click_reaches_the_other_toggle_in_the_page(book):
    book.turn("denoising")
    second = book.page.get_by_test_id("nbp-direction").nth(1)
    assert second.locator("input[value=denoising]").is_checked()
    book.eventually("other.value", "denoising")
    second.locator("label:has([value=noising])").click()
    book.eventually("[toggle.value, heat.direction]", ["noising", "noising"])


def test_the_map_s_selection_reaches_python(book):
    book.click(2, 1)
    book.eventually("heat.selection", {"layer": 2, "head": 1})


def test_the_head_shown_is_the_trait_s(book):
    attention = book.part("nbp-attention")
    assert (attention.get_attribute("data-layer"), attention.get_attribute("data-head")) == ("1", "2")
    assert book.drawn(attention)
    book.python("[setattr(eyes, 'layer', 3), 1][1]")
    book.page.wait_for_function("() => document.querySelector('[data-testid=nbp-attention]').dataset.layer === '3'")
    book.select("nbp-attention-head", "0.3")
    book.eventually("[eyes.layer, eyes.head]", [0, 3])
    book.choose("nbp-attention-mode", "difference")
    book.eventually("eyes.mode", "difference")


def test_how_they_look(book, screens):
    for theme in ("Light", "Dark"):
        book.command("apputils:change-theme", theme=f"JupyterLab {theme}")
        book.page.wait_for_timeout(500)
        book.page.screenshot(path=screens / f"single-{theme.lower()}.png")
    book.command("apputils:change-theme", theme="JupyterLab Light")
    assert book.errors == []
    assert book.strangers() == []
