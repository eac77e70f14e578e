"""The same sweep by several metrics, corruptions and directions, side by side: what depends on these choices.

Only `compare` itself runs a model; everything else reads a `Result`, a saved one too, and loads no torch.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr

from nbpatch.corruption import AnyCorruption, as_corruption
from nbpatch.errors import PlanError, ResultError, suggest
from nbpatch.metrics import MetricLike
from nbpatch.plan import DIRECTIONS
from nbpatch.prompts import PromptPair
from nbpatch.result import SPREAD, STATES, Result
from nbpatch.statistics import agreed

Column: TypeAlias = tuple[str, str, str]
"""One way to read the sweep: corruption, direction, metric."""

_CHOICES = ("corruption", "direction", "metric")
_OWN = ("method", "corruption", "direction", "engine")
"""What of the provenance is always a single corruption's own."""

_NOT_RUN = STATES.index("not run")
_WHY = "an ablation changes the clean run; there is no corrupted run to restore anything in"


def compare(
    model: Any,
    pairs: PromptPair | Sequence[PromptPair],
    component: str | Sequence[str],
    over: str | Sequence[str] | None = None,
    *,
    metrics: MetricLike | Sequence[MetricLike] = ("logit_diff", "log_prob", "prob", "kl"),
    corruptions: Sequence[object] = (None,),
    directions: str | Sequence[str] = DIRECTIONS,
) -> Result:
    """Returns the same sweep by all metrics, with all corruptions, in all directions.

    One `patch` for each corruption, in both directions where both are asked for and make sense: an ablation changes
    the clean run and has no denoising. What is left out is named in the result's warnings.

    Args:
        model: what `load` takes or returned.
        pairs: one `PromptPair` or several.
        component: one component, such as "z"; several are refused.
        over: swept axes, as for `patch`.
        metrics: names or functions; all are measured on the same runs.
        corruptions: where values come from; None is the other prompt. Two of one kind are numbered: "mean 1", "mean 2".
        directions: "denoising", "noising", or both of them.

    Returns:
        A `Result`: `result.data` holds m(patched), in each metric's unit, with dims (corruption, direction when both,
        *over, pair), NaN and "not run" where a combination was left out; its baselines have dims (metric, corruption,
        pair). `agreement` and `top_cells` compare its columns, `of_corruption` gives one corruption's own result.

    Raises:
        PlanError: several components, an unknown direction, something that is no corruption, one named twice, or
            nothing that makes sense to run. Further errors are those of `patch`.

    Source: Zhang & Nanda 2024, Towards Best Practices of Activation Patching in Language Models, §§ 3-4.
    """
    from nbpatch.methods.patching import patch
    from nbpatch.model import load

    _check_component(component)
    asked, named = _directions(directions), _named(corruptions)
    plan, left_out = _split(named, asked)
    ready = load(model)
    results = {
        name: patch(ready, pairs, component, over, direction=direction, metric=metrics, corruption=named[name])
        for name, direction in plan.items()
    }
    return _beside(results, asked, left_out)


def agreement(result: Result, k: int = 10) -> pd.DataFrame:
    """Returns how far each two columns (corruption, direction, metric) agree on the cells: one row for each two.

    `column` and `other` name them, `differs` says in which of the three choices; `rank_correlation` is Spearman's
    over the `cells` that have an effect in both, `top_overlap` the share that the k strongest, either sign, have in
    common. Effects count with the sign turned under noising, so that what carries the behaviour is positive in both.

    Raises:
        ResultError: not a result of `compare`, fewer than two columns, or no k.
    """
    _check_count(k, "k", "agreement")
    effects = {column: values.to_numpy().ravel() for column, values in _columns(result, "effect").items()}
    if len(effects) < 2:
        raise ResultError(
            "that compares columns.",
            where="agreement",
            seen=f"{', '.join(next(iter(effects)))} only",
            fix='compare(…, metrics=["logit_diff", "kl"])',
        )
    rows: list[dict[str, Any]] = []
    for one, other in itertools.combinations(effects, 2):
        correlation, shared, cells = agreed(effects[one], effects[other], k)
        names = {"column": _label(one), "other": _label(other), "differs": _differing(one, other)}
        rows.append({**names, "rank_correlation": correlation, "top_overlap": shared, "cells": cells})
    return pd.DataFrame(rows)


