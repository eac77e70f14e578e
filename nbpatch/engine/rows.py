"""The patched runs of one or several plans as rows: where each enters the model, at which positions, with which values.

Everything is numpy columns, one entry per row: a small model has hundreds of rows and milliseconds to run them in.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from nbpatch.corruption import Mean
from nbpatch.joint import SAME, JointPlan, Write
from nbpatch.plan import NOT_RUN, Plan
from nbpatch.prompts import TokenizedPair
from nbpatch.sites import COMPONENTS, acting

Ints = NDArray[np.int64]

PRE, HEADS, ATTN, NEURONS, MLP = range(5)
"""How a row enters: at a block's input; through the heads, what attention writes, the neurons, what the MLP writes."""

KINDS = {
    "resid_pre": PRE,
    "resid_post": PRE,
    "resid_mid": ATTN,
    "attn_out": ATTN,
    "mlp_out": MLP,
    "mlp_post": NEURONS,
    "z": HEADS,
    "q": HEADS,
    "k": HEADS,
    "v": HEADS,
    "pattern": HEADS,
}
COMPONENT_NAMES = tuple(KINDS)
WHOLE = -1
"""Stands for "all of that axis"."""

NOWHERE = -2
"""Stands for "at no position": the row begins as its base run."""


@dataclass(frozen=True)
class Rows:
    """Columns, all of one length.

    Attributes:
        plan: which plan the row belongs to; cell: where in its table, flat over (direction, *over, pair).
        component: index into `COMPONENT_NAMES`; kind: how it enters.
        layer: the block in which it enters.
        run: the base run it changes; source: the run its values come from.
        pos: the patched position, or WHOLE; first: the first position that can change; last: the answer position.
        alone: whether in the entry layer only `pos` can change.
        head: the patched head (of the component: a key-value head for k and v), or WHOLE.
        neuron: the patched neuron, or WHOLE; src: the patched source position of a pattern, or WHOLE.
        joint: which set of places is written over in the row, an index into `joints_of`; WHOLE for none.
    """

    plan: Ints
    cell: Ints
    component: Ints
    kind: Ints
    layer: Ints
    run: Ints
    source: Ints
    pos: Ints
    first: Ints
    last: Ints
    alone: NDArray[np.bool_]
    head: Ints
    neuron: Ints
    src: Ints
    joint: Ints

    def __len__(self) -> int:
        return len(self.plan)

    def take(self, index: NDArray[np.generic] | slice) -> "Rows":
        """Returns the rows of an index."""
        return Rows(**{one.name: getattr(self, one.name)[index] for one in fields(self)})

    @staticmethod
    def joined(parts: "Sequence[Rows]") -> "Rows":
        """Returns rows one after the other."""
        return Rows(**{one.name: np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Rows)})

    @property
    def enter(self) -> Ints:
        """The first block whose input differs from the base run at more than one position."""
        return np.where(self.kind == PRE, self.layer, self.layer + 1)

    @property
    def tokens(self) -> Ints:
        """How many tokens each row has once it is dense."""
        return self.last - self.first + 1


def rows_of(plans: Sequence[Plan]) -> Rows:
    """Returns all runs that several plans on the same pairs have to make."""
    numbers = {writes: number for number, writes in enumerate(joints_of(plans))}
    return Rows.joined(
        [
            _joint_rows(number, plan, numbers) if isinstance(plan, JointPlan) else _rows(number, plan)
            for number, plan in enumerate(plans)
        ]
    )


def joints_of(plans: Sequence[Plan]) -> list[tuple[Write, ...]]:
    """Returns the different sets of places that the runs of some plans write to."""
    found: dict[tuple[Write, ...], None] = {}
    for plan in plans:
        if isinstance(plan, JointPlan):
            found.update(dict.fromkeys(plan.written.values()))
    return list(found)


