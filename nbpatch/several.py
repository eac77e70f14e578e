"""Results of several components that were run together, as one: a leading axis `component`, and back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nbpatch.result import STATES, Result

_OWN = ("component", "component_label", "engine")
"""What of the provenance belongs to one component."""

_NO_POSITION = STATES.index("no position")


def together(results: Sequence[Result]) -> Result:
    """Returns results over the same axes as one with a leading axis `component`.

    Where components are split into different heads (keys and values under grouped-query attention), the axis holds
    the labels of all and a component is NaN, "no position", where it has no such head.
    """
    first = results[0]
    names = [str(one.provenance["component"]) for one in results]
    labels = list(dict.fromkeys(label for one in results for label in _heads(one)))
    mixed = len({type(label) for label in labels}) > 1
    parts = [_spread(one.data, labels, mixed=mixed) for one in results]
    joined: Any = xr.concat(parts, pd.Index(names, dtype=object, name="component"))
    made = {
        **first.provenance,
        "component": " ".join(names),
        "components": {
            name: {key: one.provenance[key] for key in _OWN} for name, one in zip(names, results, strict=True)
        },
        "component_label": "sites of several components",
        "engine": _summed([one.provenance["engine"] for one in results]),
    }
    warnings = tuple(dict.fromkeys(warning for one in results for warning in one.warnings))
    origin = None if first.origin is None else {name: one.origin for name, one in zip(names, results, strict=True)}
    return replace(first, data=joined.set_coords("state"), provenance=made, warnings=warnings, origin=origin)


def _heads(one: Result) -> list[Any]:
    return one.data["head"].to_numpy().tolist() if "head" in one.data.dims else []


def _spread(data: xr.Dataset, labels: Sequence[Any], *, mixed: bool) -> xr.Dataset:
    """Returns a component's data on the heads of all components."""
    flat: Any = data.reset_coords("state")
    if mixed:
        flat = flat.assign_coords(head=[str(label) for label in flat["head"].to_numpy()])
        labels = [str(label) for label in labels]
    if not labels:
        return flat
    return flat.reindex(head=list(labels), fill_value={"state": np.int8(_NO_POSITION)})


def _summed(engines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns what one run of several components took: cells added up, everything else shared."""
    return {**engines[0], **{key: sum(one[key] for one in engines) for key in ("cells", "runs", "run", "exact")}}
