"""Figures of what was observed and not patched: the logit lens and direct logit attribution, both runs side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nbpatch.errors import ResultError, suggest
from nbpatch.prompts import visible
from nbpatch.result import Result
from nbpatch.view.canvas import Canvas, Type, type_for
from nbpatch.view.style import TOKENS, cell_number, diverging, readout_number, text_on
from nbpatch.view.words import tokens_shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ASKED = {
    "logit_lens": "What would the model answer if it stopped at each depth?",
    "direct_logit_attribution": "What does each part write onto the answer?",
}
_LEFT, _RIGHT, _BETWEEN, _TOP = 1.1, 0.75, 0.35, 0.85
_STRIP, _LONGEST = 0.2, 1.0
"""Height of the columns' names; the longest of those that stand upright."""
_NARROWEST, _WIDEST, _HIGH, _SIZE = 6.6, 11.0, 0.26, 7.5
_ROOM_FOR_NUMBERS = 0.38
"""Width of a column from which a value with two decimals fits into it."""


@dataclass(frozen=True)
class Sheet:
    """What the figure shows.

    Attributes:
        values: one map [row column] for each run; NaN where there is none.
        rows, columns: labels; `marks`: columns whose tokens differ between the prompts.
        limit: the value at the ends of the colours, in the metric's unit.
        wide: width of a column.
        upright: whether the columns' names stand upright, for lack of room.
    """

    runs: tuple[str, ...]
    values: tuple[NDArray[np.float64], ...]
    rows: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    marks: frozenset[int]
    limit: float
    wide: float
    upright: bool
    fonts: Type

    @property
    def strip(self) -> float:
        """Height of the columns' names."""
        longest = max(self.fonts.width(text, _SIZE) for names in self.columns for text in names)
        return min(_LONGEST, longest) + 0.1 if self.upright else _STRIP

    @property
    def top(self) -> float:
        """Where the maps begin."""
        return _TOP + self.strip

    @property
    def width(self) -> float:
        """Width of one map."""
        return self.wide * len(self.columns[0])


def plot(result: Result, metric: str | None = None) -> "Figure":
    """Returns one map for each run: depth or part against position or head, the mean over pairs.

    Colour is the metric itself, in its unit: blue for the answer, red against it. A hatched cell has no value.

    Raises:
        ResultError: an unknown metric.
    """
    name = metric or result.metrics[0]
    if name not in result.metrics:
        raise ResultError(f"no metric {name!r} in this result.", where="metric", fix=suggest(name, result.metrics))
    values = result.data[name].mean("pair")
    sheet = _measure(result, values)
    high = sheet.top + _HIGH * len(sheet.rows) + 0.75
    wide = _LEFT + len(sheet.runs) * (sheet.width + _BETWEEN) + _RIGHT
    canvas = Canvas(max(_NARROWEST, wide), high, sheet.fonts)
    _head(canvas, result, name)
    for number in range(len(sheet.runs)):
        _draw(canvas, sheet, number, _LEFT + number * (sheet.width + _BETWEEN))
    _legend(canvas, sheet, str(result.data[name].attrs.get("unit", "")))
    return canvas.figure


def _measure(result: Result, values: xr.DataArray) -> Sheet:
    pairs = result.provenance["pairs"]
    runs = tuple(str(run) for run in values["run"].to_numpy())
    rest = [str(dim) for dim in values.dims if dim != "run"]
    maps = values.transpose("run", *rest).to_numpy()
    maps = maps if len(rest) > 1 else maps[:, :, None]
    on_tokens = rest[-1] == "pos"
    tokens = [tokens_shown(pairs[0], run) for run in runs]
    columns = tuple(_columns(values, rest, tokens[number] if on_tokens else None) for number in range(len(runs)))
    rows = tuple(
        f"{rest[0]} {one}" if rest[0] == "layer" and len(rest) > 1 else str(one) for one in values[rest[0]].to_numpy()
    )
    fonts = type_for([text for names in (*columns, rows) for text in names])
    widest = max(fonts.width(text, _SIZE) for names in columns for text in names) + 0.12
    room = (_WIDEST - _LEFT - _RIGHT) / (len(runs) * maps.shape[2])
    marks = frozenset(pairs[0]["differs"]) if on_tokens else frozenset[int]()
    most = float(np.nanmax(np.abs(maps))) if np.isfinite(maps).any() else 1.0
    wide = max(0.3, min(room, max(0.42, widest)))
    return Sheet(runs, tuple(maps), rows, columns, marks, most or 1.0, wide, wide < widest, fonts)


