"""Figures of circuits: which edges there are, layer by layer, and how much of the behaviour they carry."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbpatch.errors import ResultError
from nbpatch.graph import Circuit, Edge, Node
from nbpatch.result import Result
from nbpatch.view.canvas import Canvas, Type, type_for
from nbpatch.view.style import TOKENS, diverging

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAD, _LEFT, _LEGEND = 0.25, 0.85, 1.15
_WIDEST, _BOX, _BAR = 11.0, 0.24, 0.22
_ROW, _EMPTY_ROW, _HIGHEST = 0.86, 0.26, 12.0
_RAISED = 0.36
"""How far an MLP stands above its layer's heads, which it reads unless the layer is parallel."""

_MOST = 150
_ENDS = {"q": 0.2, "k": 0.5, "v": 0.8, "": 0.5}
"""Where on a box an edge ends, from left to right."""

_PALEST = 0.4
"""An edge has at least the colour of this share: nothing weaker is seen as a line."""

_ENOUGH = 0.9
"""The title names the smallest circuit that recovers so much."""


@dataclass(frozen=True)
class Sheet:
    """What is drawn and how large, in inches, y downwards.

    Attributes:
        circuit: without positions.
        shown: the edges that are drawn, the strongest first.
        rows: the middle of each layer's heads.
        heights: of each layer's boxes; low ones where the circuit has no node.
        most: the largest |score|.
    """

    circuit: Circuit
    shown: tuple[Edge, ...]
    rows: tuple[float, ...]
    heights: tuple[float, ...]
    column: float
    top: float
    bottom: float
    most: float
    theme: str
    fonts: Type

    @property
    def ink(self) -> dict[str, str]:
        """The colours of everything that is no edge."""
        return TOKENS[self.theme]

    @property
    def right(self) -> float:
        """Where the MLPs end."""
        return _LEFT + self.circuit.graph.n_heads * self.column + 0.25 + max(0.42, self.column)

    @property
    def wide(self) -> float:
        """Width of the page."""
        return self.right + _LEGEND + _PAD

    def box(self, node: Node) -> tuple[float, float, float, float]:
        """Returns where a node stands: left, top, width, height."""
        if node.layer < 0:
            return _LEFT, self.bottom if node.kind == "embed" else self.top, self.right - _LEFT, _BAR
        if node.kind == "mlp":
            wide, high = max(0.42, self.column) * 0.86, self.heights[node.layer]
            raised = _RAISED * high / _BOX
            return self.right - wide, self.rows[node.layer] - raised - high / 2, wide, high
        wide, high = self.column * 0.82, self.heights[node.layer]
        x = _LEFT + (node.head + 0.5) * self.column - wide / 2
        return x, self.rows[node.layer] - high / 2, wide, high

    def shared(self, node: Node) -> tuple[float, float, float, float]:
        """Returns where a key-value head stands: a bar below the heads that share it."""
        size = self.circuit.graph.n_heads // self.circuit.graph.n_kv_heads
        wide = size * self.column - 0.18 * self.column
        return _LEFT + (node.head * size + 0.09) * self.column, self.rows[node.layer] + _BOX / 2 + 0.05, wide, 0.09


def draw(circuit: Circuit, *, dark: bool = False, title: bool = True) -> "Figure":
    """Returns a circuit layer by layer: the embeddings at the bottom, the logits on top, an MLP right of its heads.

    Colour is the score over the largest |score| on the diverging scale, width its size. Queries, keys and values end
    at the left, the middle and the right of a head. Nodes outside the circuit are faint.

    Args:
        dark: on a dark page.
        title: whether the circuit's headline stands above and the notes below.
    """
    sheet, notes = _measure(circuit, "dark" if dark else "light")
    high = sheet.bottom + _BAR + (0.2 + 0.19 * len(notes) if title else 0.0) + _PAD
    canvas = Canvas(sheet.wide, high, sheet.fonts)
    canvas.figure.set_facecolor(sheet.ink["bg"])
    axes = canvas.axes(0, 0, sheet.wide, high)
    axes.set_xlim(0, sheet.wide)
    axes.set_ylim(high, 0)
    for order, edge in enumerate(reversed(sheet.shown)):
        _draw_edge(axes, sheet, edge, 1 + order / len(sheet.shown))
    _draw_nodes(canvas, axes, sheet)
    _draw_legend(canvas, axes, sheet)
    if title:
        line = sheet.fonts.cut(circuit.headline(), 11, sheet.wide - 2 * _PAD, bold=True)
        canvas.text(_PAD, 0.3, line, 11, color=sheet.ink["ink"], weight="bold")
        for number, note in enumerate(notes):
            canvas.text(_PAD, sheet.bottom + _BAR + 0.26 + 0.19 * number, note, 7.5, color=sheet.ink["ink3"])
    return canvas.figure


