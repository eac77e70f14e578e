"""Tables of cells as text."""

import math

import pandas as pd


def written(frame: pd.DataFrame) -> list[str]:
    """Returns a frame as aligned lines, numbers with a sign and as many decimals as the largest needs."""
    if frame.empty:
        return ["no cell has a value"]
    shown = frame.drop(columns="state")
    for name in ("effect", "share", "recovered"):
        digits = _digits(frame[name].abs().max())
        shown[name] = [f"{value:+.{digits}f}" for value in frame[name]]
    for name in frame.columns:
        if name.endswith("_token"):
            shown[name] = [repr(value) for value in frame[name]]
    return shown.to_string(index=False).splitlines()


def _digits(most: float) -> int:
    """Returns how many decimals show two figures of the largest of some numbers; two at least, eight at most."""
    return min(8, max(2, 1 - math.floor(math.log10(most)))) if most > 0 else 2
