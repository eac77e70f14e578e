"""Circuits run on their own: every receiver reads a stream of its own, to which only kept edges bring what is new.

A receiver's stream is what it is when every sender is at its ablated value, plus, over the kept edges into it, what the
sender puts out now beyond its ablated value. Layer by layer all senders' outputs are known before anybody reads them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from nbpatch.engine.additive import Additive
from nbpatch.engine.attention import attend_as_family
from nbpatch.engine.base import BaseRuns, answers_of
from nbpatch.engine.entries import present
from nbpatch.engine.owners import matrix_of
from nbpatch.engine.receivers import mlp_output, projected
from nbpatch.engine.rows import Ints
from nbpatch.engine.stopping import Halted, never
from nbpatch.engine.supply import Ids, Supply
from nbpatch.engine.table import Filled
from nbpatch.engine.tail import unembedded
from nbpatch.engine.trace import Trace, trace
from nbpatch.errors import PlanError
from nbpatch.graph import Graph
from nbpatch.model import Model
from nbpatch.parts import Parts
from nbpatch.plan import NOT_RUN, Plan

_KEPT = frozenset({"z", "attn_out", "mlp_out"})

Masks: TypeAlias = NDArray[np.bool_]
"""Kept edges of several circuits [circuit sender input pos]; one position stands for all."""


@dataclass(frozen=True)
class CircuitPlan(Plan):
    """Circuits to be run on some pairs; `states` has the axes (direction, circuit, edges, pair).

    Attributes:
        graph: whose edges they keep.
        names: of the circuits; sizes: how many edges each keeps.
        masks: kept edges [circuit·size sender input pos], in the order of the axes.
        seed: of the random circuits.
    """

    graph: Graph | None = None
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    masks: Masks | None = None
    seed: int = 0

    @property
    def directed(self) -> bool:
        """Circuits are run in no direction: what they keep is as in the clean run, all else ablated."""
        return False

    def made(self) -> dict[str, object]:
        """Returns what a result's provenance says of the method and its sites."""
        total = 0 if self.graph is None else self.graph.n_edges * (1 if self.masks is None else self.masks.shape[-1])
        label = "edges kept, all others ablated"
        return {"method": "evaluate", "component": "circuits", "component_label": label, "n_edges": total}

    def axis_labels(self, axis: str) -> Sequence[object] | None:
        """Returns the circuits' names, and their numbers of edges."""
        return {"circuit": self.names, "edges": self.sizes}.get(axis)


