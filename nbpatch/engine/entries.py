"""What patched rows put into the model where they enter: one vector per token, from the base and the source runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nbpatch.engine.attention import Keys, Queries, Values, attend_as_family, attend_with_weights
from nbpatch.engine.memory import scores_at_once
from nbpatch.engine.rows import COMPONENT_NAMES, WHOLE, Ints, Rows
from nbpatch.engine.trace import Layer, Trace


@dataclass(frozen=True)
class Tokens:
    """Single positions of rows: which row, which position."""

    owner: Ints
    position: Ints

    def __len__(self) -> int:
        return len(self.owner)

    @staticmethod
    def joined(parts: "Sequence[Tokens]") -> "Tokens":
        """Returns tokens one after the other."""
        return Tokens(np.concatenate([one.owner for one in parts]), np.concatenate([one.position for one in parts]))

    def of(self, chosen: Any) -> "Tokens":
        """Returns the tokens of an index."""
        return Tokens(self.owner[chosen], self.position[chosen])


def residual_values(trace: Trace, layer: int, tokens: Tokens, rows: Rows) -> Float[Tensor, "token d_model"]:
    """Returns a block's input for rows patched there: the source run at the patched positions, the base run else."""
    pos = rows.pos[tokens.owner]
    patched = (pos == WHOLE) | (pos == tokens.position)
    run = np.where(patched, rows.source[tokens.owner], rows.run[tokens.owner])
    return vectors(trace.pre(layer), run, tokens.position)


def mid_values(seen: Layer, tokens: Tokens, rows: Rows) -> Float[Tensor, "token d_model"]:
    """Returns the residual stream between attention and MLP, as a whole, from the source run.

    So no factor a block may put before what attention writes is in it.
    """
    return vectors(seen.mid, rows.source[tokens.owner], tokens.position)


def attn_values(seen: Layer, tokens: Tokens, rows: Rows) -> Float[Tensor, "token d_model"]:
    """Returns what attention writes, from the source run."""
    return vectors(seen.attn_out, rows.source[tokens.owner], tokens.position)


def neuron_values(seen: Layer, tokens: Tokens, rows: Rows) -> Float[Tensor, "token d_mlp"]:
    """Returns the neurons of rows with one of them, or all, from the source run."""
    neurons = present(seen.neurons)
    values = vectors(neurons, rows.run[tokens.owner], tokens.position)
    source = vectors(neurons, rows.source[tokens.owner], tokens.position)
    neuron = indexed(rows.neuron[tokens.owner], values)
    mine = (neuron[:, None] == torch.arange(values.shape[1], device=values.device)) | (neuron == WHOLE)[:, None]
    return torch.where(mine, source, values)


def z_values(trace: Trace, layer: int, tokens: Tokens, rows: Rows) -> Float[Tensor, "token d_z"]:
    """Returns z [token head·d_head] for rows whose patch acts through attention heads.

    A patched query, key, value or pattern changes its own head's z only: it is computed for all heads at once, and
    each row takes its head.
    """
    seen = trace.layers[layer]
    values = vectors(seen.z, rows.run[tokens.owner], tokens.position)
    heads = seen.q.shape[1]
    for code in np.unique(rows.component[tokens.owner]):
        chosen = np.flatnonzero(rows.component[tokens.owner] == code)
        some = tokens.of(chosen)
        name = COMPONENT_NAMES[code]
        patched = _in_parts(_PATCHED[name], seen, some, rows, trace.passing)
        mine = _own_heads(seen, some, rows, heads if name not in ("k", "v") else seen.k.shape[1])
        at = indexed(chosen, values)
        kept = values[at].view(len(some), heads, -1)
        values[at] = torch.where(mine[:, :, None], patched.view(len(some), heads, -1), kept).flatten(1)
    return values


def _in_parts(patched: Any, seen: Layer, tokens: Tokens, rows: Rows, passing: int) -> Tensor:
    """Returns patched z, computed for so many distinct patches at once as their scores have room."""
    _, heads, length, _ = seen.q.shape
    most = scores_at_once(passing, heads, length, seen.q.element_size())
    if len(tokens) <= most:
        return patched(seen, tokens, rows)
    asked = np.stack([rows.run[tokens.owner], rows.source[tokens.owner], rows.pos[tokens.owner]])
    distinct, which = np.unique(asked, axis=1, return_inverse=True)
    if distinct.shape[1] <= most:
        return patched(seen, tokens, rows)
    part = which.ravel() // most
    found: list[Tensor] = []
    order: list[Ints] = []
    for number in range(int(part.max()) + 1):
        mine = np.flatnonzero(part == number)
        found.append(patched(seen, tokens.of(mine), rows))
        order.append(mine)
    back = np.argsort(np.concatenate(order), kind="stable")
    return torch.cat(found)[indexed(back, found[0])]


