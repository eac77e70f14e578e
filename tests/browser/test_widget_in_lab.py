"""The `%%patch` cell in JupyterLab: what the page shows and what Python received, in one sitting.

The tests share one open notebook and run in order of the file; each sets up what it needs through the page.
"""

import re

import pytest

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
PROMPTS = f'clean:     {CLEAN}\ncorrupted: {CORRUPTED}\nanswer:    " Mary"\nwrong:     " John"'
CELL = f'%%patch --component z --over "layer head" --direction both --metric logit_diff prob -o result\n{PROMPTS}'
SETUP = """\
%load_ext nbpatch
from ipywidgets.widgets import widget
import numpy as np

def bench():
    (found,) = [one for one in widget._instances.values() if type(one).__name__ == "Workbench"]
    return found
"""
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def book(open_book):
    opened = open_book("first.ipynb", SETUP, CELL, "untouched = 1", "also_untouched = 1")
    opened.run(0)
    opened.run(1)
    opened.part("nbp-heatmap").wait_for(timeout=30_000)
    return opened


@pytest.fixture
def at_rest(book):
    """The notebook with the controls as the cell set them and nothing selected."""
    book.select("nbp-component", "z")
    book.eventually("bench().result.provenance['component']", "z")
    book.turn("both")
    book.eventually("bench().result.provenance['direction']", "both")
    book.eventually("bench().status['state']", "done")
    book.part("nbp-heatmap").focus()
    book.page.keyboard.press("Escape")
    book.eventually("bench().selection", None)
    return book


def test_the_cell_leaves_a_result_in_python(book):
    assert book.python("list(result.data['logit_diff'].dims)") == ["direction", "layer", "head", "pair"]
    assert book.python("list(result.data.data_vars)") == ["logit_diff", "prob"]
    assert book.python("bool(np.isfinite(result.data['logit_diff']).all())") is True


def test_the_output_has_widget_picture_and_text_and_no_html(book):
    (output,) = book.outputs(1)
    assert set(output["data"]) == {WIDGET, "image/png", "text/plain"}
    assert "layer" in "".join(output["data"]["text/plain"])


def test_the_strips_show_the_tokens_and_mark_where_they_differ(book):
    tokens = book.python("bench().result.provenance['pairs'][0]['clean_tokens']")
    differs = book.python("bench().result.provenance['pairs'][0]['differs']")
    for side in ("clean", "corrupted"):
        strip = book.part(f"nbp-tokens-{side}").get_by_test_id("nbp-token")
        assert strip.count() == len(tokens)
        marked = strip.evaluate_all(
            "all => all.filter(t => t.dataset.differs === 'true').map(t => Number(t.dataset.pos))"
        )
        assert marked == differs
    shown = book.part("nbp-tokens-clean").inner_text()
    assert "store" in shown
    assert book.part("nbp-clean").input_value() == CLEAN


def test_the_map_has_the_shape_of_the_sweep(book):
    heatmap = book.part("nbp-heatmap")
    layers, heads = book.python("[bench().result.data.sizes[d] for d in ('layer', 'head')]")
    assert heatmap.get_attribute("data-rows") == str(layers)
    assert heatmap.get_attribute("data-cols") == str(heads)
    assert heatmap.locator("canvas").count() == 2


def test_pointing_at_a_cell_reads_it_out_and_tells_python_nothing(at_rest):
    at_rest.point(2, 1)
    readout = at_rest.part("nbp-readout")
    at_rest.wait_for_text(readout, r"(?i)layer 2.*head 1|2\.1")
    share = at_rest.python("float(bench().result.share().sel(direction='denoising', layer=2, head=1))")
    number = f"{abs(share):.2f}"
    assert number in readout.inner_text(), (number, readout.inner_text())
    assert at_rest.python("bench().selection") is None


def test_the_colour_of_a_cell_is_its_share_of_the_gap(at_rest):
    shares = at_rest.python("bench().result.share().sel(direction='denoising').values.tolist()")
    cells = [(value, row, col) for row, line in enumerate(shares) for col, value in enumerate(line)]
    value, row, col = max(cells)
    assert value > 0.05
    red, _, blue = at_rest.colour(row, col)
    assert blue > red, f"layer {row}, head {col} restores {value:.2f} and should be blue"


def test_keys_move_the_selection_and_stay_in_the_map(at_rest):
    page, heatmap = at_rest.page, at_rest.part("nbp-heatmap")
    heatmap.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "End", "ArrowLeft"):
        page.keyboard.press(key)
    last = int(heatmap.get_attribute("data-cols")) - 1
    assert at_rest.eventually("bench().selection", {"layer": 1, "head": last - 1})
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    at_rest.eventually("bench().selection", None)
    # In JupyterLab's command mode "d" twice deletes a cell and arrows move to another one.
    page.keyboard.press("d")
    page.keyboard.press("d")
    assert at_rest.cells() == 4
    assert at_rest.active() == 1


def test_clicking_a_head_shows_its_attention(at_rest):
    at_rest.click(3, 2)
    at_rest.eventually("bench().selection", {"layer": 3, "head": 2})
    attention = at_rest.part("nbp-attention")
    attention.wait_for()
    at_rest.wait_for_text(attention, r"3\.2|(?i:layer 3.*head 2)")
    for mode in ("corrupted", "difference", "clean"):
        at_rest.choose("nbp-attention-mode", mode)
        assert at_rest.drawn(attention), mode


