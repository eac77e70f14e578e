"""The checks every run makes on itself; each says what to do next."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nbpatch.engine.finished import Finished
from nbpatch.plan import FAILED, NOT_RUN
from nbpatch.statistics import NO_GAP

Floats = NDArray[np.float64]

_MANY = 0.5
"""The share of differing tokens above which prompts are rather two prompts than one with a change."""

_SMALL = 0.1
"""The share of the gap, or of the clean value, below which something counts as small."""


def lint(one: Finished, *, stopped: bool, broken: str = "") -> tuple[str, ...]:
    """Returns the warnings of a run: what it cannot tell, and the one action that settles each.

    Args:
        broken: where the first NaN appeared, as far as the engine knows.
    """
    found = [
        *_odd_prompts(one),
        *_unfinished(one, stopped),
        *_failed(one, broken),
        *_many_differences(one),
        *_baselines(one),
        *_corruption(one),
        *_only_probability(one),
        *_one_direction(one),
        *_one_pair(one),
        *_redundant(one),
    ]
    return tuple(found)


def _odd_prompts(one: Finished) -> list[str]:
    pairs = one.plan.tokenized
    return [
        f"Pair {number + 1}: {warning}" if len(pairs) > 1 else warning
        for number, one in enumerate(pairs)
        for warning in one.warnings
    ]


def _many_differences(one: Finished) -> list[str]:
    """Warns of prompts that are rather two prompts than one with a change."""
    if one.plan.corruption.kind != "counterfactual":
        return []
    found = [
        number
        for number, pair in enumerate(one.plan.tokenized)
        if len(pair.differs) > _MANY * (len(pair.clean_ids) - pair.has_bos) and len(pair.differs) > 1
    ]
    if not found:
        return []
    return [
        f"The prompts of pair {_listed(found)} differ in most of their tokens, so many things change at once. "
        "Change one word in the corrupted one."
    ]


def _unfinished(one: Finished, stopped: bool) -> list[str]:
    left = int((one.state == NOT_RUN).sum())
    if not left:
        return []
    word = "Stopped early" if stopped else "Unfinished"
    return [f"{word}. {left} of {one.plan.n_runs} runs were not run and are NaN. Run it again to fill them."]


def _failed(one: Finished, broken: str) -> list[str]:
    failed = np.argwhere(one.state == FAILED)
    if not len(failed):
        return []
    axes = ("direction", *one.plan.over, "pair")
    first = ", ".join(f"{axis} {index}" for axis, index in zip(axes, failed[0], strict=True))
    place = f" ({broken})" if broken else ""
    return [f"Not a number. {len(failed)} runs gave NaN logits, first at {first}{place}. Check the model in float32."]


def _baselines(one: Finished) -> list[str]:
    warnings: list[str] = []
    for metric in one.plan.metrics:
        clean, corrupted = (one.baselines[metric.name][run] for run in ("clean", "corrupted"))
        flat = np.flatnonzero(np.abs(clean - corrupted) < NO_GAP)
        if len(flat):
            pairs = ", ".join(str(number + 1) for number in flat[:5])
            left_out = " Left out of means." if 0 < len(flat) < len(clean) else ""
            warnings.append(
                f"No gap. {metric.name} is the same in both runs of pair {pairs}.{left_out} Choose another prompt."
            )
        turned = np.flatnonzero(clean < corrupted - NO_GAP)
        if len(turned):
            pairs = ", ".join(str(number + 1) for number in turned[:5])
            warnings.append(
                f"The corrupted prompt does better than the clean one on {metric.name} in pair {pairs}. "
                "Exchange the prompts, or answer and wrong."
            )
        if metric.name == "logit_diff":
            warnings += _behaviour(clean, corrupted)
    return warnings


def _behaviour(clean: Floats, corrupted: Floats) -> list[str]:
    """Warns where the clean run does not show the behaviour, or the corrupted one nearly as well."""
    warnings: list[str] = []
    weak = np.flatnonzero(clean <= 0)
    if len(weak):
        warnings.append(
            f"The clean run of pair {_listed(weak)} does not prefer the answer, so there is no behaviour to explain. "
            "Choose a prompt the model gets right."
        )
    gap = clean - corrupted
    kept = np.flatnonzero((corrupted > 0) & (gap >= NO_GAP) & (gap < _SMALL * clean))
    if len(kept):
        warnings.append(
            f"Small gap. The corrupted run of pair {_listed(kept)} prefers the answer nearly as much as the clean one. "
            "Choose a corrupted prompt that destroys the behaviour."
        )
    return warnings


def _listed(numbers: Sequence[int] | NDArray[np.int64]) -> str:
    """Returns the first few of some pairs, counted from 1."""
    return ", ".join(str(int(number) + 1) for number in numbers[:5])


def _corruption(one: Finished) -> list[str]:
    """Warns of values that no prompt of the kind gives."""
    corruption = one.plan.corruption
    if corruption.kind == "noise":
        return ["Noise takes the model where it was not trained. Prefer a corrupted prompt with another word."]
    if corruption.ablates:
        others = " or ".join(name for name in ("zero", "mean", "resample") if name != corruption.kind)
        return [f"Every effect is one of {corruption.kind} ablation. Compare with {others} before you trust it."]
    return []


def _redundant(one: Finished) -> list[str]:
    """Warns where nothing alone is necessary although there is a behaviour: parts may stand in for what is lost."""
    if "noising" not in one.plan.directions or "layer" not in one.plan.over:
        return []
    metric = one.plan.metrics[0].name
    clean, corrupted = (one.baselines[metric][run] for run in ("clean", "corrupted"))
    gap = abs(float(np.mean(clean - corrupted)))
    effect = one.values[metric][one.plan.directions.index("noising")] - clean
    there = np.isfinite(effect).any(axis=-1)
    if gap < NO_GAP or not there.any():
        return []
    largest = float(np.abs(np.nanmean(effect[there], axis=-1)).max()) / gap
    if largest >= _SMALL:
        return []
    return [
        f"No single cell takes away more than {100 * largest:.0f} % of the gap, so parts may stand in for each other "
        "(self-repair). Patch several together with nbp.patch_sites."
    ]


def _only_probability(one: Finished) -> list[str]:
    if {metric.name for metric in one.plan.metrics} != {"prob"}:
        return []
    return ["Probability only. It cannot see parts that work against the answer. Add logit_diff."]


def _one_direction(one: Finished) -> list[str]:
    if one.plan.both or not one.plan.directed:
        return []
    if one.plan.corruption.ablates:
        return ["One direction only. An ablation misses parts that a backup can replace. Denoise from another prompt."]
    if "denoising" in one.plan.directions:
        return ["One direction only. Denoising does not show parts that only work together. Run both."]
    return ["One direction only. Noising misses parts that a backup can replace. Run both."]


def _one_pair(one: Finished) -> list[str]:
    if len(one.plan.tokenized) > 1:
        return []
    return ["One pair only, so there is no spread. Add pairs to see whether it holds."]
