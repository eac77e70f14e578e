"""Prompts: pairs as values, tokens as TransformerLens makes them, answers as continuations, all problems at once."""

import copy
from functools import lru_cache
from typing import Any

import golden
import micro
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpatch.errors import NbpatchError, PromptError
from nbpatch.prompts import Pairs, PromptPair, TokenizedPair, as_pairs, encode, tokenize_pairs
from nbpatch.tokens import parting

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
GIRL = "There was a little girl who liked to play. One day,"
BOY = "There was a little boy who liked to play. One day,"

shared = {
    "gpt2": pytest.param(
        "gpt2", marks=pytest.mark.skipif(not micro.GPT2_TOKENIZER.is_dir(), reason="../shared/models is not here")
    ),
    "stories": pytest.param(
        "stories", marks=pytest.mark.skipif(not micro.STORIES.is_dir(), reason="../shared/models is not here")
    ),
}
KINDS = ["words", "bytes", "pieces", shared["gpt2"], shared["stories"]]


@lru_cache(maxsize=8)
def tokenizer(kind: str) -> Any:
    """One tokenizer of each family: word-level, byte-level BPE, SentencePiece-like; small ones made here."""
    from transformers import AutoTokenizer

    if kind == "words":
        return micro.tokenizer()
    if kind in ("gpt2", "stories"):
        return AutoTokenizer.from_pretrained(str(micro.GPT2_TOKENIZER if kind == "gpt2" else micro.STORIES))
    return bytes_tokenizer() if kind == "bytes" else pieces_tokenizer()


def bytes_tokenizer() -> Any:
    """GPT-2's scheme without merges but a few: every byte is a token; it has an end-of-text token and adds nothing."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "M"), ("ĠM", "a"), ("r", "y"), ("ĠMa", "ry"), ("Ã", "©"), ("(", ")")]
    vocabulary = ["<|endoftext|>", *letters, *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE({text: number for number, text in enumerate(vocabulary)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>", name_or_path="bytes"
    )


def pieces_tokenizer() -> Any:
    """SentencePiece's scheme: ▁ for spaces, one put in front, bytes for what is missing, <s> added by itself."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    plain = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    merges = [("▁", "h"), ("▁h", "e"), ("▁", "s"), ("h", "e"), ("▁s", "he")]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = ["<unk>", "<s>", "</s>", *bytes_, "▁", *plain, *("".join(pair) for pair in merges)]
    numbers = {text: number for number, text in enumerate(vocabulary)}
    core = Tokenizer(models.BPE(numbers, merges, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True,
        name_or_path="pieces",
    )  # fmt: skip


def tokenize(kind: str, *pairs: PromptPair, n_ctx: int | None = None, bos: bool = True) -> tuple[TokenizedPair, ...]:
    return tokenize_pairs(Pairs(pairs), tokenizer(kind), n_ctx=n_ctx, bos=bos)


def message(kind: str, *pairs: PromptPair, n_ctx: int | None = None) -> str:
    with pytest.raises(PromptError) as caught:
        tokenize(kind, *pairs, n_ctx=n_ctx)
    return str(caught.value)


# Pairs are values.


def test_a_pair_is_a_value():
    one, same = PromptPair("a", "b", " c"), PromptPair("a", "b", [" c"])
    assert one == same
    assert len({one, same}) == 1
    assert one.answer == (" c",)
    assert one.wrong == ()
    assert copy.deepcopy(one) == one


def test_a_pairs_repr_is_what_one_would_type():
    pair = PromptPair("a", "b", " c", [" d", " e"], align={0: 1})
    assert repr(pair) == "PromptPair(clean='a', corrupted='b', answer=' c', wrong=[' d', ' e'], align={0: 1})"
    assert eval(repr(pair)) == pair


def test_a_pair_cannot_be_changed_from_outside():
    align = {0: 0}
    pair = PromptPair("a", "b", " c", align=align)
    align[1] = 1
    assert pair.align == {0: 0}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"clean": None}, "clean is not text."),
        ({"corrupted": 3}, "corrupted is not text."),
        ({"answer": 3}, "answer is not text."),
        ({"answer": None}, "there is no answer."),
        ({"answer": []}, "there is no answer."),
        ({"wrong": [" a", None]}, "wrong is not text."),
        ({"align": [0, 1]}, "align is no map of positions."),
        ({"align": {}}, "align is no map of positions."),
        ({"align": {0: "1"}}, "align is no map of positions."),
        ({"align": {True: 0}}, "align is no map of positions."),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_a_part_of_the_wrong_kind_is_refused(given, words):
    with pytest.raises(PromptError) as caught:
        PromptPair(**{"clean": "a", "corrupted": "b", "answer": " c", **given})
    assert caught.value.what == words
    assert caught.value.where
    assert caught.value.fix


