"""How the dense rows of a wave lie behind each other: rectangles of rows that begin and end at the same positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from nbpatch.engine.rows import Ints, Rows


@dataclass(frozen=True)
class Group:
    """Rows of the same length and the same first position: one rectangle of queries.

    Attributes:
        rows: their place among the wave's dense rows, sorted by the layer they enter in.
        at: their first token in the wave's packed buffer.
        runs: the base run of all of them, or all base runs.
    """

    rows: slice
    at: int
    start: int
    size: int
    runs: slice


def groups_of(rows: Rows, start: Ints, enter: Ints, n_layers: int, n_lead: int) -> tuple[list[Group], Ints]:
    """Returns the rectangles of sorted rows, base runs apart, and where each row begins in the packed buffer."""
    size = rows.last - start + 1
    dense = enter < n_layers
    at = np.where(dense, size, 0).cumsum() - np.where(dense, size, 0)
    apart = (np.diff(start) != 0) | (np.diff(rows.last) != 0)
    if 0 < n_lead < len(rows):
        apart[n_lead - 1] = True
    changes = np.flatnonzero(apart) + 1
    groups: list[Group] = []
    for begin, end in zip([0, *changes], [*changes, len(rows)], strict=True):
        count = int(dense[begin:end].sum())
        if count:
            mine = slice(int(begin), int(begin) + count)
            groups.append(Group(mine, int(at[begin]), int(start[begin]), int(size[begin]), _runs(rows.run[mine])))
    return groups, at


def _runs(runs: Ints) -> slice:
    same = (runs == runs[0]).all()
    return slice(int(runs[0]), int(runs[0]) + 1) if same else slice(None)


def packed(active: Sequence[tuple[Group, int]], n_rows: int) -> Ints:
    """Returns where the position 0 of each row would stand among the tokens of active rows, packed."""
    begin = np.zeros(n_rows, np.int64)
    done = 0
    for group, count in active:
        rows = slice(group.rows.start, group.rows.start + count)
        begin[rows] = done + np.arange(count) * group.size - group.start
        done += count * group.size
    return begin


def rectangles(value: Float[Tensor, "head token d_head"], count: int) -> Float[Tensor, "row head pos d_head"]:
    """Returns packed tokens as rows [row head pos d_head]."""
    heads, tokens, d_head = value.shape
    return value.reshape(heads, count, tokens // count, d_head).transpose(0, 1)


def continued(
    base: Float[Tensor, "run head start d"], runs: Int[Tensor, "row"], own: Float[Tensor, "row head place d"]
) -> Float[Tensor, "row head src d"]:
    """Returns each row's keys or values: its base run's, up to where its own begin.

    Args:
        base: of all base runs, or of the only one the rows have.
    """
    before = base.transpose(1, 2)
    if len(before) > 1:
        # Of whole runs `index_select` takes a third of the time of an index.
        before = before.index_select(0, runs)
    start = before.shape[1]
    whole = own.new_empty(len(own), start + own.shape[2], *own.shape[1::2])
    whole[:, :start] = before
    whole[:, start:] = own.transpose(1, 2)
    return whole.transpose(1, 2)
