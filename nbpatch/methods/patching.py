"""Activation patching: put activations of one run into the other, cell by cell, and see what changes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nbpatch.engine import Progress, run
from nbpatch.errors import PlanError
from nbpatch.metrics import MetricLike, as_metrics
from nbpatch.model import load
from nbpatch.plan import make_plan
from nbpatch.prompts import PromptPair
from nbpatch.result import Result

if TYPE_CHECKING:
    from tqdm import tqdm


def patch(
    model: Any,
    pairs: PromptPair | Sequence[PromptPair],
    component: str,
    over: str | Sequence[str] | None = None,
    *,
    direction: str = "denoising",
    metric: MetricLike | Sequence[MetricLike] = "logit_diff",
    corruption: None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Returns what changes when one activation after the other is taken from the other run of each pair.

    Denoising runs the corrupted prompt with activations of the clean run (what is sufficient to restore the
    behaviour); noising the clean prompt with activations of the corrupted run (what is necessary to keep it).

    Args:
        model: what `load` takes or returned.
        pairs: one `PromptPair` or several.
        component: resid_pre, resid_mid, resid_post, attn_out, mlp_out, z, q, k, v or pattern.
        over: swept axes, such as "layer pos" or "layer head pos"; an axis not named is patched whole. Default:
            "layer head" for z, q, k, v and pattern, "layer pos" for the rest.
        direction: "denoising", "noising" or "both".
        metric: a name (logit_diff, log_prob, prob, kl, rank, accuracy), a function logits [pair d_vocab] → [pair],
            or a list of them; all are measured on the same runs.
        corruption: where values come from; None is the other prompt of the pair.
        on_progress: called after every wave; default: in a terminal, a progress bar when the run is long.

    Returns:
        A `Result`: `result.data` holds m(patched) with dims (direction when both, *over, pair).

    Raises:
        SiteError: unknown component or axis, or one that does not work in this model.
        PromptError: a pair that cannot be used.
        MetricError: unknown metric, or one that lacks what it needs.
        PatchNotApplied: a patch did not fire exactly as planned.

    Source: Vig et al. 2020; Meng et al. 2022; Wang et al. 2022; Zhang & Nanda 2024 for directions and metrics.
    """
    if corruption is not None:
        raise PlanError(
            "values can only come from the other prompt of the pair so far.",
            where="corruption",
            seen=repr(corruption),
            fix="corruption=None",
        )
    metrics = as_metrics(metric)
    ready = load(model)
    plan = make_plan(ready.shape, ready.tokenize(pairs), component, over, direction=direction, metrics=metrics)
    if on_progress is not None:
        return run(plan, ready, on_progress=on_progress)
    with _bar(plan.n_runs) as bar:
        return run(plan, ready, on_progress=lambda progress: _advance(bar, progress))


def _bar(total: int) -> "tqdm[Any]":
    """Returns a progress bar that shows itself in a terminal only, when a run takes longer than a second.

    In a notebook it would leave a widget without a picture in the saved file.
    """
    from tqdm.std import tqdm

    return tqdm(total=total, desc="patching", unit="run", delay=1.0, leave=False, disable=None)


def _advance(bar: "tqdm[Any]", progress: Progress) -> None:
    bar.update(progress.done - bar.n)