def top_cells(result: Result, n: int = 10) -> pd.DataFrame:
    """Returns the n strongest cells of each column, either sign, side by side, the strongest first.

    Under each column's name, as in `agreement`, the frame has `cell`, as it is written, and `share`: the part of the
    gap that it restores under denoising or takes away under noising; < 0 where it works against the behaviour, NaN
    where there is no gap.

    Raises:
        ResultError: not a result of `compare`, or no n.
    """
    _check_count(n, "n", "top_cells")
    shares = _columns(result, "share")
    found: dict[tuple[str, str], list[Any]] = {}
    for column, effect in _columns(result, "effect").items():
        strength = np.abs(effect.to_numpy().ravel())
        there = np.argsort(-strength, kind="stable")[: min(n, int(np.isfinite(strength).sum()))]
        share, names = shares[column].to_numpy().ravel(), _cell_names(effect, result)
        missing = min(n, len(names)) - len(there)
        found[_label(column), "cell"] = [names[place] for place in there] + [""] * missing
        found[_label(column), "share"] = [float(share[place]) for place in there] + [np.nan] * missing
    frame = pd.DataFrame(found)
    frame.columns = pd.MultiIndex.from_tuples(list(found), names=["column", ""])
    return frame.set_axis(pd.RangeIndex(1, len(frame) + 1, name="rank"))


def of_corruption(result: Result, corruption: str) -> Result:
    """Returns the result of one corruption of a study, as `patch` returned it, without the live model.

    Raises:
        ResultError: not a result of `compare`, a corruption that it does not have, or one whose pairs are no longer
            all there.
    """
    kept = _kept(result, "of_corruption")
    if corruption not in kept:
        what = f"no corruption {corruption!r} in this result."
        raise ResultError(what, where="of_corruption", fix=suggest(corruption, kept))
    own, first = dict(kept[corruption]), next(iter(kept.values()))
    shared = {key: value for key, value in result.provenance.items() if key not in (*first, "corruptions", "left_out")}
    warnings = tuple(own.pop("warnings"))
    made = {**shared, **own}
    data, baselines = (part.sel(corruption=corruption, drop=True) for part in (result.data, result.baselines))
    if len(made["pairs"]) != data.sizes["pair"]:
        seen, fix = f"{data.sizes['pair']} of {len(made['pairs'])} pairs", "of_corruption(study, …).of_group(…)"
        raise ResultError("some pairs were taken out before.", where="of_corruption", seen=seen, fix=fix)
    if "direction" in data.dims and made["direction"] != "both":
        data = data.sel(direction=made["direction"], drop=True)
    data = data.drop_vars([name for name in _spreads(data) if data[name].isnull().all()])
    return replace(result, data=data, baselines=baselines, provenance=made, warnings=warnings, origin=None)


# -- what is run


def _check_component(component: object) -> None:
    names = component.replace(",", " ").split() if isinstance(component, str) else []
    if len(names) != 1:
        what, fix = "a study is of one component.", "one call of compare for each"
        raise PlanError(what, where="component", seen=repr(component), fix=fix)


