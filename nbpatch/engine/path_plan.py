"""Paths as a value before they are run: sets of senders, stages of receivers, which paths exist.

What is named by its kind alone is swept, one part after the other; what is named with layer and head is one set. A
path of several hops reads "k[1.2] -> q[2.1] -> logits".
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nbpatch.engine.edge_plan import LABELS, RECEIVERS, SENDERS
from nbpatch.engine.rows import Ints
from nbpatch.errors import PlanError, SiteError, suggest
from nbpatch.metrics import Metric
from nbpatch.plan import EXACT, NO_PATH, NOT_RUN, Direction, Plan
from nbpatch.prompts import TokenizedPair
from nbpatch.sites import ModelShape, Site, check_site

_PART = re.compile(r"(?P<kind>\w+)\s*(?:\[\s*(?P<layer>\d+)\s*(?:\.\s*(?P<head>\d+)\s*)?\])?")
_SITE_OF = {"mlp": "mlp_out"}
_HOP = "->"


@dataclass(frozen=True)
class End:
    """One end of a path: a sender ("z", "mlp_out", "embed") or a receiver ("q", "k", "v", "mlp", "logits").

    Attributes:
        layer, head: where; −1 where there is none. Of "k" and "v" the key-value head.
    """

    kind: str
    layer: int = -1
    head: int = -1

    def __str__(self) -> str:
        if self.layer < 0:
            return self.kind
        return f"{self.kind}[{self.layer}{f'.{self.head}' if self.head >= 0 else ''}]"


Ends: TypeAlias = tuple[End, ...]


@dataclass(frozen=True)
class Ways:
    """The paths of a sweep.

    Attributes:
        senders: the sets that are swept over, or one; stages: sets on the way; last: the sets that receive at the end,
            swept over, or one.
        sender_axes, axes: what they are swept over.
    """

    senders: tuple[Ends, ...]
    stages: tuple[Ends, ...]
    last: tuple[Ends, ...]
    sender_axes: tuple[str, ...]
    axes: tuple[str, ...]


def read_ways(senders: str | Sequence[str], receivers: str | Sequence[str], shape: ModelShape) -> Ways:
    """Reads both ends of paths.

    Raises:
        SiteError: what cannot send or receive, or what the model does not have.
        PlanError: nothing named, or a stage that does not name its parts.
    """
    hops = receivers.split(_HOP) if isinstance(receivers, str) else [receivers]
    *before, last = hops
    swept_senders = isinstance(senders, str) and senders.strip() in SENDERS
    swept = isinstance(last, str) and last.strip() in RECEIVERS
    stages = tuple(_set(stage, RECEIVERS, "receivers", shape) for stage in before)
    if any(end.kind == "logits" for stage in stages for end in stage):
        raise PlanError(
            "the logits are the end of every path.",
            where="receivers",
            seen=repr(receivers),
            fix='"q[2.1] -> logits": the logits behind the last "->"',
        )
    return Ways(
        tuple(_every(str(senders).strip(), shape)) if swept_senders else (_set(senders, SENDERS, "senders", shape),),
        stages,
        tuple(_every(str(last).strip(), shape)) if swept else (_set(last, RECEIVERS, "receivers", shape),),
        SENDERS[str(senders).strip()] if swept_senders else (),
        RECEIVERS[str(last).strip()] if swept else (),
    )


def _every(kind: str, shape: ModelShape) -> Iterator[Ends]:
    """Yields each part of a kind as a set of its own, in the order of the axes."""
    if kind in ("embed", "logits"):
        yield (End(kind),)
    elif kind in ("mlp_out", "mlp"):
        yield from ((End(kind, layer),) for layer in range(shape.n_layers))
    else:
        heads = range(shape.n_kv_heads if kind in ("k", "v") else shape.n_heads)
        yield from ((End(kind, *place),) for place in itertools.product(range(shape.n_layers), heads))


def _set(texts: str | Sequence[str], known: dict[str, tuple[str, ...]], name: str, shape: ModelShape) -> Ends:
    """Reads one set of ends: a list, or a text with spaces between them."""
    given = _split(texts) if isinstance(texts, str) else [str(one).strip() for one in texts]
    ends = tuple(dict.fromkeys(_end(text, known, name, shape) for text in given))
    if not ends:
        example = '"z[0.1]"' if name == "senders" else '"q[2.1] -> logits"'
        what = f'nothing stands beside a "{_HOP}".' if isinstance(texts, str) else f"no {name} named."
        raise PlanError(what, where=name, seen=repr(texts), fix=f"{name}={example}")
    return ends


def _split(text: str) -> list[str]:
    """Returns the parts of a text; one with a position, which no path has, is left whole to be refused."""
    return [text.strip()] if "@" in text else [one for one in re.split(r"[\s,]+", text.strip()) if one]


def _end(text: str, known: dict[str, tuple[str, ...]], name: str, shape: ModelShape) -> End:
    match = _PART.fullmatch(text)
    if match is None:
        raise SiteError(
            f"a path leads through whole parts, not {text!r}.", where=name, fix=f"{name}={_example(known, 'z')}"
        )
    kind, layer, head = match.groups()
    if kind not in known:
        raise SiteError(f"{kind} cannot be among the {name}.", where=f"{name}, {text!r}", fix=suggest(kind, known))
    axes = len(known[kind])
    if (layer is not None) + (head is not None) != axes:
        raise SiteError(
            f"{kind} is named with {('nothing', 'its layer', 'its layer and head')[axes]} in a set.",
            where=f"{name}, {text!r}",
            fix=_example(known, kind),
        )
    end = End(kind, -1 if layer is None else int(layer), -1 if head is None else int(head))
    if axes:
        check_site(Site(_SITE_OF.get(kind, kind), end.layer, None if head is None else end.head), shape)
    return end


def _example(known: dict[str, tuple[str, ...]], kind: str) -> str:
    kind = kind if kind in known else "q"
    return f'"{kind}{("", "[1]", "[1.0]")[len(known[kind])]}"'


# -- what leads where


def precedes(sender: End, receiver: End, parallel: Sequence[bool]) -> bool:
    """Returns whether a receiver reads the stream after a sender has written to it."""
    if sender.kind == "embed" or receiver.kind == "logits":
        return True
    if (sender.kind, receiver.kind) == ("z", "mlp") and sender.layer == receiver.layer:
        return not parallel[receiver.layer]
    return sender.layer < receiver.layer


def writers(receivers: Sequence[End], shape: ModelShape) -> Ends:
    """Returns the senders whose outputs depend on some receivers: all query heads of a key-value head."""
    shared = shape.n_heads // shape.n_kv_heads
    found: dict[End, None] = {}
    for one in receivers:
        if one.kind == "mlp":
            found[End("mlp_out", one.layer)] = None
        elif one.kind == "q":
            found[End("z", one.layer, one.head)] = None
        elif one.kind in ("k", "v"):
            heads = range(one.head * shared, (one.head + 1) * shared)
            found.update({End("z", one.layer, head): None for head in heads})
    return tuple(found)


@dataclass(frozen=True)
class PathPlan(Plan):
    """A sweep over paths before it is run; `states` has the axes (direction, *over, pair).

    Attributes:
        ways: which paths; variant: "direct", "wang" or "tree"; parallel: per layer, whether attention and MLP read the
            same input.
        named: senders and receivers as they were asked for.
    """

    ways: Ways | None = None
    variant: str = "direct"
    parallel: tuple[bool, ...] = ()
    named: tuple[str, str] = ("", "")

    def made(self) -> dict[str, object]:
        """Returns what a result's provenance says of the method and the ends."""
        senders, receivers = self.named
        label = f"{LABELS.get(senders, senders)} → {LABELS.get(receivers, receivers)}"
        return {
            "method": "path_patch",
            "variant": self.variant,
            "senders": senders,
            "receivers": receivers,
            "component": self.component,
            "component_label": label,
        }

    def axis_labels(self, axis: str) -> Sequence[object] | None:
        """Returns the labels of the receivers' heads; None where an axis has its numbers."""
        kind = self.ways.last[0][0].kind if self.ways is not None else ""
        return self.shape.head_labels(kind) if axis == "head" and kind else None

    def places(self, cells: Ints) -> dict[str, Ints]:
        """Returns, for flat cells, their direction and pair, and which set of senders and of receivers they are of."""
        names = ("direction", *self.over, "pair")
        index = dict(zip(names, np.unravel_index(cells, self.states.shape), strict=True))
        sizes = dict(zip(names, self.states.shape, strict=True))
        found = {name: index[name] for name in ("direction", "pair")}
        if self.ways is None:
            raise TypeError("a plan of paths has ways")
        for name, axes in (("sender", self.ways.sender_axes), ("last", self.ways.axes)):
            found[name] = np.zeros(len(cells), np.int64)
            for axis in axes:
                found[name] = found[name] * sizes[axis] + index[axis]
        return found


