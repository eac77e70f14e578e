"""Path patching: what some parts write differently reaches others along the residual stream, all else kept as it was.

Frozen runs first, one for each set of senders: the change of the stream, layer by layer, as the receivers see it. Then
the patched runs: what the receivers make of it is written into the base run and flows on; in the treeified model it
reaches the logits alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nbpatch.engine.additive import Additive
from nbpatch.engine.attention import attend_as_family
from nbpatch.engine.base import BaseRuns
from nbpatch.engine.entries import present
from nbpatch.engine.frontier import Frontier, room_for
from nbpatch.engine.memory import Room
from nbpatch.engine.owners import matrix_of
from nbpatch.engine.path_plan import End, Ends, PathPlan, Ways, writers
from nbpatch.engine.receivers import mlp_output, projected
from nbpatch.engine.rows import NOWHERE, PRE, WHOLE, Ints, Rows
from nbpatch.engine.table import Filled
from nbpatch.engine.trace import Trace
from nbpatch.engine.walk import Walk
from nbpatch.joint import Write
from nbpatch.model import Model
from nbpatch.parts import Parts
from nbpatch.plan import NOT_RUN, Plan

_KEPT = frozenset({"z", "attn_out", "mlp_out"})

_FROZEN = 256
"""Frozen runs that go together."""

Writes: TypeAlias = dict[tuple[str, int], tuple[Tensor, Tensor]]
"""By sender's kind and layer: the frozen runs in which it writes something else, and what [row pos d_model]."""


