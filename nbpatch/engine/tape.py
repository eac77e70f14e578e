"""One forward with its graph: the tensors at every site, and the way back from a metric to each of them.

What is kept are the very tensors that go on, no views of them: a gradient exists only for what the graph passes
through. Parts that read the same tensor get an alias each, so that what flows back to one can be told from the rest.
What is known to be zero or is not asked for is not multiplied: `Back`.
"""

from collections.abc import Callable, Generator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

from nbpatch.engine.attention import (
    Keys,
    Queries,
    Values,
    attend_as_family,
    attend_with_weights,
    attending,
    replaced,
)
from nbpatch.engine.tail import narrow
from nbpatch.errors import PatchNotApplied
from nbpatch.parts import Block, Parts

Key: TypeAlias = tuple[str, int]
"""A component, or what a receiver reads, and a layer."""

OWN = frozenset({"attn_in", "attn_own", "mlp_in", "mlp_own", "projected"})
"""What is kept for edges: what attention and MLP read, as all read it and as an alias of their own; and what the
projections inside attention put out."""


@dataclass(frozen=True)
class Asked:
    """What a layer asked attention with; its mask is [run 1 dest src], or of one run for all."""

    module: nn.Module
    mask: Tensor | None
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Back:
    """What of a forward has a gradient: some runs, from one position on.

    Those of other runs are zero where no metric reads them. Those of earlier positions are left out: under causal
    attention none of them reaches a later one.
    """

    runs: slice
    first: int


@dataclass
class Tape:
    """What one forward left.

    Attributes:
        runs, positions: the shape of what went in.
        sites: by component and layer, in the graph, in whatever shape the model's modules give.
        asked: by layer, what attention was asked with.
        projections: by layer, the linear modules inside attention and what each was given; what the i-th put out is
            the site "projected i".
        logits: answer logits [run d_vocab], or of some tokens.
        ends: the last block's output at the answer position [run d_model], out of the graph.
        dropped: the layer through whose attention and MLP outputs no gradient goes back; −1 for none.
        cut: whether something else was put in a part's place, so that nothing flows back to what that part read.
    """

    runs: int
    positions: int
    sites: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    asked: dict[int, Asked] = field(default_factory=dict[int, Asked])
    projections: dict[int, list[tuple[nn.Module, Tensor]]] = field(
        default_factory=dict[int, list[tuple[nn.Module, Tensor]]]
    )
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    ends: Tensor = field(default_factory=lambda: torch.empty(0))
    dropped: int = -1
    cut: bool = False

    def value(self, key: Key) -> Float[Tensor, "run ..."]:
        """Returns what a site held: [run pos d]; q, k, v [run pos head d_head]; patterns [run head dest src]."""
        return self._shaped(key[0], self.sites[key].detach())

    def gradients(self, metric: Float[Tensor, ""], keys: Sequence[Key], *, again: bool) -> dict[Key, Tensor]:
        """Returns ∂metric/∂site, shaped as `value`.

        Args:
            again: whether the graph is needed once more.

        Raises:
            PatchNotApplied: nothing flows back to a site: what was kept there is not what went on.
        """
        found = torch.autograd.grad(metric, [self.sites[key] for key in keys], retain_graph=again, allow_unused=True)
        for (name, layer), one in zip(keys, found, strict=True):
            if one is None and not self.cut:
                raise PatchNotApplied(f"nothing flows back to {name} of layer {layer}.", fix="model.describe()")
        return {
            key: self._shaped(key[0], torch.zeros_like(self.sites[key]) if one is None else one)
            for key, one in zip(keys, found, strict=True)
        }

    def _shaped(self, component: str, value: Tensor) -> Tensor:
        if component in ("q", "k", "v"):
            return value.transpose(1, 2)
        return value if component == "pattern" else value.reshape(self.runs, self.positions, -1)


def record(
    parts: Parts,
    ids: Int[Tensor, "run pos"],
    sites: Set[str],
    *,
    columns: Int[Tensor, "column"] | None = None,
    start: Float[Tensor, "run pos d_model"] | None = None,
    put: Mapping[Key, Tensor] | None = None,
    back: Back | None = None,
) -> Tape:
    """Runs prompts of one length and keeps what is at some sites, in the graph where gradients are enabled.

    Args:
        sites: components, and names out of `OWN`.
        columns: the tokens whose logits are needed; None for all.
        start: what goes into the first block in the place of the embeddings.
        put: what goes on in the place of "z" or "mlp_out" of a layer [run pos d].
        back: what of it has a gradient; None for all. Gradients elsewhere are not to be used.

    Raises:
        PatchNotApplied: a site was not met exactly once.
    """
    tape = Tape(ids.shape[0], ids.shape[1], cut=bool(put))
    return _Recorder(parts, sites, tape, _Changes(start, dict(put or {}), back)).run(ids, columns)