def _measure(circuit: Circuit, theme: str) -> tuple[Sheet, list[str]]:
    """Returns what is drawn, and what to say about it below."""
    notes: list[str] = []
    if circuit.positions is not None:
        notes.append(f"scores of the kept edges summed over {circuit.positions} positions")
        circuit = replace(circuit, scores=np.where(circuit.kept, circuit.scores, np.nan)).summed()
    edges = circuit.edges
    if len(edges) > _MOST:
        notes.append(f"drawn: the strongest {_MOST} of {len(edges)} edges")
        edges = edges[:_MOST]
    if any(np.isnan(edge.score) for edge in edges):
        notes.append("grey: no score")
    if any(edge.grouped for edge in edges):
        notes.append("bar below heads: the key and value head that they share")
    graph = circuit.graph
    used = {node.layer for node in circuit.nodes}
    heights = np.array([_ROW if layer in used else _EMPTY_ROW for layer in range(graph.n_layers)])
    heights *= min(1.0, max(_HIGHEST, len(used) * 0.6) / heights.sum())
    boxes = tuple(_BOX if layer in used else 0.4 * float(high) for layer, high in enumerate(heights))
    top = 0.62
    rows = top + _BAR + 0.45 + np.cumsum(heights[::-1])[::-1] - heights / 2
    most = max([abs(edge.score) for edge in edges if np.isfinite(edge.score)], default=0.0)
    fonts = type_for([circuit.headline()])
    column = min(0.6, _WIDEST / graph.n_heads)
    bottom = top + _BAR + 0.55 + float(heights.sum())
    sheet = Sheet(circuit, tuple(edges), tuple(rows.tolist()), boxes, column, top, bottom, most, theme, fonts)
    return sheet, [" · ".join([*notes, "nbpatch"])]


