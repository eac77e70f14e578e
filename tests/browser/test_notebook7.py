"""The widget in Notebook 7: shown, selected in, turned, edited; Python hears of all of it."""

import pytest
from host import PROMPTS, Book, Notebook
from usual import Usual

SETUP = """\
%load_ext nbpatch
from ipywidgets.widgets import widget
import warnings

def bench():
    warnings.simplefilter("ignore")
    (found,) = [one for one in widget._instances.values() if type(one).__name__ == "Workbench"]
    return found
"""
CELL = f'%%patch --component z --over "layer head" --direction denoising -o result\n{PROMPTS}'


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


class TestUsual(Usual):
    """What the widget does everywhere."""


def test_nothing_went_wrong_on_the_way(book, screens):
    book.page.screenshot(path=screens / "notebook7.png")
    # Notebook itself fetches nothing from elsewhere when it starts.
    assert book.strangers() == []
    # Notebook 7.6 itself stumbles over a setting that JupyterLab alone has.
    wrong = [error for error in book.errors if "page error" in error and "reading 'schema'" not in error]
    assert wrong == []
