"""The figure of a causal trace: one map for each kind of state, on one scale, and how sure the facts are of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nbpatch.errors import ResultError, suggest
from nbpatch.prompts import visible
from nbpatch.result import STATES, Result
from nbpatch.statistics import bootstrap
from nbpatch.view.canvas import Canvas, Type, thinned, type_for
from nbpatch.view.style import CELL_LEAST, SCALE, TOKENS, cell_number, diverging, readout_number, rgb, text_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values: TypeAlias = NDArray[np.float64]

_EXACT, _NO_POSITION = (STATES.index(name) for name in ("exact", "no position"))
_NAMES = {"hidden": "hidden state", "mlp": "MLP output", "attn": "attention output"}
_CUT = {"mlp": "later MLPs severed", "attn": "later attention severed"}
_LINES = {"last subject token": ("pos", "-"), "last token": ("accent", "--")}
"""The roles that are drawn as lines: their colour and dashes."""

_PAD, _GAP, _LEGEND, _ROW, _NAME = 0.2, 0.32, 0.85, 3, 0.2
_BELOW, _ACROSS, _LINE_HIGH, _NARROWEST = 0.42, 3.1, 1.15, 6.3
_STEPS = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
_LEVEL, _RESAMPLES = 0.95, 2000


@dataclass(frozen=True)
class Panel:
    """What is drawn of one kind.

    Attributes:
        name: lines above the map.
        values: the average indirect effect [row layer], NaN where there is none.
        still: where nothing could change, by construction [row layer].
        lines: for each drawn role its mean, low and high [3 layer]; empty for one fact.
    """

    name: tuple[str, ...]
    values: Values
    still: NDArray[np.bool_]
    lines: Mapping[str, Values]


@dataclass(frozen=True)
class Sheet:
    """What is drawn and how large, in inches.

    Attributes:
        marked: rows whose tokens were drowned in noise.
        room: width of each panel's place.
        limit: the effect at the ends of the scale; ends: the lowest and highest of all lines.
        ink: colours of everything that is not data.
    """

    panels: tuple[Panel, ...]
    rows: tuple[str, ...]
    marked: frozenset[int]
    layers: int
    cell: tuple[float, float]
    left: float
    room: float
    limit: float
    ends: tuple[float, float]
    unit: str
    theme: str
    fonts: Type

    @property
    def ink(self) -> Mapping[str, str]:
        """Colours of everything that is not data."""
        return TOKENS[self.theme]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of one map."""
        return self.layers * self.cell[0], len(self.rows) * self.cell[1]

    @property
    def lined(self) -> bool:
        """Whether there are lines below the maps."""
        return bool(self.panels[0].lines)

    def head(self, row: int) -> float:
        """Returns the height of the names above a row of maps."""
        return 0.1 + _NAME * max(len(panel.name) for panel in self.panels[row * _ROW : (row + 1) * _ROW])

    def above(self, row: int) -> float:
        """Returns the height of all rows of maps above one, with their names, numbers and lines."""
        lines = _LINE_HIGH + _BELOW + 0.1 if self.lined else 0.0
        return sum(self.head(one) + self.size[1] + _BELOW + lines for one in range(row))

    @property
    def wide(self) -> float:
        """Width of the page."""
        return max(self.right + _LEGEND + _PAD, self.left + _NARROWEST)

    @property
    def right(self) -> float:
        """Where the last panel of the first row ends."""
        return self.left + min(_ROW, len(self.panels)) * (self.room + _GAP) - _GAP

    def corner(self, number: int) -> tuple[float, float]:
        """Returns where the map of a panel begins, from the left and from the top of the first names."""
        row, column = divmod(number, _ROW)
        return self.left + column * (self.room + _GAP), self.above(row) + self.head(row)