def _draw_edge(axes: "Axes", sheet: Sheet, edge: Edge, order: float) -> None:
    """Draws an edge as a curve that leaves upwards and arrives from below."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    start, end = sheet.box(edge.sender), sheet.shared(edge.receiver) if edge.grouped else sheet.box(edge.receiver)
    x = start[0] + start[2] / 2
    last = end[0] + end[2] * _ENDS[edge.input]
    if edge.receiver.kind == "logits":
        last = x if edge.sender.kind != "embed" else sheet.right - 0.1
    if edge.sender.kind == "embed":
        x = last
    y, end_y = start[1], end[1] + end[3]
    rise = max(0.25, 0.45 * abs(y - end_y))
    # Straight up it would run behind the boxes of its column.
    aside = 0.75 * sheet.column if abs(last - x) < 0.3 * sheet.column and y - end_y > 1.2 * _ROW else 0.0
    aside = -aside if edge.sender.kind == "mlp" else aside
    points = [(x, y), (x + aside, y - rise), (last + aside, end_y + rise), (last, end_y)]
    share = abs(edge.score) / sheet.most if np.isfinite(edge.score) and sheet.most else 0.0
    looks: dict[str, Any] = {"edgecolor": _colour(edge.score, sheet), "linewidth": 0.8 + 2.8 * share}
    curve = PathPatch(Path(points, [Path.MOVETO, *[Path.CURVE4] * 3]), fill=False, zorder=order, **looks)
    curve.set_gid(str(edge))
    axes.add_patch(curve)


def _colour(score: float, sheet: Sheet) -> str:
    """Returns the colour of a score, grey where there is none."""
    if not np.isfinite(score) or not sheet.most:
        return sheet.ink["edge"]
    share = score / sheet.most
    return "#{:02X}{:02X}{:02X}".format(*diverging(np.sign(share) * max(_PALEST, abs(share)), sheet.theme))


def _draw_nodes(canvas: Canvas, axes: "Axes", sheet: Sheet) -> None:
    graph, ink = sheet.circuit.graph, sheet.ink
    used = set(sheet.circuit.nodes)
    for layer, y in enumerate(sheet.rows):
        if any(node.layer == layer for node in used):
            canvas.text(_LEFT - 0.15, y, f"layer {layer}", 7.5, ha="right", color=ink["ink3"])
    for node in (*graph.senders, Node("logits")):
        _draw_box(axes, sheet, sheet.box(node), str(node), faint=node not in used)
        if node in used:
            x, y, wide, high = sheet.box(node)
            short = str(node) if sheet.fonts.width(str(node), 7.5) < wide else str(node.head)
            canvas.text(x + wide / 2, y + high / 2, short, 7.5 if wide > 0.2 else 5.5, ha="center", color=ink["ink"])
    for node in dict.fromkeys(edge.receiver for edge in sheet.shown if edge.grouped):
        _draw_box(axes, sheet, sheet.shared(node), f"a{node.layer}.kv{node.head}", faint=False)


def _draw_box(axes: "Axes", sheet: Sheet, box: tuple[float, float, float, float], name: str, *, faint: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y, wide, high = box
    edge, face = (sheet.ink["line"], sheet.ink["bg1"]) if faint else (sheet.ink["ink3"], sheet.ink["bg2"])
    looks: dict[str, Any] = {"edgecolor": edge, "facecolor": face, "linewidth": 0.6 if faint else 0.9}
    # Faint boxes lie below the curves, which need not be hidden by what is not in the circuit.
    shape = FancyBboxPatch((x, y), wide, high, "round,pad=0,rounding_size=0.04", zorder=0.5 if faint else 3, **looks)
    shape.set_gid(name)
    axes.add_patch(shape)


def _draw_legend(canvas: Canvas, axes: "Axes", sheet: Sheet) -> None:
    """Draws the scale of the scores, and where queries, keys and values end."""
    from matplotlib.patches import Rectangle

    x, y, high, ink = sheet.right + 0.3, sheet.top + 0.15, 1.2, sheet.ink
    if sheet.most:
        canvas.text(x, y - 0.15, "score", 7.5, color=ink["ink2"])
    steps = np.linspace(1, -1, 61)
    for number, share in enumerate(steps if sheet.most else ()):
        place = (x, y + number * high / len(steps))
        colour = _colour(float(share) * sheet.most, sheet)
        axes.add_patch(Rectangle(place, 0.12, high / len(steps) + 0.004, color=colour, linewidth=0))
    for share, sign in ((0.0, "+"), (0.5, ""), (1.0, "−")) if sheet.most else ():
        text = f"{sign}{sheet.most:.2g}" if sign else "0"
        canvas.text(x + 0.19, y + share * high, text, 7.5, color=ink["ink2"])
    y += high + 0.35
    wide = 0.5
    _draw_box(axes, sheet, (x, y, wide, _BOX), "legend", faint=False)
    canvas.text(x + wide / 2, y + _BOX / 2, "head", 7.5, ha="center", color=ink["ink"])
    for name, share in list(_ENDS.items())[:3]:
        canvas.text(x + share * wide, y + _BOX + 0.1, name, 7.5, ha="center", color=ink["ink2"])


# -- how much of the behaviour a circuit carries


def curve(result: Result, *, metric: str | None = None, dark: bool = False) -> "Figure":
    """Returns faithfulness against the share of edges: the found circuit as a line, random ones as a band.

    The band reaches from the lowest to the highest random circuit, the thin line is their mean.

    Args:
        metric: which one; the result's first by default.
        dark: on a dark page.

    Raises:
        ResultError: not a result of `evaluate`, or an unknown metric.
    """
    if not {"circuit", "edges"} <= set(result.data.dims):
        seen = f"a result of {result.provenance.get('method')}"
        raise ResultError("that draws circuits of several sizes.", where="curve", seen=seen, fix="result.plot()")
    ink, size = TOKENS["dark" if dark else "light"], (6.4, 3.6)
    found, drawn, edges = _faithfulness(result, metric)
    total = result.provenance.get("n_edges")
    lines = _sentence(found, drawn, edges, total)
    fonts = type_for(lines)
    wide = _LEFT + size[0] + 2 * _PAD
    title = fonts.wrap(lines, 11, wide - 2 * _PAD, bold=True)
    top = 0.35 + 0.25 * len(title)
    canvas = Canvas(wide, top + size[1] + 0.95, fonts)
    canvas.figure.set_facecolor(ink["bg"])
    for number, line in enumerate(title):
        canvas.text(_PAD, 0.3 + 0.25 * number, line, 11, color=ink["ink"], weight="bold")
    axes = canvas.axes(_LEFT, top, *size)
    _draw_curves(axes, np.asarray(edges / total if total else edges), found, drawn, ink)
    axes.set_xlabel("share of edges kept" if total else "edges kept", fontsize=8, color=ink["ink2"])
    _write_facts(canvas, result, metric, top + size[1] + 0.75, ink)
    return canvas.figure


def _faithfulness(result: Result, metric: str | None) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Returns the found circuit's values [edges], those of random ones [circuit edges], and the numbers of edges."""
    values = result.recovered(metric).transpose("circuit", "edges").sortby("edges")
    values = values.sel(edges=values["edges"] > 0)
    names = values["circuit"].to_numpy().astype(str)
    table, random = values.to_numpy(), np.char.startswith(names, "random")
    return table[~random][0], table[random], values["edges"].to_numpy()


