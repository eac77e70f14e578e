"""A sweep in stages, the strongest cells of an estimate first: what lands early is what matters."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbpatch.engine.finished import finished
from nbpatch.engine.fit import fit_of
from nbpatch.engine.loop import engine_for, ignore, noticed, precision
from nbpatch.engine.outcome import results_of
from nbpatch.engine.stopping import Halted, never
from nbpatch.engine.table import Progress, Table
from nbpatch.model import Model
from nbpatch.plan import EXACT, NOT_RUN, Plan
from nbpatch.result import Result

SHARES = (0.05, 0.2)
"""Where the stages end, as shares of the cells: each stage costs base runs of its own, so there are few."""

_FEWEST = 16


def run_in_stages(
    plan: Plan,
    model: Model,
    scores: NDArray[np.float64],
    *,
    on_progress: Callable[[Progress], None] = ignore,
    stop: Callable[[], bool] = never,
) -> Result:
    """Runs a plan like `run`, the cells with the largest |score| first, and returns the same result.

    Args:
        scores: an estimate of each cell's effect [direction *over]; NaN counts as nothing.
        on_progress: called after the first base runs and after every wave.
        stop: looked at before every wave and between its layers.

    Raises:
        PatchNotApplied: a patch did not fire as planned.
    """
    started = time.perf_counter()
    fit = fit_of(model)
    table: Table | None = None
    spent: dict[str, Any] = {}
    stopped, broken = False, ""
    try:
        for stage in stages(plan, scores):
            engine = engine_for([stage], model, fit)
            engine.halt = stop
            try:
                runs = engine.trace(alone=stop())
                if table is None:
                    table = Table(plan, runs)
                    on_progress(table.progress())
                for wave in engine.waves():
                    if stopped := stop():
                        break
                    for _, filled in wave():
                        table.fill(filled)
                        on_progress(table.progress())
            finally:
                spent = _added(spent, {"name": engine.name, **engine.spent()})
                broken = broken or engine.broken
            if stopped:
                break
    except (KeyboardInterrupt, Halted):
        if table is None:
            raise
        stopped = True
    if table is None:
        raise LookupError("a plan without a stage")
    spent = {**spent, "seconds": round(time.perf_counter() - started, 4), **precision(fit)}
    return results_of([finished(table)], model, spent, noticed(model, fit), stopped=stopped, broken=broken)[0]


def stages(plan: Plan, scores: NDArray[np.float64]) -> Iterator[Plan]:
    """Yields plans that together run each cell of a plan once, the strongest first."""
    strength = np.nan_to_num(np.abs(scores), nan=-1.0)
    planned = (plan.states == NOT_RUN).any(-1)
    order = np.flatnonzero(planned)[np.argsort(-strength[planned], kind="stable")]
    ends = [round(share * len(order)) for share in SHARES]
    ends = [end for end in ends if _FEWEST <= end < len(order)]
    for start, end in zip([0, *ends], [*ends, len(order)], strict=True):
        chosen = np.zeros(planned.size, np.bool_)
        chosen[order[start:end]] = True
        waits = (plan.states == NOT_RUN) & ~chosen.reshape(planned.shape)[..., None]
        yield replace(plan, states=np.where(waits, EXACT, plan.states).astype(np.int8))


def _added(spent: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Returns what stages took together: numbers add up, words are the same in all."""
    return {
        name: value + spent.get(name, 0) if isinstance(value, (int, float)) else value for name, value in more.items()
    }
