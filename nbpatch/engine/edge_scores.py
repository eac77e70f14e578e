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
from nbpatch.engine.tape import OWN, Back, Key, Tape
from nbpatch.graph import Graph
from nbpatch.model import Model
from nbpatch.parts import Parts
from nbpatch.plan import Direction

Floats: TypeAlias = NDArray[np.float64]

Flow: TypeAlias = dict[int, Tensor]
"""By layer, the gradient at each of its inputs [input pair pos d_model], positions from the first that matters on;
behind the last layer, at the logits'."""

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
        self.ends = max(1, len(way.ends))

    def run(self) -> tuple[Floats, BaseRuns, dict[str, Any]]:
        """Returns scores [sender input] or [sender input pos], NaN where there is no edge; both runs; what it took."""
        started = time.perf_counter()
        for chunk in self.engine.chunks:
            n = chunk.ids["clean"].shape[1]
            self.count[: n if self.by_position else 1] += len(chunk.pairs) * self.ends
            with grading():
                self._score(chunk)
        scores = self.total.div_(self.count).numpy()
        scores[~self.graph.possible] = np.nan
        spent = {"name": "gradients", **self.engine.passes, "seconds": round(time.perf_counter() - started, 4)}
        return scores, self.engine.runs(), spent

    def _score(self, chunk: Group) -> None:
        first = min(one.first_difference or 0 for one in (self.engine.tokenized[pair] for pair in chunk.pairs))
        both = self.engine.both(chunk, back=self.steps == 1, first=first)
        runs = both[BASE[self.direction]], both[SOURCE[self.direction]]
        changes = self._changes(*runs, first)
        if self.method == "eap-ig-activations":
            for senders, at in self._groups(chunk, *runs):
                self._add(changes, self._averaged(chunk, first, **at), first, senders)
            return
        if self.method == "eap-ig":
            base, source = (one.value(("resid_pre", 0)) for one in runs)
            self._add(changes, self._averaged(chunk, first, start=_between(base, source, self.steps)), first)
            return
        for run in self.engine.bases:
            self._add(changes, self._flow(chunk, run, both[run], first), first)

    def _add(self, changes: Tensor, flow: Mapping[int, Tensor], first: int, senders: slice | None = None) -> None:
        """Adds the scores of edges from some senders, or all, to the total."""
        mine = slice(0, len(self.graph.senders)) if senders is None else senders
        for layer, gradients in flow.items():
            last = layer == self.graph.n_layers
            inputs = slice(len(self.graph.inputs) - 1, None) if last else self._inputs(layer)
            stop = len(self.graph.senders) if last else self.graph.heads_of(layer).stop
            some = changes[:, mine.start : min(mine.stop, stop)]
            if not some.shape[1]:
                continue
            # One product a position: pairs and the numbers of the stream behind each other.
            found = some.flatten(2) @ gradients.permute(2, 1, 3, 0).flatten(1, 2)
            where = self.total[mine.start : mine.start + some.shape[1], inputs]
            if self.by_position:
                where[:, :, first : first + len(found)] += found.cpu().permute(1, 2, 0)
            else:
                where += found.sum(0).cpu()

    def _inputs(self, layer: int) -> slice:
        return slice(self.graph.inputs_of(layer, "q").start, self.graph.inputs_of(layer, "").stop)

    # -- what senders change

    def _changes(self, base: Run, source: Run, first: int) -> Float[Tensor, "pos sender pair d_model"]:
        """Returns what each sender adds to the stream in the source run beyond the base run, from a position on."""

        def change(*key: Any) -> Float[Tensor, "pair pos d"]:
            return source.value(key)[:, first:] - base.value(key)[:, first:]

        embedded = change("resid_pre", 0)
        changes = embedded.new_empty(embedded.shape[1], len(self.graph.senders), len(embedded), embedded.shape[2])
        changes[:, 0] = embedded.transpose(0, 1)
        for layer, block in enumerate(self.parts.blocks):
            heads = self.graph.heads_of(layer)
            z, mlp = change("z", layer), change("mlp_out", layer)
            written = matrix_of(block.project, z.shape[-1], z).unflatten(0, (self.graph.n_heads, -1))
            apart = z.unflatten(-1, (self.graph.n_heads, -1)).permute(2, 1, 0, 3)
            added = (apart.flatten(1, 2) @ written).unflatten(1, apart.shape[1:3])
            changes[:, heads] = (self.additive.z[layer] * added).transpose(0, 1)
            changes[:, heads.stop] = (self.additive.mlp_out[layer] * mlp).transpose(0, 1)
        return changes

    # -- gradients at every input

    def _flow(self, chunk: Group, run: str, at: Run, first: int) -> Flow:
        return self._back(at.tape, self.engine.target(self.metric, chunk, run, at.logits), Back(at.rows, first))

    def _averaged(self, chunk: Group, first: int, **at: Any) -> Flow:
        """Returns gradients averaged over points between base and source, all in one forward."""
        run, n = BASE[self.direction], len(chunk.pairs)
        back = Back(slice(0, self.steps * n), first)
        tape = self.engine.record(chunk.ids[run].repeat(self.steps, 1), back=back, **at)
        parts = tape.logits.unflatten(0, (self.steps, n))
        target = torch.stack([self.engine.target(self.metric, chunk, run, one) for one in parts]).sum()
        flow = self._back(tape, target, back)
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

    def _back(self, tape: Tape, target: Tensor, back: Back) -> Flow:
        """Returns the gradient at each input's own copy of the stream, by layer."""
        n_layers = self.graph.n_layers
        keys: list[Key] = [("resid_post", n_layers - 1), *(("mlp_own", layer) for layer in range(n_layers))]
        for layer in range(n_layers):
            keys += [(name, layer) for name in self._at_heads(tape, layer)]
        whole = self.engine.back(tape, target, keys, again=True)
        found = {key: value[back.runs, back.first :] for key, value in whole.items()}
        flow: Flow = {n_layers: found["resid_post", n_layers - 1][None]}
        for layer in range(n_layers):
            heads = self._split(tape, layer, found, back)
            if heads is None:
                heads = self._apart(tape, layer, target, back)
            flow[layer] = torch.cat([heads, self._into_mlp(tape, layer, found, back)[None]])
        return flow

    def _at_heads(self, tape: Tape, layer: int) -> list[str]:
        if self.owners[layer] is None:
            return []
        return ["attn_own", *(f"projected {i}" for i in range(len(tape.projections[layer])))]

    def _split(
        self, tape: Tape, layer: int, found: Mapping[Key, Tensor], back: Back
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
        before = tape.value(("resid_pre", layer))[back.runs, back.first :]
        normed = owners.normed_back(before, split)
        return _through(tape, layer, ["attn_in"], [split], back) if normed is None else normed

    def _apart(self, tape: Tape, layer: int, target: Tensor, back: Back) -> Float[Tensor, "input run pos d_model"]:
        """Returns the same, the way back taken for each head by itself."""
        names = ["q", "k", "v"]
        found = self.engine.back(tape, target, [(name, layer) for name in names], again=True)
        cut = [found[name, layer][back.runs, back.first :] for name in names]
        return _through(tape, layer, names, _one_head_each(cut), back)

    def _into_mlp(
        self, tape: Tape, layer: int, found: Mapping[Key, Tensor], back: Back
    ) -> Float[Tensor, "run pos d_model"]:
        """Returns the gradient at the MLP's copy: in parallel blocks its norm is still to be gone back through."""
        gradient = found["mlp_own", layer]
        if self.parts.blocks[layer].mid is not None:
            return gradient
        return _through(tape, layer, ["mlp_in"], [gradient[None]], back)[0]


def _between(base: Tensor, source: Tensor, steps: int) -> Tensor:
    """Returns the points k / steps between two values, k = 1 … steps, one behind the other."""
    return torch.cat([base + point / steps * (source - base) for point in range(1, steps + 1)])


def _through(
    tape: Tape, layer: int, names: Sequence[str], gradients: Sequence[Tensor], back: Back
) -> Float[Tensor, "input run pos d_model"]:
    """Returns gradients at sites [input run pos …] taken back to the block's input; a site may be that input."""
    pre, sites = tape.sites["resid_pre", layer], [tape.sites[name, layer] for name in names]
    if sites[0] is pre:
        return gradients[0]
    shaped: list[Tensor] = []
    for name, one, site in zip(names, gradients, sites, strict=True):
        whole = one.new_zeros(len(one), tape.runs, tape.positions, *one.shape[3:])
        whole[:, back.runs, back.first :] = one
        whole = whole.transpose(2, 3) if name in ("q", "k", "v") else whole
        shaped.append(whole.reshape(len(one), *site.shape))
    (found,) = torch.autograd.grad(sites, pre, shaped, retain_graph=True, is_grads_batched=True)
    return found.reshape(len(found), tape.runs, tape.positions, -1)[:, back.runs, back.first :]


def _one_head_each(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Returns gradients of queries, keys and values [run pos head own] as one for each head of each, else zero."""
    counts = [one.shape[2] for one in gradients]
    found = [one.new_zeros(sum(counts), *one.shape) for one in gradients]
    at = 0
    for which, one in enumerate(gradients):
        for head in range(counts[which]):
            found[which][at, :, :, head] = one[:, :, head]
            at += 1
    return found
