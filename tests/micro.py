"""Small models for tests: random GPT-2 and Llama shapes, a word-level tokenizer, prompts that fit them."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

SHARED = Path(__file__).parents[2] / "shared"
STORIES = SHARED / "models" / "stories260K"
GPT2_TOKENIZER = SHARED / "models" / "gpt2-tokenizer"

WORDS = (
    "When",
    " Mary",
    " John",
    " and",
    " went",
    " to",
    " the",
    " store",
    ",",
    " gave",
    " a",
    " drink",
    " ball",
    " Paul",
)


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """A word-level tokenizer whose tokens carry their leading space; it puts <bos> in front."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(("<bos>", "<unk>", *WORDS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|[^\w\s]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", unk_token="<unk>")


def gpt2(layers: int = 3, heads: int = 4, seed: int = 0) -> Any:
    """A random GPT-2 whose weights are large enough for attention to look somewhere."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=layers, n_head=heads, n_embd=32, n_positions=32, vocab_size=len(WORDS) + 2, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def llama(layers: int = 2, seed: int = 0) -> Any:
    """A random Llama with two key-value heads for four query heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, intermediate_size=48,
        head_dim=8, max_position_embeddings=32, vocab_size=len(WORDS) + 2, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()
