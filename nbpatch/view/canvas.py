"""A matplotlib figure to draw on in inches from the top left, with text that always has its glyphs.

Built without pyplot: drawing opens no window and changes neither the backend nor any setting.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbpatch.view.style import CELL_LEAST, TOKENS, cell_number, diverging, text_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAIN_FONT = "DejaVu Sans"
_MORE_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR", "Hiragino Sans",
    "PingFang SC", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "WenQuanYi Zen Hei", "IPAGothic", "Unifont",
    "Noto Emoji", "Segoe UI Emoji", "Symbola", "Arial Unicode MS",
)  # fmt: skip
_MISSING = "▯"
_POINTS = 72.0


@dataclass(frozen=True)
class Type:
    """Fonts that have the letters of some texts between them.

    Attributes:
        families: in the order they are asked for a letter; matplotlib's own DejaVu Sans first.
        missing: letters that none of them has; a box stands for each.
    """

    families: tuple[str, ...] = (_MAIN_FONT,)
    missing: frozenset[str] = field(default_factory=frozenset)

    def drawable(self, text: str) -> str:
        """Returns text as matplotlib must get it: letters that no font has as boxes."""
        return "".join(_MISSING if letter in self.missing else letter for letter in text)

    def width(self, text: str, size: float, *, bold: bool = False) -> float:
        """Returns the width of a text of `size` points, in inches."""
        from matplotlib.font_manager import FontProperties
        from matplotlib.textpath import text_to_path

        font = FontProperties(family=list(self.families), size=size, weight="bold" if bold else "normal")
        wide, _, _ = text_to_path.get_text_width_height_descent(self.drawable(text), font, ismath=False)
        return float(wide) / _POINTS

    def wrap(self, text: str, size: float, wide: float, *, bold: bool = False) -> list[str]:
        """Returns a text as lines of at most `wide` inches, broken between words."""
        lines = [""]
        for word in text.split(" "):
            longer = f"{lines[-1]} {word}" if lines[-1] else word
            if lines[-1] and self.width(longer, size, bold=bold) > wide:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines

    def cut(self, text: str, size: float, wide: float, *, bold: bool = False) -> str:
        """Returns a text cut to `wide` inches, with … where it was cut."""
        if self.width(text, size, bold=bold) <= wide:
            return text
        while text and self.width(f"{text}…", size, bold=bold) > wide:
            text = text[:-1]
        return f"{text}…"


def type_for(texts: Iterable[str]) -> Type:
    """Returns the fonts of this machine that show `texts`."""
    letters = {letter for text in texts for letter in text}
    letters -= _letters_of(_MAIN_FONT)
    families = [_MAIN_FONT]
    for name in _MORE_FONTS if letters else ():
        found = letters & _letters_of(name)
        if found:
            families.append(name)
            letters -= found
    return Type(tuple(families), frozenset(letters))


@lru_cache(maxsize=32)
def _letters_of(name: str) -> frozenset[str]:
    """Returns the letters that an installed font has; none when it is not installed or cannot be read."""
    from matplotlib.font_manager import fontManager, get_font

    paths = [font.fname for font in fontManager.ttflist if font.name == name and font.style == "normal"]
    try:
        return frozenset(chr(code) for code in get_font(paths[0]).get_charmap()) if paths else frozenset()
    except RuntimeError:  # a colour font that FreeType has no outlines for
        return frozenset()


class Canvas:
    """A white page measured in inches, y downwards."""

    def __init__(self, wide: float, high: float, fonts: Type) -> None:
        from matplotlib.figure import Figure

        self.wide, self.high, self.fonts = wide, high, fonts
        self.figure = Figure(figsize=(wide, high), facecolor="white")

    def text(self, x: float, y: float, text: str, size: float = 8.0, **looks: Any) -> None:
        """Writes a text whose middle is at height y, from x on unless `ha` says otherwise; never as maths."""
        looks = {"va": "center", "color": TOKENS["light"]["ink2"], "family": list(self.fonts.families), **looks}
        shown = self.fonts.drawable(text)
        self.figure.text(x / self.wide, 1 - y / self.high, shown, fontsize=size, parse_math=False, **looks)

    def axes(self, x: float, y: float, wide: float, high: float) -> "Axes":
        """Returns axes without frame, ticks or background in the given box."""
        box = (x / self.wide, 1 - (y + high) / self.high, wide / self.wide, high / self.high)
        axes = self.figure.add_axes(box)
        axes.set_axis_off()
        return axes

    def box(self, x: float, y: float, wide: float, high: float, colour: str) -> None:
        """Fills a box, behind text."""
        self._rectangle(x, y, wide, high, facecolor=colour, edgecolor="none", zorder=0.5)

    def frame(self, x: float, y: float, wide: float, high: float) -> None:
        """Draws a hairline around a box."""
        self._rectangle(x, y, wide, high, fill=False, edgecolor=TOKENS["light"]["line"], linewidth=0.8)

    def _rectangle(self, x: float, y: float, wide: float, high: float, **looks: Any) -> None:
        from matplotlib.patches import Rectangle

        corner = (x / self.wide, 1 - (y + high) / self.high)
        place: Any = self.figure.transFigure
        self.figure.add_artist(Rectangle(corner, wide / self.wide, high / self.high, transform=place, **looks))

    def rule(self, x: float, end: float, y: float) -> None:
        """Draws a thin horizontal line."""
        self.box(x, y, end - x, 0.012, TOKENS["light"]["edge"])

    def pixels(self, x: float, y: float, cell: tuple[float, float], colours: Any, *, gaps: bool) -> "Axes":
        """Draws cells [row column rgb] of size (wide, high) and returns their axes, one unit a cell, row 0 on top."""
        rows, columns = colours.shape[:2]
        axes = self.axes(x, y, columns * cell[0], rows * cell[1])
        axes.imshow(colours, aspect="auto", interpolation="nearest", extent=(0, columns, rows, 0))
        axes.set_xlim(0, columns)
        axes.set_ylim(rows, 0)
        if gaps:
            for column in range(1, columns):
                axes.axvline(column, color="white", linewidth=1.2)
            for row in range(1, rows):
                axes.axhline(row, color="white", linewidth=1.2)
        return axes

    def scale(self, x: float, y: float, high: float, limit: float, size: float) -> None:
        """Draws the colours from +limit down to −limit, with both numbers and 0 beside them."""
        colours = np.array([[diverging(float(step))] for step in np.linspace(1, -1, 201)], np.uint8)
        self.pixels(x, y, (0.12, high / len(colours)), colours, gaps=False)
        ends = cell_number(limit).rstrip("0").rstrip(".") or "1"
        for share, text in ((0.0, f"+{ends}"), (0.5, "0"), (1.0, f"−{ends}")):
            self.text(x + 0.19, y + share * high, text, size)


_ROOM_FOR_NUMBERS = (0.33, 0.16)


def write_numbers(
    axes: "Axes", values: NDArray[np.float64], cell: tuple[float, float], *, limit: float, largest: float
) -> None:
    """Writes values [row column] into their cells where these have room; what is next to nothing is left out.

    Args:
        cell: width and height of one, in inches.
        limit: the value at the ends of the colours.
        largest: size of the text, in points; smaller in low cells.
    """
    if cell[0] < _ROOM_FOR_NUMBERS[0] or cell[1] < _ROOM_FOR_NUMBERS[1]:
        return
    for row, column in np.argwhere(np.abs(np.nan_to_num(values)) >= CELL_LEAST):
        value = float(values[row, column])
        look: dict[str, Any] = {"color": text_on(diverging(value / limit)), "fontsize": min(largest, 52 * cell[1])}
        axes.text(column + 0.5, row + 0.5, cell_number(value), ha="center", va="center_baseline", **look)


def hatch(axes: "Axes", cells: NDArray[np.int64], *, fine: bool) -> None:
    """Draws −45° lines over cells without a value, and an outline where there is room for a fine one."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    inset = 0.06 if fine else 0.0
    boxes = [Rectangle((c + inset, r + inset), 1 - 2 * inset, 1 - 2 * inset) for r, c in cells]
    look: dict[str, Any] = {
        "facecolor": "none", "edgecolor": TOKENS["light"]["edge"], "linewidth": 0.7 if fine else 0.0,
    }  # fmt: skip
    axes.add_collection(PatchCollection(boxes, hatch="\\\\\\", **look))


def thinned(count: int, room: float, least: float) -> Sequence[int]:
    """Returns which of `count` labels to write when each has `room` and needs `least`."""
    return range(0, count, max(1, -int(-least // room)))
