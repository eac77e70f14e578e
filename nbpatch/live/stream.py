"""A running sweep as the page sees it: its maps and how far it is, not more often than Jupyter's server takes."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nbpatch.engine import Progress
from nbpatch.live.controls import Ask
from nbpatch.live.looks import Look
from nbpatch.plan import MEASURED, Plan
from nbpatch.result import Result
from nbpatch.view import payload
from nbpatch.view.payload import Message

UPDATE_EVERY = 0.05
"""Seconds between two updates of a running map: Jupyter's server drops messages silently when they come too fast."""

_PER_CELL, _LONGEST = 25e-6, 0.5
"""Seconds between two updates per cell of the map, which a page needs to draw them, and the most there are."""


class Stream:
    """Sends a running sweep to the page, at most every `UPDATE_EVERY` seconds, and less often where it is large.

    Args:
        begun: the sweep with its base runs made and nothing else.
        looks: the estimate by direction, for cells that are not run yet.
        say: takes the status.
        post: takes a map.
    """

    def __init__(
        self,
        ask: Ask,
        plan: Plan,
        begun: Result,
        looks: Mapping[str, Look],
        say: Callable[[Message], None],
        post: Callable[[payload.Map], None],
    ) -> None:
        self._ask, self._plan, self._baselines, self._looks = ask, plan, begun.baselines, looks
        self._say, self._post = say, post
        self._every = max(UPDATE_EVERY, min(_LONGEST, _PER_CELL * plan.states[..., 0].size))
        self._sent = 0.0

    def send(self, progress: Progress) -> None:
        """Takes the progress of a run; sends its maps and its status when it is time."""
        now = time.monotonic()
        if now - self._sent < self._every:
            return
        self._sent = now
        maps = self.maps(progress.values, progress.state)
        self._say(self._status(progress, maps[0]))
        for one in maps:
            self._post(self._looks[one.head["direction"]].over(one) if self._looks else one)

    def _status(self, progress: Progress, first: payload.Map) -> Message:
        left = progress.seconds / progress.done * (progress.total - progress.done) if progress.done else None
        later = f" About {_duration(left)} left." if left is not None and left >= 1 else ""
        return {
            "state": "running",
            "text": f"Running: {progress.done} of {progress.total} cells exact{_strongest(first)}.{later}",
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


_WORDS = {"pos": "position", "dest": "from", "src": "to"}


def _strongest(one: payload.Map) -> str:
    """Returns the strongest cell run so far, in words: ", strongest 0.78 (layer 4, head 2)"."""
    measured = np.where(one.state == MEASURED, np.abs(one.effect), -1.0)
    if measured.size == 0 or measured.max() < 0 or abs(one.head["gap"]) < _NO_GAP:
        return ""
    at = np.unravel_index(int(measured.argmax()), measured.shape)
    coords = one.head["coords"]
    places = [f"{_WORDS.get(axis, axis)} {coords[axis][int(i)]}" for axis, i in zip(one.head["dims"], at, strict=True)]
    share = float(one.effect[at]) / one.head["gap"]
    return f", strongest {share:.2f}".replace("-", "−") + f" ({', '.join(places)})"


_NO_GAP = 1e-4


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
