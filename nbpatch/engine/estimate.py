"""Estimates of patches from gradients: one forward and one backward for every site of every pair at once.

A patch changes an activation by the source run's value minus the base run's. To first order the metric changes by
that difference times its gradient at the base run.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbpatch.engine.base import BASE, SOURCE, BaseRuns, Group
from nbpatch.engine.finished import Finished
from nbpatch.engine.gradients import PLAIN, Differentiated, Gradients, Run, grading
from nbpatch.engine.slopes import Sites, Slopes, scores_of
from nbpatch.engine.table import baselines_of
from nbpatch.engine.tape import Key
from nbpatch.metrics import Metric
from nbpatch.model import Model
from nbpatch.parts import Parts
from nbpatch.plan import EXACT, FAILED, MEASURED, NOT_RUN, Direction, Plan
from nbpatch.sites import acting

Floats = NDArray[np.float64]

ByDirection = dict[Direction, dict[Key, Tensor]]


class Estimate:
    """Estimates for some plans on the same pairs, in the same directions and metrics.

    Args:
        returns: id of a module → how many values its forward returns.
        method: "atp", "atp*" or "ig".
        steps: points between base and source at which integrated gradients are taken.
    """

    def __init__(
        self, plans: Sequence[Plan], model: Model, parts: Parts, returns: Mapping[int, int], *, method: str, steps: int
    ) -> None:
        self.plans = plans
        self.method = method
        self.steps = steps
        self.heads = model.shape.n_heads, model.shape.n_kv_heads
        self.n_layers = model.shape.n_layers
        first = plans[0]
        self.directions = first.directions
        names = _sites({acting(plan.component) for plan in plans}, method)
        what = Differentiated(first.tokenized, first.directions, first.metrics)
        self.engine = Gradients(what, model, parts, returns, sites=names)
        unread = {"attn_out", "mlp_out"} - self._scored()
        self.keys = [(name, layer) for name in sorted(names - unread) for layer in range(self.n_layers)]
        self.values = [{metric.name: np.full(plan.states.shape, np.nan) for metric in first.metrics} for plan in plans]

    def _scored(self) -> set[str]:
        return {acting(plan.component) for plan in self.plans}

    def run(self) -> tuple[list[Finished], dict[str, Any]]:
        """Returns what the cells of each plan are estimated to give, and what it took."""
        started = time.perf_counter()
        for chunk in self.engine.chunks:
            with grading():
                self._estimate(chunk)
        runs = self.engine.runs()
        baselines = baselines_of(self.engine.metrics, runs)
        spent = {"name": "gradients", **self.engine.passes, "seconds": round(time.perf_counter() - started, 4)}
        done = [_finished(plan, one, runs, baselines) for plan, one in zip(self.plans, self.values, strict=True)]
        return done, spent

    def _estimate(self, chunk: Group) -> None:
        both = self.engine.both(chunk, back=self.method != "ig")
        for number, metric in enumerate(self.engine.metrics):
            last = number == len(self.engine.metrics) - 1
            self._enter(chunk, metric, self._estimates(chunk, both, metric, last=last))

    # -- gradients

    def _gradients(
        self, chunk: Group, both: Mapping[str, Run], metric: Metric, *, last: bool
    ) -> Iterator[tuple[int, ByDirection]]:
        """Yields the layer whose outputs no gradient passes, and the gradients of each direction's base runs."""
        if self.method == "ig":
            yield PLAIN, {direction: self._averaged(chunk, both, metric, direction) for direction in self.directions}
            return
        tapes = {id(both[run].tape): both[run].tape for run in self.engine.bases}
        layers = [PLAIN, *(range(self.n_layers) if self.method == "atp*" and self.n_layers > 1 else ())]
        for layer in layers:
            found: dict[int, dict[Key, Tensor]] = {}
            for number, tape in tapes.items():
                mine = [run for run in self.engine.bases if both[run].tape is tape]
                targets = [self.engine.target(metric, chunk, run, both[run].logits) for run in mine]
                tape.dropped = layer
                again = not (last and layer == layers[-1])
                found[number] = self.engine.back(tape, torch.stack(targets).sum(), self.keys, again=again)
                for key in (("attn_out", layer), ("mlp_out", layer)):
                    if key in found[number]:
                        found[number][key] = torch.zeros_like(found[number][key])
            yield layer, {direction: self._rows_of(both[BASE[direction]], found) for direction in self.directions}

    def _rows_of(self, run: Run, found: Mapping[int, Mapping[Key, Tensor]]) -> dict[Key, Tensor]:
        return {key: value[run.rows] for key, value in found[id(run.tape)].items()}

    def _averaged(
        self, chunk: Group, both: Mapping[str, Run], metric: Metric, direction: Direction
    ) -> dict[Key, Tensor]:
        """Returns gradients averaged over the points k / steps between base and source, of what block 0 is given."""
        run = BASE[direction]
        base, source = (both[one].value(("resid_pre", 0)) for one in (run, SOURCE[direction]))
        total: dict[Key, Tensor] = {}
        for point in range(1, self.steps + 1):
            tape = self.engine.record(chunk.ids[run], start=base + point / self.steps * (source - base))
            target = self.engine.target(metric, chunk, run, tape.logits)
            for key, value in self.engine.back(tape, target, self.keys, again=False).items():
                total[key] = value if key not in total else total[key] + value
        return {key: value / self.steps for key, value in total.items()}

    # -- scores

    def _estimates(
        self, chunk: Group, both: Mapping[str, Run], metric: Metric, *, last: bool
    ) -> dict[tuple[int, Direction], Tensor]:
        """Returns, by plan and direction, the estimates of some pairs [pair *over]."""
        plain: dict[tuple[int, Direction], Tensor] = {}
        dropped: dict[tuple[int, Direction], Tensor] = {}
        for layer, gradients in self._gradients(chunk, both, metric, last=last):
            for direction in self.directions:
                sites = self._sites(chunk, both, direction, gradients[direction])
                for number, plan in enumerate(self.plans):
                    scores = scores_of(plan.component, plan.over, sites)
                    if layer == PLAIN:
                        plain[number, direction] = scores
                    else:
                        before = dropped.get((number, direction), torch.zeros_like(scores))
                        dropped[number, direction] = before + scores.abs()
        if not dropped:
            return plain
        # Kramár et al. 2024: the mean over layers of the absolute values; the layer of the node itself gives none.
        return {key: plain[key].sign() * value / (self.n_layers - 1) for key, value in dropped.items()}

    def _sites(
        self, chunk: Group, both: Mapping[str, Run], direction: Direction, gradients: Mapping[Key, Tensor]
    ) -> Sites:
        base, source = both[BASE[direction]], both[SOURCE[direction]]
        slopes = {key: Slopes(base.value(key), source.value(key), value) for key, value in gradients.items()}
        return Sites(slopes, base.tape.asked, self.heads, _places(chunk, direction), self.method == "atp*")

    def _enter(self, chunk: Group, metric: Metric, estimates: Mapping[tuple[int, Direction], Tensor]) -> None:
        """Enters estimates [pair *over] at their directions, pairs and clean positions."""
        for (number, direction), scores in estimates.items():
            plan = self.plans[number]
            table = self.values[number][metric.name][plan.directions.index(direction)]
            found = scores.double().cpu().numpy()
            for place, pair in enumerate(chunk.pairs):
                index = [slice(0, size) for size in found.shape[1:]]
                cells = table[..., pair]
                if "pos" in plan.over and _moved(chunk):
                    at = plan.over.index("pos")
                    np.moveaxis(cells, at, 0)[chunk.aligned[place, :, 0]] = np.moveaxis(found[place], at, 0)
                else:
                    cells[tuple(index)] = found[place]