class Paths(Frontier):
    """The engine for a sweep over paths.

    Raises:
        PlanError: the memory budget does not hold a single row.
    """

    def __init__(self, plan: PathPlan, ways: Ways, model: Model, parts: Parts, additive: Additive) -> None:
        self.plan = plan
        self.ways = ways
        self.additive = additive
        super().__init__([plan], model, parts, {})
        self.joints = [_written(one) for one in ways.last]

    def _room_for(self, plans: Sequence[Plan]) -> Room:
        return room_for(plans, self.model, _KEPT)

    def trace(self, *, alone: bool = False) -> BaseRuns:
        """Runs every prompt once, in passes of their own: frozen runs need all positions of all layers."""
        self.traced = self._trace_apart(_KEPT)
        return self._based_on(self.traced.logits.float().cpu())

    def waves(self) -> Iterator[Callable[[], Iterator[tuple[int, Filled]]]]:
        """Yields what makes the runs of one wave: those of one frozen run stand together."""
        rows = self._rows()
        if not len(rows):
            return
        together = self._together()
        frozen = np.unique(self._frozen_of(rows), axis=1, return_inverse=True)[1].ravel()
        order = np.lexsort((rows.cell, frozen)) if not together else np.argsort(rows.cell, kind="stable")
        rows, frozen = rows.take(order), frozen[order]
        step = max(1, self.max_tokens // int(rows.tokens.max()))
        step = max(together, step // together * together) if together else step
        begin = 0
        while begin < len(rows):
            new = np.cumsum(np.append(False, np.diff(frozen[begin : begin + step]) != 0)) if not together else None
            size = step if new is None else int(np.searchsorted(new, _FROZEN))
            wave = rows.take(slice(begin, begin + max(1, size)))
            yield lambda wave=wave: self._run(wave)
            begin += max(1, size)

    def _rows(self) -> Rows:
        cell = np.flatnonzero(self.plan.states == NOT_RUN)
        places = self.plan.places(cell)
        pair, last = places["pair"], places["last"]
        run = 2 * pair + np.array([one == "denoising" for one in self.plan.directions])[places["direction"]]
        whole = np.full(len(cell), WHOLE)
        starts = np.array([min((one.layer for one in ends if one.layer >= 0), default=0) for ends in self.ways.last])
        return Rows(
            plan=np.zeros(len(cell), np.int64),
            cell=cell,
            component=np.zeros(len(cell), np.int64),
            kind=np.full(len(cell), PRE),
            layer=starts[last],
            run=run,
            source=run ^ 1,
            pos=np.full(len(cell), NOWHERE),
            first=np.array([one.first_difference or 0 for one in self.plan.tokenized])[pair],
            last=np.array([one.clean_end for one in self.plan.tokenized])[pair],
            alone=np.zeros(len(cell), np.bool_),
            head=whole,
            neuron=whole,
            src=whole,
            joint=last,
        )

    def _frozen_of(self, rows: Rows) -> Ints:
        """Returns the columns (run, set of senders) that say which frozen run a row needs."""
        return np.stack([rows.run, self.plan.places(rows.cell)["sender"]])

    def _run(self, wave: Rows, hidden: Tensor | None = None) -> Iterator[tuple[int, Filled]]:
        traced = self.traced
        if traced is None:
            raise LookupError("the base runs come first")
        with self.model.lock:
            try:
                columns, which = np.unique(self._frozen_of(wave), axis=1, return_inverse=True)
                frozen = Frozen(self.plan, self.parts, traced, self.additive, columns[0])
                received = frozen.run(self.ways, columns[1])
                if self.plan.variant == "tree":
                    ends = received.behind(wave, which.ravel(), self.ways.last)
                    carrying = traced
                    hidden = received.base_ends(wave) + ends
                else:
                    carrying = received.carried()
                    wave = replace(wave, source=len(traced.lengths) + which.ravel())
                    hidden = self._walked(wave, carrying, received, which.ravel())
                self.flops += frozen.flops
                self.traced = carrying
                yield from super()._run(wave, hidden)
            finally:
                self.traced = traced

    def _walked(self, wave: Rows, carrying: Trace, received: "Received", which: Ints) -> Float[Tensor, "row d_model"]:
        """Returns the last hidden states of patched runs: the walk's, and what reaches the logits' own copy."""
        hidden = received.base_ends(wave)
        inside = np.array([bool(one) for one in self.joints])[wave.joint]
        if inside.any():
            some = np.flatnonzero(inside)
            walk = Walk(wave.take(some), self.parts, carrying, self.joints, bucket=self._bucket(), halt=self.halt)
            hidden[torch.from_numpy(some).to(hidden.device)] = walk.go()
            self.flops += walk.flops
        logits = np.array([End("logits") in one for one in self.ways.last])[wave.joint]
        if logits.any():
            some = torch.from_numpy(np.flatnonzero(logits)).to(hidden.device)
            hidden[some] += received.into_logits(wave.take(np.flatnonzero(logits)), which[logits])
        return hidden


def _written(receivers: Ends) -> tuple[Write, ...]:
    """Returns what is written into a run for some receivers; nothing for the logits, whose copy is added to."""
    names = {"mlp": "mlp_out"}
    return tuple(Write(names.get(one.kind, one.kind), one.layer, one.head) for one in receivers if one.layer >= 0)


class Frozen:
    """Base runs in which senders write something else and all heads but theirs put out what they did.

    Args:
        runs: the base run of each.

    Attributes:
        live: which positions can change, and are of the prompt [row pos].
    """

    def __init__(self, plan: PathPlan, parts: Parts, traced: Trace, additive: Additive, runs: Ints) -> None:
        self.plan = plan
        self.parts = parts
        self.traced = traced
        self.additive = additive
        self.runs = torch.from_numpy(runs).to(traced.out.device)
        pairs = [plan.tokenized[run // 2] for run in runs]
        position = np.arange(traced.out.shape[1])
        first = np.array([one.first_difference or 0 for one in pairs])[:, None]
        last = np.array([one.clean_end for one in pairs])[:, None]
        self.live = torch.from_numpy((position >= first) & (position <= last)).to(self.runs.device)
        self.n_layers = len(parts.blocks)
        self.flops = 0.0

    @torch.no_grad()
    def run(self, ways: Ways, senders: Ints) -> "Received":
        """Returns what the last receivers read, with the sets of senders that each frozen run has."""
        writes = self._sent([ways.senders[number] for number in senders])
        for stage in ways.stages:
            streams = self._flow(writes, stage)
            writes = self._written(stage, streams)
        every = tuple(dict.fromkeys(end for ends in ways.last for end in ends))
        return Received(self, every, self._flow(writes, every))

    def values(self, values: Float[Tensor, "run pos d"], rows: Tensor, *, source: bool = False) -> Tensor:
        """Returns what base, or source, runs hold in some frozen runs [row pos d]."""
        return values[self.runs[rows] ^ 1 if source else self.runs[rows]]

    def matrix(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """Returns what a layer's heads write with, its factor included."""
        z = present(self.traced.layers[layer].z)
        whole = matrix_of(self.parts.blocks[layer].project, z.shape[-1], z)
        return self.additive.z[layer] * whole.unflatten(0, (self.plan.shape.n_heads, -1))

    # -- senders

    def _sent(self, senders: Sequence[Ends]) -> Writes:
        """Returns what each frozen run's senders write in the source run beyond the base run."""
        rows_of: dict[End, list[int]] = {}
        for row, ends in enumerate(senders):
            for end in ends:
                rows_of.setdefault(end, []).append(row)
        writes: Writes = {}
        for end, numbers in rows_of.items():
            rows = torch.tensor(numbers, device=self.runs.device)
            self._add(writes, end, rows, self._apart(end, rows))
        return writes

    def _apart(self, end: End, rows: Tensor) -> Float[Tensor, "row pos d_model"]:
        seen = self.traced.layers[max(end.layer, 0)]
        kept = {"embed": seen.pre, "mlp_out": seen.mlp_out, "z": seen.z}[end.kind]
        apart = self.values(present(kept), rows, source=True) - self.values(present(kept), rows)
        if end.kind == "z":
            return apart.unflatten(-1, (self.plan.shape.n_heads, -1))[:, :, end.head] @ self.matrix(end.layer)[end.head]
        return apart if end.kind == "embed" else self.additive.mlp_out[end.layer] * apart

    def _add(self, writes: Writes, end: End, rows: Tensor, change: Tensor) -> None:
        """Adds what one sender writes to what others of its kind and layer do."""
        whole = self.live.new_zeros(len(self.runs), dtype=torch.bool), self._nothing()
        if (end.kind, end.layer) in writes:
            whole = writes[end.kind, end.layer]
        whole[0][rows] = True
        whole[1][rows] += change * self.live[rows][..., None]
        writes[end.kind, end.layer] = whole

    def _nothing(self) -> Float[Tensor, "row pos d_model"]:
        return self.traced.out.new_zeros(*self.live.shape, self.traced.out.shape[-1])

    # -- between senders and receivers

    def _flow(self, writes: Writes, receivers: Ends) -> Mapping[tuple[str, int], Tensor]:
        """Returns the change of the stream that each of some receivers reads [row pos d_model], by kind and layer."""
        wanted = {("mlp" if one.kind == "mlp" else "heads", one.layer) for one in receivers if one.layer >= 0}
        logits = any(one.kind == "logits" for one in receivers)
        layers = self.n_layers if logits else 1 + max(layer for _, layer in wanted)
        change, found = self._nothing(), dict[tuple[str, int], Tensor]()
        active = self.live.new_zeros(len(self.runs), dtype=torch.bool)
        for kind, layer in (("embed", -1), *(pair for at in range(layers) for pair in (("z", at), ("mlp_out", at)))):
            if kind == "z" and ("heads", layer) in wanted:
                found["heads", layer] = change.clone()
            before = change
            given = writes.get((kind, layer))
            if kind == "mlp_out":
                if ("mlp", layer) in wanted:
                    found["mlp", layer] = self._read(writes, layer, change).clone()
                if self.plan.variant == "wang":
                    keep = active if given is None else active & ~given[0]
                    change = self._through_mlp(layer, self._read(writes, layer, before), change, keep)
            if given is not None:
                change = change + given[1]
                active = active | given[0]
        if logits:
            found["logits", -1] = change
        return found

    def _read(self, writes: Writes, layer: int, change: Tensor) -> Tensor:
        """Returns the change that a layer's MLP reads: in parallel blocks without what its heads write."""
        heads = writes.get(("z", layer))
        return change - heads[1] if self.plan.parallel[layer] and heads is not None else change

    def _through_mlp(self, layer: int, read: Tensor, change: Tensor, rows: Bool[Tensor, "row"]) -> Tensor:
        """Returns the change behind an MLP that is recomputed in some rows."""
        if not bool(rows.any()):
            return change
        some = rows.nonzero().flatten()
        change = change.clone()
        change[some] += self.mlp_change(layer, read, some)
        return change

    def mlp_change(self, layer: int, read: Tensor, rows: Tensor) -> Float[Tensor, "row pos d_model"]:
        """Returns what an MLP writes beyond the base run when the stream it reads has changed, its factor included."""
        seen = self.traced.layers[layer]
        live = self.live[rows]
        hidden = (self.values(seen.pre, rows) + read[rows])[live]
        wrote = self.values(present(seen.attn_out), rows)[live]
        position = live.nonzero()[:, 1].cpu().numpy()
        out = mlp_output(self.parts, self.traced, layer, hidden, wrote, position)
        self.flops += 2.0 * len(hidden) * self.parts.blocks[layer].mlp_weights
        made = read.new_zeros(len(rows), *read.shape[1:])
        made[live] = self.additive.mlp_out[layer] * (out - self.values(present(seen.mlp_out), rows)[live])
        return made

    # -- receivers

    def projections(self, layer: int, read: Tensor) -> dict[str, Tensor]:
        """Returns the queries, keys and values of all heads when the stream has changed [row head pos d]."""
        seen, block = self.traced.layers[layer], self.parts.blocks[layer]
        rows = torch.arange(len(self.runs), device=self.runs.device)
        hidden = (self.values(seen.pre, rows) + read)[self.live]
        position = self.live.nonzero()[:, 1].cpu().numpy()
        found = projected(self.parts, self.traced, layer, hidden, position)
        self.flops += 2.0 * len(hidden) * (block.attention_weights - block.project_weights)
        made: dict[str, Tensor] = {}
        for name, own in zip("qkv", found, strict=True):
            base: Tensor = getattr(seen, name)[self.runs].transpose(1, 2).clone()
            base[self.live] = own.transpose(0, 1)
            made[name] = base.transpose(1, 2)
        return made

    def heads_change(self, layer: int, receivers: Sequence[End], changed: Mapping[str, Tensor]) -> Tensor:
        """Returns z of a layer beyond the base run, when some receivers have what they made of a changed stream.

        All else that their heads read is the base run's. [row pos head d_head]
        """
        seen = self.traced.layers[layer]
        given = {name: getattr(seen, name)[self.runs].clone() for name in "qkv"}
        for one in receivers:
            given[one.kind][:, one.head] = changed[one.kind][:, one.head]
        z = attend_as_family(seen.module, given["q"], given["k"], given["v"], seen.mask, seen.options)
        base = present(seen.z)[self.runs].unflatten(-1, (self.plan.shape.n_heads, -1))
        return (z - base) * self.live[..., None, None]

    def _written(self, stage: Ends, streams: Mapping[tuple[str, int], Tensor]) -> Writes:
        """Returns what a stage's parts write differently."""
        writes: Writes = {}
        every = torch.arange(len(self.runs), device=self.runs.device)
        for (kind, layer), read in streams.items():
            mine = [one for one in stage if one.layer == layer and (one.kind == "mlp") == (kind == "mlp")]
            if kind == "mlp":
                self._add(writes, End("mlp_out", layer), every, self.mlp_change(layer, read, every))
                continue
            changed = self.heads_change(layer, mine, self.projections(layer, read))
            for head in writers(mine, self.plan.shape):
                self._add(writes, head, every, changed[:, :, head.head] @ self.matrix(layer)[head.head])
        return writes


@dataclass(frozen=True)
class Received:
    """What reaches the last receivers in frozen runs.

    Attributes:
        receivers: all of them; streams: the change each reads, by kind and layer.
    """

    frozen: Frozen
    receivers: Ends
    streams: Mapping[tuple[str, int], Tensor]

    def base_ends(self, rows: Rows) -> Float[Tensor, "row d_model"]:
        """Returns the last hidden states of the rows' base runs."""
        out = self.frozen.traced.out
        run, last = (torch.from_numpy(one).to(out.device) for one in (rows.run, rows.last))
        return out[run, last]

    def into_logits(self, rows: Rows, which: Ints) -> Float[Tensor, "row d_model"]:
        """Returns what reaches the logits' own copy of the stream."""
        return self._at_ends(self.streams["logits", -1], rows, which)

    def _at_ends(self, values: Tensor, rows: Rows, which: Ints) -> Float[Tensor, "row d_model"]:
        row, last = (torch.from_numpy(one).to(values.device) for one in (which, rows.last))
        return values[row, last]

    def carried(self) -> Trace:
        """Returns a trace with one more run for each frozen one: what the receivers made of what they read."""
        frozen = self.frozen
        every = torch.arange(len(frozen.runs), device=frozen.runs.device)
        layers = list(frozen.traced.layers)
        for (kind, layer), read in self.streams.items():
            if kind == "logits":
                continue
            seen = layers[layer]
            if kind == "mlp":
                scale = frozen.additive.mlp_out[layer]
                made = present(seen.mlp_out)[frozen.runs] + frozen.mlp_change(layer, read, every) / scale
                layers[layer] = replace(seen, mlp_out=torch.cat([present(seen.mlp_out), made]))
                continue
            changed = frozen.projections(layer, read)
            layers[layer] = replace(seen, **{name: torch.cat([getattr(seen, name), changed[name]]) for name in "qkv"})
        return replace(frozen.traced, layers=layers)

    def behind(self, rows: Rows, which: Ints, last: Sequence[Ends]) -> Float[Tensor, "row d_model"]:
        """Returns what reaches the logits in the treeified model: what each row's receivers write differently."""
        frozen = self.frozen
        total = frozen.traced.out.new_zeros(len(rows), frozen.traced.out.shape[-1])
        every = torch.arange(len(frozen.runs), device=frozen.runs.device)
        for (kind, layer), read in self.streams.items():
            if kind == "logits":
                changed = None
            elif kind == "mlp":
                changed = frozen.mlp_change(layer, read, every)
            else:
                changed = frozen.projections(layer, read)
            for number, ends in enumerate(last):
                mine = [one for one in ends if _reads(one, kind, layer)]
                chosen = np.flatnonzero(rows.joint == number)
                if not mine or not len(chosen):
                    continue
                some, its = rows.take(chosen), which[chosen]
                at = torch.from_numpy(chosen).to(total.device)
                if isinstance(changed, dict):
                    z = frozen.heads_change(layer, mine, changed)
                    written = torch.einsum("rphc,hcd->rpd", z, frozen.matrix(layer))
                    total[at] += self._at_ends(written, some, its)
                else:
                    total[at] += self._at_ends(read if changed is None else changed, some, its)
        return total


def _reads(end: End, kind: str, layer: int) -> bool:
    """Whether an end reads the stream of a kind in a layer."""
    if kind == "logits":
        return end.kind == "logits"
    return end.layer == layer and (end.kind == "mlp") == (kind == "mlp")
