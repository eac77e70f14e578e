"""Cancel and supersede on the kernels people have: older ones take the page's messages only when a cell has ended."""

import time

import pytest
from host import COLAB, Book, Lab, other_packages

pytestmark = pytest.mark.long

SETUP = """\
import time
import nbpatch as nbp
from nbpatch.engine import frontier
from nbpatch.live import measuring
from nbpatch.workbench import Workbench

plain = frontier.Walk
slow = [True]
def walk(*rows, **options):
    time.sleep(0.05 if slow[0] else 0)
    return plain(*rows, **options)
frontier.Walk = walk
frontier.MOST_TOKENS = 64
measuring.QUICK = 0
pair = nbp.PromptPair(
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    " Mary",
    " John",
)
wb = Workbench(nbp.load("tiny"), pair, "pattern", "layer head dest src")
bench = lambda: wb
"""
COUNTS = "{str(k): int((wb.result.data['state'] == k).sum()) for k in (0, 2)}"
GOES = """() => {
    const bar = document.querySelector('[data-testid=nbp-progress]');
    return Number(bar?.getAttribute('aria-valuenow')) > 0 && !!document.querySelector('[data-testid=nbp-cancel]');
}"""


OTHERS = {
    "ipykernel-6.31.0": ("ipykernel==6.31.0",),
    "ipykernel-7.3.0": ("ipykernel==7.3.0",),
    "colab": COLAB,
}


@pytest.fixture(scope="module", params=list(OTHERS))
def book(request, chromium, tmp_path_factory):
    folder = other_packages(request.param, *OTHERS[request.param])
    with Lab(tmp_path_factory.mktemp("kernel"), first=folder) as lab:
        page = chromium.new_page(viewport={"width": 1400, "height": 1400})
        opened = Book(lab, page, lab.write("kernel.ipynb", SETUP, "wb")).open()
        opened.pins = dict(pin.split("==") for pin in OTHERS[request.param])
        opened.version = opened.pins["ipykernel"]
        opened.run(0)
        opened.run(1)
        opened.part("nbp-heatmap").wait_for(timeout=30_000)
        yield opened
        page.close()


def seconds_until(book, state):
    begun = time.monotonic()
    book.page.wait_for_function(
        "state => document.querySelector('[data-testid=nbp-status]').dataset.state === state",
        arg=state,
        timeout=30_000,
        polling=10,
    )
    return time.monotonic() - begun


def test_the_kernel_has_the_packages_it_should_have(book):
    for name in {"ipykernel", "anywidget", "ipywidgets"} & set(book.pins):
        assert book.python(f"__import__({name!r}).__version__") == book.pins[name]


def test_what_the_page_selects_reaches_python_and_back(book):
    book.part("nbp-heatmap").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        book.page.keyboard.press(key)
    book.page.wait_for_timeout(300)
    selection = book.python("wb.selection")
    assert selection is not None
    assert set(selection) == {"layer", "head", "dest", "src"}
    book.python("[setattr(wb, 'selection', {'layer': 2, 'head': 1, 'dest': 5, 'src': 3})] and None")
    book.wait_for_text(book.part("nbp-readout"), r"(?i)layer 2.*head 1")


def test_cancel_keeps_what_is_finished(book):
    book.part("nbp-run").click()
    book.page.wait_for_function(GOES, timeout=60_000)
    book.part("nbp-cancel").click()
    took = seconds_until(book, "cancelled")
    print(f"\nipykernel {book.version}: cancelled {1000 * took:.0f} ms after the click")
    counts = book.python(COUNTS)
    assert counts["0"] > 0
    assert counts["2"] > 0


def test_a_newer_question_takes_the_place_of_a_running_one(book):
    book.part("nbp-run").click()
    book.page.wait_for_function(GOES, timeout=60_000)
    book.python("slow.__setitem__(0, False)")
    book.select("nbp-component", "z")
    book.turn("noising")
    book.eventually("[wb.result.provenance[k] for k in ('component', 'direction')]", ["z", "noising"])
    book.eventually("wb.status['state']", "done")
    assert book.python(COUNTS)["2"] == 0
    book.python("slow.__setitem__(0, True)")
