"""What the parts of a block put out when they read another stream than in the base runs: the block itself, cut short.

Streams are packed as tokens [token d_model] behind each other, each with its position in its prompt.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbpatch.engine.attention import Keys, Queries, Values, all_replaced, attending
from nbpatch.engine.entries import indexed
from nbpatch.engine.rows import Ints
from nbpatch.engine.shims import Shim, Stopped, at_positions
from nbpatch.engine.trace import Trace
from nbpatch.errors import PatchNotApplied
from nbpatch.parts import Parts

Heads = tuple[Float[Tensor, "head token d_head"], Float[Tensor, "kv token d_head"], Float[Tensor, "kv token d_value"]]
"""Queries, keys and values of packed tokens."""


@torch.no_grad()
def projected(parts: Parts, trace: Trace, layer: int, hidden: Float[Tensor, "token d_model"], position: Ints) -> Heads:
    """Returns what attention is asked with when it reads `hidden`: the block itself, left at its attention.

    Raises:
        PatchNotApplied: the block did not come to its attention once.
    """
    asked: list[Heads] = []

    def keep(
        module: nn.Module, q: Queries, k: Keys, v: Values, mask: Tensor | None, options: Mapping[str, Any]
    ) -> Tensor:
        asked.append((q[0], k[0], v[0]))
        raise Stopped

    module: Any = parts.blocks[layer].module
    with attending(parts, keep), suppress(Stopped):
        module(hidden[None], **at_positions(trace.layers[layer].arguments, indexed(position, hidden)))
    if len(asked) != 1:
        raise PatchNotApplied(f"layer {layer} did not come to its attention.", fix="model.describe()")
    return asked[0]


@torch.no_grad()
def mlp_output(
    parts: Parts,
    trace: Trace,
    layer: int,
    hidden: Float[Tensor, "token d_model"],
    wrote: Float[Tensor, "token d_model"],
    position: Ints,
) -> Float[Tensor, "token d_model"]:
    """Returns `mlp_out` of the block when it is given `hidden` and its attention writes `wrote`.

    Raises:
        PatchNotApplied: the block did not run its MLP, or ran it without what attention wrote.
    """
    block, returns = parts.blocks[layer], trace.returns
    shims = [Shim(block.attention, 0, lambda: wrote, returns[id(block.attention)])]
    if block.attn_out is not block.attention:
        shims.append(Shim(block.attn_out, 0, lambda: wrote, returns[id(block.attn_out)]))
    catch = _Catch(block.mlp_out)
    module: Any = block.module
    methods = [*((one.module, one) for one in shims), (block.mlp_out, catch)]
    with attending(parts, _unasked), all_replaced(methods), suppress(Stopped):
        module(hidden[None], **at_positions(trace.layers[layer].arguments, indexed(position, hidden)))
    # Attention comes first in every family but those with parallel blocks, where its place does not matter.
    if catch.value is None or (block.mid is not None and any(one.calls != 1 for one in shims)):
        raise PatchNotApplied(f"layer {layer} did not run its MLP on the changed input.", fix="model.describe()")
    return catch.value.reshape(len(hidden), -1)


class _Catch:
    """A stand-in for a module's forward that keeps what the module puts out and leaves the block."""

    def __init__(self, module: nn.Module) -> None:
        self.forward = module.forward
        self.value: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self.forward(*args, **kwargs)
        self.value = out[0] if isinstance(out, tuple) else out
        raise Stopped


def _unasked(
    module: nn.Module, q: Queries, k: Keys, v: Values, mask: Tensor | None, options: Mapping[str, Any]
) -> Tensor:
    raise PatchNotApplied("attention was computed where it should have been given.", fix="model.describe()")
