"""A notebook with a widget, as it is saved and as nbconvert writes it: the picture is there, nothing is fetched."""

import json
import re
from typing import Any

import nbformat
import pytest

nbclient = pytest.importorskip("nbclient")
nbconvert = pytest.importorskip("nbconvert")

CELLS = (
    "%load_ext nbpatch",
    '%%patch --component z --over "layer head" --direction both -o result\n'
    "clean:     When Mary and John went to the store, John gave a drink to\n"
    "corrupted: When Mary and John went to the store, Mary gave a drink to\n"
    'answer:    " Mary"\n'
    'wrong:     " John"',
)
MOST = 400_000
STATE = "application/vnd.jupyter.widget-state+json"


@pytest.fixture(scope="module")
def book() -> Any:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in CELLS])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    # nbclient keeps the state of widgets, as JupyterLab does where that is switched on.
    return nbclient.NotebookClient(made, timeout=120, store_widget_state=True).execute()


def html(book: Any) -> str:
    page, _ = nbconvert.HTMLExporter(embed_images=True).from_notebook_node(book)
    return str(page)


def test_one_cell_saves_less_than_its_budget_with_the_state_of_its_widget(book: Any) -> None:
    (state,) = [one for one in book.metadata.widgets[STATE]["state"].values() if "_esm" in one["state"]]
    assert len(state["state"]["saved"]) == 2
    size = len(json.dumps([book.cells[1].outputs, book.metadata.widgets]))
    print(f"\none %%patch cell saves {size / 1000:.0f} kB, of them {len(json.dumps(state)) / 1000:.0f} kB state")
    assert size <= MOST


def test_converted_without_state_the_picture_stands_for_the_widget(book: Any) -> None:
    plain = nbformat.from_dict(json.loads(json.dumps({**book, "metadata": {"kernelspec": book.metadata.kernelspec}})))
    page = html(plain)
    assert len(re.findall(r'<img[^>]+src="data:image/png;base64,', page)) == 1
    assert "widget-view+json" not in page.split("<body", 1)[1]


def test_converted_with_state_the_widget_takes_the_pictures_place_with_its_maps(book: Any) -> None:
    """nbconvert prefers a widget whose state is saved; that page needs a network, and `nbpatch strip` avoids it."""
    page = html(book)
    assert "widget-view+json" in page.split("<body", 1)[1]
    assert page.count('"effect64"') == 2


def test_stripped_it_is_small_and_shows_the_picture(book: Any) -> None:
    from nbpatch.__main__ import strip_notebook

    stripped = strip_notebook(json.loads(json.dumps(book)), outputs=False)
    assert "widgets" not in stripped["metadata"]
    page = html(nbformat.from_dict(stripped))
    assert len(re.findall(r'<img[^>]+src="data:image/png;base64,', page)) == 1
