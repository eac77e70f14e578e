"""Figures: the map with the prompt as its axis, as it is seen without a kernel: on GitHub, in print, in a paper."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nbpatch.errors import ResultError
from nbpatch.prompts import visible
from nbpatch.result import STATES, Result
from nbpatch.view.canvas import Canvas, Type, hatch, thinned, type_for, write_numbers
from nbpatch.view.patterns import heads
from nbpatch.view.style import SCALE, TOKENS, rgb
from nbpatch.view.words import colour_key, facts, question, tokens_shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["heads", "plot", "png"]

Shares: TypeAlias = NDArray[np.float64]

_INK = TOKENS["light"]
_MEASURED, _EXACT, _NO_POSITION = (STATES.index(name) for name in ("measured", "exact", "no position"))
_PLACES = ("pos", "dest", "src")
_SETS = ("site", "set")
"""Axes whose labels are long: they are rows, and say themselves what they are."""

_PAD, _GUTTER, _WIDEST_GUTTER, _RIGHT = 0.2, 1.0, 3.5, 1.2
_BELOW, _BESIDE = 0.42, 0.7
_WIDEST, _HIGHEST, _NARROWEST = 13.6, 8.0, 9.6
_LINE = {"bold": 0.3, "normal": 0.23}
_NAME = 0.3
_STRIP, _TOKEN_SIZE, _TOKEN_LONGEST = 0.27, 8.5, 1.0
_PNG_MOST = 150_000
_DPIS = (144, 110, 80, 60, 45)


@dataclass(frozen=True)
class Panel:
    """The map of one direction.

    Attributes:
        values: effect as a share of the gap [row column], NaN where there is none.
        codes: indices into `result.STATES` [row column].
    """

    direction: str
    values: Shares
    codes: NDArray[np.int8]


@dataclass(frozen=True)
class Sheet:
    """What is drawn and how large, in inches."""

    result: Result
    pair: Mapping[str, Any]
    panels: tuple[Panel, ...]
    down: tuple[str, ...]
    across: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    gutter: float
    cell: tuple[float, float]
    strip: float
    side_by_side: bool
    limit: float
    fonts: Type

    @property
    def on_tokens(self) -> bool:
        """Whether the columns are the prompt's tokens."""
        return self.across in _PLACES

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of one panel."""
        return len(self.columns) * self.cell[0], len(self.rows) * self.cell[1]

    @property
    def left(self) -> float:
        """Where the cells of the first panel begin."""
        return _PAD + self.gutter

    @property
    def step(self) -> float:
        """Height of one panel with its name above and its scale below."""
        name = _NAME if len(self.panels) > 1 else 0.0
        return name + self.size[1] + (_BELOW + 0.2 if self.on_tokens else _BELOW)

    @property
    def wide(self) -> float:
        """Width of the page."""
        panels = len(self.panels) if self.side_by_side else 1
        return max(_NARROWEST, self.left + panels * self.size[0] + (panels - 1) * _BESIDE + _RIGHT)


def plot(
    result: Result, metric: str | None = None, *, pair: int | None = None, title: bool = True, note: str = ""
) -> "Figure":
    """Returns the map of a result, one panel for each direction.

    Colour is the effect as a share of the gap: blue restores, red takes away. A dot is a cell that cannot change
    anything, a hatched one has no value.

    Args:
        metric: which one; the result's first by default.
        pair: one pair's own values; the mean over pairs by default.
        title: whether the question stands above the map and the facts below it.
        note: a last line below.

    Raises:
        ResultError: an unknown metric or pair, or attention patterns (see `heads`).
    """
    name = metric or result.metrics[0]
    sheet = _measure(result, name, pair)
    above = _heading(sheet, name) if title else []
    below = _footing(sheet, name, pair, note) if title else []
    canvas = Canvas(sheet.wide, _height(sheet, sum(_LINE[weight] for _, _, weight in above), len(below)), sheet.fonts)
    y = _write_heading(canvas, above)
    y = _draw_strips(canvas, sheet, y)
    y = _draw_panels(canvas, sheet, y)
    for line in below:
        canvas.text(_PAD, y + 0.1, line, 7.5, color=_INK["ink3"])
        y += 0.19
    return canvas.figure


def png(result: Result, metric: str | None = None, *, note: str = "") -> bytes:
    """Returns the map as a PNG on white, small enough to be saved with a notebook: at most 150 kB.

    Raises:
        ResultError: an unknown metric.
    """
    is_attention = result.provenance.get("method") == "attention"
    return encoded(heads(result) if is_attention else plot(result, metric, note=note))


def encoded(figure: "Figure") -> bytes:
    """Returns a figure as a PNG on white of at most 150 kB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    data = b""
    for dpi in _DPIS:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": "nbpatch"})
        data = buffer.getvalue()
        if len(data) <= _PNG_MOST:
            break
    return data


