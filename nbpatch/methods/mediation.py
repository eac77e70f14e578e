"""Causal mediation: how much of what a changed prompt does goes through a part of the model, and how much past it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nbpatch.errors import PlanError, ResultError, suggest
from nbpatch.methods.patching import patch, patch_sites
from nbpatch.metrics import Answers, Metric, MetricLike, Tensor, as_metrics
from nbpatch.model import Model, load
from nbpatch.plan import MEASURED, NO_POSITION, NOT_RUN
from nbpatch.prompts import PromptPair, TokenizedPair
from nbpatch.result import Result
from nbpatch.sites import ModelShape, Site, component_of, parse_over

KINDS: tuple[str, ...] = ("TE", "NDE", "NIE")
"""Total, natural direct, natural indirect effect: the labels of a result's axis `kind`."""

SELECTIONS: tuple[str, ...] = ("top", "greedy")

ODDS = "odds_ratio"

_WHOLE = ("", "all")
_MOST_GREEDY = 2000
"""Candidates beyond which greedy selection, one run of all that are left for each of k steps, is refused."""


def mediate(
    model: Any,
    pairs: PromptPair | Sequence[PromptPair],
    mediators: str = "z",
    over: str | Sequence[str] | None = None,
    *,
    metric: MetricLike | Sequence[MetricLike] = "logit_diff",
    select: str | None = None,
    k: int = 10,
) -> Result:
    """Returns the total effect of changing x, the clean prompt, into x', and what of it each mediator M carries.

    TE = y(x') − y(x); NIE = y(x, M as on x') − y(x); NDE = y(x', M as on x) − y(x). NIE is noising; NDE is denoising,
    read against the clean run. On the difference scale y is a metric; on the scale of Vig et al. y = p(wrong) /
    p(answer), alternatives with their summed probability, and an effect is y_new / y(x) − 1. Means over pairs are
    those of each pair's own effects.

    Args:
        model: what `load` takes or returned.
        pairs: one `PromptPair` or several.
        mediators: a component: "z" or "pattern" (heads; Vig et al. set patterns), "mlp_post" (neurons), or another.
        over: which of them is a mediator: "layer head" each head, "layer" a layer of them, "layer neuron" each
            neuron, "all" (or "") everything of the component in all layers together. Default: as in `patch`.
        metric: a name, a function logits [pair d_vocab] → [pair], or a list. "odds_ratio" is always measured too;
            named first, it is what mediators are selected by.
        select: None for each mediator alone; "top" for the k with the largest NIE, together, for 1 … k; "greedy" to
            add, k times, the one with which the set's NIE is largest. Largest means furthest towards TE, which is
            negative where the clean prompt has the higher metric.
        k: how many mediators are selected, or all if there are fewer.

    Returns:
        A `Result` with dims (kind, *over, pair), `kind` one of `KINDS`. `data` holds y itself, in the metric's unit:
        y(x'), y(x', M as on x) and y(x, M as on x'); `odds_ratio` [ratio] holds y / y(x). `effect(name)` is TE, NDE
        and NIE, and `1 - recovered(name)` their share of TE. With `select` there is one axis `set`, each label the
        mediator that joins those before it. `of_kind` gives one kind's own result.

    Raises:
        SiteError: unknown mediators or axis, or ones that do not work in this model.
        PlanError: a selection that makes no sense, or is out of reach; patterns of prompts of unequal length.
        PromptError, MetricError, PatchNotApplied: as `patch`.

    Source: Vig et al. 2020, Investigating Gender Bias in Language Models Using Causal Mediation Analysis, §§ 3-4.
    """
    whole = over in _WHOLE
    axes = ("site",) if whole else parse_over(mediators, over)
    component_of(mediators)
    _check_selection(mediators, axes, select, k)
    ready = load(model)
    metrics, warned = _metrics(metric, ready.tokenize(pairs))
    if select is not None:
        return _selected(_Runs(ready, pairs, mediators, axes, metrics), select, k, warned)
    if whole:
        found = patch_sites(ready, pairs, [Site(mediators)], direction="both", metric=metrics)
    else:
        found = patch(ready, pairs, mediators, axes, direction="both", metric=metrics)
    return _mediation(found, axes, warned)


def of_kind(result: Result, kind: str) -> Result:
    """Returns one kind's own result, without the axis `kind`, so that maps and lists hold nothing else.

    Effects stay those against the clean run, for NDE too.

    Raises:
        ResultError: not a result of `mediate`, or an unknown kind.
    """
    if "kind" not in result.data.dims:
        seen = f"a result of {result.provenance.get('method')} with axes {' '.join(map(str, result.data.dims))}"
        fix = "mediate(model, pairs, …)"
        raise ResultError("that is about effects and what mediates them.", where="of_kind", seen=seen, fix=fix)
    if kind not in KINDS:
        seen = f"kinds {', '.join(KINDS)}"
        raise ResultError(f"no kind {kind!r} of effect.", where="of_kind", seen=seen, fix=suggest(kind, KINDS))
    return replace(result, data=result.data.sel(kind=kind, drop=True), provenance={**result.provenance, "kind": kind})


