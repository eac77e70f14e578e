"""Attention through a function of ours: transformers looks it up by name at each call, so it can be lent for a while.

The function gets queries, keys and values after norms and rotary embedding, keys and values not yet repeated for the
heads that share them, and gives back z. What it does with them is the caller's; the scores stay the family's own.
"""

import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from nbpatch.parts import Parts

NAME = "nbpatch"

Queries: TypeAlias = Float[Tensor, "row head dest d_head"]
Keys: TypeAlias = Float[Tensor, "row kv_head src d_head"]
Values: TypeAlias = Float[Tensor, "row kv_head src d_value"]

Attend: TypeAlias = Callable[[nn.Module, Queries, Keys, Values, Tensor | None, Mapping[str, Any]], Tensor]
"""(module, q, k, v, mask, options) → z [row pos head d_head]."""

_lending = threading.RLock()
_attend: list[Attend] = []


def _attention(module: nn.Module, q: Queries, k: Keys, v: Values, mask: Tensor | None, **options: Any) -> Any:
    return _attend[-1](module, q, k, v, mask, options), None


def _mask(*args: Any, **options: Any) -> Any:
    """The eager mask, always as a tensor: which positions a position sees is read from it."""
    from transformers.masking_utils import eager_mask

    options["allow_is_causal_skip"] = False
    return eager_mask(*args, **options)


@contextmanager
def attending(parts: Parts, attend: Attend, *, in_place: bool = True) -> Generator[None]:
    """Lets `attend` compute the attention of a model, in this thread, until the block ends.

    The configuration's attention name is process-wide state: it is switched under a lock and always switched back.

    Args:
        in_place: whether activations may write over what goes into them; a way back from a metric needs it.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    with _lending, ExitStack() as undo:
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, _mask)
        if not _attend:
            tables: list[Any] = [AttentionInterface, AttentionMaskInterface]
            for table in tables:
                undo.callback(table._global_mapping.pop, NAME, None)
        for config in parts.configs:
            undo.callback(setattr, config, "_attn_implementation_internal", config._attn_implementation_internal)
            config._attn_implementation_internal = NAME
        for activation in parts.tanh_gelus if in_place else ():
            undo.enter_context(replaced(activation, "forward", _gelu))
        for block in parts.blocks:
            inner = inner_attention(block.attention)
            if inner is not None:
                undo.enter_context(replaced(inner, "_attn", _as_method(inner)))
        _attend.append(attend)
        undo.callback(_attend.pop)
        yield


_PIECE = 2**17
"""Numbers that fit into a core's cache."""


def _gelu(value: Tensor) -> Tensor:
    """Returns the tanh form of GELU, written over its argument: nobody else holds what goes into an activation.

    On a CPU as x·σ(2√(2/π)·(x + 0.044715·x³)), which is the same: torch's tanh takes longer than four passes in cache.
    """
    if value.device.type != "cpu" or value.dtype != torch.float32 or not value.is_contiguous():
        return gelu(value, approximate="tanh")
    slope = 2 * (2 / torch.pi) ** 0.5
    start = torch.tensor(slope)
    for piece in value.view(-1).split(_PIECE):
        inner = torch.addcmul(start, piece, piece, value=0.044715 * slope).mul_(piece)
        piece.mul_(inner.sigmoid_())
    return value


def inner_attention(attention: nn.Module) -> nn.Module | None:
    """Returns the module whose method `_attn` computes the scores, in families that do not ask for a function by name.

    gptj, codegen and gpt_neo; in gpt_neo it sits inside a wrapper.
    """
    for module in (attention, getattr(attention, "attention", None)):
        if isinstance(module, nn.Module) and callable(getattr(module, "_attn", None)):
            return module
    return None


def _as_method(module: nn.Module) -> Callable[..., Any]:
    def attn(query: Queries, key: Keys, value: Values, attention_mask: Tensor | None = None) -> Any:
        return _attend[-1](module, query, key, value, attention_mask, {}).transpose(1, 2), None

    return attn


@contextmanager
def replaced(module: nn.Module, name: str, function: Callable[..., Any]) -> Generator[None]:
    """Puts a function in the place of a module's method, on this instance only, until the block ends."""
    own = module.__dict__.get(name)
    module.__dict__[name] = function
    try:
        yield
    finally:
        if own is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = own


@contextmanager
def all_replaced(methods: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Generator[None]:
    """Puts functions in the place of several modules' `forward`."""
    with ExitStack() as stack:
        for module, function in methods:
            stack.enter_context(replaced(module, "forward", function))
        yield


def attend_as_family(
    module: nn.Module, q: Queries, k: Keys, v: Values, mask: Tensor | None, options: Mapping[str, Any]
) -> Tensor:
    """Returns z [row pos head d_head] as the model's family computes it: soft caps, sinks and scaling come with it."""
    if fused(module, options):
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=options.get("scaling"), enable_gqa=q.shape[1] != k.shape[1]
        ).transpose(1, 2)
    return attend_with_weights(module, q, k, v, mask, options)[0]


def attend_with_weights(
    module: nn.Module, q: Queries, k: Keys, v: Values, mask: Tensor | None, options: Mapping[str, Any]
) -> tuple[Tensor, Float[Tensor, "row head dest src"]]:
    """Returns z [row pos head d_head] and the attention weights, by the family's own eager function."""
    own = type(module).__dict__.get("_attn")
    if own is not None:
        z, weights = own(module, q, k, v, mask)
        return z.transpose(1, 2), weights
    return _eager(module)(module, q, k, v, mask, **options)


def fused(module: nn.Module, options: Mapping[str, Any]) -> bool:
    """Whether torch's fused attention computes the same: not with a soft cap, sinks, or a scaling of their own."""
    plain = options.get("softcap") is None and options.get("s_aux") is None and not options.get("dropout")
    return plain and options.get("scaling") is not None and not hasattr(module, "_attn")


def _eager(module: nn.Module) -> Callable[..., Any]:
    return sys.modules[type(module).__module__].eager_attention_forward


def is_causal(mask: Shaped[Tensor, "row head dest src"]) -> bool:
    """Whether no position sees a later one, read from a captured mask."""
    above = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu(1)
    # Families differ in what True means; the first position sees itself.
    seen = mask == mask[..., :1, :1] if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return not bool((seen & above).any())
