"""Where a model's parts are found, that nothing is built or moved for it, and the weights counted by hand."""

from typing import Any

import families
import pytest
import torch
from families import LAYERS, WIDTH
from torch import nn

from nbpatch.parts import Block, Unfit, find_parts

PARTS = ("attention", "project", "attn_out", "mid", "mlp", "mlp_out", "down")

PLACES = {
    "gpt2": ("transformer.h", "attn", "attn.c_proj", "attn", "ln_2", "mlp", "mlp", "mlp.c_proj"),
    "llama": (
        "model.layers", "self_attn", "self_attn.o_proj", "self_attn", "post_attention_layernorm", "mlp", "mlp",
        "mlp.down_proj",
    ),
    "gemma2": (
        "model.layers", "self_attn", "self_attn.o_proj", "post_attention_layernorm", "pre_feedforward_layernorm", "mlp",
        "post_feedforward_layernorm", "mlp.down_proj",
    ),
    "opt": (
        "model.decoder.layers", "self_attn", "self_attn.out_proj", "self_attn", "final_layer_norm", None, "fc2", "fc2",
    ),
    "gpt_neox parallel": (
        "gpt_neox.layers", "attention", "attention.dense", "attention", None, "mlp", "mlp", "mlp.dense_4h_to_h",
    ),
    "gpt_neo": (
        "transformer.h", "attn.attention", "attn.attention.out_proj", "attn.attention", "ln_2", "mlp", "mlp",
        "mlp.c_proj",
    ),
}  # fmt: skip


def state(hf: Any) -> tuple[Any, ...]:
    """Returns all that finding parts could change: modules, parameters, hooks, methods, settings."""
    modules = [(name, id(module), sorted(module.__dict__)) for name, module in hf.named_modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules()]
    weights = [(name, id(weight), weight._version) for name, weight in hf.named_parameters()]
    return modules, hooks, weights, hf.config.to_dict(), hf.config._attn_implementation, hf.training


@pytest.mark.parametrize("family", PLACES)
def test_the_parts_are_where_the_family_has_them(family):
    hf = families.build(family)
    path, *expected = PLACES[family]
    parts = find_parts(hf)
    assert parts.model is hf
    assert parts.unembed is hf.lm_head
    assert len(parts.blocks) == LAYERS
    for number, block in enumerate(parts.blocks):
        assert block.module is hf.get_submodule(f"{path}.{number}")
        names = {id(module): name for name, module in block.module.named_modules()}
        found = [getattr(block, part) for part in PARTS]
        assert [None if one is None else names[id(one)] for one in found] == expected


def test_no_bridge_is_built_and_the_model_is_not_touched(monkeypatch):
    from transformer_lens.model_bridge import TransformerBridge

    def refused(*args: Any, **options: Any) -> None:
        pytest.fail("a Bridge was built")

    models = [families.build(family) for family in PLACES]
    before, ids = [state(hf) for hf in models], torch.tensor([[0, 3, 4, 5]])
    with torch.no_grad():
        logits = [hf(ids).logits for hf in models]
    monkeypatch.setattr(TransformerBridge, "__init__", refused)
    monkeypatch.setattr(TransformerBridge, "boot_transformers", refused)
    for hf in models:
        find_parts(hf)
    assert [state(hf) for hf in models] == before
    with torch.no_grad():
        assert all(torch.equal(hf(ids).logits, one) for hf, one in zip(models, logits, strict=True))


def test_a_model_without_an_adapter_is_unfit_with_its_name():
    hf = families.build("gpt2")
    type_of_its_own = type("HomeMadeForCausalLM", (type(hf),), {})
    hf.__class__ = type_of_its_own
    with pytest.raises(Unfit, match=r"^TransformerLens has no adapter for HomeMadeForCausalLM$"):
        find_parts(hf)


def test_a_model_without_an_unembedding_is_unfit(monkeypatch):
    hf = families.build("gpt2")
    monkeypatch.setattr(hf, "get_output_embeddings", lambda: None)
    with pytest.raises(Unfit, match="no unembedding"):
        find_parts(hf)


def test_a_part_that_is_not_where_the_adapter_says_is_unfit():
    hf = families.build("gpt2")
    block = hf.transformer.h[1]
    block.attention, _ = block.attn, block.__delattr__("attn")
    with pytest.raises(Unfit, match="not where the adapter says"):
        find_parts(hf)


def test_the_operations_of_a_token_are_those_counted_by_hand():
    parts = find_parts(families.build("gpt2"))
    attention, projection, mlp = 3 * WIDTH**2, WIDTH**2, 2 * WIDTH * 4 * WIDTH
    block: Block = parts.blocks[0]
    assert block.attention_weights == attention + projection
    assert block.project_weights == projection
    assert block.mlp_weights == mlp
    assert block.weights == attention + projection + mlp
    assert parts.flops_per_token == 2 * LAYERS * 12 * WIDTH**2


def test_the_operations_of_a_block_without_an_mlp_module_are_the_rest_of_its_matrices():
    block = find_parts(families.build("opt")).blocks[0]
    assert block.mlp is None
    assert block.attention_weights == 4 * WIDTH**2
    assert block.mlp_weights == 2 * WIDTH * 48
    assert block.weights == sum(one.weight.numel() for one in block.module.modules() if isinstance(one, nn.Linear))


def test_the_operations_of_a_mixture_are_those_of_the_experts_chosen():
    block = find_parts(families.build("mixtral")).blocks[0]
    experts = 4 * 3 * WIDTH * 48 + 4 * WIDTH
    assert block.mlp_weights == pytest.approx(experts / 2, abs=4 * WIDTH)
