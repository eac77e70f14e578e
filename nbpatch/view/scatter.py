"""Figures of cells as points: what each restores against what is lost without it; an estimate against the exact."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nbpatch.errors import ResultError
from nbpatch.result import Result
from nbpatch.statistics import QUADRANTS
from nbpatch.view.canvas import Canvas, type_for
from nbpatch.view.style import TOKENS
from nbpatch.view.words import facts, question

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = TOKENS["light"]
_PAD, _LEFT, _TOP, _SIDE, _BELOW = 0.2, 0.75, 0.95, 5.4, 0.95
_NAMED, _FURTHEST, _MANY = 8, 5, 400
_MARKS = {"neither": ("o", "none"), "OR": ("^", "full"), "AND": ("s", "full"), "bottleneck": ("D", "full")}
_MEANS = {
    "OR": "OR: restores alone, not needed",
    "AND": "AND: needed, restores nothing alone",
    "bottleneck": "bottleneck: both",
    "neither": "neither",
}


def quadrants(result: Result, metric: str | None = None, *, threshold: float = 0.1) -> "Figure":
    """Returns every cell as a point: sufficiency to the right, necessity upwards, the strongest with their names.

    Args:
        threshold: the share of the gap from which a cell counts; the dashed lines.

    Raises:
        ResultError: the sweep was run in one direction, or an unknown metric.
    """
    name = metric or result.metrics[0]
    found = result.sufficiency_necessity(name, threshold=threshold)
    cells = _cells(found)
    labels = [_label(result, cell) for cell in cells]
    title = question(result.provenance, result.provenance["pairs"][0], name)[0]
    fonts = type_for([title, *labels])
    wide = _LEFT + _SIDE + 2 * _PAD
    lines = fonts.wrap(title, 11, wide - 2 * _PAD, bold=True)
    top = _TOP + 0.25 * (len(lines) - 1)
    canvas = Canvas(wide, top + _SIDE + _BELOW, fonts)
    for number, line in enumerate(lines):
        canvas.text(_PAD, 0.3 + 0.25 * number, line, 11, color=_INK["ink"], weight="bold")
    _draw(canvas.axes(_LEFT, top, _SIDE, _SIDE), cells, labels, threshold, fonts.families)
    x = _LEFT
    for quadrant in reversed(QUADRANTS):
        text = _MEANS[quadrant]
        canvas.text(x, top - 0.2, f"{_GLYPHS[quadrant]} {text}", 7, color=_INK["ink2"])
        x += fonts.width(f"{_GLYPHS[quadrant]} {text}", 7) + 0.16
    line = fonts.cut(facts(result, name, None), 7.5, wide - 2 * _PAD)
    canvas.text(_PAD, top + _SIDE + 0.75, line, 7.5, color=_INK["ink3"])
    return canvas.figure


def against(found: xr.Dataset, *, dark: bool = False) -> "Figure":
    """Returns an estimate against the exact values: every cell as a point, the identity line, how well they agree.

    The cells that are furthest from the line have their names.

    Args:
        found: variables `estimate` and `exact` of the same dims, NaN where absent; attributes `r2`,
            `rank_correlation`, `top_recall`, `k`, `unit` and `label`.
        dark: on a dark page.

    Raises:
        ResultError: no cell has both values.
    """
    ink, made = TOKENS["dark" if dark else "light"], found.attrs
    frame = found[["estimate", "exact"]].to_dataframe().reset_index().dropna(subset=["estimate", "exact"])
    if frame.empty:
        fix = "cells that were both estimated and run"
        raise ResultError("no cell has both values.", where="against", seen=f"{found.sizes}", fix=fix)
    numbers = (
        f"R² {made['r2']:.3f} · rank correlation {made['rank_correlation']:.3f} · "
        f"top-{made['k']} recall {made['top_recall']:.2f} · {len(frame)} cells"
    ).replace("-0", "−0")
    points = frame[["estimate", "exact"]].to_numpy(float)
    furthest = np.argsort(-np.abs(points[:, 1] - points[:, 0]), kind="stable")[:_FURTHEST]
    names = [_cell_name(cell) for cell in frame.iloc[furthest].to_dict("records")]
    fonts = type_for([made["label"], *names])
    wide, top = _LEFT + _SIDE + 2 * _PAD, 0.85
    canvas = Canvas(wide, top + _SIDE + 0.6, fonts)
    canvas.figure.set_facecolor(ink["bg"])
    line = fonts.cut(made["label"], 11, wide - 2 * _PAD, bold=True)
    canvas.text(_PAD, 0.3, line, 11, color=ink["ink"], weight="bold")
    canvas.text(_PAD, 0.56, numbers, 8.5, color=ink["ink2"])
    axes = canvas.axes(_LEFT, top, _SIDE, _SIDE)
    _draw_against(axes, points, ink)
    for place, name in zip(furthest, names, strict=True):
        _write_name(axes, points[place], fonts.drawable(name), fonts.families, ink["ink"])
    axes.set_xlabel(f"estimate, {made['unit']}", fontsize=8, color=ink["ink2"])
    axes.set_ylabel(f"exact, {made['unit']}", fontsize=8, color=ink["ink2"])
    return canvas.figure


def _draw_against(axes: "Axes", points: NDArray[np.float64], ink: dict[str, str]) -> None:
    axes.set_axis_on()
    axes.set_facecolor(ink["bg"])
    low, high = min(0.0, float(points.min())), max(0.0, float(points.max()))
    margin = 0.06 * (high - low) or 1.0
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)
    for line in (axes.axhline, axes.axvline):
        line(0, color=ink["line"], linewidth=0.8, zorder=0)
    axes.axline((0, 0), slope=1, color=ink["edge"], linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    many = len(points) > _MANY
    axes.scatter(
        *points.T, s=6 if many else 20, color=ink["pos"], alpha=0.35 if many else 0.8, linewidths=0, rasterized=many
    )
    axes.tick_params(labelsize=7.5, colors=ink["ink3"], length=3)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(ink["edge"])


def _write_name(axes: "Axes", point: NDArray[np.float64], name: str, families: tuple[str, ...], colour: str) -> None:
    """Writes a cell's name beside its point, away from the identity line."""
    above = point[1] > point[0]
    looks: dict[str, Any] = {"fontsize": 7.5, "color": colour, "family": list(families), "parse_math": False}
    axes.annotate(
        name, (point[0], point[1]), (-5 if above else 5, 3 if above else -3), textcoords="offset points",
        ha="right" if above else "left", va="bottom" if above else "top", **looks,
    )  # fmt: skip


