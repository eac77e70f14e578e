"""The table a run fills: one value per metric, direction, cell and pair, and the state of each."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbpatch.engine.base import RUNS, BaseRuns
from nbpatch.engine.replay import BASE, Batch
from nbpatch.metrics import Metric, measure
from nbpatch.plan import EXACT, FAILED, MEASURED, NOT_RUN, Cell, Plan

Batches: TypeAlias = Sequence[tuple[Batch, Tensor]]
"""Rows of several forwards, each with its answer logits [row d_vocab]."""


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


class Table:
    """Values and states of a sweep, filled wave by wave."""

    def __init__(self, plan: Plan, runs: BaseRuns) -> None:
        self.plan = plan
        self.runs = runs
        self.state = plan.states.copy()
        self.started = time.perf_counter()
        self.forwards = 0
        self.baselines = {
            metric.name: {run: measure(metric, runs.logits[run], runs.answers).numpy() for run in RUNS}
            for metric in plan.metrics
        }
        self.values = {metric.name: self._at_base(metric) for metric in plan.metrics}

    def _at_base(self, metric: Metric) -> NDArray[np.float64]:
        """Returns the base value where a cell cannot act, else NaN."""
        values = np.full(self.state.shape, np.nan)
        for number, direction in enumerate(self.plan.directions):
            base = self.baselines[metric.name][BASE[direction]]
            values[number] = np.where(self.state[number] == EXACT, base, np.nan)
        return values

    def fill(self, wave: Sequence[Cell], batches: Batches) -> None:
        """Measures the answer logits of one wave and enters them."""
        for batch, logits in batches:
            self.forwards += 1
            cells = [wave[number] for number in batch.cells]
            where = (batch.direction, *np.array([cell.index for cell in cells]).T, batch.pairs)
            for metric in self.plan.metrics:
                if not metric.whole:
                    answers = self.runs.answers.rows(torch.from_numpy(batch.pairs))
                    self.values[metric.name][where] = measure(metric, logits, answers).numpy()
            self.state[where] = np.where(torch.isfinite(logits).all(-1).numpy(), MEASURED, FAILED)
        for metric in self.plan.metrics:
            if metric.whole:
                self._fill_whole(metric, wave, batches)
            self.values[metric.name][self.state == FAILED] = np.nan

    def _fill_whole(self, metric: Metric, wave: Sequence[Cell], batches: Batches) -> None:
        """Gives a user's function the logits of all pairs at once, cell by cell; pairs not run are at base."""
        for number, cell in enumerate(wave):
            logits = self.runs.logits[BASE[self.plan.directions[cell.direction]]].clone()
            for batch, rows in batches:
                own = np.flatnonzero(batch.cells == number)
                logits[torch.from_numpy(batch.pairs[own])] = rows[torch.from_numpy(own)]
            values = measure(metric, logits, self.runs.answers).numpy()
            pairs = list(cell.pairs)
            self.values[metric.name][(cell.direction, *cell.index, pairs)] = values[pairs]

    def progress(self) -> Progress:
        """Returns how far the run is."""
        total = self.plan.n_runs
        done = total - int((self.state == NOT_RUN).sum())
        return Progress(done, total, time.perf_counter() - self.started, self.values, self.state)
