"""`python -m nbpatch demo | train | doctor | strip`: what can be done without opening a notebook."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nbpatch.errors import NbpatchError

NOTEBOOK = "01_first_patch.ipynb"
SAVED = "first_patch.nc"
"""The file that the notebook saves its last result to, and that the demo goes on from."""

WIDGET_MIMES = ("application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json")

_SHOWN = ("ipykernel", "ipython", "ipywidgets", "anywidget", "jupyterlab", "notebook", "torch", "transformers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:
        return _train(given[1:])
    options = _parser().parse_args(given)
    action: Callable[[argparse.Namespace], int] = options.action
    try:
        return action(options)
    except NbpatchError as error:
        print(f"nbpatch {given[0]}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nbpatch", description="Activation patching in notebooks.")
    commands = parser.add_subparsers(required=True, metavar="demo | train | doctor | strip")
    demo = commands.add_parser("demo", help="execute the first notebook on the embedded model")
    demo.add_argument("--out", type=Path, default=Path("build/demo"), help="folder for what it writes")
    demo.set_defaults(action=lambda options: run_demo(options.out))
    commands.add_parser("train", help="train the embedded model anew; see train --help", add_help=False)
    doctor = commands.add_parser("doctor", help="say which versions are here and what they mean for the widgets")
    doctor.set_defaults(action=lambda _: examine())
    strip = commands.add_parser("strip", help="take widgets out of saved notebooks, so that pictures stand for them")
    strip.add_argument("notebooks", nargs="+", type=Path)
    strip.add_argument("--outputs", action="store_true", help="take out all outputs")
    strip.set_defaults(action=lambda options: strip_files(options.notebooks, outputs=options.outputs))
    return parser


def _train(arguments: list[str]) -> int:
    from nbpatch.tiny import train

    return train.main(arguments) or 0


def run_demo(out: Path) -> int:
    """Executes the first notebook, prints the strongest cells, writes a picture and a page, says what to open."""
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    print(f"Running {NOTEBOOK} on the embedded model …", flush=True)
    book = execute(find_notebook(), out)
    print(f"  {sum(cell.cell_type == 'code' for cell in book.cells)} cells in {time.perf_counter() - started:.0f} s\n")

    from nbpatch import read

    result = read(out / SAVED)
    result.plot().savefig(out / "first_patch.png", dpi=150, facecolor="white", bbox_inches="tight")
    result.to_html(out / "first_patch.html")
    print(result)
    print(f"\nOpen {out / 'first_patch.html'} in a browser: the same map, alive, in one file that needs no network.")
    print(f"     {out / 'first_patch.png'} is the picture, {out / NOTEBOOK} the executed notebook.")
    print("     `make lab`, or `jupyter lab`, opens the notebooks to change them.")
    return 0


def find_notebook() -> Path:
    """Returns the first notebook: of the checkout, or the copy that travels with an installed package.

    Raises:
        NbpatchError: neither is there.
    """
    here = Path(__file__).parent
    places = (here.parent / "notebooks" / NOTEBOOK, here / "notebooks" / NOTEBOOK)
    for place in places:
        if place.is_file():
            return place
    raise NbpatchError(f"{NOTEBOOK} is not here.", where=str(places[0]), fix="install nbpatch again")


def execute(notebook: Path, out: Path) -> Any:
    """Runs a notebook inside `out`, writes it there with its outputs, and returns it.

    Raises:
        NbpatchError: the packages that run notebooks are not installed, or a cell failed.
    """
    missing = [name for name in ("nbclient", "nbformat", "ipykernel") if importlib.util.find_spec(name) is None]
    if missing:
        raise NbpatchError(
            "cannot run notebooks.", seen=f"no {', '.join(missing)}", fix="pip install 'nbpatch[notebook]'"
        )
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    book: Any = nbformat.read(notebook, as_version=4)
    # The kernel starts in `out`; a checkout that is not installed must still be found from there.
    root = str(Path(__file__).parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    resources = {"metadata": {"path": str(out)}}
    # A kernel on loopback warns that its traffic is not encrypted; nobody else is there to read it.
    quiet = ["--IPKernelApp.log_level=ERROR"]
    client = NotebookClient(book, timeout=240, kernel_name="python3", resources=resources, extra_arguments=quiet)
    try:
        client.execute()
    except CellExecutionError as error:
        raise NbpatchError(f"a cell of {notebook.name} failed.", seen=str(error)) from error
    finally:
        nbformat.write(book, out / notebook.name)
    return book


def strip_files(notebooks: Sequence[Path], *, outputs: bool) -> int:
    """Strips notebooks in place; a file that needs nothing is not touched.

    Args:
        outputs: take out all outputs, not only the widgets beside pictures.

    Raises:
        NbpatchError: a file that is no notebook.
    """
    for path in notebooks:
        try:
            text = path.read_text(encoding="utf-8")
            book = json.loads(text)
            stripped = strip_notebook(book, outputs=outputs)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise NbpatchError(
                "not a notebook.", where=str(path), seen=str(error), fix="a file ending in .ipynb"
            ) from error
        new = json.dumps(stripped, indent=1, ensure_ascii=False) + "\n"
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"{path}: stripped")
    return 0


def strip_notebook(book: dict[str, Any], *, outputs: bool = False) -> dict[str, Any]:
    """Returns the notebook without live widgets: pictures and texts stay, `metadata.widgets` goes.

    A widget's own state would make the file large and "Invalid Notebook" on GitHub; its picture needs neither.
    """
    metadata = {key: value for key, value in book["metadata"].items() if key != "widgets"}
    return {**book, "metadata": metadata, "cells": [_strip_cell(cell, outputs=outputs) for cell in book["cells"]]}


def _strip_cell(cell: dict[str, Any], *, outputs: bool) -> dict[str, Any]:
    if cell["cell_type"] != "code":
        return cell
    if outputs:
        metadata = {key: value for key, value in cell["metadata"].items() if key not in ("execution", "scrolled")}
        return {**cell, "metadata": metadata, "outputs": [], "execution_count": None}
    return {**cell, "outputs": [_strip_output(output) for output in cell["outputs"]]}


def _strip_output(output: dict[str, Any]) -> dict[str, Any]:
    if "data" not in output:
        return output
    return {**output, "data": {mime: value for mime, value in output["data"].items() if mime not in WIDGET_MIMES}}


def examine() -> int:
    """Prints the versions and what they mean for the widgets, and returns 1 when something must be done."""
    versions = {name: version for name in _SHOWN if (version := _version(name))}
    print(f"nbpatch      {_version('nbpatch') or 'not installed: running from its folder'}")
    print(f"Python       {platform.python_version()} on {platform.system()} ({platform.machine()})")
    for name, version in versions.items():
        print(f"{name:<12} {version}")
    findings = [*_kernel_findings(versions), *_page_findings(versions), *_model_findings()]
    print()
    for fine, text in findings:
        print(f"{'ok  ' if fine else 'DO  '} {text}")
    return 0 if all(fine for fine, _ in findings) else 1


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _kernel_findings(versions: dict[str, str]) -> list[tuple[bool, str]]:
    kernel = versions.get("ipykernel", "")
    if not kernel:
        return [(False, "no kernel: pip install ipykernel")]
    if int(kernel.split(".")[0]) < 7:
        text = (
            f"ipykernel {kernel} hears the page only between cells: a running sweep is stopped with ■ of the notebook"
        )
        return [(True, text)]
    return [(True, f"ipykernel {kernel} hears the page while a cell runs (in JupyterLab 4.4 and newer)")]


def _page_findings(versions: dict[str, str]) -> list[tuple[bool, str]]:
    found: list[tuple[bool, str]] = []
    if "jupyterlab" in versions or "notebook" in versions:
        page, kernel = _page_anywidget(), versions["anywidget"]
        same = page in ("", kernel)
        text = f"anywidget {kernel} in the kernel, {page or 'unknown'} in the page"
        advice = ": install the same version in the environments of kernel and Jupyter, then reload the page"
        found.append((same, text if same else text + advice))
    else:
        found.append(
            (True, "no JupyterLab here: the page is another program's (Colab, VS Code, marimo or a remote Jupyter)")
        )
    widgets = versions.get("ipywidgets", "")
    found.append((bool(widgets), f"ipywidgets {widgets}" if widgets else "no ipywidgets: pip install ipywidgets"))
    return found


def _page_anywidget() -> str:
    """Returns the version of anywidget's front end that this environment's Jupyter serves, "" when there is none."""
    package = Path(sys.prefix) / "share" / "jupyter" / "labextensions" / "anywidget" / "package.json"
    if not package.is_file():
        return ""
    return str(json.loads(package.read_text(encoding="utf-8"))["version"]).lstrip("~^v")


def _model_findings() -> list[tuple[bool, str]]:
    from nbpatch import load

    started = time.perf_counter()
    try:
        model = load("tiny")
    except NbpatchError as error:
        return [(False, f"the embedded model does not load: {error.what} {error.fix}")]
    return [(True, f"the embedded model loads: {model!r}, {time.perf_counter() - started:.1f} s with libraries")]


if __name__ == "__main__":
    sys.exit(main())
