"""A result as what the front end draws: one JSON description of everything, and maps as flat arrays.

The same functions serve a live widget, the maps of a run that is still going, and an exported page.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nbpatch.metrics import METRICS
from nbpatch.result import STATES, Result
from nbpatch.sites import COMPONENTS, SWEEPABLE

VERSION = 1

MOST_SAVED = 100_000
"""Characters of numbers that a widget's saved state may hold."""

Message: TypeAlias = dict[str, Any]

_MEASURED, _EXACT, _NOT_RUN, _NO_POSITION, _FAILED, _NO_PATH = range(len(STATES))

_SHORT = {
    "resid_pre": "Residual", "resid_mid": "Residual mid", "resid_post": "Residual post", "attn_out": "Attention out",
    "mlp_out": "MLP out", "z": "Heads", "q": "Q", "k": "K", "v": "V", "pattern": "Patterns",
    "mlp_post": "Neurons",
}  # fmt: skip


@dataclass(frozen=True)
class Map:
    """One heat map: a direction, a metric, one pair.

    Attributes:
        head: everything about it but the numbers; fit for JSON.
        effect: m(patched) − m(base) [*over] in the metric's unit, NaN where there is none.
        state: indices into `result.STATES` [*over].
    """

    head: Message
    effect: NDArray[np.float32]
    state: NDArray[np.uint8]

    def message(self, gen: int) -> tuple[Message, list[bytes]]:
        """Returns the map as a message and its two buffers."""
        return {**self.head, "gen": gen}, [self.effect.tobytes(), self.state.tobytes()]

    def document(self) -> Message:
        """Returns the map with its arrays as base64, for a page without a kernel."""
        return {**self.head, "effect64": to_base64(self.effect), "state64": to_base64(self.state)}


def maps_of(result: Result, metric: str | None = None, *, pair: int = 0, final: bool = True) -> list[Map]:
    """Returns one map for each direction of a sweep's result."""
    name = metric or result.metrics[0]
    data = result.data[name].isel(pair=pair)
    states = result.data["state"].isel(pair=pair)
    directions = list(data["direction"].to_numpy()) if "direction" in data.dims else [result.provenance["direction"]]
    both = {run: float(result.baselines[run].sel(metric=name).isel(pair=pair)) for run in ("clean", "corrupted")}
    coords = {axis: labels(data[axis]) for axis in result.over}
    maps: list[Map] = []
    for direction in directions:
        one, state = (a.sel(direction=direction) if "direction" in a.dims else a for a in (data, states))
        key = {**key_of(result.provenance, str(direction)), "metric": name, "pair": pair}
        values, codes = one.to_numpy(), state.to_numpy()
        maps.append(
            build_map(values, codes, key, both, coords=coords, unit=str(data.attrs.get("unit", "")), final=final)
        )
    return maps


def small_maps(result: Result, metric: str, *, pair: int = 0) -> list[Message]:
    """Returns the maps of a finished sweep for the widget's saved state; none that would make a notebook heavy."""
    if bool((result.data["state"] == _NOT_RUN).any()):
        return []
    found = [one.document() for one in maps_of(result, metric, pair=pair)]
    return found if sum(len(one["effect64"]) + len(one["state64"]) for one in found) <= MOST_SAVED else []


def key_of(made: Mapping[str, Any], direction: str) -> Message:
    """Returns what tells a map from others of the same pairs, but for metric and pair."""
    corruption = made.get("corruption", "counterfactual")
    return {
        "component": made["component"],
        "over": list(made["over"]),
        "direction": direction,
        "corruption": corruption,
    }


def build_map(
    values: NDArray[np.float64],
    state: NDArray[np.int8],
    key: Message,
    baselines: Mapping[str, float],
    *,
    coords: Mapping[str, Sequence[int | str]],
    unit: str,
    final: bool,
) -> Map:
    """Returns the map of values m(patched) [*over] with their states."""
    base = baselines["corrupted" if key["direction"] == "denoising" else "clean"]
    head: Message = {
        "v": VERSION,
        "type": "map",
        "key": key,
        "direction": key["direction"],
        "dims": key["over"],
        "shape": list(values.shape),
        "coords": {axis: list(named) for axis, named in coords.items()},
        "unit": unit,
        "base": base,
        "clean": baselines["clean"],
        "corrupted": baselines["corrupted"],
        "gap": baselines["clean"] - baselines["corrupted"],
        "name": "effect",
        "final": final,
    }
    return Map(head, (values - base).astype(np.float32), state.astype(np.uint8))


def labels(axis: xr.DataArray) -> list[int | str]:
    """Returns an axis' labels as JSON takes them."""
    return [value if isinstance(value, str) else int(value) for value in axis.to_numpy().tolist()]


def blank(view: str, made: Mapping[str, Any] | None = None, *, direction: str = "denoising") -> Message:
    """Returns the description of a single view without a sweep.

    Args:
        view: the one view.
        made: provenance with a model and pairs, if the view shows some.
    """
    kept = ("clean", "corrupted", "answer", "wrong", "clean_tokens", "corrupted_tokens", "differs", "has_bos")
    none: Message = {**dict.fromkeys(kept, ""), **{name: [] for name in kept[2:7]}, "clean_end": 0, "corrupted_end": 0}
    model = {"name": "", "n_layers": 0, "n_heads": 0, "n_kv_heads": 0, "device": ""}
    more: Message = {"clean_top": [], "corrupted_top": [], "metrics": {}}
    return {
        "pairs": [{**{key: pair[key] for key in none}, **more} for pair in (made["pairs"] if made else [none])],
        "pair": 0,
        "component": "",
        "over": [],
        "direction": direction,
        "metric": "",
        "metrics": [],
        "components": [],
        "model": {key: made["model"][key] for key in model} if made else model,
        "warnings": [],
        "card": "",
        "can_run": True,
        "view": view,
        "exports": [],
    }


