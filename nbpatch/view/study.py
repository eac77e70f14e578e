"""The figure of a study: one small map for each metric, corruption and direction, all on one scale."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nbpatch.errors import ResultError
from nbpatch.result import STATES, Result
from nbpatch.view.canvas import Canvas, Type, hatch, thinned, type_for, write_numbers
from nbpatch.view.style import TOKENS, diverging, readout_number
from nbpatch.view.words import question, tokens_shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK = TOKENS["light"]
_EXACT, _NO_POSITION = (STATES.index(name) for name in ("exact", "no position"))
_PLACES = ("pos", "dest", "src")

_PAD, _GAP, _BETWEEN, _LEGEND = 0.2, 0.3, 0.16, 0.75
_WIDEST, _HIGHEST, _NARROWEST = 13.6, 9.0, 6.4
_LEAST_PANEL = (1.15, 0.36)
_TOKEN_SIZE, _TOKEN_LONGEST = 7.5, 0.9


@dataclass(frozen=True)
class Panel:
    """One map of the study.

    Attributes:
        row: corruption and direction.
        values: effect as a share of the gap [row column], NaN where there is none.
        still: where nothing could change, by construction [row column].
        gap: m(clean) − m(corrupted), the mean over pairs, with its unit.
    """

    row: tuple[str, str]
    metric: str
    values: NDArray[np.float64]
    still: NDArray[np.bool_]
    gap: str


@dataclass(frozen=True)
class Sheet:
    """What is drawn and how large, in inches."""

    result: Result
    panels: tuple[Panel, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    across: str
    cell: tuple[float, float]
    left: float
    limit: float
    fonts: Type

    @property
    def studies(self) -> tuple[tuple[str, str], ...]:
        """The rows of panels: corruption and direction."""
        return tuple(dict.fromkeys(panel.row for panel in self.panels))

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of one panel."""
        return len(self.columns) * self.cell[0], len(self.rows) * self.cell[1]

    @property
    def one_gap(self) -> bool:
        """Whether each metric has the same gap in every row, so that it is written once."""
        return len({(panel.metric, panel.gap) for panel in self.panels}) == len(self.result.metrics)

    @property
    def step(self) -> tuple[float, float]:
        """From one panel to the next, to the right and downwards."""
        above = 0.0 if self.one_gap else 0.16
        wide, high = (max(size, least) for size, least in zip(self.size, _LEAST_PANEL, strict=True))
        return wide + _GAP, high + _BETWEEN + above

    @property
    def wide(self) -> float:
        """Width of the page."""
        return max(_NARROWEST, self.left + len(self.result.metrics) * self.step[0] - _GAP + _LEGEND + _PAD)


def panels(result: Result, *, title: bool = True) -> "Figure":
    """Returns the study as small maps: one row for each corruption and direction, one column for each metric.

    Colour is the effect as a share of that map's gap, on one scale for all: blue restores, red takes away. A dot is a
    cell that cannot change anything, a hatched one has no value. The page is white, as that of every figure here.

    Args:
        title: whether the question stands above the maps and the facts below them.

    Raises:
        ResultError: not a result of `compare`.
    """
    sheet = _measure(result)
    above, below = (_heading(sheet), _footing(sheet)) if title else ([], [])
    names = _metric_names(sheet)
    head = max(len(lines) for lines in names.values()) * 0.15 + 0.12
    top = 0.2 + sum(0.3 if bold else 0.21 for _, bold in above) + head
    maps = len(sheet.studies) * sheet.step[1]
    under = _under(sheet)
    canvas = Canvas(sheet.wide, top + maps + under + 0.18 * len(below) + 0.15, sheet.fonts)
    _write_heading(canvas, above)
    _draw_names(canvas, sheet, names, top)
    for panel in sheet.panels:
        _draw_panel(canvas, sheet, panel, top)
    _draw_columns(canvas, sheet, top + maps - _BETWEEN)
    right = sheet.left + len(result.metrics) * sheet.step[0] - _GAP
    high = min(2.0, max(0.7, sheet.size[1]))
    canvas.scale(right + 0.22, top + (0.0 if sheet.one_gap else 0.16), high, sheet.limit, 7.5)
    for number, line in enumerate(below):
        canvas.text(_PAD, top + maps + under + 0.18 * number, line, 7.5, color=_INK["ink3"])
    return canvas.figure


# -- what is drawn, and how large


