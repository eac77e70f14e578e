"""Errors: four parts, places added on the way up, several at once, suggestions."""

import pytest

from nbpatch.errors import AnswerError, NbpatchError, PromptError, SiteError, combine, suggest


def test_the_message_has_all_four_parts_in_order() -> None:
    error = SiteError("no head 14.", where="sites", seen="z[9.14]", fix="z[3.*]", notes={"model": "tiny: 4 heads"})
    assert str(error) == "no head 14.\n  in     sites\n  seen   z[9.14]\n  model  tiny: 4 heads\n  try    z[3.*]"


def test_absent_parts_leave_no_empty_row() -> None:
    assert str(SiteError("no head 14.")) == "no head 14."


def test_a_part_of_several_lines_is_indented_under_its_label() -> None:
    assert str(PromptError("bad.", seen="one\ntwo")) == "bad.\n  seen   one\n         two"


def test_at_puts_the_place_in_front_and_keeps_the_kind() -> None:
    error = AnswerError("two tokens.", where="answer", fix="one token").at("pair 2 of 8")
    assert type(error) is AnswerError
    assert error.where == "pair 2 of 8, answer"
    assert error.fix == "one token"


def test_at_reaches_the_problems_inside() -> None:
    both = combine([PromptError("a.", where="clean"), PromptError("b.")]).at("line 3")
    assert [problem.where for problem in both.problems] == ["line 3, clean", "line 3"]


def test_combine_reports_every_problem() -> None:
    both = combine([PromptError("first.", fix="x"), AnswerError("second.")])
    assert type(both) is NbpatchError
    assert str(both) == "2 problems.\n\nfirst.\n  try    x\n\nsecond."


def test_combine_keeps_a_single_error_and_a_common_kind() -> None:
    one = PromptError("a.")
    assert combine([one]) is one
    assert type(combine([PromptError("a."), PromptError("b.")])) is PromptError


def test_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="no head"):
        raise SiteError("no head 14.")


def test_suggest_asks_for_the_closest_or_lists_all() -> None:
    assert suggest("resid_per", ["resid_pre", "z"]) == 'did you mean "resid_pre"?'
    assert suggest("qqq", ["resid_pre", "z"]) == "one of: resid_pre, z"
