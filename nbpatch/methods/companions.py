"""Observations shown beside the causal maps: what each head attends to in the clean and the corrupted run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from nbpatch.engine.describe import describe_model, describe_tokens, describe_versions
from nbpatch.errors import PlanError
from nbpatch.model import Hook, Model, load
from nbpatch.prompts import PromptPair
from nbpatch.result import Result

RUNS = ("clean", "corrupted")


def attention(model: Any, pairs: PromptPair | Sequence[PromptPair]) -> Result:
    """Returns the attention patterns of both runs of each pair.

    Args:
        model: what `load` takes or returned.
        pairs: one `PromptPair` or several of the same length.

    Returns:
        A `Result` whose `data["pattern"]` has dims (run, layer, head, dest, src, pair), run being clean or corrupted;
        each row over src adds up to 1.

    Raises:
        PromptError: a pair that cannot be used.
        PlanError: pairs of different lengths.
        SiteError: the model does not show its patterns.
    """
    ready = load(model)
    tokenized = ready.tokenize(pairs)
    ready.check_visible("pattern")
    lengths = {len(ids) for one in tokenized for ids in (one.clean_ids, one.corrupted_ids)}
    if len(lengths) > 1:
        raise PlanError(
            "attention patterns of prompts of different lengths do not fit into one table.",
            where="pairs",
            seen=f"lengths {', '.join(map(str, sorted(lengths)))}",
            fix="nbp.attention(model, pair) for one pair at a time",
        )
    ids = {"clean": [one.clean_ids for one in tokenized], "corrupted": [one.corrupted_ids for one in tokenized]}
    patterns = np.stack([_patterns(ready, torch.tensor(ids[run])).numpy() for run in RUNS])
    data = xr.Dataset(
        {
            "pattern": (
                ("run", "layer", "head", "dest", "src", "pair"),
                patterns,
                {"unit": "share", "label": "attention"},
            )
        },
        coords={"run": list(RUNS), "pair": np.arange(len(tokenized))},
    )
    provenance: dict[str, Any] = {
        "method": "attention",
        "model": describe_model(ready),
        "pairs": [describe_tokens(one) for one in tokenized],
        "versions": describe_versions(),
    }
    return Result(data, xr.Dataset(), provenance, (), None)


def _patterns(model: Model, ids: Tensor) -> Tensor:
    """Returns the patterns [layer head dest src pair] of prompts [pair pos]."""
    layers: dict[int, Tensor] = {}

    def keeper(layer: int) -> Hook:
        def keep(value: Tensor, hook: Any) -> None:
            layers[layer] = value.detach().float().cpu()

        return str(model.hook_name("pattern", layer)), keep

    model.answer_logits(ids, [keeper(layer) for layer in range(model.shape.n_layers)])
    return torch.stack([layers[layer] for layer in sorted(layers)]).permute(0, 2, 3, 4, 1)