def base_rows(tokenized: Sequence[TokenizedPair], *, max_tokens: int) -> Iterator[Rows]:
    """Yields the base runs of all pairs as rows, at most `max_tokens` tokens or one pair at once, short prompts first.

    Each enters with its own embeddings: the clean run with all its tokens, the corrupted one with those from the first
    difference on.
    """
    order = np.argsort([len(one.clean_ids) for one in tokenized], kind="stable")
    ends = _base_rows(tokenized, order).tokens.reshape(-1, 2).sum(1).cumsum()
    begin = 0
    while begin < len(order):
        before = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + max_tokens, side="right")))
        yield _base_rows(tokenized, np.sort(order[begin:end]))
        begin = end


def _base_rows(tokenized: Sequence[TokenizedPair], pairs: Ints) -> Rows:
    chosen = [tokenized[pair] for pair in pairs]
    run = np.stack([2 * pairs, 2 * pairs + 1], 1).ravel()
    first = np.array([[0, one.first_difference or 0] for one in chosen]).ravel()
    last = np.array([[len(one.clean_ids) - 1] * 2 for one in chosen]).ravel()
    zero, whole = np.zeros(len(run), np.int64), np.full(len(run), WHOLE)
    return Rows(
        plan=whole,
        cell=whole,
        component=zero,
        kind=zero + PRE,
        layer=zero,
        run=run,
        source=run,
        pos=whole,
        first=first,
        last=last,
        alone=np.zeros(len(run), bool),
        head=whole,
        neuron=whole,
        src=whole,
        joint=whole,
    )


def _joint_rows(number: int, plan: JointPlan, numbers: Mapping[tuple[Write, ...], int]) -> Rows:
    """Returns the runs of a plan that writes at several places: they begin as base runs."""
    cell = np.flatnonzero(plan.states == NOT_RUN)
    direction, pair = (np.unravel_index(cell, plan.states.shape)[axis] for axis in (0, -1))
    denoising = np.array([one == "denoising" for one in plan.directions])[direction]
    run = 2 * pair + denoising
    writes = [plan.written[int(one)] for one in cell]
    differs = [plan.tokenized[one].first_difference or 0 for one in pair]
    whole = np.full(len(cell), WHOLE)
    first = [min(_first(one, parted) for one in some) for some, parted in zip(writes, differs, strict=True)]
    return Rows(
        plan=np.full(len(cell), number),
        cell=cell,
        component=np.zeros(len(cell), np.int64),
        kind=np.full(len(cell), PRE),
        layer=np.array([min(one.layer + (one.component == "resid_post") for one in some) for some in writes], np.int64),
        run=run,
        source=run ^ 1,
        pos=np.full(len(cell), NOWHERE),
        first=np.array(first, np.int64),
        last=np.array([one.clean_end for one in plan.tokenized])[pair],
        alone=np.zeros(len(cell), np.bool_),
        head=whole,
        neuron=whole,
        src=whole,
        joint=np.array([numbers[some] for some in writes], np.int64),
    )


def _first(write: Write, parted: int) -> int:
    """Returns the first position a write can change; runs are the same before they part, at one place."""
    if write.pos != WHOLE:
        return write.pos
    return parted if (write.from_layer, write.from_unit) == (SAME, SAME) else 0