def _sentence(found: NDArray[Any], drawn: NDArray[Any], edges: NDArray[Any], total: int | None) -> str:
    """Returns the title: the smallest circuit that recovers enough, else the one that recovers most."""
    if not np.isfinite(found).any():
        return "No circuit has a faithfulness: there is no gap to recover"
    enough = np.flatnonzero(found >= _ENOUGH)
    place = int(enough[0]) if len(enough) else int(np.nanargmax(found))
    share = f" of {total} edges ({100 * edges[place] / total:.2g} %)" if total else " edges"
    text = f"{edges[place]}{share} recover {found[place]:.2f} of the behaviour"
    if len(drawn) and np.isfinite(drawn[:, place]).any():
        text += f"; random circuits of that size {np.nanmean(drawn[:, place]):.2f}".replace("-", "−")
    return text


def _draw_curves(
    axes: "Axes", shares: NDArray[Any], found: NDArray[Any], drawn: NDArray[Any], ink: dict[str, str]
) -> None:
    axes.set_axis_on()
    axes.set_facecolor(ink["bg"])
    axes.set_xscale("log")
    for level in (0.0, 1.0):
        axes.axhline(level, color=ink["edge"], linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    there = np.isfinite(drawn).any(0) if len(drawn) else np.zeros(len(shares), bool)
    if there.any():
        some = drawn[:, there]
        bounds = np.nanmin(some, 0), np.nanmax(some, 0)
        label = f"{len(drawn)} random circuits, lowest to highest"
        axes.fill_between(shares[there], *bounds, color=ink["edge"], alpha=0.45, linewidth=0, label=label)
        axes.plot(shares[there], np.nanmean(some, 0), color=ink["ink3"], linewidth=1.0, label="their mean")
    axes.plot(shares, found, color=ink["pos"], linewidth=2.2, marker="o", markersize=4.5, label="found circuit")
    axes.set_ylabel("faithfulness: 0 no edge, 1 the whole model", fontsize=8, color=ink["ink2"])
    values = np.concatenate([found, drawn.ravel(), [0.0, 1.0]])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axes.tick_params(which="both", labelsize=7.5, colors=ink["ink3"], length=3)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(ink["edge"])
    axes.legend(fontsize=7.5, frameon=False, labelcolor=ink["ink2"], loc="best")


def _write_facts(canvas: Canvas, result: Result, metric: str | None, y: float, ink: dict[str, str]) -> None:
    made, pairs = result.provenance, result.data.sizes["pair"]
    model: Any = made.get("model", {})
    facts: Sequence[str] = (
        str(model.get("name", "") if isinstance(model, dict) else model),
        metric or result.metrics[0],
        f"{pairs} pair{'s' if pairs != 1 else ''}",
        "nbpatch",
    )
    canvas.text(_PAD, y, " · ".join(filter(None, facts)), 7.5, color=ink["ink3"])
