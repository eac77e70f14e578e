"""A slow literal twin for every family: the plain Hugging Face model, eager attention, one full forward a cell.

Sites are edited by torch hooks on the model's own modules, q, k, v and pattern by wrapping the function that attends.
The paths are written down by hand; nothing is shared with the engine or with TransformerLens.

What TransformerLens 4.3 means by a site was read from `BlockBridge` and the adapters. `hook_attn_out` and
`hook_mlp_out` are the outputs of the attention and MLP modules, except that they are what is *added* to the residual
stream wherever that is something else: the output of the post-norm in gemma2, gemma3 and olmo2 (their adapters declare
`ln1_post` and `ln2_post`, which redirect both aliases), of the output projection where a module adds the residual
itself (bloom's attention and MLP, mpt's MLP) or does not exist (opt's MLP). Granite scales both by its
residual multiplier; replacing scaled vectors is replacing vectors. `hook_resid_mid` is the input of the second norm,
of the MLP in olmo2, and does not exist in parallel blocks. `hook_q` and `hook_k` are taken before norms and rotary;
here they are taken after both, which is the same patch except where a norm runs across heads (olmo2).
"""

import copy
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

Edit = Callable[[str, int, Tensor], Tensor]
RESIDUAL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
ATTENTION = ("q", "k", "v", "pattern")


@dataclass(frozen=True)
class Places:
    """Module paths, all but `blocks` inside a block; `mid` is the module that reads the middle of the stream."""

    blocks: str = "model.layers"
    attn: str = "self_attn"
    projection: str = "self_attn.o_proj"
    attn_out: str = "self_attn"
    mlp_out: str = "mlp"
    mid: str = "post_attention_layernorm"


_GPT2 = Places("transformer.h", "attn", "attn.c_proj", "attn", "mlp", "ln_2")
_GPTJ = Places("transformer.h", "attn", "attn.out_proj", "attn", "mlp", "")
_FALCON = Places("transformer.h", "self_attention", "self_attention.dense", "self_attention", "mlp")
_POST_NORMS = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}

PLACES = {
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neox": Places("gpt_neox.layers", "attention", "attention.dense", "attention"),
    "opt": Places("model.decoder.layers", projection="self_attn.out_proj", mlp_out="fc2", mid="final_layer_norm"),
    "gemma2": Places(**_POST_NORMS, mid="pre_feedforward_layernorm"),
    "gemma3_text": Places(**_POST_NORMS, mid="pre_feedforward_layernorm"),
    "olmo2": Places(**_POST_NORMS, mid="mlp"),
    "phi": Places(projection="self_attn.dense", mid=""),
    "cohere": Places(mid=""),
    "cohere2": Places(mid=""),
    "gptj": _GPTJ,
    "codegen": _GPTJ,
    "gpt_neo": Places("transformer.h", "attn.attention", "attn.attention.out_proj", "attn.attention", "mlp", "ln_2"),
    "falcon": _FALCON,
    "bloom": Places(
        "transformer.h", "self_attention", "self_attention.dense", "self_attention.dense", "mlp.dense_4h_to_h"
    ),
    "mpt": Places("transformer.blocks", "attn", "attn.out_proj", "attn", "ffn.down_proj", "norm_2"),
}


def patched_logits(
    hf: nn.Module,
    base_ids: Sequence[int],
    source_ids: Sequence[int],
    component: str,
    layer: int | None,
    *,
    head: int | None = None,
    pos: int | None = None,
    dest: int | None = None,
    src: int | None = None,
) -> Tensor:
    """Returns logits [d_vocab] at the last position of the base run with values of the source run at one place.

    An axis that is None is patched whole. Keys and values are counted by key-value head.
    """
    values = activations(hf, tuple(source_ids))
    chosen = {"head": head, "pos": pos, "dest": dest, "src": src}
    where = tuple(slice(None) if chosen[axis] is None else chosen[axis] for axis in axes_of(component))

    def edit(name: str, at: int, value: Tensor) -> Tensor:
        if name != component or (layer is not None and at != layer):
            return value
        changed = value.clone()
        changed[where] = values[name, at][where]
        return changed

    return forward(hf, base_ids, edit)