def _rows(number: int, plan: Plan) -> Rows:
    cell = np.flatnonzero(plan.states == NOT_RUN)
    index = np.unravel_index(cell, plan.states.shape)
    axes = dict(zip(("direction", *plan.over, "pair"), index, strict=True))
    whole = np.full(len(cell), WHOLE)
    pair = axes["pair"]
    denoising = np.array([direction == "denoising" for direction in plan.directions])[axes["direction"]]
    run = 2 * pair + denoising
    pos = axes.get("dest" if plan.component == "pattern" else "pos", whole)
    differs = np.array([one.first_difference or 0 for one in plan.tokenized])[pair]
    component = acting(plan.component)
    later = component in ("k", "v")
    return Rows(
        plan=np.full(len(cell), number),
        cell=cell,
        component=np.full(len(cell), COMPONENT_NAMES.index(component)),
        kind=np.full(len(cell), KINDS[component]),
        layer=axes.get("layer", np.zeros(len(cell), np.int64)) + (component == "resid_post"),
        run=run,
        source=run ^ 1,
        pos=pos,
        first=np.where(pos == WHOLE, differs, pos),
        last=np.array([one.clean_end for one in plan.tokenized])[pair],
        alone=(pos != WHOLE) & (not later),
        head=axes.get("head", whole),
        neuron=axes.get("neuron", whole),
        src=axes.get("src", whole),
        joint=whole,
    )


def waves(rows: Rows, *, max_tokens: int, together: int = 0, taken: int = 0) -> Iterator[Rows]:
    """Yields the rows in groups of about equal size, at most `max_tokens` tokens or one row each.

    Rows are taken by the layer they enter in, deepest first, so that the blocks of a wave are full from its start and
    the first numbers come soon.

    Args:
        together: the number of pairs, where all pairs of a cell must be in one wave, for a metric that must see them
            all; 0 where not.
        taken: tokens that are in the first wave already.
    """
    if not len(rows):
        return
    cells = rows.cell // together if together else rows.cell
    order = np.lexsort((rows.last, rows.first, cells, rows.plan, -rows.enter))
    rows, cells = rows.take(order), cells[order]
    changes = np.flatnonzero((np.diff(cells) != 0) | (np.diff(rows.plan) != 0)) + 1 if together else None
    starts = np.arange(len(rows)) if changes is None else np.concatenate([[0], changes])
    ends = np.append(np.add.reduceat(rows.tokens, starts).cumsum() + taken, np.iinfo(np.int64).max)
    limit = min(max_tokens, np.ceil(ends[-2] / np.ceil(ends[-2] / max_tokens)) + rows.tokens.max())
    begin = 0
    while begin < len(starts):
        before = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield rows.take(slice(starts[begin], starts[end] if end < len(starts) else len(rows)))
        begin = end


def fits(plan: Plan) -> str:
    """Returns why a plan cannot go through the frontier, or ""."""
    joint = isinstance(plan, JointPlan)
    if "layer" not in plan.over and not joint and "layer" in COMPONENTS[plan.component].axes:
        return "all layers patched at once"
    if any(one.aligned != tuple((i, i) for i in range(len(one.corrupted_ids))) for one in plan.tokenized):
        return "prompts of unequal length in a pair"
    for component in plan.components:
        if acting(component) not in KINDS or (joint and component == "pattern"):
            return f"{component} {'in sets ' if joint else ''}is patched through hooks"
    if plan.corruption.ablates and "embed" in plan.components:
        return "embeddings are set before positions are added to them"
    if isinstance(plan.corruption, Mean) and not plan.corruption.per_position and {"q", "k"} & {*plan.components}:
        return "a mean over positions is taken before rotary embedding"
    return _why_not_moved(plan) if isinstance(plan, JointPlan) else ""


def _why_not_moved(plan: JointPlan) -> str:
    """Returns why values of a plan cannot be put elsewhere by the frontier, or ""."""
    last = plan.shape.n_layers - 1
    for one in (write for writes in joints_of([plan]) for write in writes):
        if (one.from_layer, one.from_pos, one.from_unit) == (SAME, SAME, SAME):
            continue
        if one.component in ("q", "k"):
            return "queries and keys move before their norms and rotary embedding"
        source = one.layer if one.from_layer == SAME else one.from_layer
        if source == last and one.component not in ("resid_pre", "v"):
            return "the last layer is known at the answer position only"
    return ""


def why_not(plans: Sequence[Plan]) -> str:
    """Returns why the frontier cannot take some plans, or ""."""
    return next((reason for plan in plans if (reason := fits(plan))), "")
