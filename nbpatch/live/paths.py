"""Answers of the paths tab: all senders into one receiver, or one sender into all receivers, as one map by name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from nbpatch.errors import NbpatchError, PlanError, suggest
from nbpatch.live.question import Question, Reply
from nbpatch.methods.paths import RECEIVERS, SENDERS, path_patch
from nbpatch.metrics import Metric, as_metrics
from nbpatch.plan import DIRECTIONS, NOT_RUN
from nbpatch.prompts import PromptPair
from nbpatch.result import Result
from nbpatch.sites import ModelShape
from nbpatch.view import payload

SHOWN = ("paths", "shown")
"""Under which key of `Question.kept` the result stands that the tab has shown last."""

_ENDS = {"sender": tuple(SENDERS), "receiver": tuple(RECEIVERS)}
"""What a map is over, by its axis, in the order it is run: heads first, they are what is looked for."""

_PLURAL = {
    "z": "heads", "mlp_out": "MLPs", "embed": "embeddings", "q": "queries", "k": "keys", "v": "values", "mlp": "MLPs",
    "logits": "logits",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What the tab wants to see of one pair.

    Attributes:
        axis: which end is swept, "sender" or "receiver".
        end: the other end, in the words of `path_patch`.
    """

    pair: PromptPair
    axis: str
    end: str
    variant: str
    direction: str
    metric: str

    def ends(self, kind: str) -> tuple[str, str]:
        """Returns senders and receivers of the part of the map that is over one kind."""
        return (kind, self.end) if self.axis == "sender" else (self.end, kind)

    def code(self) -> str:
        """Returns Python for the first part of the map."""
        senders, receivers = self.ends(_ENDS[self.axis][0])
        rest = "".join(
            f", {name}={value!r}"
            for name, value, usual in (
                ("variant", self.variant, "direct"),
                ("direction", self.direction, "denoising"),
                ("metric", self.metric, "logit_diff"),
            )
            if value != usual
        )
        return f"nbp.path_patch(model, pair, {senders!r}, {receivers!r}{rest})"


def answer_paths(question: Question) -> Iterator[Reply]:
    """Yields the map as far as it is run: one reply for each kind of sender or receiver, one only when it is kept.

    The question's content has `sender` and `receiver`, `variant`, `direction`, `metric` and the number of the `pair`.
    With a receiver the map is over all senders into it; else over all receivers of the sender; else into the logits.

    Raises:
        NbpatchError: what `path_patch` raises, when no kind can be run.
    """
    asked, metric = _read(question)
    key = ("paths", asked)
    if key not in question.kept:
        parts: dict[str, Result] = {}
        refused: dict[str, NbpatchError] = {}
        kinds = _ENDS[asked.axis]
        for number, kind in enumerate(kinds):
            senders, receivers = asked.ends(kind)
            ways: dict[str, Any] = {"variant": asked.variant, "direction": asked.direction, "metric": metric}
            try:
                parts[kind] = path_patch(question.model, asked.pair, senders, receivers, **ways)
            except NbpatchError as error:
                refused[kind] = error
            if parts and number < len(kinds) - 1:
                yield _reply(asked, joined(asked, parts, question.model.shape), kinds[number + 1 :], refused)
        if not parts:
            raise next(iter(refused.values()))
        question.kept[key] = joined(asked, parts, question.model.shape), refused
    result, refused = question.kept[key]
    question.kept[SHOWN] = result
    yield _reply(asked, result, (), refused)