# -- what is drawn, and how large


def _measure(result: Result, metric: str, pair: int | None) -> Sheet:
    panels, dims, share = _panels(result, metric, pair)
    shown = result.provenance["pairs"][pair or 0]
    down, across = dims[:-1], dims[-1]
    rows, columns = _row_labels(share, down, shown), tuple(str(one) for one in share[across].to_numpy())
    fonts = type_for(
        [*tokens_shown(shown, "clean"), *tokens_shown(shown, "corrupted"), *shown["answer"], *shown["wrong"]]
    )
    on_tokens = across in _PLACES
    wide, strip = _column_width(shown, len(columns), fonts) if on_tokens else (_head_width(columns, fonts), _STRIP)
    gutter = min(_WIDEST_GUTTER, max([_GUTTER, *(fonts.width(row, 8.5) + 0.1 for row in rows)]))
    high = max(0.012, min(0.36 if len(rows) <= 16 else 0.2, _HIGHEST / (len(rows) * len(panels))))
    most = max([0.0, *(float(np.nanmax(np.abs(p.values))) for p in panels if np.isfinite(p.values).any())])
    return Sheet(
        result, shown, panels, down, across, rows, columns, gutter, (wide, high), strip,
        side_by_side=not on_tokens and len(panels) > 1 and 2 * len(columns) * wide < _WIDEST,
        limit=next((limit for limit in (0.1, 0.25) if 0 < most <= limit), 1.0),
        fonts=fonts,
    )  # fmt: skip


def _panels(result: Result, metric: str, pair: int | None) -> tuple[tuple[Panel, ...], tuple[str, ...], xr.DataArray]:
    """Returns the panels, the axes of the rows and of the columns, and the shares with their labels."""
    share, state = result.share(metric, per_pair=pair is not None), result.data["state"]
    if pair is None:
        still, absent = state == _EXACT, state == _NO_POSITION
        exact = (still | absent).all("pair") & still.any("pair")
        least = state.min("pair")
        state = xr.where(exact, _EXACT, xr.where(least == _EXACT, _MEASURED, least))
    elif 0 <= pair < result.data.sizes["pair"]:
        share, state = share.isel(pair=pair), state.isel(pair=pair)
    else:
        pairs = result.data.sizes["pair"]
        raise ResultError(f"no pair {pair}.", where="plot", seen=f"{pairs} pairs", fix=f"pair=0 to {pairs - 1}")
    if any(axis in share.dims for axis in _SETS):
        share, state = share.expand_dims({"": [""]}, axis=-1), state.expand_dims({"": [""]}, axis=-1)
    dims = tuple(str(dim) for dim in share.dims if dim != "direction")
    directions = list(share["direction"].to_numpy()) if "direction" in share.dims else [None]
    panels: list[Panel] = []
    for direction in directions:
        one = [table if direction is None else table.sel(direction=direction) for table in (share, state)]
        values, codes = (table.transpose(*dims).to_numpy().reshape(-1, table.sizes[dims[-1]]) for table in one)
        panels.append(Panel(str(direction or result.provenance["direction"]), values, codes.astype(np.int8)))
    return tuple(panels), dims, share


def _row_labels(share: xr.DataArray, down: tuple[str, ...], pair: Mapping[str, Any]) -> tuple[str, ...]:
    if not down:
        return ("",)
    if len(down) == 1 and down[0] in _PLACES:
        tokens = tokens_shown(pair, "clean")
        return tuple(
            f"{tokens[place][:9] if place < len(tokens) else ''} {place}" for place in share[down[0]].to_numpy()
        )
    grid = np.meshgrid(*(share[dim].to_numpy().astype(str) for dim in down), indexing="ij")
    labels = [".".join(parts) for parts in zip(*(axis.ravel() for axis in grid), strict=True)]
    if down == ("set",):
        return (labels[0], *(f"+ {label}" for label in labels[1:]))
    named = len(down) == 1 and down[0] not in _SETS
    return (" ".join([*down, labels[0]]), *labels[1:]) if named else tuple(labels)