def _own_heads(seen: Layer, tokens: Tokens, rows: Rows, of: int) -> Tensor:
    """Returns which query heads a token's patch reaches [token head]; a key-value head reaches all that share it."""
    heads = seen.q.shape[1]
    head = indexed(rows.head[tokens.owner], seen.q)[:, None]
    return (torch.arange(heads, device=seen.q.device) // (heads // of) == head) | (head == WHOLE)


def _from_z(seen: Layer, tokens: Tokens, rows: Rows) -> Tensor:
    return vectors(seen.z, rows.source[tokens.owner], tokens.position)


def _from_queries(seen: Layer, tokens: Tokens, rows: Rows) -> Tensor:
    runs, which = np.unique(rows.run[tokens.owner], return_inverse=True)
    run, source = indexed(runs, seen.q), indexed(runs ^ 1, seen.q)
    z = _attend(seen, seen.q[source], seen.k[run], seen.v[run])
    return z.flatten(2)[indexed(which, z), indexed(tokens.position, z)]


def _from_shared(name: str) -> Any:
    """Returns the z of patched keys or values: at one position, for all later ones, or at all positions."""

    def patched(seen: Layer, tokens: Tokens, rows: Rows) -> Tensor:
        wide = seen.q.shape[2] + 1
        # As one number: `unique` of columns takes five times as long.
        asked, which = np.unique(rows.run[tokens.owner] * wide + rows.pos[tokens.owner] - WHOLE, return_inverse=True)
        runs, places = asked // wide, asked % wide + WHOLE
        run, source = indexed(runs, seen.q), indexed(runs ^ 1, seen.q)
        values = {"k": seen.k[run], "v": seen.v[run]}
        other = getattr(seen, name)[source]
        place = indexed(places, seen.q)[:, None]
        mine = (torch.arange(other.shape[2], device=other.device) == place) | (place == WHOLE)
        values[name] = torch.where(mine[:, None, :, None], other, values[name])
        z = _attend(seen, seen.q[run], values["k"], values["v"])
        return z.flatten(2)[indexed(which.ravel(), z), indexed(tokens.position, z)]

    return patched


def _from_patterns(seen: Layer, tokens: Tokens, rows: Rows) -> Tensor:
    """Returns z with the source run's weights: for all sources of a destination, or for one of them."""
    runs, which = np.unique(rows.run[tokens.owner], return_inverse=True)
    run, source = indexed(runs, seen.q), indexed(runs ^ 1, seen.q)
    if seen.weights is None:
        _, theirs = attend_with_weights(
            seen.module, seen.q[source], seen.k[source], seen.v[source], _mask(seen), seen.options
        )
    else:
        theirs = seen.weights[source // 2]
    values = seen.v[run].repeat_interleave(seen.q.shape[1] // seen.v.shape[1], dim=1)
    at, dest = indexed(which, values), indexed(tokens.position, values)
    src = rows.src[tokens.owner]
    if (src == WHOLE).all():
        z = (theirs.to(values.dtype) @ values).transpose(1, 2).flatten(2)
        return z[at, dest]
    _, own = attend_with_weights(seen.module, seen.q[run], seen.k[run], seen.v[run], _mask(seen), seen.options)
    place = indexed(src, values)
    change = (theirs - own)[at, :, dest, place]
    z = vectors(seen.z, rows.run[tokens.owner], tokens.position).view(len(tokens), change.shape[1], -1)
    return (z + change[..., None].to(z.dtype) * values[at, :, place]).flatten(1)


_PATCHED: dict[str, Any] = {
    "z": _from_z,
    "q": _from_queries,
    "k": _from_shared("k"),
    "v": _from_shared("v"),
    "pattern": _from_patterns,
}


def _attend(seen: Layer, q: Queries, k: Keys, v: Values) -> Tensor:
    return attend_as_family(seen.module, q, k, v, _mask(seen), seen.options)


def _mask(seen: Layer) -> Tensor:
    return seen.mask


def present(value: Tensor | None) -> Tensor:
    """Returns a part of the base runs that was kept.

    Raises:
        LookupError: it was not: the caller asked for something else than it said.
    """
    if value is None:
        raise LookupError("a part that this model does not have")
    return value


def vectors(values: Float[Tensor, "run pos d"] | None, run: Ints, position: Ints) -> Float[Tensor, "token d"]:
    """Returns the vectors of some runs at some positions."""
    there = present(values)
    return there[indexed(run, there), indexed(position, there)]


def indexed(values: Any, like: Tensor) -> Tensor:
    """Returns a column as an index tensor on the device of `like`."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device)
