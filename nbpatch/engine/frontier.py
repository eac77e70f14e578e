"""The fast engine for some plans on one model: base runs, waves of rows, logits where the metrics read them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nbpatch.engine.base import BaseRuns, answers_of
from nbpatch.engine.lead import Lead, begin
from nbpatch.engine.memory import Room, logits_at_once, room_of
from nbpatch.engine.rows import Rows, base_rows, joints_of, rows_of, waves
from nbpatch.engine.stopping import Halted, never
from nbpatch.engine.supply import Ids, Supply, noise_of
from nbpatch.engine.table import Filled, by_plan
from nbpatch.engine.tail import unembedded
from nbpatch.engine.trace import Trace, trace, wanted
from nbpatch.engine.walk import Walk
from nbpatch.model import Model
from nbpatch.parts import Parts
from nbpatch.plan import Plan
from nbpatch.sites import acting

MOST_TOKENS = 3072
"""Tokens of one wave: matrix products are no faster with more on a CPU, and progress and stopping become coarse."""

MOST_TOKENS_GPU = 65536


class Frontier:
    """The engine that walks the layers once and computes only what a patch can change.

    Raises:
        PlanError: the memory budget does not hold a single row.
    """

    name = "frontier"

    def __init__(self, plans: Sequence[Plan], model: Model, parts: Parts, returns: Mapping[int, int]) -> None:
        self.plans = plans
        self.joints = joints_of(plans)
        self.model = model
        self.parts = parts
        self.returns = returns
        self.ready: list[tuple[Rows, Tensor | None]] = []
        self.runs: BaseRuns | None = None
        self.traced: Trace | None = None
        self.columns: Tensor | None = None
        self.n_waves = 0
        self.flops = 0.0
        self.broken = ""
        self.room = self._room_for(plans)
        self.max_tokens = self.room.max_tokens
        self.halt: Callable[[], bool] = never

    def _room_for(self, plans: Sequence[Plan]) -> Room:
        return room_for(plans, self.model, wanted(acting(name) for plan in plans for name in plan.components))

    def trace(self, *, alone: bool = False) -> BaseRuns:
        """Runs every prompt once, and the first wave with the last of them unless they are to run alone."""
        try:
            return self._traced(alone=alone)
        except Halted:
            return self._traced(alone=True)

    def _traced(self, *, alone: bool) -> BaseRuns:
        tokenized = self.plans[0].tokenized
        prompts = [ids for one in tokenized for ids in (one.clean_ids, one.corrupted_ids)]
        components = {acting(name) for plan in self.plans for name in plan.components}
        keep = wanted(components)
        ablates = self.plans[0].corruption.ablates
        parts = list(base_rows(tokenized, max_tokens=self.max_tokens))
        taken = int(parts[-1].tokens.sum())
        cut = list(waves(rows_of(self.plans), max_tokens=self.max_tokens, together=self._together(), taken=taken))
        joins = bool(cut) and not (alone or ablates or self.joints) and taken + cut[0].tokens.sum() <= self.max_tokens
        logits = torch.empty(len(prompts), self.model.shape.d_vocab)
        noise = {2 * pair + 1: one for pair, one in noise_of(self.plans[0], self.model).items()}
        with self.model.lock:
            traced = self.traced = begin(
                self.parts, prompts, self.returns, noise, device=self.model.device, max_tokens=self.max_tokens
            )
            traced.passing = self.room.passing
            hidden = None
            for number, rows in enumerate(parts):
                joined = joins and number == len(parts) - 1
                wave = cut[0] if joined else rows.take(slice(0))
                lead = Lead(rows, self.parts, traced, keep)
                halt = self.halt if joined else never
                walk = Walk(wave, self.parts, traced, bucket=self._bucket(), lead=lead, halt=halt)
                ends = walk.go()
                self.flops += walk.flops + 2.0 * ends[: len(rows)].shape.numel() * self.model.shape.d_vocab
                logits[torch.from_numpy(rows.run)] = self._unembedded(ends[: len(rows)], None)
                hidden = ends[len(rows) :] if joined else None
            drawn = self._ablated(traced, keep, patterns="pattern" in components) if ablates else []
        self.ready = [(wave, hidden if number == 0 else None) for number, wave in enumerate(cut)]
        return self._based_on(logits, drawn)

    def _trace_apart(self, keep: frozenset[str]) -> Trace:
        """Runs every prompt once, in passes of their own: all positions of all layers are known then."""
        prompts = [ids for one in self.plans[0].tokenized for ids in (one.clean_ids, one.corrupted_ids)]
        with self.model.lock:
            traced = trace(self.parts, prompts, device=self.model.device, max_tokens=self.max_tokens, keep=keep)
        traced.passing = self.room.passing
        self.flops += self.parts.flops_per_token * sum(map(len, prompts))
        return traced

    def _ablated(self, traced: Trace, keep: frozenset[str], *, patterns: bool) -> list[Ids]:
        """Replaces the corrupted runs' activations, and returns the prompts drawn for it."""
        supply = Supply(self.plans[0], self.model, self.parts, traced, keep, patterns, self.max_tokens)
        supply.replace()
        return supply.drawn

    def _based_on(self, logits: Float[Tensor, "run d_vocab"], drawn: Sequence[Ids] = ()) -> BaseRuns:
        """Returns the base runs from their logits, clean and corrupted in turns."""
        both = {"clean": logits[0::2], "corrupted": logits[1::2]}
        self.runs = BaseRuns((), both, answers_of(self.plans[0].tokenized, both["clean"]), drawn=drawn)
        if all(metric.local for plan in self.plans for metric in plan.metrics):
            self.columns = self.runs.answers.columns
        return self.runs

    def _together(self) -> int:
        """Returns how many runs of a cell a metric must see at once, or 0."""
        whole = any(metric.whole for plan in self.plans for metric in plan.metrics)
        return len(self.plans[0].tokenized) if whole else 0

    def waves(self) -> Iterator[Callable[[], Iterator[tuple[int, Filled]]]]:
        """Yields what makes the runs of one wave: pairs of a plan's number and its runs."""
        for wave, hidden in self.ready:
            yield lambda wave=wave, hidden=hidden: self._run(wave, hidden)

    def spent(self) -> dict[str, Any]:
        """Returns what the run took, for the provenance."""
        return {"waves": self.n_waves, "flops": self.flops}

    def _run(self, wave: Rows, hidden: Tensor | None = None) -> Iterator[tuple[int, Filled]]:
        """Yields the runs of a wave, from the last hidden states where it has been walked."""
        if self.traced is None:
            raise LookupError("the base runs come first")
        with self.model.lock:
            if hidden is None:
                walk = Walk(wave, self.parts, self.traced, self.joints, bucket=self._bucket(), halt=self.halt)
                hidden = walk.go()
                self.flops += walk.flops
            self.n_waves += 1
            width = self.model.shape.d_vocab if self.columns is None else len(self.columns)
            step = len(wave) if self._together() else logits_at_once(self.room.passing, width)
            for start in range(0, len(wave), step):
                logits = self._unembedded(hidden[start : start + step], self.columns)
                self.flops += 2.0 * logits.numel() * hidden.shape[1]
                self._look_for_nan(wave.take(slice(start, start + step)), logits)
                yield from by_plan(wave.take(slice(start, start + step)), logits, self.columns)

    def _unembedded(self, hidden: Tensor, columns: Tensor | None) -> Tensor:
        returns = self.returns if self.traced is None else self.traced.returns
        return unembedded(self.parts, returns, hidden, columns).float().cpu()

    def _look_for_nan(self, rows: Rows, logits: Tensor) -> None:
        """Finds the layer and the run in which the first NaN appeared, by walking the first broken row again."""
        broken = np.flatnonzero(~torch.isfinite(logits).all(-1).numpy())
        if self.broken or not len(broken) or self.traced is None:
            return
        row = rows.take(broken[:1])
        run = int(row.run[0])
        base = self.traced.first_nan(run)
        if base is None:
            walk = Walk(row, self.parts, self.traced, self.joints, bucket=1, watch=True)
            walk.go()
            place = "behind the last layer" if walk.first_nan is None else f"in layer {walk.first_nan}"
            self.broken = f"it appears {place} of the patched run"
        else:
            self.broken = f"it appears in layer {base} of the {'corrupted' if run % 2 else 'clean'} run already"

    def _bucket(self) -> int:
        """Returns how coarsely suffixes start: on a GPU and in tiny models, few large groups beat exact ones."""
        if self.model.device.type != "cpu":
            return 8
        return 2 if self.model.shape.d_model <= 256 else 1


def room_for(plans: Sequence[Plan], model: Model, keep: frozenset[str]) -> Room:
    """Returns how the model's memory budget is divided for a run of some plans on the same pairs.

    Raises:
        PlanError: the budget does not hold the base runs and one run.
    """
    most = MOST_TOKENS if model.device.type == "cpu" else MOST_TOKENS_GPU
    return room_of(plans[0].tokenized, model, keep, most=most)
