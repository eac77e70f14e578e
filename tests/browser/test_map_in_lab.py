"""The tools around the map in JupyterLab: what Python received of them, and files that come from both sides."""

import numpy as np
import pytest

import nbpatch as nbp

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
CELL = (
    '%%patch --component z --over "layer head" --direction both --metric logit_diff prob -o result\n'
    f'clean:     {CLEAN}\ncorrupted: {CORRUPTED}\nanswer:    " Mary"\nwrong:     " John"'
)
SETUP = """\
%load_ext nbpatch
from ipywidgets.widgets import widget
import numpy as np

def bench():
    (found,) = [one for one in widget._instances.values() if type(one).__name__ == "Workbench"]
    return found
"""


@pytest.fixture(scope="module")
def book(open_book):
    opened = open_book("tools.ipynb", SETUP, CELL, "untouched = 1", "also_untouched = 1")
    opened.run(0)
    opened.run(1)
    opened.part("nbp-scale").wait_for(timeout=30_000)
    return opened


def test_a_sorted_and_filtered_map_tells_python_labels_not_rows(book):
    book.turn("denoising")
    book.eventually("bench().direction", "denoising")
    shares = np.abs(book.python("bench().result.share().values.tolist()"))
    order = [int(layer) for layer in np.argsort(-shares.max(axis=1), kind="stable")]
    book.select("nbp-sort", "strongest")
    for row in (0, 2):
        book.click(row, 1)
        book.eventually("bench().selection", {"layer": order[row], "head": 1})
    book.part("nbp-filter").fill("layers 1-2")
    book.wait_for_text(book.part("nbp-rows"), "2 of 4")
    book.click(1, 3)
    book.eventually("bench().selection", {"layer": [layer for layer in order if layer in (1, 2)][1], "head": 3})
    book.part("nbp-filter").fill("")
    book.select("nbp-sort", "")


def test_a_comparison_is_the_difference_of_the_shares_in_python(book):
    book.select("nbp-compare", book.part("nbp-compare").locator("option").nth(1).get_attribute("value"))
    book.point(2, 3)
    one, other = (
        book.python(f"float(next(r for r in bench().results if r.provenance['direction'] == {d!r}).share()[2, 3])")
        for d in ("denoising", "noising")
    )
    book.wait_for_text(book.part("nbp-readout"), f"{abs(one - other):.2f} of the gap")
    book.select("nbp-compare", "")


def test_files_from_the_page_and_from_python_hold_the_numbers(book, tmp_path):
    menu = book.part("nbp-export")
    found = {}
    for kind in ("svg", "nc", "csv"):
        menu.locator("summary").click()
        with book.page.expect_download() as download:
            menu.locator(f"[data-kind={kind}]").click()
        found[kind] = tmp_path / f"map.{kind}"
        download.value.save_as(found[kind])
    shares = np.asarray(book.python("bench().result.share().values.tolist()"))
    strongest = f">{np.abs(shares).max():.2f}".replace(">0", ">")
    assert strongest in found["svg"].read_text(encoding="utf-8").replace("−", "")
    np.testing.assert_allclose(nbp.read(found["nc"]).share().to_numpy(), shares, atol=1e-9)
    assert len(found["csv"].read_text().splitlines()) == 1 + shares.size


def test_keys_of_the_tools_stay_in_the_widget(book, screens):
    page = book.page
    book.part("nbp-heatmap").focus()
    for key in ("+", "+", "0", "?"):
        page.keyboard.press(key)
    book.part("nbp-keys-list").wait_for()
    page.screenshot(path=screens / "keys-in-lab.png")
    page.keyboard.press("Escape")
    book.part("nbp-keys-list").wait_for(state="detached")
    book.part("nbp-filter").focus()
    page.keyboard.type("dd")
    page.keyboard.press("Escape")
    for key in ("d", "d"):
        book.part("nbp-square").press(key)
    assert book.cells() == 4
    assert book.errors == []
    assert book.strangers() == []
