"""What many pairs say about a cell: intervals, tests, agreement; and what several metrics say about each other."""

import itertools
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

NO_GAP = 1e-4
"""Below this size of clean − corrupted, in the metric's unit, there is nothing to recover."""

QUADRANTS = ("neither", "OR", "AND", "bottleneck")
"""What a cell is, by whether it is sufficient (1) and necessary (2): one of several ways, one of several parts, all."""

_CELLS_AT_ONCE = 1024
_ALL_SIGNS = 12
"""Up to so many pairs every choice of signs is tried, instead of some drawn at random."""


def bootstrap(above: Floats, gap: Floats, times: NDArray[np.int64], level: float) -> tuple[Floats, Floats]:
    """Returns the bounds [*cell] between which lies a share `level` of resampled ratios of means; NaN without any.

    Args:
        above: m(patched) − m(corrupted) [pair *cell].
        gap: m(clean) − m(corrupted) [pair]; pairs without one are left out.
        times: how often each resample holds each pair [resample pair].
    """
    cells = above.reshape(len(gap), -1)
    bounds = np.full((2, cells.shape[1]), np.nan)
    tails = [(1 - level) / 2, (1 + level) / 2]
    there_is = np.abs(gap) >= NO_GAP
    for start in range(0, cells.shape[1], _CELLS_AT_ONCE):
        part = cells[:, start : start + _CELLS_AT_ONCE]
        there = np.isfinite(part) & there_is[:, None]
        size = times @ there
        gaps = times @ (gap[:, None] * there)
        enough = (size > 0) & (np.abs(gaps) >= NO_GAP * np.maximum(size, 1))
        ratios = np.divide(times @ np.where(there, part, 0.0), gaps, out=np.full(gaps.shape, np.nan), where=enough)
        found = np.flatnonzero(enough.any(0))
        bounds[:, start + found] = np.nanquantile(ratios[:, found], tails, axis=0)
    low, high = bounds.reshape(2, *above.shape[1:])
    return low, high


def sign_flip(effect: Floats, *, n: int, seed: int) -> Floats:
    """Returns the two-sided p-value [*cell] of a mean effect over pairs that is not zero; NaN with under two pairs.

    Under the null hypothesis each pair's effect might as well have the other sign: p is the share of choices of signs
    whose mean is as far from zero. All choices are tried where there are few pairs, else `n` drawn ones and the true
    one.

    Args:
        effect: m(patched) − m(base) [pair *cell]; NaN where a pair has no such cell.

    Source: Fisher 1935, The Design of Experiments, § 21.
    """
    pairs = len(effect)
    if pairs <= _ALL_SIGNS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=pairs)))
    else:
        drawn = np.random.default_rng(seed).choice((1.0, -1.0), (n, pairs))
        signs = np.concatenate([np.ones((1, pairs)), drawn])
    cells = effect.reshape(pairs, -1)
    p = np.full(cells.shape[1], np.nan)
    for start in range(0, cells.shape[1], _CELLS_AT_ONCE):
        part = np.nan_to_num(cells[:, start : start + _CELLS_AT_ONCE])
        size = np.isfinite(cells[:, start : start + _CELLS_AT_ONCE]).sum(0)
        sums = np.abs(signs @ part)
        # A little room: the same sum in another order is another number.
        p[start : start + part.shape[1]] = np.where(size > 1, (sums >= sums[0] * (1 - 1e-12)).mean(0), np.nan)
    return p.reshape(effect.shape[1:])


def same_sign(effect: Floats) -> Floats:
    """Returns the share of pairs [*cell] whose effect has the sign of the mean; NaN where no pair has the cell.

    Args:
        effect: [pair *cell], NaN where a pair has no such cell.
    """
    size = np.isfinite(effect).sum(0)
    filled = np.nan_to_num(effect)
    agree = ((np.sign(filled) == np.sign(filled.sum(0))) & np.isfinite(effect)).sum(0)
    return np.divide(agree, size, out=np.full(agree.shape, np.nan), where=size > 0)


def rank_correlation(one: Floats, other: Floats) -> float:
    """Returns Spearman's correlation of two sets of cells' effects; NaN where one of them is all the same."""
    ranks = [_ranks(values) for values in (one, other)]
    if any((values == values[0]).all() for values in ranks):
        return float("nan")
    left, right = (values - values.mean() for values in ranks)
    return float(left @ right / np.sqrt((left @ left) * (right @ right)))


def _ranks(values: Floats) -> Floats:
    """Returns each value's place, equal ones sharing the middle of theirs."""
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.take(count.cumsum() - (count - 1) / 2, which.ravel())


def overlap(one: Floats, other: Floats, k: int) -> float:
    """Returns the share of the k strongest cells, either sign, that two sets of effects have in common."""
    k = min(k, len(one))
    strongest = [set(np.argsort(-np.abs(values), kind="stable")[:k].tolist()) for values in (one, other)]
    return len(strongest[0] & strongest[1]) / k


def agreed(one: Floats, other: Floats, k: int) -> tuple[float, float, int]:
    """Returns how far two sets of effects agree: rank correlation, overlap of the k strongest, cells that both have."""
    there = np.isfinite(one) & np.isfinite(other)
    left, right = one[there], other[there]
    found = (rank_correlation(left, right), overlap(left, right, k)) if there.any() else (np.nan, np.nan)
    return (*found, int(there.sum()))


def explained(estimate: Floats, exact: Floats) -> float:
    """Returns R² of taking estimates for exact values; NaN where all exact ones are the same."""
    there = np.isfinite(estimate) & np.isfinite(exact)
    off, spread = (exact - estimate)[there], (exact - exact[there].mean() if there.any() else exact)[there]
    total = float(spread @ spread)
    return 1 - float(off @ off) / total if total > 0 else float("nan")


def compared(estimate: xr.DataArray, exact: xr.DataArray, k: int) -> xr.Dataset:
    """Returns two sets of effects with the same dims side by side, and how far they agree as attributes."""
    both = estimate.to_numpy(), exact.to_numpy()
    correlation, shared, _ = agreed(both[0].ravel(), both[1].ravel(), k)
    numbers = {"r2": explained(*both), "rank_correlation": correlation, "top_recall": shared, "k": k}
    return xr.Dataset({"estimate": estimate, "exact": estimate.copy(data=both[1])}, attrs=numbers)


def quadrants(sufficiency: Floats, necessity: Floats, threshold: float) -> NDArray[Any]:
    """Returns the name of each cell's quadrant, "" where it has no value."""
    names = np.array(QUADRANTS)[(sufficiency >= threshold).astype(int) + 2 * (necessity >= threshold)]
    return np.where(np.isfinite(sufficiency) & np.isfinite(necessity), names, "")


def ratio_of_means(above: xr.DataArray, gap: xr.DataArray, *, per_pair: bool = False) -> xr.DataArray:
    """Returns above / gap, over pairs as a ratio of means, NaN where there is no gap.

    A pair that lacks a cell is left out of both means of that cell, one without a gap of all.
    """
    gap = gap.where(abs(gap) >= NO_GAP)
    if per_pair:
        return above / gap
    mean = gap.where(above.notnull()).mean("pair")
    return above.where(gap.notnull()).mean("pair") / mean.where(abs(mean) >= NO_GAP)
