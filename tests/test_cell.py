"""The text of a %%patch cell: values, pairs, and whole error messages."""

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpatch.cell import CellError, Source, cell_error, read_lines, read_pairs
from nbpatch.errors import PromptError

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"


def pairs_of(body, variables=None, magic="%%patch"):
    source, problems = read_lines(magic, textwrap.dedent(body))
    pairs, wrong = read_pairs(source, variables)
    if problems or wrong:
        raise cell_error(source, [*problems, *wrong])
    return pairs


def message_of(body, variables=None):
    with pytest.raises(CellError) as caught:
        pairs_of(body, variables)
    assert caught.value._render_traceback_() == str(caught.value).split("\n")
    return "\n" + str(caught.value) + "\n"


def test_the_cell_of_the_readme():
    (pair,) = pairs_of(f'clean:     {CLEAN}\ncorrupted: {CORRUPTED}\nanswer:    " Mary"\nwrong:     " John"\n')
    assert (pair.clean, pair.corrupted, pair.answer, pair.wrong) == (CLEAN, CORRUPTED, (" Mary",), (" John",))
    assert pair.align is None


def test_blank_lines_separate_pairs_and_comments_do_not():
    pairs = pairs_of(
        """
        # the first
        clean: a b
        # in between
        corrupted: a c
        answer: d

        clean: e f

            # alone


        """.replace("clean: e f\n", "clean: e f\n        corrupted: e g\n        Answer: h\n")
    )
    assert [(p.clean, p.corrupted, p.answer, p.wrong) for p in pairs] == [
        ("a b", "a c", ("d",), ()),
        ("e f", "e g", ("h",), ()),
    ]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("plain text ", "plain text"),
        ('" kept "', " kept "),
        ("' kept '", " kept "),
        ('"tab\\tand\\nline"', "tab\tand\nline"),
        (r'"a \"quoted\" word"', 'a "quoted" word'),
        (r'"back\\slash and \d"', r"back\slash and \d"),
        ("It's fine", "It's fine"),
        ("ratio 3:1, and # too", "ratio 3:1, and # too"),
        ("a {name} stays", "a {name} stays"),
        ("naïve 東京 🙂", "naïve 東京 🙂"),
    ],
)
def test_values(typed, meant):
    (pair,) = pairs_of(f"clean: {typed}\ncorrupted: x\nanswer: y")
    assert pair.clean == meant


def test_several_answers():
    (pair,) = pairs_of("clean: a\ncorrupted: b\nanswer: \" she\", 'She'\nwrong: ' he' ,\" He\"")
    assert pair.answer == (" she", "She")
    assert pair.wrong == (" he", " He")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("0:0, 1:2", {0: 0, 1: 2}),
        ("0: 0 1: 2", {0: 0, 1: 2}),
        ("0-2:0-2 3-4:5-6", {0: 0, 1: 1, 2: 2, 3: 5, 4: 6}),
        ("7:7", {7: 7}),
    ],
)
def test_alignment(typed, meant):
    (pair,) = pairs_of(f"clean: a b\ncorrupted: a b c\nanswer: d\nalign: {typed}")
    assert pair.align == meant


@pytest.mark.parametrize("typed", ["1-2", "0-3:0-2", "3-1:3-1", "0:0 x", "a:b"])
def test_what_is_no_alignment(typed):
    message = message_of(f"clean: a\ncorrupted: x\nanswer: y\nalign: {typed}")
    assert "not an alignment." in message
    assert "align: 0-3:0-3" in message


def test_windows_line_ends():
    (pair,) = pairs_of("clean: a\r\ncorrupted: b\r\nanswer: c\r\n")
    assert (pair.clean, pair.corrupted, pair.answer) == ("a", "b", ("c",))
    assert "\r" not in message_of("clean: a\r\ncorupted: b\r\n")


def test_a_line_of_spaces_is_blank():
    source, problems = read_lines("%%patch", "clean: a\n  \t\nclean: b\n")
    assert len(source.blocks) == 2
    assert not problems


def test_variables_are_filled_in_where_asked():
    body = "clean: {who} gave {{a}} to {n}\ncorrupted: b\nanswer: '{answer}'"
    (pair,) = pairs_of(body, {"who": "Ann", "n": 3, "answer": " Bo"})
    assert (pair.clean, pair.answer) == ("Ann gave {a} to 3", (" Bo",))


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\n\r\\"), min_size=1).filter(str.strip))
def test_any_text_survives_quotes(text):
    quoted = '"' + text.replace('"', '\\"') + '"'
    (pair,) = pairs_of(f"clean: {quoted}\ncorrupted: x\nanswer: y")
    assert pair.clean == text


