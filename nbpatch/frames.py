"""What the state of a cell means, and tables of cells as text."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

STATES: tuple[str, ...] = ("measured", "exact", "not run", "no position", "failed", "no causal path")
"""What a cell's `state` means: measured; the base value by construction, never run; the others are NaN."""

REASONS: Mapping[str, str] = {
    "measured": "measured",
    "exact": "exactly the base value: nothing that this patch changes can reach the answer",
    "not run": "not run: the run was stopped before this cell",
    "no position": "this pair has no such position, or none aligned with it",
    "failed": "the patched run gave NaN logits",
    "no causal path": "the receiver reads the stream before this sender writes to it",
}


def written(frame: pd.DataFrame) -> list[str]:
    """Returns a frame as aligned lines, numbers with a sign and as many decimals as the largest needs."""
    if frame.empty:
        return ["no cell has a value"]
    shown = frame.drop(columns="state")
    for name in ("effect", "share", "recovered"):
        places = digits(frame[name].abs().max())
        shown[name] = [f"{value:+.{places}f}" for value in frame[name]]
    for name in frame.columns:
        if name.endswith("_token"):
            shown[name] = [repr(value) for value in frame[name]]
    return shown.to_string(index=False).splitlines()


def digits(most: float) -> int:
    """Returns how many decimals show two figures of the largest of some numbers; two at least, eight at most."""
    return min(8, max(2, 1 - math.floor(math.log10(most)))) if most > 0 else 2


def digits_of(values: Sequence[float]) -> int:
    """Returns how many decimals show two figures of the largest of some numbers."""
    return digits(max((abs(value) for value in values if math.isfinite(value)), default=0.0))
