"""Rows that start together, taken through the blocks behind their base runs' keys and values."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbpatch.engine.inline import CACHE, Bases, Inline, cached, called_with, filled, of_first, shown
from nbpatch.engine.rows import COMPONENT_NAMES, WHOLE, Ints, Rows
from nbpatch.engine.shims import Stopped
from nbpatch.engine.stopping import Halted, never
from nbpatch.errors import PatchNotApplied

Arguments = Mapping[str, Any]

_STREAM = ("resid_pre", "resid_post")
_HEADS, _NEURONS = (COMPONENT_NAMES.index(name) for name in ("z", "mlp_post"))


@dataclass(frozen=True)
class Patches:
    """Where rows are patched in one component of one layer, and with the values of which runs.

    Attributes:
        row: which of the rows, in the order they join; pos: at which position; run: where the value is.
        unit: which head or neuron; None for the whole vector. units: how many there are.
    """

    component: str
    row: Int[Tensor, "spot"]
    pos: Int[Tensor, "spot"]
    run: Int[Tensor, "spot"]
    unit: Int[Tensor, "spot"] | None
    units: int

    def behind(self, start: int) -> "Patches":
        """Returns the spots from a position on."""
        later = self.pos >= start
        unit = None if self.unit is None else self.unit[later]
        return Patches(self.component, self.row[later], self.pos[later], self.run[later], unit, self.units)

    def write(self, value: Tensor, source: Float[Tensor, "run all width"], start: int) -> None:
        """Writes what other runs have over what the rows have, in place.

        Args:
            value: all rows that have joined, from position `start` on [row pos width].
            source: what all runs have, at all positions.
        """
        if self.unit is None:
            value[self.row, self.pos - start] = source[self.run, self.pos]
        else:
            mine, theirs = (one.unflatten(-1, (self.units, -1)) for one in (value, source))
            mine[self.row, self.pos - start, self.unit] = theirs[self.run, self.pos, self.unit]


class Steps:
    """Rows of prompts of one length, begun at one position and taken through the blocks together.

    Each joins at the block its patch is in, with its base run's stream. Of the last block only the answer position is
    computed to its end: the others give keys and values and stop there.

    Args:
        rows: none of them changes anything before `start`.
        last: what the blocks are called with at the answer position alone, for as many rows or more; made if None.
        halt: looked at before every block.

    Attributes:
        flops: operations in matrices, once the rows have gone.
    """

    def __init__(
        self,
        rows: Rows,
        base: Bases,
        start: int,
        inline: Inline,
        *,
        last: Sequence[Arguments] | None = None,
        halt: Callable[[], bool] = never,
    ) -> None:
        split = np.where(rows.component == _HEADS, rows.head, WHOLE)
        split = np.where(rows.component == _NEURONS, rows.neuron, split)
        self.order = np.lexsort((split == WHOLE, rows.component, rows.layer))
        self.rows = rows.take(self.order)
        self.base = base
        self.start = start
        self.inline = inline
        self.last = last
        self.halt = halt
        self.runs = base.at(self.rows.run)
        self.spots = self._spots(split[self.order])
        self.flops = 0.0

    def _spots(self, split: Ints) -> dict[int, list[Patches]]:
        """Returns by layer what is patched there; sorted as they are, rows patched alike are a slice."""
        rows = self.rows
        count = np.where(rows.pos == WHOLE, self.base.length - self.start, 1)
        ends = count.cumsum()
        owner = np.repeat(np.arange(len(rows)), count)
        position = self.start + np.arange(len(owner)) - (ends - count)[owner]
        position = np.where(rows.pos[owner] == WHOLE, position, rows.pos[owner])
        row, pos, unit = (torch.from_numpy(one).to(self.runs.device) for one in (owner, position, split[owner]))
        run = self.base.at(rows.source[owner])
        apart = (np.diff(rows.layer) != 0) | (np.diff(rows.component) != 0) | np.diff(split == WHOLE)
        cuts = [0, *(np.flatnonzero(apart) + 1), len(rows)]
        found: dict[int, list[Patches]] = {}
        for begin, end in pairwise(cuts):
            here = slice(int(ends[begin] - count[begin]), int(ends[end - 1]))
            name, layer = COMPONENT_NAMES[rows.component[begin]], int(rows.layer[begin])
            part = None if split[begin] == WHOLE else unit[here]
            units = self.inline.heads if name == "z" else self._source(name, layer).shape[-1]
            found.setdefault(layer, []).append(Patches(name, row[here], pos[here], run[here], part, units))
        return found

    def _source(self, name: str, layer: int) -> Float[Tensor, "run pos width"]:
        """Returns what the base runs have in a component; of the stream, what goes into the layer."""
        return self.base.streams[layer] if name in _STREAM else self.base.sites[name, layer]

    @torch.no_grad()
    def go(self) -> Float[Tensor, "row d_model"]:
        """Returns the last hidden state of each row, at the answer position.

        Raises:
            PatchNotApplied: a patch did not fire exactly once.
            Halted: the run is to stop.
        """
        layers, depth, start = self.rows.layer, len(self.inline.parts.blocks), self.start
        given = self._called_with(start) if layers[0] < depth else []
        stream = self.base.streams[0][:0, start:]
        for layer in range(int(layers[0]), depth + 1):
            if self.halt():
                raise Halted
            stream = self._joined(stream, layer, start)
            if layer == depth:
                break
            cache = self._cache(layer, len(stream))
            if layer == depth - 1 and start < self.base.length - 1:
                self._cache_keys(layer, stream, given[layer], cache)
                start = self.base.length - 1
                stream, given = stream[:, -1:], self.last or self._called_with(start)
            stream = self._through(layer, stream, given[layer], cache)
        ends = torch.empty_like(stream[:, -1])
        ends[torch.from_numpy(self.order).to(ends.device)] = stream[:, -1]
        return ends

    def _called_with(self, start: int) -> list[dict[str, Any]]:
        inline = self.inline
        return called_with(inline.parts, inline.returns, self.base, rows=len(self.rows), start=start)

    def _joined(self, stream: Tensor, layer: int, start: int) -> Tensor:
        """Returns the stream with the rows that join in front of a block, patched where their patch is there."""
        inside = slice(len(stream), int(np.searchsorted(self.rows.layer, layer, side="right")))
        if inside.stop > inside.start:
            joining = self.base.streams[layer][:, start - self.base.length :][self.runs[inside]]
            stream = torch.cat([stream, joining]) if len(stream) else joining
        for spots in self._at(layer, start):
            if spots.component in _STREAM:
                spots.write(stream, self.base.streams[layer], start)
        return stream

    def _at(self, layer: int, start: int) -> list[Patches]:
        """Returns what is patched in a layer, from a position on."""
        found = self.spots.get(layer, [])
        return found if start == self.start else [spots.behind(start) for spots in found]

    def _cache(self, layer: int, rows: int) -> Any:
        """Returns a cache with the base runs' keys and values in front of some rows."""
        before = (one[layer][:, :, : self.start][self.runs[:rows]] for one in (self.base.keys, self.base.values))
        return filled(layer, *before)

    def _arguments(self, layer: int, rows: int, given: Arguments, cache: Any) -> dict[str, Any]:
        shares = self.inline.shares[layer]
        return {name: cache if value is CACHE else of_first(value, shares[name], rows) for name, value in given.items()}

    def _cache_keys(self, layer: int, stream: Tensor, given: Arguments, cache: Any) -> None:
        """Lets a block put the keys and values of all positions but the last into the cache."""
        block = self.inline.parts.blocks[layer]
        with suppress(Stopped), _stopping(block.project):
            block.module(stream, **self._arguments(layer, len(stream), given, cache))
        cache.crop(-1)
        self.flops += 2.0 * block.attention_weights * stream.shape[:2].numel()

    def _through(self, layer: int, stream: Tensor, given: Arguments, cache: Any) -> Tensor:
        """Returns what a block makes of a stream, patched inside the block where rows have joined for that."""
        block, rows, start = self.inline.parts.blocks[layer], len(stream), self.base.length - stream.shape[1]
        inner = [spots for spots in self._at(layer, start) if spots.component not in _STREAM]
        fired = dict.fromkeys((spots.component for spots in inner), 0)

        def writer(name: str) -> Callable[[Tensor], None]:
            def write(value: Tensor) -> None:
                fired[name] += 1
                source = self._source(name, layer)
                if value.numel() != stream.shape[:2].numel() * source.shape[-1]:
                    raise _misfit(name, layer, f"shape {list(value.shape)}, planned {rows} rows × {stream.shape[1]}")
                for spots in inner:
                    if spots.component == name:
                        spots.write(value.view(rows, stream.shape[1], -1), source, start)

            return write

        with ExitStack() as stack:
            for name in fired:
                stack.enter_context(shown(block, name, writer(name)))
            made = block.module(stream, **self._arguments(layer, rows, given, cache))
        for name, times in fired.items():
            if times != 1:
                raise _misfit(name, layer, f"fired {times} times, planned 1")
        if cached(cache, layer) != self.base.length:
            raise _misfit("the cache", layer, f"{cached(cache, layer)} positions, planned {self.base.length}")
        self.flops += 2.0 * block.weights * stream.shape[:2].numel()
        return made[0] if isinstance(made, tuple) else made


@contextmanager
def _stopping(module: nn.Module) -> Generator[None]:
    """Leaves the block when it comes to a part of its own."""

    def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
        raise Stopped

    handle = module.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def _misfit(what: str, layer: int, seen: str) -> PatchNotApplied:
    return PatchNotApplied(
        f"{what} was not patched as planned in layer {layer}.",
        where=f"{what}[{layer}]",
        seen=seen,
        fix='model.engine = "replay"',
    )
