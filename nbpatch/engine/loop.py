"""The contents page of a run: base runs, waves, measuring, progress, stopping, the result."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from nbpatch.engine.base import BaseRuns
from nbpatch.engine.finished import finished
from nbpatch.engine.fit import Fit, fit_of, has_norm, refuse_other_bridge
from nbpatch.engine.frontier import Frontier
from nbpatch.engine.outcome import results_of
from nbpatch.engine.replay import Replay
from nbpatch.engine.rows import why_not
from nbpatch.engine.stopping import Halted, never
from nbpatch.engine.suffixes import Suffix, why_not_suffixes
from nbpatch.engine.table import Filled, Progress, Table
from nbpatch.model import Model
from nbpatch.plan import Plan
from nbpatch.result import Result
from nbpatch.sites import acting

MAX_TOKENS = 2048
"""Prompt tokens per forward: more is no faster on a CPU, and progress and stopping would become coarse."""


def ignore(progress: Progress) -> None:
    """The progress callback that does nothing."""


@runtime_checkable
class Engine(Protocol):
    """What makes the runs of some plans.

    Attributes:
        name: the engine's, for the provenance.
        broken: where a NaN first appeared, or "".
        halt: a run's stop; the engine may look at it within a wave, and raise `Halted`.
    """

    name: str
    broken: str
    halt: Callable[[], bool]

    def trace(self, *, alone: bool = False) -> BaseRuns:
        """Makes the base runs; by themselves, where nothing else is to be run with them."""
        ...

    def waves(self) -> Iterator[Callable[[], Iterator[tuple[int, Filled]]]]:
        """Yields what makes the runs of one wave: pairs of a plan's number and its runs."""
        ...

    def spent(self) -> dict[str, Any]:
        """Returns what the runs took."""
        ...


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
        stop: looked at before every wave and between its layers; when it says so, finished cells are kept and the
            rest is "not run". Interrupting the kernel does the same.

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

    Plans that the fast engine does not take are run behind the others, those for replay last.

    They must have the same metrics. Args and errors are those of `run`; progress counts the runs of all plans and shows
    the table just filled.
    """
    fit = fit_of(model)
    engines = [engine_of([plan], model, fit)[0] for plan in plans]
    found: dict[int, Result] = {}
    total, done = sum(plan.n_runs for plan in plans), 0
    for kind in ("frontier", "suffix", "replay"):
        mine = [number for number, name in enumerate(engines) if name == kind]
        some = [plans[number] for number in mine]
        if some:
            on = _counting(on_progress, done, total)
            found.update(
                zip(mine, drive(engine_for(some, model, fit), some, model, on_progress=on, stop=stop), strict=True)
            )
            done += sum(plan.n_runs for plan in some)
    return [found[number] for number in range(len(plans))]


def _counting(on_progress: Callable[[Progress], None], done: int, total: int) -> Callable[[Progress], None]:
    """Returns a progress callback that counts what was done before, of all that is to do."""
    return lambda progress: on_progress(replace(progress, done=done + progress.done, total=total))


def drive(
    engine: Engine,
    plans: Sequence[Plan],
    model: Model,
    *,
    on_progress: Callable[[Progress], None] = ignore,
    stop: Callable[[], bool] = never,
) -> list[Result]:
    """Runs plans on an engine made for them; arguments and errors are those of `run_together`."""
    started = time.perf_counter()
    engine.halt = stop
    tables = [Table(plan, engine.trace(alone=stop())) for plan in plans[:1]]
    tables += [Table(plan, tables[0].runs, tables[0].baselines) for plan in plans[1:]]
    stopped = False
    try:
        on_progress(_progress(tables, 0))
        for wave in engine.waves():
            if stopped := stop():
                break
            for number, filled in wave():
                tables[number].fill(filled)
                on_progress(_progress(tables, number))
    except (KeyboardInterrupt, Halted):
        stopped = True
    seconds = time.perf_counter() - started
    fit = fit_of(model)
    spent = {"name": engine.name, **engine.spent(), "seconds": round(seconds, 4), **precision(fit)}
    done = [finished(table) for table in tables]
    return results_of(done, model, spent, noticed(model, fit), stopped=stopped, broken=engine.broken)


def noticed(model: Model, fit: Fit) -> tuple[str, ...]:
    """Returns, once, that weights or hooks were changed since an earlier run."""
    if not fit.again:
        return ()
    model.notes["fit"] = replace(fit, again=False)
    return (
        "Weights or hooks of the model have changed since an earlier run. It was checked again; compare with care.",
    )


def precision(fit: Fit) -> dict[str, float]:
    """Returns the largest error against float32, where something rounds coarser."""
    return {} if fit.error is None else {"error_against_float32": fit.error}


def _progress(tables: Sequence[Table], number: int) -> Progress:
    """Returns how far all plans are together, with the table of one."""
    total, left = sum(table.total for table in tables), sum(table.left for table in tables)
    return replace(tables[number].progress(), done=total - left, total=total)


def engine_for(plans: Sequence[Plan], model: Model, fit: Fit) -> Frontier | Suffix | Replay:
    """Returns the fastest engine that is exact for these plans on this model."""
    name, reason = engine_of(plans, model, fit)
    if fit.parts is not None and name == "frontier":
        return Frontier(plans, model, fit.parts, fit.returns)
    if fit.inline is not None and name == "suffix":
        return Suffix(plans, model, fit.inline, reason=reason)
    for name in dict.fromkeys(name for plan in plans for name in plan.components):
        model.check_replayed(name)
        if fit.inline is not None and model.engine == "auto":
            refuse_other_bridge(model, name)
    return Replay(plans, model, reason=reason, max_tokens=min(tokens_per_forward(plan, model) for plan in plans))


def engine_of(plans: Sequence[Plan], model: Model, fit: Fit) -> tuple[str, str]:
    """Returns which engine takes plans on this model, and why no faster one does."""
    if model.engine != "auto":
        return "replay", "asked for"
    if fit.inline is not None:
        why = why_not_suffixes(plans, fit.inline)
        return ("replay", why) if why else ("suffix", fit.reason)
    why = _why_replayed(plans, fit)
    return ("replay", why) if why else ("frontier", "")


def _why_replayed(plans: Sequence[Plan], fit: Fit) -> str:
    """Returns why plans go through whole forwards on a model that the frontier knows, or ""."""
    components = dict.fromkeys(name for plan in plans for name in plan.components)
    refused = fit.reason or why_not(plans) or next((why for one in components if (why := fit.works[acting(one)])), "")
    return refused or _why_normed(plans, fit)


def _why_normed(plans: Sequence[Plan], fit: Fit) -> str:
    """Returns that values of an ablation go where a norm is still to come, or ""."""
    ablated = {name for plan in plans if plan.corruption.kind in ("zero", "mean") for name in plan.components}
    normed = [name for name in ("q", "k") if name in ablated and fit.parts is not None and has_norm(fit.parts, name)]
    return f"{normed[0]} is set before its norm" if normed else ""


def tokens_per_forward(plan: Plan, model: Model) -> int:
    """Returns how many prompt tokens one whole forward may hold within the model's memory budget."""
    shape = plan.shape
    longest = max(max(len(one.clean_ids), len(one.corrupted_ids)) for one in plan.tokenized)
    bytes_per_token = 4 * (shape.n_heads * longest * 3 + 12 * shape.d_model + 4 * shape.d_mlp)
    bytes_per_row = 4 * shape.d_vocab * 4
    fits = model.memory_budget() // (bytes_per_token + bytes_per_row // longest)
    return max(longest, min(MAX_TOKENS, fits))
