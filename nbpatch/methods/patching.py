"""Activation patching: put activations of one run into the other, cell by cell, and see what changes."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nbpatch.corruption import AnyCorruption, as_corruption
from nbpatch.engine import Progress, planned, run_together
from nbpatch.errors import PlanError
from nbpatch.joint import make_sites_plan, make_window_plan, read_sets
from nbpatch.metrics import Metric, MetricLike, as_metrics
from nbpatch.model import Model, load
from nbpatch.plan import PATTERNS, Plan, make_plan
from nbpatch.prompts import PromptPair, TokenizedPair
from nbpatch.result import Result
from nbpatch.several import together
from nbpatch.sites import COMPONENTS, SWEEPABLE, ModelShape, Site, parse_over

if TYPE_CHECKING:
    from tqdm import tqdm


def patch(
    model: Any,
    pairs: PromptPair | Sequence[PromptPair],
    component: str | Sequence[str],
    over: str | Sequence[str] | None = None,
    *,
    direction: str | None = None,
    metric: MetricLike | Sequence[MetricLike] = "logit_diff",
    corruption: AnyCorruption | None = None,
    window: int = 1,
) -> Result:
    """Returns what changes when one activation after the other is taken from the other run of each pair.

    Denoising runs the corrupted prompt with activations of the clean run (what is sufficient to restore the
    behaviour); noising the clean prompt with activations of the corrupted run (what is necessary to keep it).

    Args:
        model: what `load` takes or returned.
        pairs: one `PromptPair` or several.
        component: embed, resid_pre, resid_mid, resid_post, attn_out, mlp_out, z, q, k, v, pattern, scores, mlp_post or
            head_out; or several of them with the same axes, as a list or in one string: they share their base runs and
            every batch.
        over: swept axes, such as "layer pos" or "layer head pos"; an axis not named is patched whole. "layer label"
            sweeps the places that all pairs have labelled, and "END". Default: "layer head" for what heads do, "layer
            pos" for the rest.
        direction: "denoising", "noising" or "both". Default: denoising; noising for an ablation.
        metric: a name (logit_diff, log_prob, prob, kl, rank, accuracy), a function logits [pair d_vocab] → [pair],
            or a list of them; all are measured on the same runs.
        corruption: where values come from: None for the other prompt of the pair, `Zero()`, `Mean(dataset)`,
            `Resample(dataset, k)`, or `Noise(at)`, which defines the corrupted run. What is drawn at random is drawn
            several times; values are means over the draws, `result.spread()` has their deviation.
        window: how many adjacent layers are patched together in each cell, centred on its layer and clipped at the
            ends.

    Returns:
        A `Result`: `result.data` holds m(patched) with dims (component when several, direction when both, *over,
        pair).

    Raises:
        SiteError: unknown component or axis, or one that does not work in this model.
        PlanError: a direction, corruption or window that makes no sense, or a dataset that lacks what a pair needs.
        PromptError: a pair that cannot be used.
        MetricError: unknown metric, or one that lacks what it needs.
        PatchNotApplied: a patch did not fire exactly as planned.

    Source: Vig et al. 2020; Meng et al. 2022; Wang et al. 2022; Zhang & Nanda 2024 for directions and metrics.
    """
    kind, metrics = as_corruption(corruption), as_metrics(metric)
    swept = _components(component, over)
    ready = load(model)
    tokenized = ready.tokenize(pairs)
    plans = [
        _plan(ready.shape, tokenized, name, axes, direction=direction, metrics=metrics, corruption=kind, window=window)
        for name, axes in swept
    ]
    results = _run(plans, ready, None)
    return results[0] if len(results) == 1 else together(results)


def patch_sites(
    model: Any,
    pairs: PromptPair | Sequence[PromptPair],
    sites: Sequence[str | Site | Sequence[str | Site]],
    *,
    from_: Sequence[str | Site] | None = None,
    direction: str | None = None,
    metric: MetricLike | Sequence[MetricLike] = "logit_diff",
    corruption: AnyCorruption | None = None,
) -> Result:
    """Returns what changes when named sites, or sets of them together, take their values from another run.

    Args:
        sites: the cells: each a site, such as "z[3.1] @ END" or "resid_pre[2] @ S2", or a list of sites that are
            patched in one run. A label stands for all its positions in each pair.
        from_: for each single site the site whose value goes there: one cell patched into another layer or position.
            None: each its own.

    The other arguments and errors are those of `patch`.

    Returns:
        A `Result` whose `data` has dims (direction when both, site, pair); `site` holds the sites as text.

    Raises:
        SiteError: a text that is no site, or a site that the model does not have.
        PlanError: a place written twice in a set, a place no pair has, or a `from_` that does not fit.
    """
    sets = read_sets(sites, from_)
    kind, metrics = as_corruption(corruption), as_metrics(metric)
    ready = load(model)
    tokenized = ready.tokenize(pairs)
    plan = make_sites_plan(ready.shape, tokenized, sets, direction=direction, metrics=metrics, corruption=kind)
    return _run([plan], ready, None)[0]


def _plan(
    shape: ModelShape,
    tokenized: Sequence[TokenizedPair],
    component: str,
    axes: tuple[str, ...],
    *,
    direction: str | None,
    metrics: Sequence[Metric],
    corruption: AnyCorruption,
    window: int = 1,
) -> Plan:
    """Returns the plan of one component: its cells are single places, or several where the sweep asks for it."""
    layerless = "layer" not in axes and "layer" in COMPONENTS[component].axes and component not in PATTERNS
    if window != 1 or "label" in axes or layerless:
        return make_window_plan(
            shape,
            tokenized,
            component,
            axes,
            direction=direction,
            metrics=metrics,
            corruption=corruption,
            window=window,
        )
    return make_plan(shape, tokenized, component, axes, direction=direction, metrics=metrics, corruption=corruption)


def patch_every(
    model: Any,
    pairs: PromptPair | Sequence[PromptPair],
    sweeps: Sequence[str] | None = None,
    *,
    direction: str | None = None,
    metric: MetricLike | Sequence[MetricLike] = "logit_diff",
    corruption: AnyCorruption | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Result]:
    """Returns several sweeps, each with axes of its own, that share their base runs and every batch.

    Args:
        sweeps: components, each over its usual axes or over those named: ["resid_pre", "z over layer head pos"].
            Default: every component that works in this model.
        on_progress: called after every wave; default: in a terminal, a progress bar when the run is long.

    The other arguments and errors are those of `patch`.

    Returns:
        One `Result` for each sweep, by the words it was asked for with.
    """
    ready = load(model)
    if sweeps is None:
        sweeps = [name for name in SWEEPABLE if ready.capabilities[name].status == "works"]
    asked = {str(one): _component_and_axes(str(one)) for one in sweeps}
    if not asked or len(asked) < len(sweeps):
        what = "a sweep is named twice." if asked else "no sweep named."
        raise PlanError(what, where="sweeps", seen=repr(sweeps), fix='["resid_pre", "z over layer head pos"]')
    kind, metrics, tokenized = as_corruption(corruption), as_metrics(metric), ready.tokenize(pairs)
    plans = [
        _plan(ready.shape, tokenized, name, axes, direction=direction, metrics=metrics, corruption=kind)
        for name, axes in asked.values()
    ]
    return dict(zip(asked, _run(plans, ready, on_progress), strict=True))


def _component_and_axes(sweep: str) -> tuple[str, tuple[str, ...]]:
    """Returns what "z over layer head" names; without axes, the usual ones."""
    name, named, over = (part.strip() for part in sweep.partition(" over "))
    return name, parse_over(name, over if named else None)


_MANY, _LONG = 2000, 10.0
"""Runs from which the cost is estimated, and seconds from which it is said before they start."""


def _run(plans: Sequence[Plan], model: Model, on_progress: Callable[[Progress], None] | None) -> list[Result]:
    if sum(plan.n_runs for plan in plans) >= _MANY:
        _say_cost([planned(plan, model) for plan in plans])
    with _bar(sum(plan.n_runs for plan in plans)) as bar:
        return run_together(plans, model, on_progress=on_progress or (lambda progress: _advance(bar, progress)))


def _say_cost(plans: Sequence[Plan]) -> None:
    """Says what plans will take, before they start, where that is long."""
    if sum(plan.cost.seconds for plan in plans if plan.cost is not None) >= _LONG:
        sys.stderr.write("\n".join(plan.describe() for plan in plans) + "\n")


def dry_run(
    model: Any,
    pairs: PromptPair | Sequence[PromptPair],
    component: str,
    over: str | Sequence[str] | None = None,
    *,
    direction: str | None = None,
    metric: MetricLike | Sequence[MetricLike] = "logit_diff",
    corruption: AnyCorruption | None = None,
    window: int = 1,
) -> Plan:
    """Returns the plan that `patch` would run, with what it will cost; nothing is run but a short calibration.

    `print(plan.describe())` says how many cells there are, how many are known without running and why, and how many
    waves, operations, bytes and seconds the rest takes. Arguments and errors are those of `patch`.
    """
    kind, metrics, axes = as_corruption(corruption), as_metrics(metric), parse_over(component, over)
    ready = load(model)
    tokenized = ready.tokenize(pairs)
    plan = _plan(
        ready.shape, tokenized, component, axes, direction=direction, metrics=metrics, corruption=kind, window=window
    )
    return planned(plan, ready)


def _components(component: str | Sequence[str], over: str | Sequence[str] | None) -> list[tuple[str, tuple[str, ...]]]:
    """Returns the named components, each with the swept axes, which must be the same for all.

    Raises:
        PlanError: none named, one named twice, or components whose usual axes differ.
    """
    names = component.replace(",", " ").split() if isinstance(component, str) else [str(one) for one in component]
    if not names or len(set(names)) < len(names):
        what = "a component is named twice." if names else "no component named."
        raise PlanError(what, where="component", seen=repr(component), fix='"resid_pre attn_out mlp_out"')
    swept = [(name, parse_over(name, over)) for name in names]
    axes = {axes for _, axes in swept}
    if len(axes) > 1:
        raise PlanError(
            "components run together need the same axes.",
            where="over",
            seen="; ".join(f"{name}: {' '.join(axes)}" for name, axes in swept),
            fix='over="layer", or one call for each',
        )
    return swept


def _bar(total: int) -> "tqdm[Any]":
    """Returns a progress bar that shows itself in a terminal only, when a run takes longer than a second.

    In a notebook it would leave a widget without a picture in the saved file.
    """
    from tqdm.std import tqdm

    return tqdm(total=total, desc="patching", unit="run", delay=1.0, leave=False, disable=None)


def _advance(bar: "tqdm[Any]", progress: Progress) -> None:
    bar.update(progress.done - bar.n)
