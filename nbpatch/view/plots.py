"""Figures: the map with the prompt as its axis. Built without pyplot, so that drawing changes no global state."""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nbpatch.errors import ResultError
from nbpatch.prompts import visible
from nbpatch.result import STATES, Result
from nbpatch.view.style import CELL_LEAST, SCALE, TOKENS, cell_number, diverging, rgb, text_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = TOKENS["light"]
_CELL_WIDE, _CELL_HIGH = 0.52, 0.30
_NUMBERS_UP_TO = 26
_EXACT = STATES.index("exact")


def plot(result: Result, metric: str | None = None, *, pair: int | None = None, title: bool = True) -> "Figure":
    """Returns the map of a result, one panel for each direction.

    Colour is the effect as a share of the gap: blue restores, red takes away. A dot is a cell that cannot change
    anything, a hatched one has no value.

    Args:
        metric: which one; the result's first by default.
        pair: one pair's own values; the mean over pairs by default.

    Raises:
        ResultError: an unknown metric, or attention patterns (see `show`).
    """
    from matplotlib.figure import Figure

    share = result.share(metric, per_pair=pair is not None)
    state = result.data["state"]
    if pair is not None:
        share, state = share.sel(pair=pair), state.sel(pair=pair)
    else:
        state = _common_state(state)
    panels = [(str(one.item()), share.sel(direction=one), state.sel(direction=one)) for one in share["direction"]] \
        if "direction" in share.dims else [(result.provenance["direction"], share, state)]  # fmt: skip
    tables = [(name, *_table(values, codes)) for name, values, codes in panels]
    rows, columns = tables[0][1].shape
    high = max(1.6, min(9.0, rows * _CELL_HIGH)) + (1.55 if "pos" in result.over else 1.0)
    wide = max(4.2, min(14.0, columns * _CELL_WIDE)) + 1.9
    figure = Figure(figsize=(wide, high * len(tables)), layout="constrained", facecolor="white")
    for number, (name, values, codes) in enumerate(tables):
        axes = figure.add_subplot(len(tables), 1, number + 1)
        _draw(axes, values, codes)
        _label_axes(axes, result, share, pair or 0)
        axes.set_title(
            _sentence(result, name, metric) if title else name, loc="left", fontsize=10, color=_INK["ink"], pad=8
        )
        _legend(figure, axes)
    return figure


def png(result: Result, metric: str | None = None) -> bytes:
    """Returns the map as a PNG on white, small enough to be saved with a notebook (at most about 150 kB)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = plot(result, metric)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()


def _common_state(state: xr.DataArray) -> xr.DataArray:
    """Returns "exact" where it holds for every pair, "measured" elsewhere."""
    return xr.where((state == _EXACT).all("pair"), _EXACT, STATES.index("measured"))


def _table(values: xr.DataArray, codes: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns values and states as rows × columns: the last axis across, the others down."""
    across = values.dims[-1]
    down = [dim for dim in values.dims if dim != across]
    ordered = [one.transpose(*down, across).to_numpy() for one in (values, codes)]
    return ordered[0].reshape(-1, values.sizes[across]), ordered[1].reshape(-1, values.sizes[across])


def _draw(axes: "Axes", values: np.ndarray, codes: np.ndarray) -> None:
    rows, columns = values.shape
    pixels = _fill(values, codes)
    axes.imshow(pixels, aspect="auto", interpolation="nearest")
    if max(rows, columns) <= 64:
        axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _mark_nothings(axes, values, codes)
    if columns <= _NUMBERS_UP_TO and rows <= 2 * _NUMBERS_UP_TO:
        _write_numbers(axes, values)


