"""Displays results whose model is still there: what `nbpatch.display` finds for them.

`nbpatch.view.saved` displays those that stand alone.
"""

from pathlib import Path
from typing import Any

from nbpatch.engine import Origin
from nbpatch.errors import NbpatchError
from nbpatch.methods.companions import attention
from nbpatch.result import Result
from nbpatch.view import export, saved
from nbpatch.workbench import Workbench, asked

plot = saved.plot


def show(result: Result, **options: Any) -> Any:
    """Returns a workbench that goes on from a result."""
    origin = result.origin
    if saved.picture_only(result) or not isinstance(origin, Origin):
        return saved.show(result, **options)
    ask = asked(origin.plan, result.provenance["direction"])
    return Workbench(
        origin.model,
        ask.pairs,
        ask.component,
        ask.over,
        direction=ask.direction,
        metric=list(ask.metrics),
        corruption=ask.corruption,
        result=result,
    )


def to_html(result: Result, path: str, *, attention: bool = True) -> Path:
    """Writes one self-contained HTML page of a result, with the attention of its first pair if wanted."""
    saved.refuse_widget(result, "to_html")
    patterns = _patterns_of(result.origin) if attention else None
    return export.write(path, [result], patterns)


def _patterns_of(origin: Any) -> Result | None:
    if not isinstance(origin, Origin):
        return None
    try:
        return attention(origin.model, origin.plan.tokenized[0].pair)
    except NbpatchError:
        return None


def mimebundle(result: Result) -> Any:
    """Returns the notebook display of a result: widget where it fits, picture and text."""
    shown = None if saved.picture_only(result) else show(result)
    if not isinstance(shown, Workbench):
        return saved.mimebundle(result)
    return shown._repr_mimebundle_()  # pyright: ignore[reportPrivateUsage]
