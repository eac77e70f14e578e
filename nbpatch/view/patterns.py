"""Figures of attention patterns: one head, the heads of a layer, or all heads; a run or the difference of both."""

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nbpatch.errors import ResultError
from nbpatch.result import Result
from nbpatch.view.canvas import Canvas, Type, thinned, type_for
from nbpatch.view.style import TOKENS, diverging, rgb
from nbpatch.view.words import tokens_shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = ("clean", "corrupted", "difference")

Weights: TypeAlias = NDArray[np.float64]

_INK = TOKENS["light"]
_PAD, _GAP, _HEAD = 0.2, 0.16, 0.26
_WIDEST = 12.0
_SIZE = 7.5


def heads(
    result: Result, *, layer: int | None = None, head: int | None = None, run: str = "clean", pair: int = 0
) -> "Figure":
    """Returns attention patterns: rows look, columns are looked at; the darker, the more weight.

    Args:
        layer: the layer; all layers, small, by default.
        head: one head of that layer, large; all of its heads by default.
        run: "clean", "corrupted", or "difference" (clean − corrupted, blue where clean looks more).
        pair: which pair of prompts.

    Raises:
        ResultError: not attention, or no such layer, head, run or pair.
    """
    weights = _weights(result, run, pair)
    layers = range(weights.shape[0]) if layer is None else [_within(layer, weights.shape[0], "layer")]
    chosen = range(weights.shape[1]) if head is None else [_within(head, weights.shape[1], "head")]
    of = "corrupted" if run == "corrupted" else "clean"
    shown = result.provenance["pairs"][pair]
    tokens = tokens_shown(shown, of)
    limit = float(np.abs(weights).max()) or 1.0
    parts = [(f"{a}.{b}", _colours(weights[a, b], run, limit)) for a in layers for b in chosen]
    columns = len(chosen) if layer is None else min(4, len(chosen))
    name = (
        f"{result.provenance['model']['name']} · attention, {'clean − corrupted' if run == 'difference' else run} run"
    )
    return _grid(parts, columns, tokens, name, words=len(tokens) <= 48 and layer is not None)


def _weights(result: Result, run: str, pair: int) -> Weights:
    """Returns the patterns [layer head dest src] of a run, or clean − corrupted."""
    if result.provenance.get("method") != "attention":
        raise ResultError(
            "no attention patterns in this result.", where="plot", fix="nbp.attention(model, pair).plot()"
        )
    if run not in RUNS:
        raise ResultError(f"no run {run!r}.", where="run", fix="one of: " + ", ".join(RUNS))
    pattern = result.data["pattern"]
    pattern = pattern.isel(pair=_within(pair, pattern.sizes["pair"], "pair"))
    pattern = pattern.transpose("run", "layer", "head", "dest", "src")
    if run == "difference":
        return (pattern.sel(run="clean") - pattern.sel(run="corrupted")).to_numpy()
    return pattern.sel(run=run).to_numpy()


def _within(number: int, count: int, name: str) -> int:
    if not 0 <= number < count:
        raise ResultError(f"no {name} {number}.", where=name, seen=f"{count} of them", fix=f"{name}=0 to {count - 1}")
    return number


def _colours(weights: Weights, run: str, limit: float) -> NDArray[np.uint8]:
    """Returns one neutral ramp from white to ink for weights, the diverging scale for their difference."""
    if run == "difference":
        return np.array([[diverging(float(value) / limit) for value in row] for row in weights], np.uint8)
    share = np.clip(np.nan_to_num(weights), 0, 1)[..., None] ** 0.6 * 0.92
    return np.round(255 + share * (np.array(rgb(_INK["ink"])) - 255)).astype(np.uint8)


def _grid(
    parts: list[tuple[str, NDArray[np.uint8]]], columns: int, tokens: list[str], name: str, *, words: bool
) -> "Figure":
    fonts = type_for(tokens)
    longest = min(0.9, max(fonts.width(token, _SIZE) for token in tokens) + 0.1) if words else 0.0
    rows = math.ceil(len(parts) / columns)
    side = _side(columns, len(tokens), longest, words=words)
    wide = max(4.2, 2 * _PAD + longest + columns * (side + _GAP))
    below = longest if words else 0.0
    canvas = Canvas(wide, 0.55 + rows * (side + _HEAD + below) + 0.35, fonts)
    canvas.text(_PAD, 0.3, name, 11, weight="bold", color=_INK["ink"])
    each = side / len(tokens)
    for number, (label, colours) in enumerate(parts):
        x = _PAD + longest + (number % columns) * (side + _GAP)
        y = 0.55 + (number // columns) * (side + _HEAD + below)
        canvas.text(x, y + 0.12, f"head {label}" if words else label, 9 if words else 7, color=_INK["ink2"])
        canvas.pixels(x, y + _HEAD, (each, each), colours, gaps=words and each > 0.12)
        canvas.frame(x, y + _HEAD, side, side)
        if words:
            _name_tokens(canvas, tokens, x, y + _HEAD, side, first=number % columns == 0)
    canvas.text(_PAD, canvas.high - 0.17, "rows look · columns are looked at", 7.5, color=_INK["ink3"])
    return canvas.figure


def _side(columns: int, tokens: int, longest: float, *, words: bool) -> float:
    """Returns the side of one matrix: as large as its words need, as the page allows."""
    most = (_WIDEST - 2 * _PAD - longest) / columns - _GAP
    return max(0.4, min(most, 5.5, max(1.6, 0.19 * tokens) if words else 0.9))


def _name_tokens(canvas: Canvas, tokens: list[str], x: float, y: float, side: float, *, first: bool) -> None:
    each = side / len(tokens)
    fonts: Type = canvas.fonts
    for place in thinned(len(tokens), each, 0.12):
        shown = fonts.cut(tokens[place], _SIZE, 0.8)
        middle = (place + 0.5) * each
        canvas.text(x + middle, y + side + 0.05, shown, _SIZE, rotation=90, ha="center", va="top")
        if first:
            canvas.text(x - 0.06, y + middle, shown, _SIZE, ha="right")
