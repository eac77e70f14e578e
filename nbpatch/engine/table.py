"""The table a run fills: one value per metric, direction, cell and pair, and the state of each."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbpatch.engine.base import BASE, RUNS, BaseRuns
from nbpatch.engine.rows import Rows
from nbpatch.metrics import Answers, Metric, measure
from nbpatch.plan import EXACT, FAILED, MEASURED, NOT_RUN, Plan


@dataclass(frozen=True)
class Filled:
    """Runs that were made.

    Attributes:
        cell: where each belongs in the plan's table, flat over (direction, *over, pair) [row].
        logits: answer logits [row d_vocab], or of some tokens only [row column].
        columns: which tokens those are, ascending; None for all.
    """

    cell: NDArray[np.int64]
    logits: Tensor
    columns: Tensor | None = None


def by_plan(rows: Rows, logits: Tensor, columns: Tensor | None) -> Iterator[tuple[int, Filled]]:
    """Yields rows that were run with their logits, apart by plan: its number and its runs."""
    for number in np.unique(rows.plan):
        own = np.flatnonzero(rows.plan == number)
        mine = logits if len(own) == len(rows) else logits[torch.from_numpy(own)]
        yield int(number), Filled(rows.cell[own], mine, columns)


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done: finished (cell, pair) runs.
        total: planned ones.
        seconds: time since the start.
        values: per metric, m(patched) [direction, *over, pair]; NaN where there is none yet. A view: do not write.
        state: int8 [direction, *over, pair], indices into `result.STATES`. A view too.
    """

    done: int
    total: int
    seconds: float
    values: Mapping[str, NDArray[np.float64]]
    state: NDArray[np.int8]


def baselines_of(metrics: Sequence[Metric], runs: BaseRuns) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Returns the values of both base runs by metric and run [pair]."""
    return {
        metric.name: {run: measure(metric, runs.logits[run], runs.answers).numpy() for run in RUNS}
        for metric in metrics
    }


class Table:
    """Values and states of a sweep, filled wave by wave.

    Args:
        baselines: `baselines_of` the plan's metrics, where they are known.
    """

    def __init__(
        self,
        plan: Plan,
        runs: BaseRuns,
        baselines: Mapping[str, Mapping[str, NDArray[np.float64]]] | None = None,
    ) -> None:
        self.plan = plan
        self.runs = runs
        self.state = plan.states.copy()
        self.started = time.perf_counter()
        self.total = self.left = plan.n_runs
        self._within: Answers | None = None
        self.baselines = baselines_of(plan.metrics, runs) if baselines is None else baselines
        self.values = {metric.name: self._at_base(metric) for metric in plan.metrics}

    def _at_base(self, metric: Metric) -> NDArray[np.float64]:
        """Returns the base value where a cell cannot act, else NaN."""
        values = np.full(self.state.shape, np.nan)
        for number, direction in enumerate(self.plan.directions):
            base = self.baselines[metric.name][BASE[direction]]
            values[number] = np.where(self.state[number] == EXACT, base, np.nan)
        return values

    def fill(self, filled: Filled) -> None:
        """Measures the answer logits of some runs and enters them; a user's function sees all pairs of a cell."""
        where = np.unravel_index(filled.cell, self.state.shape)
        pairs = torch.from_numpy(where[-1])
        answers = self.runs.answers if filled.columns is None else self._answers_within(filled.columns)
        for metric in self.plan.metrics:
            if metric.whole:
                self._fill_whole(metric, filled)
            else:
                self.values[metric.name][where] = measure(metric, filled.logits, answers.rows(pairs)).numpy()
        finite = torch.isfinite(filled.logits).all(-1).numpy()
        self.left -= int((self.state[where] == NOT_RUN).sum())
        self.state[where] = np.where(finite, MEASURED, FAILED)
        for values in self.values.values():
            values[where] = np.where(finite, values[where], np.nan)

    def _answers_within(self, columns: Tensor) -> Answers:
        if self._within is None:
            self._within = self.runs.answers.within(columns)
        return self._within

    def _fill_whole(self, metric: Metric, filled: Filled) -> None:
        """Gives a user's function the logits of all pairs at once, cell by cell; pairs not run are at base."""
        n_pairs = self.state.shape[-1]
        cells, pairs = np.divmod(filled.cell, n_pairs)
        values = self.values[metric.name].reshape(-1, n_pairs)
        per_direction = values.shape[0] // len(self.plan.directions)
        for cell in np.unique(cells):
            own = np.flatnonzero(cells == cell)
            logits = self.runs.logits[BASE[self.plan.directions[cell // per_direction]]].clone()
            logits[torch.from_numpy(pairs[own])] = filled.logits[torch.from_numpy(own)].to(logits.dtype)
            values[cell, pairs[own]] = measure(metric, logits, self.runs.answers).numpy()[pairs[own]]

    def progress(self) -> Progress:
        """Returns how far the run is."""
        return Progress(self.total - self.left, self.total, time.perf_counter() - self.started, self.values, self.state)