class CircuitRuns:
    """The engine for circuits; `loop.drive` drives it like any other."""

    name = "circuits"
    broken = ""

    def __init__(self, plan: CircuitPlan, model: Model, parts: Parts, additive: Additive) -> None:
        if plan.graph is None or plan.masks is None:
            raise TypeError("a plan of circuits has a graph and masks")
        self.plan = plan
        self.graph: Graph = plan.graph
        self.masks: Masks = plan.masks
        self.model = model
        self.parts = parts
        self.additive = additive
        self.halt: Callable[[], bool] = never
        self.n_waves = 0
        self.runs: BaseRuns | None = None
        self.traced: Trace | None = None
        self.ablated: dict[str, list[Tensor]] = {}
        self.streams: dict[tuple[str, int], Tensor] = {}
        self.max_rows, self.max_tokens = self._room()

    def spent(self) -> dict[str, Any]:
        """Returns what the run took, for the provenance."""
        return {"waves": self.n_waves}

    def _room(self) -> tuple[int, int]:
        """Returns how many runs go together, and how many tokens through a block.

        Raises:
            PlanError: the memory budget does not hold one run.
        """
        shape, longest = self.plan.shape, max(len(one.clean_ids) for one in self.plan.tokenized)
        width = torch.finfo(self.model.dtype).bits // 8
        row = width * longest * shape.d_model * (2 * len(self.graph.senders) + 8)
        layers = 10 * shape.n_layers * shape.d_model
        fixed = width * longest * len(self.plan.tokenized) * layers + 16 * len(self.plan.tokenized) * shape.d_vocab
        token = width * (16 * shape.d_model + 5 * shape.d_mlp)
        budget = self.model.memory_budget()
        if budget < fixed + row + token * longest:
            need = fixed + row + token * longest
            raise PlanError(
                "the memory budget does not hold one circuit.",
                where="model.budget",
                seen=f"{budget / 2**20:.1f} MiB; one run of {longest} tokens needs {need / 2**20:.1f} MiB",
                fix=f"model.budget = {2 ** (need - 1).bit_length()}, or fewer pairs at once",
            )
        free = budget - fixed
        return max(1, free // 2 // row), max(longest, min(4096, free // 2 // token))

    # -- base runs

    @torch.no_grad()
    def trace(self, *, alone: bool = False) -> BaseRuns:
        """Runs every prompt once, and finds what each receiver reads when all senders are ablated."""
        tokenized = self.plan.tokenized
        prompts = [ids for one in tokenized for ids in (one.clean_ids, one.corrupted_ids)]
        drawn: list[Ids] = []
        with self.model.lock:
            traced = trace(self.parts, prompts, device=self.model.device, max_tokens=self.max_tokens, keep=_KEPT)
            if self.plan.corruption.ablates:
                supply = Supply(self.plan, self.model, self.parts, traced, _KEPT, False, self.max_tokens)
                supply.replace()
                drawn = supply.drawn
            self.traced = traced
            self._learn(traced)
            ends = self._ends(self.streams["logits", 0], np.arange(len(tokenized)))
            empty = unembedded(self.parts, traced.returns, ends).float().cpu()
        clean = traced.logits[0::2].float().cpu()
        self.runs = BaseRuns((), {"clean": clean, "corrupted": empty}, answers_of(tokenized, clean), drawn=drawn)
        return self.runs

    def _learn(self, traced: Trace) -> None:
        """Learns, by receiver, its stream when all senders are ablated: the clean run's, plus what misses."""
        missing = traced.pre(0)[1::2] - traced.pre(0)[0::2]
        for layer, seen in enumerate(traced.layers):
            clean = seen.pre[0::2]
            self.streams["heads", layer] = clean + missing
            z, mlp = present(seen.z), present(seen.mlp_out)
            heads = self.additive.z[layer] * ((z[1::2] - z[0::2]) @ self.matrix(layer, z))
            parallel = self.parts.blocks[layer].mid is None
            self.streams["mlp", layer] = clean + missing + (0 if parallel else heads)
            missing = missing + heads + self.additive.mlp_out[layer] * (mlp[1::2] - mlp[0::2])
        self.streams["logits", 0] = traced.out[0::2] + missing

    def matrix(self, layer: int, z: Tensor) -> Float[Tensor, "d_z d_model"]:
        """Returns what a layer's output projection multiplies z with."""
        return matrix_of(self.parts.blocks[layer].project, z.shape[-1], z)

    def _ends(self, streams: Float[Tensor, "row pos d_model"], pairs: Ints) -> Float[Tensor, "row d_model"]:
        last = torch.tensor([self.plan.tokenized[pair].clean_end for pair in pairs], device=streams.device)
        return streams[torch.arange(len(pairs), device=streams.device), last]

    # -- waves

    def waves(self) -> Iterator[Callable[[], Iterator[tuple[int, Filled]]]]:
        """Yields what runs some circuits on pairs of one length."""
        cells = np.flatnonzero(self.plan.states == NOT_RUN)
        circuits, pairs = np.divmod(cells, len(self.plan.tokenized))
        lengths = np.array([len(one.clean_ids) for one in self.plan.tokenized])[pairs]
        parts = [
            mine[start : start + self.max_rows]
            for mine in (np.flatnonzero(lengths == length) for length in np.unique(lengths))
            for start in range(0, len(mine), self.max_rows)
        ]
        if any(metric.whole for metric in self.plan.metrics):
            yield lambda: self._together([(cells[some], circuits[some], pairs[some]) for some in parts])
            return
        for some in parts:
            yield lambda some=some: iter([(0, self._run(cells[some], circuits[some], pairs[some]))])

    def _together(self, parts: Sequence[tuple[Ints, Ints, Ints]]) -> Iterator[tuple[int, Filled]]:
        """Yields all runs at once, for a user's function, which must see all pairs of a circuit."""
        filled = [self._run(*part) for part in parts]
        cells, logits = np.concatenate([one.cell for one in filled]), torch.cat([one.logits for one in filled])
        yield 0, Filled(cells, logits)

    def _run(self, cells: Ints, circuits: Ints, pairs: Ints) -> Filled:
        if self.traced is None or self.runs is None:
            raise LookupError("the base runs come first")
        columns = self.runs.answers.columns if all(one.local for one in self.plan.metrics) else None
        with self.model.lock, torch.no_grad():
            masks = torch.from_numpy(self.masks[circuits]).to(self.model.device)
            ends = self._ends(_Wave(self, self.traced, masks, pairs).go(), pairs)
            logits = unembedded(self.parts, self.traced.returns, ends, columns).float().cpu()
        self.n_waves += 1
        return Filled(cells, logits, columns)


class _Wave:
    """Some circuits on pairs of one length, on their way through the layers.

    Attributes:
        now: what each sender puts out beyond its ablated value [row sender pos d_model].
    """

    def __init__(
        self, engine: CircuitRuns, traced: Trace, masks: Bool[Tensor, "row sender input pos"], pairs: Ints
    ) -> None:
        self.engine = engine
        self.graph = engine.graph
        self.parts = engine.parts
        self.traced = traced
        self.masks = masks
        self.pairs = pairs
        self.length = len(engine.plan.tokenized[int(pairs[0])].clean_ids)
        self.clean, self.ablated = (torch.from_numpy(2 * pairs + side).to(masks.device) for side in (0, 1))
        embedded = traced.pre(0)[self.clean, : self.length] - traced.pre(0)[self.ablated, : self.length]
        self.now = embedded.new_zeros(len(pairs), len(self.graph.senders), self.length, embedded.shape[-1])
        self.now[:, 0] = embedded

    def go(self) -> Float[Tensor, "row pos d_model"]:
        """Returns what the logits read."""
        for layer in range(self.graph.n_layers):
            if self.engine.halt():
                raise Halted
            self._heads(layer)
            self._mlp(layer)
        inputs = slice(len(self.graph.inputs) - 1, None)
        rows = torch.arange(len(self.pairs), device=self.now.device)
        return self._base("logits", 0) + self._brought(rows, inputs, len(self.graph.senders))[:, 0]

    def _base(self, name: str, layer: int) -> Float[Tensor, "row pos d_model"]:
        streams = self.engine.streams[name, layer]
        return streams[torch.from_numpy(self.pairs).to(streams.device), : self.length]

    def _brought(self, rows: Tensor, inputs: slice, senders: int) -> Float[Tensor, "row input pos d_model"]:
        """Returns what kept edges bring to some inputs, from the first so many senders."""
        kept = self.masks[rows, :senders, inputs].to(self.now.dtype)
        now = self.now[rows, :senders]
        if kept.shape[-1] == 1:
            flat = kept[..., 0].transpose(1, 2) @ now.flatten(2)
            return flat.unflatten(2, now.shape[2:])
        return torch.einsum("ruip,rupd->ripd", kept[..., : self.length], now)

    # -- heads

    def _heads(self, layer: int) -> None:
        """Lets the heads of a layer put out what they make of their own streams."""
        seen, heads = self.traced.layers[layer], self.graph.heads_of(layer)
        q, k, v = (one[self._which()] for one in self._projected(layer, self._alone("heads", layer)))
        for name, values in (("q", q), ("k", k), ("v", v)):
            inputs = self.graph.inputs_of(layer, name)
            for row, place, own in self._read(layer, inputs, heads.start):
                found = self._projected(layer, own)["qkv".index(name)]
                values[row, place] = found[torch.arange(len(place), device=place.device), place]
        mask = None if seen.mask is None else seen.mask[..., : self.length, : self.length]
        z = attend_as_family(seen.module, q, k, v, mask, seen.options).flatten(2)
        apart = (z - present(seen.z)[self.ablated, : self.length]).unflatten(-1, (self.graph.n_heads, -1))
        written = self.engine.matrix(layer, z).unflatten(0, (self.graph.n_heads, -1))
        self.now[:, heads] = self.engine.additive.z[layer] * torch.einsum("rphc,hcd->rhpd", apart, written)

    def _which(self) -> Tensor:
        """Returns where each row's pair stands among the wave's different pairs."""
        return torch.from_numpy(np.unique(self.pairs, return_inverse=True)[1].ravel()).to(self.now.device)

    def _alone(self, name: str, layer: int) -> Float[Tensor, "pair pos d_model"]:
        """Returns the streams of the wave's different pairs when all senders are ablated."""
        streams = self.engine.streams[name, layer]
        return streams[torch.from_numpy(np.unique(self.pairs)).to(streams.device), : self.length]

    def _read(
        self, layer: int, inputs: slice, senders: int
    ) -> Iterator[tuple[Tensor, Tensor, Float[Tensor, "copy pos d_model"]]]:
        """Yields rows and inputs that kept edges lead into, and the streams they read, as many as there is room for."""
        reached = self.masks[:, :senders, inputs].any(3).any(1)
        step = max(1, self.engine.max_tokens // self.length)
        per_input = inputs.stop - inputs.start
        base = self._base("heads", layer)
        rows = reached.any(1).nonzero().flatten()
        for some in rows.split(max(1, step // per_input)):
            brought = self._brought(some, inputs, senders)
            row, place = reached[some].nonzero(as_tuple=True)
            for part in torch.arange(len(row), device=row.device).split(step) if len(row) else ():
                yield some[row[part]], place[part], base[some[row[part]]] + brought[row[part], place[part]]

    def _projected(self, layer: int, streams: Float[Tensor, "copy pos d_model"]) -> tuple[Tensor, ...]:
        """Returns queries, keys and values of whole streams [copy head pos d]."""
        n = len(streams)
        position = np.tile(np.arange(self.length), n)
        found = projected(self.parts, self.traced, layer, streams.flatten(0, 1), position)
        return tuple(one.unflatten(1, (n, self.length)).transpose(0, 1) for one in found)

    # -- the MLP

    def _mlp(self, layer: int) -> None:
        """Lets the MLP of a layer put out what it makes of its own stream."""
        heads, inputs = self.graph.heads_of(layer), self.graph.inputs_of(layer, "")
        seen = self.traced.layers[layer]
        parallel = self.parts.blocks[layer].mid is None
        senders = heads.start if parallel else heads.stop
        every = torch.arange(len(self.pairs), device=self.now.device)
        read = self._base("mlp", layer) + self._brought(every, inputs, senders)[:, 0]
        wrote = present(seen.attn_out)[self.clean, : self.length]
        found = [
            mlp_output(self.parts, self.traced, layer, one.flatten(0, 1), other.flatten(0, 1), self._tiled(len(one)))
            for one, other in self._split(read, wrote)
        ]
        apart = torch.cat(found).view_as(read) - present(seen.mlp_out)[self.ablated, : self.length]
        self.now[:, heads.stop] = self.engine.additive.mlp_out[layer] * apart

    def _tiled(self, copies: int) -> Ints:
        return np.tile(np.arange(self.length), copies)

    def _split(self, one: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        step = max(1, self.engine.max_tokens // self.length)
        yield from zip(one.split(step), other.split(step), strict=True)
