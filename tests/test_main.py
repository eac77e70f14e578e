"""The command line: strip, doctor, demo's parts, and what it says when something is missing."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from nbpatch import __main__ as command

ROOT = Path(__file__).parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def book(*outputs):
    cells = [
        nbformat.v4.new_markdown_cell("# naïve"),
        nbformat.v4.new_code_cell("x", execution_count=3, outputs=list(outputs)),
    ]
    made = nbformat.v4.new_notebook(cells=cells)
    made.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"version_major": 2}}
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    return made


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "saved.ipynb"
    output = nbformat.v4.new_output(
        "display_data", data={WIDGET: {"model_id": "1"}, "image/png": "aGk=", "text/plain": "map"}
    )
    nbformat.write(book(output, nbformat.v4.new_output("stream", text="hello")), path)
    return path


def test_strip_leaves_the_picture_and_drops_the_widget(saved, capsys):
    assert command.main(["strip", str(saved)]) == 0
    stripped = nbformat.read(saved, as_version=4)
    nbformat.validate(stripped)
    assert "widgets" not in stripped.metadata
    assert stripped.metadata["kernelspec"]["name"] == "python3"
    picture, stream = stripped.cells[1].outputs
    assert set(picture.data) == {"image/png", "text/plain"}
    assert stream.text == "hello"
    assert stripped.cells[1].execution_count == 3
    assert "stripped" in capsys.readouterr().out


def test_strip_outputs_leaves_none(saved):
    command.main(["strip", "--outputs", str(saved)])
    stripped = nbformat.read(saved, as_version=4)
    assert stripped.cells[1].outputs == []
    assert stripped.cells[1].execution_count is None
    assert "naïve" in saved.read_text(encoding="utf-8")


def test_strip_twice_is_strip_once(saved, capsys):
    command.main(["strip", str(saved)])
    first = saved.read_bytes()
    capsys.readouterr()
    command.main(["strip", str(saved)])
    assert saved.read_bytes() == first
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metadata": 3}', '{"metadata": {}, "cells": [4]}'])
def test_strip_refuses_what_is_no_notebook(tmp_path, capsys, text):
    path = tmp_path / "not.ipynb"
    path.write_text(text)
    assert command.main(["strip", str(path)]) == 1
    assert "not a notebook." in capsys.readouterr().err
    assert path.read_text() == text


def test_strip_names_a_file_that_is_not_there(tmp_path, capsys):
    assert command.main(["strip", str(tmp_path / "gone.ipynb")]) == 1
    assert "gone.ipynb" in capsys.readouterr().err


def test_doctor_says_versions_and_what_to_do(capsys):
    status = command.main(["doctor"])
    text = capsys.readouterr().out
    for name in ("Python", "ipykernel", "anywidget", "torch"):
        assert f"\n{name}" in text
    assert (status == 0) == ("DO  " not in text)


@pytest.mark.parametrize(
    ("kernel", "fine", "says"),
    [
        ("6.17.1", True, "only between cells"),
        ("7.4.0", True, "while a cell runs"),
        ("", False, "pip install ipykernel"),
    ],
)
def test_doctor_on_kernels(kernel, fine, says):
    ((seen, text),) = command._kernel_findings({"ipykernel": kernel} if kernel else {})
    assert seen is fine
    assert says in text


@pytest.mark.parametrize(
    ("page", "fine", "says"),
    [("0.11.0", True, "0.11.0 in the page"), ("0.9.21", False, "install the same version"), ("", True, "unknown")],
)
def test_doctor_on_a_page_of_another_version(monkeypatch, page, fine, says):
    monkeypatch.setattr(command, "_page_anywidget", lambda: page)
    (seen, text), *_ = command._page_findings({"jupyterlab": "4.6.6", "anywidget": "0.11.0", "ipywidgets": "8.1.9"})
    assert seen is fine
    assert says in text


def test_doctor_without_jupyterlab():
    (seen, text), *_ = command._page_findings({"anywidget": "0.11.0", "ipywidgets": "7.7.1"})
    assert seen
    assert "Colab" in text


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "nbclient" else object())
    with pytest.raises(command.NbpatchError, match="cannot run notebooks") as caught:
        command.execute(tmp_path / "x.ipynb", tmp_path)
    assert "no nbclient" in str(caught.value)
    assert "nbpatch[notebook]" in caught.value.fix


def test_a_failing_cell_is_shown_and_the_notebook_is_kept(tmp_path):
    path = tmp_path / "bad.ipynb"
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(made, path)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(command.NbpatchError, match=r"a cell of bad\.ipynb failed") as caught:
        command.execute(path, out)
    assert "ZeroDivisionError" in caught.value.seen
    assert "ZeroDivisionError" in (out / "bad.ipynb").read_text()


def test_the_notebook_is_found_beside_the_package_or_inside_it(tmp_path, monkeypatch):
    assert command.find_notebook() == ROOT / "notebooks" / command.NOTEBOOK
    inside = tmp_path / "nbpatch" / "notebooks" / command.NOTEBOOK
    monkeypatch.setattr(command, "__file__", str(tmp_path / "nbpatch" / "__main__.py"))
    with pytest.raises(command.NbpatchError, match="is not here"):
        command.find_notebook()
    inside.parent.mkdir(parents=True)
    inside.write_text("{}")
    assert command.find_notebook() == inside


def test_help_names_the_subcommands():
    done = subprocess.run(
        [sys.executable, "-m", "nbpatch", "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0
    for name in ("demo", "train", "doctor", "strip"):
        assert name in done.stdout


def test_no_subcommand_is_a_usage_error():
    done = subprocess.run([sys.executable, "-m", "nbpatch"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_counting_tests_that_ran(tmp_path):
    report = tmp_path / "report.xml"
    cases = '<testcase name="a"/><testcase name="b"/><testcase name="c"><skipped/></testcase>'
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")

    def status(*arguments):
        return subprocess.run([sys.executable, ".ci/at_least.py", *arguments], check=False, cwd=ROOT).returncode

    assert status(f"{report}=2") == 0
    assert status(f"{report}=3") == 1
    assert status(f"{tmp_path / 'gone.xml'}=1") == 1
    assert status(f"{report}=3", f"{tmp_path / 'gone.xml'}=1") == 2


def test_saved_json_is_that_of_nbformat(saved):
    command.main(["strip", str(saved)])
    text = saved.read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