# -- what is asked


def _check_selection(component: str, axes: tuple[str, ...], select: str | None, k: object) -> None:
    if select is None:
        return
    if select not in SELECTIONS:
        seen = f"select={select!r}, k={k!r}"
        raise PlanError(f"no selection {select!r}.", where="select", seen=seen, fix=suggest(select, SELECTIONS))
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise PlanError("k counts mediators.", where="k", seen=repr(k), fix="k=10")
    odd = [axis for axis in axes if axis not in ("layer", "head", "neuron")]
    if odd:
        known = component_of(component)
        usual = " ".join(axis for axis in ("layer", known.unit) if axis in known.axes)
        raise PlanError(
            "sets are chosen among heads, neurons or layers.",
            where="over",
            seen=f"{component} over {'all' if odd == ['site'] else ' '.join(axes)}",
            fix=f'over="{usual}"' if usual else 'mediators="resid_pre", over="layer"',
        )


def _metrics(metric: object, tokenized: Sequence[TokenizedPair]) -> tuple[tuple[Metric, ...], tuple[str, ...]]:
    """Returns the metrics with the odds among them, and a warning if a pair has none for lack of a wrong answer."""
    several = metric.replace(",", " ").split() if isinstance(metric, str) else metric
    given: list[Any] = list(several) if isinstance(several, Sequence) else [several]
    odds = Metric(ODDS, "ratio", "odds ratio", _log_odds, needs_wrong=True, local=True)
    named = [odds if isinstance(one, str) and one == ODDS else one for one in given]
    lacking = [number for number, one in enumerate(tokenized) if not one.wrong_ids]
    if odds in named or not named:
        return as_metrics(named), ()
    if lacking:
        why = f"No odds ratio: pair {lacking[0] + 1} has no wrong answer. Name one: PromptPair(…, wrong=…)."
        return as_metrics(named), (why,)
    return as_metrics([*named, odds]), ()


def _log_odds(logits: Tensor, answers: Answers) -> Tensor:
    """Returns log (p(answer) / p(wrong)) [row]: −log y, as a logarithm so that no ratio overflows on its way."""

    def total(ids: Tensor) -> Tensor:
        return logits.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, float("-inf")).logsumexp(-1)

    return total(answers.answer) - total(answers.wrong)


# -- sets of mediators


@dataclass(frozen=True)
class _Runs:
    """What all runs of one selection share."""

    model: Model
    pairs: PromptPair | Sequence[PromptPair]
    component: str
    axes: tuple[str, ...]
    metrics: tuple[Metric, ...]

    def candidates(self) -> list[Site]:
        """Returns every mediator's site, in the order of a sweep's cells."""
        sizes = [_size(self.model.shape, self.component, axis) for axis in self.axes]
        named = [dict(zip(self.axes, cell, strict=True)) for cell in itertools.product(*map(range, sizes))]
        return [Site(self.component, one.get("layer"), one.get("head", one.get("neuron"))) for one in named]

    def alone(self) -> NDArray[np.float64]:
        """Returns each candidate's share of TE [candidate]."""
        metrics = self.metrics[:1]
        return _mediated(patch(self.model, self.pairs, self.component, self.axes, direction="noising", metric=metrics))

    def together(self, sets: list[list[Site]]) -> NDArray[np.float64]:
        """Returns each set's share of TE [set]."""
        return _mediated(patch_sites(self.model, self.pairs, sets, direction="noising", metric=self.metrics[:1]))


def _size(shape: ModelShape, component: str, axis: str) -> int:
    return shape.n_layers if axis == "layer" else shape.heads_of(component)


def _mediated(noised: Result) -> NDArray[np.float64]:
    """Returns NIE / TE [cell], NaN where there is none.

    Raises:
        PlanError: a run that was stopped, or a total effect of nothing.
    """
    missing = int((noised.data["state"] == NOT_RUN).sum())
    if missing:
        raise PlanError(
            "stopped before all candidates were measured: there is nothing to choose by.",
            where="select",
            seen=f"{missing} of {noised.data['state'].size} runs not run",
            fix="the same call again, or fewer candidates",
        )
    scaled = _on_scales(noised)
    share = 1 - scaled.recovered().to_numpy().ravel()
    if not np.isfinite(share).any():
        total = float((-scaled.gap()).mean()) + 0.0
        raise PlanError(
            "there is no total effect that could be mediated.",
            where="select",
            seen=f"TE of {scaled.metrics[0]}: {total:+.2g}, the mean of {scaled.data.sizes['pair']} pairs",
            fix="a corrupted prompt that changes the answer",
        )
    return share


