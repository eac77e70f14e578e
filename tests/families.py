"""Tiny random models of every family the engine knows, and prompts that fit them all.

Three layers, four heads, and weights so large that attention is far from uniform. Whatever a family does in some
layers only (sliding windows, dense layers before the experts) is switched on for some of the three.
"""

from functools import cache
from typing import Any

import micro
import torch
from torch import nn

from nbpatch.model import Model, load
from nbpatch.prompts import PromptPair

LAYERS, HEADS, KV_HEADS, WIDTH, VOCABULARY, WINDOW = 3, 4, 2, 32, 60, 6
LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention", "sliding_attention"]

FAST = (
    "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox parallel", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma",
    "gemma2", "gemma3", "phi", "phi3", "olmo", "olmo2", "mixtral", "qwen3_moe", "stablelm", "stablelm parallel",
    "cohere", "cohere2", "starcoder2", "granite", "gpt_oss", "smollm3", "deepseek_v3", "nemotron",
)  # fmt: skip
OVERRIDDEN = ("gptj", "codegen", "gpt_neo")
SLOW = ("falcon", "falcon parallel", "falcon alibi", "bloom", "mpt")
FAMILIES = (*FAST, *OVERRIDDEN, *SLOW)
PARALLEL = ("gpt_neox parallel", "phi", "stablelm parallel", "cohere", "cohere2", "gptj", "codegen", "falcon parallel")

_COMMON = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "vocab_size": VOCABULARY}
_SIZES = {
    **_COMMON, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "max_position_embeddings": 32,
}  # fmt: skip
_GROUPED = {**_SIZES, "num_key_value_heads": KV_HEADS, "head_dim": 8}
_OLD = {**_COMMON, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 32}
_EXPERTS = {**_GROUPED, "num_experts_per_tok": 2}
_FALCON = {**_COMMON, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}

SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": _OLD,
    "gpt_bigcode": {**_OLD, "multi_query": True},
    "gpt_neox": {**_SIZES, "use_parallel_residual": False},
    "gpt_neox parallel": {**_SIZES, "use_parallel_residual": True},
    "opt": {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": WIDTH, "pad_token_id": 1},
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": WINDOW},
    "qwen2": {key: value for key, value in _GROUPED.items() if key != "head_dim"},
    "qwen3": _GROUPED,
    "gemma": _GROUPED,
    "gemma2": {
        **_GROUPED, "sliding_window": WINDOW, "layer_types": LOCAL_AND_GLOBAL, "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 4.0, "final_logit_softcapping": 8.0,
    },
    "gemma3_text": {
        **_GROUPED, "sliding_window": WINDOW, "layer_types": LOCAL_AND_GLOBAL, "query_pre_attn_scalar": 8,
    },
    "phi": {**_SIZES, "partial_rotary_factor": 0.5},
    "phi3": {**_SIZES, "num_key_value_heads": KV_HEADS, "sliding_window": None},
    "olmo": {**_SIZES, "num_key_value_heads": KV_HEADS, "clip_qkv": 3.0},
    "olmo2": {**_SIZES, "num_key_value_heads": KV_HEADS},
    "mixtral": {**_EXPERTS, "num_local_experts": 4},
    "qwen3_moe": {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 24, "norm_topk_prob": True},
    "stablelm": {**_SIZES, "num_key_value_heads": KV_HEADS, "use_qkv_bias": True},
    "stablelm parallel": {**_SIZES, "num_key_value_heads": KV_HEADS, "use_parallel_residual": True},
    "cohere": {**_SIZES, "num_key_value_heads": KV_HEADS, "use_qk_norm": True, "logit_scale": 0.25},
    "cohere2": {
        **_SIZES, "num_key_value_heads": KV_HEADS, "logit_scale": 0.25, "sliding_window": WINDOW,
        "layer_types": LOCAL_AND_GLOBAL,
    },
    "starcoder2": {**_SIZES, "num_key_value_heads": KV_HEADS, "sliding_window": WINDOW},
    "granite": {
        **_SIZES, "num_key_value_heads": KV_HEADS, "residual_multiplier": 0.7, "attention_multiplier": 0.4,
        "embedding_multiplier": 1.5, "logits_scaling": 2.0,
    },
    "gpt_oss": {
        **_EXPERTS, "num_local_experts": 4, "sliding_window": WINDOW, "layer_types": LOCAL_AND_GLOBAL,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8,
            "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        },
    },
    "smollm3": {
        **{key: value for key, value in _GROUPED.items() if key != "head_dim"}, "no_rope_layers": [1, 0, 1],
    },
    "deepseek_v3": {
        **_SIZES, "num_key_value_heads": HEADS, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4, "v_head_dim": 6, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 2,
        "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 24,
    },
    "nemotron": _GROUPED,
    "gptj": {**_OLD, "rotary_dim": 4},
    "codegen": {**_OLD, "rotary_dim": 4},
    "gpt_neo": {
        **_COMMON, "hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "max_position_embeddings": 32,
        "attention_types": [[["global", "local", "global"], 1]], "window_size": WINDOW,
    },
    "falcon": {**_FALCON, "alibi": False, "parallel_attn": False, "multi_query": False, "bias": True},
    "falcon parallel": {**_FALCON, "alibi": False, "parallel_attn": True, "multi_query": True, "bias": False},
    "falcon alibi": {**_FALCON, "alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
    "bloom": {**_COMMON, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
    "mpt": {**_COMMON, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": 32},
}  # fmt: skip

MODEL_TYPES = {"gemma3": "gemma3_text"}

# All thirteen tokens long, and different: in one token early, in two, in one late, in the token that is answered from.
PAIRS = (
    PromptPair(
        "When Mary went to the store, John gave a drink to", "When John went to the store, John gave a drink to",
        " Mary", " John",
    ),
    PromptPair(
        "When Mary and John went to the store, Mary gave a", "When Mary and Paul went to the ball, Mary gave a",
        " drink", " Paul",
    ),
    PromptPair(
        " John and Mary went to the store and gave the ball to",
        " John and Mary went to the store and gave the drink to",
        " Paul", " the",
    ),
    PromptPair(
        " Paul gave a drink to Mary and John went to a store", " Paul gave a drink to Mary and John went to a ball",
        ",", " and",
    ),
)  # fmt: skip


def build(family: str) -> nn.Module:
    """Returns the family's random model, with the same weights at every call."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = MODEL_TYPES.get(family, family.split(maxsplit=1)[0])
    config = AutoConfig.for_model(kind, **SETTINGS.get(family, SETTINGS.get(kind, {})))
    # Eager Falcon adds alibi twice in transformers 5.23, and a Bridge is always eager: only so do the two agree.
    eager = {"attn_implementation": "eager"} if family == "falcon alibi" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **eager).eval()
        _randomise(hf)
    hf.config.architectures = [type(hf).__name__]
    return hf


@torch.no_grad()
def _randomise(hf: nn.Module) -> None:
    """Fills matrices with large random numbers, and moves biases and norms off the values that hide mistakes."""
    for name, weight in sorted(hf.named_parameters()):
        noise = torch.randn(weight.shape)
        if weight.dim() > 1 and "norm" not in name:
            weight.copy_(noise * (0.6 if any(part in name for part in ("emb", "wte", "wpe")) else 0.3))
        else:
            weight.add_(0.2 * noise)


@cache
def plain(family: str) -> nn.Module:
    """Returns the family's model, built once a session; tests must not change it."""
    return build(family)


@cache
def loaded(family: str) -> Model:
    """Returns the same model as nbpatch loads it; tests must not change it."""
    return load((plain(family), micro.tokenizer()))