def _read(question: Question) -> tuple[Asked, Metric]:
    """Returns what a message asks for, and its metric, which may be a function of the workbench."""
    said, ask = question.content, question.ask
    direction = str(said.get("direction") or ask.direction)
    if direction not in DIRECTIONS:
        fix = suggest(direction, DIRECTIONS)
        raise PlanError("a map of paths has one direction.", where="direction", seen=repr(direction), fix=fix)
    name = str(said.get("metric") or ask.metric)
    metric = next((one for one in ask.metrics if one.name == name), None) or as_metrics(name)[0]
    number = min(max(int(said.get("pair", ask.pair)), 0), len(ask.pairs) - 1)
    sender, receiver = said.get("sender"), said.get("receiver")
    axis = "receiver" if sender and not receiver else "sender"
    end = str(sender if axis == "receiver" else receiver or "logits")
    variant = str(said.get("variant") or "direct")
    return Asked(ask.pairs[number], axis, end, variant, direction, metric.name), metric


def names_of(kind: str, shape: ModelShape) -> list[str]:
    """Returns all senders or receivers of a kind, as `path_patch` names them, in the order of its axes."""
    axes = {**SENDERS, **RECEIVERS}[kind]
    if not axes:
        return [kind]
    if len(axes) == 1:
        return [f"{kind}[{layer}]" for layer in range(shape.n_layers)]
    heads = shape.n_kv_heads if kind in ("k", "v") else shape.n_heads
    return [f"{kind}[{layer}.{head}]" for layer in range(shape.n_layers) for head in range(heads)]


def joined(asked: Asked, parts: Mapping[str, Result], shape: ModelShape) -> Result:
    """Returns sweeps over several kinds as one result over their names; kinds that are not there yet are "not run"."""
    first = next(iter(parts.values()))
    names = {kind: names_of(kind, shape) for kind in _ENDS[asked.axis]}
    dims = (asked.axis, "pair")
    values = [_flat(parts[kind].data[asked.metric]) if kind in parts else _fill(names[kind], np.nan) for kind in names]
    states = [_flat(parts[kind].data["state"]) if kind in parts else _fill(names[kind], NOT_RUN) for kind in names]
    data = xr.Dataset(
        {asked.metric: (dims, np.concatenate(values), first.data[asked.metric].attrs)},
        coords={
            asked.axis: [name for kind in names for name in names[kind]],
            "pair": first.data["pair"].to_numpy(),
            "state": (dims, np.concatenate(states).astype(np.int8)),
        },
    )
    senders, receivers = asked.ends(" ".join(names))
    swept = ", ".join(_PLURAL[kind] for kind in names)
    made = {
        **first.provenance,
        "over": [asked.axis],
        "senders": senders,
        "receivers": receivers,
        "component": f"{senders} → {receivers}",
        "component_label": " → ".join(asked.ends(swept)),
        "engine": _spent([one.provenance["engine"] for one in parts.values()]),
    }
    warnings = dict.fromkeys(warning for one in parts.values() for warning in one.warnings)
    return replace(first, data=data, provenance=made, warnings=tuple(warnings))


def _flat(values: xr.DataArray) -> np.ndarray[Any, np.dtype[Any]]:
    """Returns values [*over pair] as [cell pair]."""
    found = values.to_numpy()
    return found.reshape(-1, found.shape[-1])


def _fill(names: Sequence[str], value: float) -> np.ndarray[Any, np.dtype[Any]]:
    return np.full((len(names), 1), value)


def _spent(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what several runs took together."""
    counted = ("cells", "exact", "no_path", "run", "runs", "waves", "flops", "seconds")
    return {**runs[0], **{name: sum(one.get(name, 0) for one in runs) for name in counted}}


def _reply(asked: Asked, result: Result, to_come: Sequence[str], refused: Mapping[str, NbpatchError]) -> Reply:
    (one,) = payload.maps_of(result, asked.metric, final=not to_come)
    left_out = [{"what": _PLURAL[kind], "why": error.what} for kind, error in refused.items()]
    said = {
        "map": one.head,
        "axis": asked.axis,
        "end": asked.end,
        "to_come": [_PLURAL[kind] for kind in to_come],
        "left_out": left_out,
        "words": result.card(),
        "code": asked.code(),
    }
    return said, [one.effect.tobytes(), one.state.tobytes()]