def _directions(directions: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the named directions, denoising first."""
    named = directions.replace(",", " ").split() if isinstance(directions, str) else list(directions)
    named = list(DIRECTIONS) if named == ["both"] else named
    unknown = [one for one in named if one not in DIRECTIONS]
    if unknown or not named:
        what = f"no direction {unknown[0]!r}." if unknown else "no direction named."
        fix = suggest(unknown[0], DIRECTIONS) if unknown else 'directions=("denoising", "noising")'
        raise PlanError(what, where="directions", fix=fix)
    return tuple(one for one in DIRECTIONS if one in named)


def _named(corruptions: Sequence[object]) -> dict[str, AnyCorruption | None]:
    """Returns the corruptions by their kinds, numbered where there are several of one; None for the other prompt."""
    given = list(corruptions) if isinstance(corruptions, (list, tuple)) else [corruptions]
    found = [as_corruption(one) for one in given]
    twice = next((one for place, one in enumerate(found) if one in found[:place]), None)
    if twice is not None or not found:
        what = f"the corruption {twice.kind} is named twice." if twice is not None else "no corruption named."
        fix = "corruptions=(None, nbp.Zero()): None is the other prompt of the pair"
        raise PlanError(what, where="corruptions", seen=f"{corruptions!r:.80}", fix=fix)
    kinds = [one.kind for one in found]
    names = [
        kind if kinds.count(kind) == 1 else f"{kind} {kinds[: place + 1].count(kind)}"
        for place, kind in enumerate(kinds)
    ]
    return {name: None if one.kind == "counterfactual" else one for name, one in zip(names, found, strict=True)}


def _split(
    named: Mapping[str, AnyCorruption | None], asked: tuple[str, ...]
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Returns in which direction each corruption is run, or "both", and the combinations that are left out."""
    plan: dict[str, str] = {}
    left_out: list[dict[str, str]] = []
    for name, corruption in named.items():
        ablates = corruption is not None and corruption.ablates
        possible = [one for one in asked if not (ablates and one == "denoising")]
        if possible:
            plan[name] = "both" if len(possible) > 1 else possible[0]
        left_out += [{"corruption": name, "direction": one, "why": _WHY} for one in asked if one not in possible]
    if not plan:
        seen = "; ".join(f"{one['corruption']}, {one['direction']}" for one in left_out)
        fix = 'directions="noising"'
        raise PlanError(f"nothing to run: {_WHY}.", where="directions", seen=seen, fix=fix)
    return plan, left_out


# -- the results as one


def _beside(results: Mapping[str, Result], asked: tuple[str, ...], left_out: list[dict[str, str]]) -> Result:
    """Returns results of the same cells as one with a leading axis `corruption`."""
    names = np.array(list(results), object)
    drawn = dict.fromkeys(name for one in results.values() for name in _spreads(one.data))
    parts = [_aligned(_filled(one.data, drawn), one.provenance["direction"], asked) for one in results.values()]
    data = _stacked(parts, "corruption").assign_coords(corruption=names)
    baselines = _stacked([one.baselines for one in results.values()], "corruption").assign_coords(corruption=names)
    made = {
        **_provenance(results),
        "direction": "both" if len(asked) == len(DIRECTIONS) else asked[0],
        "left_out": left_out,
    }
    not_run = [f"not run: {one['corruption']}, {one['direction']}: {one['why']}." for one in left_out]
    warnings = (*not_run, *_warnings(results))
    return Result(data, baselines.transpose("metric", "corruption", "pair"), made, warnings)


def _spreads(data: xr.Dataset) -> list[str]:
    """Returns the names of the deviations over draws."""
    return [str(name) for name in data.coords if str(name).startswith(SPREAD)]


def _filled(data: xr.Dataset, names: Iterable[str]) -> xr.Dataset:
    """Returns data with all deviations over draws: NaN where nothing was drawn."""
    dims, shape = data["state"].dims, data["state"].shape
    return data.assign_coords({name: (dims, np.full(shape, np.nan)) for name in names if name not in data.coords})


def _aligned(data: xr.Dataset, direction: str, asked: tuple[str, ...]) -> xr.Dataset:
    """Returns m(patched) with an axis `direction` when both are asked for, NaN and "not run" in one that was not."""
    if len(asked) == 1 or direction == "both":
        return data
    dims, shape = data["state"].dims, data["state"].shape
    absent = data.drop_vars(_spreads(data)).map(
        lambda values: values.copy(data=np.full(values.shape, np.nan)), keep_attrs=True
    )
    absent = _filled(absent.assign_coords(state=(dims, np.full(shape, _NOT_RUN, np.int8))), _spreads(data))
    parts = [data if one == direction else absent for one in asked]
    return _stacked(parts, "direction").assign_coords(direction=list(asked))


def _stacked(parts: Sequence[xr.Dataset], axis: str) -> xr.Dataset:
    """Returns data of the same cells along a new leading axis."""
    along = [str(name) for name in parts[0].coords if name not in parts[0].dims]
    return xr.concat(
        parts, axis, data_vars="all", coords=along, compat="override", join="exact", combine_attrs="override"
    )


def _provenance(results: Mapping[str, Result]) -> dict[str, Any]:
    """Returns the first result's provenance, and under `corruptions` what is not the same in all of them."""
    every = {name: one.provenance for name, one in results.items()}
    first = next(iter(every.values()))
    shared = {
        key
        for key, value in first.items()
        if key not in _OWN and all(key in made and made[key] == value for made in every.values())
    }
    own = {
        name: {
            **{key: value for key, value in made.items() if key not in shared},
            "warnings": list(results[name].warnings),
        }
        for name, made in every.items()
    }
    engine = [made["engine"] for made in every.values()]
    counts = {key: sum(one[key] for one in engine) for key in ("cells", "runs", "run", "exact") if key in engine[0]}
    return {
        **first,
        "method": "compare",
        "corruption": ", ".join(results),
        "corruptions": own,
        "engine": {**engine[0], **counts},
    }


def _warnings(results: Mapping[str, Result]) -> list[str]:
    """Returns each warning once, with the names of its corruptions in front where it is not of all."""
    found: dict[str, list[str]] = {}
    for name, one in results.items():
        for warning in one.warnings:
            found.setdefault(warning, []).append(name)
    return [
        warning if len(names) == len(results) else f"{', '.join(names)}: {warning}" for warning, names in found.items()
    ]


# -- its columns


def _kept(result: Result, where: str) -> Mapping[str, Mapping[str, Any]]:
    """Returns what each corruption has of its own."""
    if result.provenance.get("method") != "compare":
        raise ResultError(
            "that is about several ways to read one sweep.",
            where=where,
            seen=f"a result of {result.provenance.get('method')}",
            fix="compare(model, pairs, …)",
        )
    kept: Mapping[str, Mapping[str, Any]] = result.provenance["corruptions"]
    return kept


def _columns(result: Result, of: str) -> dict[Column, xr.DataArray]:
    """Returns the effect, or its share of the gap, [*over] of each column that was run, the sign turned if noising."""
    _kept(result, "agreement" if of == "effect" else "top_cells")
    left_out = {(one["corruption"], one["direction"]) for one in result.provenance["left_out"]}
    both = "direction" in result.data.dims
    directions = DIRECTIONS if both else (result.provenance["direction"],)
    found: dict[Column, xr.DataArray] = {}
    asked: list[tuple[str, str]] = list(itertools.product(result.provenance["corruptions"], map(str, directions)))
    for (name, direction), metric in itertools.product(asked, result.metrics):
        if (name, direction) in left_out:
            continue
        values = getattr(result, of)(metric).sel(corruption=name, drop=True)
        values = values.sel(direction=direction, drop=True) if both else values
        found[name, direction, metric] = -values if direction == "noising" else values
    return found


def _label(column: Column) -> str:
    return ", ".join(column)


def _differing(one: Column, other: Column) -> str:
    return ", ".join(choice for choice, a, b in zip(_CHOICES, one, other, strict=True) if a != b)


def _cell_names(cells: xr.DataArray, result: Result) -> list[str]:
    """Returns how each cell is written: 2.1 for a head, L2 for a layer, its token for a position."""
    axes = [str(axis) for axis in cells.dims]
    tokens: list[str] = list(result.provenance["pairs"][0]["clean_tokens"])
    combined = itertools.product(*(cells[axis].to_numpy().tolist() for axis in axes))
    return [_cell_name(dict(zip(axes, places, strict=True)), tokens) for places in combined]


def _cell_name(cell: Mapping[str, Any], tokens: list[str]) -> str:
    rest = dict(cell)
    layer, unit = rest.pop("layer", None), rest.pop("head", rest.pop("neuron", None))
    parts = [f"L{layer}"] if layer is not None else []
    if unit is not None:
        parts = [f"{layer}.{unit}" if parts else f"head {unit}"]
    for axis, place in rest.items():
        on_token = axis in ("pos", "dest", "src") and place < len(tokens)
        parts.append(f"{tokens[place].strip()}@{place}" if on_token else str(place))
    return " ".join(parts)


def _check_count(count: int, name: str, where: str) -> None:
    if count < 1:
        raise ResultError(f"{name} counts cells.", where=where, seen=f"{name}={count}", fix=f"{name}=10")
