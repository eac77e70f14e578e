"""Single views as widgets of their own that need no model: the direction toggle, and the heat map of a result."""

from typing import Any

import traitlets

from nbpatch.errors import ResultError, suggest
from nbpatch.result import Result
from nbpatch.view import payload, saved
from nbpatch.view.payload import Message
from nbpatch.view.widgets import PatchWidget

DIRECTIONS = ("denoising", "noising", "both")


def _check_direction(value: str, where: str) -> str:
    if value not in DIRECTIONS:
        raise ResultError(f"no direction {value!r}.", where=where, fix=suggest(value, DIRECTIONS))
    return value


class DirectionToggle(PatchWidget):
    """Denoising, noising or both, as a widget of its own.

    Args:
        value: where it starts.

    Attributes:
        value: "denoising", "noising" or "both". Link it to `Workbench.direction` or `Heatmap.direction`:
            `traitlets.link((toggle, "value"), (wb, "direction"))`, or `ipywidgets.jslink` for the page alone.

    Raises:
        ResultError: another value.
    """

    value: Any = traitlets.Unicode("denoising").tag(sync=True)

    def __init__(self, value: str = "denoising") -> None:
        super().__init__(value=value)
        self.listen(_nothing)
        self.spec = payload.blank("direction", direction=value)

    @traitlets.validate("value")
    def _check(self, proposal: Any) -> str:
        return _check_direction(proposal["value"], "DirectionToggle")


class Heatmap(PatchWidget):
    """The heat map of a result under its prompts, as a widget of its own. It shows what was measured and runs nothing.

    Args:
        result: a sweep; what `nbpatch.patch` returns.
        metric: the metric shown; the first by default.

    Attributes:
        result: can be set: the map changes, the selection stays where it has the same axes.
        direction: which map of a result with both directions is shown: "denoising", "noising" or "both".
        metric: the metric shown.
        selection: the chosen cell, a label per axis; None for none.

    Raises:
        ResultError: a result that the widget would describe falsely, or a metric or direction that it does not have.
    """

    result: Any = traitlets.Any()
    direction: Any = traitlets.Unicode().tag(sync=True)
    metric: Any = traitlets.Unicode()

    def __init__(self, result: Result, metric: str | None = None) -> None:
        super().__init__()
        self._ready = False
        self.listen(self._receive)
        self.result = result
        self.metric = metric or result.metrics[0]
        self.direction = result.provenance["direction"]
        self._ready = True
        self._draw()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return saved.with_picture(super()._repr_mimebundle_(**kwargs), self.result)

    @traitlets.validate("result")
    def _check_result(self, proposal: Any) -> Result:
        result = proposal["value"]
        if not isinstance(result, Result):
            fix = 'nbp.Heatmap(nbp.patch(model, pair, "z"))'
            raise ResultError("a heat map shows a result.", where="Heatmap", seen=f"{result!r:.60}", fix=fix)
        saved.refuse_widget(result, "Heatmap")
        return result

    @traitlets.validate("metric")
    def _check_metric(self, proposal: Any) -> str:
        known = self.result.metrics if isinstance(self.result, Result) else ()
        if proposal["value"] not in known:
            what = f"no metric {proposal['value']!r} in this result."
            raise ResultError(what, where="Heatmap", fix=suggest(proposal["value"], known))
        return proposal["value"]

    @traitlets.validate("direction")
    def _check_direction(self, proposal: Any) -> str:
        wanted, there = _check_direction(proposal["value"], "Heatmap"), self.result.provenance["direction"]
        if there not in (wanted, "both"):
            what = "that direction was not measured."
            fix = f'nbp.patch(…, direction="{wanted}")'
            raise ResultError(what, where="Heatmap.direction", seen=f"{wanted}; the result has {there}", fix=fix)
        return wanted

    @traitlets.observe("result", "metric", "direction")
    def _on_change(self, change: Any) -> None:
        if not self._ready:
            return
        if change["name"] == "result" and self.metric not in self.result.metrics:
            self.metric = self.result.metrics[0]
        if change["name"] == "result" and self.result.provenance["direction"] not in (self.direction, "both"):
            self.direction = self.result.provenance["direction"]
        self._draw()

    def _draw(self) -> None:
        described = payload.describe(self.result, metric=self.metric, can_run=False, works={})
        self.spec = {**described, "direction": self.direction, "view": "map"}
        self._send_maps()

    def _receive(self, message: Message) -> None:
        if message["type"] == "need":
            self._send_maps()

    def _send_maps(self) -> None:
        for one in payload.maps_of(self.result, self.metric):
            self.post(*one.message(0))


def _nothing(message: Message) -> None:
    """Leaves a message of the page alone."""
