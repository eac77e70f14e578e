"""The base runs of the slow engine: clean and corrupted prompts once each, and the activations patches come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from nbpatch.corruption import Mean, Resample, Zero
from nbpatch.engine.supply import (
    Average,
    Ids,
    Noised,
    average_like,
    by_length,
    dataset_ids,
    drawn,
    noise_of,
    noising,
    refuse_short,
)
from nbpatch.errors import PatchNotApplied
from nbpatch.joint import JointPlan
from nbpatch.metrics import Answers
from nbpatch.model import Hook, Model
from nbpatch.plan import PATTERNS, Plan
from nbpatch.prompts import TokenizedPair

RUNS = ("clean", "corrupted")
SOURCE = {"denoising": "clean", "noising": "corrupted"}
BASE = {"denoising": "corrupted", "noising": "clean"}

Key = tuple[str, str, int]
"""A run, a component, a layer."""


@dataclass(frozen=True)
class Group:
    """Pairs whose prompts have the same lengths, so that their runs share batches.

    Attributes:
        pairs: their numbers in the plan.
        ids: per run, token ids [pair pos].
        aligned: (clean, corrupted) positions that stand for each other [pair aligned 2].
        sources: per run, component and layer, the activation [pair pos …] or [pair head dest src].
    """

    pairs: tuple[int, ...]
    ids: Mapping[str, Int[Tensor, "pair pos"]]
    aligned: NDArray[np.int64]
    sources: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor], compare=False)

    def places(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows that pairs, given by their numbers in the plan, have in this group."""
        return np.searchsorted(self.pairs, pairs)


@dataclass(frozen=True)
class BaseRuns:
    """What both base runs of all pairs gave.

    Attributes:
        logits: per run, answer logits [pair d_vocab].
        answers: what metrics compare with, one row per pair.
        noise: what is added to embeddings in corrupted runs, by pair.
        drawn: the prompts values come from, by pair, where they were drawn.
    """

    groups: tuple[Group, ...]
    logits: Mapping[str, Float[Tensor, "pair d_vocab"]]
    answers: Answers
    noise: Mapping[int, Noised] = field(default_factory=dict[int, Noised])
    drawn: Sequence[Ids] = ()


def trace_runs(plan: Plan, model: Model, *, max_tokens: int) -> BaseRuns:
    """Runs every clean and every corrupted prompt once and keeps what the plan needs of them.

    Raises:
        PlanError: a dataset that lacks what a pair needs.
    """
    groups = group_pairs(plan.tokenized)
    logits = {run: torch.empty(len(plan.tokenized), plan.shape.d_vocab) for run in RUNS}
    noise, prompts = noise_of(plan, model), drawn(plan, model)
    tracer, needed = _Tracer(plan, model, max_tokens), _needed(plan)
    for group in groups:
        for run in RUNS:
            noised = {place: noise[pair] for place, pair in enumerate(group.pairs) if run == "corrupted" and noise}
            kept = tracer.run(group.ids[run], keep=run in needed, noised=noised)
            logits[run][list(group.pairs)] = kept.pop(("", -1)).float().cpu()
            group.sources.update({(run, *key): value for key, value in kept.items()})
        if plan.corruption.ablates:
            found = tracer.replaced(group, [prompts[pair] for pair in group.pairs] if prompts else [])
            group.sources.update({("corrupted", *key): value for key, value in found.items()})
    return BaseRuns(groups, logits, answers_of(plan.tokenized, logits["clean"]), noise, prompts)


def _needed(plan: Plan) -> set[str]:
    """Returns the runs whose activations are asked for; of an ablation the clean run's shape."""
    if plan.corruption.ablates:
        return {"clean"}
    return set(RUNS) if isinstance(plan, JointPlan) else {SOURCE[direction] for direction in plan.directions}


def answers_of(tokenized: Sequence[TokenizedPair], clean: Float[Tensor, "pair d_vocab"]) -> Answers:
    """Returns what metrics compare the runs of some pairs with."""
    answer, wrong = ([getattr(one, f"{name}_ids") for one in tokenized] for name in ("answer", "wrong"))
    return Answers(pad_ids(answer), pad_ids(wrong), clean.log_softmax(-1))