@given(st.text(max_size=200))
def test_any_cell_is_read_or_refused_in_words(text):
    source, problems = read_lines("%%patch", text)
    pairs, wrong = read_pairs(source, {})
    assert bool(pairs) or bool(problems) or bool(wrong)
    if problems or wrong:
        assert str(cell_error(source, [*problems, *wrong])).strip()


def test_a_misspelled_entry_is_one_mistake():
    assert message_of(f"clean: {CLEAN}\ncorupted: {CORRUPTED}\nanswer: Mary") == (
        """
no entry 'corupted'.
  line 3  corupted: When Mary and John went to the store, Mary gave a drink to
          ^^^^^^^^
  try     did you mean "corrupted"?
"""
    )


def test_all_mistakes_at_once():
    body = 'clean: a\ncorrupted: "b\nanswer:\n\nclean: c\nclean: d\njust words\n\nclean: e\n'
    assert message_of(body) == (
        """
6 problems in this cell.

what starts with a quote must end with it.
  line 3  corrupted: "b
                     ^^
  try     corrupted: "\\"b"

answer is empty.
  line 4  answer:
          ^^^^^^^
  try     answer: " Mary"

clean is given twice.
  line 7  clean: d
          ^^^^^^^^
  try     an empty line before it starts the next pair

this line does not say what it is.
  line 8  just words
          ^^^^^^^^^^
  try     clean: just words

pair 3 has no line for corrupted.
  line 10  clean: e
                  ^
  try      corrupted: When Mary and John went to the store, Mary gave a drink to

pair 3 has no line for answer.
  line 10  clean: e
                  ^
  try      answer: " Mary"
"""
    )


def test_an_empty_cell_shows_what_to_write():
    assert message_of("\n# nothing\n") == (
        """
the cell has no prompts.
  try    clean: When Mary and John went to the store, John gave a drink to
         corrupted: When Mary and John went to the store, Mary gave a drink to
         answer: " Mary"
"""
    )


def test_unknown_variable_has_a_caret_under_its_braces():
    assert message_of("clean: to {nmae} and\ncorrupted: x\nanswer: y", {"name": "Ann", "_": "z"}) == (
        """
no variable 'nmae'.
  line 2  clean: to {nmae} and
                    ^^^^^^
  try     did you mean "name"?
"""
    )


@pytest.mark.parametrize(
    ("body", "what", "fix"),
    [
        ("clean: {1+1}\ncorrupted: x\nanswer: y", "only a variable's name can stand in braces.", "{{ and }}"),
        ("clean: {a}\ncorrupted: x\nanswer: y", "no variable 'a'.", 'a = "…" in a cell above'),
        ('clean: "a", "b"\ncorrupted: x\nanswer: y', "clean takes one text.", 'clean: "…"'),
        ('clean: "Hello," she said\ncorrupted: x\nanswer: y', "must end with it.", r'clean: "\"Hello,\" she said"'),
    ],
)
def test_single_mistakes(body, what, fix):
    message = message_of(body, {})
    assert what in message
    assert fix in message


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("pair 2 of 2, wrong", 9),
        ("pair 1 of 2, corrupted prompt", 3),
        ("pair 2 of 2", 6),
        ("pair 3 of 3", None),
        ("model", None),
    ],
)
def test_an_engine_error_finds_its_line(where, line):
    source, problems = read_lines(
        "%%patch", "clean: a\ncorrupted: b\nanswer: c\n\nclean: d\ncorrupted: e\nanswer: f\nwrong: g"
    )
    assert not problems
    problem = source.place(PromptError("bad.", where=where))
    assert (problem.span.line + 1 if problem.span else None) == line


def test_a_single_pair_needs_no_number_in_the_error():
    source, _ = read_lines("%%patch", "clean: a\ncorrupted: b\nanswer: c")
    assert source.place(PromptError("bad.", where="answer")).span.line == 3
    assert source.place(PromptError("bad.", where="load")).span is None
    assert Source(("%%patch",)).place(PromptError("bad.", where="answer")).span is None
