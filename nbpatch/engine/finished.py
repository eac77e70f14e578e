"""A filled table with draws folded: what was drawn at random for a pair becomes its mean and its spread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nbpatch.engine.supply import Ids
from nbpatch.engine.table import Table
from nbpatch.plan import EXACT, FAILED, MEASURED, NO_POSITION, NOT_RUN, Plan
from nbpatch.result import STATES

Floats = NDArray[np.float64]
N = TypeVar("N", bound=np.generic)


@dataclass(frozen=True)
class Finished:
    """What a run found.

    Attributes:
        plan: the plan, each pair once.
        values: per metric, m(patched) [direction, *over, pair], the mean over draws.
        spread: per metric, the standard deviation over draws, of the same shape; empty where nothing is drawn.
        state: int8 [direction, *over, pair].
        baselines: per metric and run, [pair].
        logits: per run, answer logits of each pair's first draw [pair d_vocab].
        drawn: per pair the prompts that were drawn, as token ids.
        runs: how many runs were planned and made, draws counted.
    """

    plan: Plan
    values: Mapping[str, Floats]
    spread: Mapping[str, Floats]
    state: NDArray[np.int8]
    baselines: Mapping[str, Mapping[str, Floats]]
    logits: Mapping[str, Tensor]
    drawn: Sequence[Sequence[Ids]]
    runs: tuple[int, int]


def finished(table: Table) -> Finished:
    """Returns a table with its draws folded."""
    plan, draws = table.plan, table.plan.corruption.draws
    runs = plan.n_runs, int((table.state == MEASURED).sum())
    if draws == 1:
        drawn = [[ids] for ids in table.runs.drawn]
        logits = table.runs.logits
        return Finished(plan, table.values, {}, table.state, table.baselines, logits, drawn, runs)
    state = _common(_apart(table.state, draws))
    with np.errstate(invalid="ignore"):
        values = {name: _apart(value, draws).mean(-1) for name, value in table.values.items()}
        spread = {name: _apart(value, draws).std(-1) for name, value in table.values.items()}
    baselines = {
        name: {run: _apart(value, draws).mean(-1) for run, value in both.items()}
        for name, both in table.baselines.items()
    }
    drawn = [list(table.runs.drawn[at : at + draws]) for at in range(0, len(table.runs.drawn), draws)]
    states = _common(_apart(plan.states, draws))
    once = replace(plan, tokenized=plan.tokenized[::draws], states=states)
    logits = {run: value[::draws] for run, value in table.runs.logits.items()}
    return Finished(once, values, spread, state, baselines, logits, drawn, runs)


def _apart(values: NDArray[N], draws: int) -> NDArray[N]:
    """Returns values [… pair] as [… pair draw]."""
    return values.reshape(*values.shape[:-1], -1, draws)


_WORST = (FAILED, NOT_RUN, NO_POSITION, MEASURED, EXACT)
"""The state of several draws is the first of these that one of them has."""


def _common(states: NDArray[np.int8]) -> NDArray[np.int8]:
    order = np.array([*_WORST, *(code for code in range(len(STATES)) if code not in _WORST)], np.int8)
    rank = np.argsort(order)
    return order[rank[states].min(-1)]
