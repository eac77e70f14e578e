"""Edges as a value before they are run: which senders, which receivers, which edges exist, and their rows.

An edge leads from what one part writes into the residual stream to one other part's own copy of its input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbpatch.engine.rows import COMPONENT_NAMES, HEADS, MLP, PRE, WHOLE, Ints, Rows
from nbpatch.errors import PlanError, SiteError, suggest
from nbpatch.metrics import Metric, check_wrong
from nbpatch.plan import DIRECTIONS, EXACT, NO_PATH, NOT_RUN, Direction, Plan, refuse_unequal
from nbpatch.prompts import TokenizedPair
from nbpatch.sites import ModelShape

SENDERS: dict[str, tuple[str, ...]] = {
    "z": ("sender_layer", "sender_head"),
    "mlp_out": ("sender_layer",),
    "embed": (),
}
"""What can send, and the axes it is told apart by."""

RECEIVERS: dict[str, tuple[str, ...]] = {
    "q": ("layer", "head"),
    "k": ("layer", "head"),
    "v": ("layer", "head"),
    "mlp": ("layer",),
    "logits": (),
}
"""What can receive, and the axes it is told apart by."""

LABELS = {
    "z": "attention heads", "mlp_out": "MLP outputs", "embed": "embeddings", "q": "query inputs", "k": "key inputs",
    "v": "value inputs", "mlp": "MLP inputs", "logits": "the final norm’s input",
}  # fmt: skip


_ENTERS = {"q": ("z", HEADS), "k": ("z", HEADS), "v": ("z", HEADS), "mlp": ("mlp_out", MLP), "logits": ("z", PRE)}
"""As which component and in which way a receiver's changed output enters the walk."""


@dataclass(frozen=True)
class EdgePlan(Plan):
    """A sweep over edges before it is run; `states` has the axes (direction, *over, pair).

    Attributes:
        senders: a key of `SENDERS`; receivers: a key of `RECEIVERS`.
    """

    senders: str = "z"
    receivers: str = "q"

    def made(self) -> dict[str, object]:
        """Returns what a result's provenance says of the method and the two ends."""
        return {
            "method": "path_patch",
            "variant": "direct",
            "senders": self.senders,
            "receivers": self.receivers,
            "component": self.component,
            "component_label": f"{LABELS[self.senders]} → {LABELS[self.receivers]}",
        }

    def axis_labels(self, axis: str) -> Sequence[object] | None:
        """Returns the labels of the receivers' heads; None where an axis has its numbers."""
        return self.shape.head_labels(self.receivers) if axis == "head" else None

    def axes_of(self, cells: Ints) -> dict[str, Ints]:
        """Returns, for flat cells, their index along direction, every swept axis and pair."""
        names = ("direction", *self.over, "pair")
        return dict(zip(names, np.unravel_index(cells, self.states.shape), strict=True))

    def describe(self) -> str:
        """Returns the plan in words: edges, what is run, what is known without running."""
        none = int((self.states == NO_PATH).sum())
        lines = [
            f"{self.senders} → {self.receivers} over {' '.join(self.over) or 'nothing'}, "
            f"{' and '.join(self.directions)}: {self.n_cells} cells × {len(self.tokenized)} pairs.",
            f"{self.n_runs} runs.",
        ]
        return "\n".join([*lines, *([f"{none} without a causal path."] if none else [])])


def make_edge_plan(
    shape: ModelShape,
    tokenized: Sequence[TokenizedPair],
    ends: tuple[str, str],
    over: str | Sequence[str] | None = None,
    *,
    direction: str,
    metrics: Sequence[Metric],
    parallel: Sequence[bool],
) -> EdgePlan:
    """Returns the plan of a sweep over edges.

    Args:
        ends: senders and receivers.
        over: all swept axes, in the order of the result; None for sender axes first.
        parallel: per layer, whether attention and MLP read the same input, so that no head precedes that MLP.

    Raises:
        SiteError: unknown senders or receivers.
        PlanError: an unknown direction, axes that are not those of the ends, no pairs, or unequal lengths.
        MetricError: a metric that needs a wrong answer where a pair has none.
    """
    senders, receivers = ends
    axes = edge_axes(senders, receivers, over)
    directions: tuple[Direction, ...] = tuple(one for one in DIRECTIONS if direction in (one, "both"))
    if not directions:
        raise PlanError(
            f"no direction {direction!r}.", where="direction", fix=suggest(direction, [*DIRECTIONS, "both"])
        )
    refuse_pairs(tokenized)
    check_wrong(metrics, {i: one.wrong_ids for i, one in enumerate(tokenized)})
    units = shape.n_kv_heads if receivers in ("k", "v") else shape.n_heads
    layers = shape.n_layers
    sizes = {"sender_layer": layers, "sender_head": shape.n_heads, "layer": layers, "head": units}
    states = np.full((len(directions), *(sizes[axis] for axis in axes), len(tokenized)), NOT_RUN, np.int8)
    place = {axis: _along(np.arange(sizes[axis]), axes, axis) for axis in axes}
    path = _paths(senders, receivers, place, np.array(parallel, np.bool_))
    for number, one in enumerate(tokenized):
        exact = _exact(senders, receivers, place, one, layers)
        states[..., number] = np.where(path, np.where(exact, EXACT, NOT_RUN), NO_PATH)
    return EdgePlan(
        shape, tuple(tokenized), f"{senders} → {receivers}", axes, directions, tuple(metrics), states,
        senders=senders, receivers=receivers,
    )  # fmt: skip


