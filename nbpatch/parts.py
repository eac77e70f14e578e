"""Where the parts of a Hugging Face model are, as TransformerLens's adapters name them; no Bridge is built.

The engine runs a model's own blocks. It needs to know which submodule is the attention, which output TransformerLens
calls `hook_attn_out`, and so on: the adapters know that for each architecture.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn


class Unfit(Exception):
    """Why a model cannot go the fast way; it is then run by a slower one, and told so."""


class AttendsInline(Unfit):
    """The blocks compute attention themselves: no function can be lent them, but their cache can be filled."""


@dataclass(frozen=True)
class Block:
    """One transformer block.

    Attributes:
        attention: the attention module.
        project: its output projection, from z to what attention writes.
        attn_out: the module whose output is `attn_out`: the attention, or the norm behind it.
        mid: the module whose input is `resid_mid`; None in parallel blocks, where there is no such place.
        mlp: the MLP; None where it is no module of its own (OPT).
        mlp_out: the module whose output is `mlp_out`: the MLP, or the norm behind it.
        down: the MLP's output projection, whose input are the neurons; None for mixtures of experts.
    """

    module: nn.Module
    attention: nn.Module
    project: nn.Module
    attn_out: nn.Module
    mid: nn.Module | None
    mlp: nn.Module | None
    mlp_out: nn.Module
    down: nn.Module | None

    @cached_property
    def weights(self) -> int:
        """Weights a token meets in the block; of a mixture of experts, the chosen ones."""
        return self.attention_weights + self.mlp_weights

    @cached_property
    def attention_weights(self) -> int:
        """Weights of the attention, its output projection included."""
        return _matrices(self.attention)

    @cached_property
    def project_weights(self) -> int:
        """Weights of the attention's output projection."""
        return _matrices(self.project)

    @cached_property
    def mlp_weights(self) -> int:
        """Weights a token meets in the MLP; experts lie in one tensor of three axes, and a token meets some of them."""
        if self.mlp is None:
            return _matrices(self.module) - self.attention_weights
        stacks = [weight for weight in self.mlp.parameters() if weight.ndim == 3]
        config = getattr(self.attention, "config", None)
        chosen = int(getattr(config, "num_experts_per_tok", None) or 1)
        met = sum(weight.numel() * chosen // weight.shape[0] for weight in stacks)
        return _matrices(self.mlp) + met


def _matrices(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.ndim == 2)


_TANH_GELUS = ("NewGELUActivation", "FastGELUActivation", "PytorchGELUTanh", "GELUTanh")


@dataclass(frozen=True)
class Parts:
    """A Hugging Face model taken apart, nothing moved or copied."""

    model: nn.Module
    blocks: tuple[Block, ...]
    unembed: nn.Module

    @cached_property
    def flops_per_token(self) -> float:
        """Floating-point operations of one token through all blocks, scores and unembedding not counted."""
        return 2.0 * sum(block.weights for block in self.blocks)

    @cached_property
    def configs(self) -> tuple[Any, ...]:
        """Each configuration that any attention module reads, once."""
        model: Any = self.model
        seen: dict[int, Any] = {id(model.config): model.config}
        for module in model.modules():
            config = getattr(module, "config", None)
            if config is not None:
                seen.setdefault(id(config), config)
        return tuple(seen.values())

    @cached_property
    def tanh_gelus(self) -> tuple[nn.Module, ...]:
        """Activations that compute the tanh form of GELU, most of them in eight steps."""
        return tuple(one for one in self.model.modules() if type(one).__name__ in _TANH_GELUS)


def find_parts(model: Any) -> Parts:
    """Returns the parts of a causal language model.

    Raises:
        Unfit: TransformerLens has no adapter for it, or the adapter names a part that is not there.
    """
    mapping = adapter_of(model).component_mapping
    if not mapping or "blocks" not in mapping:
        raise Unfit("TransformerLens's adapter names no blocks")
    blocks = mapping["blocks"]
    path = str(blocks.name)
    modules = model.get_submodule(path)
    unembed = model.get_output_embeddings()
    if unembed is None:
        raise Unfit("the model has no unembedding")
    return Parts(model, tuple(_block(module, blocks) for module in modules), unembed)


def adapter_of(model: Any) -> Any:
    """Returns TransformerLens's architecture adapter for a Hugging Face model.

    Raises:
        Unfit: there is none.
    """
    # Private, pinned and tested (tests/test_parts.py): the public way to an adapter builds a whole Bridge.
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf

    name = type(model).__name__
    try:
        config = build_bridge_config_from_hf(model.config, name, "local/model", torch.float32)
        return ArchitectureAdapterFactory.select_architecture_adapter(config)
    except Exception as error:
        raise Unfit(f"TransformerLens has no adapter for {name}") from error


def _block(module: nn.Module, mapping: Any) -> Block:
    subs = mapping.submodules
    aliases = mapping.hook_aliases

    def named(key: str) -> nn.Module | None:
        """Returns the module a hook alias such as "ln1_post.hook_out" or "mlp.out.hook_out" hangs on."""
        inside, names = subs, list[str]()
        for part in str(aliases.get(key, "")).split(".")[:-1]:
            if part not in (inside or {}):
                return None
            names += [inside[part].name] if inside[part].name else []
            inside = inside[part].submodules
        return _sub(module, ".".join(names))

    if "attn" not in subs or "mlp" not in subs:
        raise Unfit("a block has no attention or no MLP of its own")
    attention, mlp = _sub(module, subs["attn"].name), _sub(module, subs["mlp"].name)
    inside = subs["attn"].submodules or {}
    project = None if attention is None or "o" not in inside else _sub(attention, inside["o"].name)
    mlp_out = named("hook_mlp_out") or mlp
    if attention is None or project is None or mlp_out is None:
        raise Unfit("a block's attention or MLP is not where the adapter says")
    out = (subs["mlp"].submodules or {}).get("out")
    return Block(
        module=module,
        attention=attention,
        project=project,
        attn_out=named("hook_attn_out") or attention,
        mid=named("hook_resid_mid"),
        mlp=mlp,
        mlp_out=mlp_out,
        down=None if out is None else _sub(mlp or module, out.name),
    )


def _sub(module: nn.Module, path: str | None) -> nn.Module | None:
    try:
        return module.get_submodule(path) if path else None
    except AttributeError:
        return None
