"""Exact edges: a receiver's own copy of its input takes one sender's change, and what it then puts out flows on.

All senders of a run are stacked as packed rows behind the receiver's block: one call, stopped at attention, gives the
queries, keys or values of all heads for all of them. What comes out is handed to the ordinary walk as further runs
that a patch can take its values from.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nbpatch.engine.additive import scales_of
from nbpatch.engine.attention import attend_as_family
from nbpatch.engine.base import BaseRuns
from nbpatch.engine.edge_plan import EdgePlan, edge_rows
from nbpatch.engine.entries import Tokens, indexed, present, vectors
from nbpatch.engine.frontier import Frontier, room_for
from nbpatch.engine.memory import Room
from nbpatch.engine.packing import rectangles
from nbpatch.engine.receivers import mlp_output, projected
from nbpatch.engine.rows import Ints, Rows, waves
from nbpatch.engine.table import Filled
from nbpatch.engine.trace import Layer, Trace
from nbpatch.errors import SiteError
from nbpatch.model import Model
from nbpatch.parts import Parts
from nbpatch.plan import Plan

_NEEDED = {
    "q": {"z"}, "k": {"z"}, "v": {"z"}, "mlp": {"attn_out", "mlp_out"}, "logits": set[str](),
    "z": {"z", "attn_out", "mlp_out"}, "mlp_out": {"attn_out", "mlp_out"}, "embed": set[str](),
}  # fmt: skip

_ROOM = 4
"""Positions that the changed outputs of a wave may take up, as a multiple of its tokens."""


class Edges(Frontier):
    """The engine for a sweep over edges.

    Raises:
        SiteError: what a sender adds to the residual stream is not known exactly in this model.
        PlanError: the memory budget does not hold a single row.
    """

    def __init__(self, plan: EdgePlan, model: Model, parts: Parts) -> None:
        self.plan = plan
        super().__init__([plan], model, parts, {})
        self.scales: Sequence[float] = ()

    @property
    def _kept(self) -> frozenset[str]:
        return frozenset(_NEEDED[self.plan.senders] | _NEEDED[self.plan.receivers])

    def _room_for(self, plans: Sequence[Plan]) -> Room:
        return room_for(plans, self.model, self._kept)

    def trace(self, *, alone: bool = False) -> BaseRuns:
        """Runs every prompt once, in passes of their own: senders' changes are needed at all positions."""
        self.scales, why = scales_of(self.model, self.parts, self.plan.senders)
        if why:
            raise _refused(self.plan.senders, why)
        self.traced = self._trace_apart(self._kept)
        return self._based_on(self.traced.logits.float().cpu())

    def waves(self) -> Iterator[Callable[[], Iterator[tuple[int, Filled]]]]:
        """Yields what makes the runs of one wave; rows of which the answer position is all that is left go apart."""
        rows = edge_rows(self.plan)
        ends = rows.layer >= self.plan.shape.n_layers - 1
        for some in (rows.take(ends), rows.take(~ends)):
            for wave in waves(some, max_tokens=self._room(some), together=self._together()):
                yield lambda wave=wave: self._run(wave)

    def _room(self, rows: Rows) -> int:
        """Returns the tokens of one wave, fewer where its changed outputs, of all positions, would take too much."""
        if not len(rows):
            return self.max_tokens
        longest = int(rows.last.max()) + 1
        shared = self.plan.shape.n_heads if self.plan.receivers in ("q", "k", "v") and rows.head[0] >= 0 else 1
        return max(1, min(self.max_tokens, self.max_tokens * _ROOM * shared * int(rows.tokens.min()) // longest))

    def _run(self, wave: Rows, hidden: Tensor | None = None) -> Iterator[tuple[int, Filled]]:
        traced = self.traced
        if traced is None:
            raise LookupError("the base runs come first")
        with self.model.lock:
            try:
                rows, self.traced = self._carried(wave, traced)
                yield from super()._run(rows, hidden)
            finally:
                self.traced = traced

    @torch.no_grad()
    def _carried(self, wave: Rows, traced: Trace) -> tuple[Rows, Trace]:
        """Returns the rows and a trace in which what they enter with stands as further runs."""
        axes = self.plan.axes_of(wave.cell)
        absent = np.full(len(wave), -1)
        unit = absent if (wave.head >= 0).all() else axes.get("head", absent)
        sender = [axes.get(axis, absent) for axis in ("sender_layer", "sender_head")]
        columns = np.stack([wave.layer, wave.run, *sender, unit])
        distinct, which = np.unique(columns, axis=1, return_inverse=True)
        number = np.empty(distinct.shape[1], np.int64)
        reader = _Reader(self.plan, self.parts, traced, self.scales)
        carrying = traced
        for layer in np.unique(distinct[0]):
            chosen = np.flatnonzero(distinct[0] == layer)
            number[chosen] = len(traced.lengths) + np.arange(len(chosen))
            carrying = reader.carry(int(layer), distinct[1:, chosen], carrying)
        self.flops += reader.flops
        return replace(wave, source=number[which.ravel()]), carrying


@dataclass(frozen=True)
class Copies:
    """Receivers' own copies of the residual stream, one for each run and sender, sorted by run.

    Attributes:
        run: the base run; sender_layer, sender_head: whose change is added, −1 where there is no such axis.
        first: the first position that changes, or that is read; last: the answer position.
    """

    run: Ints
    sender_layer: Ints
    sender_head: Ints
    first: Ints
    last: Ints

    def tokens(self) -> Tokens:
        """Returns every position of every copy, in their order."""
        size = self.last - self.first + 1
        owner = np.repeat(np.arange(len(size)), size)
        within = np.arange(len(owner)) - np.repeat(size.cumsum() - size, size)
        return Tokens(owner, self.first[owner] + within)


class _Reader:
    """What receivers put out when their own copy of the stream takes a sender's change."""

    def __init__(self, plan: EdgePlan, parts: Parts, traced: Trace, scales: Sequence[float]) -> None:
        self.plan = plan
        self.parts = parts
        self.trace = traced
        self.scales = scales
        self.n_layers = len(parts.blocks)
        self.flops = 0.0

    def carry(self, layer: int, columns: Ints, carrying: Trace) -> Trace:
        """Returns a trace with one more run for each column (run, sender layer, sender head, key-value head)."""
        distinct, which = np.unique(columns[:3], axis=1, return_inverse=True)
        copies = self._copies(layer, distinct)
        if layer == self.n_layers:
            return self._behind(carrying, self._stream(layer, copies))
        seen = carrying.layers[layer]
        if self.plan.receivers == "mlp":
            changed = replace(seen, mlp_out=torch.cat([present(seen.mlp_out), self._mlp(layer, copies)]))
        else:
            z = self._heads(layer, copies)
            if columns[3].max(initial=-1) >= 0:
                z = _of_one_group(seen, z, distinct[0], which.ravel(), columns[3])
            changed = replace(seen, z=torch.cat([present(seen.z), z]))
        layers = [changed if number == layer else one for number, one in enumerate(carrying.layers)]
        return replace(carrying, layers=layers)

    def _behind(self, carrying: Trace, streams: Float[Tensor, "copy pos d_model"]) -> Trace:
        """Returns a trace with further last hidden states; nothing reads the lengths and logits of such runs."""
        out = torch.cat([carrying.out, streams])
        lengths = torch.cat([carrying.lengths, carrying.lengths.new_zeros(len(streams))])
        return replace(carrying, out=out, lengths=lengths, logits=carrying.logits[:1].expand(len(out), -1))

    def _copies(self, layer: int, columns: Ints) -> Copies:
        run, sender_layer, sender_head = columns
        pairs = self.plan.tokenized
        last = np.array([one.clean_end for one in pairs])[run // 2]
        first = np.array([one.first_difference or 0 for one in pairs])[run // 2]
        ends = layer >= self.n_layers - 1 and self.plan.receivers not in ("k", "v")
        return Copies(run, sender_layer, sender_head, last if ends else first, last)

    # -- what a sender adds

    def _changes(self, copies: Copies, tokens: Tokens) -> Float[Tensor, "token d_model"]:
        """Returns what each token's sender adds to the stream in the source run beyond what it adds in the base run."""
        if self.plan.senders == "embed":
            return self._apart(self.trace.pre(0), copies, tokens)
        changes = self.trace.out.new_zeros(len(tokens), self.trace.out.shape[-1])
        for layer in np.unique(copies.sender_layer):
            chosen = np.flatnonzero(copies.sender_layer[tokens.owner] == layer)
            some, seen = tokens.of(chosen), self.trace.layers[layer]
            if self.plan.senders == "z":
                apart = self._apart(present(seen.z), copies, some)
                written = self._written(int(layer), apart, copies.sender_head[some.owner])
            else:
                written = self._apart(present(seen.mlp_out), copies, some)
            changes[indexed(chosen, changes)] = self.scales[layer] * written
        return changes

    def _apart(self, values: Tensor, copies: Copies, tokens: Tokens) -> Float[Tensor, "token d"]:
        run = copies.run[tokens.owner]
        return vectors(values, run ^ 1, tokens.position) - vectors(values, run, tokens.position)

    def _written(self, layer: int, z: Float[Tensor, "token d_z"], head: Ints) -> Float[Tensor, "token d_model"]:
        """Returns what the output projection makes of one head's part of z, its bias left out."""
        block, heads = self.parts.blocks[layer], self.trace.layers[layer].q.shape[1]
        mine = torch.arange(heads, device=z.device) == indexed(head, z)[:, None]
        only = (z.view(len(z), heads, -1) * mine[:, :, None]).flatten(1)
        project: Any = block.project
        self.flops += 2.0 * len(z) * block.project_weights
        return project(only[None])[0] - project(torch.zeros_like(only[:1])[None])[0]

    # -- what a receiver makes of it

    def _input(self, layer: int, copies: Copies, tokens: Tokens) -> Float[Tensor, "token d_model"]:
        base = vectors(self.trace.pre(layer), copies.run[tokens.owner], tokens.position)
        return base + self._changes(copies, tokens)

    def _stream(self, layer: int, copies: Copies) -> Float[Tensor, "copy pos d_model"]:
        tokens = copies.tokens()
        return _written_over(self.trace.pre(layer), copies, tokens, self._input(layer, copies, tokens))

    def _mlp(self, layer: int, copies: Copies) -> Float[Tensor, "copy pos d_model"]:
        """Returns `mlp_out` with the changed input: the block itself, attention writing what it wrote in the base run.

        Raises:
            PatchNotApplied: the block did not run its MLP, or ran it without what attention wrote.
        """
        block, seen, tokens = self.parts.blocks[layer], self.trace.layers[layer], copies.tokens()
        wrote = vectors(seen.attn_out, copies.run[tokens.owner], tokens.position)
        hidden = self._input(layer, copies, tokens)
        changed = mlp_output(self.parts, self.trace, layer, hidden, wrote, tokens.position)
        self.flops += 2.0 * len(tokens) * block.mlp_weights
        return _written_over(present(seen.mlp_out), copies, tokens, changed)

    def _heads(self, layer: int, copies: Copies) -> Float[Tensor, "copy pos d_z"]:
        """Returns z of all heads, each with its own query, key or value from the changed input."""
        seen, tokens = self.trace.layers[layer], copies.tokens()
        own = self._projected(layer, self._input(layer, copies, tokens), tokens)
        z = vectors_of_runs(present(seen.z), copies.run)
        sizes = copies.last - copies.first + 1
        for run in np.unique(copies.run):
            mine = np.flatnonzero(copies.run == run)
            first, n = int(copies.first[mine[0]]), int(copies.last[mine[0]]) + 1
            at = int(sizes[: mine[0]].sum())
            part = rectangles(own[0, :, at : at + len(mine) * (n - first)], len(mine))
            dest = n - 1 if layer == self.n_layers - 1 else first
            z[mine[0] : mine[-1] + 1, dest:n] = self._attended(seen, part, int(run), dest, n)
        return z

    def _projected(self, layer: int, hidden: Tensor, tokens: Tokens) -> Float[Tensor, "1 head token d"]:
        """Returns the queries, keys or values of packed tokens."""
        block = self.parts.blocks[layer]
        self.flops += 2.0 * len(tokens) * (block.attention_weights - block.project_weights)
        asked = projected(self.parts, self.trace, layer, hidden, tokens.position)
        return asked["qkv".index(self.plan.receivers)][None]

    def _attended(
        self, seen: Layer, own: Float[Tensor, "copy head pos d"], run: int, dest: int, n: int
    ) -> Float[Tensor, "copy dest d_z"]:
        """Returns z of one run's copies at positions `dest` … n − 1; what is not the receiver's is the base run's."""
        name, copies = self.plan.receivers, len(own)
        parts = {"q": seen.q[run, :, dest:n], "k": seen.k[run, :, :n], "v": seen.v[run, :, :n]}
        values = {key: value.expand(copies, *value.shape) for key, value in parts.items()}
        before = values[name][:, :, : values[name].shape[2] - own.shape[2]]
        values[name] = torch.cat([before, own], dim=2)
        mask = seen.mask[..., dest:n, :n]
        return attend_as_family(seen.module, values["q"], values["k"], values["v"], mask, seen.options).flatten(2)


def _written_over(values: Tensor, copies: Copies, tokens: Tokens, changed: Tensor) -> Float[Tensor, "copy pos d"]:
    """Returns the copies' base values with `changed` at their tokens."""
    whole = vectors_of_runs(values, copies.run)
    whole[indexed(tokens.owner, whole), indexed(tokens.position, whole)] = changed.to(whole.dtype)
    return whole


def _of_one_group(seen: Layer, z: Tensor, runs: Ints, which: Ints, kv_head: Ints) -> Float[Tensor, "row pos d_z"]:
    """Returns z as the base run's but for the query heads that share one key-value head."""
    heads, shared = seen.q.shape[1], seen.k.shape[1]
    changed = z[indexed(which, z)].unflatten(-1, (heads, -1))
    base = vectors_of_runs(present(seen.z), runs[which]).unflatten(-1, (heads, -1))
    mine = torch.arange(heads, device=z.device) // (heads // shared) == indexed(kv_head, z)[:, None]
    return torch.where(mine[:, None, :, None], changed, base).flatten(2)


def vectors_of_runs(values: Float[Tensor, "run pos d"], runs: Ints) -> Float[Tensor, "copy pos d"]:
    """Returns a copy of some runs' values, all positions."""
    return values[indexed(runs, values)]


def _refused(senders: str, why: str) -> SiteError:
    return SiteError(
        f"what {senders} adds to the residual stream is not known exactly in this model.",
        where="senders",
        seen=why,
        fix='senders="mlp_out" or "embed"' if senders == "z" else 'senders="embed"',
    )