def _measure(result: Result) -> Sheet:
    if result.provenance.get("method") != "compare":
        seen = f"a result of {result.provenance.get('method')}"
        raise ResultError("that draws a study.", where="panels", seen=seen, fix="result.plot()")
    found = tuple(_panels(result))
    axes = [str(dim) for dim in result.data["state"].dims if dim not in ("corruption", "direction", "pair")]
    rows, columns = _row_labels(result.data, axes[:-1]), tuple(str(one) for one in result.data[axes[-1]].to_numpy())
    if axes[-1] in _PLACES:
        columns = tuple(_token(result, int(place)) for place in columns)
    studies = {panel.row for panel in found}
    fonts = type_for([*rows, *columns, *result.provenance["pairs"][0]["answer"], *result.metrics])
    names = max(fonts.width(name, 8.5, bold=True) for row in studies for name in row)
    left = _PAD + names + 0.2 + max(fonts.width(row, 7.5) for row in rows) + 0.08
    many = len(result.metrics)
    room = ((_WIDEST - left - _LEGEND - _PAD + _GAP) / many - _GAP) / len(columns)
    high = _HIGHEST / (len(rows) * len(studies))
    cell = max(0.012, min(0.42, room)), max(0.012, min(0.3 if len(rows) <= 16 else 0.18, high))
    most = max([0.0, *(float(np.nanmax(np.abs(p.values))) for p in found if np.isfinite(p.values).any())])
    limit = next((limit for limit in (0.1, 0.25) if 0 < most <= limit), 1.0)
    return Sheet(result, found, rows, columns, axes[-1], cell, left, limit, fonts)


def _panels(result: Result) -> list[Panel]:
    """Returns the maps in the order of rows, then metrics; what was not run has none."""
    left_out = {(one["corruption"], one["direction"]) for one in result.provenance["left_out"]}
    both = "direction" in result.data.dims
    directions = result.data["direction"].to_numpy() if both else [result.provenance["direction"]]
    state = result.data["state"]
    still = ((state == _EXACT) | (state == _NO_POSITION)).all("pair") & (state == _EXACT).any("pair")
    found: list[Panel] = []
    for name, direction in itertools.product(result.provenance["corruptions"], map(str, directions)):
        if (name, direction) in left_out:
            continue
        for metric in result.metrics:
            chosen = {"corruption": name, **({"direction": direction} if both else {})}
            values, exact = (_table(one.sel(chosen)) for one in (result.share(metric), still))
            found.append(Panel((name, direction), metric, values, exact.astype(bool), _gap(result, name, metric)))
    return found


def _table(values: xr.DataArray) -> NDArray[Any]:
    """Returns values [*over] as rows and columns, the last axis across."""
    return values.to_numpy().reshape(-1, values.shape[-1]) if values.ndim else values.to_numpy().reshape(1, 1)


def _gap(result: Result, corruption: str, metric: str) -> str:
    gap = float(result.gap(metric).sel(corruption=corruption).mean())
    number = readout_number(gap).lstrip("+") if abs(gap) >= 0.01 or gap == 0 or not np.isfinite(gap) else f"{gap:.1g}"
    return f"gap {number} {result.data[metric].attrs.get('unit', '')}".rstrip()


def _row_labels(data: xr.Dataset, down: Sequence[str]) -> tuple[str, ...]:
    if not down:
        return ("",)
    labels = [".".join(parts) for parts in itertools.product(*(data[dim].to_numpy().astype(str) for dim in down))]
    return tuple(labels) if len(down) > 1 else (f"{down[0]} {labels[0]}", *labels[1:])


def _token(result: Result, place: int) -> str:
    """Returns the first pair's clean token at a position, as it is shown."""
    tokens = tokens_shown(result.provenance["pairs"][0], "clean")
    return tokens[place] if place < len(tokens) else str(place)


def _metric_names(sheet: Sheet) -> dict[str, list[str]]:
    """Returns what stands above each column: the metric in words, and its gap where that is the same in all rows."""
    words = {one["name"]: str(one["label"] or one["name"]) for one in sheet.result.provenance["metrics"]}
    gaps = {panel.metric: panel.gap for panel in sheet.panels}
    room = sheet.step[0] - 0.1
    return {
        name: [*sheet.fonts.wrap(words.get(name, name), 8.5, room, bold=True), *([gaps[name]] * sheet.one_gap)]
        for name in sheet.result.metrics
    }


def _on_tokens(sheet: Sheet) -> bool:
    return sheet.across in _PLACES


def _under(sheet: Sheet) -> float:
    """Returns the room below the maps for the names of their columns."""
    longest = max(sheet.fonts.width(name, _TOKEN_SIZE) for name in sheet.columns)
    return 0.28 + (min(_TOKEN_LONGEST, longest) if _on_tokens(sheet) else 0.12)


# -- drawing


def _heading(sheet: Sheet) -> list[tuple[str, bool]]:
    """Returns the lines above the maps, and whether they are bold."""
    made, room = sheet.result.provenance, sheet.wide - 2 * _PAD
    asked = question(made, made["pairs"][0], sheet.result.metrics[0])[0].rstrip(" ?")
    rest = "Colour: effect as a share of each map's gap; blue restores, red takes away."
    lines = [(line, True) for line in sheet.fonts.wrap(f"{asked}?", 12.0, room, bold=True)]
    return lines + [(line, False) for line in sheet.fonts.wrap(rest, 9.5, room)]


def _write_heading(canvas: Canvas, lines: Sequence[tuple[str, bool]]) -> None:
    y = 0.28
    for text, bold in lines:
        look: dict[str, Any] = {"weight": "bold" if bold else "normal", "color": _INK["ink" if bold else "ink2"]}
        canvas.text(_PAD, y, text, 12.0 if bold else 9.5, **look)
        y += 0.28 if bold else 0.2


