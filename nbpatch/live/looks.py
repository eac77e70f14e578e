"""A first look at a sweep: its attribution estimate, shown hatched until the exact cells land over it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nbpatch.errors import NbpatchError
from nbpatch.live.controls import Ask
from nbpatch.methods.attribution import attribute
from nbpatch.model import Model
from nbpatch.plan import NOT_RUN, Plan
from nbpatch.view.payload import Map

ESTIMATE = 6
"""The page's state of an estimated cell: the one behind those of `result.STATES`."""


@dataclass(frozen=True)
class Look:
    """The estimate of a sweep in one direction.

    Attributes:
        metric: what is estimated.
        values: m(base) + score, in the metric's unit [*over pair].
        scores: their effects, means over pairs [*over].
    """

    metric: str
    values: NDArray[np.float64]
    scores: NDArray[np.float64]

    def over(self, one: Map) -> Map:
        """Returns a map with the estimate in the cells that were not run yet."""
        effect = self._effect(one)
        waits = (one.state == NOT_RUN) & np.isfinite(effect)
        if one.head["key"]["metric"] != self.metric or not waits.any():
            return one
        state = np.where(waits, ESTIMATE, one.state).astype(np.uint8)
        return replace(one, effect=np.where(waits, effect, one.effect).astype(np.float32), state=state)

    def alone(self, one: Map) -> Map | None:
        """Returns the estimate as a map of its own, beside the exact one; None for another metric's map."""
        if one.head["key"]["metric"] != self.metric:
            return None
        effect = self._effect(one)
        state = np.where(np.isfinite(effect), ESTIMATE, one.state).astype(np.uint8)
        return Map({**one.head, "estimate": True}, effect.astype(np.float32), state)

    def _effect(self, one: Map) -> NDArray[np.float64]:
        return self.values[..., one.head["key"]["pair"]] - one.head["base"]


def first_look(ask: Ask, plan: Plan, model: Model) -> Mapping[str, Look]:
    """Returns the estimate of a plan's cells by direction; nothing where attribution patching has none to give."""
    metric = next(one for one in ask.metrics if one.name == ask.metric)
    if ask.corruption.kind != "counterfactual" or not plan.n_runs:
        return {}
    sites = f"{ask.component} over {' '.join(ask.over)}"
    direction = "both" if plan.both else plan.directions[0]
    try:
        found = attribute(model, ask.pairs, sites, direction=direction, metric=metric)
    except NbpatchError:
        return {}
    values = found.data[metric.name].to_numpy().reshape(plan.states.shape)
    scores = found.effect().to_numpy().reshape(plan.states.shape[:-1])
    return {name: Look(metric.name, values[i], scores[i]) for i, name in enumerate(plan.directions)}


def strengths(plan: Plan, looks: Mapping[str, Look]) -> NDArray[np.float64]:
    """Returns estimated effects [direction *over]."""
    return np.stack([looks[direction].scores for direction in plan.directions])
