"""Attribution patching: what patches would change, estimated for every site at once from one way back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nbpatch.engine import planned, run_together
from nbpatch.engine.estimate import Estimate
from nbpatch.engine.fit import Fit, fit_of
from nbpatch.engine.gradients import check_gradients, grading
from nbpatch.engine.loop import noticed, precision
from nbpatch.engine.outcome import results_of
from nbpatch.errors import PlanError, SiteError, suggest
from nbpatch.metrics import Metric, MetricLike, as_metrics
from nbpatch.model import Model, load
from nbpatch.plan import EXACT, NO_POSITION, NOT_RUN, Plan, make_plan, refuse_unequal
from nbpatch.prompts import PromptPair, TokenizedPair
from nbpatch.result import VERIFIED, Result
from nbpatch.several import together
from nbpatch.sites import acting, parse_sweep

METHODS = {
    "atp": "Nanda 2023: (source − base) · gradient at the base run",
    "atp*": "Kramár et al. 2024: the softmax recomputed for queries and keys, gradients dropped layer by layer",
    "ig": "integrated gradients: the gradient averaged between base and source",
}


def attribute(
    model: Any,
    pairs: PromptPair | Sequence[PromptPair],
    sites: str | Sequence[str] = "z",
    *,
    method: str = "atp",
    direction: str = "denoising",
    metric: MetricLike | Sequence[MetricLike] = "logit_diff",
    steps: int = 10,
    verify: int = 0,
) -> Result:
    """Returns an estimate of what `patch` would give, for every cell from two forwards and one backward.

    A cell's score is (activation in the source run − in the base run) · ∂metric/∂activation at the base run, summed
    over what the cell patches. Good for small parts (heads, neurons); poor for whole residual streams, where norms
    and the parts that saturate are far from linear.

    Args:
        model: what `load` takes or returned.
        pairs: one `PromptPair` or several.
        sites: components, over their usual axes or named ones: "z", "q k v", "mlp_post over layer neuron pos". Those
            of one call need the same axes. Queries and keys are after their own norms and rotary embedding.
        method: "atp", the gradient at the base run; "atp*": for queries and keys, what the softmax makes of them is
            recomputed and only what is behind it estimated, and the size of every score is the mean over layers of
            its size when no gradient passes that layer's attention and MLP (Σ / (layers − 1)), its sign that of the
            estimate without dropping; "ig": the gradient averaged over `steps` runs on the straight line between
            both runs' embeddings.
        direction: "denoising", "noising" or "both".
        metric: a name, a function logits [pair d_vocab] → [pair], or a list of them; it needs a gradient.
        steps: points k / steps, k = 1 … steps, of integrated gradients.
        verify: how many of the strongest cells to run exactly as well: `result.against()` compares.

    Returns:
        A `Result` that reads like one of `patch`: `effect()` is the score [metric unit], `data` holds m(base) + score.
        Exact values of verified cells are in the coordinate `exact_<metric>`.

    Raises:
        SiteError: an unknown component or axis, or one that does not work in this model.
        PlanError: an unknown method or direction, no steps, or prompts of unequal length where positions must meet.
        PromptError: a pair that cannot be used.
        MetricError: an unknown metric, one without a gradient, or −KL at the clean run, where its gradient is zero.

    Source: Nanda 2023; Kramár et al. 2024 (AtP*); Sundararajan et al. 2017 (integrated gradients).
    """
    _check(method, steps, verify)
    metrics = as_metrics(metric)
    swept = [parse_sweep(one) for one in ([sites] if isinstance(sites, str) else sites)]
    ready = load(model)
    fit = fit_of(ready)
    tokenized = ready.tokenize(pairs)
    named = [(component, axes) for components, axes in swept for component in components]
    plans = [_plan(ready, fit, tokenized, one, direction, metrics) for one in _same_axes(named)]
    check_gradients(metrics, plans[0].directions, method)
    if method == "ig":
        what = "ig needs prompts of equal length: both runs' embeddings meet position by position."
        refuse_unequal(tokenized, what, 'method="atp"')
    if fit.parts is None:
        raise LookupError("a model without parts was let through")
    with grading():
        done, spent = Estimate(plans, ready, fit.parts, fit.returns, method=method, steps=steps).run()
    results = results_of(done, ready, {**spent, **precision(fit)}, noticed(ready, fit))
    made = {"method": "attribute", "variant": method, **({"steps": steps} if method == "ig" else {})}
    warned = [_large(plan, ready) for plan in plans]
    results = [
        replace(one, provenance={**one.provenance, **made}, warnings=(*warning, *one.warnings), origin=None)
        for one, warning in zip(results, warned, strict=True)
    ]
    results = _verified(results, plans, ready, verify) if verify else results
    return results[0] if len(results) == 1 else together(results)


def _check(method: str, steps: object, verify: object) -> None:
    if method not in METHODS:
        raise PlanError(f"no method {method!r}.", where="method", fix=suggest(method, METHODS))
    for name, value, least in (("steps", steps, 1), ("verify", verify, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise PlanError(f"{name} is a number from {least}.", where=name, seen=repr(value), fix=f"{name}=10")


def _same_axes(named: Sequence[tuple[str, tuple[str, ...]]]) -> Sequence[tuple[str, tuple[str, ...]]]:
    """Returns components with their axes.

    Raises:
        PlanError: none named, one named twice, different axes, or labels as an axis.
    """
    names = [name for name, _ in named]
    if not names or len(set(names)) < len(names):
        what = "a component is named twice." if names else "no component named."
        raise PlanError(what, where="sites", seen=repr(names), fix='"q k v over layer head"')
    if len({axes for _, axes in named}) > 1:
        raise PlanError(
            "components estimated together need the same axes.",
            where="sites",
            seen="; ".join(f"{name}: {' '.join(axes)}" for name, axes in named),
            fix='"z mlp_out over layer pos", or one call for each',
        )
    if "label" in named[0][1]:
        fix = f'"{names[0]} over {" ".join("pos" if axis == "label" else axis for axis in named[0][1])}"'
        raise PlanError("estimates have no axis label: places add up.", where="sites", fix=fix)
    return named


def _plan(
    model: Model,
    fit: Fit,
    tokenized: Sequence[TokenizedPair],
    named: tuple[str, tuple[str, ...]],
    direction: str,
    metrics: Sequence[Metric],
) -> Plan:
    """Returns the sweep whose cells are estimated.

    Raises:
        SiteError: a component whose gradient is not known in this model.
    """
    component, axes = named
    plan = make_plan(model.shape, tokenized, component, axes, direction=direction, metrics=metrics)
    reason = fit.reason or fit.works.get(acting(component), "") or _hidden(component)
    if reason or model.engine != "auto":
        raise SiteError(
            f"{component} cannot be estimated in {model.name}.",
            where="sites",
            seen=reason or f"model.engine is {model.engine!r}",
            fix="nbp.patch runs it exactly" if reason else 'model.engine = "auto"',
        )
    return plan


def _hidden(component: str) -> str:
    return "scores are seen by hooks only" if component == "scores" else ""


def _large(plan: Plan, model: Model) -> tuple[str, ...]:
    """Returns a warning where whole residual streams are estimated, with what the exact sweep would cost."""
    if not plan.component.startswith(("resid", "embed")):
        return ()
    cost = planned(plan, model).cost
    seconds = "" if cost is None else f" (about {cost.seconds:.2g} s)"
    return (
        f"Attribution of whole {plan.component} is a poor estimate: norms and saturated parts are not linear in it. "
        f'The exact sweep is nbp.patch(model, pairs, "{plan.component}"), {plan.n_runs} runs{seconds}.',
    )


# -- verified cells


def _verified(results: Sequence[Result], plans: Sequence[Plan], model: Model, k: int) -> list[Result]:
    """Returns the results with the k strongest cells of all, by the first metric, run exactly as well."""
    effects = [np.abs(_by_direction(one, plan)) for one, plan in zip(results, plans, strict=True)]
    flat = np.concatenate([np.nan_to_num(one, nan=-1.0).ravel() for one in effects])
    strongest = np.zeros(len(flat), np.bool_)
    strongest[np.argsort(-flat, kind="stable")[:k]] = True
    chosen = np.split(strongest, np.cumsum([one.size for one in effects])[:-1])
    masked = [
        replace(plan, states=_only(plan, mine.reshape(plan.states.shape[:-1])))
        for plan, mine in zip(plans, chosen, strict=True)
    ]
    exact = run_together(masked, model)
    return [
        _with_exact(one, found, mine.reshape(plan.states.shape[:-1]), plan)
        for one, found, mine, plan in zip(results, exact, chosen, plans, strict=True)
    ]


def _by_direction(result: Result, plan: Plan) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns mean effects [direction *over]."""
    return result.effect().to_numpy().reshape(plan.states.shape[:-1])


def _only(plan: Plan, chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Returns the states of a plan in which only some cells are run."""
    run = np.where(chosen[..., None] | (plan.states == NO_POSITION), plan.states, EXACT)
    return run.astype(np.int8)


def _with_exact(result: Result, exact: Result, chosen: np.ndarray[Any, np.dtype[np.bool_]], plan: Plan) -> Result:
    """Returns a result with exact values beside the estimates of some cells."""
    there = chosen[..., None] if plan.both else chosen[0][..., None]
    columns: dict[str, Any] = {
        f"{VERIFIED}{name}": (exact.data[name].dims, np.where(there, exact.data[name].to_numpy(), np.nan))
        for name in result.metrics
    }
    made = {**result.provenance, "verified": int((chosen[..., None] & (plan.states == NOT_RUN)).any(-1).sum())}
    return replace(result, data=result.data.assign_coords(columns), provenance=made)


__all__ = ["METHODS", "attribute"]
