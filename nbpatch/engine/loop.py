"""The contents page of a run: base runs, waves, measuring, progress, stopping, the result."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from nbpatch.engine.describe import describe_model, describe_tokens, describe_versions
from nbpatch.engine.fit import fit_of
from nbpatch.engine.frontier import Frontier
from nbpatch.engine.lint import lint
from nbpatch.engine.replay import Replay
from nbpatch.engine.rows import why_not
from nbpatch.engine.table import Progress, Table
from nbpatch.model import Model
from nbpatch.plan import EXACT, MEASURED, Plan
from nbpatch.result import Result
from nbpatch.sites import COMPONENTS

MAX_TOKENS = 2048
"""Prompt tokens per forward: more is no faster on a CPU, and progress and stopping would become coarse."""


@dataclass(frozen=True)
class Origin:
    """The live model and plan of a result, for widgets that go on from it. Never saved."""

    model: Model
    plan: Plan


def ignore(progress: Progress) -> None:
    """The progress callback that does nothing."""


def never() -> bool:
    """The stop callback that never stops a run."""
    return False


def run(
    plan: Plan,
    model: Model,
    *,
    on_progress: Callable[[Progress], None] = ignore,
    stop: Callable[[], bool] = never,
) -> Result:
    """Runs a plan and returns its result.

    Args:
        on_progress: called after the base runs and after every wave.
        stop: looked at before every wave; when it says so, finished cells are kept and the rest is "not run".
            Interrupting the kernel does the same.

    Raises:
        SiteError: the component does not work in this model.
        PatchNotApplied: a patch did not fire as planned.
    """
    return run_together([plan], model, on_progress=on_progress, stop=stop)[0]


def run_together(
    plans: Sequence[Plan],
    model: Model,
    *,
    on_progress: Callable[[Progress], None] = ignore,
    stop: Callable[[], bool] = never,
) -> list[Result]:
    """Runs several plans on the same pairs at once: they share base runs and, in the fast engine, every batch.

    Args and errors are those of `run`; progress counts the runs of all plans and shows the table just filled.
    """
    started = time.perf_counter()
    engine = _engine(plans, model)
    tables = [Table(plan, engine.trace()) for plan in plans[:1]]
    tables += [Table(plan, tables[0].runs) for plan in plans[1:]]
    stopped = False
    try:
        on_progress(_progress(tables, 0))
        for wave in engine.waves():
            if stopped := stop():
                break
            for number, filled in wave():
                tables[number].fill(filled)
                on_progress(_progress(tables, number))
    except KeyboardInterrupt:
        stopped = True
    seconds = time.perf_counter() - started
    results = [_finish(table, model, engine, stopped=stopped, seconds=seconds) for table in tables]
    return [replace(one, warnings=(*_noticed(model), *one.warnings)) for one in results]


def _noticed(model: Model) -> list[str]:
    """Returns, once, that weights or hooks were changed since an earlier run."""
    fit = fit_of(model)
    if not fit.again:
        return []
    model.notes["fit"] = replace(fit, again=False)
    return ["Weights or hooks of the model have changed since an earlier run. It was checked again; compare with care."]


def _progress(tables: Sequence[Table], number: int) -> Progress:
    """Returns how far all plans are together, with the table of one."""
    each = [table.progress() for table in tables]
    return replace(each[number], done=sum(one.done for one in each), total=sum(one.total for one in each))


def _engine(plans: Sequence[Plan], model: Model) -> Frontier | Replay:
    """Returns the fastest engine that is exact for these plans on this model."""
    fit = fit_of(model)
    asked = "" if model.engine == "auto" else "asked for"
    reason = (
        asked or fit.reason or why_not(plans) or next((why for plan in plans if (why := fit.works[plan.component])), "")
    )
    if fit.parts is not None and not reason:
        return Frontier(plans, model, fit.parts)
    for plan in plans:
        model.check_replayed(plan.component)
    return Replay(plans, model, reason=reason, max_tokens=min(tokens_per_forward(plan, model) for plan in plans))


def tokens_per_forward(plan: Plan, model: Model) -> int:
    """Returns how many prompt tokens one whole forward may hold within the model's memory budget."""
    shape = plan.shape
    longest = max(max(len(one.clean_ids), len(one.corrupted_ids)) for one in plan.tokenized)
    bytes_per_token = 4 * (shape.n_heads * longest * 3 + 12 * shape.d_model + 4 * shape.d_mlp)
    bytes_per_row = 4 * shape.d_vocab * 4
    fits = model.memory_budget() // (bytes_per_token + bytes_per_row // longest)
    return max(longest, min(MAX_TOKENS, fits))


def _finish(table: Table, model: Model, engine: Frontier | Replay, *, stopped: bool, seconds: float) -> Result:
    plan = table.plan
    spent = {"name": engine.name, **engine.spent(), "seconds": round(seconds, 4)}
    error = fit_of(model).error
    if error is not None:
        spent["error_against_float32"] = error
    provenance = _provenance(table, model, spent)
    data = _dataset(table)
    baselines = xr.Dataset(
        {
            run: (("metric", "pair"), np.stack([table.baselines[metric.name][run] for metric in plan.metrics]))
            for run in ("clean", "corrupted")
        },
        coords={"metric": [metric.name for metric in plan.metrics], "pair": np.arange(len(plan.tokenized))},
    )
    return Result(data, baselines, provenance, lint(table, stopped=stopped, broken=engine.broken), Origin(model, plan))


def _dataset(table: Table) -> xr.Dataset:
    plan = table.plan
    both = plan.both
    dims = (*(("direction",) if both else ()), *plan.over, "pair")
    coords: dict[str, Any] = {"direction": list(plan.directions)} if both else {}
    for axis, size in zip(plan.over, table.state.shape[1:], strict=False):
        coords[axis] = list(plan.shape.head_labels(plan.component)) if axis == "head" else np.arange(size)
    coords["pair"] = np.arange(len(plan.tokenized))
    coords["state"] = (dims, table.state if both else table.state[0])
    return xr.Dataset(
        {
            metric.name: (
                dims,
                table.values[metric.name] if both else table.values[metric.name][0],
                {"unit": metric.unit, "label": metric.label},
            )
            for metric in plan.metrics
        },
        coords=coords,
    )


def _provenance(table: Table, model: Model, spent: Mapping[str, Any]) -> dict[str, Any]:
    plan = table.plan
    return {
        "method": "patch",
        "component": plan.component,
        "component_label": COMPONENTS[plan.component].label,
        "over": list(plan.over),
        "direction": "both" if plan.both else plan.directions[0],
        "metrics": [metric.describe() for metric in plan.metrics],
        "corruption": "counterfactual",
        "model": describe_model(model),
        "pairs": _describe_pairs(table, model),
        "engine": {
            **spent,
            "cells": plan.n_cells,
            "runs": plan.n_runs,
            "run": int((table.state == MEASURED).sum()),
            "exact": int((table.state == EXACT).sum()),
        },
        "versions": describe_versions(),
        "seed": None,
    }


def _describe_pairs(table: Table, model: Model) -> list[dict[str, Any]]:
    """Returns what the result keeps of each pair, with both base runs' likeliest next tokens."""
    tops = {run: model.top_tokens(logits) for run, logits in table.runs.logits.items()}
    return [
        {**describe_tokens(one), "clean_top": tops["clean"][number], "corrupted_top": tops["corrupted"][number]}
        for number, one in enumerate(table.plan.tokenized)
    ]