def test_a_selection_made_in_python_shows_on_the_page(at_rest):
    at_rest.python("[setattr(bench(), 'selection', {'layer': 0, 'head': 1}), 1][1]")
    at_rest.wait_for_text(at_rest.part("nbp-readout"), r"(?i)layer 0.*head 1|0\.1")


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_turning_the_direction(at_rest, direction):
    at_rest.turn(direction)
    at_rest.eventually("bench().result.provenance['direction']", direction)
    assert at_rest.part("nbp-heatmap").locator("canvas").count() == 1
    at_rest.part("nbp-heatmap").focus()
    at_rest.page.keyboard.press("d")
    after = {"denoising": "noising", "noising": "both"}[direction]
    at_rest.eventually("bench().result.provenance['direction']", after)


def test_another_component_is_run_and_streamed_in(at_rest):
    at_rest.select("nbp-component", "resid_pre")
    at_rest.eventually("bench().result.provenance['component']", "resid_pre")
    at_rest.eventually("bench().status['state']", "done")
    tokens = at_rest.python("bench().result.data.sizes['pos']")
    at_rest.page.wait_for_function(
        "n => document.querySelector('[data-testid=nbp-heatmap]').dataset.cols === String(n)", arg=tokens
    )
    assert at_rest.python("bool(np.isfinite(bench().result.data['logit_diff']).all())") is True
    assert at_rest.python("len(bench().results)") >= 4


def test_quick_changes_are_all_kept(at_rest):
    at_rest.turn("noising")
    at_rest.select("nbp-component", "q")
    at_rest.eventually("[bench().result.provenance[k] for k in ('component', 'direction')]", ["q", "noising"], 10)


def test_another_metric_needs_no_run(at_rest):
    before = at_rest.python("len(bench().results)")
    at_rest.select("nbp-metric", "prob")
    at_rest.eventually("bench().spec['metric']", "prob")
    assert at_rest.python("len(bench().results)") == before
    at_rest.select("nbp-metric", "logit_diff")
    at_rest.eventually("bench().spec['metric']", "logit_diff")


def test_an_edited_prompt_is_run(at_rest):
    at_rest.type_into("nbp-clean", CLEAN.replace("drink", "book"))
    at_rest.type_into("nbp-corrupted", CORRUPTED.replace("drink", "book"))
    at_rest.eventually("bench().pairs[0].clean", CLEAN.replace("drink", "book"))
    at_rest.eventually("bench().pairs[0].corrupted", CORRUPTED.replace("drink", "book"))
    at_rest.wait_for_text(at_rest.part("nbp-tokens-clean"), "book")
    for part, text in (("nbp-clean", CLEAN), ("nbp-corrupted", CORRUPTED)):
        at_rest.type_into(part, text)
    at_rest.eventually("bench().pairs[0].clean", CLEAN)
    at_rest.eventually("bench().pairs[0].corrupted", CORRUPTED)


def test_a_prompt_that_cannot_be_used_says_why_and_keeps_the_map(at_rest, screens):
    at_rest.type_into("nbp-clean", CLEAN.replace("drink", "drnk"))
    error = at_rest.part("nbp-error")
    error.wait_for()
    assert "drnk" in error.inner_text()
    assert at_rest.part("nbp-heatmap").is_visible()
    assert at_rest.python("bench().pairs[0].clean") == CLEAN
    at_rest.page.screenshot(path=screens / "error.png")
    at_rest.type_into("nbp-clean", CLEAN)
    error.wait_for(state="hidden")


def test_a_reloaded_page_shows_the_same_widget_alive(book):
    book.command("docmanager:save")
    book.reload()
    book.part("nbp-heatmap").wait_for(timeout=30_000)
    assert book.part("nbp-clean").input_value() == CLEAN
    book.click(1, 1)
    book.eventually("bench().selection", {"layer": 1, "head": 1})


def test_light_and_dark(at_rest, screens):
    root = at_rest.part("nbp-root")
    lightness = {}
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        at_rest.command("apputils:change-theme", theme=theme)
        at_rest.page.wait_for_function(
            "dark => document.body.dataset.jpThemeLight === String(!dark)", arg=theme.endswith("Dark")
        )
        name = theme.split()[-1].lower()
        for direction in ("denoising", "both"):
            at_rest.turn(direction)
            at_rest.eventually("bench().result.provenance['direction']", direction)
            at_rest.click(2, 1)
            at_rest.part("nbp-attention").wait_for()
            at_rest.page.wait_for_timeout(600)
            root.screenshot(path=screens / f"workbench-{direction}-{name}.png")
        at_rest.page.screenshot(path=screens / f"lab-{name}.png")
        lightness[name] = sum(
            map(int, re.findall(r"\d+", root.evaluate("e => getComputedStyle(e).backgroundColor"))[:3])
        )
    at_rest.command("apputils:change-theme", theme="JupyterLab Light")
    assert lightness["light"] > 700
    assert lightness["dark"] < 150


def test_no_errors_on_the_console_and_no_request_leaves_the_machine(book):
    assert book.errors == []
    assert len(book.requests) > 50
    assert book.strangers() == []