def _draw_names(canvas: Canvas, sheet: Sheet, names: dict[str, list[str]], top: float) -> None:
    """Writes the metrics above the columns and the studies beside the rows."""
    for number, lines in enumerate(names.values()):
        x = sheet.left + number * sheet.step[0]
        for line, text in enumerate(lines):
            y = top - 0.12 - 0.15 * (len(lines) - 1 - line)
            is_gap = sheet.one_gap and line == len(lines) - 1
            look: dict[str, Any] = {} if is_gap else {"weight": "bold", "color": _INK["ink"]}
            canvas.text(x, y, text, 7.5 if is_gap else 8.5, **look)
    for number, (corruption, direction) in enumerate(sheet.studies):
        y = _top_of(sheet, number, top) + sheet.size[1] / 2
        canvas.text(_PAD, y - 0.08, corruption, 8.5, weight="bold", color=_INK["ink"])
        canvas.text(_PAD, y + 0.08, direction, 8.5)
        for row in thinned(len(sheet.rows), sheet.cell[1], 0.13):
            y = _top_of(sheet, number, top) + (row + 0.5) * sheet.cell[1]
            canvas.text(sheet.left - 0.08, y, sheet.rows[row], 7.5, ha="right")


def _top_of(sheet: Sheet, number: int, top: float) -> float:
    """Returns where the maps of a row begin; a low map stands in the middle of its row."""
    slack = max(0.0, _LEAST_PANEL[1] - sheet.size[1]) / 2
    return top + number * sheet.step[1] + slack + (0.0 if sheet.one_gap else 0.16)


def _draw_panel(canvas: Canvas, sheet: Sheet, panel: Panel, top: float) -> None:
    x = sheet.left + sheet.result.metrics.index(panel.metric) * sheet.step[0]
    y = _top_of(sheet, sheet.studies.index(panel.row), top)
    fine = min(sheet.cell) > 0.09
    axes = canvas.pixels(x, y, sheet.cell, _colours(panel, sheet.limit), gaps=fine)
    axes.set_label(", ".join((*panel.row, panel.metric)))
    dots = np.argwhere(panel.still)
    axes.scatter(dots[:, 1] + 0.5, dots[:, 0] + 0.5, s=3 if fine else 1, color=_INK["edge"], linewidths=0)
    hatch(axes, np.argwhere(~np.isfinite(panel.values) & ~panel.still), fine=False)
    if not sheet.one_gap:
        canvas.text(x, y - 0.09, panel.gap, 7, color=_INK["ink3"])
    write_numbers(axes, panel.values, sheet.cell, limit=sheet.limit, largest=7.5)


def _colours(panel: Panel, limit: float) -> NDArray[np.uint8]:
    """Returns the colours [row column rgb]; white where there is nothing to colour."""
    shares = np.nan_to_num(panel.values) / limit
    pixels = np.array([[diverging(float(share)) for share in row] for row in shares], np.uint8)
    pixels[panel.still | ~np.isfinite(panel.values)] = 255
    return pixels


def _draw_columns(canvas: Canvas, sheet: Sheet, y: float) -> None:
    """Writes what the columns are, below the last row of maps."""
    upright = _on_tokens(sheet)
    for number in range(len(sheet.result.metrics)):
        x = sheet.left + number * sheet.step[0]
        for place in thinned(len(sheet.columns), sheet.cell[0], 0.13 if upright else 0.2):
            middle = x + (place + 0.5) * sheet.cell[0]
            if upright:
                shown = sheet.fonts.cut(sheet.columns[place], _TOKEN_SIZE, _TOKEN_LONGEST)
                canvas.text(middle, y + 0.06, shown, _TOKEN_SIZE, ha="center", va="top", rotation=90)
            else:
                canvas.text(middle, y + 0.12, sheet.columns[place], _TOKEN_SIZE, ha="center", color=_INK["ink3"])
    canvas.text(sheet.left - 0.08, y + 0.12, sheet.across, 7.5, ha="right")


def _footing(sheet: Sheet) -> list[str]:
    """Returns the lines below the maps: how to read what is no colour, what was not run, what was."""
    made = sheet.result.provenance
    keys = ["dot: exactly 0 by construction, not run"] if any(panel.still.any() for panel in sheet.panels) else []
    if any((~np.isfinite(panel.values) & ~panel.still).any() for panel in sheet.panels):
        keys.append("hatched: no value")
    not_run = [f"{one['corruption']}, {one['direction']}" for one in made["left_out"]]
    keys += [f"not run: {'; '.join(not_run)}"] if not_run else []
    pairs = len(made["pairs"])
    facts = [
        made["model"]["name"], f"{made['component']} over {' '.join(made['over'])}",
        f"{pairs} pair{'s' if pairs != 1 else ''}", f"{made['engine']['run']} exact runs", "nbpatch",
    ]  # fmt: skip
    room = sheet.wide - 2 * _PAD
    lines = [" · ".join(keys), " · ".join(facts)]
    return [part for line in lines if line for part in sheet.fonts.wrap(line, 7.5, room)]