def _selected(runs: _Runs, select: str, k: int, warned: tuple[str, ...]) -> Result:
    """Returns TE, NDE and NIE of the growing set."""
    candidates = runs.candidates()
    if select == "greedy" and len(candidates) > _MOST_GREEDY:
        raise PlanError(
            "too many candidates to try each again at every step.",
            where='select="greedy"',
            seen=f"{len(candidates)} of {runs.component} over {' '.join(runs.axes)}, at most {_MOST_GREEDY}",
            fix='select="top"',
        )
    chosen = _top(runs, candidates, k) if select == "top" else _greedy(runs, candidates, k)
    sets = [chosen[: number + 1] for number in range(len(chosen))]
    found = patch_sites(runs.model, runs.pairs, sets, direction="both", metric=runs.metrics)
    data = found.data.rename(site="set").assign_coords(set=[str(site) for site in chosen])
    made = {
        **found.provenance,
        "select": select,
        "selected_by": runs.metrics[0].name,
        "candidates": len(candidates),
        "sets": [[str(site) for site in one] for one in sets],
    }
    same = "The sets were chosen and measured on the same pairs. Measure them on others: provenance['sets'] has them."
    return _mediation(replace(found, data=data, provenance=made), ("set",), (*warned, same))


def _top(runs: _Runs, candidates: Sequence[Site], k: int) -> list[Site]:
    share = runs.alone()
    order = [int(place) for place in np.argsort(-share, kind="stable") if np.isfinite(share[place])]
    return [candidates[place] for place in order[:k]]


def _greedy(runs: _Runs, candidates: Sequence[Site], k: int) -> list[Site]:
    share = runs.alone()
    left = [site for site, one in zip(candidates, share, strict=True) if np.isfinite(one)]
    chosen = [candidates[int(np.nanargmax(share))]]
    left.remove(chosen[0])
    while left and len(chosen) < k:
        share = runs.together([[*chosen, site] for site in left])
        chosen.append(left.pop(int(np.nanargmax(share))))
    return chosen


# -- the result


def _mediation(both: Result, axes: tuple[str, ...], warned: tuple[str, ...]) -> Result:
    """Returns a run in both directions as one of kinds of effect, all of them against the clean run."""
    scaled = _on_scales(both)
    first = scaled.metrics[0]
    # The same is true of the odds, most often: once is enough.
    twice = {one for one in scaled.warnings if one.replace(f"{ODDS} ", f"{first} ") in set(scaled.warnings) - {one}}
    made = {**scaled.provenance, "method": "mediate", "over": list(axes), "direction": "noising", "kinds": list(KINDS)}
    warnings = (*(one for one in scaled.warnings if one not in twice), *warned)
    return replace(scaled, data=_by_kind(scaled), provenance=made, warnings=warnings, origin=None)


def _on_scales(found: Result) -> Result:
    """Returns a result whose odds are ratios to the clean run's, which is 1, instead of logarithms."""
    if ODDS not in found.metrics:
        return found
    row = found.metrics.index(ODDS)
    clean = found.baselines["clean"].to_numpy()[row]
    data = found.data.assign({ODDS: found.data[ODDS].copy(data=np.exp(clean - found.data[ODDS].to_numpy()))})
    baselines = found.baselines.copy(deep=True)
    for run in ("corrupted", "clean"):
        baselines[run][row] = np.exp(clean - baselines[run].to_numpy()[row])
    return replace(found, data=data, baselines=baselines)


def _by_kind(both: Result) -> xr.Dataset:
    """Returns y with dims (kind, *over, pair) for y with dims (direction, *over, pair), denoising first.

    TE is the corrupted run's y, at every mediator that a pair has.
    """
    data, old = both.data, both.data["state"]
    state = old.to_numpy()
    there = state[1] != NO_POSITION
    states = np.stack([np.where(there, MEASURED, NO_POSITION), *state]).astype(np.int8)
    dims = ("kind", *(str(dim) for dim in old.dims[1:]))
    values: dict[str, Any] = {}
    for name in both.metrics:
        corrupted = both.baselines["corrupted"].sel(metric=name).to_numpy()
        total = np.where(there, corrupted, np.nan)
        values[name] = (dims, np.stack([total, *data[name].to_numpy()]), data[name].attrs)
    coords: dict[str, Any] = {dim: data[dim] for dim in dims[1:]}
    return xr.Dataset(values, {"kind": list(KINDS), **coords, "state": (dims, states)})
