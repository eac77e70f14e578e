"""What the benchmark runs on: random models of known shapes, and prompts whose first difference is where we say.

Nothing is read from disk. The time of a forward does not depend on what the weights say, but what a patch does: the
weights are three times as large as their usual start, so that attention is not uniform and effects can be seen.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import nbpatch
from nbpatch import PromptPair

VOCABULARY = 50257
LONGEST = 512
TIMES = 3 * 0.02
"""Three times the usual spread of starting weights at width 768."""

SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}


def gpt2() -> Any:
    """GPT-2 small: 12 layers of 768 with 12 heads."""
    return _like_gpt2(layers=12, width=768, heads=12, vocabulary=VOCABULARY, spread=TIMES)


def tiny() -> Any:
    """4 layers of 128 with 4 heads; the weights' spread gives queries and keys the size they have in the large one."""
    return _like_gpt2(layers=4, width=128, heads=4, vocabulary=1000, spread=TIMES * (768 / 128) ** 0.5)


def _like_gpt2(*, layers: int, width: int, heads: int, vocabulary: int, spread: float) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, n_positions=LONGEST, vocab_size=vocabulary,
        initializer_range=spread, **SPECIAL,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def llama(**changes: Any) -> Any:
    """A Llama of 12 layers of 768: 12 query heads, 4 key-value heads; `changes` go into its configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12,
        "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": LONGEST, "vocab_size": VOCABULARY,
        "initializer_range": TIMES,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **SPECIAL, **changes}))


def gemma2(**changes: Any) -> Any:
    """A Gemma 2 of 12 layers of 768: 12 query heads, 6 key-value heads, four norms a block, soft caps."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {
        "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
        "num_key_value_heads": 6, "head_dim": 64, "query_pre_attn_scalar": 64, "max_position_embeddings": LONGEST,
        "vocab_size": VOCABULARY, "initializer_range": TIMES,
    }  # fmt: skip
    return Gemma2ForCausalLM(Gemma2Config(**{**sizes, **SPECIAL, **changes}))


SHAPES: dict[str, Callable[[], Any]] = {"gpt2": gpt2, "llama": llama, "gemma2": gemma2, "tiny": tiny}


def make_model(shape: str, device: str = "cpu") -> Any:
    """Returns the model of a shape, ready for nbpatch; its `bridge` is TransformerLens's view of the same weights."""
    torch.manual_seed(0)
    hf = SHAPES[shape]().eval().to(device)
    return nbpatch.load((hf, tokenizer(hf.config.vocab_size)))


def tokenizer(vocabulary: int) -> Any:
    """Returns a tokenizer whose token n is the text " wn", with <bos> in front."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"<bos>": 0, "<unk>": 1, **{f" w{number}": number for number in range(2, vocabulary)}}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" w\d+"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", unk_token="<unk>")


def make_pairs(model: Any, *, tokens: int, p0: int, count: int, seed: int = 0) -> list[PromptPair]:
    """Returns pairs of prompts of `tokens` tokens that differ in one token, at position `p0`; checked as tokenised."""
    rng = np.random.default_rng([seed, tokens, p0, count])
    front = int(model.prepends_bos)
    pairs = []
    for _ in range(count):
        clean = rng.choice(np.arange(2, model.shape.d_vocab), tokens - front + 3, replace=False)
        *clean, other, answer, wrong = clean.tolist()
        corrupted = [*clean[: p0 - front], other, *clean[p0 - front + 1 :]]
        pairs.append(PromptPair(_text(clean), _text(corrupted), _text([answer]), _text([wrong])))
    for one in model.tokenize(pairs):
        seen = (len(one.clean_ids), len(one.corrupted_ids), one.first_difference, len(one.differs))
        if seen != (tokens, tokens, p0, 1):
            raise RuntimeError(f"wanted {tokens} tokens that part at {p0}, made {seen}")
    return pairs


def _text(words: list[int]) -> str:
    return "".join(f" w{word}" for word in words)
