"""Path patching: one part's change reaches one other part along the residual connection, and nobody else."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from nbpatch.engine.describe import describe_model, describe_tokens, describe_versions
from nbpatch.engine.edge_plan import LABELS, NO_PATH, RECEIVERS, SENDERS, EdgePlan, edge_axes, make_edge_plan
from nbpatch.engine.edges import Edges
from nbpatch.engine.fit import fit_of
from nbpatch.engine.lint import lint
from nbpatch.engine.table import Table
from nbpatch.errors import PlanError, SiteError, suggest
from nbpatch.metrics import MetricLike, as_metrics
from nbpatch.model import Model, load
from nbpatch.parts import Parts
from nbpatch.plan import EXACT, MEASURED
from nbpatch.prompts import PromptPair
from nbpatch.result import Result

VARIANTS = ("direct",)

_PUBLISHED = {
    "wang": "Wang et al. 2022: other heads frozen, MLPs recomputed",
    "tree": "Goldowsky-Dill et al. 2023: the treeified model",
}

_RESTS_ON = {
    "q": ("z", "q"), "k": ("z", "k"), "v": ("z", "v"), "mlp": ("mlp_out",), "logits": ("resid_post",),
    "z": ("z",), "mlp_out": ("mlp_out",), "embed": ("resid_pre",),
}  # fmt: skip
"""The components whose patches must be exact in a model for an end of an edge to be."""


def path_patch(
    model: Any,
    pairs: PromptPair | Sequence[PromptPair],
    senders: str = "z",
    receivers: str = "q",
    over: str | Sequence[str] | None = None,
    *,
    variant: str = "direct",
    direction: str = "denoising",
    metric: MetricLike | Sequence[MetricLike] = "logit_diff",
) -> Result:
    """Returns what changes when one sender's output reaches one receiver as in the other run of each pair.

    For each edge the receiver's own copy of the residual stream, before its norm, takes (the sender's output in the
    source run − in the base run) at all positions. The norm, its scale too, is recomputed on that; all that the
    receiver reads else and all that others read stay as in the base run. What the receiver then puts out flows on to
    the end of the model. Where a norm runs across heads (OLMo 2), a head's query is what the whole query path makes
    of that copy.

    Args:
        model: what `load` takes or returned.
        pairs: one `PromptPair` or several, prompts of equal length.
        senders: "z" (every head), "mlp_out" (every MLP) or "embed" (token and position embeddings together).
        receivers: "q", "k" or "v" (one head's query, key or value input; key-value heads are labelled kv0, … where
            query heads share them), "mlp" (each MLP's input) or "logits" (the final norm's input).
        over: the order of the axes; all of them are swept. Default: sender_layer, sender_head, layer, head, as far
            as the two ends have them.
        variant: "direct", the residual connection only.
        direction: "denoising", "noising" or "both".
        metric: a name, a function logits [pair d_vocab] → [pair], or a list of them.

    Returns:
        A `Result` whose `data` holds m(patched), in the metric's unit, with dims (direction when both, *over, pair).
        NaN where the receiver is not later than the sender. In blocks whose attention and MLP read the same input
        no head precedes the MLP of its own layer; in all others it does.

    Raises:
        SiteError: unknown senders or receivers, or ones that are not exact in this model, with the reason.
        PlanError: an unknown variant, direction or axis, or prompts of unequal length.
        PromptError: a pair that cannot be used.
        MetricError: unknown metric, or one that lacks what it needs.
        PatchNotApplied: a patch did not fire exactly as planned.

    Source: Wang et al. 2022; edge by edge as `transformer_lens.patching.get_act_patch_direct_path`.
    """
    _check_variant(variant)
    edge_axes(senders, receivers, over)
    metrics = as_metrics(metric)
    ready = load(model)
    tokenized = ready.tokenize(pairs)
    parts = _parts(ready, senders, receivers)
    parallel = [block.mid is None for block in parts.blocks]
    plan = make_edge_plan(
        ready.shape, tokenized, (senders, receivers), over, direction=direction, metrics=metrics, parallel=parallel
    )
    return _run(plan, ready, parts, variant)


def _check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        raise PlanError(
            f"no variant {variant!r} yet." if variant in _PUBLISHED else f"no variant {variant!r}.",
            where="variant",
            seen=_PUBLISHED.get(variant, ""),
            fix='variant="direct": the residual connection only, everything else frozen'
            if variant in _PUBLISHED
            else suggest(variant, VARIANTS),
        )


def _parts(model: Model, senders: str, receivers: str) -> Parts:
    """Returns the model's parts, once both ends of the edges are known to be exact in it."""
    fit = fit_of(model)
    works = [(name, fit.works.get(name, "")) for name in (*_RESTS_ON[senders], *_RESTS_ON[receivers])]
    reason = fit.reason or next((f"{name}: {why}" for name, why in works if why), "")
    if model.engine != "auto":
        reason = reason or f"model.engine is {model.engine!r}"
    if fit.parts is None or reason:
        raise SiteError(
            f"edges from {senders} to {receivers} cannot be patched in {model.name}: they need the fast engine.",
            where="model",
            seen=reason,
            fix='model.engine = "auto"' if model.engine != "auto" else "model.describe() shows what can be patched",
        )
    return fit.parts


