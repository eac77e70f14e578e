"""Tokens: what TransformerLens makes of a prompt, and the exact text of each."""

import copy
from typing import Any

import micro
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_prompts import CLEAN, CORRUPTED, GIRL, KINDS, bytes_tokenizer, shared, tokenize, tokenizer

from nbpatch.prompts import PromptPair, encode, token_text, visible
from nbpatch.tokens import Coder


def bridge(kind: str, family: str) -> Any:
    """A random model with that tokenizer, as a TransformerBridge."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    words = copy.deepcopy(tokenizer(kind))
    words.init_kwargs.update(add_bos_token=True, name_or_path=kind)
    if family == "gpt2":
        hf: Any = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=512, vocab_size=len(words)))
    else:
        config = GPTNeoXConfig(
            num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=8, vocab_size=len(words),
            max_position_embeddings=512,
        )  # fmt: skip
        hf = GPTNeoXForCausalLM(config)
    hf.config.architectures = [type(hf).__name__]
    return TransformerBridge.boot_transformers("local/model", hf_model=hf.eval(), tokenizer=words, device="cpu")


PROMPTS = [
    CLEAN,
    GIRL,
    " leading and trailing ",
    "line\n\tbreaks  and   spaces",
    "日本語 emoji 🦊👩\u200d👩\u200d👧 é",
    "שלום עולם",
    "<|endoftext|>special <s> text",
]


@pytest.mark.parametrize(
    ("kind", "family"),
    [("words", "gpt2"), ("bytes", "gpt2"), ("pieces", "gpt2"), ("bytes", "neox"), ("pieces", "neox")],
)
def test_prompts_become_the_tokens_of_the_bridge(kind, family):
    same_tokens(kind, bridge(kind, family), family)


@pytest.mark.parametrize("kind", [shared["gpt2"], shared["stories"]])
def test_prompts_become_the_tokens_of_the_bridge_with_real_tokenizers(kind):
    same_tokens(kind, bridge(kind, "gpt2"), "gpt2")


def same_tokens(kind: str, lens: Any, family: str) -> None:
    assert lens.cfg.default_prepend_bos == (family == "gpt2")
    for prompt in PROMPTS[:1] if kind == "words" else PROMPTS:
        expected = lens.to_tokens(prompt)[0].tolist()
        assert list(encode(tokenizer(kind), prompt, bos=lens.cfg.default_prepend_bos)) == expected


@pytest.mark.parametrize("kind", ["bytes", "pieces", "words"])
def test_prompts_can_do_without_bos(kind):
    words = tokenizer(kind)
    text = "When Mary" if kind == "words" else "she"
    assert (words.bos_token_id, *encode(words, text, bos=False)) == encode(words, text)
    (one,) = tokenize(kind, PromptPair(text, text, "he" if kind == "pieces" else ","), bos=False)
    assert not one.has_bos


def test_an_end_token_added_by_the_tokenizer_is_taken_off():
    from tokenizers import processors

    words = copy.deepcopy(micro.tokenizer())
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <bos>", special_tokens=[("<bos>", 0)]
    )
    words.eos_token = "<bos>"
    assert encode(words, "When Mary") == (0, 2, 3)


def test_a_tokenizer_without_bos_gets_its_end_of_text_token_in_front():
    words = bytes_tokenizer()
    words.bos_token = None
    assert encode(words, "a")[0] == words.eos_token_id
    words.eos_token = None
    assert len(encode(words, "a")) == 1


# The strip shows the exact text.


@pytest.mark.parametrize("kind", ["bytes", "words", shared["gpt2"]])
def test_the_strip_joins_back_to_the_prompt(kind):
    for prompt in (CLEAN, CORRUPTED):
        tokens = tokenize(kind, PromptPair(prompt, prompt, " Mary"))[0].clean_tokens
        assert "".join(tokens[1:]) == prompt
        assert tokens[0] == tokenizer(kind).bos_token


@pytest.mark.parametrize("kind", ["pieces", shared["stories"]])
def test_sentencepiece_shows_the_space_it_puts_in_front(kind):
    tokens = [token_text(tokenizer(kind), one) for one in encode(tokenizer(kind), "she said hello")]
    assert "".join(tokens[1:]) == " she said hello"


@pytest.mark.parametrize("kind", KINDS[1:])
@given(text=st.text(max_size=30))
def test_any_text_shows_without_losing_a_letter(kind, text):
    if any(0xD800 <= ord(one) < 0xE000 for one in text):
        return
    words = tokenizer(kind)
    ids = encode(words, f"a{text}")[1:]
    shown = "".join(token_text(words, one) for one in ids)
    spelled = _spell_bytes(shown.removeprefix(" "))
    assert spelled == _spell_bytes(f"a{text}".replace("▁", " ") if kind in ("pieces", "stories") else f"a{text}")


def _spell_bytes(text: str) -> str:
    """Returns text with every letter as its bytes in hex, so that whole and half letters compare."""
    parts: list[str] = []
    at = 0
    while at < len(text):
        if text.startswith("<0x", at) and text[at + 5 : at + 6] == ">":
            parts.append(text[at + 3 : at + 5])
            at += 6
        else:
            parts.append(text[at].encode().hex().upper())
            at += 1
    return "".join(parts)


def test_half_a_character_shows_as_bytes():
    tokens = [token_text(tokenizer("bytes"), one) for one in encode(tokenizer("bytes"), "é🦊")]
    assert tokens[1:] == ["é", "<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>"]


def test_an_id_without_a_token_is_named():
    assert token_text(tokenizer("words"), 999) == "<id 999>"


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" Mary", "·Mary"),
        ("  a b", "··a b"),
        ("\n", "↵"),
        ("\t\tx", "⇥⇥x"),
        ("\x00", "U+0000"),
        ("\u202eabc", "U+202Eabc"),
        ("\u200d", "U+200D"),
        ("👩\u200d👧", "👩\u200d👧"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        ("日本", "日本"),
        ("שלום", "שלום"),
        ("", ""),
        (" ", "·"),
    ],
)
def test_what_cannot_be_seen_is_made_visible(token, shown):
    assert visible(token) == shown


def test_the_vocabulary_knows_every_token_by_its_text():
    coder = Coder(tokenizer("bytes"))
    assert coder.vocabulary[" Mary"] == encode(tokenizer("bytes"), " Mary")[-1]
    assert coder.alike(" Mart")[0] == " Mary"