def describe(
    result: Result, *, pair: int = 0, metric: str | None = None, can_run: bool, works: Mapping[str, str]
) -> Message:
    """Returns the description of everything on screen but the maps.

    Args:
        can_run: whether there is a kernel with a model behind the page.
        works: reason per component that cannot be chosen; absent = it can.
    """
    made = result.provenance
    return {
        "pairs": [_describe_pair(result, number) for number in range(len(made["pairs"]))],
        "pair": pair,
        "component": made["component"],
        "over": list(made["over"]),
        "direction": made["direction"],
        "corruption": made.get("corruption", "counterfactual"),
        "corruptions": _sources(made, can_run=can_run),
        "metric": metric or result.metrics[0],
        "metrics": _metrics(made["metrics"], can_run=can_run),
        "components": [
            {
                "name": name,
                "label": COMPONENTS[name].label,
                "short": _SHORT[name],
                "works": name not in works,
                "reason": works.get(name, ""),
            }
            for name in SWEEPABLE
        ],
        "model": {key: made["model"][key] for key in ("name", "n_layers", "n_heads", "n_kv_heads", "device")},
        "warnings": list(result.warnings),
        "concerns": [_concerns(warning) for warning in result.warnings],
        "card": result.card(),
        "engine": {key: made["engine"][key] for key in ("run", "exact", "seconds")},
        "can_run": can_run,
        "view": "workbench",
        "exports": ["png", "svg", "csv", "nc", "html", "python", "magic"] if can_run else ["png", "svg", "csv"],
    }


_CONCERNS = {
    "clean": r"The clean prompt (ends|begins)",
    "corrupted": r"The corrupted prompt (ends|begins)|The prompts (are the same|of pair .* differ)",
    "answer": r"The clean run of pair .* does not prefer",
    "wrong": r"Small gap\.|No gap\.|The corrupted prompt does better",
}
"""What a warning about the prompts begins with, by the field it concerns."""


def _concerns(warning: str) -> str | None:
    """Returns the field that a warning concerns; None for one about the sweep."""
    text = re.sub(r"^Pair \d+: ", "", warning)
    return next((field for field, begins in _CONCERNS.items() if re.match(begins, text)), None)


def _metrics(measured: Sequence[Mapping[str, Any]], *, can_run: bool) -> list[Message]:
    """Returns the metrics to choose from: those measured, and with a kernel all others that have a name."""
    offered = [{key: metric[key] for key in ("name", "unit", "label")} for metric in measured]
    names = {metric["name"] for metric in offered}
    more = [metric.describe() for name, metric in METRICS.items() if name not in (*names, "accuracy", "max_logit_diff")]
    return [*offered, *({key: one[key] for key in ("name", "unit", "label")} for one in more if can_run)]


_SOURCES = {"counterfactual": "other prompt", "zero": "zero", "mean": "mean", "resample": "resample"}


def _sources(made: Mapping[str, Any], *, can_run: bool) -> list[Message]:
    """Returns where values may come from: with the reason where they cannot."""
    now, few = made.get("corruption", "counterfactual"), len(made["pairs"]) < 2
    return [
        {
            "name": name,
            "label": label,
            "off": "Needs several pairs." if few and name in ("mean", "resample") and name != now else "",
            "words": made.get("corruption_words", "") if name == now else "",
        }
        for name, label in _SOURCES.items()
        if can_run or name == now
    ]


def _describe_pair(result: Result, number: int) -> Message:
    pair = result.provenance["pairs"][number]
    kept = ("clean", "corrupted", "answer", "wrong", "clean_tokens", "corrupted_tokens", "differs", "has_bos")
    aligned = pair.get("aligned", ())
    unequal = aligned and aligned != [[place, place] for place in range(len(pair["clean_tokens"]))]
    return {
        **{key: pair[key] for key in (*kept, "clean_end", "corrupted_end", "clean_top", "corrupted_top")},
        **({"aligned": aligned} if unequal else {}),
        "metrics": {
            name: {
                run: float(result.baselines[run].sel(metric=name).isel(pair=number)) for run in ("clean", "corrupted")
            }
            for name in result.metrics
        },
    }


def attention_message(attention: Result, layer: int, *, pair: int = 0) -> tuple[Message, NDArray[np.float32]]:
    """Returns one layer's patterns [run head dest src] of an attention result, as a message and its numbers."""
    pattern = attention.data["pattern"].isel(layer=layer, pair=pair).transpose("run", "head", "dest", "src")
    values = pattern.to_numpy().astype(np.float32)
    head: Message = {
        "v": VERSION,
        "type": "attention",
        "layer": layer,
        "pair": pair,
        "head_count": values.shape[1],
        "shape": list(values.shape),
    }
    return head, values


def to_base64(values: NDArray[Any]) -> str:
    """Returns an array's bytes as base64 text."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