def plot_trace(result: Result, metric: str | None = None, *, theme: str = "light", title: bool = True) -> "Figure":
    """Returns the maps of a causal trace, one for each kind, and below them lines with their intervals over facts.

    Rows are tokens or their roles, columns layers; colour is the average indirect effect in the metric's unit, on one
    scale for all maps. A dot is a cell that cannot change anything, a hatched one has no value. Bands are 95 %
    bootstrap intervals of the mean over facts.

    Args:
        metric: which one; the result's first by default.
        theme: "light" or "dark".
        title: whether the question stands above the maps and the facts below them.

    Raises:
        ResultError: not a result of `trace`, an unknown metric or theme.

    Source: Meng et al. 2022, figures 1, 2 and 7.
    """
    if result.provenance.get("method") != "trace":
        seen = f"a result of {result.provenance.get('method')}"
        raise ResultError("that draws a causal trace.", where="plot_trace", seen=seen, fix="result.plot()")
    if theme not in TOKENS:
        raise ResultError(f"no theme {theme!r}.", where="plot_trace", seen=repr(theme), fix=suggest(theme, TOKENS))
    name = metric or result.metrics[0]
    sheet = _measure(result, name, theme)
    above, below = (_heading(result, name, sheet), _footing(result, sheet)) if title else ([], [])
    maps = sheet.above(-(-len(sheet.panels) // _ROW))
    top = 0.22 + sum(0.28 if bold else 0.21 for _, bold in above)
    under = 0.24 if sheet.lined else 0.0
    canvas = Canvas(sheet.wide, top + maps + under + 0.18 * len(below) + 0.12, sheet.fonts)
    canvas.figure.set_facecolor(sheet.ink["bg"])
    _write_heading(canvas, sheet, above)
    for number, panel in enumerate(sheet.panels):
        _draw_panel(canvas, sheet, panel, number, top)
    _draw_legend(canvas, sheet, top + sheet.head(0))
    y = top + maps + 0.04
    if sheet.lined:
        _draw_line_names(canvas, sheet, y, len(result.provenance["pairs"]))
    for number, line in enumerate(below):
        canvas.text(_PAD, y + under + 0.06 + 0.18 * number, line, 7.5, color=sheet.ink["ink3"])
    return canvas.figure


# -- what is drawn, and how large


def _measure(result: Result, metric: str, theme: str) -> Sheet:
    effect = result.effect(metric, per_pair=True)
    axis = str(effect.dims[2])
    rows = tuple(str(one) for one in effect[axis].to_numpy()) if axis == "role" else _tokens(result)
    fonts = type_for([*rows, *(token for pair in result.provenance["pairs"] for token in pair["answer"])])
    layers = effect.sizes["layer"]
    across = max(0.02, min(0.42, _ACROSS / layers))
    room = max(1.9, across * layers)
    panels = tuple(_panel(result, effect, str(kind), fonts, room) for kind in effect["kind"].to_numpy())
    most = max(float(np.abs(np.nan_to_num(one.values)).max()) for one in panels)
    lines = np.nan_to_num(np.array([ends for one in panels for ends in one.lines.values()] or [[0.0]]))
    down = max(0.1, min(0.27 if len(rows) <= 16 else 0.17, 6.5 / len(rows)))
    marked = frozenset(result.provenance["pairs"][0]["differs"]) if axis == "pos" else frozenset[int]()
    left = _PAD + max(fonts.width(row, 8.5, bold=True) for row in rows) + 0.12
    return Sheet(
        panels, rows, marked, layers, (across, down), max(left, 0.75), room, _rounded(most),
        (min(0.0, float(lines.min())), max(0.0, float(lines.max()))),
        str(result.data[metric].attrs.get("unit", "")), theme, fonts,
    )  # fmt: skip


def _tokens(result: Result) -> tuple[str, ...]:
    """Returns the token at each position, with an ellipsis where the facts' differ."""
    pairs: Sequence[Mapping[str, Any]] = result.provenance["pairs"]
    names: list[str] = []
    for place in range(result.data.sizes["pos"]):
        found = list(dict.fromkeys(visible(pair["clean_tokens"][place]) for pair in pairs))
        name = "bos" if place == 0 and pairs[0]["has_bos"] else found[0]
        names.append(name if len(found) == 1 else f"{name} …")
    return tuple(names)


def _panel(result: Result, effect: xr.DataArray, kind: str, fonts: Type, room: float) -> Panel:
    own, state = effect.sel(kind=kind), result.data["state"].sel(kind=kind).transpose(..., "layer", "pair").to_numpy()
    still = ((state == _EXACT) | (state == _NO_POSITION)).all(-1) & (state == _EXACT).any(-1)
    values = own.mean("pair").transpose(..., "layer").to_numpy()
    lines = {role: _line(result, own, role) for role in _LINES} if own.sizes["pair"] > 1 else {}
    name = fonts.wrap(_name(kind, result.provenance["kinds"][kind]), 9, room + 0.2, bold=True)
    return Panel(tuple(name), values, still, lines)


def _name(kind: str, made: Mapping[str, Any]) -> str:
    plain, _, cut = kind.removesuffix(" severed").partition(", ")
    wide = f", {made['window']} layers" if made["window"] > 1 else ""
    return f"{_NAMES[plain]}{wide}{f', {_CUT[cut]}' if cut else ''}"


def _line(result: Result, effect: xr.DataArray, role: str) -> Values:
    """Returns the mean over facts of one role, and the bounds of its interval [3 layer]; NaN without any.

    Args:
        effect: of one kind [layer, pos or role, pair].
    """
    if "role" in effect.dims:
        own = effect.sel(role=role).transpose("pair", "layer").to_numpy()
    else:
        places = [pair["roles"][role] for pair in result.provenance["pairs"]]
        own = np.stack([effect.isel(pair=at, pos=place).mean("pos").to_numpy() for at, place in enumerate(places)])
    pairs = len(own)
    draws = np.random.default_rng(0).integers(0, pairs, (_RESAMPLES, pairs))
    times = np.stack([(draws == pair).sum(1) for pair in range(pairs)], 1)
    # A ratio of means with gaps of 1 is the mean.
    low, high = bootstrap(own, np.ones(pairs), times, _LEVEL)
    there = np.isfinite(own)
    mean = np.divide(np.where(there, own, 0.0).sum(0), there.sum(0), out=np.full(len(low), np.nan), where=there.any(0))
    return np.stack([mean, low, high])


def _rounded(most: float) -> float:
    """Returns the next round number above the largest effect; 1 where there is none."""
    if not most > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(step * power for step in _STEPS if step * power >= most * (1 - 1e-9))


def _heading(result: Result, metric: str, sheet: Sheet) -> list[tuple[str, bool]]:
    """Returns the lines above the maps, and whether they are bold."""
    pairs = result.provenance["pairs"]
    if len(pairs) == 1:
        drowned = "".join(pairs[0]["clean_tokens"][place] for place in pairs[0]["differs"]).strip()
        answers = " or ".join(visible(token) for token in pairs[0]["answer"])
        asked = f"Which state brings {answers} back after noise on “{drowned}”?"
    else:
        asked = f"Which state brings {len(pairs)} facts back after noise on their subjects?"
    clean, noised = (float(result.baselines[run].sel(metric=metric).mean()) for run in ("clean", "corrupted"))
    many = len(pairs) > 1
    said = (
        f"{'Average total' if many else 'Total'} effect of the noise: {_number(clean - noised)} {sheet.unit}".rstrip()
        + f" (clean {_number(clean)}, with noise {_number(noised)}). "
        + f"Colour: {'average ' if many else ''}indirect effect of one restored state."
    )
    room = sheet.wide - 2 * _PAD
    lines = [(line, True) for line in sheet.fonts.wrap(asked, 12, room, bold=True)]
    return lines + [(line, False) for line in sheet.fonts.wrap(said, 9, room)]


def _footing(result: Result, sheet: Sheet) -> list[str]:
    """Returns the lines below: how to read what is no colour, and what was run."""
    made = result.provenance
    keys = ["dot: exactly 0 by construction, not run"] if any(one.still.any() for one in sheet.panels) else []
    keys += ["hatched: no such token"] if any((~np.isfinite(one.values)).any() for one in sheet.panels) else []
    keys += ["marked: noise"] if sheet.marked else []
    unknown = f", {len(made['unknown'])} unknown left out" if made["unknown"] else ""
    count = f"{len(made['pairs'])} fact{'s' if len(made['pairs']) > 1 else ''}{unknown}"
    parts = [made["model"]["name"], count, f"seed {made['seed']}", f"{made['engine']['run']} exact runs", "nbpatch"]
    lines = [" · ".join(keys), made["corruption_words"], " · ".join(parts)]
    return [part for line in lines if line for part in sheet.fonts.wrap(line, 7.5, sheet.wide - 2 * _PAD)]


def _number(value: float) -> str:
    return readout_number(value).lstrip("+") if abs(value) >= 0.01 or value == 0 else f"{value:.1g}"


# -- drawing


def _write_heading(canvas: Canvas, sheet: Sheet, lines: Sequence[tuple[str, bool]]) -> None:
    y = 0.26
    for text, bold in lines:
        looks = {"weight": "bold" if bold else "normal", "color": sheet.ink["ink" if bold else "ink2"]}
        canvas.text(_PAD, y, text, 12 if bold else 9, **looks)
        y += 0.28 if bold else 0.21


def _draw_panel(canvas: Canvas, sheet: Sheet, panel: Panel, number: int, top: float) -> None:
    x, y = sheet.corner(number)
    y += top
    for line, text in enumerate(reversed(panel.name)):
        canvas.text(x, y - 0.13 - _NAME * line, text, 9, weight="bold", color=sheet.ink["ink"])
    _draw_cells(canvas, sheet, panel, x, y)
    if number % _ROW == 0:
        _draw_rows(canvas, sheet, x, y)
    bottom = y + sheet.size[1]
    _draw_layers(canvas, sheet, x, bottom, named=not sheet.lined)
    if sheet.lined:
        _draw_lines(canvas, sheet, panel, x, bottom + _BELOW - 0.1, numbered=number % _ROW == 0)
        _draw_layers(canvas, sheet, x, bottom + _BELOW - 0.1 + _LINE_HIGH, named=True)


def _draw_cells(canvas: Canvas, sheet: Sheet, panel: Panel, x: float, y: float) -> None:
    fine = min(sheet.cell) > 0.09
    axes = canvas.pixels(x, y, sheet.cell, _colours(panel, sheet), gaps=False)
    if fine:
        for column in range(1, sheet.layers):
            axes.axvline(column, color=sheet.ink["bg"], linewidth=1.2)
        for row in range(1, len(sheet.rows)):
            axes.axhline(row, color=sheet.ink["bg"], linewidth=1.2)
    dots = np.argwhere(panel.still)
    axes.scatter(dots[:, 1] + 0.5, dots[:, 0] + 0.5, s=3, color=sheet.ink["edge"], linewidths=0)
    _hatch(axes, np.argwhere(~np.isfinite(panel.values)), sheet, fine=fine)
    if sheet.cell[0] >= 0.33 and sheet.cell[1] >= 0.16 and 0.1 <= sheet.limit < 10:
        for row, column in np.argwhere(np.abs(np.nan_to_num(panel.values)) >= CELL_LEAST):
            value = float(panel.values[row, column])
            looks: dict[str, Any] = {"color": text_on(diverging(value / sheet.limit, sheet.theme)), "fontsize": 7.5}
            axes.text(column + 0.5, row + 0.5, cell_number(value), ha="center", va="center_baseline", **looks)


def _colours(panel: Panel, sheet: Sheet) -> NDArray[np.uint8]:
    """Returns the colours [row layer rgb]; the page's where there is nothing to colour."""
    anchors = np.array([rgb(colour) for colour in SCALE[sheet.theme]])
    shares = np.nan_to_num(panel.values) / sheet.limit
    places = np.linspace(-1, 1, len(anchors))
    pixels = np.stack([np.interp(shares, places, anchors[:, channel]) for channel in range(3)], -1)
    pixels[panel.still | ~np.isfinite(panel.values)] = rgb(sheet.ink["bg"])
    return np.round(pixels).astype(np.uint8)


def _hatch(axes: "Axes", cells: NDArray[np.int64], sheet: Sheet, *, fine: bool) -> None:
    """Draws lines over cells without a value."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    inset = 0.06 if fine else 0.0
    boxes = [Rectangle((c + inset, r + inset), 1 - 2 * inset, 1 - 2 * inset) for r, c in cells]
    looks: dict[str, Any] = {"facecolor": "none", "edgecolor": sheet.ink["edge"], "linewidth": 0.7 if fine else 0.0}
    axes.add_collection(PatchCollection(boxes, hatch="\\\\\\", **looks))


def _draw_rows(canvas: Canvas, sheet: Sheet, x: float, y: float) -> None:
    """Writes what the rows are, those with noise on a mark."""
    high = sheet.cell[1]
    written = {*thinned(len(sheet.rows), high, 0.14), *(sheet.marked if high >= 0.14 else ())}
    for row, text in enumerate(sheet.rows):
        middle, marked = y + (row + 0.5) * high, row in sheet.marked
        if marked:
            wide = sheet.fonts.width(text, 8.5, bold=True) + 0.08
            canvas.box(x - 0.06 - wide, middle - high / 2, wide, high, sheet.ink["mark"])
        if row in written:
            looks = {"weight": "bold" if marked else "normal", "color": sheet.ink["ink" if marked else "ink2"]}
            canvas.text(x - 0.1, middle, text, 8.5, ha="right", **looks)


def _draw_layers(canvas: Canvas, sheet: Sheet, x: float, y: float, *, named: bool) -> None:
    """Writes the layers below a map or lines."""
    wide = sheet.cell[0]
    for layer in thinned(sheet.layers, wide, 0.24):
        canvas.text(x + (layer + 0.5) * wide, y + 0.11, str(layer), 7.5, ha="center", color=sheet.ink["ink3"])
    if named:
        canvas.text(x + sheet.size[0] / 2, y + 0.27, "layer", 8, ha="center", color=sheet.ink["ink2"])


def _draw_lines(canvas: Canvas, sheet: Sheet, panel: Panel, x: float, y: float, *, numbered: bool) -> None:
    axes = canvas.axes(x, y, sheet.size[0], _LINE_HIGH)
    axes.set_axis_on()
    axes.set_facecolor("none")
    axes.set_xlim(0, sheet.layers)
    low, high = sheet.ends
    room = 0.06 * max(high - low, 1e-12)
    axes.set_ylim(low - room, high + room)
    axes.axhline(0, color=sheet.ink["edge"], linewidth=0.8, zorder=0)
    layers = np.arange(sheet.layers) + 0.5
    for role, (colour, dashes) in _LINES.items():
        mean, below, above = panel.lines[role]
        looks: dict[str, Any] = {"color": sheet.ink[colour], "linewidth": 0}
        axes.fill_between(layers, below, above, alpha=0.2, **looks)
        axes.plot(layers, mean, dashes, color=sheet.ink[colour], linewidth=1.4, label=role)
    axes.set_xticks([])
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y", color=sheet.ink["line"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=7.5, labelcolor=sheet.ink["ink3"], length=0, labelleft=numbered)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "left")
        spine.set_color(sheet.ink["edge"])
    if numbered:
        said = f"effect [{sheet.unit}]" if sheet.unit else "effect"
        looks = {"ha": "center", "rotation": 90, "color": sheet.ink["ink3"]}
        canvas.text(x - 0.48, y + _LINE_HIGH / 2, said, 7.5, **looks)


def _draw_legend(canvas: Canvas, sheet: Sheet, y: float) -> None:
    """Draws the one scale of all maps, with its unit."""
    x = sheet.right + 0.25
    high = min(2.0, max(0.7, sheet.size[1]))
    steps = np.linspace(1, -1, 201)
    colours = np.array([[diverging(float(step), sheet.theme)] for step in steps], np.uint8)
    canvas.pixels(x, y, (0.12, high / len(steps)), colours, gaps=False)
    for share, text in ((0.0, f"+{sheet.limit:g}"), (0.5, "0"), (1.0, f"−{sheet.limit:g}")):
        canvas.text(x + 0.19, y + share * high, text, 8, color=sheet.ink["ink2"])
    if sheet.unit:
        canvas.text(x, y - 0.15, sheet.unit, 8, color=sheet.ink["ink2"])


def _draw_line_names(canvas: Canvas, sheet: Sheet, y: float, facts: int) -> None:
    """Says below the lines which is which, and what the bands are."""
    from matplotlib.lines import Line2D

    x = sheet.left
    for role, (colour, dashes) in _LINES.items():
        across, up = (x / canvas.wide, (x + 0.3) / canvas.wide), (1 - y / canvas.high,) * 2
        looks: dict[str, Any] = {"color": sheet.ink[colour], "linewidth": 1.4, "linestyle": dashes}
        canvas.figure.add_artist(Line2D(across, up, transform=canvas.figure.transFigure, **looks))
        canvas.text(x + 0.37, y, role, 8, color=sheet.ink["ink2"])
        x += 0.37 + sheet.fonts.width(role, 8) + 0.25
    canvas.text(x, y, f"band: 95 % bootstrap interval over {facts} facts", 8, color=sheet.ink["ink3"])
