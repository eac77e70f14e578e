"""Circuit evaluation: does a circuit do on its own what the model does?"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbpatch.corruption import AnyCorruption, as_corruption
from nbpatch.engine.circuits import CircuitPlan, CircuitRuns
from nbpatch.engine.edge_plan import refuse_pairs
from nbpatch.engine.fit import fit_of
from nbpatch.engine.graphs import graph_of
from nbpatch.engine.loop import drive
from nbpatch.errors import CircuitError, PlanError
from nbpatch.graph import Circuit, Graph, random_circuit
from nbpatch.metrics import MetricLike, as_metrics, check_wrong
from nbpatch.model import load
from nbpatch.plan import NOT_RUN
from nbpatch.prompts import PromptPair, TokenizedPair
from nbpatch.result import Result


def evaluate(
    model: Any,
    circuit: Circuit,
    pairs: PromptPair | Sequence[PromptPair],
    *,
    sizes: Sequence[int] | None = None,
    corruption: AnyCorruption | None = None,
    metric: MetricLike | Sequence[MetricLike] = "logit_diff",
    random: int = 5,
    seed: int = 0,
) -> Result:
    """Returns how much of the behaviour a circuit keeps when everything outside it is ablated, run exactly.

    Every receiver (a query, key or value input, an MLP, the logits) reads a copy of the residual stream of its own: to
    what stands there when every sender is ablated, kept edges add what their senders put out in this same run beyond
    their ablated value. The embeddings are the clean prompt's. `result.recovered()` is the normalised faithfulness
    (m(circuit) − m(no edge)) / (m(model) − m(no edge)): 1 for the whole model, 0 for nothing kept.

    Args:
        model: what `load` takes or returned.
        circuit: of this model; `eap` makes one.
        pairs: on which it is tried, prompts of equal length in a pair. Others than those it was found on say more.
        sizes: numbers of edges to keep, the strongest by |score| among the circuit's. None: all of the circuit's.
        corruption: the ablated value of senders: None for their value in the corrupted run, `Zero()`,
            `Mean(dataset)` or `Resample(dataset, k)`.
        metric: a name, a function logits [pair d_vocab] → [pair], or a list of them.
        random: how many random circuits of each size are run beside it; every edge of them leads to the logits.
        seed: of these.

    Returns:
        A `Result` whose `data` has dims (circuit, edges, pair): `circuit` is "found", "random 0", …; `edges` the
        number of edges. `baselines` hold the model's clean run and the run without any edge.

    Raises:
        CircuitError: not a circuit, one of another model, or of positions that a pair does not have.
        PlanError: sizes or numbers that make no sense, prompts of unequal length, or a corruption of another kind.
        SiteError: what heads write does not add up in this model, with the reason.
        PromptError: a pair that cannot be used.
        MetricError: an unknown metric, or one that lacks what it needs.

    Source: Wang et al. 2022; Hanna et al. 2024; Mueller et al. 2025 for faithfulness by number of edges.
    """
    kind, metrics = _corruption(corruption), as_metrics(metric)
    asked = _sizes(circuit, sizes)
    if not isinstance(random, int) or random < 0:
        fix = "random=5, or 0 for none"
        raise PlanError("random counts circuits.", where="random", seen=repr(random), fix=fix)
    ready = load(model)
    parts, graph, additive = graph_of(ready, fit_of(ready))
    _refuse_other(circuit.graph, graph)
    tokenized = ready.tokenize(pairs)
    refuse_pairs(tokenized)
    _refuse_positions(circuit, tokenized)
    check_wrong(metrics, {number: one.wrong_ids for number, one in enumerate(tokenized)})
    names = ("found", *(f"random {number}" for number in range(random)))
    masks = _masks(circuit, asked, random, seed)
    applied = kind.applied(tokenized)
    states = np.full((1, len(names), len(asked), len(applied)), NOT_RUN, np.int8)
    plan = CircuitPlan(
        ready.shape, applied, "circuits", ("circuit", "edges"), ("denoising",), metrics, states, kind,
        graph=graph, names=names, sizes=tuple(asked), masks=masks, seed=seed,
    )  # fmt: skip
    (result,) = drive(CircuitRuns(plan, ready, parts, additive), [plan], ready)
    made = {**result.provenance, "seed": seed, "circuit": _told(circuit)}
    warnings = (*_same_pairs(circuit, result), *result.warnings)
    return replace(result, provenance=made, warnings=warnings, origin=None)


def _corruption(corruption: AnyCorruption | None) -> AnyCorruption:
    kind = as_corruption(corruption)
    if kind.kind == "noise":
        raise PlanError(
            "noise defines a corrupted run, not what an ablated sender writes.",
            where="corruption",
            seen="Noise",
            fix="corruption=None (the other prompt), nbp.Zero() or nbp.Mean(dataset)",
        )
    return kind


def _sizes(circuit: object, sizes: Sequence[int] | None) -> list[int]:
    """Returns the numbers of edges to keep.

    Raises:
        CircuitError: not a circuit.
        PlanError: none named, or one that the circuit does not have.
    """
    if not isinstance(circuit, Circuit):
        fix = "nbp.eap(model, pairs).top_edges(100)"
        raise CircuitError("not a Circuit.", where="circuit", seen=type(circuit).__name__, fix=fix)
    if sizes is None:
        return [len(circuit)]
    asked = [int(size) for size in sizes]
    if not asked or len(set(asked)) < len(asked) or min(asked) < 0 or max(asked) > len(circuit):
        raise PlanError(
            "sizes are different numbers of edges, at most the circuit's.",
            where="sizes",
            seen=f"{asked} of {len(circuit)} edges",
            fix=f"sizes=[{', '.join(str(max(1, len(circuit) // part)) for part in (10, 4, 1))}]",
        )
    return asked


def _refuse_other(theirs: Graph, ours: Graph) -> None:
    if theirs != ours:
        one, other = (f"{graph.n_layers} layers, {graph.n_heads} heads" for graph in (theirs, ours))
        raise CircuitError(
            "the circuit is of another model: its layers and heads are others.",
            where="circuit",
            seen=f"{one}; the model has {other}",
            fix="nbp.eap(model, pairs) of this model",
        )


def _refuse_positions(circuit: Circuit, tokenized: Sequence[TokenizedPair]) -> None:
    for number, one in enumerate(tokenized):
        if circuit.positions is not None and len(one.clean_ids) != circuit.positions:
            raise CircuitError(
                f"the circuit is of prompts of {circuit.positions} tokens.",
                where=f"pair {number + 1} of {len(tokenized)}",
                seen=f"{len(one.clean_ids)} tokens",
                fix="circuit.summed(), which keeps its edges at all positions",
            )


def _masks(circuit: Circuit, sizes: Sequence[int], random: int, seed: int) -> NDArray[np.bool_]:
    """Returns kept edges [circuit·size sender input pos]: the found circuit's sizes, then each random one's."""
    found = [circuit if size == len(circuit) else circuit.top_edges(size) for size in sizes]
    for number in range(random):
        found += [
            random_circuit(circuit.graph, size, seed=_seed(seed, number, size), positions=circuit.positions or 0)
            for size in sizes
        ]
    kept = np.stack([one.kept for one in found])
    return kept if circuit.positions is not None else kept[..., None]


def _seed(seed: int, number: int, size: int) -> int:
    """Returns a seed of its own for each random circuit, the same however many others there are."""
    return int(np.random.SeedSequence([seed, number, size]).generate_state(1)[0])


def _told(circuit: Circuit) -> dict[str, Any]:
    """Returns what a result keeps of the circuit: how it was found, and on which prompts."""
    made = circuit.provenance
    return {key: made[key] for key in ("method", "variant", "direction", "steps") if key in made}


def _same_pairs(circuit: Circuit, result: Result) -> list[str]:
    found = {(one["clean"], one["corrupted"]) for one in circuit.provenance.get("pairs", ())}
    tried = {(one["clean"], one["corrupted"]) for one in result.provenance["pairs"]}
    if not found & tried:
        return []
    return [
        f"Discovery and evaluation share {len(found & tried)} of {len(tried)} pairs, which flatters the circuit. "
        "Evaluate on pairs it was not found on."
    ]