@pytest.mark.usefixtures("untyped")
def test_all_wrong_parts_are_reported_at_once():
    with pytest.raises(NbpatchError) as caught:
        PromptPair(None, 3, b"c")  # type: ignore[arg-type]
    golden.check("prompts_not_text", str(caught.value))


def test_pairs_are_a_sequence():
    pairs = Pairs([PromptPair("a", "b", " c"), PromptPair("d", "e", " f")])
    assert len(pairs) == 2
    assert pairs[1].clean == "d"
    assert isinstance(pairs[:1], Pairs)
    assert pairs == Pairs(list(pairs))
    assert hash(pairs) == hash(Pairs(list(pairs)))
    assert as_pairs(pairs) is pairs
    assert as_pairs(list(pairs)) == pairs
    assert as_pairs(pairs[0]) == pairs[:1]


def test_many_pairs_print_shortly():
    text = repr(Pairs([PromptPair(f"one {number}", "two", " c") for number in range(8)]))
    assert text.splitlines()[0] == "8 prompt pairs"
    assert text.splitlines()[-1] == "  … 3 more"
    assert repr(Pairs([PromptPair("a", "b", " c")])) == "1 prompt pair\n  'a' → ' c'\n  'b'"


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ({"clean": "a", "corrupted": "b", "answer": " c"}, "nbp.PromptPair(**this_dict)"),
        (("a", "b", " c"), 'nbp.PromptPair(clean="…"'),
        ("a", 'nbp.PromptPair(clean="…"'),
        (None, 'nbp.PromptPair(clean="…"'),
        (pd.DataFrame({"clean": ["a"]}), "nbp.Pairs.from_frame(frame)"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_what_is_no_pair_is_refused_with_the_form(given, fix):
    for call in (as_pairs, lambda one: Pairs([PromptPair("a", "b", " c"), one])):
        with pytest.raises(PromptError, match="not a prompt pair") as caught:
            call(given)
        assert caught.value.fix.startswith(fix)


def test_no_pairs_are_refused():
    with pytest.raises(PromptError, match="no prompt pairs"):
        Pairs([])


def test_a_frame_gives_one_pair_per_row():
    frame = pd.DataFrame(
        {"answer": [" c", [" c", " d"]], "clean": ["a", "b"], "corrupted": ["x", "y"], "wrong": [None, float("nan")]}
    )
    assert list(Pairs.from_frame(frame)) == [PromptPair("a", "x", " c"), PromptPair("b", "y", [" c", " d"])]
    assert Pairs.from_frame(frame.assign(wrong=pd.NA))[0].wrong == ()
    assert Pairs.from_frame(frame.drop(columns="wrong"))[0].wrong == ()


def test_a_frame_without_a_column_is_refused_with_the_rename():
    frame = pd.DataFrame({"clean": ["a"], "corupted": ["b"], "answer": [" c"]})
    with pytest.raises(PromptError) as caught:
        Pairs.from_frame(frame)
    golden.check("prompts_no_column", str(caught.value))


@pytest.mark.usefixtures("untyped")
def test_a_frame_with_bad_rows_names_all_of_them():
    frame = pd.DataFrame({"clean": ["a", 7.5, "b"], "corrupted": ["a", "b", None], "answer": [" c"] * 3})
    with pytest.raises(PromptError) as caught:
        Pairs.from_frame(frame)
    assert [problem.where.split(",")[0] for problem in caught.value.problems] == ["row 2 of 3", "row 3 of 3"]


def test_what_is_no_frame_is_refused():
    with pytest.raises(PromptError, match="not a DataFrame"):
        Pairs.from_frame([1])


# Where the prompts differ.


def test_the_differing_tokens_are_found():
    (one,) = tokenize("words", PromptPair(CLEAN, CORRUPTED, " Mary", " John"))
    assert one.clean_tokens[10] == " John"
    assert one.differs == (10,)
    assert one.first_difference == 10
    assert one.clean_end == one.corrupted_end == 14
    assert one.aligned == tuple((place, place) for place in range(15))
    assert one.has_bos
    assert one.warnings == ()


@pytest.mark.skipif(not micro.STORIES.is_dir(), reason="../shared/models is not here")
def test_a_word_of_several_pieces_differs_in_all_of_them():
    (one,) = tokenize("stories", PromptPair(GIRL, BOY, "she", "he"))
    assert one.differs == (6, 7, 8)
    assert "".join(one.clean_tokens[place] for place in one.differs) == " girl"
    assert (one.answer_tokens, one.wrong_tokens) == ((" she",), (" he",))


def test_the_same_prompt_twice_differs_nowhere_and_warns():
    (one,) = tokenize("words", PromptPair(CLEAN, CLEAN, " Mary", " John"))
    assert one.first_difference is None
    assert one.differs == ()
    assert one.warnings == (
        "The prompts are the same tokens, so nothing can change. Change one word in the corrupted one.",
    )


def test_alignment_lets_prompts_of_unequal_length_meet():
    (one,) = tokenize(
        "words", PromptPair(" Mary gave a ball to", " John and Mary gave a ball to", " Paul", align={1: 3, 5: 7})
    )
    assert one.aligned == ((1, 3), (5, 7))
    assert one.differs == (0, 2, 3, 4)
    assert one.first_difference == 1
    assert (one.clean_end, one.corrupted_end) == (5, 7)


def test_the_alignment_an_error_offers_can_be_typed():
    pair = PromptPair("When Mary and John went to", "When Mary and John and Paul went to", " the")
    with pytest.raises(PromptError) as caught:
        tokenize("words", pair)
    line = next(line for line in caught.value.fix.splitlines() if line.startswith("align="))
    align = eval(line[len("align=") :].rsplit(",", 1)[0])
    (one,) = tokenize("words", PromptPair(pair.clean, pair.corrupted, " the", align=align))
    assert one.aligned[-1] == (one.clean_end, one.corrupted_end)
    assert all(one.clean_ids[left] == one.corrupted_ids[right] for left, right in one.aligned)


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_sequences_are_the_same_up_to_where_they_part(one, other):
    place = parting(one, other)
    assert one[:place] == other[:place]
    assert place == min(len(one), len(other)) or one[place] != other[place]


# The answer is the token that continues the prompt.


@pytest.mark.parametrize("written", [" Mary", "Mary", "▁Mary", "ĠMary"])
@pytest.mark.parametrize("kind", ["words", "bytes", shared["gpt2"]])
def test_spellings_of_an_answer_mean_the_same(kind, written):
    (one,) = tokenize(kind, PromptPair(CLEAN, CLEAN, written))
    assert one.answer_tokens == (" Mary",)
    assert encode(tokenizer(kind), CLEAN + " Mary") == (*one.clean_ids, *one.answer_ids)


@pytest.mark.parametrize("written", [" she", "she", "▁she"])
@pytest.mark.parametrize("kind", ["pieces", shared["stories"]])
def test_spellings_of_an_answer_mean_the_same_in_sentencepiece(kind, written):
    (one,) = tokenize(kind, PromptPair("one day", "one day", written, "he"))
    assert one.answer_tokens == (" she",)
    assert one.wrong_tokens == (" he",)


@pytest.mark.parametrize(
    ("prompt", "answer", "token"),
    [
        ("2+2=", "4", "4"),
        ("from 1732 to 17", "3", "3"),
        ('He said "', "M", "M"),
        ('He said "a"', "M", " M"),
        ("the (", "a", "a"),
        ("don", "'", "'"),
        ("end\n", "a", "a"),
        ("end", "M", " M"),
        ("end", " M", " M"),
        ("a, b", ",", ","),
    ],
)
def test_a_space_is_put_where_the_text_asks_for_one(prompt, answer, token):
    (one,) = tokenize("bytes", PromptPair(prompt, prompt, answer))
    assert one.answer_tokens == (token,)


@pytest.mark.skipif(not micro.GPT2_TOKENIZER.is_dir(), reason="../shared/models is not here")
@pytest.mark.parametrize(
    ("prompt", "answer", "token"),
    [
        ("The war lasted from the year 1732 to the year 17", "33", "33"),
        ("The Eiffel Tower is located in the city of", "Paris", " Paris"),
        ("これは", "の", "の"),
        ("She said 'yes'", "and", " and"),
    ],
)
def test_the_fields_usual_answers_resolve(prompt, answer, token):
    (one,) = tokenize("gpt2", PromptPair(prompt, prompt, answer))
    assert one.answer_tokens == (token,)


def test_alternatives_that_are_one_token_count_once():
    (one,) = tokenize("words", PromptPair(CLEAN, CORRUPTED, [" Mary", "Mary", " Paul"], " John"))
    assert one.answer_tokens == (" Mary", " Paul")


def test_an_answer_behind_a_space_is_read_without_it_and_warns():
    (one,) = tokenize("bytes", PromptPair("end ", "eed ", " M", "a"))
    assert one.answer_tokens == ("M",)
    assert one.wrong_tokens == ("a",)
    assert [warning.split(".")[0] for warning in one.warnings] == [
        "The clean prompt ends in a space",
        "The corrupted prompt ends in a space",
    ]


def test_a_second_bos_is_warned_of():
    (one,) = tokenize("bytes", PromptPair("<|endoftext|>a", "b<|endoftext|>", " M"))
    assert one.warnings == ("The clean prompt begins with two <|endoftext|> tokens. Remove yours.",)


# Messages, whole.


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("empty", PromptPair("", "  ", " Mary")),
        ("answer_empty", PromptPair("abc", "abd", " ")),
        ("answer_split", PromptPair("When a", "When b", " Mars", [" Maria", " John"])),
        ("half_character", PromptPair("ab \ud83d", "ab", " Mary")),
        ("unequal", PromptPair("When a or c went", "When a or cd went", " Mary")),
        ("unequal_long", PromptPair("ab " * 20 + "c" + " d" * 20, "ab " * 20 + "ef" + " d" * 20, " Mary")),
        ("align_outside", PromptPair("abc", "abcd", " M", align={0: 0, 3: 9})),
        ("align_twice", PromptPair("abc", "abcd", " M", align={0: 0, 1: 2, 2: 2})),
        ("same_answer", PromptPair("abc", "abd", " Mary", "Mary")),
    ],
)
def test_messages_of_a_pair(name, pair):
    golden.check(f"prompts_{name}", message("bytes", pair))


