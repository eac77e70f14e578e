"""From last hidden states to logits: the model itself, its blocks passing on what they are given.

So the final norm, soft caps and logit scales are the model's own. Only the columns a metric reads are unembedded.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from nbpatch.engine.attention import all_replaced
from nbpatch.engine.shims import given_only, passing
from nbpatch.parts import Parts

_FEW = 32
"""Rows of a product with the unembedding that torch computes faster the other way round: at least by a third."""


@torch.no_grad()
def unembedded(
    parts: Parts,
    returns: Mapping[int, int],
    hidden: Float[Tensor, "row d_model"],
    columns: Int[Tensor, "column"] | None = None,
) -> Float[Tensor, "row column"]:
    """Returns the logits of last hidden states, of all tokens or of `columns` only.

    Args:
        returns: id of a module → how many values its forward returns.
    """
    model: Any = parts.model
    widths = [returns[id(block.module)] for block in parts.blocks]
    forwards = [given_only(widths[0], hidden[:, None]), *map(passing, widths[1:])]
    methods = [(block.module, forward) for block, forward in zip(parts.blocks, forwards, strict=True)]
    narrowed = False
    if isinstance(parts.unembed, nn.Linear):
        methods.append((parts.unembed, narrow(parts.unembed, columns)))
        narrowed = True
    width = model.get_input_embeddings().weight.shape[1]
    empty = hidden.new_zeros(len(hidden), 1, width)
    with all_replaced(methods):
        logits = model(inputs_embeds=empty, use_cache=False).logits[:, -1]
    return logits if narrowed or columns is None else logits[:, columns.to(logits.device)]


def narrow(unembed: Any, columns: Tensor | None) -> Callable[..., Tensor]:
    """Returns a forward of an unembedding that gives the logits of some tokens only; None for all."""
    weight, bias = unembed.weight, unembed.bias
    if columns is not None:
        index = columns.to(weight.device)
        weight, bias = weight[index], None if bias is None else bias[index]

    def forward(hidden: Float[Tensor, "row 1 d_model"]) -> Float[Tensor, "row 1 column"]:
        if len(hidden) > _FEW:
            return linear(hidden, weight, bias)
        logits = (weight @ hidden[:, 0].T).T[:, None]
        return logits if bias is None else logits + bias

    return forward
