"""The base runs: clean and corrupted prompts once each, their answer logits and the activations patches come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from nbpatch.errors import PatchNotApplied
from nbpatch.metrics import Answers
from nbpatch.model import Hook, Model
from nbpatch.plan import Plan
from nbpatch.prompts import TokenizedPair

RUNS = ("clean", "corrupted")
SOURCE = {"denoising": "clean", "noising": "corrupted"}
BASE = {"denoising": "corrupted", "noising": "clean"}


@dataclass(frozen=True)
class Group:
    """Pairs whose prompts have the same lengths, so that their runs share batches.

    Attributes:
        pairs: their numbers in the plan.
        ids: per run, token ids [pair pos].
        aligned: (clean, corrupted) positions that stand for each other [pair aligned 2].
        sources: per run and layer, the swept component's activation [pair pos …] or [pair head dest src].
    """

    pairs: tuple[int, ...]
    ids: Mapping[str, Int[Tensor, "pair pos"]]
    aligned: NDArray[np.int64]
    sources: dict[tuple[str, int], Tensor] = field(default_factory=dict[tuple[str, int], Tensor], compare=False)

    def places(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows that pairs, given by their numbers in the plan, have in this group."""
        return np.searchsorted(self.pairs, pairs)


@dataclass(frozen=True)
class BaseRuns:
    """What both base runs of all pairs gave.

    Attributes:
        logits: per run, answer logits [pair d_vocab].
        answers: what metrics compare with, one row per pair.
    """

    groups: tuple[Group, ...]
    logits: Mapping[str, Float[Tensor, "pair d_vocab"]]
    answers: Answers


def trace_runs(plan: Plan, model: Model, *, max_tokens: int) -> BaseRuns:
    """Runs every clean and every corrupted prompt once and keeps what the plan needs of them."""
    groups = group_pairs(plan.tokenized)
    logits = {run: torch.empty(len(plan.tokenized), plan.shape.d_vocab) for run in RUNS}
    needed = {"clean" if direction == "denoising" else "corrupted" for direction in plan.directions}
    for group in groups:
        for run in RUNS:
            kept = _trace(plan, model, group.ids[run], keep=run in needed, max_tokens=max_tokens)
            logits[run][list(group.pairs)] = kept.pop(-1).float().cpu()
            group.sources.update({(run, layer): value for layer, value in kept.items()})
    return BaseRuns(groups, logits, answers_of(plan.tokenized, logits["clean"]))


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


def _trace(plan: Plan, model: Model, ids: Int[Tensor, "pair pos"], *, keep: bool, max_tokens: int) -> dict[int, Tensor]:
    """Returns answer logits under the key −1 and, if wanted, the component's activation under each layer."""
    rows = max(1, max_tokens // ids.shape[1])
    parts: list[dict[int, Tensor]] = []
    for chunk in ids.split(rows):
        kept: dict[int, Tensor] = {}
        hooks = [_keeper(plan, model, layer, kept) for layer in range(plan.shape.n_layers)] if keep else []
        kept[-1] = model.answer_logits(chunk, hooks)
        parts.append(kept)
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


def _keeper(plan: Plan, model: Model, layer: int, kept: dict[int, Tensor]) -> Hook:
    name = model.hook_name(plan.component, layer)
    if name is None:
        raise PatchNotApplied(f"{plan.component} has no hook point in layer {layer}.", fix="model.describe()")

    def keep(value: Tensor, hook: Any) -> None:
        kept[layer] = value.detach().clone()

    return name, keep