def group_pairs(tokenized: Sequence[TokenizedPair]) -> tuple[Group, ...]:
    """Returns the pairs grouped by the lengths of their prompts and the number of aligned positions."""
    numbers: dict[tuple[int, int, int], list[int]] = {}
    for number, one in enumerate(tokenized):
        key = (len(one.clean_ids), len(one.corrupted_ids), len(one.aligned))
        numbers.setdefault(key, []).append(number)
    return tuple(
        Group(
            tuple(pairs),
            {
                "clean": torch.tensor([tokenized[pair].clean_ids for pair in pairs]),
                "corrupted": torch.tensor([tokenized[pair].corrupted_ids for pair in pairs]),
            },
            np.array([tokenized[pair].aligned for pair in pairs], np.int64).reshape(len(pairs), -1, 2),
        )
        for pairs in numbers.values()
    )


def pad_ids(ids: Sequence[Sequence[int]]) -> Int[Tensor, "row alternative"]:
    """Returns token ids as a table, padded with −1."""
    width = max(map(len, ids))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in ids], dtype=torch.long).reshape(len(ids), width)


def _zeros(value: Tensor) -> Tensor:
    """Returns zeros, scores of what is never looked at left as they are."""
    return torch.where(value > torch.finfo(value.dtype).min / 2, 0, value)


class _Tracer:
    """Runs prompts through the Bridge and keeps the components a plan patches."""

    def __init__(self, plan: Plan, model: Model, max_tokens: int) -> None:
        self.plan = plan
        self.model = model
        self.max_tokens = max_tokens
        self.means: dict[tuple[str, int], Average] = {}

    def run(
        self, ids: Int[Tensor, "pair pos"], *, keep: bool, noised: Mapping[int, Noised]
    ) -> dict[tuple[str, int], Tensor]:
        """Returns answer logits under the key ("", −1) and, if wanted, activations by component and layer."""
        rows = max(1, self.max_tokens // ids.shape[1])
        parts: list[dict[tuple[str, int], Tensor]] = []
        for start in range(0, len(ids), rows):
            kept: dict[tuple[str, int], Tensor] = {}
            mine = {row - start: one for row, one in noised.items() if start <= row < start + rows}
            hooks = self._keepers(kept) if keep else []
            with self.model.lock, noising(self.model.bridge.original_model, mine):
                kept["", -1] = self.model.answer_logits(ids[start : start + rows], hooks)
            parts.append(kept)
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def replaced(self, group: Group, prompts: Sequence[Ids]) -> dict[tuple[str, int], Tensor]:
        """Returns what an ablation puts into the clean runs of a group, by component and layer."""
        corruption = self.plan.corruption
        clean = {key[1:]: value for key, value in group.sources.items() if key[0] == "clean"}
        if isinstance(corruption, Zero):
            return {key: _zeros(value) for key, value in clean.items()}
        if isinstance(corruption, Resample):
            kept = self.run(torch.tensor(prompts), keep=True, noised={})
            return {key: value for key, value in kept.items() if key != ("", -1)}
        if isinstance(corruption, Mean):
            return {key: self._mean(corruption, key, value) for key, value in clean.items()}
        raise TypeError(f"{corruption} ablates nothing")

    def _mean(self, corruption: Mean, key: tuple[str, int], like: Tensor) -> Tensor:
        averages = self._averages(corruption)
        mean = averages[key].mean(per_position=corruption.per_position).to(like.dtype)
        if key[0] in PATTERNS:
            return mean[:, : like.shape[2], : like.shape[3]].expand_as(like)
        if not corruption.per_position:
            return mean[:1].expand_as(like)
        return mean[: like.shape[1]].expand_as(like)

    def _averages(self, corruption: Mean) -> dict[tuple[str, int], Average]:
        if not self.means:
            dataset = dataset_ids(self.plan, self.model, corruption)
            if corruption.per_position:
                refuse_short(self.plan, dataset)
            longest = max(map(len, dataset))
            for numbers in by_length(dataset, self.max_tokens):
                kept = self.run(torch.tensor([dataset[number] for number in numbers]), keep=True, noised={})
                kept.pop(("", -1))
                for key, value in kept.items():
                    average = average_like(value, longest, pattern=key[0] in PATTERNS)
                    self.means.setdefault(key, average).add(value)
        return self.means

    def _keepers(self, kept: dict[tuple[str, int], Tensor]) -> list[Hook]:
        return [
            self._keeper(component, layer, kept)
            for component in self.plan.components
            for layer in range(self.plan.shape.n_layers)
            if layer == 0 or component != "embed"
        ]

    def _keeper(self, component: str, layer: int, kept: dict[tuple[str, int], Tensor]) -> Hook:
        name = self.model.hook_name(component, layer)
        if name is None:
            raise PatchNotApplied(f"{component} has no hook point in layer {layer}.", fix="model.describe()")

        def keep(value: Tensor, hook: Any) -> None:
            kept[component, layer] = value.detach().clone()

        return name, keep