def _fill(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Returns the colours [row column rgb] of shares of the gap; white where there is nothing to colour."""
    anchors = np.array([rgb(colour) for colour in SCALE["light"]])
    places = np.linspace(-1, 1, len(anchors))
    shares = np.nan_to_num(values)
    pixels = np.stack([np.interp(shares, places, anchors[:, channel]) for channel in range(3)], -1)
    pixels[(codes == _EXACT) | ~np.isfinite(values)] = 255
    return np.round(pixels).astype(np.uint8)


def _mark_nothings(axes: "Axes", values: np.ndarray, codes: np.ndarray) -> None:
    """Draws a dot where a cell cannot act and a hatched box where there is no value."""
    from matplotlib.patches import Rectangle

    still = np.argwhere(codes == _EXACT)
    axes.scatter(still[:, 1], still[:, 0], s=4, color=_INK["edge"], linewidths=0)
    for row, column in np.argwhere(~np.isfinite(values)):
        place = (column - 0.46, row - 0.44)
        axes.add_patch(
            Rectangle(place, 0.92, 0.88, fill=False, hatch="\\\\\\\\", edgecolor=_INK["edge"], linewidth=0.8)
        )


def _write_numbers(axes: "Axes", values: np.ndarray) -> None:
    for row, column in np.argwhere(np.abs(np.nan_to_num(values)) >= CELL_LEAST):
        value = float(values[row, column])
        colour = text_on(diverging(value))
        axes.text(column, row, cell_number(value), ha="center", va="center", fontsize=7.5, color=colour)


def _label_axes(axes: "Axes", result: Result, share: xr.DataArray, pair: int) -> None:
    dims = [str(dim) for dim in share.dims if dim != "direction"]
    down, across = dims[:-1], dims[-1]
    names = [share[dim].to_numpy() for dim in down]
    places = np.stack([one.ravel() for one in np.meshgrid(*names, indexing="ij")], -1) if names else np.array([[""]])
    texts = [".".join(map(str, place)) for place in places]
    every = max(1, len(texts) // 32)
    axes.set_yticks(range(0, len(texts), every), [f"{one}" for one in texts[::every]], fontsize=8, color=_INK["ink2"])
    axes.set_ylabel(".".join(down), fontsize=8, color=_INK["ink3"])
    axes.xaxis.tick_top()
    if across in ("pos", "dest", "src"):
        _tokens(axes, result.provenance["pairs"][pair], share.sizes[across])
        return
    columns = share[across].to_numpy()
    step = max(1, len(columns) // 40)
    axes.set_xticks(range(0, len(columns), step), [str(one) for one in columns[::step]], fontsize=8, color=_INK["ink2"])
    axes.set_xlabel(across, fontsize=8, color=_INK["ink3"])
    axes.xaxis.set_label_position("top")


def _tokens(axes: "Axes", pair: dict[str, Any], columns: int) -> None:
    """Writes both prompts above the columns: one line each where they fit, differing tokens marked."""
    clean, corrupted = pair["clean_tokens"], pair["corrupted_tokens"]
    aligned = dict(map(tuple, pair["aligned"]))
    differs = set(pair["differs"])
    names: list[str] = []
    for place in range(columns):
        one = visible(clean[place]) if place < len(clean) else ""
        other = visible(corrupted[aligned[place]]) if place in aligned else ""
        names.append(f"{one}\n{other}" if place in differs else one)
    turned = max(len(line) for name in names for line in name.split("\n")) > 8 or columns > 16
    labels = [name.replace("\n", " / ") if turned else name for name in names]
    axes.set_xticks(range(columns), labels, fontsize=8, rotation=60 if turned else 0, ha="left" if turned else "center")
    for place, label in enumerate(axes.get_xticklabels()):
        label.set_parse_math(False)
        if place in differs:
            label.set_bbox({"facecolor": _INK["mark"], "edgecolor": "none", "pad": 1.5})
            label.set_fontweight("bold")


def _sentence(result: Result, direction: str, metric: str | None) -> str:
    """Returns the question the panel answers."""
    made = result.provenance
    what = made["component_label"]
    pair = made["pairs"][0]
    answer = visible(pair["answer"][0])
    over = f" over {visible(pair['wrong'][0])}" if pair["wrong"] else ""
    behaviour = f"{answer}{over}" if metric in (None, "logit_diff") else f"{metric} of {answer}"
    kind = "sufficient to restore" if direction == "denoising" else "necessary to keep"
    return f"Which {what} are {kind} {behaviour}?"


def _legend(figure: "Figure", axes: "Axes") -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("nbpatch", list(SCALE["light"]))
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), colours), ax=axes, fraction=0.025, pad=0.02, aspect=16)
    bar.set_ticks([-1, 0, 1], labels=["−1", "0", "+1"])
    bar.ax.tick_params(labelsize=7, length=0, colors=_INK["ink2"])
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.set_label("share of the gap", fontsize=7, color=_INK["ink3"])


def heads(result: Result, *, layer: int = 0, run: str = "clean", pair: int = 0) -> "Figure":
    """Returns the attention patterns of one layer's heads, side by side.

    Raises:
        ResultError: not attention, or no such layer.
    """
    from matplotlib.figure import Figure

    if result.provenance.get("method") != "attention":
        raise ResultError(
            "no attention patterns in this result.", where="plot", fix="nbp.attention(model, pair).plot()"
        )
    pattern = result.data["pattern"].sel(run=run).isel(layer=layer, pair=pair)
    tokens = [visible(token) for token in result.provenance["pairs"][pair][f"{run}_tokens"]]
    count = pattern.sizes["head"]
    figure = Figure(figsize=(2.6 * count + 1, 3.4), layout="constrained", facecolor="white")
    for head in range(count):
        axes = figure.add_subplot(1, count, head + 1)
        values = pattern.isel(head=head).transpose("dest", "src").to_numpy()
        axes.imshow(np.power(values, 0.6), cmap="Greys", vmin=0, vmax=1)
        axes.set_title(f"{run}, head {layer}.{head}", fontsize=9, loc="left", color=_INK["ink"])
        axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=6)
        axes.set_yticks(range(len(tokens)), tokens if head == 0 else [""] * len(tokens), fontsize=6)
        axes.tick_params(length=0)
    return figure
