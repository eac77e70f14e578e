"""Path patching: one part's change reaches one other part along the residual connection, and nobody else."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nbpatch.engine.edge_plan import RECEIVERS, SENDERS, edge_axes, make_edge_plan
from nbpatch.engine.edges import Edges
from nbpatch.engine.fit import fit_of
from nbpatch.engine.loop import drive
from nbpatch.errors import PlanError, SiteError, suggest
from nbpatch.metrics import MetricLike, as_metrics
from nbpatch.model import Model, load
from nbpatch.parts import Parts
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
    result = drive(Edges(plan, ready, parts), [plan], ready)[0]
    # A widget cannot go on from edges.
    return replace(result, origin=None)


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


__all__ = ["RECEIVERS", "SENDERS", "VARIANTS", "path_patch"]
