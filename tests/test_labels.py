"""Labels: names of places in a prompt, found again among any tokenizer's tokens."""

import pytest
from test_prompts import CLEAN, CORRUPTED, KINDS, shared, tokenize, tokenizer

from nbpatch.errors import PromptError
from nbpatch.prompts import Pairs, PromptPair
from nbpatch.tokens import Coder


def pair(clean: str = CLEAN, corrupted: str = CORRUPTED, **labels: object) -> PromptPair:
    return PromptPair(clean, corrupted, " Mary", " John", labels=labels)


def test_labels_are_kept_as_characters_and_shown_as_typed():
    one = pair(IO="Mary", S2=(38, 42))
    assert one.labels == {"IO": (5, 9), "S2": (38, 42)}
    assert eval(repr(one), {"PromptPair": PromptPair}) == one
    assert one != pair()
    assert pair().labels == {}


@pytest.mark.parametrize(
    ("place", "seen"),
    [
        ("Paul", "'Paul', 0 times in it"),
        ("John", "'John', 2 times in it"),
        ((9, 5), "(9, 5), no part of it"),
        ((5, 900), "(5, 900), no part of it"),
        ((5,), "(5,), no part of it"),
        ("", "'', no part of it"),
        (3, "3, no part of it"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_what_is_not_one_place_is_refused(place, seen):
    with pytest.raises(PromptError, match="label 'IO' is not one place") as caught:
        pair(IO=place)
    assert caught.value.seen == seen


@pytest.mark.usefixtures("untyped")
def test_bad_labels_are_reported_with_everything_else():
    with pytest.raises(PromptError) as caught:
        PromptPair(CLEAN, 3, " Mary", labels={"a": "Paul", "b": "went to"})  # type: ignore[arg-type]
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_place_is_found_among_the_tokens(kind, bos):
    """Every token of its text, and no other; a leading space may come with the first of them."""
    coder = Coder(tokenizer(kind), bos)
    tokens = [coder.text(token) for token in coder.encode(CLEAN)]
    for text in ("Mary", "and John went", "When", "drink to"):
        start = CLEAN.index(text)
        places = coder.positions(CLEAN, start, start + len(text))
        assert places == tuple(range(places[0], places[-1] + 1))
        assert "".join(tokens[place] for place in places).strip() == text
    assert coder.positions(CLEAN, len(CLEAN) - 2, len(CLEAN))[-1] == len(tokens) - 1


@pytest.mark.parametrize("bos", [True, False])
def test_a_tokenizer_that_keeps_no_offsets_is_read_from_its_tokens(bos, monkeypatch):
    words = tokenizer("bytes")
    found = Coder(words, bos).positions(CLEAN, 5, 9)
    monkeypatch.setattr(type(words), "is_fast", False)
    assert Coder(words, bos).positions(CLEAN, 5, 9) == found


def test_a_pair_has_its_labels_as_positions():
    (one,) = tokenize("words", pair(IO="Mary", S2=(38, 42)))
    assert {name: [one.clean_tokens[place] for place in places] for name, places in one.labels.items()} == {
        "IO": [" Mary"],
        "S2": [" John"],
    }
    assert one.labels["S2"][0] == one.differs[0]


@shared["gpt2"].marks[0]
def test_a_subject_of_several_tokens():
    facts = PromptPair(
        "The Eiffel Tower is in", "The Burj Khalifa is in", " Paris", " Dubai", labels={"subject": "Eiffel Tower"}
    )
    (one,) = tokenize("gpt2", facts)
    assert [one.clean_tokens[place] for place in one.labels["subject"]] == [" E", "iff", "el", " Tower"]


def test_pairs_know_their_groups():
    first, second = PromptPair("a", "b", "c", group="ABBA"), PromptPair("a", "b", "c")
    assert Pairs([first, second]).groups == ("ABBA", None)