def _column_width(pair: Mapping[str, Any], columns: int, fonts: Type) -> tuple[float, float]:
    """Returns the width of a token's column and the height of a strip's row.

    A few long tokens are cut to their column; when more do not fit, all stand upright.
    """
    names = [*tokens_shown(pair, "clean"), *tokens_shown(pair, "corrupted")]
    widths = sorted(fonts.width(name, _TOKEN_SIZE, bold=True) for name in names)
    room = (_WIDEST - _GUTTER - _RIGHT) / columns
    for widest in (widths[-1], widths[int(0.85 * len(widths))]):
        wide = min(_TOKEN_LONGEST, max(0.42, widest + 0.12))
        if wide <= room:
            return wide, _STRIP
    return max(0.02, min(0.4, room)), min(_TOKEN_LONGEST, widths[-1]) + 0.12


def _head_width(names: Sequence[str], fonts: Type) -> float:
    widest = max(fonts.width(name, 7.5) for name in names) + 0.12
    return max(0.02, min(max(widest, 0.6 if len(names) <= 8 else 0.5), (_WIDEST - _GUTTER - _RIGHT) / len(names)))


def _height(sheet: Sheet, above: float, below: int) -> float:
    stacked = 1 if sheet.side_by_side else len(sheet.panels)
    return 0.34 + above + 2 * sheet.strip + 0.12 + stacked * sheet.step + 0.19 * below + 0.1


# -- drawing


def _heading(sheet: Sheet, metric: str) -> list[tuple[str, float, str]]:
    """Returns the lines above the map: text, size, weight."""
    room = sheet.wide - 2 * _PAD
    asked, rest = question(sheet.result.provenance, sheet.pair, metric)
    key = colour_key(sheet.result, metric)
    lines = [(line, 12.5, "bold") for line in sheet.fonts.wrap(asked, 12.5, room, bold=True)]
    below = [f"{rest}   {key}"] if sheet.fonts.width(f"{rest}   {key}", 10) <= room else [rest, key]
    return lines + [(line, 10.0, "normal") for text in below for line in sheet.fonts.wrap(text, 10, room)]


def _write_heading(canvas: Canvas, lines: Sequence[tuple[str, float, str]]) -> float:
    y = 0.16
    for text, size, weight in lines:
        canvas.text(_PAD, y + 0.14, text, size, weight=weight, color=_INK["ink" if weight == "bold" else "ink2"])
        y += _LINE[weight]
    return y + 0.18


def _draw_strips(canvas: Canvas, sheet: Sheet, y: float) -> float:
    """Draws both prompts, on the map's columns where these are positions, else in a line of their own."""
    differs = {"clean": set(sheet.pair["differs"]), "corrupted": _other_differs(sheet.pair)}
    aligned = dict(sheet.pair["aligned"])
    widths = _line_widths(sheet)
    for run in ("clean", "corrupted"):
        canvas.text(sheet.left - 0.1, y + sheet.strip / 2, run, 8.5, ha="right")
        tokens = tokens_shown(sheet.pair, run)
        if not sheet.on_tokens:
            marked = [(token, place in differs[run]) for place, token in enumerate(tokens)]
            end = _draw_line(canvas, sheet, y, marked, widths[run])
        else:
            ends = len(sheet.pair["clean_tokens"])
            places = range(ends) if run == "clean" else [aligned.get(place) for place in range(ends)]
            chosen = ["" if place is None else tokens[place] for place in places]
            _draw_columns(canvas, sheet, y, chosen)
            end = sheet.left + sheet.size[0]
        token, prob = sheet.pair[f"{run}_top"][0]
        canvas.text(end + 0.1, y + sheet.strip / 2, f"→ {visible(token)} {100 * prob:.0f}%", 8.5, color=_INK["ink"])
        y += sheet.strip
    return y + 0.12


def _other_differs(pair: Mapping[str, Any]) -> set[int]:
    """Returns the corrupted positions whose token differs from the aligned clean one, or that have none."""
    clean = {corrupted: place for place, corrupted in pair["aligned"]}
    ids = pair["corrupted_ids"]
    return {place for place in range(len(ids)) if place not in clean or pair["clean_ids"][clean[place]] != ids[place]}


