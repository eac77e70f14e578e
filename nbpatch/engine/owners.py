"""Which columns of a projection inside attention are which head's, found once per model by going back from each head.

Queries, keys and values of one head come from a few columns of one linear map: their own, in every family without a
norm across heads, however a fused projection interleaves them. Where that does not hold, None, and the way back is
taken for each head apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbpatch.engine.tape import OWN, Tape, is_linear, record
from nbpatch.model import Model
from nbpatch.parts import Parts

_LENGTH = 3


@dataclass(frozen=True)
class Owners:
    """The columns of one layer.

    Attributes:
        columns: for queries, keys and values: which projection, and the columns of each head [head own].
    """

    columns: Sequence[tuple[int, Tensor]]

    def split(
        self, gradients: Sequence[Tensor], modules: Sequence[nn.Module]
    ) -> Float[Tensor, "input run pos d_model"]:
        """Returns what of the projections' gradients comes from each head, at what the projections were given.

        Args:
            gradients: at what each projection put out [run pos column].
        """
        found: list[Tensor] = []
        for which, columns in self.columns:
            gradient, weight = gradients[which], _outputs_first(modules[which])
            heads = columns.to(gradient.device)
            mine = gradient[..., heads].flatten(0, 1).transpose(0, 1)
            found.append((mine @ _rows(weight, heads)).unflatten(1, gradient.shape[:2]))
        return torch.cat(found)


def _rows(weight: Float[Tensor, "column d_model"], heads: Int[Tensor, "head own"]) -> Tensor:
    """Returns the weights of each head [head own d_model], without a copy where they follow on each other."""
    start, count = int(heads[0, 0]), heads.numel()
    if bool((heads.flatten() == torch.arange(start, start + count, device=heads.device)).all()):
        return weight[start : start + count].unflatten(0, (heads.shape[0], -1))
    return weight[heads]


def _outputs_first(module: Any) -> Float[Tensor, "column d_model"]:
    weight: Tensor = module.weight.detach()
    return weight if isinstance(module, nn.Linear) else weight.T


def matrix_of(module: Any, width: int, like: Tensor) -> Float[Tensor, "d_in d_model"]:
    """Returns what a projection multiplies with, its bias left out."""
    if is_linear(module):
        return _outputs_first(module).T
    with torch.no_grad():
        every = torch.eye(width, device=like.device, dtype=like.dtype)
        return module(every[None])[0] - module(torch.zeros_like(every[:1])[None])[0]


def owners_of(model: Model, parts: Parts) -> list[Owners | None]:
    """Returns, for each layer, whose columns are whose; None where a column is several heads'."""
    if "owners" not in model.notes:
        ids = torch.arange(1, _LENGTH + 1, device=model.device).remainder(model.shape.d_vocab)[None]
        with model.lock, torch.enable_grad():
            tape = record(parts, ids, frozenset({"q", "k", "v", *OWN}))
            model.notes["owners"] = [_owners(tape, layer) for layer in range(len(parts.blocks))]
    return model.notes["owners"]


def _owners(tape: Tape, layer: int) -> Owners | None:
    projections = tape.projections.get(layer, [])
    own = tape.sites["attn_own", layer]
    outs = [tape.sites[f"projected {i}", layer] for i in range(len(projections))]
    if not outs or any(given is not own for _, given in projections):
        return None
    taken = [torch.zeros(out.shape[-1], dtype=torch.bool, device=out.device) for out in outs]
    found: list[tuple[int, Tensor]] = []
    for name in ("q", "k", "v"):
        site = tape.sites[name, layer]
        heads = [_columns(site[:, head], outs) for head in range(site.shape[1])]
        which = {place for place, _ in heads}
        if len(which) != 1 or len({len(columns) for _, columns in heads}) != 1:
            return None
        columns = torch.stack([columns for _, columns in heads])
        mine = taken[which.pop()] if len(which) == 1 else taken[0]
        if bool(mine[columns].any()) or len(columns.unique()) != columns.numel():
            return None
        mine[columns] = True
        found.append((heads[0][0], columns))
    return Owners(tuple(found)) if all(bool(one.all()) for one in taken) else None


def _columns(head: Float[Tensor, "run pos d_head"], outs: Sequence[Tensor]) -> tuple[int, Int[Tensor, "column"]]:
    """Returns the projection that reaches a head, −1 for none or several, and the columns that do."""
    along = torch.randn(head.shape, generator=torch.Generator().manual_seed(0)).to(head)
    gradients = torch.autograd.grad((head * along).sum(), outs, retain_graph=True, allow_unused=True)
    reached = [
        (place, (one != 0).flatten(0, -2).any(0).nonzero().flatten())
        for place, one in enumerate(gradients)
        if one is not None and bool((one != 0).any())
    ]
    return reached[0] if len(reached) == 1 else (-1, torch.zeros(0, dtype=torch.long, device=head.device))
