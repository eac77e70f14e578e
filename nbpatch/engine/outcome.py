"""From filled tables to results: labelled arrays, what made them, and what they cannot tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from nbpatch.engine.describe import describe_model, describe_tokens, describe_versions
from nbpatch.engine.finished import Finished
from nbpatch.engine.lint import lint
from nbpatch.joint import JointPlan
from nbpatch.model import Model
from nbpatch.plan import EXACT, NO_PATH, Plan
from nbpatch.prompts import TokenizedPair
from nbpatch.result import SPREAD, Result


@dataclass(frozen=True)
class Origin:
    """The live model and plan of a result, for widgets that go on from it. Never saved."""

    model: Model
    plan: Plan


def results_of(
    done: Sequence[Finished],
    model: Model,
    spent: Mapping[str, Any],
    noticed: tuple[str, ...],
    *,
    stopped: bool = False,
    broken: str = "",
) -> list[Result]:
    """Returns the results of plans that were run together.

    Args:
        spent: what the run took.
        noticed: warnings about the model.
        broken: where the first NaN appeared.
    """
    first = done[0]
    metrics = first.plan.metrics
    baselines = xr.Dataset(
        {
            run: (("metric", "pair"), np.stack([first.baselines[metric.name][run] for metric in metrics]))
            for run in ("clean", "corrupted")
        },
        coords={"metric": [metric.name for metric in metrics], "pair": np.arange(len(first.plan.tokenized))},
    )
    shared = {
        "model": describe_model(model),
        "pairs": describe_pairs(first.plan.tokenized, first.logits, model),
        "versions": describe_versions(),
    }
    return [
        Result(
            _dataset(one),
            baselines,
            {**_made(one, spent), **shared},
            (*noticed, *lint(one, stopped=stopped, broken=broken)),
            _origin(model, one.plan),
        )
        for one in done
    ]


def _origin(model: Model, plan: Plan) -> Origin | None:
    """Returns what a widget goes on from; it shows no noise, and one place at a time."""
    return None if plan.corruption.kind == "noise" or isinstance(plan, JointPlan) else Origin(model, plan)


def _dataset(one: Finished) -> xr.Dataset:
    """Returns the labelled arrays of what a run found."""
    plan = one.plan
    both = plan.both
    values = {name: one.values[name] if both else one.values[name][0] for name in one.values}
    state = one.state if both else one.state[0]
    axes = (*(("direction",) if both else ()), *plan.over, "pair")
    sizes = tuple(zip(axes, state.shape, strict=True))
    named = tuple((axis, tuple(labels)) for axis in plan.over if (labels := plan.axis_labels(axis)) is not None)
    metrics = tuple((metric.name, metric.unit, metric.label) for metric in plan.metrics)
    data = _labelled(sizes, plan.directions, named, metrics).copy(data=values)
    data.variables["state"].data = state
    spread = {f"{SPREAD}{name}": (axes, value if both else value[0]) for name, value in one.spread.items()}
    return data.assign_coords(spread) if spread else data


@lru_cache(maxsize=64)
def _labelled(
    sizes: tuple[tuple[str, int], ...],
    directions: tuple[str, ...],
    named: tuple[tuple[str, tuple[Any, ...]], ...],
    metrics: tuple[tuple[str, str, str], ...],
) -> xr.Dataset:
    """Returns arrays of nothing with their labels: those take longer to make than a small model's sweep."""
    dims, shape = tuple(axis for axis, _ in sizes), tuple(size for _, size in sizes)
    labels: dict[str, Any] = {axis: np.arange(size) for axis, size in sizes}
    if "direction" in labels:
        labels["direction"] = list(directions)
    labels.update({axis: list(given) for axis, given in named})
    labels["state"] = (dims, np.broadcast_to(np.int8(0), shape))
    return xr.Dataset(
        {name: (dims, np.broadcast_to(0.0, shape), {"unit": unit, "label": label}) for name, unit, label in metrics},
        coords=labels,
    )


def _made(one: Finished, spent: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of the provenance is the plan's own."""
    plan = one.plan
    planned, run = one.runs
    return {
        **plan.made(),
        "over": list(plan.over),
        "direction": "both" if plan.both else plan.directions[0],
        "metrics": [metric.describe() for metric in plan.metrics],
        "corruption": plan.corruption.kind,
        "corruption_words": plan.corruption.words(),
        "seed": plan.corruption.seed_used,
        **({"draws": [[list(ids) for ids in pair] for pair in one.drawn]} if one.drawn else {}),
        "engine": {
            **spent,
            "cells": plan.n_cells,
            "runs": planned,
            "run": run,
            "exact": int((one.state == EXACT).sum()),
            "no_path": int((one.state == NO_PATH).sum()),
        },
    }


def describe_pairs(
    tokenized: Sequence[TokenizedPair], logits: Mapping[str, Tensor], model: Model
) -> list[dict[str, Any]]:
    """Returns what the result keeps of each pair, with both base runs' likeliest next tokens."""
    tops = {run: model.top_tokens(some) for run, some in logits.items()}
    return [
        {**describe_tokens(one), "clean_top": tops["clean"][number], "corrupted_top": tops["corrupted"][number]}
        for number, one in enumerate(tokenized)
    ]
