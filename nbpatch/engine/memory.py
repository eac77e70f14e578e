"""How a memory budget is divided: base runs, which stay; a wave; scores and logits, which come and go."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nbpatch.errors import PlanError
from nbpatch.model import Model
from nbpatch.prompts import TokenizedPair

_COPIES = 4
"""Copies of logits there are at once while they are measured: as numbers, as logarithms, as probabilities."""

_LOGITS = 2**26
"""Bytes of logits at once, whatever room there is."""

_MASKS = 3
"""Different masks a model may have: local, global, and one being made."""


@dataclass(frozen=True)
class Room:
    """Bytes, and the tokens of a wave that they are enough for.

    Attributes:
        fixed: base runs: what they left in each layer, their logits.
        each: a token on its way through a block: hidden states, neurons, one row of the scores.
        max_tokens: tokens of one wave.
        passing: what scores and logits of a wave may take beside it.
    """

    fixed: int
    each: int
    max_tokens: int
    passing: int


def room_of(tokenized: Sequence[TokenizedPair], model: Model, keep: frozenset[str], *, most: int) -> Room:
    """Returns how a model's memory budget is divided.

    Args:
        keep: parts of the base runs that are kept beside residual stream, queries, keys and values.
        most: tokens of a wave, whatever room there is.

    Raises:
        PlanError: the budget does not hold the base runs and one run.
    """
    width = torch.finfo(model.dtype).bits // 8
    longest = max(len(one.clean_ids) for one in tokenized)
    shape = model.shape
    each = width * (16 * shape.d_model + (10 if "neurons" in keep else 5) * shape.d_mlp + 4 * shape.n_heads * longest)
    scores = 6 * width * shape.n_heads * longest * longest
    fixed = _base_bytes(tokenized, model, keep, longest, width)
    least = fixed + each * longest + max(scores, 4 * _COPIES * shape.d_vocab)
    budget = model.memory_budget()
    if budget < least:
        raise PlanError(
            "the memory budget does not hold one run.",
            where="model.budget",
            seen=f"{budget / 2**20:.1f} MiB; base runs and one run of {longest} tokens need {least / 2**20:.1f} MiB",
            fix=f"model.budget = {2 ** int(np.ceil(np.log2(least)))}"
            + (", or fewer pairs at once" if len(tokenized) > 1 else ""),
        )
    passing = max((budget - fixed) // 2, least - fixed - each * longest)
    tokens = (budget - fixed - passing) // each
    return Room(fixed, each, max(longest, min(most, tokens)), passing)


def _base_bytes(
    tokenized: Sequence[TokenizedPair], model: Model, keep: frozenset[str], longest: int, width: int
) -> int:
    """Returns what the base runs leave behind: per layer and position, masks, and logits of the whole vocabulary."""
    shape, runs = model.shape, 2 * len(tokenized)
    heads = shape.n_heads * shape.d_head
    layer = shape.d_model + heads + 2 * shape.n_kv_heads * shape.d_head
    layer += heads * ("z" in keep) + shape.d_model * len(keep & {"attn_out", "mid", "mlp_out"})
    layer += shape.d_mlp * ("neurons" in keep)
    positions = runs * longest * (shape.n_layers * layer + 3 * shape.d_model)
    return width * (positions + _MASKS * longest * longest) + 4 * _COPIES * runs * shape.d_vocab


def scores_at_once(passing: int, heads: int, length: int, width: int) -> int:
    """Returns for how many runs attention may be computed at once, at all positions of a prompt."""
    return max(1, passing // (6 * width * heads * length * length))


def logits_at_once(passing: int, width: int) -> int:
    """Returns of how many runs logits of so many tokens may be made at once."""
    return max(1, min(_LOGITS, passing // 4) // (4 * width))
