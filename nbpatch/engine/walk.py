"""The fast exact path: the layers are walked once, rows join where their patch is, base keys and values serve the rest.

Every row is a suffix of a prompt: positions before the patch are as in the base run, so only later ones are computed,
all rows of all lengths packed behind each other as one long sequence [1 token d_model] through the model's own blocks.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from nbpatch.engine.attention import Keys, Queries, Values, all_replaced, attend_as_family, attending
from nbpatch.engine.entries import Tokens, neuron_values, residual_values, vectors, written_values, z_values
from nbpatch.engine.rows import ATTN, PRE, Ints, Rows
from nbpatch.engine.shims import Shim, Stopped, at_positions
from nbpatch.engine.trace import Trace
from nbpatch.errors import PatchNotApplied
from nbpatch.parts import Block, Parts


@dataclass(frozen=True)
class Group:
    """Rows of the same length and the same first position: one rectangle of queries.

    Attributes:
        rows: their place among the wave's dense rows, sorted by the layer they enter in.
        at: their first token in the wave's packed buffer.
    """

    rows: slice
    at: int
    start: int
    size: int


class Walk:
    """One wave on its way through the layers.

    Args:
        bucket: suffixes start at multiples of it: fewer, larger groups for a few positions more.
        watch: look for the first layer that gives something else than numbers.

    Attributes:
        first_nan: that layer, once the walk is done.
    """

    def __init__(self, rows: Rows, parts: Parts, trace: Trace, *, bucket: int, watch: bool = False) -> None:
        self.parts = parts
        self.watch = watch
        self.first_nan: int | None = None
        self.trace = trace
        self.device = trace.out.device
        self.n_layers = len(parts.blocks)
        start = rows.first // bucket * bucket
        order = np.lexsort((rows.enter, start, rows.last))
        self.order = order
        self.rows = rows.take(order)
        self.start = start[order]
        self.enter = self.rows.enter
        self.groups, self.at = _groups(self.rows, self.start, self.enter, self.n_layers)
        d_model = trace.out.shape[-1]
        total = max((group.at + group.size * (group.rows.stop - group.rows.start) for group in self.groups), default=0)
        self.hidden = trace.out.new_empty(total, d_model)
        self.final = trace.out.new_empty(len(rows), d_model)
        self.run = torch.from_numpy(self.rows.run).to(self.device)
        self.flops = 0.0
        self.entered, self.ended = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        self.suffixes: Suffixes

    @torch.no_grad()
    def go(self) -> Float[Tensor, "row d_model"]:
        """Returns every row's last hidden state at its answer position, in the order the rows were given."""
        with attending(self.parts, self._attend):
            for layer in range(int(self.rows.layer.min()), self.n_layers):
                self._join(layer)
                self._step(layer)
        self._join(self.n_layers)
        lost = np.flatnonzero((self.entered != 1) | (self.ended != 1))
        if len(lost):
            missing = f"{len(lost)} of {len(self.rows)} patches did not fire once."
            raise PatchNotApplied(missing, fix='model.engine = "replay"')
        ordered = torch.empty_like(self.final)
        ordered[torch.from_numpy(self.order).to(self.device)] = self.final
        return ordered

    def _attend(
        self, module: nn.Module, q: Queries, k: Keys, v: Values, mask: Any, options: Mapping[str, Any]
    ) -> Tensor:
        return self.suffixes(module, q, k, v, options)

    # -- rows that begin at a block's input

    def _join(self, layer: int) -> None:
        rows = np.flatnonzero((self.rows.kind == PRE) & (self.rows.layer == layer))
        if not len(rows):
            return
        self.entered[rows] += 1
        if layer == self.n_layers:
            self.ended[rows] += 1
            tokens = self._tokens(rows, self.rows.last[rows], self.rows.last[rows])
            self.final[self._index(rows)] = residual_values(self.trace, layer, tokens, self.rows)
            return
        tokens = self._tokens(rows, self.start[rows], self.rows.last[rows])
        self.hidden[self._index(self._places(tokens))] = residual_values(self.trace, layer, tokens, self.rows)

    # -- one block

    def _step(self, layer: int) -> None:
        active = [(group, self._active(group, layer)) for group in self.groups]
        active = [(group, count) for group, count in active if count]
        entries = [np.flatnonzero((self.rows.kind == kind) & (self.rows.layer == layer)) for kind in (1, 2, 3, 4)]
        last = layer == self.n_layers - 1
        if last and any(
            (self.rows.alone[rows] & (self.rows.pos[rows] != self.rows.last[rows])).any() for rows in entries
        ):
            raise PatchNotApplied("nothing reads the last layer there.", fix="the answer position")
        if not active and not any(map(len, entries)):
            return
        spans = [self._span(rows, last=last) for rows in entries]
        for rows in entries:
            self.entered[rows] += 1
        z = z_values(self.trace, layer, spans[0], self.rows) if len(spans[0]) else self.final[:0]
        if last and active:
            ends, z_ends = self._ends(layer, active)
            rows = ends.owner
            spans[0] = Tokens.joined([spans[0], ends])
            z = torch.cat([z, z_ends]) if len(z) else z_ends
            pre = [self._base(layer, spans[0])[: -len(rows)], self.hidden[self._index(self._places(ends))]]
            active = []
        else:
            pre = [self._base(layer, spans[0])]
        out = self._block(layer, active, torch.cat(pre), z, spans)
        self._keep(layer, active, out, spans)

    def _block(
        self, layer: int, active: Sequence[tuple[Group, int]], pre: Tensor, z: Tensor, spans: Sequence[Tokens]
    ) -> Tensor:
        """Runs a block on the dense rows and on all that enters inside it, as one packed sequence."""
        block, seen = self.parts.blocks[layer], self.trace.layers[layer]
        packed = [self.hidden[group.at : group.at + count * group.size] for group, count in active]
        dense = sum(map(len, packed))
        stream, added = self._behind(layer, spans)
        hidden = torch.cat([*packed, pre, stream])
        project: Any = block.project
        heads = project(z[None])[0] if len(z) else pre[:0]
        written = torch.cat([heads, added])
        shims = self._shims(block, dense, len(heads), written, hidden, spans, layer)
        positions = [np.tile(np.arange(group.start, group.start + group.size), count) for group, count in active]
        where = self._index(np.concatenate([*positions, np.empty(0, np.int64)]))
        self.suffixes = Suffixes(self, layer, active)
        self.flops += 2.0 * (dense * block.weights + (len(z) + len(spans[1])) * block.mlp_weights)
        self.flops += 2.0 * len(z) * block.project_weights
        module: Any = block.module
        with all_replaced([(one.module, one) for one in shims]):
            out = module(hidden[None], **at_positions(seen.arguments, where))
        lost = [type(one.module).__name__ for one in shims if one.calls != 1]
        if lost:
            raise PatchNotApplied(f"layer {layer} did not run its {lost[0]} once.", fix='model.engine = "replay"')
        return (out[0] if isinstance(out, tuple) else out)[0]

    def _behind(self, layer: int, spans: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Returns the stream, and what attention adds to it, for tokens that enter behind attention."""
        seen, none = self.trace.layers[layer], self.final[:0]
        patched = (
            written_values(self.trace, layer, spans[ATTN - 1], self.rows) if len(spans[ATTN - 1]) else (none, none)
        )
        later = [span for span in spans[ATTN:] if len(span)]
        streams = [self._base(layer, span) for span in later]
        added = [vectors(seen.attn_out, self.rows.run[span.owner], span.position) for span in later]
        return torch.cat([patched[0], *streams]), torch.cat([patched[1], *added])

    def _shims(
        self,
        block: Block,
        dense: int,
        heads: int,
        written: Tensor,
        hidden: Tensor,
        spans: Sequence[Tokens],
        layer: int,
    ) -> list[Shim]:
        returns, seen = self.trace.returns, self.trace.layers[layer]
        shims = [Shim(block.attention, dense, written, returns[id(block.attention)])]
        if block.attn_out is not block.attention:
            split = dense + heads
            shims.append(Shim(block.attn_out, split, written[heads:], returns[id(block.attn_out)]))
        before = len(hidden) - len(spans[2]) - len(spans[3])
        if len(hidden) == before:
            return shims
        neurons, values = hidden[:0], hidden[:0]
        if len(spans[2]):
            neurons = neuron_values(self.trace, self.parts, layer, spans[2], self.rows)
        if len(spans[3]):
            values = vectors(seen.mlp_out, self.rows.source[spans[3].owner], spans[3].position)
        if block.mlp is not None and block.mlp is not block.mlp_out:
            given = torch.cat([neurons, torch.zeros_like(values)])
            shims.append(Shim(block.mlp, before, given, returns[id(block.mlp)]))
            shims.append(Shim(block.mlp_out, before + len(neurons), values, returns[id(block.mlp_out)]))
        else:
            given = torch.cat([neurons, values])
            shims.append(Shim(block.mlp_out, before, given, returns[id(block.mlp_out)]))
        return shims

    def _ends(self, layer: int, active: Sequence[tuple[Group, int]]) -> tuple[Tokens, Tensor]:
        """Returns z at each dense row's answer position: all that the last layer's attention is needed for."""
        rows = np.concatenate([np.arange(group.rows.start, group.rows.start + count) for group, count in active])
        packed = torch.cat([self.hidden[group.at : group.at + count * group.size] for group, count in active])
        positions = np.concatenate(
            [np.tile(np.arange(group.start, group.start + group.size), count) for group, count in active]
        )
        seen = self.trace.layers[layer]
        self.suffixes = Suffixes(self, layer, active, ends_only=True)
        block = self.parts.blocks[layer]
        self.flops += 2.0 * len(packed) * (block.attention_weights - block.project_weights)
        module: Any = block.module
        with suppress(Stopped):
            module(packed[None], **at_positions(seen.arguments, self._index(positions)))
        return self._tokens(rows, self.rows.last[rows], self.rows.last[rows]), self.suffixes.z

    def _keep(self, layer: int, active: Sequence[tuple[Group, int]], out: Tensor, spans: Sequence[Tokens]) -> None:
        """Puts a block's output where the next layer finds it."""
        if self.watch and self.first_nan is None and not bool(torch.isfinite(out).all()):
            self.first_nan = layer
        done = 0
        for group, count in active:
            size = count * group.size
            self.hidden[group.at : group.at + size] = out[done : done + size]
            done += size
        tokens = Tokens.joined(spans)
        out = out[done:]
        if layer == self.n_layers - 1:
            self.final[self._index(tokens.owner)] = out
            np.add.at(self.ended, tokens.owner, 1)
            return
        if len(tokens):
            self._spread(layer + 1, spans)
            self.hidden[self._index(self._places(tokens))] = out

    def _spread(self, layer: int, spans: Sequence[Tokens]) -> None:
        """Fills rows that become dense at `layer` with the base run; their own tokens are written over it."""
        owners = np.concatenate([span.owner for span in spans])
        rows = np.unique(owners[self.rows.alone[owners]])
        if len(rows):
            tokens = self._tokens(rows, self.start[rows], self.rows.last[rows])
            self.hidden[self._index(self._places(tokens))] = self._base(layer, tokens)

    # -- where things are

    def _active(self, group: Group, layer: int) -> int:
        return int(np.searchsorted(self.enter[group.rows], layer, side="right"))

    def _span(self, rows: Ints, *, last: bool) -> Tokens:
        """Returns the tokens at which rows enter: one position, all from their first on, or the answer's alone."""
        end = self.rows.last[rows]
        alone = self.rows.alone[rows]
        begin = np.where(alone, self.rows.pos[rows], self.start[rows])
        stop = np.where(alone, self.rows.pos[rows], end)
        return self._tokens(rows, end, end) if last else self._tokens(rows, begin, stop)

    def _tokens(self, rows: Ints, begin: Ints, end: Ints) -> Tokens:
        size = end - begin + 1
        owner = np.repeat(rows, size)
        within = np.arange(len(owner)) - np.repeat(size.cumsum() - size, size)
        return Tokens(owner, np.repeat(begin, size) + within)

    def _places(self, tokens: Tokens) -> Ints:
        """Returns where tokens stand in the packed buffer."""
        return self.at[tokens.owner] + tokens.position - self.start[tokens.owner]

    def _base(self, layer: int, tokens: Tokens) -> Float[Tensor, "token d_model"]:
        return self.trace.pre(layer)[self._index(self.rows.run[tokens.owner]), self._index(tokens.position)]

    def _index(self, values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(self.device)


class Suffixes:
    """Attention of packed suffixes: each group's queries against base keys and values and its own."""

    def __init__(self, walk: Walk, layer: int, active: Sequence[tuple[Group, int]], *, ends_only: bool = False) -> None:
        self.walk = walk
        self.seen = walk.trace.layers[layer]
        self.active = active
        self.ends_only = ends_only
        self.z = walk.final[:0]

    def __call__(self, module: nn.Module, q: Queries, k: Keys, v: Values, options: Mapping[str, Any]) -> Tensor:
        """Returns z [1 token head d_head]; with `ends_only`, keeps it for the last positions and leaves the block."""
        done = 0
        found: list[Tensor] = []
        for group, count in self.active:
            size = count * group.size
            own = [rectangles(value[0, :, done : done + size], count) for value in (q, k, v)]
            done += size
            found.append(self._group(module, group, count, own, options))
        if self.ends_only:
            self.z = torch.cat([z[:, 0].flatten(1) for z in found])
            raise Stopped
        return torch.cat([z.flatten(0, 1) for z in found])[None]

    def _group(
        self, module: nn.Module, group: Group, count: int, own: Sequence[Tensor], options: Mapping[str, Any]
    ) -> Tensor:
        runs = self.walk.run[group.rows][:count]
        q, k, v = own
        if group.start:
            k = torch.cat([self.seen.k[:, :, : group.start][runs], k], dim=2)
            v = torch.cat([self.seen.v[:, :, : group.start][runs], v], dim=2)
        n = group.start + group.size
        mask = self.seen.mask[..., group.start : n, :n]
        if self.ends_only:
            q, mask = q[:, :, -1:], mask[..., -1:, :]
        return attend_as_family(module, q, k, v, mask, options)


def rectangles(value: Float[Tensor, "head token d_head"], count: int) -> Float[Tensor, "row head pos d_head"]:
    """Returns packed tokens as rows [row head pos d_head]."""
    heads, tokens, d_head = value.shape
    return value.reshape(heads, count, tokens // count, d_head).transpose(0, 1)


def _groups(rows: Rows, start: Ints, enter: Ints, n_layers: int) -> tuple[list[Group], Ints]:
    """Returns the rectangles of sorted rows, and where each row begins in the packed buffer."""
    size = rows.last - start + 1
    dense = enter < n_layers
    at = np.where(dense, size, 0).cumsum() - np.where(dense, size, 0)
    changes = np.flatnonzero((np.diff(start) != 0) | (np.diff(rows.last) != 0)) + 1
    groups: list[Group] = []
    for begin, end in zip([0, *changes], [*changes, len(rows)], strict=True):
        count = int(dense[begin:end].sum())
        if count:
            groups.append(
                Group(slice(int(begin), int(begin) + count), int(at[begin]), int(start[begin]), int(size[begin]))
            )
    return groups, at
