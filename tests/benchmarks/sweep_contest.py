"""One row of the benchmark: nbpatch, TransformerLens and others in turns, in one process, on the same weights.

TransformerLens's time for a sweep is the clean cache plus whole forwards, one a cell, each as long as the other: it
can be measured on some of the cells and scaled to all of them. What it estimates from gradients it does in two
forwards and one way back, and only in full. nbpatch is always run in full.
"""

import contextlib
import functools
import io
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sweep_models import make_pairs
from sweep_others import Column, others
from sweep_rows import AXES, LONG_PLACES, THEIRS, Row, reach
from transformer_lens import patching
from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

import nbpatch
from nbpatch.edges import Graph
from nbpatch.result import STATES

LEAST_CELLS = 8
EDGE_AXES = ("sender_layer", "sender_head", "layer", "head")


@dataclass(frozen=True)
class Outcome:
    """What one row gave. Times are medians over the rounds, in seconds, NaN without any; differences are in logits.

    Attributes:
        measured: how many of the cells TransformerLens was timed on in each round, the rest of its time being scaled.
        compared: how many different cells' values were compared.
        difference: the largest absolute difference of the two results, over all compared cells and pairs.
        effect: the largest absolute effect of any patch: what the difference is to be seen against.
        flops: the plan's, or None where nbpatch does not say.
        peak: measured sgemm GFLOP/s in the same rounds.
        others: what other tools gave in the same rounds, where they are installed and the row has columns for them.
    """

    shape: str
    row: str
    tokens: int
    p0: int
    pairs: int
    cells: int
    measured: int
    compared: int
    ours: float
    theirs: float
    difference: float
    effect: float
    flops: float | None
    peak: float
    rounds: tuple[tuple[float, float, float], ...]
    others: tuple[Column, ...] = ()

    @property
    def ratio(self) -> float:
        """How many times faster nbpatch was."""
        return self.theirs / self.ours

    @property
    def gflops(self) -> float | None:
        """GFLOP/s reached, by the plan's own count."""
        return None if self.flops is None else self.flops / self.ours / 1e9

    @property
    def utilisation(self) -> float | None:
        """The share of the measured peak that was reached."""
        return None if self.gflops is None else self.gflops / self.peak

    @property
    def reach(self) -> float | None:
        """The ratio to reach, where there is one."""
        return reach(self.shape, self.row, self.p0) if self.tokens < LONG_PLACES[0][0] else None

    def beside(self, column: Column) -> float | None:
        """How many times faster nbpatch was than another tool."""
        return None if column.seconds is None else column.seconds / self.ours

    def to_dict(self) -> dict[str, Any]:
        """Returns everything, fit for JSON."""
        derived = {name: getattr(self, name) for name in ("ratio", "gflops", "utilisation", "reach")}
        others = [{**asdict(column), "ratio": self.beside(column)} for column in self.others]
        plain = {**asdict(self), **derived, "others": others}
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in plain.items()
        }