def edge_axes(senders: str, receivers: str, over: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the axes of a sweep over edges, in the asked order.

    Raises:
        SiteError: unknown senders or receivers.
        PlanError: other axes than those of the two ends.
    """
    for name, word, known in (("senders", senders, SENDERS), ("receivers", receivers, RECEIVERS)):
        if word not in known:
            raise SiteError(f"no {name} {word!r}.", where=name, fix=suggest(word, known))
    axes = (*SENDERS[senders], *RECEIVERS[receivers])
    asked = axes if over is None else tuple(over.replace(",", " ").split() if isinstance(over, str) else over)
    if sorted(asked) != sorted(axes):
        raise PlanError(
            f"edges from {senders} to {receivers} are swept over all of their axes.",
            where="over",
            seen=repr(over),
            fix=f'over="{" ".join(axes)}", in any order',
        )
    return asked


def refuse_pairs(tokenized: Sequence[TokenizedPair]) -> None:
    """Refuses pairs that no edge can be tried on.

    Raises:
        PlanError: none, or prompts of unequal length.
    """
    if not tokenized:
        fix = "nbp.PromptPair(clean=…, corrupted=…, answer=…, wrong=…)"
        raise PlanError("no prompt pairs.", where="pairs", fix=fix)
    what = "edges need prompts of equal length: a sender's change is added position by position."
    refuse_unequal(tokenized, what, "two prompts with the same number of tokens")


def _paths(senders: str, receivers: str, place: dict[str, Ints], parallel: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns where the receiver reads the stream after the sender has written to it [*over, broadcast]."""
    if senders == "embed" or receivers == "logits":
        return np.ones([1] * len(place), np.bool_)
    sender, layer = place["sender_layer"], place["layer"]
    if (senders, receivers) == ("z", "mlp"):
        return (sender < layer) | ((sender == layer) & ~parallel[layer])
    return sender < layer


def _exact(
    senders: str, receivers: str, place: dict[str, Ints], one: TokenizedPair, n_layers: int
) -> NDArray[np.bool_]:
    """Returns where an edge carries no change by construction [*over, broadcast].

    Without a differing token there is none; embeddings differ at the differing tokens only, and at the end of the
    model only the answer position is read.
    """
    same, every = one.first_difference is None, [1] * len(place)
    if same or senders != "embed" or one.clean_end in one.differs or receivers in ("k", "v"):
        return np.full(every, same)
    return place["layer"] == n_layers - 1 if "layer" in place else np.ones(every, np.bool_)


def _along(values: Ints, axes: tuple[str, ...], axis: str) -> Ints:
    return values.reshape([-1 if name == axis else 1 for name in axes])


def edge_rows(plan: EdgePlan) -> Rows:
    """Returns the runs that a plan has to make; their sources are set when their values are there."""
    cell = np.flatnonzero(plan.states == NOT_RUN)
    axes = plan.axes_of(cell)
    n_layers = plan.shape.n_layers
    whole, pair = np.full(len(cell), WHOLE), axes["pair"]
    denoising = np.array([direction == "denoising" for direction in plan.directions])[axes["direction"]]
    run = 2 * pair + denoising
    component, kind = _ENTERS[plan.receivers]
    layer = axes.get("layer", np.full(len(cell), n_layers))
    last = np.array([one.clean_end for one in plan.tokenized])[pair]
    differs = np.array([one.first_difference or 0 for one in plan.tokenized])[pair]
    # A key-value head reaches every query head that shares it: such a row takes a z of its own, whole.
    shared = plan.receivers in ("k", "v") and plan.shape.grouped
    return Rows(
        plan=np.zeros(len(cell), np.int64),
        cell=cell,
        component=np.full(len(cell), COMPONENT_NAMES.index(component)),
        kind=np.full(len(cell), kind),
        layer=layer,
        run=run,
        source=run ^ 1,
        pos=whole,
        first=np.where(layer >= n_layers - 1, last, differs),
        last=last,
        alone=np.zeros(len(cell), np.bool_),
        head=whole if shared else axes.get("head", whole),
        neuron=whole,
        src=whole,
        joint=whole,
    )
