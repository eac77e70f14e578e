"""The engine for models whose blocks attend by themselves: base runs, waves of suffixes behind the model's cache."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbpatch.engine.base import BaseRuns, answers_of
from nbpatch.engine.frontier import room_for
from nbpatch.engine.inline import PLACES, Bases, Inline, base_runs, called_with
from nbpatch.engine.memory import logits_at_once
from nbpatch.engine.rows import Ints, Rows, rows_of, waves, why_not
from nbpatch.engine.steps import Steps
from nbpatch.engine.stopping import never
from nbpatch.engine.supply import by_length, noise_of
from nbpatch.engine.table import Filled, by_plan
from nbpatch.engine.tail import unembedded
from nbpatch.engine.trace import wanted
from nbpatch.errors import PatchNotApplied
from nbpatch.joint import JointPlan
from nbpatch.model import Model
from nbpatch.parts import Unfit
from nbpatch.plan import Plan
from nbpatch.sites import acting

_IN_VAIN = 32
"""Tokens that a block takes in about the time it takes to read its weights; measured on two slow cores."""

_CALL, _CALL_GPU = 1e7, 1e10
"""Operations in matrices that take as long as a block's bookkeeping; measured there, and a guess."""

_FIX = 'model.engine = "replay"'


class Suffix:
    """The engine that runs, for rows that start together, the positions and blocks a patch can change.

    Args:
        reason: why the faster engine did not take the plans.

    Raises:
        PlanError: the memory budget does not hold a single row.
    """

    name = "suffix"
    broken = ""

    def __init__(self, plans: Sequence[Plan], model: Model, inline: Inline, *, reason: str) -> None:
        self.plans = plans
        self.model = model
        self.inline = inline
        self.reason = reason
        components = dict.fromkeys(acting(name) for plan in plans for name in plan.components)
        self.keep = [name for name in components if name in PLACES]
        self.room = room_for(plans, model, wanted(components))
        self.halt: Callable[[], bool] = never
        self.bases: list[Bases] = []
        self.columns: Tensor | None = None
        self.n_waves = 0
        self.flops = 0.0

    def trace(self, *, alone: bool = False) -> BaseRuns:
        """Runs every prompt once, in passes of prompts of one length; patched runs are never among them.

        Raises:
            PatchNotApplied: a part that a patch needs was not passed once.
        """
        first, model, parts = self.plans[0], self.model, self.inline.parts
        self.bases = []
        noise = noise_of(first, model)
        logits = torch.empty(2 * len(first.tokenized), model.shape.d_vocab)
        with model.lock:
            for pairs in by_length([one.clean_ids for one in first.tokenized], self.room.max_tokens // 2):
                some = [first.tokenized[pair] for pair in pairs]
                ids = torch.tensor([ids for one in some for ids in (one.clean_ids, one.corrupted_ids)])
                noised = {2 * place + 1: noise[pair] for place, pair in enumerate(pairs) if noise}
                runs = [2 * pair + side for pair in pairs for side in (0, 1)]
                try:
                    base = base_runs(parts, runs, ids.to(model.device), keep=self.keep, noised=noised)
                except Unfit as unfit:
                    raise PatchNotApplied(f"base runs: {unfit}.", where="model", fix=_FIX) from unfit
                logits[base.runs] = base.logits.float().cpu()
                self.flops += parts.flops_per_token * ids.numel()
                self.bases.append(base)
        both = {"clean": logits[0::2], "corrupted": logits[1::2]}
        runs = BaseRuns((), both, answers_of(first.tokenized, both["clean"]))
        if all(metric.local for plan in self.plans for metric in plan.metrics):
            self.columns = runs.answers.columns
        return runs

    def waves(self) -> Iterator[Callable[[], Iterator[tuple[int, Filled]]]]:
        """Yields what makes the runs of one wave: pairs of a plan's number and its runs."""
        whole = any(metric.whole for plan in self.plans for metric in plan.metrics)
        together = len(self.plans[0].tokenized) if whole else 0
        for wave in waves(rows_of(self.plans), max_tokens=self.room.max_tokens, together=together):
            yield lambda wave=wave: self._run(wave, at_once=whole)

    def spent(self) -> dict[str, Any]:
        """Returns what the run took, for the provenance."""
        return {"waves": self.n_waves, "flops": self.flops, "reason": self.reason}

    def _run(self, wave: Rows, *, at_once: bool) -> Iterator[tuple[int, Filled]]:
        """Yields the runs of a wave; all of them at once where a metric must see all pairs of a cell."""
        parts = self.inline.parts
        with self.model.lock:
            ends = self.bases[0].streams[0].new_empty(len(wave), self.model.shape.d_model)
            for base in self.bases:
                mine = np.flatnonzero(np.isin(wave.run, base.runs))
                end = base.length - 1
                last = called_with(parts, self.inline.returns, base, rows=len(mine), start=end) if len(mine) else []
                for group in started_together(wave.first[mine], self._worth()):
                    rows = wave.take(mine[group])
                    steps = Steps(rows, base, int(rows.first.min()), self.inline, last=last, halt=self.halt)
                    ends[torch.from_numpy(mine[group]).to(ends.device)] = steps.go()
                    self.flops += steps.flops
            self.n_waves += 1
            width = self.model.shape.d_vocab if self.columns is None else len(self.columns)
            step = len(wave) if at_once else logits_at_once(self.room.passing, width)
            for begin in range(0, len(wave), step):
                some = slice(begin, begin + step)
                logits = unembedded(parts, self.inline.returns, ends[some], self.columns).float().cpu()
                self.flops += 2.0 * logits.numel() * ends.shape[1]
                yield from by_plan(wave.take(some), logits, self.columns)

    def _worth(self) -> float:
        parts = self.inline.parts
        return in_vain(parts.flops_per_token / len(parts.blocks), gpu=self.model.device.type != "cpu")


def in_vain(flops: float, *, gpu: bool = False) -> float:
    """Returns how many tokens a block may take in vain for one call less.

    Args:
        flops: operations of a block on one token.
    """
    return _IN_VAIN + (_CALL_GPU if gpu else _CALL) / max(1.0, flops)


def started_together(first: Ints, worth: float) -> list[Ints]:
    """Returns rows, by their place, in groups that start together: where their first one does.

    Args:
        first: the first position each row can change.
        worth: how many tokens may be computed in vain for one group less.
    """
    groups: list[list[Ints]] = []
    begun = 0
    for start in np.unique(first):
        rows = np.flatnonzero(first == start)
        if not groups or (start - begun) * len(rows) > worth:
            groups.append([])
            begun = start
        groups[-1].append(rows)
    return [np.concatenate(some) for some in groups]


def why_not_suffixes(plans: Sequence[Plan], inline: Inline) -> str:
    """Returns why some plans cannot be run as suffixes behind a cache, or ""."""
    for plan in plans:
        if isinstance(plan, JointPlan):
            return "several places are patched at once"
        if plan.corruption.ablates:
            return "values of an ablation are put in by hooks"
    components = dict.fromkeys(acting(name) for plan in plans for name in plan.components)
    return why_not(plans) or next((why for name in components if (why := inline.works[name])), "")