def _columns(values: xr.DataArray, rest: Sequence[str], tokens: Sequence[str] | None) -> tuple[str, ...]:
    if len(rest) == 1:
        return ("",)
    places = values[rest[-1]].to_numpy()
    if tokens is None:
        return tuple(f"{rest[-1]} {place}" if not number else str(place) for number, place in enumerate(places))
    return tuple(tokens[int(place)] if int(place) < len(tokens) else "" for place in places)


def _head(canvas: Canvas, result: Result, metric: str) -> None:
    made = result.provenance
    pair = made["pairs"][0]
    answer, wrong = (" or ".join(visible(token) for token in pair[name]) for name in ("answer", "wrong"))
    against = f" over {wrong}" if wrong else ""
    label = next((one["label"] for one in made["metrics"] if one["name"] == metric), metric)
    count = f"mean of {len(made['pairs'])} pairs, the first shown" if len(made["pairs"]) > 1 else "1 pair"
    canvas.text(0.2, 0.24, _ASKED[str(made["method"])], 12.5, weight="bold", color=TOKENS["light"]["ink"])
    canvas.text(0.2, 0.5, f"{label}, {answer}{against} · {made['model']['name']} · {count} · nothing was patched", 9)


def _draw(canvas: Canvas, sheet: Sheet, number: int, x: float) -> None:
    values = sheet.values[number]
    canvas.text(x, _TOP - 0.1, sheet.runs[number], 8.5, color=TOKENS["light"]["ink"])
    _draw_columns(canvas, sheet, number, x)
    for row, text in enumerate(sheet.rows if not number else ()):
        canvas.text(x - 0.08, sheet.top + (row + 0.5) * _HIGH, text, _SIZE, ha="right")
    colours = np.array(
        [[diverging(float(one) / sheet.limit) for one in line] for line in np.nan_to_num(values)], np.uint8
    )
    axes = canvas.pixels(x, sheet.top, (sheet.wide, _HIGH), colours, gaps=True)
    for row, column in np.argwhere(~np.isfinite(values)):
        look: dict[str, Any] = {"facecolor": "white", "hatch": "////", "edgecolor": TOKENS["light"]["line"]}
        axes.bar(column + 0.5, 1, 1, bottom=row, linewidth=0, **look)
    if sheet.wide >= _ROOM_FOR_NUMBERS:
        for row, column in np.argwhere(np.isfinite(values) & (np.abs(values) >= 0.02 * sheet.limit)):
            value = float(values[row, column])
            shown = readout_number(value) if sheet.limit >= 1 else cell_number(value)
            axes.text(
                column + 0.5,
                row + 0.52,
                shown,
                fontsize=6.5,
                ha="center",
                va="center",
                color=text_on(diverging(value / sheet.limit)),
            )


def _draw_columns(canvas: Canvas, sheet: Sheet, number: int, x: float) -> None:
    """Writes the columns' names above a map, in boxes where the prompts differ."""
    for column, text in enumerate(sheet.columns[number]):
        if column in sheet.marks:
            canvas.box(x + column * sheet.wide, _TOP, sheet.wide, sheet.strip, TOKENS["light"]["mark"])
        middle, bottom = x + (column + 0.5) * sheet.wide, sheet.top - 0.05
        if sheet.upright:
            shown = sheet.fonts.cut(text, _SIZE, _LONGEST)
            canvas.text(middle, bottom, shown, _SIZE, ha="center", va="bottom", rotation=90)
        else:
            canvas.text(middle, _TOP + sheet.strip / 2, text, _SIZE, ha="center")


def _legend(canvas: Canvas, sheet: Sheet, unit: str) -> None:
    """Draws the colours with the values at their ends."""
    x = _LEFT + len(sheet.runs) * (sheet.width + _BETWEEN) - _BETWEEN + 0.15
    high = min(1.2, _HIGH * len(sheet.rows))
    colours = np.array([[diverging(float(step))] for step in np.linspace(1, -1, 101)], np.uint8)
    canvas.pixels(x, sheet.top, (0.12, high / 101), colours, gaps=False)
    for share, place in ((1, 0.0), (0, high / 2), (-1, high)):
        number = "0" if not share else readout_number(share * sheet.limit)
        canvas.text(x + 0.17, sheet.top + place, f"{number} {unit}" if share == 1 else number, 7)
