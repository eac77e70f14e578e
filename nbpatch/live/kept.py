"""The finished sweeps of a workbench, each direction on its own: what was run once comes back at once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import xarray as xr

from nbpatch.live.controls import Ask
from nbpatch.plan import DIRECTIONS
from nbpatch.result import Result


class Kept:
    """Finished sweeps by what was asked."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], Result] = {}

    def all(self) -> tuple[Result, ...]:
        """Returns all of them, one per direction."""
        return tuple(self._found.values())

    def missing(self, ask: Ask) -> list[str]:
        """Returns the directions asked for that are not finished."""
        return [direction for direction in ask.directions if ask.sweep(direction) not in self._found]

    def keep(self, ask: Ask, result: Result) -> Result:
        """Remembers a finished sweep and returns it."""
        if "direction" not in result.data.dims:
            self._found[ask.sweep(result.provenance["direction"])] = result
            return result
        for direction in DIRECTIONS:
            provenance = {**result.provenance, "direction": direction}
            one = replace(result, data=result.data.sel(direction=direction, drop=True), provenance=provenance)
            self._found[ask.sweep(direction)] = one
        return result

    def joined(self, ask: Ask, fresh: Result | None) -> Result:
        """Returns the result for all directions asked for, from what was just run and what was finished before."""
        if fresh is not None and fresh.provenance["direction"] == ask.direction:
            return fresh
        parts = [self._found.get(ask.sweep(direction), fresh) for direction in ask.directions]
        found = [part for part in parts if part is not None]
        if len(found) == 1:
            return found[0]
        # Cells have a state in each direction, also where both are alike.
        data = xr.concat([part.data for part in found], "direction", join="exact", coords=["state"], compat="equals")
        data = data.assign_coords(direction=list(ask.directions))
        provenance = {**found[-1].provenance, "direction": "both"}
        warnings = dict.fromkeys(w for part in found for w in part.warnings if not w.startswith("One direction only"))
        return replace(found[-1], data=data, provenance=provenance, warnings=tuple(warnings))

    def others(self, ask: Ask) -> Sequence[Result]:
        """Returns finished sweeps of the pairs on screen that are not on screen themselves."""
        shown = [self._found.get(ask.sweep(direction)) for direction in ask.directions]
        return [one for key, one in self._found.items() if key[0] == ask.pairs and not any(one is s for s in shown)]