class Peak:
    """The machine's speed at multiplying two square float32 matrices, sampled beside everything that is timed."""

    def __init__(self, device: str, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.size = size
        self.factors = [torch.randn(size, size, generator=generator).to(device) for _ in range(2)]
        self.product = torch.empty(size, size, device=device)
        self.samples: list[float] = []
        for _ in range(3):
            self.sample()
        self.samples.clear()

    def sample(self) -> float:
        """Returns GFLOP/s of one multiplication."""
        started = _now()
        torch.mm(*self.factors, out=self.product)
        self.samples.append(2 * self.size**3 / (_now() - started) / 1e9)
        return self.samples[-1]

    @property
    def median(self) -> float:
        """GFLOP/s over all samples."""
        return statistics.median(self.samples)


def _now() -> float:
    """Returns the time at which everything asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Sweep:
    """One sweep's function in TransformerLens, its axes there, and nbpatch's result in the order of these axes.

    Attributes:
        values: [*axes, pair].
        acts: [*axes], the cells that nbpatch ran because they can change something.
    """

    name: str
    axes: tuple[str, ...]
    values: np.ndarray
    acts: np.ndarray

    def pick(self, count: int | None, rng: np.random.Generator) -> pd.DataFrame:
        """Returns all cells, or `count` at random, one a line: half from those that act, half from all the others."""
        every = np.arange(self.acts.size)
        if count is not None and count < len(every):
            acting = np.flatnonzero(self.acts)
            some = rng.choice(acting, min(len(acting), (count + 1) // 2), replace=False)
            rest = rng.choice(np.setdiff1d(every, some), count - len(some), replace=False)
            every = np.sort(np.concatenate([some, rest]))
        return pd.DataFrame(np.stack(np.unravel_index(every, self.acts.shape), 1), columns=list(self.axes))


def run_ours(model: Any, pairs: Any, row: Row) -> tuple[float, list[Any]]:
    """Returns the seconds nbpatch takes for a row, planning and base runs included, and its results."""
    started = _now()
    if row.edges:
        edges = nbpatch.path_patch(model, pairs, *row.edges, variant="direct")
        return _now() - started, [edges]
    if row.scored == "edge":
        circuit = nbpatch.eap(model, pairs, by_position=True)
        return _now() - started, [circuit]
    sweeps = [f"{component} over {over}" for component, over in row.sweeps]
    if row.scored:
        estimates = [nbpatch.attribute(model, pairs, sweep) for sweep in sweeps]
        return _now() - started, estimates
    results = nbpatch.patch_every(model, pairs, sweeps, on_progress=lambda progress: None)
    return _now() - started, list(results.values())


def as_sweeps(row: Row, results: Sequence[Any]) -> list[Sweep]:
    """Returns nbpatch's results laid out as TransformerLens's are."""
    if row.edges:
        return [as_edges(results[0])]
    if row.scored:
        return as_scores(row, results)
    found = []
    for key, result in zip(row.sweeps, results, strict=True):
        axes = getattr(patching, THEIRS[key]).keywords["index_axis_names"]
        data = result.data["logit_diff"].transpose(*(AXES.get(axis, axis) for axis in axes), "pair")
        acts = (data["state"] == STATES.index("measured")).any("pair").transpose(*data.dims[:-1])
        found.append(Sweep(THEIRS[key], axes, data.to_numpy(), acts.to_numpy()))
    return found


def edges_of(layers: int, heads: int) -> np.ndarray:
    """Returns every edge from a head to one of a later layer [edge, (layer, head, layer, head)]."""
    every = np.indices((layers, heads, layers, heads)).reshape(4, -1).T
    return every[every[:, 0] < every[:, 2]]


def as_edges(result: Any) -> Sweep:
    """Returns nbpatch's edges one by one, in the order of `edges_of`; one it did not run is NaN."""
    data = result.data["logit_diff"].transpose(*EDGE_AXES, "pair")
    places = tuple(edges_of(*data.shape[:2]).T)
    acts = (data["state"] == STATES.index("measured")).any("pair").transpose(*EDGE_AXES)
    return Sweep("edges", ("edge",), data.to_numpy()[places], acts.to_numpy()[places])


def as_scores(row: Row, results: Sequence[Any]) -> list[Sweep]:
    """Returns nbpatch's estimated effects: of every edge at every position, one by one, or laid out by axes."""
    if row.scored == "edge":
        scores = results[0].scores[results[0].graph.possible].reshape(-1, 1)
        return [Sweep("eap", ("edge",), scores, np.isfinite(scores[:, 0]))]
    found = []
    for (component, over), result in zip(row.sweeps, results, strict=True):
        effects = result.effect(per_pair=True).transpose(*over.split(), "pair").to_numpy()
        found.append(Sweep(component, tuple(over.split()), effects, np.isfinite(effects).all(-1)))
    return found


class Theirs:
    """TransformerLens's side of a row: its own functions on the Bridge that shares the model's weights."""

    def __init__(self, model: Any, pairs: Any, row: Row) -> None:
        tokenized = model.tokenize(pairs)
        self.bridge = model.bridge
        self.whole = row.whole
        self.clean, self.corrupted, self.answer, self.wrong = (
            torch.tensor([getattr(one, name) for one in tokenized], device=model.device)
            for name in ("clean_ids", "corrupted_ids", "answer_ids", "wrong_ids")
        )

    def logit_diff(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns logit(answer) − logit(wrong) at the last position [pair]."""
        last = logits[:, -1]
        return (last.gather(1, self.answer) - last.gather(1, self.wrong))[:, 0]

    @torch.no_grad()
    def run(self, sweeps: Sequence[Sweep], cells: Sequence[pd.DataFrame]) -> tuple[float, list[np.ndarray]]:
        """Returns the seconds of all the sweeps' cells, scaled from the given ones, and these ones' values."""
        with contextlib.redirect_stderr(io.StringIO()):
            started = _now()
            cache = self._cached()
            cached = _now()
            total, measured = sum(sweep.acts.size for sweep in sweeps), sum(map(len, cells))
            values = self._in_full(sweeps, cache) if measured == total else self._some(sweeps, cells, cache)
            seconds = _now() - cached
        return cached - started + seconds * total / measured, [one.float().cpu().numpy() for one in values]

    def _cached(self) -> Any:
        return self.bridge.run_with_cache(self.clean)[1]

    def _some(self, sweeps: Sequence[Sweep], cells: Sequence[pd.DataFrame], cache: Any) -> list[torch.Tensor]:
        """Returns values [cell pair] of the given cells of every sweep."""
        return [
            self._call(sweep.name, cache, index_axis_names=None, index_df=chosen)
            for sweep, chosen in zip(sweeps, cells, strict=True)
        ]

    def _call(self, name: str, cache: Any, **options: Any) -> torch.Tensor:
        function = getattr(patching, name)
        return function(self.bridge, self.corrupted, cache, self.logit_diff, reduce="none", **options).values

    def _in_full(self, sweeps: Sequence[Sweep], cache: Any) -> list[torch.Tensor]:
        """Returns values [cell pair] of complete sweeps; a function for several fills up missing key-value heads."""
        if self.whole is None:
            grids = [self._call(sweep.name, cache) for sweep in sweeps]
        else:
            grids = list(self._call(self.whole, cache))
        sizes = [[slice(size) for size in sweep.acts.shape] for sweep in sweeps]
        return [grid[tuple(size)].flatten(0, -2) for grid, size in zip(grids, sizes, strict=True)]


class TheirEdges(Theirs):
    """TransformerLens's direct path patching: its own function for all edges, the same steps for some of them."""

    def __init__(self, model: Any, pairs: Any, row: Row) -> None:
        super().__init__(model, pairs, row)
        self.receivers: Any = row.edges[1]
        self.edges = edges_of(self.bridge.cfg.n_layers, self.bridge.cfg.n_heads)

    def _cached(self) -> Any:
        return [self.bridge.run_with_cache(ids)[1] for ids in (self.clean, self.corrupted)]

    def _in_full(self, sweeps: Sequence[Sweep], cache: Any) -> list[torch.Tensor]:
        clean, corrupted = cache
        grid = patching.get_act_patch_direct_path_all_sources(
            self.bridge, self.corrupted, clean, corrupted, self.logit_diff, component=self.receivers, verbose=False
        )
        return [grid[tuple(self.edges.T)][:, None]]

    def _some(self, sweeps: Sequence[Sweep], cells: Sequence[pd.DataFrame], cache: Any) -> list[torch.Tensor]:
        self.bridge.set_use_split_qkv_input(True)
        try:
            return [torch.stack([self._edge(cache, edge) for edge in self.edges[cells[0]["edge"]].tolist()])]
        finally:
            self.bridge.set_use_split_qkv_input(False)

    def _edge(self, caches: Any, edge: Sequence[int]) -> torch.Tensor:
        """Returns the logit difference [pair] with what one head adds changed in one later head's input alone."""
        sender_layer, sender, layer, head = edge
        clean, corrupted = (cache[f"blocks.{sender_layer}.attn.hook_z"][:, :, sender] for cache in caches)
        change = (clean - corrupted) @ self.bridge.blocks[sender_layer].attn.W_O[sender]

        def add(read: torch.Tensor, hook: Any) -> torch.Tensor:
            read = read.clone()
            read[:, :, head] += change
            return read

        hooks = [(f"blocks.{layer}.attn.hook_{self.receivers}_input", add)]
        return self.logit_diff(self.bridge.run_with_hooks(self.corrupted, fwd_hooks=hooks))


class TheirScores(Theirs):
    """TransformerLens's attribution patching, which scores everything at once."""

    def __init__(self, model: Any, pairs: Any, row: Row) -> None:
        super().__init__(model, pairs, row)
        self.config = EdgeAttributionConfig(granularity=row.scored)

    def run(self, sweeps: Sequence[Sweep], cells: Sequence[pd.DataFrame]) -> tuple[float, list[np.ndarray]]:
        """Returns the seconds that all scores take, and the scores [cell 1] in the order of nbpatch's."""
        started = _now()
        found = attribution_patch(
            self.bridge, self.clean, self.corrupted, lambda logits: self.logit_diff(logits).sum(), self.config
        )
        seconds = _now() - started
        if self.config.granularity == "edge":
            return seconds, [self._edges(found.edge_scores)]
        return seconds, [self._nodes(found.node_scores, sweep) for sweep in sweeps]

    def _edges(self, scores: Any) -> np.ndarray:
        """Returns every edge's score, NaN where TransformerLens has none; it is to have no others."""
        layers, heads = self.bridge.cfg.n_layers, self.bridge.cfg.n_heads
        graph = Graph(layers, heads, heads, (False,) * layers)
        senders, inputs = (
            {name: at for at, name in enumerate(names)} for names in (graph.sender_names, graph.input_names)
        )
        table = np.full((*graph.possible.shape, self.clean.shape[1]), np.nan)
        for (sender, receiver), score in scores.items():
            table[senders[name_of(sender)], inputs[name_of(receiver)], sender.position] = score
        if np.isfinite(table[~graph.possible]).any():
            raise RuntimeError("TransformerLens scores edges that nbpatch's graph does not have")
        return table[graph.possible].reshape(-1, 1)

    def _nodes(self, scores: Any, sweep: Sweep) -> np.ndarray:
        """Returns the scores of one component's nodes, NaN where TransformerLens has none."""
        table = np.full(sweep.acts.shape, np.nan)
        for node, score in scores.items():
            if node.kind == {"z": "attn_head_out", "mlp_out": "mlp_out"}[sweep.name]:
                table[tuple(getattr(node, {"pos": "position"}.get(axis, axis)) for axis in sweep.axes)] = score
        return table.reshape(-1, 1)


def name_of(node: Any) -> str:
    """Returns what nbpatch calls a node of TransformerLens's: "embed", "a3.1", "a3.1.q", "m3", "logits"."""
    head = f"a{node.layer}.{node.head}"
    mlp = f"m{node.layer}"
    names = {"attn_head_out": head, "mlp_out": mlp, "mlp_in": mlp}
    return names.get(node.kind) or (f"{head}.{node.kind[0]}" if node.kind.endswith("_input") else node.kind)


def shares(sweeps: Sequence[Sweep], count: int | None) -> list[int | None]:
    """Returns how many cells of each sweep to measure so that they are about `count` in all; None for all of them."""
    if count is None:
        return [None] * len(sweeps)
    total = sum(sweep.acts.size for sweep in sweeps)
    return [math.ceil(max(count, LEAST_CELLS) * sweep.acts.size / total) for sweep in sweeps]


class Match:
    """The two sides of a row, warmed up; every turn times both and compares every value that both have."""

    def __init__(self, model: Any, pairs: Any, row: Row, cells: int | None) -> None:
        self.rng = np.random.default_rng(len(pairs))
        self.theirs = (TheirEdges if row.edges else TheirScores if row.scored else Theirs)(model, pairs, row)
        self.run_ours = functools.partial(run_ours, model, pairs, row)
        self.row = row
        self.results = self.run_ours()[1]
        self.sweeps = as_sweeps(row, self.results)
        self.counts = shares(self.sweeps, None if row.scored else cells)
        self.differences: list[float] = []
        self.compared: list[set[tuple[int, ...]]] = [set() for _ in self.sweeps]
        self.measured = 0
        self._compare(*self._turn_of_theirs()[1:])

    def turn(self) -> tuple[float, float]:
        """Returns the seconds of nbpatch and of TransformerLens, which goes first."""
        their_seconds, chosen, values = self._turn_of_theirs()
        our_seconds, self.results = self.run_ours()
        self.sweeps = as_sweeps(self.row, self.results)
        self._compare(chosen, values)
        return our_seconds, their_seconds

    def _turn_of_theirs(self) -> tuple[float, list[pd.DataFrame], list[np.ndarray]]:
        chosen = [sweep.pick(count, self.rng) for sweep, count in zip(self.sweeps, self.counts, strict=True)]
        self.measured = sum(map(len, chosen))
        seconds, values = self.theirs.run(self.sweeps, chosen)
        return seconds, chosen, values

    def _compare(self, cells: Sequence[pd.DataFrame], values: Sequence[np.ndarray]) -> None:
        """Notes the largest absolute difference of each sweep on the cells TransformerLens ran; NaN stays NaN."""
        for sweep, some, theirs, seen in zip(self.sweeps, cells, values, self.compared, strict=True):
            places = some.to_numpy()
            self.differences.append(float(np.abs(sweep.values[tuple(places.T)] - theirs).max()))
            seen.update(map(tuple, places.tolist()))


def contest(
    model: Any, shape: str, row: Row, *, tokens: int, p0: int, repeats: int, cells: int | None, peak: Peak
) -> Outcome:
    """Runs one row: both sides once without timing, then in turns.

    Args:
        repeats: how many turns; with 0 only values are compared.
        cells: how many cells to time TransformerLens on in each turn; None for all of them.
    """
    pairs = make_pairs(model, tokens=tokens + row.longer, p0=p0, count=row.pairs)
    match = Match(model, pairs, row, cells)
    beside = others((shape, row.name, tokens), model, match.theirs, match.counts[0], _now)
    for other in beside:
        other.turn(match.sweeps[0])
    rounds: list[tuple[float, float, float]] = []
    for _ in range(repeats):
        rounds.append((*match.turn(), peak.sample()))
        for other in beside:
            other.turn(match.sweeps[0])
    ours, theirs, speed = (
        (statistics.median(column) for column in zip(*rounds, strict=True)) if rounds else (math.nan,) * 3
    )
    return Outcome(
        shape=shape,
        row=row.name,
        tokens=tokens + row.longer,
        p0=p0,
        pairs=row.pairs,
        cells=sum(sweep.acts.size for sweep in match.sweeps),
        measured=match.measured,
        compared=sum(map(len, match.compared)),
        ours=ours,
        theirs=theirs,
        difference=float(np.max(match.differences)),
        effect=largest_effect(match.results),
        flops=flops_of(row, match.results),
        peak=speed,
        rounds=tuple(rounds),
        others=tuple(other.column() for other in beside),
    )


def largest_effect(results: Sequence[Any]) -> float:
    """Returns the largest absolute effect of any cell on any pair, in logits; of circuits, the largest score."""
    if isinstance(results[0], nbpatch.Circuit):
        return float(np.nanmax(np.abs(results[0].scores)))
    return max(float(np.abs(result.effect(per_pair=True)).max()) for result in results)


def flops_of(row: Row, results: Sequence[Any]) -> float | None:
    """Returns the floating-point operations that nbpatch says it ran, or None where it does not say.

    Sweeps of one call are run together: each of their results has the operations of all.
    """
    counts = [result.provenance["engine"].get("flops") for result in (results if row.scored else results[:1])]
    return None if None in counts else float(sum(counts))