def make_path_plan(
    shape: ModelShape,
    tokenized: Sequence[TokenizedPair],
    ways: Ways,
    over: str | Sequence[str] | None,
    *,
    directions: tuple[Direction, ...],
    metrics: Sequence[Metric],
    parallel: tuple[bool, ...],
    variant: str,
) -> PathPlan:
    """Returns the plan of a sweep over paths; errors are those of `path_patch`."""
    axes = (*ways.sender_axes, *ways.axes)
    asked = axes if over is None else tuple(over.replace(",", " ").split() if isinstance(over, str) else over)
    if sorted(asked) != sorted(axes):
        fix = f'over="{" ".join(axes)}", in any order' if axes else "leave over out"
        raise PlanError("paths are swept over all axes of their ends.", where="over", seen=repr(over), fix=fix)
    units = shape.n_kv_heads if ways.last[0][0].kind in ("k", "v") else shape.n_heads
    sizes = {"sender_layer": shape.n_layers, "sender_head": shape.n_heads, "layer": shape.n_layers, "head": units}
    plan = PathPlan(
        shape,
        tuple(tokenized),
        "paths",
        asked,
        directions,
        tuple(metrics),
        np.full((len(directions), *(sizes[axis] for axis in asked), len(tokenized)), NOT_RUN, np.int8),
        ways=ways,
        variant=variant,
        parallel=parallel,
    )
    states = plan.states.ravel()
    cells = plan.places(np.arange(states.size))
    states[~_there(plan, ways)[cells["sender"], cells["last"]]] = NO_PATH
    same = np.array([one.first_difference is None for one in tokenized])[cells["pair"]]
    states[same & (states == NOT_RUN)] = EXACT
    return plan


def _there(plan: PathPlan, ways: Ways) -> NDArray[np.bool_]:
    """Returns which senders have a path to which last receivers [sender set, last set]."""
    there = np.zeros((len(ways.senders), len(ways.last)), np.bool_)
    for number, first in enumerate(ways.senders):
        senders = first
        for stage in ways.stages:
            senders = writers(_reached(senders, stage, plan.parallel), plan.shape)
        there[number] = [bool(_reached(senders, one, plan.parallel)) for one in ways.last]
    return there


def _reached(senders: Ends, receivers: Ends, parallel: Sequence[bool]) -> Ends:
    return tuple(one for one in receivers if any(precedes(sender, one, parallel) for sender in senders))
