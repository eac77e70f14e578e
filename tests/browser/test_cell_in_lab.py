"""Mistakes and interruptions in a `%%patch` cell, as JupyterLab shows them."""

import re

import pytest
from host import PROMPTS

LONG = f'%%patch --component pattern --over "layer head dest src" --direction both -o long\n{PROMPTS}'
SLOW = """\
%load_ext nbpatch
import time
from nbpatch.engine import frontier
from nbpatch.live import measuring

plain = frontier.Walk
def slow(*rows, **options):
    time.sleep(0.05)
    return plain(*rows, **options)
frontier.Walk = slow
frontier.MOST_TOKENS = 64
measuring.QUICK = 0
"""
COUNTS = "{str(k): int((long.data['state'] == k).sum()) for k in (0, 2)}"


@pytest.fixture(scope="module")
def book(open_book):
    wrong = "%%patch --component resid_per\n" + PROMPTS.replace("wrong:", "wrnog:")
    opened = open_book("cells.ipynb", SLOW, wrong, LONG, LONG)
    opened.run(0)
    return opened


def plain(output):
    return re.sub(r"\x1b\[[\d;]*m", "", "\n".join(output["traceback"]))


def test_all_mistakes_are_shown_under_their_lines_without_frames(book):
    book.run(1, fails=True)
    (output,) = book.outputs(1)
    text = plain(output)
    assert output["output_type"] == "error"
    assert "2 problems in this cell." in text
    assert 'did you mean "resid_pre"?' in text
    assert "line 5  wrnog:" in text
    assert "Traceback" not in text
    assert "magics.py" not in text


def test_cancel_on_the_page_keeps_what_is_finished_and_ends_the_cell(book):
    book.start(2)
    book.part("nbp-cancel").wait_for(timeout=60_000)
    book.page.wait_for_function(
        "() => Number(document.querySelector('[data-testid=nbp-progress]')?.getAttribute('aria-valuenow')) > 0",
        timeout=60_000,
    )
    book.part("nbp-cancel").click()
    book.wait_until_idle(10)
    counts = book.python(COUNTS)
    assert counts["0"] > 0
    assert counts["2"] > 0
    assert "ancelled" in book.part("nbp-status").inner_text()


def test_interrupting_the_kernel_keeps_what_is_finished(book):
    book.python("[globals().pop('long', None), 1][1]")
    book.command("notebook:clear-all-cell-outputs")
    book.start(3)
    book.page.wait_for_function(
        "() => Number(document.querySelector('[data-testid=nbp-progress]')?.getAttribute('aria-valuenow')) > 0",
        timeout=60_000,
    )
    book.command("notebook:interrupt-kernel")
    book.wait_until_idle(10)
    counts = book.python(COUNTS)
    assert counts["0"] > 0
    assert counts["2"] > 0
    assert all(output["output_type"] != "error" for output in book.outputs(3))


def test_no_errors_on_the_console_and_no_request_leaves_the_machine(book):
    assert book.errors == []
    assert book.strangers() == []
