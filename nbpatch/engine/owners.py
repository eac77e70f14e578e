"""Which columns of a projection inside attention are which head's, found once per model by going back from each head.

Queries, keys and values of one head come from a few columns of one linear map: their own, in every family without a
norm across heads, however a fused projection interleaves them. Where that does not hold, None, and the way back is
taken for each head apart. The norm in front of the projections is found too, and seen to take each position by itself.
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

_ALIKE = 1e-3
"""The share of their size by which values and gradients of what is taken for the norm may miss those of the model."""


@dataclass(frozen=True)
class Owners:
    """The columns of one layer.

    Attributes:
        columns: for queries, keys and values: which projection, and the columns of each head [head own].
        norm: the module that alone makes what they are given out of the block's input, each position by itself.
    """

    columns: Sequence[tuple[int, Tensor]]
    norm: nn.Module | None

    def split(
        self, gradients: Sequence[Tensor], modules: Sequence[nn.Module]
    ) -> Float[Tensor, "input run pos d_model"]:
        """Returns what of the projections' gradients comes from each head, at what the projections were given.

        Args:
            gradients: at what each projection put out [run pos column].
        """
        shape = gradients[0].shape[:2]
        sizes = [len(heads) for _, heads in self.columns]
        weights = [_outputs_first(modules[which]) for which, _ in self.columns]
        found = gradients[0].new_empty(sum(sizes), shape.numel(), weights[0].shape[1])
        for (which, heads), weight, place in zip(self.columns, weights, found.split(sizes), strict=True):
            mine = _picked(gradients[which].flatten(0, 1).T, heads).transpose(1, 2)
            torch.bmm(mine, _picked(weight, heads), out=place)
        return found.unflatten(1, shape)

    def normed_back(
        self, before: Float[Tensor, "run pos d_model"], gradients: Float[Tensor, "input run pos d_model"]
    ) -> Float[Tensor, "input run pos d_model"] | None:
        """Returns gradients at what the norm puts out taken back to what it is given; None where it is not known."""
        if self.norm is None:
            return None
        each = before.detach().expand_as(gradients).requires_grad_()
        return torch.autograd.grad(self.norm(each), each, gradients)[0]


def _picked(rows: Float[Tensor, "column other"], heads: Int[Tensor, "head own"]) -> Float[Tensor, "head own other"]:
    """Returns the rows of each head, without a copy where they follow on each other."""
    start, count = int(heads[0, 0]), heads.numel()
    if bool((heads.flatten() == torch.arange(start, start + count)).all()):
        return rows[start : start + count].unflatten(0, (heads.shape[0], -1))
    return rows[heads.to(rows.device)]


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
            model.notes["owners"] = [_owners(tape, layer, block.module) for layer, block in enumerate(parts.blocks)]
    return model.notes["owners"]


def _owners(tape: Tape, layer: int, block: nn.Module) -> Owners | None:
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
        found.append((heads[0][0], columns.cpu()))
    return Owners(tuple(found), _norm(tape, layer, block)) if all(bool(one.all()) for one in taken) else None


def _columns(head: Float[Tensor, "run pos d_head"], outs: Sequence[Tensor]) -> tuple[int, Int[Tensor, "column"]]:
    """Returns the projection that reaches a head, −1 for none or several, and the columns that do."""
    gradients = torch.autograd.grad((head * _random(head)).sum(), outs, retain_graph=True, allow_unused=True)
    reached = [
        (place, (one != 0).flatten(0, -2).any(0).nonzero().flatten())
        for place, one in enumerate(gradients)
        if one is not None and bool((one != 0).any())
    ]
    return reached[0] if len(reached) == 1 else (-1, torch.zeros(0, dtype=torch.long, device=head.device))


def _norm(tape: Tape, layer: int, block: nn.Module) -> nn.Module | None:
    """Returns the norm in front of attention, if on one position by itself it does what the model did there."""
    pre, given = (tape.sites[name, layer] for name in ("resid_pre", "attn_in"))
    if pre.shape != given.shape or pre.ndim != 3:
        return None
    along = _random(given)
    wanted = torch.autograd.grad(given, pre, along, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
    for module in block.children():
        sizes = [weight.ndim for weight in module.parameters()]
        if sizes and max(sizes) == 1:
            one = pre[:, 1:2].detach().requires_grad_()
            made = module(one)
            (found,) = torch.autograd.grad(made, one, along[:, 1:2])
            if _alike(made, given[:, 1:2]) and _alike(found, wanted[:, 1:2]):
                return module
    return None


def _alike(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and bool((found - wanted).norm() <= _ALIKE * wanted.norm())


def _random(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)