def test_words_the_vocabulary_lacks():
    pair = PromptPair("When Mari and Jon went to", "When Mary and John went to", " Pau", " Xylophone")
    golden.check("prompts_unknown", message("words", pair))
    golden.check("prompts_unknown_answer", message("words", PromptPair(CLEAN, CORRUPTED, " Pau", " Xylophone")))
    golden.check("prompts_unknown_space", message("words", PromptPair(f"{CLEAN} ", f"{CORRUPTED} ", " Mary")))


def test_a_prompt_longer_than_the_context():
    golden.check("prompts_too_long", message("words", PromptPair(CLEAN, "When Mary", " Mary"), n_ctx=8))
    (one,) = tokenize("words", PromptPair(CLEAN, CORRUPTED, " Mary"), n_ctx=15)
    assert len(one.clean_ids) == 15


@pytest.mark.skipif(not micro.STORIES.is_dir(), reason="../shared/models is not here")
def test_a_space_at_the_end_that_no_token_can_follow():
    golden.check("prompts_space_at_end", message("stories", PromptPair(f"{GIRL} ", f"{BOY} ", "she", "he")))


@pytest.mark.skipif(not micro.GPT2_TOKENIZER.is_dir(), reason="../shared/models is not here")
def test_a_long_answer_in_gpt2():
    golden.check("prompts_gpt2_split", message("gpt2", PromptPair(CLEAN, CORRUPTED, " Xylophone", " Johnathan")))


def test_all_problems_of_all_pairs_come_at_once():
    good = PromptPair(CLEAN, CORRUPTED, " Mary", " John")
    pairs = [good, PromptPair("", CORRUPTED, " Mary"), PromptPair(CLEAN, CORRUPTED, " Xylophone", " Zebra"), good]
    golden.check("prompts_several", message("words", *pairs))


def test_an_answer_that_merges_with_the_prompt_is_refused():
    golden.check("prompts_merges", message("bytes", PromptPair("a(", "b(", ")")))
