"""The widget in Notebook 7: shown, selected in, turned, edited; Python hears of all of it."""

import pytest
from host import Book, Notebook

SETUP = """\
%load_ext nbpatch
from ipywidgets.widgets import widget
import warnings

def bench():
    warnings.simplefilter("ignore")
    (found,) = [one for one in widget._instances.values() if type(one).__name__ == "Workbench"]
    return found
"""
CELL = """\
%%patch --component z --over "layer head" --direction denoising -o result
clean:     When Mary and John went to the store, John gave a drink to
corrupted: When Mary and John went to the store, Mary gave a drink to
answer:    " Mary"
wrong:     " John"
"""


@pytest.fixture(scope="module")
def book(chromium, tmp_path_factory):
    with Notebook(tmp_path_factory.mktemp("notebook7")) as server:
        page = chromium.new_page(viewport={"width": 1300, "height": 1600})
        opened = Book(server, page, server.write("seven.ipynb", SETUP, CELL)).open()
        opened.run(0)
        opened.run(1)
        opened.part("nbp-heatmap").wait_for(timeout=30_000)
        yield opened
        page.close()


def test_a_click_and_keys_select_and_python_hears_of_it(book):
    book.click(2, 3)
    book.eventually("bench().selection", {"layer": 2, "head": 3})
    share = book.python("float(result.share().sel(layer=2, head=3))")
    book.wait_for_text(book.part("nbp-readout"), rf"{abs(share):.2f}")
    book.part("nbp-heatmap").focus()
    book.page.keyboard.press("ArrowUp")
    book.eventually("bench().selection", {"layer": 1, "head": 3})
    for _ in range(2):
        book.page.keyboard.press("d")
    assert book.cells() == 2


def test_turning_runs_the_other_direction(book):
    book.turn("noising")
    book.eventually("bench().result.provenance['direction']", "noising")
    book.eventually("bench().status['state']", "done")


def test_an_edited_prompt_is_run(book):
    text = "When Mary and John went to the store, John gave a book to"
    book.type_into("nbp-clean", text)
    book.type_into("nbp-corrupted", text.replace("John gave", "Mary gave"))
    book.eventually("bench().pairs[0].clean", text)


def test_nothing_went_wrong_on_the_way(book, screens):
    book.page.screenshot(path=screens / "notebook7.png")
    # Notebook itself fetches nothing from elsewhere when it starts.
    assert book.strangers() == []
    # Notebook 7.6 itself stumbles over a setting that JupyterLab alone has.
    wrong = [error for error in book.errors if "page error" in error and "reading 'schema'" not in error]
    assert wrong == []
