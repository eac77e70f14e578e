"""Displays results as they stand: figures, pages and a widget without a kernel behind it. Needs no torch.

`nbpatch.showing` displays results whose model is still there; both answer to `nbpatch.display`.
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nbpatch.errors import ResultError, suggest
from nbpatch.graph import Circuit
from nbpatch.result import Result
from nbpatch.view import circuits, export, observed, payload, plots, scatter, study, tracing
from nbpatch.view.payload import Message
from nbpatch.view.widgets import PatchWidget


def plot(result: Result, *, kind: str = "map", **options: Any) -> Any:
    """Returns a matplotlib Figure of a result: its map, or its cells as points: both directions, or against exact.

    Raises:
        ResultError: another kind of figure.
    """
    result = _indirect(result)
    if _method(result) in _FIGURES and kind == "map":
        return _FIGURES[_method(result)](result, **_without_none(options))
    if kind == "quadrants":
        return scatter.quadrants(result, **_without_none(options))
    if kind == "against":
        return scatter.against(
            result.against(options.get("exact"), options.get("metric")), dark=options.get("dark", False)
        )
    if kind != "map":
        what = f"no figure {kind!r}."
        raise ResultError(what, where="plot", fix=suggest(kind, ["map", "quadrants", "against"]))
    return plots.heads(result, **_without_none(options)) if is_attention(result) else plots.plot(result, **options)


def circuit(circuit: Circuit, **options: Any) -> Any:
    """Returns a matplotlib Figure of a circuit: its nodes by layer, and its edges."""
    return circuits.draw(circuit, **options)


def show(result: Result, **options: Any) -> Any:
    """Returns a widget that shows what was measured and runs nothing; attention with CircuitsVis.

    Raises:
        ResultError: the widget would say something false of it.
    """
    if is_attention(result):
        from nbpatch.view.attention import circuitsvis

        return circuitsvis(result, **options)
    refuse_widget(result, "show")
    result = _indirect(result)
    widget = PatchWidget()
    widget.spec = payload.describe(result, can_run=False, works={})
    widget.status = {"state": "done", "text": "A saved result: there is no model to run further sweeps.", "gen": 0}
    widget.saved = payload.small_maps(result, result.metrics[0])
    widget.listen(lambda message: _answer(widget, result, message))
    return widget


def to_html(result: Result, path: str, *, attention: bool = True) -> Path:
    """Writes one self-contained HTML page of a result, without attention: that would need the model.

    Raises:
        ResultError: the page's widget would say something false of it.
    """
    refuse_widget(result, "to_html")
    return export.write(path, [_indirect(result)], None)


def mimebundle(result: Result | Circuit) -> Any:
    """Returns the notebook display of a result: widget where it fits, picture and text; the latter two of a circuit."""
    if isinstance(result, Circuit):
        picture = base64.b64encode(plots.encoded(circuits.draw(result))).decode("ascii")
        return {"text/plain": repr(result), "image/png": picture}, {}
    if is_attention(result):
        return {"text/plain": repr(result)}, {}
    if picture_only(result):
        picture = base64.b64encode(plots.encoded(plot(result))).decode("ascii")
        return {"text/plain": repr(result), "image/png": picture}, {}
    widget = show(result)
    return with_picture(widget._repr_mimebundle_(), _indirect(result))


def with_picture(made: Any, result: Result) -> Any:
    """Returns a widget's display with picture and text: what can show the widget does, all else the picture."""
    data, metadata = made if isinstance(made, tuple) else (made or {}, {})
    picture = base64.b64encode(plots.png(result, note="Run the cell for the interactive view.")).decode("ascii")
    return {**data, "image/png": picture, "text/plain": repr(result)}, metadata


_FIGURES: dict[str, Callable[..., Any]] = {
    "compare": study.panels,
    "direct_logit_attribution": observed.plot,
    "evaluate": circuits.curve,
    "logit_lens": observed.plot,
    "trace": tracing.plot_trace,
}
"""What is drawn of methods whose results are no single map."""

_SHOWN = ("patch", "mediate")
"""The methods the widget has words for."""

_AXES = ("layer", "head", "pos", "dest", "src")
"""The axes the widget names in its read-out: `place` in js/src/table.ts."""


def _method(result: Result) -> str:
    return str(result.provenance.get("method", ""))


def _indirect(result: Result) -> Result:
    """Returns the indirect effects of a mediation, which one map can show; any other result as it is."""
    if _method(result) != "mediate" or "kind" not in result.data.dims:
        return result
    made = {**result.provenance, "kind": "NIE"}
    return replace(result, data=result.data.sel(kind="NIE", drop=True), provenance=made)


def picture_only(result: Result) -> str:
    """Returns why the widget cannot show a result, in words; "" where it can.

    Its sentence speaks of the other prompt or of an ablation, and its read-out names one place by the axes it knows.
    """
    made, method = result.provenance, _method(result)
    corruption, window = made.get("corruption", "counterfactual"), made.get("window", 1)
    unknown = [axis for axis in result.over if axis not in _AXES]
    if method not in _SHOWN:
        return f"a result of {method}"
    if corruption not in ("counterfactual", "zero", "mean", "resample"):
        return f"corruption {corruption}"
    if window > 1:
        return f"windows of {window} layers"
    if unknown:
        return f"{'axis' if len(unknown) == 1 else 'axes'} {', '.join(unknown)}"
    return f"kind {made['kind']} of effect" if made.get("kind", "NIE") != "NIE" else ""


def refuse_widget(result: Result, where: str) -> None:
    """Refuses the widget for a result that only a picture can show."""
    seen = picture_only(result)
    if seen:
        what = "the widget shows single places, patched with values of the other prompt or of an ablation."
        fix = 'nbp.of_corruption(result, "…")' if _method(result) == "compare" else "result.plot()"
        raise ResultError(what, where=where, seen=seen, fix=fix)


def is_attention(result: Result) -> bool:
    """Whether a result holds attention patterns instead of a sweep."""
    return result.provenance.get("method") == "attention"


def _answer(widget: PatchWidget, result: Result, message: Message) -> None:
    """Answers the page of a saved result: it gets the maps that are there."""
    if message["type"] in ("need", "set"):
        metric = str(message.get("metric", result.metrics[0]))
        pair = int(message.get("pair", 0))
        for one in payload.maps_of(result, metric if metric in result.metrics else None, pair=pair):
            widget.post(*one.message(0))


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
