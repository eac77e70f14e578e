"""Chromium and JupyterLab for the browser tests; without Chromium they are skipped here and fail in CI."""

import os
import shutil
from pathlib import Path

import pytest
from host import FLAGS, Book, Lab

SCREENS = Path(__file__).parents[2] / "build" / "screens"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="session")
def chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        reason = "no Chromium: apt-get install chromium, or CHROMIUM=/path/to/it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(chromium, tmp_path_factory):
    with Lab(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="session")
def screens():
    SCREENS.mkdir(parents=True, exist_ok=True)
    return SCREENS


@pytest.fixture(scope="module")
def open_book(chromium, lab):
    """Opens notebooks, each in a page of its own; they are closed when the module is done."""
    pages = []

    def opened(name, *cells, **options):
        page = chromium.new_page(viewport={"width": 1500, "height": 2000}, **options)
        pages.append(page)
        return Book(lab, page, lab.write(name, *cells)).open()

    yield opened
    for page in pages:
        page.close()
