"""Path patching: what some parts write differently reaches others, and nobody else."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nbpatch.engine.additive import Additive, scales_of
from nbpatch.engine.edge_plan import RECEIVERS, SENDERS, edge_axes, make_edge_plan, refuse_pairs
from nbpatch.engine.edges import Edges
from nbpatch.engine.fit import fit_of
from nbpatch.engine.loop import drive
from nbpatch.engine.path_plan import Ways, make_path_plan, read_ways, writers
from nbpatch.engine.path_runs import Paths
from nbpatch.errors import PlanError, SiteError, suggest
from nbpatch.metrics import Metric, MetricLike, as_metrics, check_wrong
from nbpatch.model import Model, load
from nbpatch.parts import Parts
from nbpatch.plan import COUNTERFACTUAL, directions_of
from nbpatch.prompts import PromptPair
from nbpatch.result import Result

VARIANTS = ("direct", "wang", "tree")

_RESTS_ON = {
    "q": ("z", "q"), "k": ("z", "k"), "v": ("z", "v"), "mlp": ("mlp_out",), "logits": ("resid_post",),
    "z": ("z",), "mlp_out": ("mlp_out",), "embed": ("resid_pre",),
}  # fmt: skip
"""The components whose patches must be exact in a model for an end of a path to be."""


def path_patch(
    model: Any,
    pairs: PromptPair | Sequence[PromptPair],
    senders: str | Sequence[str] = "z",
    receivers: str | Sequence[str] = "logits",
    over: str | Sequence[str] | None = None,
    *,
    variant: str = "direct",
    direction: str = "denoising",
    metric: MetricLike | Sequence[MetricLike] = "logit_diff",
) -> Result:
    """Returns what changes when what some parts write reaches others as in the other run of each pair.

    Each receiver's own copy of the residual stream, before its norm, takes (what the senders write in the source run −
    in the base run) at all positions. The norm, its scale too, is recomputed on that. What the receivers then put out
    is written into the base run, together, and flows on to the end of the model. Where a norm runs across heads
    (OLMo 2), a head's query is what the whole query path makes of that copy.

    Args:
        model: what `load` takes or returned.
        pairs: one `PromptPair` or several, prompts of equal length.
        senders: "z" (every head), "mlp_out" (every MLP) or "embed" (token and position embeddings together), one after
            the other; or named parts that send together: "z[0.1]", ["z[0.1]", "mlp_out[2]", "embed"].
        receivers: "q", "k" or "v" (one head's query, key or value input; key-value heads are labelled kv0, … where
            query heads share them), "mlp" (each MLP's input) or "logits" (the final norm's input), one after the
            other; or named parts that receive together: "q[3.1]", ["q[3.1]", "q[3.2]"]. Over several hops:
            "k[1.2] -> q[2.1] -> logits": what a stage's parts then write differently reaches the next stage.
        over: the order of the swept axes. Default: sender_layer, sender_head, layer, head, as far as they are swept.
        variant: "direct", the residual connection only: everything between the ends is as in the base run; "wang", MLPs
            between them are recomputed, all other heads are as in the base run; "tree", the paths through the named
            stages to the logits only: as "direct", but what the last receivers put out reaches the logits alone.
        direction: "denoising", "noising" or "both".
        metric: a name, a function logits [pair d_vocab] → [pair], or a list of them.

    Returns:
        A `Result` whose `data` holds m(patched), in the metric's unit, with dims (direction when both, *over, pair).
        NaN where no receiver is later than a sender. In blocks whose attention and MLP read the same input no head
        precedes the MLP of its own layer; in all others it does. `recovered()` of a tree is the share of the effect
        that its paths explain.

    Raises:
        SiteError: unknown senders or receivers, or ones that are not exact in this model, with the reason.
        PlanError: an unknown variant, direction or axis, a stage without names, or prompts of unequal length.
        PromptError: a pair that cannot be used.
        MetricError: unknown metric, or one that lacks what it needs.
        PatchNotApplied: a patch did not fire exactly as planned.

    Source: Wang et al. 2022 ("wang"); Goldowsky-Dill et al. 2023 ("tree"); edge by edge ("direct") as
    `transformer_lens.patching.get_act_patch_direct_path`.
    """
    _check_variant(variant)
    metrics = as_metrics(metric)
    if variant == "direct" and _swept(senders, SENDERS) and _swept(receivers, RECEIVERS):
        return _edges(model, pairs, (str(senders), str(receivers)), over, direction, metrics)
    ready = load(model)
    ways = read_ways(senders, receivers, ready.shape)
    directions = directions_of(direction, COUNTERFACTUAL)
    tokenized = ready.tokenize(pairs)
    refuse_pairs(tokenized)
    check_wrong(metrics, {number: one.wrong_ids for number, one in enumerate(tokenized)})
    named = _named(senders), _named(receivers)
    parts = _parts(ready, _kinds(ways), named)
    parallel = tuple(block.mid is None for block in parts.blocks)
    plan = make_path_plan(
        ready.shape, tokenized, ways, over, directions=directions, metrics=metrics, parallel=parallel, variant=variant
    )
    plan = replace(plan, component=" → ".join(named), named=named)
    (result,) = drive(Paths(plan, ways, ready, parts, _additive(ready, parts, ways, variant)), [plan], ready)
    return replace(result, origin=None)  # a widget cannot go on from paths


def _kinds(ways: Ways) -> list[str]:
    """Returns what stands at the ends and on the way."""
    every = (*ways.senders, *ways.stages, *ways.last)
    return list(dict.fromkeys(end.kind for ends in every for end in ends))


def _edges(
    model: Any,
    pairs: PromptPair | Sequence[PromptPair],
    ends: tuple[str, str],
    over: str | Sequence[str] | None,
    direction: str,
    metrics: Sequence[Metric],
) -> Result:
    """Returns the sweep over every single edge, all of whose senders share batches."""
    edge_axes(*ends, over)
    ready = load(model)
    tokenized = ready.tokenize(pairs)
    parts = _parts(ready, ends, ends)
    parallel = [block.mid is None for block in parts.blocks]
    plan = make_edge_plan(ready.shape, tokenized, ends, over, direction=direction, metrics=metrics, parallel=parallel)
    (result,) = drive(Edges(plan, ready, parts), [plan], ready)
    return replace(result, origin=None)


def _swept(ends: str | Sequence[str], known: dict[str, tuple[str, ...]]) -> bool:
    """Whether ends are one kind, to be swept; what is no kind and no named part is refused as such a kind too."""
    return isinstance(ends, str) and (ends in known or ends.isidentifier())


def _named(ends: str | Sequence[str]) -> str:
    return " ".join(ends.split()) if isinstance(ends, str) else " ".join(map(str, ends))


def _check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        fix = suggest(variant, VARIANTS)
        raise PlanError(f"no variant {variant!r}.", where="variant", fix=fix)


def _parts(model: Model, kinds: Sequence[str], named: tuple[str, str]) -> Parts:
    """Returns the model's parts, once all ends are known to be exact in it."""
    fit = fit_of(model)
    works = [(name, fit.works.get(name, "")) for kind in kinds for name in _RESTS_ON[kind]]
    reason = fit.reason or next((f"{name}: {why}" for name, why in works if why), "")
    if model.engine != "auto":
        reason = reason or f"model.engine is {model.engine!r}"
    if fit.parts is None or reason:
        raise SiteError(
            f"edges from {named[0]} to {named[1]} cannot be patched in {model.name}: they need the fast engine.",
            where="model",
            seen=reason,
            fix='model.engine = "auto"' if model.engine != "auto" else "model.describe() shows what can be patched",
        )
    return fit.parts


def _additive(model: Model, parts: Parts, ways: Ways, variant: str) -> Additive:
    """Returns how the parts on the paths write into the stream.

    Raises:
        SiteError: what one of them writes is not known exactly in this model.
    """
    writing = [*ways.senders, *(writers(stage, model.shape) for stage in ways.stages)]
    if variant == "tree":
        writing += [writers(ends, model.shape) for ends in ways.last]
    kinds = {one.kind for ends in writing for one in ends} | ({"mlp_out"} if variant == "wang" else set[str]())
    scales: dict[str, list[float]] = {}
    for kind in ("z", "mlp_out"):
        scales[kind], why = scales_of(model, parts, kind)
        if kind in kinds and why:
            raise SiteError(
                f"what {kind} adds to the residual stream is not known exactly in this model.",
                where="senders",
                seen=why,
                fix='senders="mlp_out" or "embed", variant="direct"' if kind == "z" else 'senders="embed"',
            )
    ones = [1.0] * len(parts.blocks)
    return Additive(scales["z"] or ones, scales["mlp_out"] or ones)


__all__ = ["RECEIVERS", "SENDERS", "VARIANTS", "path_patch"]