def _run(plan: EdgePlan, model: Model, parts: Parts, variant: str) -> Result:
    """Returns the result of a plan; interrupting the kernel keeps what is finished."""
    started = time.perf_counter()
    engine = Edges(plan, model, parts)
    table = Table(plan, engine.trace())
    stopped = False
    try:
        for wave in engine.waves():
            for _, filled in wave():
                table.fill(filled)
    except KeyboardInterrupt:
        stopped = True
    spent = {"name": engine.name, **engine.spent(), "seconds": round(time.perf_counter() - started, 4)}
    names = [metric.name for metric in plan.metrics]
    baselines = xr.Dataset(
        {
            run: (("metric", "pair"), np.stack([table.baselines[name][run] for name in names]))
            for run in ("clean", "corrupted")
        },
        coords={"metric": names, "pair": np.arange(len(plan.tokenized))},
    )
    provenance = {**_provenance(plan, model, table, spent), "variant": variant}
    return Result(_dataset(plan, table), baselines, provenance, lint(table, stopped=stopped))


def _dataset(plan: EdgePlan, table: Table) -> xr.Dataset:
    dims = (*(("direction",) if plan.both else ()), *plan.over, "pair")
    coords: dict[str, Any] = {"direction": list(plan.directions)} if plan.both else {}
    for axis, size in zip(plan.over, table.state.shape[1:-1], strict=True):
        heads = list(plan.shape.head_labels(plan.receivers)) if axis == "head" else None
        coords[axis] = heads or np.arange(size)
    coords["pair"] = np.arange(len(plan.tokenized))
    coords["state"] = (dims, table.state if plan.both else table.state[0])
    values = {name: found if plan.both else found[0] for name, found in table.values.items()}
    return xr.Dataset(
        {
            metric.name: (dims, values[metric.name], {"unit": metric.unit, "label": metric.label})
            for metric in plan.metrics
        },
        coords=coords,
    )


def _provenance(plan: EdgePlan, model: Model, table: Table, spent: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": "path_patch",
        "senders": plan.senders,
        "receivers": plan.receivers,
        "component": plan.component,
        "component_label": f"{LABELS[plan.senders]} → {LABELS[plan.receivers]}",
        "over": list(plan.over),
        "direction": "both" if plan.both else plan.directions[0],
        "metrics": [metric.describe() for metric in plan.metrics],
        "corruption": "counterfactual",
        "model": describe_model(model),
        "pairs": _describe_pairs(plan, model, table),
        "engine": {
            **spent,
            "cells": plan.n_cells,
            "runs": plan.n_runs,
            "run": int((table.state == MEASURED).sum()),
            "exact": int((table.state == EXACT).sum()),
            "no_path": int((table.state == NO_PATH).sum()),
        },
        "versions": describe_versions(),
        "seed": None,
    }


def _describe_pairs(plan: EdgePlan, model: Model, table: Table) -> list[dict[str, Any]]:
    tops = {f"{run}_top": model.top_tokens(logits) for run, logits in table.runs.logits.items()}
    return [
        {**describe_tokens(one), **{name: top[number] for name, top in tops.items()}}
        for number, one in enumerate(plan.tokenized)
    ]


__all__ = ["RECEIVERS", "SENDERS", "VARIANTS", "path_patch"]
