"""What is on screen as a file or as text to paste: each kind as the message that carries it."""

from collections.abc import Callable, Sequence

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
    if kind == "png":
        head = {"type": "export", "kind": kind, "filename": "nbpatch.png", "mime": "image/png"}
        return head, [plots.png(result, ask.metric)]
    makers: dict[str, tuple[str, str, Callable[[], str]]] = {
        "csv": ("nbpatch.csv", "text/csv", lambda: result.to_frame(ask.metric).to_csv(index=False)),
        "html": ("nbpatch.html", "text/html", lambda: export.page([result, *others], patterns)),
        "python": ("nbpatch.py", "text/x-python", lambda: as_python(ask, name)),
        "magic": ("nbpatch.txt", "text/plain", lambda: as_magic(ask, name)),
    }
    filename, mime, make = makers[kind]
    return {"type": "export", "kind": kind, "filename": filename, "mime": mime, "text": make()}, []
