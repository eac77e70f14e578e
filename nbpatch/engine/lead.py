"""Base runs that lead a wave: they walk through the layers with the rows that take their values from them.

A pass of their own would be as small as matrix products come, and cost as much as all that is patched in a short
prompt. The corrupted run is a suffix too: before the first difference it is the clean run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbpatch.engine.attention import Keys, Queries, Values, all_replaced, attending, is_causal
from nbpatch.engine.entries import indexed
from nbpatch.engine.rows import Ints, Rows
from nbpatch.engine.shims import passing
from nbpatch.engine.supply import Noised, noising
from nbpatch.engine.trace import Layer, Trace, arguments_of
from nbpatch.parts import Parts, Unfit


@torch.no_grad()
def begin(
    parts: Parts,
    prompts: Sequence[Sequence[int]],
    returns: Mapping[int, int],
    noise: Mapping[int, Noised] | None = None,
    *,
    device: torch.device,
    max_tokens: int = 2**30,
) -> Trace:
    """Returns the base runs as they are before the first block: embeddings, and what each block is called with.

    The model itself runs, its blocks passing on what they are given. Shorter prompts are padded on the right, where
    nothing ever reads.

    Args:
        noise: by run, what is added to its token embeddings.
        max_tokens: prompt tokens of one pass.
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in prompts], device=device)
    called: list[tuple[Tensor, dict[str, Any]]] = []

    def watched(block: nn.Module) -> Callable[..., Any]:
        onward = passing(returns[id(block)])

        def forward(*args: Any, **kwargs: Any) -> Any:
            called.append(arguments_of(block, args, kwargs))
            return onward(called[-1][0])

        return forward

    modules = [block.module for block in parts.blocks]
    methods = [*((module, watched(module)) for module in modules), (parts.unembed, lambda hidden: hidden[:, -1:, :1])]
    model: Any = parts.model
    embedded: list[Tensor] = []
    seen: list[tuple[Tensor, dict[str, Any]]] = []
    step = max(1, max_tokens // longest)
    with attending(parts, _unasked), all_replaced(methods):
        for start in range(0, len(ids), step):
            called.clear()
            mine = {run - start: one for run, one in (noise or {}).items() if start <= run < start + step}
            with noising(model, mine):
                model(ids[start : start + step], use_cache=False)
            if len(called) != len(modules):
                raise Unfit("the blocks were not run once each")
            embedded.append(called[0][0])
            seen = seen or [(hidden, _of_one(arguments)) for hidden, arguments in called]
    hidden = torch.cat(embedded)
    none = hidden.new_empty(0)
    layers = [
        Layer(none, none, none, none, none, None, None, None, None, None, module, {}, arguments)
        for module, (_, arguments) in zip(modules, seen, strict=True)
    ]
    layers[0].pre = hidden
    lengths = torch.tensor([len(one) for one in prompts])
    return Trace(layers, torch.zeros_like(hidden), lengths, hidden.new_empty(len(hidden), 0), returns)


def _of_one(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a block's arguments with masks of one run: all runs have the same, and they are large."""
    return {
        name: value[:1].clone() if isinstance(value, Tensor) and value.ndim == 4 and len(value) > 1 else value
        for name, value in arguments.items()
    }


def _unasked(module: nn.Module, q: Queries, k: Keys, v: Values, mask: Any, options: Mapping[str, Any]) -> Tensor:
    raise Unfit("attention outside of the blocks")


class Lead:
    """The base runs in a wave; writes down what they leave in each layer, for all positions at once.

    Args:
        rows: base runs as rows (`base_rows`), ascending; they come first in the wave.
        keep: which of the parts that not every patch needs to keep.
    """

    def __init__(self, rows: Rows, parts: Parts, trace: Trace, keep: frozenset[str]) -> None:
        self.rows = rows
        self.parts = parts
        self.trace = trace
        self.kept = keep
        self.tokens = 0
        self.length = int(rows.last.max()) + 1
        self.runs = indexed(rows.run, trace.layers[0].pre)
        self.all = len(rows) == len(trace.lengths)
        self._places = self.runs
        self._ends = self.runs
        self._causal: set[int] = set()

    def stand(self, order: Ints, at: Ints, start: Ints) -> None:
        """Learns where the rows stand in the wave: their order, each one's first token and its position."""
        count = len(self.rows)
        row, run = np.empty(count, np.int64), self.rows.run[order]
        row[order] = np.arange(count)
        self.tokens = int((self.rows.last[order] - start + 1).sum())
        where = {int(number): place for place, number in enumerate(run)}
        clean = np.array([where[int(number) & ~1] for number in self.rows.run])
        last = self.rows.last[:, None]
        position = np.minimum(np.arange(self.length), last)
        own = position >= start[row][:, None]
        begin = np.where(own, (at - start)[row][:, None], (at - start)[clean][:, None])
        like = self.trace.layers[0].pre
        self._places = indexed(begin + position, like)
        self._ends = indexed(row, like)

    # -- what is written down

    def attention(
        self, layer: int, module: nn.Module, q: Queries, k: Keys, v: Values, mask: Any, options: Mapping[str, Any]
    ) -> None:
        """Keeps queries, keys and values of packed tokens, and what attention was asked with."""
        seen = self.trace.layers[layer]
        for name, value in (("q", q), ("k", k), ("v", v)):
            gathered = value[0].transpose(0, 1)[self._places].transpose(1, 2)
            setattr(seen, name, self._whole(getattr(seen, name), gathered))
        mask = None if mask is None else mask[:1, :1]
        if mask is None or not self._is_causal(mask):
            raise Unfit("attention is not causal")
        seen.mask, seen.module, seen.options = mask, module, dict(options)

    def _is_causal(self, mask: Tensor) -> bool:
        """Looks at a mask once; most layers share theirs."""
        if mask.data_ptr() not in self._causal and not is_causal(mask):
            return False
        self._causal.add(mask.data_ptr())
        return True

    def keep(self, layer: int, name: str, value: Float[Tensor, "token d"], *, ends: bool) -> None:
        """Keeps a part of the runs, of which the wave's first tokens are given; or their answer positions' alone."""
        if name == "out" and layer == len(self.parts.blocks) - 1:
            self.trace.out = self._joined(self.trace.out, value, ends=ends)
        elif name == "out":
            self.trace.layers[layer + 1].pre = self._joined(self.trace.layers[layer + 1].pre, value, ends=ends)
        elif name in self.kept:
            seen = self.trace.layers[layer]
            setattr(seen, name, self._joined(getattr(seen, name), value, ends=ends))

    def _joined(self, before: Tensor | None, value: Tensor, *, ends: bool) -> Tensor:
        if not ends:
            return self._whole(before, value[self._places])
        last = indexed(self.rows.last, value)
        gathered = value.new_zeros(len(last), self.length, value.shape[-1])
        gathered[torch.arange(len(last), device=value.device), last] = value[self._ends]
        return self._whole(before, gathered)

    def _whole(self, before: Tensor | None, some: Tensor) -> Tensor:
        """Returns a part for all runs of the trace, these ones' written in."""
        if self.all:
            return some
        longest = self.trace.layers[0].pre.shape[1]
        axis = 2 if some.ndim == 4 else 1
        if before is None or not before.numel():
            shape = [*some.shape]
            shape[0], shape[axis] = len(self.trace.lengths), longest
            before = some.new_zeros(shape)
        before.narrow(axis, 0, self.length)[self.runs] = some
        return before
