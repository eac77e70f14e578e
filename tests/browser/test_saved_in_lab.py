"""A notebook that is opened again in JupyterLab: what it shows of a widget whose kernel is gone is true."""

import pytest
from host import PROMPTS, Book, Lab

CELL = f'%%patch --component z --over "layer head" --direction both -o result\n{PROMPTS}'
UNTRUST = "() => { for (const c of window.jupyterapp.shell.currentWidget.content.widgets) c.model.trusted = false }"


@pytest.fixture(scope="module")
def lab_that_saves(tmp_path_factory):
    with Lab(tmp_path_factory.mktemp("saves"), save_widgets=True) as server:
        yield server


def run_and_close(chromium, lab, name):
    """Runs the cell, saves, ends the kernel; returns the notebook opened again, with another kernel."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1600})
    book = Book(lab, page, lab.write(name, "%load_ext nbpatch", CELL)).open()
    book.run(0)
    book.run(1)
    book.part("nbp-heatmap").wait_for(timeout=30_000)
    share = book.python("float(result.share().sel(direction='denoising', layer=2, head=3))")
    book.close_kernel()
    page.close()
    page = chromium.new_page(viewport={"width": 1400, "height": 1600})
    return Book(lab, page, name).open(), share


def test_with_its_state_saved_the_widget_shows_its_maps(chromium, lab_that_saves, screens):
    book, share = run_and_close(chromium, lab_that_saves, "state.ipynb")
    book.part("nbp-heatmap").locator("canvas").first.wait_for(timeout=30_000)
    book.point(2, 3)
    book.wait_for_text(book.part("nbp-readout"), rf"{abs(share):.2f}")
    book.wait_for_text(book.part("nbp-status"), "(?i)python does not answer")
    book.page.screenshot(path=screens / "lab-reopened.png")
    assert [error for error in book.errors if "page error" in error] == []
    book.page.close()


def test_not_trusted_it_shows_the_picture(chromium, lab_that_saves):
    """JupyterLab draws widgets only of notebooks it trusts; one from elsewhere is not."""
    name = "foreign.ipynb"
    page = chromium.new_page(viewport={"width": 1400, "height": 1600})
    made = (lab_that_saves.root / "state.ipynb").read_text().replace("a drink", "a  drink", 1)
    (lab_that_saves.root / name).write_text(made)
    book = Book(lab_that_saves, page, name).open()
    picture = page.locator(".jp-OutputArea-output img").first
    picture.wait_for(timeout=30_000)
    assert picture.evaluate("e => e.naturalWidth") > 300
    assert book.part("nbp-root").count() == 0
    page.close()