def _cell_name(cell: dict[Any, Any]) -> str:
    """Returns a cell's name from its axes: 9.6 for a head, L2 for a layer, @7 for a position, a0.1→a3.1 for an edge."""
    axes = {str(axis): value for axis, value in cell.items() if axis not in ("estimate", "exact")}
    parts = [f"{axes.pop('sender')}→{axes.pop('receiver')}"] if {"sender", "receiver"} <= set(axes) else []
    if {"layer", "head"} <= set(axes):
        parts.append(f"{axes.pop('layer')}.{axes.pop('head')}")
    words = {"layer": "L", "pos": "@", "dest": "@", "src": "←"}
    return " ".join([*parts, *(f"{words.get(axis, f'{axis} ')}{value}" for axis, value in axes.items())])


_GLYPHS = {"neither": "○", "OR": "▲", "AND": "■", "bottleneck": "◆"}


def _cells(found: xr.Dataset) -> list[dict[str, Any]]:
    """Returns one row per cell that has a value: its axes and the three variables."""
    frame = found.to_dataframe().reset_index() if found.sizes else found.expand_dims("cell").to_dataframe()
    rows: list[dict[str, Any]] = frame.to_dict("records")
    return [row for row in rows if row["quadrant"]]


def _label(result: Result, cell: dict[str, Any]) -> str:
    """Returns a cell's name, as it is written: 2.1 for a head, L2 for a layer, its token for a position."""
    parts = [f"{cell['layer']}.{cell['head']}"] if "head" in cell and "layer" in cell else []
    if "layer" in cell and not parts:
        parts.append(f"L{cell['layer']}")
    tokens = result.provenance["pairs"][0]["clean_tokens"]
    parts += [
        f"{tokens[cell[axis]].strip()}@{cell[axis]}" if cell[axis] < len(tokens) else str(cell[axis])
        for axis in ("pos", "dest", "src")
        if axis in cell
    ]
    return " ".join(parts)


def _draw(
    axes: "Axes", cells: list[dict[str, Any]], labels: list[str], threshold: float, families: tuple[str, ...]
) -> None:
    axes.set_axis_on()
    points = np.array([(cell["sufficiency"], cell["necessity"]) for cell in cells]).reshape(-1, 2)
    low, high = min(-0.1, *points.ravel(), 0.0) - 0.05, max(1.0, *points.ravel()) + 0.08
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    for line in (axes.axhline, axes.axvline):
        line(threshold, color=_INK["edge"], linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        line(0, color=_INK["line"], linewidth=0.8, zorder=0)
    for quadrant, (mark, fill) in _MARKS.items():
        mine = np.array([cell["quadrant"] == quadrant for cell in cells], bool)
        face = _INK["ink2"] if fill == "full" else "none"
        axes.scatter(
            *points[mine].T, marker=mark, s=26, facecolors=face, edgecolors=_INK["ink2"], linewidths=0.8, label=quadrant
        )
    strongest = np.argsort(-np.abs(points).max(1, initial=0), kind="stable")[:_NAMED]
    names: dict[tuple[float, float], list[str]] = {}
    for place in strongest:
        if cells[place]["quadrant"] != "neither":
            # Cells at one point, as far as the eye can tell, share one line.
            names.setdefault((round(points[place][0], 2), round(points[place][1], 2)), []).append(labels[place])
    for (x, y), together in names.items():
        right = x > (low + high) / 2
        looks: dict[str, Any] = {"fontsize": 7.5, "color": _INK["ink"], "family": list(families)}
        axes.annotate(
            ", ".join(together), (x, y), (-6 if right else 5, 4), textcoords="offset points",
            ha="right" if right else "left", parse_math=False, **looks,
        )  # fmt: skip
    axes.set_xlabel("sufficiency: recovered under denoising", fontsize=8, color=_INK["ink2"])
    axes.set_ylabel("necessity: lost under noising", fontsize=8, color=_INK["ink2"])
    axes.tick_params(labelsize=7.5, colors=_INK["ink3"], length=3)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(_INK["edge"])