@dataclass(frozen=True)
class _Changes:
    """In what a forward is not the model's own: its first value, what goes on elsewhere, and what goes back."""

    start: Tensor | None
    put: dict[Key, Tensor]
    back: Back | None


class _Recorder:
    """Writes down one forward."""

    def __init__(self, parts: Parts, sites: Set[str], tape: Tape, changes: _Changes) -> None:
        self.parts = parts
        self.wanted = sites
        self.tape = tape
        self.start = changes.start
        self.put = changes.put
        self.back = changes.back if torch.is_grad_enabled() else None
        self.layer = 0

    def run(self, ids: Tensor, columns: Tensor | None) -> Tape:
        model: Any = self.parts.model
        with self._watching(columns), attending(self.parts, self._attend, in_place=False):
            self.tape.logits = model(ids, use_cache=False).logits[:, -1]
        if self.put:
            name, layer = next(iter(self.put))
            raise PatchNotApplied(f"{name} of layer {layer} was not met.", fix="model.describe()")
        last = self.tape.sites["resid_post", len(self.parts.blocks) - 1]
        self.tape.ends = last.detach().reshape(self.tape.runs, self.tape.positions, -1)[:, -1]
        return self.tape

    def _keep(self, name: str, value: Tensor) -> None:
        """Keeps a site.

        Raises:
            PatchNotApplied: it was met before in this forward.
        """
        if (name, self.layer) in self.tape.sites:
            raise PatchNotApplied(f"{name} of layer {self.layer} was met twice.", fix="model.describe()")
        self.tape.sites[name, self.layer] = value

    # -- attention

    def _attend(
        self, module: nn.Module, q: Queries, k: Keys, v: Values, mask: Any, options: Mapping[str, Any]
    ) -> Tensor:
        mask = None if mask is None else mask[:1, :1]
        self.tape.asked[self.layer] = Asked(module, mask, dict(options))
        for name, value in (("q", q), ("k", k), ("v", v)):
            if name in self.wanted:
                self._keep(name, value)
        if "pattern" not in self.wanted:
            return attend_as_family(module, q, k, v, mask, options)
        z, weights = attend_with_weights(module, q, k, v, mask, options)
        self._keep("pattern", weights)
        return z

    # -- modules

    @contextmanager
    def _watching(self, columns: Tensor | None) -> Generator[None]:
        unembed: Any = self.parts.unembed
        whole = narrow(unembed, columns) if isinstance(unembed, nn.Linear) else unembed.forward
        with ExitStack() as stack:
            stack.enter_context(replaced(unembed, "forward", lambda hidden: whole(hidden[:, -1:])))
            for activation in self.parts.tanh_gelus:
                # One step forward and one back in the place of eight.
                stack.enter_context(replaced(activation, "forward", partial(gelu, approximate="tanh")))
            for number, block in enumerate(self.parts.blocks):
                handles = [block.module.register_forward_pre_hook(self._enter(number), with_kwargs=True)]
                handles += self._outputs(number, block) + self._inputs(block)
                for handle in handles:
                    stack.callback(handle.remove)
                for module in block.module.modules() if self.back else ():
                    if _is_plain(module):
                        stack.enter_context(replaced(module, "forward", self._partly(module)))
            yield

    def _partly(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """Returns a forward of a linear module whose way back is that of `back` alone."""
        whole, shape = module.forward, (self.tape.runs, self.tape.positions)

        def forward(given: Tensor) -> Tensor:
            # Experts get tokens picked from all runs: which are whose is not known here.
            return _Partly.apply(given, module, whole, self.back) if given.shape[:-1] == shape else whole(given)

        return forward

    def _enter(self, number: int) -> Callable[..., Any]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self.layer = number
            hidden = _first(args, kwargs)
            if number == 0:
                hidden = hidden.detach() if self.start is None else self.start.detach()
                hidden = hidden.requires_grad_() if torch.is_grad_enabled() else hidden
            self._keep("resid_pre", hidden)
            return _with_first(args, kwargs, hidden)

        return enter

    def _outputs(self, number: int, block: Block) -> list[Any]:
        """Returns hooks on what parts of a block put out."""
        last = number == len(self.parts.blocks) - 1
        named = [("resid_post", block.module), ("attn_out", block.attn_out), ("mlp_out", block.mlp_out)]
        handles = [
            module.register_forward_hook(self._output(name))
            for name, module in named
            if name in self.wanted or (name, number) in self.put or (name == "resid_post" and last)
        ]
        if "projected" in self.wanted:
            found = [one for one in block.attention.modules() if one is not block.project and is_linear(one)]
            handles += [module.register_forward_hook(self._projected, with_kwargs=True) for module in found]
        return handles

    def _output(self, name: str) -> Callable[..., Any]:
        def keep(module: nn.Module, args: Any, result: Any) -> Any:
            value = result[0] if isinstance(result, tuple) else result
            given = self.put.pop((name, self.layer), None)
            if given is not None:
                value = given.reshape(value.shape)
                result = (value, *result[1:]) if isinstance(result, tuple) else value
            self._keep(name, value)
            if name in ("attn_out", "mlp_out") and value.requires_grad:
                value.register_hook(self._dropping(self.layer))
            return result

        return keep

    def _dropping(self, layer: int) -> Callable[[Tensor], Tensor | None]:
        return lambda gradient: torch.zeros_like(gradient) if self.tape.dropped == layer else None

    def _projected(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        mine = self.tape.projections.setdefault(self.layer, [])
        self._keep(f"projected {len(mine)}", result)
        mine.append((module, _first(args, kwargs)))

    def _inputs(self, block: Block) -> list[Any]:
        """Returns hooks on what parts of a block take."""
        named = [("z", "", block.project), ("mlp_post", "", block.down), ("resid_mid", "", block.mid)]
        if "attn_own" in self.wanted:
            named.append(("attn_in", "attn_own", block.attention))
            named.append(("mlp_in", "mlp_own", block.mlp if block.mid is None else block.mid))
        return [
            module.register_forward_pre_hook(self._input(name, own), with_kwargs=True)
            for name, own, module in named
            if module is not None and (own or name in self.wanted or any(key[0] == name for key in self.put))
        ]

    def _input(self, name: str, own: str) -> Callable[..., Any]:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = _first(args, kwargs)
            given = self.put.pop((name, self.layer), None)
            if given is not None:
                value = given.reshape(value.shape)
            self._keep(name, value)
            if own:
                value = value.view_as(value)
                self._keep(own, value)
            return _with_first(args, kwargs, value) if own or given is not None else None

        return keep


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Returns the first argument a module was called with, by place or by name."""
    return args[0] if args else kwargs[_name_of_first(kwargs)]


def _with_first(args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, _name_of_first(kwargs): value}


def _name_of_first(kwargs: Mapping[str, Any]) -> str:
    return "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))


def is_linear(module: nn.Module) -> bool:
    """Whether a module is an affine map with one weight: torch's own, or GPT-2's, whose weight lies the other way."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _is_plain(module: nn.Module) -> bool:
    """Whether a module multiplies with its weight as it stands: no quantised kind, no forward put in by others."""
    return "forward" not in module.__dict__ and (type(module) is nn.Linear or type(module).__name__ == "Conv1D")


class _Partly(torch.autograd.Function):
    """A linear module; gradients go back at some runs from one position on, and none to its weights."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, module: nn.Module, whole: Callable[[Tensor], Tensor], back: Back) -> Tensor:
        ctx.module, ctx.back, ctx.shape = module, back, given.shape
        return whole(given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        runs, first = ctx.back.runs, ctx.back.first
        found = gradients[0].new_zeros(ctx.shape)
        found[runs, first:] = _times(ctx.module, gradients[0][runs, first:])
        return found, None, None, None


_FEW = 8


def _times(module: Any, gradient: Float[Tensor, "run pos d_out"]) -> Float[Tensor, "run pos d_in"]:
    """Returns the gradient at what a linear module was given."""
    weight: Tensor = module.weight.detach()
    if isinstance(module, nn.Linear):
        return gradient @ weight
    if gradient.shape[:-1].numel() > _FEW:
        return gradient @ weight.T
    # The same product the other way round: for a few rows it takes half as long.
    return (weight @ gradient.flatten(0, 1).T).T.unflatten(0, gradient.shape[:2])
