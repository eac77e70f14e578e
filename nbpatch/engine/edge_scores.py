"""Edge attribution: every sender's change times the gradient at every receiver's own copy of the residual stream.

What flows back to one head's query input is a part of what flows back through the projection: the columns of that
head. These parts go back through the norm together, and one matrix product per layer scores all edges into it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from nbpatch.engine.additive import Additive
from nbpatch.engine.base import BASE, SOURCE, BaseRuns, Group
from nbpatch.engine.gradients import Differentiated, Gradients, Run, grading
from nbpatch.engine.owners import matrix_of, owners_of
from nbpatch.engine.tape import OWN, Key, Tape
from nbpatch.graph import Graph
from nbpatch.model import Model
from nbpatch.parts import Parts
from nbpatch.plan import Direction

Floats: TypeAlias = NDArray[np.float64]

Flow: TypeAlias = dict[int, Tensor]
"""By layer, the gradient at each of its inputs [input pair pos d_model]; behind the last layer, at the logits'."""

_ADDS_UP = 1e-3
"""The share by which heads' gradients may miss what flows back to all of attention: rounding, but no more."""

_SITES = frozenset({"z", "mlp_out", "q", "k", "v", *OWN})


@dataclass(frozen=True)
class Way:
    """Where gradients are taken, and what is told apart.

    Attributes:
        method: "eap", "eap-ig", "eap-ig-activations" or "clean-corrupted".
        points: how many points between base and source, where the method has some.
        positions: how many positions are told apart; 0 to sum over them.
    """

    method: str
    points: int
    positions: int

    @property
    def n_points(self) -> int:
        """How many runs of a prompt go together."""
        return self.points if self.method.startswith("eap-ig") else 1

    @property
    def ends(self) -> tuple[Direction, ...]:
        """The directions in whose base runs gradients are taken, where that is both."""
        return ("denoising", "noising") if self.method == "clean-corrupted" else ()


