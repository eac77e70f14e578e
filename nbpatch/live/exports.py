"""What is on screen as a file or as text to paste: each kind as the message that carries it."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from nbpatch.live.controls import Ask, as_magic, as_python
from nbpatch.live.question import Reply
from nbpatch.result import Result
from nbpatch.view import export, plots


def exported(kind: str, ask: Ask, result: Result, others: Sequence[Result], patterns: Result | None) -> Reply:
    """Returns an export as its message and buffers.

    Args:
        others: finished sweeps of the same pairs, for the page's toggles.
        patterns: the attention of the pair on screen.
    """
    name = str(result.provenance["model"]["name"])
    files: dict[str, tuple[str, Callable[[], bytes]]] = {
        "png": ("image/png", lambda: plots.png(result, ask.metric)),
        "nc": ("application/x-netcdf", lambda: _netcdf(result)),
    }
    if kind in files:
        mime, make = files[kind]
        return {"type": "export", "kind": kind, "filename": f"nbpatch.{kind}", "mime": mime}, [make()]
    makers: dict[str, tuple[str, str, Callable[[], str]]] = {
        "csv": ("nbpatch.csv", "text/csv", lambda: result.to_frame(ask.metric).to_csv(index=False)),
        "html": ("nbpatch.html", "text/html", lambda: _page(ask, result, others, patterns)),
        "python": ("nbpatch.py", "text/x-python", lambda: as_python(ask, name)),
        "magic": ("nbpatch.txt", "text/plain", lambda: as_magic(ask, name)),
    }
    filename, mime, say = makers[kind]
    return {"type": "export", "kind": kind, "filename": filename, "mime": mime, "text": say()}, []


def _page(ask: Ask, result: Result, others: Sequence[Result], patterns: Result | None) -> str:
    return export.page([result, *others], patterns, pair=ask.pair, metric=ask.metric)


def _netcdf(result: Result) -> bytes:
    """Returns what `result.save` writes."""
    with tempfile.TemporaryDirectory() as folder:
        return result.save(Path(folder) / "nbpatch.nc").read_bytes()
