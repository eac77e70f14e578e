"""The base runs on the plain model: every prompt once, with all that patched rows take from them.

Runs are numbered 2·pair for the clean prompt and 2·pair + 1 for the corrupted one. Prompts of one length run together;
shorter ones are padded on the right afterwards, where nothing ever reads.
"""

import inspect
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbpatch.engine.attention import Keys, Queries, Values, attend_as_family, attending, is_causal, replaced
from nbpatch.parts import AttendsInline, Block, Parts, Unfit


@dataclass
class Layer:
    """What the base runs left in one layer.

    Attributes:
        pre: the block's input [run pos d_model].
        q: queries after norms and rotary embedding [run head pos d_head]; k, v: keys and values, not repeated.
        z: what the output projection takes [run pos head·d_head].
        attn_out, mid, mlp_out, neurons: outputs and inputs of the parts [run pos …].
        mask: the attention mask [1 1 dest src].
        module: the module that asked for attention; options: what it asked with.
        arguments: the block's other arguments, by name.
        weights: attention weights in the place of the corrupted runs' own [pair head dest src]; None for their own.

    What no patch of the run needs is not kept and None.
    """

    pre: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor
    z: Tensor | None
    attn_out: Tensor | None
    mid: Tensor | None
    mlp_out: Tensor | None
    neurons: Tensor | None
    module: nn.Module
    options: Mapping[str, Any]
    arguments: Mapping[str, Any]
    weights: Tensor | None = None


@dataclass
class Trace:
    """The base runs.

    Attributes:
        layers: one per block.
        out: the last block's output [run pos d_model].
        lengths: tokens of each run.
        logits: answer logits [run d_vocab].
        returns: id of a module → how many values its forward returns; 0 for a bare tensor.
        passing: bytes that scores of several runs may take at once.
    """

    layers: list[Layer]
    out: Float[Tensor, "run pos d_model"]
    lengths: Int[Tensor, "run"]
    logits: Float[Tensor, "run d_vocab"]
    returns: Mapping[int, int] = field(default_factory=dict[int, int])
    passing: int = 2**30

    def first_nan(self, run: int) -> int | None:
        """Returns the first layer whose output is not finite in a run; None for none."""
        length = int(self.lengths[run])
        for layer in range(len(self.layers)):
            if not bool(torch.isfinite(self.pre(layer + 1)[run, :length]).all()):
                return layer
        return None

    def pre(self, layer: int) -> Float[Tensor, "run pos d_model"]:
        """Returns the input of a block, or the last block's output for the layer behind it."""
        return self.out if layer == len(self.layers) else self.layers[layer].pre


OPTIONAL = ("z", "attn_out", "mid", "mlp_out", "neurons")

_WANTED = {
    "resid_mid": {"attn_out", "mid"},
    "attn_out": {"attn_out"},
    "mlp_out": {"attn_out", "mlp_out"},
    "mlp_post": {"attn_out", "neurons"},
    "z": {"z"},
    "q": {"z"},
    "k": {"z"},
    "v": {"z"},
    "pattern": {"z"},
}


def wanted(components: Iterable[str]) -> frozenset[str]:
    """Returns what patches of some components need beside residual stream, keys and values."""
    return frozenset().union(*(_WANTED.get(component, set()) for component in components))


