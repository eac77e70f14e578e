"""Suffixes behind a cache, for models whose blocks compute attention themselves: no function of ours can be lent them.

A row begins at a position before which nothing can have changed. Its blocks get the tokens from there on and, through
the family's own cache, the base run's keys and values of the earlier ones. What else a block is called with (masks,
position biases, rotary angles) is what the model itself makes for so many rows behind so many cached positions.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbpatch.engine.attention import all_replaced, is_causal, replaced
from nbpatch.engine.rows import Ints
from nbpatch.engine.shims import Stopped, given_only
from nbpatch.engine.supply import Noised, noising
from nbpatch.engine.trace import arguments_of
from nbpatch.errors import PatchNotApplied
from nbpatch.parts import Block, Parts, Unfit

PLACES = {
    "z": ("project", True),
    "resid_mid": ("mid", True),
    "attn_out": ("attn_out", False),
    "mlp_post": ("down", True),
    "mlp_out": ("mlp_out", False),
}
"""Where a component is in a block: at which part, and whether it is what goes in there or what comes out."""

CACHE = object()
"""Stands where a block is given the cache."""


@dataclass(frozen=True)
class Inline:
    """A model that is run behind its own cache, as it was found on attach.

    Attributes:
        heads: into how many heads z is split.
        returns: id of a block → how many values its forward returns; 0 for a bare tensor.
        shares: per block, by an argument's name, how many of its leading entries belong to each row; 0 for shared ones.
        works: for each component "", or why it is not patched here.
    """

    parts: Parts
    heads: int
    returns: Mapping[int, int]
    shares: Sequence[Mapping[str, Any]]
    works: Mapping[str, str]


@dataclass(frozen=True)
class Bases:
    """Base runs of prompts of one length.

    Attributes:
        runs: their numbers, ascending.
        streams: each block's input, and behind them the last one's output [run pos d_model].
        keys, values: per block, as the cache has them [run kv_head pos d_head].
        sites: what was kept beside, by component and layer [run pos width].
        logits: answer logits [run d_vocab].
        returns: id of a block → how many values its forward returns; 0 for a bare tensor.
    """

    runs: Ints
    streams: Sequence[Tensor]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    sites: Mapping[tuple[str, int], Tensor]
    logits: Float[Tensor, "run d_vocab"]
    returns: Mapping[int, int]

    @property
    def length(self) -> int:
        """Tokens of each prompt."""
        return self.streams[0].shape[1]

    def at(self, runs: Ints) -> Int[Tensor, "row"]:
        """Returns where runs, given by their numbers, are in the tensors."""
        return torch.from_numpy(np.searchsorted(self.runs, runs)).to(self.streams[0].device)


@torch.no_grad()
def base_runs(
    parts: Parts,
    runs: Sequence[int],
    ids: Int[Tensor, "run pos"],
    *,
    keep: Sequence[str],
    noised: Mapping[int, Noised] | None = None,
) -> Bases:
    """Runs prompts of one length with the family's own cache, and keeps what patched rows need.

    Args:
        runs: their numbers, ascending.
        keep: which of `PLACES` to keep.
        noised: noise on the embeddings of some runs, by their place in the batch.

    Raises:
        Unfit: a block that is not run once or takes no cache, a part that is not passed once, attention that sees later
            positions.
    """
    model: Any = parts.model
    cache = empty_cache()
    streams: list[Tensor] = []
    sites: dict[tuple[str, int], Tensor] = {}
    returns: dict[int, int] = {}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream, arguments = arguments_of(module, args, kwargs)
        streams.append(stream)
        _refuse_later(arguments, ids.shape[1])

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        returns[id(module)] = len(result) if isinstance(result, tuple) else 0
        if module is parts.blocks[-1].module:
            streams.append(result[0] if isinstance(result, tuple) else result)

    def keeper(component: str, layer: int) -> Callable[[Tensor], None]:
        def see(value: Tensor) -> None:
            if (component, layer) in sites:
                raise Unfit(f"{component} comes by twice in a layer")
            # A copy: some blocks add to what a part of theirs has made in its place.
            sites[component, layer] = value.reshape(*ids.shape, -1).clone()

        return see

    whole = parts.unembed.forward
    with ExitStack() as stack:
        for layer, block in enumerate(parts.blocks):
            stack.callback(block.module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(block.module.register_forward_hook(leave).remove)
            for component in keep:
                stack.enter_context(shown(block, component, keeper(component, layer)))
        stack.enter_context(replaced(parts.unembed, "forward", lambda hidden: whole(hidden[:, -1:])))
        stack.enter_context(noising(model, noised or {}))
        logits = model(ids, past_key_values=cache, use_cache=True).logits[:, -1]
    depth = len(parts.blocks)
    if len(streams) != depth + 1 or len(sites) != depth * len(keep):
        raise Unfit("a block or a part of it is not run once")
    if [cached(cache, layer) for layer in range(depth)] != [ids.shape[1]] * depth:
        raise Unfit("a block keeps no keys and values in the model's cache")
    keys, values = ([getattr(one, name) for one in cache.layers] for name in ("keys", "values"))
    return Bases(np.array(runs, np.int64), streams, keys, values, sites, logits, returns)


@contextmanager
def shown(block: Block, component: str, see: Callable[[Tensor], None]) -> Generator[None]:
    """Shows a component of a block to a function whenever it comes by; the function may write over it.

    Raises:
        PatchNotApplied: the block has no such place.
    """
    name, taken = PLACES[component]
    module: nn.Module | None = getattr(block, name)
    if module is None:
        raise PatchNotApplied(f"{component} has no place in a block.", fix="model.describe()")

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(args[0] if args else next(iter(kwargs.values())))

    def behind(module: nn.Module, args: Any, result: Any) -> None:
        see(result[0] if isinstance(result, tuple) else result)

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True) if taken else module.register_forward_hook(behind)
    )
    try:
        yield
    finally:
        handle.remove()


def _refuse_later(arguments: Mapping[str, Any], length: int) -> None:
    """Raises Unfit unless the masks a block is called with are there, and let no position see a later one."""
    masks = [
        value
        for name, value in arguments.items()
        if name.endswith("mask") and isinstance(value, Tensor) and value.shape[-2:] == (length, length)
    ]
    if not masks or not all(map(is_causal, masks)):
        raise Unfit("attention is not causal")


def empty_cache() -> Any:
    """Returns a new cache such as the model itself would make."""
    from transformers import DynamicCache

    return DynamicCache()


def filled(layer: int, keys: Tensor, values: Tensor) -> Any:
    """Returns a new cache with keys and values in one layer."""
    cache = empty_cache()
    if keys.shape[2]:
        cache.update(keys, values, layer)
    return cache


def cached(cache: Any, layer: int) -> int:
    """Returns how many positions a cache holds in a layer."""
    return int(cache.get_seq_length(layer)) if layer < len(cache.layers) else 0


@torch.no_grad()
def called_with(
    parts: Parts, returns: Mapping[int, int], base: Bases, *, rows: int, start: int
) -> list[dict[str, Any]]:
    """Returns what the model calls each block with for some rows behind `start` cached positions, streams apart.

    In the place of the cache is a mark: each block gets one of its own.

    Raises:
        Unfit: a block that takes no cache.
    """
    model: Any = parts.model
    cache = filled(0, *(one[0][:1, :, :start].expand(rows, -1, -1, -1) for one in (base.keys, base.values)))
    embedded = base.streams[0].new_zeros(rows, base.length - start, model.get_input_embeddings().weight.shape[1])
    found: list[dict[str, Any]] = []

    def looking(block: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            stream, arguments = arguments_of(block, args, kwargs)
            if not any(value is cache for value in arguments.values()):
                raise Unfit("a block takes no cache")
            found.append({name: CACHE if value is cache else value for name, value in arguments.items()})
            if len(found) == len(parts.blocks):
                raise Stopped
            return given_only(returns[id(block)], stream)()

        return forward

    try:
        with all_replaced([(block.module, looking(block.module)) for block in parts.blocks]):
            model(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
    except Stopped:
        return found
    raise Unfit("a block is not run once")


def shares_of(parts: Parts, base: Bases) -> list[dict[str, Any]]:
    """Returns how many leading entries of each argument belong to a row, read from what one row gets and what two.

    Raises:
        Unfit: a block that takes no cache.
    """
    one, two = (called_with(parts, base.returns, base, rows=rows, start=1) for rows in (1, 2))
    return [{name: _share(few[name], many[name]) for name in few} for few, many in zip(one, two, strict=True)]


def _share(few: Any, many: Any) -> Any:
    if isinstance(few, Tensor):
        return many.shape[0] - few.shape[0] if few.ndim else 0
    if isinstance(few, (tuple, list)):
        return tuple(_share(one, two) for one, two in zip(few, many, strict=True))
    return 0


def of_first(value: Any, share: Any, rows: int) -> Any:
    """Returns what of a block's argument belongs to the first rows, as `shares_of` says."""
    if isinstance(value, Tensor):
        return value[: share * rows] if share else value
    if isinstance(value, (tuple, list)):
        return tuple(of_first(one, part, rows) for one, part in zip(value, share, strict=True))
    return value
