"""What a run found: labelled arrays, the baselines to read them against, and the pedigree of both.

A saved result opens, computes, prints and plots on a machine with neither torch nor a model.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nbpatch import display
from nbpatch.card import write_card, write_headline
from nbpatch.errors import ResultError, suggest
from nbpatch.files import read_file, write_file
from nbpatch.frames import REASONS, STATES, written
from nbpatch.statistics import NO_GAP, agreed, bootstrap, compared, quadrants, ratio_of_means, same_sign, sign_flip

SPREAD = "spread_of_"
"""Begins the name of the coordinate that holds a metric's standard deviation over draws."""

VERIFIED = "exact_"
"""Begins the name of the coordinate that holds m(patched) of the cells of an estimate that were run exactly as well."""

BESIDE = (SPREAD, VERIFIED)
"""Begin the names of coordinates that stand beside a metric's values, one number each."""


@dataclass(frozen=True, eq=False)
class Result:
    """The outcome of a sweep.

    Attributes:
        data: one variable per metric, m(patched) in the metric's unit, with dims (direction when both, *over, pair)
            and a coordinate `state`, indices into `STATES`.
        baselines: `clean` and `corrupted`, each with dims (metric, pair).
        provenance: what made it: method, component, prompts, model, versions.
        warnings: what the run cannot tell, and what would settle it.
        origin: the live model and plan, for widgets that go on from here; not saved.
    """

    data: xr.Dataset
    baselines: xr.Dataset
    provenance: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    origin: object | None = field(default=None, repr=False)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what was measured, the first being the default everywhere."""
        return tuple(str(name) for name in self.data.data_vars)

    @property
    def over(self) -> tuple[str, ...]:
        """The swept axes."""
        return tuple(self.provenance.get("over", ()))

    def gap(self, metric: str | None = None) -> xr.DataArray:
        """Returns m(clean) − m(corrupted) [pair], in the metric's unit."""
        name = self._metric(metric)
        return (self.baselines["clean"] - self.baselines["corrupted"]).sel(metric=name, drop=True)

    def effect(self, metric: str | None = None, *, per_pair: bool = False) -> xr.DataArray:
        """Returns m(patched) − m(base), in the metric's unit, the mean over pairs or each pair's own.

        The base is the corrupted run under denoising, the clean run under noising. A pair without the cell is left
        out of its mean.
        """
        effect = self._values(metric) - self._base(metric)
        return effect if per_pair else effect.mean("pair")

    def recovered(self, metric: str | None = None, *, per_pair: bool = False) -> xr.DataArray:
        """Returns (m(patched) − m(corrupted)) / gap: 0 = like the corrupted run, 1 = like the clean run.

        The same formula holds in both directions; values outside [0, 1] are real. Over pairs it is the ratio of
        means. Where there is no gap (smaller than `NO_GAP` of the unit) it is NaN.
        """
        name = self._metric(metric)
        above = self._values(name) - self.baselines["corrupted"].sel(metric=name, drop=True)
        return ratio_of_means(above, self.gap(name), per_pair=per_pair)

    def share(self, metric: str | None = None, *, per_pair: bool = False) -> xr.DataArray:
        """Returns effect / gap: the part of the gap that a patch restores (> 0) or takes away (< 0).

        This is what the maps colour.
        """
        name = self._metric(metric)
        return ratio_of_means(self.effect(name, per_pair=True), self.gap(name), per_pair=per_pair)

    def spread(self, metric: str | None = None) -> xr.DataArray:
        """Returns the standard deviation of m(patched) over draws, in the metric's unit, with the dims of `data`.

        Raises:
            ResultError: nothing was drawn at random.
        """
        name = SPREAD + self._metric(metric)
        if name not in self.data.coords:
            fix = 'nbp.patch(…, corruption=nbp.Resample(pairs, k=8)), or nbp.Noise("subject")'
            raise ResultError(
                "nothing was drawn several times at random.", where="spread", seen=self._corruption(), fix=fix
            )
        found = self.data.coords[name]
        return found.drop_vars([one for one in found.coords if one not in found.dims]).rename(name)

    def _corruption(self) -> str:
        return f"corruption {self.provenance.get('corruption', 'none')}"

    def interval(self, metric: str | None = None, *, level: float = 0.95, n: int = 2000, seed: int = 0) -> xr.Dataset:
        """Returns the bootstrap interval of `recovered` over pairs: variables `low` and `high`, dims as `recovered`.

        Args:
            level: the share of resamples between low and high.
            n: how many resamples of the pairs, with replacement.
            seed: of the resampling.

        Raises:
            ResultError: fewer than two pairs, or a level outside (0, 1).
        """
        name = self._metric(metric)
        self._refuse_several("interval")
        pairs = self.data.sizes["pair"]
        if pairs < 2:
            seen = f"{pairs} pair"
            raise ResultError(
                "an interval needs at least two pairs.", where="interval", seen=seen, fix="nbp.Pairs([…, …])"
            )
        if not 0 < level < 1:
            raise ResultError("level is a share.", where="interval", seen=f"level={level}", fix="level=0.95")
        above = self._values(name) - self.baselines["corrupted"].sel(metric=name, drop=True)
        draws = np.random.default_rng(seed).integers(0, pairs, (n, pairs))
        times = np.stack([(draws == pair).sum(1) for pair in range(pairs)], 1)
        bounds = bootstrap(above.transpose("pair", ...).to_numpy(), self.gap(name).to_numpy(), times, level)
        like = self.recovered(name)
        return xr.Dataset({side: like.copy(data=bound) for side, bound in zip(("low", "high"), bounds, strict=True)})

    def _refuse_several(self, where: str) -> None:
        """Refuses a study of several corruptions, whose pairs have a gap for each."""
        if "corruption" in self.baselines.dims:
            seen = ", ".join(map(str, self.data["corruption"].to_numpy()))
            fix = f'nbp.of_corruption(result, "{self.data["corruption"].to_numpy()[0]}").{where}()'
            raise ResultError("that is of one corruption.", where=where, seen=seen, fix=fix)

    def significance(self, metric: str | None = None, *, n: int = 10_000, seed: int = 0) -> xr.Dataset:
        """Returns how sure the pairs are of each effect, with the dims of `effect`.

        Variables: `p`, the two-sided p-value of a sign-flip test of the mean effect; `same_sign`, the share of pairs
        whose effect has the mean's sign. No correction is made for the number of cells.

        Args:
            n: how many choices of signs are drawn where there are too many pairs to try all.
            seed: of drawing them.

        Raises:
            ResultError: fewer than two pairs.
        """
        pairs = self.data.sizes["pair"]
        if pairs < 2:
            raise ResultError(
                "a test needs at least two pairs.", where="significance", seen=f"{pairs} pair", fix="nbp.Pairs([…, …])"
            )
        effect = self.effect(metric, per_pair=True).transpose("pair", ...)
        values, like = effect.to_numpy(), effect.isel(pair=0, drop=True)
        return xr.Dataset(
            {"p": like.copy(data=sign_flip(values, n=n, seed=seed)), "same_sign": like.copy(data=same_sign(values))}
        )

    def sufficiency_necessity(self, metric: str | None = None, *, threshold: float = 0.1) -> xr.Dataset:
        """Returns what each cell restores beside what is lost without it, with the swept axes as dims.

        Variables: `sufficiency`, recovered under denoising; `necessity`, 1 − recovered under noising; `quadrant`:
        "OR" restores the behaviour but is not needed for it (one of several ways), "AND" is needed but restores
        nothing alone (one of several parts), "bottleneck" is both, "neither" is neither.

        Args:
            threshold: the share of the gap from which a cell counts.

        Raises:
            ResultError: the sweep was run in one direction.
        """
        if "direction" not in self.data.dims:
            raise ResultError(
                "that compares both directions.",
                where="sufficiency_necessity",
                seen=f"direction={self.provenance.get('direction')!r}",
                fix='nbp.patch(…, direction="both")',
            )
        recovered = self.recovered(metric)
        both = recovered.sel(direction="denoising", drop=True), 1 - recovered.sel(direction="noising", drop=True)
        names = quadrants(both[0].to_numpy(), both[1].to_numpy(), threshold)
        found = {"sufficiency": both[0], "necessity": both[1], "quadrant": both[0].copy(data=names)}
        return xr.Dataset(found, attrs={"threshold": threshold})

    def compare_metrics(self, k: int = 10) -> pd.DataFrame:
        """Returns, for each two metrics, how far they agree on the cells: one row with their names.

        `rank_correlation` is Spearman's over all cells that have an effect under both, `top_overlap` the share that
        the k strongest have in common.

        Raises:
            ResultError: fewer than two metrics.
        """
        if len(self.metrics) < 2:
            fix = 'nbp.patch(…, metric=["logit_diff", "prob"])'
            seen = f"{', '.join(self.metrics)} only"
            raise ResultError("that compares metrics.", where="compare_metrics", seen=seen, fix=fix)
        effects = {name: self.effect(name).to_numpy().ravel() for name in self.metrics}
        rows: list[dict[str, Any]] = []
        for one, other in itertools.combinations(self.metrics, 2):
            correlation, shared, _ = agreed(effects[one], effects[other], k)
            rows.append({"metric": one, "other": other, "rank_correlation": correlation, "top_overlap": shared})
        return pd.DataFrame(rows)

    def against(self, exact: "Result | None" = None, metric: str | None = None, *, k: int = 10) -> xr.Dataset:
        """Returns how far these effects, estimates mostly, are from exact ones.

        Variables, with the dims of `effect`: `estimate` and `exact`; NaN where there is none. Attributes: `r2`, of
        taking the estimate for the exact effect (1 − squared errors / squared deviations from the mean),
        `rank_correlation` (Spearman), and `top_recall`, the share of the k strongest that both have.

        Args:
            exact: the same sweep run by `nbp.patch`. None: the cells that `nbp.attribute(…, verify=k)` ran exactly.

        Raises:
            ResultError: another sweep, or nothing was verified.
        """
        name = self._metric(metric)
        estimate = self.effect(name)
        if exact is None and VERIFIED + name not in self.data.coords:
            fix = "nbp.attribute(…, verify=20), or result.against(nbp.patch(…))"
            raise ResultError("no cell was run exactly.", where="against", fix=fix)
        found = self._verified(name) if exact is None else exact.effect(name)
        if found.sizes != estimate.sizes:
            seen = f"{dict(found.sizes)} against {dict(estimate.sizes)}"
            raise ResultError("that is another sweep.", where="against", seen=seen, fix="the same axes and directions")
        made = {"unit": self.data[name].attrs.get("unit", ""), "label": self.data[name].attrs.get("label", name)}
        return compared(estimate, found.transpose(*estimate.dims), k).assign_attrs(made)

    def _verified(self, name: str) -> xr.DataArray:
        """Returns the exact effect of the cells that were verified, NaN elsewhere."""
        exact = self._values(name).copy(data=self.data.coords[VERIFIED + name].to_numpy())
        return (exact - self._base(name)).mean("pair")

    @property
    def groups(self) -> tuple[str, ...]:
        """The distributions its pairs are from, in the order they first appear; none where pairs do not say."""
        found = [pair.get("group") for pair in self.provenance.get("pairs", ())]
        return tuple(dict.fromkeys(str(group) for group in found if group is not None))

    def of_group(self, group: str) -> "Result":
        """Returns the result of the pairs of one group.

        Raises:
            ResultError: a group that no pair is from.
        """
        if group not in self.groups:
            what = f"no group {group!r} in this result."
            fix = suggest(group, self.groups) if self.groups else 'PromptPair(…, group="ABBA")'
            raise ResultError(what, where="of_group", fix=fix)
        pairs = self.provenance["pairs"]
        mine = [number for number, pair in enumerate(pairs) if pair.get("group") == group]
        made = {**self.provenance, "pairs": [pairs[number] for number in mine]}
        data, baselines = (
            part.isel(pair=mine).assign_coords(pair=np.arange(len(mine))) for part in (self.data, self.baselines)
        )
        return replace(self, data=data, baselines=baselines, provenance=made, origin=None)

    def by_group(self, metric: str | None = None) -> xr.DataArray:
        """Returns `recovered` for each group of pairs apart, with a leading axis `group`.

        Raises:
            ResultError: the pairs are of no group.
        """
        if not self.groups:
            fix = 'PromptPair(…, group="ABBA")'
            raise ResultError("the pairs are of no group.", where="by_group", fix=fix)
        each = [self.of_group(group).recovered(metric) for group in self.groups]
        return xr.concat(each, "group").assign_coords(group=list(self.groups))

    def to_frame(self, metric: str | None = None) -> pd.DataFrame:
        """Returns one row per cell: its axes, the token at its position, effect, share of the gap, recovered, state.

        The state is one of `STATES`, or "mixed" where the pairs' differ.
        """
        effect = self.effect(metric)
        frame = pd.DataFrame(
            {
                "effect": effect.to_series() if effect.ndim else pd.Series([float(effect)]),
                "share": self.share(metric).to_numpy().ravel(),
                "recovered": self.recovered(metric).to_numpy().ravel(),
                "state": self._states(),
            }
        ).reset_index(drop=effect.ndim == 0)
        for axis in ("pos", "dest", "src"):
            if axis in frame:
                frame.insert(
                    list(frame).index(axis) + 1, f"{axis}_token", [self._token(int(place)) for place in frame[axis]]
                )
        return frame

    def top(self, n: int = 10, metric: str | None = None) -> pd.DataFrame:
        """Returns the n cells with the strongest effect, either sign, the strongest first; of mediation the NIE."""
        frame = self.to_frame(metric).dropna(subset=["effect"])
        if "kind" in self.data.dims and self.provenance["method"] == "mediate":
            frame = frame.loc[frame["kind"] == "NIE"]
        order = frame["effect"].abs().sort_values(ascending=False, kind="stable").index[:n]
        return frame.loc[order].reset_index(drop=True)

    def reason(self, **cell: Any) -> str:
        """Returns why a cell has the value it has, in words; pair 0 unless another is named.

        Raises:
            ResultError: an axis or a label that the result does not have.
        """
        self._metric(None)
        try:
            state = self.data["state"].sel({"pair": 0, **cell} if "pair" in self.data.dims else cell)
        except KeyError as error:
            seen = f"{cell}"
            fix = "axes: " + ", ".join(str(dim) for dim in self.data.dims)
            raise ResultError("no such cell.", where="reason", seen=seen, fix=fix) from error
        if state.ndim:
            left = ", ".join(str(dim) for dim in state.dims)
            raise ResultError(
                "that is more than one cell.", where="reason", seen=f"{left} left open", fix=f"name {left} too"
            )
        word = STATES[int(state)]
        gap = self.gap()
        gap = gap.sel({dim: cell.get(str(dim), 0) for dim in gap.dims})
        left = [
            one
            for one in self.provenance.get("left_out", ())
            if all(cell.get(axis) == one[axis] for axis in cell if axis in one)
        ]
        if word == "not run" and left:
            return f"not run: {left[0]['why']}"
        if word in ("measured", "exact") and abs(float(gap)) < NO_GAP:
            return "no gap: the metric is the same in the clean and the corrupted run"
        return REASONS[word]

    @property
    def components(self) -> tuple[str, ...]:
        """The swept components; more than one when several were run together."""
        return tuple(self.provenance.get("components", (str(self.provenance.get("component", "")),)))

    def sel(self, component: str) -> "Result":
        """Returns the result of one component of several that were run together.

        Raises:
            ResultError: a component that the result does not have.
        """
        if component not in self.components:
            fix = suggest(component, self.components)
            raise ResultError(f"no component {component!r} in this result.", where="sel", fix=fix)
        if len(self.components) == 1:
            return self
        data = self.data.sel(component=component, drop=True)
        if "head" in data.dims:
            there = (data["state"] != STATES.index("no position")).any([dim for dim in data.dims if dim != "head"])
            data = data.isel(head=np.flatnonzero(there.to_numpy()))
            labels = data["head"].to_numpy().tolist()
            if all(str(label).isdecimal() for label in labels):
                data = data.assign_coords(head=[int(label) for label in labels])
        rest = {key: value for key, value in self.provenance.items() if key != "components"}
        made = {**rest, **self.provenance["components"][component]}
        origin = self.origin.get(component) if isinstance(self.origin, Mapping) else None
        return replace(self, data=data, provenance=made, origin=origin)

    def card(self, *, markdown: bool = False) -> str:
        """Returns the methods card: in words, everything a reader needs to judge or repeat the result.

        Args:
            markdown: as a Markdown list, for a paper or a notebook, instead of aligned lines.
        """
        return write_card(self.provenance, self.baselines, self.warnings, markdown=markdown)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the result as netCDF and returns the path; an existing file is replaced only by a complete one.

        The methods card is in it as the attribute `methods_card`, for whoever opens the file with something else.

        Raises:
            ResultError: the folder does not exist or cannot be written to.
        """
        head = {"provenance": dict(self.provenance), "warnings": list(self.warnings)}
        return write_file(path, self.data.assign_attrs(methods_card=self.card()), self.baselines, head)

    @property
    def _display(self) -> display.Display:
        return display.get(live=self.origin is not None)

    def plot(self, metric: str | None = None, **options: Any) -> Any:
        """Returns a matplotlib Figure of the map: tokens as the axis, colour = effect as a share of the gap.

        With kind="quadrants": every cell as a point, `sufficiency_necessity` to the right and upwards. With
        kind="against": the points of `against`, which takes `exact`.

        Raises:
            ResultError: the result holds several components; one is drawn at a time.
        """
        if len(self.components) > 1:
            raise ResultError(
                "one component is drawn at a time.",
                where="plot",
                seen=", ".join(self.components),
                fix=f'result.sel("{self.components[0]}").plot()',
            )
        return self._display.plot(self, metric=metric, **options)

    def show(self, **options: Any) -> Any:
        """Returns a widget of the result; it can run further sweeps while the model is alive.

        Of several components it shows the first; the others are a click away.
        """
        if len(self.components) > 1:
            return self.sel(self.components[0]).show(**options)
        return self._display.show(self, **options)

    def to_html(self, path: str | os.PathLike[str], *, attention: bool = True) -> Path:
        """Writes one self-contained HTML page of the result, which needs no network, and returns its path.

        Args:
            attention: whether the page holds the attention of the first pair; that needs the model to be there.
        """
        one = self.sel(self.components[0])
        return one._display.to_html(one, os.fspath(path), attention=attention)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        one = self.sel(self.components[0])
        bundle: tuple[dict[str, Any], dict[str, Any]] = one._display.mimebundle(one)
        return {**bundle[0], "text/plain": repr(self)}, bundle[1]

    def __repr__(self) -> str:
        if "direction" not in self.provenance:
            sizes = ", ".join(f"{dim} {size}" for dim, size in self.data.sizes.items())
            return f"Result of {self.provenance.get('method')} on {self.provenance['model']['name']} ({sizes})"
        lines = [self.headline(), "", *written(self.top(8))]
        return "\n".join([*lines, *(["", *(f"! {warning}" for warning in self.warnings)] if self.warnings else [])])

    def headline(self) -> str:
        """Returns one line: what was patched, in which direction, and the baselines."""
        name = self.metrics[0]
        return write_headline(self.provenance, self.baselines.sel(metric=name), self.data[name])

    def _metric(self, metric: str | None) -> str:
        if self.provenance.get("method") == "attention":
            raise ResultError("attention patterns have no effect: nothing was patched.", fix='result.data["pattern"]')
        if metric is None:
            return self.metrics[0]
        if metric not in self.metrics:
            raise ResultError(
                f"no metric {metric!r} in this result.", where="metric", fix=suggest(metric, self.metrics)
            )
        return metric

    def _values(self, metric: str | None) -> xr.DataArray:
        values = self.data[self._metric(metric)]
        return values.drop_vars([one for one in values.coords if one == "state" or str(one).startswith(BESIDE)])

    def _base(self, metric: str | None) -> xr.DataArray:
        """Returns m(base) [pair], or [direction pair] when both directions were run."""
        name = self._metric(metric)
        if "direction" not in self.provenance:
            seen = f"a result of {self.provenance.get('method')}"
            fix = f'result.data["{name}"]'
            raise ResultError("there is no effect: nothing was patched.", where="effect", seen=seen, fix=fix)
        corrupted, clean = (self.baselines[run].sel(metric=name, drop=True) for run in ("corrupted", "clean"))
        if "direction" in self.data.dims:
            both = xr.concat([corrupted, clean], "direction")
            return both.assign_coords(direction=["denoising", "noising"])
        return corrupted if self.provenance["direction"] == "denoising" else clean

    def _states(self) -> list[str]:
        """Returns each cell's state in words, over all pairs."""
        codes = self.data["state"].transpose(..., "pair").to_numpy()
        codes = codes.reshape(-1, codes.shape[-1])
        return [STATES[row[0]] if (row == row[0]).all() else "mixed" for row in codes]

    def _token(self, place: int) -> str:
        """Returns the token at a clean position: the pairs' common one, else the first pair's with an ellipsis."""
        pairs: Sequence[Mapping[str, Any]] = self.provenance["pairs"]
        found = list(dict.fromkeys(p["clean_tokens"][place] for p in pairs if place < len(p["clean_tokens"])))
        return found[0] if len(found) == 1 else f"{found[0]} …"


def read(path: str | os.PathLike[str]) -> Result:
    """Returns the result saved at `path`.

    Raises:
        ResultError: no such file, or a file that holds no result, or one of a newer version.
    """
    data, baselines, head = read_file(path)
    return Result(data, baselines, head["provenance"], tuple(head["warnings"]))