def axes_of(component: str) -> tuple[str, ...]:
    """Returns the axes of one layer's value, in order."""
    if component == "pattern":
        return ("head", "dest", "src")
    return ("pos",) if component in RESIDUAL else ("pos", "head")


def components(hf: Any) -> tuple[str, ...]:
    """Returns what can be edited in this model."""
    residual = [name for name in RESIDUAL if name != "resid_mid" or _places(hf).mid]
    return (*residual, "z", *(ATTENTION if _attends_openly(hf) else ()))


@lru_cache(maxsize=256)
def activations(hf: nn.Module, ids: tuple[int, ...]) -> dict[tuple[str, int], Tensor]:
    """Returns every site's value of one prompt, [pos d], [pos head d_head] or [head dest src]."""
    kept: dict[tuple[str, int], Tensor] = {}

    def keep(name: str, layer: int, value: Tensor) -> Tensor:
        kept[name, layer] = value.clone()
        return value

    forward(hf, ids, keep)
    return kept


@torch.no_grad()
def forward(hf: nn.Module, ids: Sequence[int], edit: Edit = lambda name, layer, value: value) -> Tensor:
    """Returns logits [d_vocab] at the last position, with `edit` applied at every site of every layer.

    Raises:
        RuntimeError: a site did not come by exactly once, or the stream is not what an edit left there.
    """
    plain = _eager_copy(hf)
    fired: Counter[tuple[str, int]] = Counter()

    def counted(name: str, layer: int, value: Tensor) -> Tensor:
        fired[name, layer] += 1
        return edit(name, layer, value)

    blocks = plain.get_submodule(_places(hf).blocks)
    with ExitStack() as stack:
        for layer, block in enumerate(blocks):
            stack.enter_context(_hooked(_Layer(plain, block, layer, len(ids), counted)))
        if _attends_openly(plain):
            stack.enter_context(_attention_wrapped(plain, blocks, counted))
        logits = plain(torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    expected = {(name, layer): 1 for name in components(hf) for layer in range(len(blocks))}
    if fired != expected:
        raise RuntimeError(f"sites came by {dict(fired)} times, expected once each of {sorted(expected)}")
    return logits


@lru_cache(maxsize=64)
def _eager_copy(hf: nn.Module) -> Any:
    plain: Any = copy.deepcopy(hf)
    if _attends_openly(plain):
        plain.set_attn_implementation("eager")
    return plain


def _places(hf: Any) -> Places:
    config = hf.config
    places = PLACES.get(config.model_type, Places())
    if getattr(config, "use_parallel_residual", False) or getattr(config, "parallel_attn", False):
        return replace(places, mid="")
    return places


def _attends_openly(hf: Any) -> bool:
    """Whether attention is a function with q, k and v that can be wrapped."""
    return hf.config.model_type not in ("falcon", "bloom", "mpt")


class _Layer:
    """The hooks of one block. Values are handed to `edit` as [pos …], whatever shape the module uses."""

    def __init__(self, hf: Any, block: nn.Module, layer: int, length: int, edit: Edit) -> None:
        self.block, self.layer, self.length, self.edit = block, layer, length, edit
        self.places = _places(hf)
        self.heads = int(hf.config.num_attention_heads)
        self.scale = float(getattr(hf.config, "residual_multiplier", 1.0))
        self.pre = self.mid = torch.empty(0)

    def block_input(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        def edit(value: Tensor) -> Tensor:
            self.pre = self.edit("resid_pre", self.layer, value)
            return self.pre

        return _edit_input(args, kwargs, lambda value: self._flat(value, edit))

    def block_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self._edit_output(output, lambda value: self.edit("resid_post", self.layer, value))

    def attn_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Edits attn_out, then resid_mid as the change of attn_out that brings the stream to where it should be."""

        def edit(value: Tensor) -> Tensor:
            value = self.edit("attn_out", self.layer, value)
            if not self.places.mid:
                return value
            middle = self.pre + self.scale * value
            self.mid = self.edit("resid_mid", self.layer, middle)
            return value if self.mid is middle else value + (self.mid - middle) / self.scale

        return self._edit_output(output, edit)

    def mlp_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self._edit_output(output, lambda value: self.edit("mlp_out", self.layer, value))

    def middle(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Checks that the second branch reads the edited stream."""
        value = (args[0] if args else kwargs["hidden_states"]).reshape(self.length, -1)
        if not torch.allclose(value, self.mid, atol=1e-4):
            raise RuntimeError(
                f"layer {self.layer}: the middle of the stream is off by {(value - self.mid).abs().max()}"
            )

    def projection_input(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        def edit(value: Tensor) -> Tensor:
            return self.edit("z", self.layer, value.reshape(self.length, self.heads, -1))

        return _edit_input(args, kwargs, lambda value: self._flat(value, edit))

    def _flat(self, value: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
        return edit(value.reshape(self.length, -1)).reshape(value.shape)

    def _edit_output(self, output: Any, edit: Callable[[Tensor], Tensor]) -> Any:
        if isinstance(output, tuple):
            return (self._flat(output[0], edit), *output[1:])
        return self._flat(output, edit)


def _edit_input(args: Any, kwargs: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    if args:
        return (edit(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}


@contextmanager
def _hooked(one: _Layer) -> Generator[None]:
    find = one.block.get_submodule
    handles = [
        one.block.register_forward_pre_hook(one.block_input, with_kwargs=True),
        one.block.register_forward_hook(one.block_output),
        find(one.places.projection).register_forward_pre_hook(one.projection_input, with_kwargs=True),
        find(one.places.attn_out).register_forward_hook(one.attn_output),
        find(one.places.mlp_out).register_forward_hook(one.mlp_output),
    ]
    if one.places.mid:
        handles.append(find(one.places.mid).register_forward_pre_hook(one.middle, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _attention_wrapped(hf: Any, blocks: Any, edit: Edit) -> Generator[None]:
    """Wraps `eager_attention_forward` of the modelling file, or each instance's `_attn` where there is no such."""
    attentions = [block.get_submodule(_places(hf).attn) for block in blocks]
    source = sys.modules[type(attentions[0]).__module__]
    with ExitStack() as stack:
        if hasattr(source, "eager_attention_forward"):
            original = source.eager_attention_forward

            def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
                z, weights = _attend(
                    lambda *qkv: _heads_first(original(module, *qkv, *args, **kwargs)),
                    (q, k, v),
                    edit,
                    module.layer_idx,
                )
                return z.transpose(1, 2), weights

            stack.enter_context(mock.patch.object(source, "eager_attention_forward", attend))
        else:
            for layer, module in enumerate(attentions):
                stack.enter_context(mock.patch.object(module, "_attn", _own(module._attn, layer, edit)))
        yield


def _heads_first(output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return output[0].transpose(1, 2), output[1]


def _own(original: Any, layer: int, edit: Edit) -> Any:
    def attend(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return _attend(lambda *qkv: original(*qkv, *args, **kwargs), (q, k, v), edit, layer)

    return attend


def _attend(
    call: Callable[..., tuple[Tensor, Tensor]], qkv: tuple[Tensor, Tensor, Tensor], edit: Edit, layer: int
) -> tuple[Tensor, Tensor]:
    """Returns z [1 head pos d_head] and weights [1 head dest src] for q, k, v [1 head pos d_head], all edited."""
    q, k, v = (
        edit(name, layer, value[0].transpose(0, 1)).transpose(0, 1)[None]
        for name, value in zip("qkv", qkv, strict=True)
    )
    z, weights = call(q, k, v)
    seen = weights[0]
    pattern = edit("pattern", layer, seen)
    if pattern is seen:
        return z, weights
    return pattern @ v.repeat_interleave(len(seen) // v.shape[1], 1), pattern[None]
