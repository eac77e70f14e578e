"""Several patches in one run: values written over those of dense rows, as they pass through the layers.

A row that enters by one patch begins there. One with several begins at the first of them as its base run, and every
value is written over in place, where the block's next part takes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from nbpatch.engine.entries import indexed, vectors
from nbpatch.engine.rows import WHOLE, Ints, Rows
from nbpatch.engine.trace import Layer, Trace
from nbpatch.errors import PatchNotApplied
from nbpatch.joint import SAME, Write

_STORED = {"attn_out": "attn_out", "mlp_out": "mlp_out", "resid_mid": "mid", "mlp_post": "neurons", "z": "z"}
"""Under which name the base runs keep what a component writes, one vector a position."""


@dataclass(frozen=True)
class Spots:
    """Single positions at which one component is written over in one layer, columns of one length.

    Attributes:
        owner: the row; position: where in its prompt; unit: the head or neuron, or WHOLE.
        run, layer, place, origin: the run, layer, position and head or neuron the value comes from.
    """

    owner: Ints
    position: Ints
    unit: Ints
    run: Ints
    layer: Ints
    place: Ints
    origin: Ints

    def __len__(self) -> int:
        return len(self.owner)

    def of(self, chosen: NDArray[np.generic]) -> "Spots":
        """Returns the spots of an index."""
        return Spots(**{one.name: getattr(self, one.name)[chosen] for one in fields(self)})


class Overwrites:
    """What is written over in the rows of one wave.

    Args:
        joints: what the column `joint` of rows counts.
    """

    def __init__(self, rows: Rows, joints: Sequence[Sequence[Write]], trace: Trace) -> None:
        self.rows = rows
        self.trace = trace
        self.n_layers = len(trace.layers)
        self.spots = _spots(rows, joints)
        self.left = set(self.spots)

    def __bool__(self) -> bool:
        return bool(self.spots)

    def at(self, component: str, layer: int, *, ends: bool = False) -> Spots | None:
        """Returns what is written over at one place, from then on counted as done; None for nothing.

        Args:
            ends: whether answer positions only are there to be written over: nothing reads the others.
        """
        found = self.spots.get((component, layer))
        if found is None:
            return None
        if (component, layer) not in self.left:
            raise PatchNotApplied(f"{component} of layer {layer} came by twice.", fix='model.engine = "replay"')
        self.left.discard((component, layer))
        return found.of(found.position == self.rows.last[found.owner]) if ends else found

    def has(self, component: str, layer: int) -> bool:
        """Whether something is written over there."""
        return (component, layer) in self.spots

    def check(self) -> None:
        """Raises PatchNotApplied unless every place has come by."""
        if self.left:
            component, layer = min(self.left)
            raise PatchNotApplied(f"{component} of layer {layer} did not come by.", fix='model.engine = "replay"')

    def values(self, component: str, spots: Spots) -> Float[Tensor, "spot d"]:
        """Returns what is written: one vector for each spot; all heads or neurons behind each other."""
        found: list[Tensor] = []
        for layer in np.unique(spots.layer):
            some = spots.of(spots.layer == layer)
            found.append(self._stored(component, int(layer), some))
        if len(found) == 1:
            return found[0]
        order = np.argsort(np.concatenate([np.flatnonzero(spots.layer == layer) for layer in np.unique(spots.layer)]))
        return torch.cat(found)[indexed(order, found[0])]

    def _stored(self, component: str, layer: int, spots: Spots) -> Tensor:
        if component == "resid_pre":
            return vectors(self.trace.pre(layer), spots.run, spots.place)
        seen: Layer = self.trace.layers[layer]
        if component in ("q", "k", "v"):
            kept: Tensor = getattr(seen, component)
            return kept[indexed(spots.run, kept), :, indexed(spots.place, kept)].flatten(1)
        return vectors(getattr(seen, _STORED[component]), spots.run, spots.place)


def write_over(
    target: Float[Tensor, "token unit d"], at: Tensor, values: Float[Tensor, "spot d_all"], spots: Spots
) -> None:
    """Writes vectors into some tokens, in place: whole ones, or one head or neuron of each.

    Args:
        at: the tokens' places in `target`; values: all units of each, behind each other.
    """
    split = values.view(len(spots), target.shape[1], -1)
    whole, parts = (indexed(np.flatnonzero(chosen), values) for chosen in (spots.unit == WHOLE, spots.unit != WHOLE))
    target[at[whole]] = split[whole]
    unit, origin = indexed(spots.unit, values)[parts], indexed(spots.origin, values)[parts]
    target[at[parts], unit] = split[parts, origin]


def _spots(rows: Rows, joints: Sequence[Sequence[Write]]) -> dict[tuple[str, int], Spots]:
    """Returns the spots of all rows by component and layer; the stream behind a block is the next one's input."""
    columns: dict[tuple[str, int], list[tuple[Ints, ...]]] = {}
    for number in np.unique(rows.joint[rows.joint != WHOLE]):
        mine = np.flatnonzero(rows.joint == number)
        for write in joints[int(number)]:
            behind = write.component == "resid_post"
            name = "resid_pre" if behind else write.component
            key = (name, write.layer + behind)
            columns.setdefault(key, []).append(_columns(rows, mine, write, behind))
    return {
        key: Spots(*(np.concatenate(parts) for parts in zip(*found, strict=True))) for key, found in columns.items()
    }


def _columns(rows: Rows, mine: Ints, write: Write, behind: bool) -> tuple[Ints, ...]:
    """Returns one write's spots in some rows, one for each position."""
    if write.pos == WHOLE:
        size = rows.last[mine] - rows.first[mine] + 1
        owner = np.repeat(mine, size)
        position = np.arange(len(owner)) - np.repeat(size.cumsum() - size, size) + rows.first[owner]
    else:
        owner, position = mine, np.full(len(mine), write.pos)
    like = np.ones(len(owner), np.int64)
    run = rows.run[owner] if write.own else rows.source[owner]
    layer = write.layer if write.from_layer == SAME else write.from_layer
    place = position if write.from_pos == SAME else like * write.from_pos
    origin = write.unit if write.from_unit == SAME else write.from_unit
    return owner, position, like * write.unit, run, like * (layer + behind), place, like * origin
