"""Edge attribution patching: every edge of the model scored from one way back."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbpatch.engine.base import BaseRuns
from nbpatch.engine.describe import describe_model, describe_versions
from nbpatch.engine.edge_plan import refuse_pairs
from nbpatch.engine.edge_scores import EdgeScores, Way
from nbpatch.engine.fit import fit_of
from nbpatch.engine.gradients import Differentiated, check_gradients, grading
from nbpatch.engine.graphs import graph_of
from nbpatch.engine.loop import noticed
from nbpatch.engine.outcome import describe_pairs
from nbpatch.engine.table import baselines_of
from nbpatch.errors import MetricError, PlanError, suggest
from nbpatch.graph import Circuit
from nbpatch.metrics import Metric, MetricLike, as_metrics, check_wrong
from nbpatch.model import Model, load
from nbpatch.plan import DIRECTIONS, Direction
from nbpatch.prompts import PromptPair, TokenizedPair

METHODS = {
    "eap": "Syed et al. 2023: the gradient at the base run",
    "eap-ig": "Hanna et al. 2024: the gradient averaged between both runs' embeddings",
    "eap-ig-activations": "the gradient averaged while the senders' own outputs go from base to source",
    "clean-corrupted": "the mean of the gradients at the clean and at the corrupted run",
}


def eap(
    model: Any,
    pairs: PromptPair | Sequence[PromptPair],
    *,
    method: str = "eap",
    direction: str = "denoising",
    metric: MetricLike = "logit_diff",
    steps: int = 5,
    by_position: bool = False,
) -> Circuit:
    """Returns every edge of the model with an estimate of what patching it alone would change.

    An edge leads from what the embeddings, a head or an MLP write to one other part's own copy of the residual
    stream, before its norm: the query of a head, the key or value of a key-value head, an MLP, the logits. Its score
    is the mean over pairs of (what the sender writes in the source run − in the base run) · ∂metric/∂(that copy).

    Args:
        model: what `load` takes or returned.
        pairs: one `PromptPair` or several, prompts of equal length in a pair.
        method: "eap", the gradient at the base run; "eap-ig", averaged over `steps` runs on the straight line between
            both runs' embeddings; "eap-ig-activations", for the edges from the embeddings, from a layer's heads or
            from its MLP averaged over runs in which these senders alone put out what lies between base and source;
            "clean-corrupted", the mean of the gradients at both runs.
        direction: "denoising" (base = corrupted run) or "noising" (base = clean run).
        metric: a name or a function logits [pair d_vocab] → [pair]; it needs a gradient.
        steps: points k / steps, k = 1 … steps, at which gradients are taken.
        by_position: whether scores are told apart by position instead of summed.

    Returns:
        A `Circuit` of all edges. Scores are signed, in the metric's unit; `top_edges(k)` takes the strongest.

    Raises:
        SiteError: what heads write does not add up in this model, or it is run by replay, with the reason.
        PlanError: an unknown method or direction, no steps, or prompts of unequal length.
        MetricError: several metrics, one without a gradient, or −KL at the clean run, where its gradient is zero.
        PromptError: a pair that cannot be used.

    Source: Syed et al. 2023 (EAP); Hanna et al. 2024 (EAP-IG); Mueller et al. 2025 (its variants).
    """
    _check(method, direction, steps)
    ready = load(model)
    measured = _one_metric(metric)
    tokenized = ready.tokenize(pairs)
    refuse_pairs(tokenized)
    if by_position:
        _refuse_lengths(tokenized)
    check_wrong([measured], {number: one.wrong_ids for number, one in enumerate(tokenized)})
    one_way: Direction = "noising" if direction == "noising" else "denoising"
    check_gradients([measured], [one_way], method)
    fit = fit_of(ready)
    parts, graph, additive = graph_of(ready, fit)
    way = Way(method, steps, max(len(one.clean_ids) for one in tokenized) if by_position else 0)
    what = Differentiated(tokenized, [one_way], [measured])
    with grading():
        scores, runs, spent = EdgeScores(what, ready, parts, fit.returns, graph, additive, way).run()
    made = _made(ready, what, runs, {"method": "eap", "variant": method, "engine": spent})
    if way.n_points > 1:
        made["points"] = steps
    tokens = max((one.clean_tokens for one in tokenized), key=len) if by_position else ()
    warnings = (*noticed(ready, fit), *_warnings(tokenized))
    return Circuit(graph, scores, np.isfinite(scores), tuple(tokens), made, warnings)


def _check(method: str, direction: str, steps: object) -> None:
    if method not in METHODS:
        raise PlanError(f"no method {method!r}.", where="method", fix=suggest(method, METHODS))
    if direction not in DIRECTIONS:
        raise PlanError(f"no direction {direction!r}.", where="direction", fix=suggest(direction, DIRECTIONS))
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise PlanError("steps is a number from 1.", where="steps", seen=repr(steps), fix="steps=5")


def _one_metric(metric: MetricLike) -> Metric:
    first, *others = as_metrics(metric)
    if others:
        seen = ", ".join(one.name for one in (first, *others))
        fix = f'metric="{first.name}"'
        raise MetricError("an edge has one score, so one metric.", where="metric", seen=seen, fix=fix)
    return first


def _refuse_lengths(tokenized: Sequence[TokenizedPair]) -> None:
    lengths = sorted({len(one.clean_ids) for one in tokenized})
    if len(lengths) > 1:
        raise PlanError(
            "scores by position need pairs of one length: the same place must mean the same in all of them.",
            where="by_position",
            seen=f"prompts of {', '.join(map(str, lengths))} tokens",
            fix="by_position=False, or pairs of one length",
        )


def _made(model: Model, what: Differentiated, runs: BaseRuns, method: dict[str, Any]) -> dict[str, Any]:
    """Returns what a circuit's provenance says."""
    metric = what.metrics[0]
    baselines = baselines_of([metric], runs)[metric.name]
    return {
        **method,
        "direction": next(iter(what.directions)),
        "metric": metric.describe(),
        "baselines": {run: float(values.mean()) for run, values in baselines.items()},
        "corruption": "counterfactual",
        "model": describe_model(model),
        "pairs": describe_pairs(what.tokenized, runs.logits, model),
        "versions": describe_versions(),
    }


def _warnings(tokenized: Sequence[TokenizedPair]) -> list[str]:
    if len(tokenized) > 1:
        return []
    return ["One pair only: edges may be about its words. Add pairs."]


__all__ = ["METHODS", "eap"]