class EdgeScores:
    """Scores of all edges of a graph, in the first of some directions, by the first of some metrics."""

    def __init__(
        self,
        what: Differentiated,
        model: Model,
        parts: Parts,
        returns: Mapping[int, int],
        graph: Graph,
        additive: Additive,
        way: Way,
    ) -> None:
        self.parts = parts
        self.graph = graph
        self.additive = additive
        self.method = way.method
        self.steps = way.n_points
        self.direction: Direction = what.directions[0]
        self.metric = what.metrics[0]
        beside = 4 * model.shape.d_model * (len(graph.senders) + len(graph.inputs))
        self.engine = Gradients(
            replace(what, directions=way.ends or what.directions),
            model,
            parts,
            returns,
            sites=_SITES,
            copies=self.steps,
            beside=beside,
        )
        self.owners = owners_of(model, parts)
        size = (len(graph.senders), len(graph.inputs), *((way.positions,) if way.positions else ()))
        self.total = torch.zeros(size, dtype=torch.float64)
        self.count = torch.zeros(max(way.positions, 1), dtype=torch.float64)
        self.by_position = way.positions > 0

    def run(self) -> tuple[Floats, BaseRuns, dict[str, Any]]:
        """Returns scores [sender input] or [sender input pos], NaN where there is no edge; both runs; what it took."""
        started = time.perf_counter()
        for chunk in self.engine.chunks:
            n = chunk.ids["clean"].shape[1]
            self.count[: n if self.by_position else 1] += len(chunk.pairs)
            with grading():
                self._score(chunk)
        scores = (self.total / self.count).numpy()
        scores[~self.graph.possible] = np.nan
        spent = {"name": "gradients", **self.engine.passes, "seconds": round(time.perf_counter() - started, 4)}
        return scores, self.engine.runs(), spent

    def _score(self, chunk: Group) -> None:
        both = self.engine.both(chunk, back=self.steps == 1)
        runs = both[BASE[self.direction]], both[SOURCE[self.direction]]
        first = min(one.first_difference or 0 for one in (self.engine.tokenized[pair] for pair in chunk.pairs))
        changes = self._changes(*runs)[:, :, first:]
        if self.method == "eap-ig-activations":
            for senders, at in self._groups(chunk, *runs):
                self._add(changes, self._averaged(chunk, **at), first, senders)
            return
        if self.method == "eap-ig":
            base, source = (one.value(("resid_pre", 0)) for one in runs)
            self._add(changes, self._averaged(chunk, start=_between(base, source, self.steps)), first)
            return
        flows = [self._flow(chunk, run, both[run]) for run in self.engine.bases]
        mean = {layer: torch.stack([one[layer] for one in flows]).mean(0) for layer in flows[0]}
        self._add(changes, mean, first)

    def _add(self, changes: Tensor, flow: Mapping[int, Tensor], first: int, senders: slice | None = None) -> None:
        """Adds the scores of edges from some senders, or all, to the total."""
        mine = slice(0, len(self.graph.senders)) if senders is None else senders
        for layer, gradients in flow.items():
            last = layer == self.graph.n_layers
            inputs = slice(len(self.graph.inputs) - 1, None) if last else self._inputs(layer)
            stop = len(self.graph.senders) if last else self.graph.heads_of(layer).stop
            some = changes[mine.start : min(mine.stop, stop)]
            if not len(some):
                continue
            where = self.total[mine.start : mine.start + len(some), inputs]
            later = gradients[:, :, first:]
            if self.by_position:
                found = torch.einsum("upsd,rpsd->urs", some, later)
                where[:, :, first : first + found.shape[-1]] += found.double().cpu()
            else:
                where += (some.flatten(1) @ later.flatten(1).T).double().cpu()

    def _inputs(self, layer: int) -> slice:
        return slice(self.graph.inputs_of(layer, "q").start, self.graph.inputs_of(layer, "").stop)

    # -- what senders change

    def _changes(self, base: Run, source: Run) -> Float[Tensor, "sender pair pos d_model"]:
        """Returns what each sender adds to the stream in the source run beyond the base run."""
        embedded = source.value(("resid_pre", 0)) - base.value(("resid_pre", 0))
        changes = embedded.new_empty(len(self.graph.senders), *embedded.shape)
        changes[0] = embedded
        for layer, block in enumerate(self.parts.blocks):
            heads = self.graph.heads_of(layer)
            z, mlp = (source.value((name, layer)) - base.value((name, layer)) for name in ("z", "mlp_out"))
            written = matrix_of(block.project, z.shape[-1], z).unflatten(0, (self.graph.n_heads, -1))
            apart = z.unflatten(-1, (self.graph.n_heads, -1)).flatten(0, 1).transpose(0, 1)
            changes[heads] = (self.additive.z[layer] * (apart @ written)).view(-1, *embedded.shape)
            changes[heads.stop] = self.additive.mlp_out[layer] * mlp
        return changes

    # -- gradients at every input

    def _flow(self, chunk: Group, run: str, at: Run) -> Flow:
        target = self.engine.target(self.metric, chunk, run, at.logits)
        whole = self._back(at.tape, target)
        return {layer: value[:, at.rows] for layer, value in whole.items()}

    def _averaged(self, chunk: Group, **at: Any) -> Flow:
        """Returns gradients averaged over points between base and source, all in one forward."""
        run, n = BASE[self.direction], len(chunk.pairs)
        tape = self.engine.record(chunk.ids[run].repeat(self.steps, 1), **at)
        parts = tape.logits.unflatten(0, (self.steps, n))
        target = torch.stack([self.engine.target(self.metric, chunk, run, one) for one in parts]).sum()
        flow = self._back(tape, target)
        return {layer: value.unflatten(1, (self.steps, n)).mean(1) for layer, value in flow.items()}

    def _groups(self, chunk: Group, base: Run, source: Run) -> list[tuple[slice, dict[str, Any]]]:
        """Returns groups of senders, and what is put in their place: points between base and source."""
        groups: list[tuple[slice, dict[str, Any]]] = []
        points = [one.value(("resid_pre", 0)) for one in (base, source)]
        groups.append((slice(0, 1), {"start": _between(points[0], points[1], self.steps)}))
        for layer in range(self.graph.n_layers):
            heads = self.graph.heads_of(layer)
            for name, senders in (("z", heads), ("mlp_out", slice(heads.stop, heads.stop + 1))):
                points = [one.value((name, layer)) for one in (base, source)]
                put = {(name, layer): _between(points[0], points[1], self.steps)}
                groups.append((senders, {"put": put}))
        return groups

    def _back(self, tape: Tape, target: Tensor) -> Flow:
        """Returns the gradient at each input's own copy of the stream, by layer [input run pos d_model]."""
        n_layers = self.graph.n_layers
        keys: list[Key] = [("resid_post", n_layers - 1), *(("mlp_own", layer) for layer in range(n_layers))]
        for layer in range(n_layers):
            keys += [(name, layer) for name in self._at_heads(tape, layer)]
        found = self.engine.back(tape, target, keys, again=True)
        flow: Flow = {n_layers: found["resid_post", n_layers - 1][None]}
        for layer in range(n_layers):
            heads = self._split(tape, layer, found)
            if heads is None:
                heads = self._apart(tape, layer, target)
            flow[layer] = torch.cat([heads, self._into_mlp(tape, layer, found)[None]])
        return flow

    def _at_heads(self, tape: Tape, layer: int) -> list[str]:
        if self.owners[layer] is None:
            return []
        return ["attn_own", *(f"projected {i}" for i in range(len(tape.projections[layer])))]

    def _split(
        self, tape: Tape, layer: int, found: Mapping[Key, Tensor]
    ) -> Float[Tensor, "input run pos d_model"] | None:
        """Returns the gradients at the copies of each head's query, then of each key-value head's key and value.

        None where the columns are not the heads' own, or what they give does not add up to all that attention reads:
        something stands between projection and heads (OLMo clips in place).
        """
        owners = self.owners[layer]
        if owners is None:
            return None
        outs = [found[name, layer] for name in self._at_heads(tape, layer)[1:]]
        split = owners.split(outs, [module for module, _ in tape.projections[layer]])
        whole = found["attn_own", layer]
        if float((split.sum(0) - whole).norm()) > _ADDS_UP * float(whole.norm()):
            return None
        return _through(tape.sites["resid_pre", layer], [tape.sites["attn_in", layer]], [split])

    def _apart(self, tape: Tape, layer: int, target: Tensor) -> Float[Tensor, "input run pos d_model"]:
        """Returns the same, the way back taken for each head by itself."""
        keys: list[Key] = [(name, layer) for name in ("q", "k", "v")]
        found = self.engine.back(tape, target, keys, again=True)
        gradients = _one_head_each([found[key].transpose(1, 2) for key in keys])
        return _through(tape.sites["resid_pre", layer], [tape.sites[key] for key in keys], gradients)

    def _into_mlp(self, tape: Tape, layer: int, found: Mapping[Key, Tensor]) -> Float[Tensor, "run pos d_model"]:
        """Returns the gradient at the MLP's copy: in parallel blocks its norm is still to be gone back through."""
        gradient = found["mlp_own", layer]
        if self.parts.blocks[layer].mid is not None:
            return gradient
        return _through(tape.sites["resid_pre", layer], [tape.sites["mlp_in", layer]], [gradient[None]])[0]


def _between(base: Tensor, source: Tensor, steps: int) -> Tensor:
    """Returns the points k / steps between two values, k = 1 … steps, one behind the other."""
    return torch.cat([base + point / steps * (source - base) for point in range(1, steps + 1)])


def _through(pre: Tensor, sites: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Returns several gradients at sites taken back to a block's input, each [… *site]; the site may be the input."""
    if len(sites) == 1 and sites[0] is pre:
        return gradients[0]
    shaped = [one.reshape(len(one), *site.shape) for one, site in zip(gradients, sites, strict=True)]
    return torch.autograd.grad(sites, pre, shaped, retain_graph=True, is_grads_batched=True)[0]


def _one_head_each(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Returns gradients of queries, keys and values [run head pos d_head] as one for each head of each, else zero."""
    counts = [one.shape[1] for one in gradients]
    found = [one.new_zeros(sum(counts), *one.shape) for one in gradients]
    at = 0
    for which, one in enumerate(gradients):
        for head in range(counts[which]):
            found[which][at, :, head] = one[:, head]
            at += 1
    return found
