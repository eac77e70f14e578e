"""The notebooks run from top to bottom on the embedded model, say what they should, and are committed clean."""

import base64
import contextlib
import io
import json
import re
from pathlib import Path

import nbformat
import pytest

from nbpatch import __main__ as command

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"

pytestmark = pytest.mark.slow


def outputs_of(book):
    return [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs(path):
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == command.strip_notebook(json.loads(text), outputs=True)
    assert str(Path.home()) not in text


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out, said = tmp_path_factory.mktemp("demo"), io.StringIO()
    with contextlib.redirect_stdout(said):
        assert command.run_demo(out) == 0
    (out / "said.txt").write_text(said.getvalue(), encoding="utf-8")
    return out


def test_the_demo_leaves_notebook_picture_and_page(demo):
    assert (demo / "first_patch.png").read_bytes().startswith(b"\x89PNG")
    page = (demo / "first_patch.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert 'src="http' not in page
    assert (demo / "first_patch.nc").exists()


def test_the_notebook_ran_without_errors_or_warnings(demo):
    outputs = outputs_of(nbformat.read(demo / command.NOTEBOOK, as_version=4))
    assert [output for output in outputs if output.output_type == "error"] == []
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []


def test_every_widget_has_picture_and_text_and_no_html(demo):
    shown = [
        o.data for o in outputs_of(nbformat.read(demo / command.NOTEBOOK, as_version=4)) if WIDGET in o.get("data", {})
    ]
    assert len(shown) >= 3
    for data in shown:
        assert {"image/png", "text/plain"} <= set(data)
        assert "text/html" not in data
        assert len(base64.b64decode(data["image/png"])) <= 150_000


def test_prompts_of_the_field_give_the_answers_of_the_field(demo):
    text = "\n".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "")
        for output in outputs_of(nbformat.read(demo / command.NOTEBOOK, as_version=4))
    )
    assert "Mary" in text
    assert "Paris" in text


def test_the_demo_prints_the_strongest_cells_and_what_to_open(demo):
    said = (demo / "said.txt").read_text(encoding="utf-8")
    assert "recovered" in said
    for name in ("first_patch.html", "first_patch.png", command.NOTEBOOK, "make lab"):
        assert name in said


def test_the_circuit_notebook_finds_what_it_says(tmp_path):
    book = command.execute(FOLDER / "02_a_circuit.ipynb", tmp_path)
    outputs = outputs_of(book)
    assert [output for output in outputs if output.output_type == "error"] == []
    said = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert all("tasks.ioi leaves out" in line or "nbp.tasks.ioi" in line for line in said.splitlines() if line.strip())
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    text = "\n".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    shares = [float(number) for number in re.findall(r"(\d+)%", text)]
    direct, wang, first, second, flowing, alone, by_hand, estimated, exact = shares
    assert direct < 40
    assert wang > 85
    assert min(first, second) > 90
    assert flowing > 3 * alone
    assert 60 < by_hand < 90
    assert estimated < 0.7 * exact
    assert re.search(r"^v 0\.9\d?$", text, re.MULTILINE)
    for edge in ("embed->m0", "m0->a2.3.v", "m0->a1.2.v"):
        assert edge in text
