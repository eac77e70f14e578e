"""Results of several components that were run together, as one: a leading axis `component`, and back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from nbpatch.result import BESIDE, STATES, Result

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
    data = _joined(results, names, labels, mixed=mixed)
    return replace(first, data=data, provenance=made, warnings=warnings, origin=origin)


def _heads(one: Result) -> list[Any]:
    return one.data["head"].to_numpy().tolist() if "head" in one.data.dims else []


def _joined(results: Sequence[Result], names: Sequence[str], labels: Sequence[Any], *, mixed: bool) -> xr.Dataset:
    """Returns the components' data behind each other, on the heads of all of them."""
    example = results[0].data
    dims = tuple(str(dim) for dim in example["state"].dims)
    axis = dims.index("head") if "head" in dims else 0
    shape = [len(labels) if dim == "head" else example.sizes[dim] for dim in dims]
    spreads = [str(name) for name in example.coords if str(name).startswith(BESIDE)]
    values = {name: np.full((len(results), *shape), np.nan) for name in (*results[0].metrics, *spreads)}
    state = np.full((len(results), *shape), _NO_POSITION, np.int8)
    for number, one in enumerate(results):
        there = [labels.index(label) for label in _heads(one)] if labels else list(range(shape[axis]))
        where = (number, *(slice(None),) * axis, there)
        state[where] = np.moveaxis(one.data["state"].to_numpy(), axis, 0) if axis else one.data["state"].to_numpy()
        for name, table in values.items():
            table[where] = np.moveaxis(one.data[name].to_numpy(), axis, 0) if axis else one.data[name].to_numpy()
    kept = {"state", "head", *spreads}
    coords: dict[str, Any] = {str(name): example[name] for name in example.coords if name not in kept}
    if labels:
        coords["head"] = [str(label) for label in labels] if mixed else list(labels)
    coords["component"] = ("component", np.array(names, object))
    coords["state"] = (("component", *dims), state)
    coords.update({name: (("component", *dims), values.pop(name)) for name in spreads})
    data = {name: (("component", *dims), table, example[name].attrs) for name, table in values.items()}
    return xr.Dataset(data, coords=coords)


def _summed(engines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns what one run of several components took: cells added up, everything else shared.

    Where several engines made it, all are named, and their seconds are added up.
    """
    different = list({str(one["name"]): one for one in engines}.values())
    shared = {**engines[0], "name": " and ".join(str(one["name"]) for one in different)}
    shared["seconds"] = round(sum(one["seconds"] for one in different), 4)
    return {**shared, **{key: sum(one[key] for one in engines) for key in ("cells", "runs", "run", "exact")}}