def _draw_columns(canvas: Canvas, sheet: Sheet, y: float, tokens: Sequence[str]) -> None:
    wide, upright = sheet.cell[0], sheet.strip > _STRIP
    written = {*thinned(len(tokens), wide, 0.13 if upright else 0.0), *sheet.pair["differs"]}
    for place, token in enumerate(tokens):
        x, marked = sheet.left + place * wide, place in sheet.pair["differs"]
        if marked:
            canvas.box(x, y, wide, sheet.strip, _INK["mark"])
        if place not in written:
            continue
        look: dict[str, Any] = {"weight": "bold" if marked else "normal", "color": _INK["ink" if marked else "ink2"]}
        shown = sheet.fonts.cut(token, _TOKEN_SIZE, _TOKEN_LONGEST if upright else wide, bold=marked)
        canvas.text(x + wide / 2, y + sheet.strip / 2, shown, _TOKEN_SIZE, ha="center", rotation=90 * upright, **look)


def _line_widths(sheet: Sheet) -> dict[str, list[float]]:
    """Returns the room of each token in a line; the same in both prompts where they are of equal length."""
    each = {
        run: [sheet.fonts.width(token, _TOKEN_SIZE, bold=True) + 0.05 for token in tokens_shown(sheet.pair, run)]
        for run in ("clean", "corrupted")
    }
    if len(each["clean"]) != len(each["corrupted"]):
        return each
    common = [max(both) for both in zip(each["clean"], each["corrupted"], strict=True)]
    return {"clean": common, "corrupted": common}


def _draw_line(
    canvas: Canvas, sheet: Sheet, y: float, tokens: Sequence[tuple[str, bool]], widths: Sequence[float]
) -> float:
    """Draws a prompt as a line of tokens; one too long begins shortly before what differs. Returns where it ends."""
    room = sheet.wide - sheet.left - _RIGHT
    first = 0
    if sum(widths) > room:
        marks = [place for place, (_, marked) in enumerate(tokens) if marked] or [0]
        first = min(max(0, marks[0] - 3), next(i for i in range(len(widths)) if sum(widths[i:]) <= room))
    x = sheet.left
    if first:
        canvas.text(x, y + sheet.strip / 2, "…", _TOKEN_SIZE)
        x += 0.14
    for (token, marked), wide in list(zip(tokens, widths, strict=True))[first:]:
        if x + wide > sheet.left + room:
            canvas.text(x, y + sheet.strip / 2, "…", _TOKEN_SIZE)
            return x + 0.12
        if marked:
            canvas.box(x - 0.02, y, wide, sheet.strip, _INK["mark"])
        look: dict[str, Any] = {"weight": "bold" if marked else "normal", "color": _INK["ink" if marked else "ink2"]}
        canvas.text(x + 0.01, y + sheet.strip / 2, token, _TOKEN_SIZE, **look)
        x += wide
    return x


def _draw_panels(canvas: Canvas, sheet: Sheet, y: float) -> float:
    """Draws the maps, below or beside each other, and returns where they end."""
    wide, step = sheet.size[0], sheet.step
    head = _NAME if len(sheet.panels) > 1 else 0.0
    for number, panel in enumerate(sheet.panels):
        x = sheet.left + (number * (wide + _BESIDE) if sheet.side_by_side else 0)
        top = y + head + (0 if sheet.side_by_side else number * step)
        if head:
            _draw_panel_name(canvas, sheet, panel, x, top - 0.14)
        _draw_cells(canvas, sheet, panel, x, top)
        _draw_scale(canvas, sheet, x, top, first=number == 0 or not sheet.side_by_side)
    last = sheet.left + (len(sheet.panels) - 1) * (wide + _BESIDE) * sheet.side_by_side
    high = min(2.0, max(0.7, sheet.size[1] - 0.04))
    canvas.scale(last + wide + 0.22, y + head + 0.02, high, sheet.limit, 8)
    return y + step * (1 if sheet.side_by_side else len(sheet.panels))


def _draw_panel_name(canvas: Canvas, sheet: Sheet, panel: Panel, x: float, y: float) -> None:
    lost = panel.direction == "noising"
    name, rest = ("Noise", "share of the gap lost") if lost else ("Denoise", "share of the gap restored")
    canvas.text(x, y, name, 9, weight="bold", color=_INK["ink"])
    canvas.text(x + sheet.fonts.width(f"{name}  ", 9, bold=True), y, rest, 8.5)