def trace(
    parts: Parts,
    prompts: Sequence[Sequence[int]],
    *,
    device: torch.device,
    max_tokens: int,
    keep: frozenset[str] = frozenset(OPTIONAL),
) -> Trace:
    """Runs prompts on a model and keeps what patched rows need.

    Args:
        max_tokens: prompt tokens of one forward.
        keep: which of `OPTIONAL` to keep.

    Raises:
        AttendsInline: no layer asks for a function to attend with.
        Unfit: a block without attention of its own, or one that sees later positions.
    """
    by_length: dict[int, list[int]] = {}
    for run, ids in enumerate(prompts):
        by_length.setdefault(len(ids), []).append(run)
    pieces: list[tuple[list[int], Trace]] = []
    for length, runs in by_length.items():
        step = max(1, max_tokens // length)
        for start in range(0, len(runs), step):
            some = runs[start : start + step]
            ids = torch.tensor([prompts[run] for run in some], device=device)
            pieces.append((some, _Recorder(parts, keep).run(ids)))
    return pieces[0][1] if len(pieces) == 1 else _joined(pieces)


def arguments_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Returns the hidden states a block was called with, and its other arguments by name."""
    arguments = _signature(type(module)).bind(module, *args, **kwargs).arguments
    extra = arguments.pop("kwargs", {})
    arguments = {**dict(arguments), **extra}
    arguments.pop("self", None)
    return arguments.pop(next(iter(arguments))), arguments


@lru_cache(maxsize=64)
def _signature(block: type[nn.Module]) -> inspect.Signature:
    return inspect.signature(block.forward)


class _Recorder:
    """Writes down one forward, layer by layer."""

    def __init__(self, parts: Parts, keep: frozenset[str]) -> None:
        self.parts = parts
        self.kept = keep
        self.seen: list[dict[str, Any]] = [{} for _ in parts.blocks]
        self.returns: dict[int, int] = {}
        self.layer = 0

    @torch.no_grad()
    def run(self, ids: Int[Tensor, "run pos"]) -> Trace:
        model: Any = self.parts.model
        with self._watching(), attending(self.parts, self._attend):
            logits = model(ids, use_cache=False).logits[:, -1]
        last = self.seen[-1].get("out")
        if last is None:
            raise Unfit("the last block was not run")
        lengths = torch.full((len(ids),), ids.shape[1])
        return Trace([self._layer_of(seen) for seen in self.seen], last, lengths, logits, self.returns)

    def _layer_of(self, seen: dict[str, Any]) -> Layer:
        missing = {"q", "z", "attn_out", "mlp_out"} - set(seen)
        if missing == {"q"}:
            raise AttendsInline("attention is computed inside the blocks")
        if missing:
            raise Unfit(f"a layer shows no {', '.join(sorted(missing))}")
        if seen["mask"] is None or not is_causal(seen["mask"]):
            raise Unfit("attention is not causal")
        values: dict[str, Any] = {one.name: seen.get(one.name) for one in fields(Layer)}
        return Layer(**values)

    def _attend(
        self, module: nn.Module, q: Queries, k: Keys, v: Values, mask: Any, options: Mapping[str, Any]
    ) -> Tensor:
        if "q" in self.seen[self.layer]:
            raise Unfit("a layer has attention twice")
        mask = None if mask is None else mask[:1, :1]
        self.seen[self.layer].update(q=q, k=k, v=v, mask=mask, module=module, options=dict(options))
        return attend_as_family(module, q, k, v, mask, options)

    @contextmanager
    def _watching(self) -> Generator[None]:
        with ExitStack() as stack:
            for number, block in enumerate(self.parts.blocks):
                for module, hook in self._hooks(number, block):
                    stack.callback(hook(module).remove)
            stack.enter_context(_answers_only(self.parts.unembed))
            yield

    def _hooks(self, number: int, block: Block) -> list[tuple[nn.Module, Callable[[nn.Module], Any]]]:
        seen = self.seen[number]

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.layer = number
            seen["pre"], seen["arguments"] = arguments_of(module, args, kwargs)

        def output(name: str) -> Callable[[nn.Module], Any]:
            def keep(module: nn.Module, args: Any, result: Any) -> None:
                self.returns[id(module)] = len(result) if isinstance(result, tuple) else 0
                value = result[0] if isinstance(result, tuple) else result
                seen[name] = None
                if name in self.kept or name == "out":
                    seen[name] = value.view(seen["pre"].shape[:2] + value.shape[-1:])

            return lambda module: module.register_forward_hook(keep)

        def taken(name: str) -> Callable[[nn.Module], Any]:
            def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
                seen[name] = None
                if name in self.kept:
                    seen[name] = args[0].reshape(seen["pre"].shape[:2] + args[0].shape[-1:])

            return lambda module: module.register_forward_pre_hook(keep)

        hooks = [
            (block.module, lambda module: module.register_forward_pre_hook(enter, with_kwargs=True)),
            (block.module, output("out")),
            (block.attention, output("attention")),
            (block.attn_out, output("attn_out")),
            (block.project, taken("z")),
            (block.mlp_out, output("mlp_out")),
        ]
        if block.mlp is not None:
            hooks.append((block.mlp, output("mlp")))
        if block.mid is not None:
            hooks.append((block.mid, taken("mid")))
        if block.down is not None:
            hooks.append((block.down, taken("neurons")))
        return hooks


@contextmanager
def _answers_only(unembed: nn.Module) -> Generator[None]:
    """Unembeds the last position only: all positions cost a quarter of a GPT-2 forward."""
    whole = unembed.forward
    with replaced(unembed, "forward", lambda hidden: whole(hidden[:, -1:])):
        yield


def _joined(pieces: Sequence[tuple[list[int], Trace]]) -> Trace:
    """Returns several traces as one, runs in their order, padded on the right to the longest."""
    order = torch.tensor([run for runs, _ in pieces for run in runs]).argsort()
    longest = max((part for _, part in pieces), key=lambda part: part.out.shape[1])
    n = longest.out.shape[1]

    def join(read: Callable[[Trace], Tensor | None], axis: int) -> Any:
        values = [read(part) for _, part in pieces]
        if any(value is None for value in values):
            return None
        padded = [_padded(value, axis, n) for value in values if value is not None]
        return torch.cat(padded)[order.to(padded[0].device)]

    def reader(layer: int, name: str) -> Callable[[Trace], Tensor | None]:
        return lambda part: getattr(part.layers[layer], name)

    layers: list[Layer] = []
    for number, one in enumerate(longest.layers):
        values = {name: join(reader(number, name), 1) for name in ("pre", *OPTIONAL)}
        heads = {name: join(reader(number, name), 2) for name in ("q", "k", "v")}
        shared = {name: getattr(one, name) for name in ("mask", "module", "options", "arguments")}
        layers.append(Layer(**values, **heads, **shared))
    lengths = torch.cat([part.lengths for _, part in pieces])[order]
    logits = torch.cat([part.logits for _, part in pieces])[order.to(longest.logits.device)]
    return Trace(layers, join(lambda part: part.out, 1), lengths, logits, longest.returns)


def _padded(value: Tensor, axis: int, length: int) -> Tensor:
    missing = length - value.shape[axis]
    return value if not missing else torch.cat([value, value.new_zeros(_with(value.shape, axis, missing))], axis)


def _with(shape: torch.Size, axis: int, size: int) -> list[int]:
    return [*shape[:axis], size, *shape[axis + 1 :]]
