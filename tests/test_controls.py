"""What is on the controls, as a value and as text that makes it again."""

import ast
import re

import pytest

import nbpatch as nbp
from nbpatch.errors import MetricError, PromptError
from nbpatch.live.controls import Ask, as_magic, as_python, describe_error, typed
from nbpatch.magics import read_spec
from nbpatch.metrics import as_metrics

PLAIN = nbp.PromptPair("When Mary and John went", "When Mary and Paul went", " Mary", " John")


def ask(*pairs: nbp.PromptPair, direction: str = "both", metric: str = "logit_diff prob") -> Ask:
    metrics = as_metrics(metric)
    return Ask(nbp.Pairs(pairs or [PLAIN]), "z", ("layer", "head"), direction, metrics, metrics[0].name)


HARD = [
    nbp.PromptPair('He said "no" and', 'He said "yes" and', " Mary", " John"),
    nbp.PromptPair("  leading spaces", "  heading spaces", " a"),
    nbp.PromptPair("it's a # comment?", "it's a # question?", [" Mary", " Paul"], [" John", " Sam"]),
    nbp.PromptPair("a\\b and\n\ttab", "a\\c and\n\ttab", " x", " y"),
    nbp.PromptPair("naïve 東京 🙂", "naïve 京都 🙂", " é", " è"),
    nbp.PromptPair("a {name} in braces", "a {word} in braces", " x", " y"),
    nbp.PromptPair("of two", "of three words", " x", " y", align={0: 0, 1: 2}),
    nbp.PromptPair("clean: looks like a key", "wrong: looks like a key", " x", " y"),
]


@pytest.mark.parametrize("pair", [PLAIN, *HARD], ids=lambda pair: pair.clean)
def test_copied_python_holds_the_same_pairs(pair: nbp.PromptPair) -> None:
    tree = ast.parse(as_python(ask(pair), "tiny"))
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("PromptPair")
    ]
    (call,) = calls
    made = nbp.PromptPair(**{word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg})
    assert made == pair


@pytest.mark.parametrize("pair", [PLAIN, *HARD], ids=lambda pair: pair.clean)
def test_a_copied_cell_holds_the_same_pairs(pair: nbp.PromptPair) -> None:
    metric = "logit_diff prob" if pair.wrong else "prob"
    head, _, body = as_magic(ask(pair, metric=metric), "tiny").partition("\n")
    spec = read_spec(head, head.removeprefix("%%patch "), body, {})
    assert list(spec.pairs) == [pair]


def test_copied_python_names_model_sweep_direction_and_metrics() -> None:
    code = as_python(ask(), "tiny")
    assert "model = nbp.load('tiny')" in code
    assert "nbp.patch(model, pairs, 'z', over='layer head', direction='both', metric=['logit_diff', 'prob'])" in code


def test_a_copied_cell_separates_pairs_by_an_empty_line() -> None:
    head, _, body = as_magic(ask(PLAIN, PLAIN), "tiny").partition("\n")
    assert head == '%%patch --model tiny --component z --over "layer head" --direction both --metric logit_diff prob'
    assert len(body.strip().split("\n\n")) == 2


def test_a_sweep_is_kept_by_what_it_depends_on_and_nothing_else() -> None:
    from dataclasses import replace

    one = ask()
    assert one.directions == ("denoising", "noising")
    assert replace(one, pair=3, metric="prob").sweep("noising") == one.sweep("noising")
    assert one.sweep("noising") != one.sweep("denoising")
    assert replace(one, component="q").sweep("noising") != one.sweep("noising")
    assert ask(HARD[0]).sweep("noising") != one.sweep("noising")


@pytest.mark.parametrize(
    ("field", "text", "meaning"),
    [
        ("clean", "a | b", "a | b"),
        ("answer", " Mary", " Mary"),
        ("answer", " Mary |  Paul", [" Mary", " Paul"]),
        ("wrong", "", None),
        ("answer", "", ""),
    ],
)
def test_what_is_typed_into_a_field(field: str, text: str, meaning: object) -> None:
    assert typed(field, text) == meaning


@pytest.mark.parametrize("field", ["clean", "corrupted", "answer", "wrong"])
def test_an_error_is_shown_beside_the_field_it_is_about(field: str) -> None:
    shown = describe_error(PromptError("bad.", where=f"pair 1 of 2, {field}", seen="x", fix="y"))
    assert shown == {"title": "bad.", "lines": [f"in: pair 1 of 2, {field}", "seen: x", "try: y"], "field": field}


def test_an_error_about_no_field_is_shown_over_all() -> None:
    assert describe_error(MetricError("no metric.", where="metric"))["field"] is None


def test_an_unexpected_error_shows_where_it_was_and_keeps_its_traceback() -> None:
    try:
        {}["missing"]
    except KeyError as error:
        shown = describe_error(error)
    assert shown["title"] == "KeyError: 'missing'"
    (line,) = shown["lines"]
    assert re.fullmatch(r"in: test_controls.py, line \d+, test_an_unexpected_error_shows_\w+", line)
    assert shown["traceback"].startswith("Traceback (most recent call last):")
    assert shown["traceback"].endswith("KeyError: 'missing'\n")