def _draw_cells(canvas: Canvas, sheet: Sheet, panel: Panel, x: float, y: float) -> None:
    axes = canvas.pixels(x, y, sheet.cell, _colours(panel, sheet.limit), gaps=min(sheet.cell) > 0.09)
    still = np.argwhere(panel.codes == _EXACT)
    axes.scatter(still[:, 1] + 0.5, still[:, 0] + 0.5, s=3, color=_INK["edge"], linewidths=0)
    hatch(axes, np.argwhere(~np.isfinite(panel.values) & (panel.codes != _EXACT)), fine=min(sheet.cell) > 0.09)
    write_numbers(axes, panel.values, sheet.cell, limit=sheet.limit, largest=8.5)


def _colours(panel: Panel, limit: float) -> NDArray[np.uint8]:
    """Returns the colours [row column rgb]; white where there is nothing to colour."""
    anchors = np.array([rgb(colour) for colour in SCALE["light"]])
    shares = np.nan_to_num(panel.values) / limit
    places = np.linspace(-1, 1, len(anchors))
    pixels = np.stack([np.interp(shares, places, anchors[:, channel]) for channel in range(3)], -1)
    pixels[(panel.codes == _EXACT) | ~np.isfinite(panel.values)] = 255
    return np.round(pixels).astype(np.uint8)


def _draw_scale(canvas: Canvas, sheet: Sheet, x: float, y: float, *, first: bool) -> None:
    """Writes what the rows and columns are."""
    wide, high = sheet.cell
    for row in thinned(len(sheet.rows), high, 0.14) if first else ():
        shown = sheet.fonts.cut(sheet.rows[row], 8.5, sheet.gutter - 0.1)
        canvas.text(x - 0.1, y + (row + 0.5) * high, shown, 8.5, ha="right")
    bottom = y + sheet.size[1] + 0.12
    for column in thinned(len(sheet.columns), wide, 0.2 if len(sheet.columns) < 100 else 0.28):
        canvas.text(x + (column + 0.5) * wide, bottom, sheet.columns[column], 7.5, ha="center", color=_INK["ink3"])
    named = " · ".join(sheet.down) if len(sheet.down) > 1 else "" if sheet.on_tokens else sheet.across
    if first:
        canvas.text(x - 0.1, bottom, named, 8.5, ha="right")
    if sheet.on_tokens:
        _draw_brackets(canvas, sheet, x, bottom + 0.16)


def _draw_brackets(canvas: Canvas, sheet: Sheet, x: float, y: float) -> None:
    """Says below the columns where nothing could change, and where the answer is read."""
    still = np.logical_and.reduce([(panel.codes == _EXACT).all(0) for panel in sheet.panels])
    same = int(np.argmin(still)) if not still.all() else len(still)
    words = "same tokens so far: exactly 0, not run"
    right = x + sheet.size[0]
    ends = {pair["clean_end"] for pair in sheet.result.provenance["pairs"]}
    end, at = x, f"answer read at {sheet.pair['clean_end']}"
    if same and sheet.fonts.width(words, 7.5) < same * sheet.cell[0]:
        end = x + same * sheet.cell[0] - 0.06
        canvas.rule(x, end, y)
        canvas.text((x + end) / 2, y + 0.11, words, 7.5, ha="center", color=_INK["ink3"])
    if sheet.across != "src" and len(ends) == 1 and right - sheet.fonts.width(at, 7.5) > end:
        canvas.text(right, y + 0.11, at, 7.5, ha="right", color=_INK["ink3"])


def _footing(sheet: Sheet, metric: str, pair: int | None, note: str) -> list[str]:
    """Returns the lines below the map: how to read what is no colour, what was run, and a note."""
    found = {STATES[code] for panel in sheet.panels for code in np.unique(panel.codes[~np.isfinite(panel.values)])}
    keys = ["dot: exactly 0 by construction, not run"] if any((p.codes == _EXACT).any() for p in sheet.panels) else []
    if sheet.across == "src":
        keys.append("columns: the positions looked at")
    if found:
        why = sorted("no gap to share out" if word in ("measured", "exact") else word for word in found)
        keys.append(f"hatched: no value ({', '.join(dict.fromkeys(why))})")
    room = sheet.wide - 2 * _PAD
    lines = [" · ".join(keys), facts(sheet.result, metric, pair), note]
    return [part for line in lines if line for part in sheet.fonts.wrap(line, 7.5, room)]
