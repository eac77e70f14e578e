"""From gradients to what a patch of one component is estimated to change, at every place of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nbpatch.engine.attention import attend_with_weights
from nbpatch.engine.tape import Asked, Key
from nbpatch.sites import COMPONENTS, acting


@dataclass(frozen=True)
class Slopes:
    """Both runs of some pairs at one site, and the way from one to the other.

    Attributes:
        base, source: what the runs hold [pair …].
        gradient: ∂metric/∂base, or its average on the way to the source.
    """

    base: Tensor
    source: Tensor
    gradient: Tensor

    def products(self) -> Tensor:
        """Returns (source − base) · gradient, number by number."""
        return (self.source - self.base) * self.gradient

    def at(self, places: tuple[Int[Tensor, "pair pos"], Int[Tensor, "pair pos"]] | None) -> "Slopes":
        """Returns them at positions of the base run, and those of the source run that stand for them."""
        if places is None:
            return self
        base, source = places
        row = torch.arange(len(base), device=base.device)[:, None]
        return Slopes(self.base[row, base], self.source[row, source], self.gradient[row, base])


@dataclass(frozen=True)
class Sites:
    """What is known of some pairs in one direction.

    Attributes:
        slopes: by component and layer.
        asked: by layer, what attention was asked with.
        heads: query heads, and the key-value heads they share.
        places: positions of base and source run that stand for each other; None where all do.
        fixed: whether the softmax is recomputed for patched queries and keys (AtP*).
    """

    slopes: Mapping[Key, Slopes]
    asked: Mapping[int, Asked]
    heads: tuple[int, int]
    places: tuple[Tensor, Tensor] | None
    fixed: bool


def scores_of(component: str, over: tuple[str, ...], sites: Sites) -> Float[Tensor, "pair ..."]:
    """Returns the estimates of a component [pair *over]; axes that are not swept are patched whole: summed over."""
    axes = COMPONENTS[component].axes
    inner = [axis for axis in axes if axis != "layer"]
    name = acting(component)
    layers = sorted(layer for site, layer in sites.slopes if site == name) if "layer" in axes else [0]
    parts: list[Tensor] = []
    for layer in layers:
        fixed = sites.fixed and name in ("q", "k")
        part = _fixed(name, layer, sites, whole="pos" not in over) if fixed else _plain(name, layer, sites)
        dims = [1 + inner.index(axis) for axis in inner if axis not in over]
        parts.append(part.sum(dims) if dims else part)
    return torch.stack(parts, 1) if "layer" in over else torch.stack(parts).sum(0)


def _plain(name: str, layer: int, sites: Sites) -> Tensor:
    """Returns (source − base) · gradient at each place of a component in one layer [pair *axes]."""
    slopes = sites.slopes[name, layer]
    if name == "pattern":
        return slopes.products()
    products = slopes.at(sites.places).products()
    if name == "mlp_post":
        return products.transpose(1, 2)
    if name == "z":
        products = products.unflatten(-1, (sites.heads[0], -1))
    products = products.sum(-1)
    return products.transpose(1, 2) if products.ndim == 3 else products


def _fixed(name: str, layer: int, sites: Sites, *, whole: bool) -> Float[Tensor, "pair head pos"]:
    """Returns (new pattern − pattern) · ∂metric/∂pattern for patched queries or keys [pair head pos].

    Args:
        whole: whether a cell patches all positions: all keys are then changed together, and stand at position 0.
    """
    q, k = (_aligned(sites.slopes[one, layer], sites.places) for one in ("q", "k"))
    v, pattern = sites.slopes["v", layer], sites.slopes["pattern", layer]
    asked = sites.asked[layer]

    def changed(queries: Tensor, keys: Tensor) -> Float[Tensor, "pair head dest"]:
        """Returns how much each row of the pattern changes, times its gradient; queries and keys [pair pos head d]."""
        q, k, values = (one.transpose(1, 2) for one in (queries, keys, v.base))
        weights = attend_with_weights(asked.module, q, k, values, asked.mask, asked.options)[1]
        return ((weights - pattern.base) * pattern.gradient).sum(-1)

    if name == "q":
        return _placed(changed(q.source, k.base), sites.places)
    n_heads, n_kv = sites.heads
    if whole:
        return changed(q.base, k.source).unflatten(1, (n_kv, n_heads // n_kv)).sum((2, 3))[..., None]
    columns: list[Tensor] = []
    for position in range(k.base.shape[1]):
        keys = k.base.clone()
        keys[:, position] = k.source[:, position]
        columns.append(changed(q.base, keys).unflatten(1, (n_kv, n_heads // n_kv)).sum((2, 3)))
    return _placed(torch.stack(columns, -1), sites.places)


def _aligned(slopes: Slopes, places: tuple[Tensor, Tensor] | None) -> Slopes:
    """Returns them with the source's values where the base run has positions that stand for them, its own elsewhere."""
    if places is None:
        return slopes
    row = torch.arange(len(slopes.base), device=slopes.base.device)[:, None]
    source = slopes.base.clone()
    source[row, places[0]] = slopes.source[row, places[1]]
    return Slopes(slopes.base, source, slopes.gradient)


def _placed(scores: Float[Tensor, "pair head pos"], places: tuple[Tensor, Tensor] | None) -> Tensor:
    """Returns scores of the base run's positions at those that stand for another."""
    if places is None:
        return scores
    return scores.gather(2, places[0][:, None].expand(-1, scores.shape[1], -1))