def _sites(components: set[str], method: str) -> frozenset[str]:
    """Returns what has to be kept of the runs."""
    extra = {"attn_out", "mlp_out"} if method == "atp*" else set[str]()
    if method == "atp*" and components & {"q", "k"}:
        extra |= {"q", "k", "v", "pattern"}
    return frozenset({*components, *extra})


def _moved(chunk: Group) -> bool:
    """Whether positions of the two prompts stand for others than themselves."""
    n = chunk.ids["clean"].shape[1]
    both = np.stack([np.arange(n)] * 2, 1)
    return chunk.aligned.shape[1:] != both.shape or not bool((chunk.aligned == both).all())


def _places(chunk: Group, direction: Direction) -> tuple[Tensor, Tensor] | None:
    """Returns the positions of base and source that stand for each other [pair aligned]; None where all do."""
    if not _moved(chunk):
        return None
    clean, corrupted = (torch.from_numpy(chunk.aligned[..., side]) for side in (0, 1))
    return (corrupted, clean) if direction == "denoising" else (clean, corrupted)


def _finished(plan: Plan, scores: Mapping[str, Floats], runs: BaseRuns, baselines: Mapping[str, Any]) -> Finished:
    """Returns the base value plus the estimate wherever a cell can act, and what is known without one elsewhere."""
    state = np.where(plan.states == NOT_RUN, MEASURED, plan.states).astype(np.int8)
    values: dict[str, Floats] = {}
    for name, score in scores.items():
        base = np.stack([baselines[name][BASE[direction]] for direction in plan.directions])
        base = base.reshape(len(base), *[1] * len(plan.over), -1)
        measured = np.where(state == MEASURED, base + score, np.nan)
        values[name] = np.where(plan.states == EXACT, base, measured)
    broken = (state == MEASURED) & np.any([~np.isfinite(value) for value in values.values()], axis=0)
    state[broken] = FAILED
    return Finished(plan, values, {}, state, baselines, runs.logits, [], (plan.n_runs, int((state == MEASURED).sum())))
