"""A running sweep as the page sees it: its maps and how far it is, not more often than Jupyter's server takes."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from nbpatch.engine import Progress
from nbpatch.live.controls import Ask
from nbpatch.plan import Plan
from nbpatch.result import Result
from nbpatch.view import payload
from nbpatch.view.payload import Message

UPDATE_EVERY = 0.05
"""Seconds between two updates of a running map: Jupyter's server drops messages silently when they come too fast."""


class Stream:
    """Sends a running sweep to the page, at most every `UPDATE_EVERY` seconds.

    Args:
        begun: the sweep with its base runs made and nothing else.
        say: takes the status.
        post: takes a map.
    """

    def __init__(
        self, ask: Ask, plan: Plan, begun: Result, say: Callable[[Message], None], post: Callable[[payload.Map], None]
    ) -> None:
        self._ask, self._plan, self._baselines = ask, plan, begun.baselines
        self._say, self._post = say, post
        self._sent = 0.0

    def send(self, progress: Progress) -> None:
        """Takes the progress of a run; sends its maps and its status when it is time."""
        now = time.monotonic()
        if now - self._sent < UPDATE_EVERY:
            return
        self._sent = now
        self._say(self._status(progress))
        for one in self.maps(progress.values, progress.state):
            self._post(one)

    def _status(self, progress: Progress) -> Message:
        left = progress.seconds / progress.done * (progress.total - progress.done) if progress.done else None
        return {
            "state": "running",
            "text": f"Running: {progress.done} of {progress.total} cells exact.",
            "done": progress.done,
            "total": progress.total,
            "seconds_left": None if left is None else round(left, 1),
        }

    def maps(self, values: Any, states: Any) -> list[payload.Map]:
        """Returns the maps of a table as far as it is filled, values per metric and states [direction *over pair]."""
        ask, name = self._ask, self._ask.metric
        baselines = {
            side: float(self._baselines[side].sel(metric=name).isel(pair=ask.pair)) for side in ("clean", "corrupted")
        }
        coords = {
            axis: self._plan.shape.head_labels(ask.component) if axis == "head" else range(size)
            for axis, size in zip(ask.over, states.shape[1:-1], strict=True)
        }
        unit = next(metric.unit for metric in ask.metrics if metric.name == name)
        maps: list[payload.Map] = []
        for number, direction in enumerate(self._plan.directions):
            key = {
                "component": ask.component,
                "over": list(ask.over),
                "direction": direction,
                "corruption": ask.corruption.kind,
                "metric": name,
                "pair": ask.pair,
            }
            measured = np.array(values[name][number, ..., ask.pair])
            state = np.array(states[number, ..., ask.pair])
            maps.append(payload.build_map(measured, state, key, baselines, coords=coords, unit=unit, final=False))
        return maps
