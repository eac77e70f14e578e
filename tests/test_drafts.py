"""Drafts: what is said of prompts before a run equals what the run says; ways out lead out; history loses nothing."""

import itertools
import json
from typing import Any

import micro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_workbench import OTHER, PAIR, Page, slow_waves

import nbpatch as nbp
from nbpatch.errors import NbpatchError, PlanError, PromptError
from nbpatch.live.columns import aligned_by_word, columns_of, spans_of
from nbpatch.live.drafts import describe_draft
from nbpatch.live.editing import FIELDS, Editing, History, as_typed, rewritten
from nbpatch.live.templates import build
from nbpatch.model import Model, load
from nbpatch.prompts import Pairs, PromptPair
from nbpatch.view.payload import describe
from nbpatch.workbench import Workbench

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
LONGER = "When Mary and John and Tom went to the store, Mary gave a drink to"


@pytest.fixture(scope="module")
def model() -> Model:
    return load((micro.gpt2(), micro.tokenizer()))


@pytest.fixture(scope="module")
def tiny() -> Model:
    return load("tiny")


@pytest.fixture
def page(model: Model, monkeypatch: pytest.MonkeyPatch) -> Page:
    return Page(Workbench(model, [PAIR, OTHER], "resid_mid", metric=["logit_diff", "prob"]), monkeypatch)


def texts(
    clean: str = CLEAN, corrupted: str = CORRUPTED, answer: str = " Mary", wrong: str = " John"
) -> dict[str, str]:
    return {"clean": clean, "corrupted": corrupted, "answer": answer, "wrong": wrong}


# -- what is said of a draft


def test_a_draft_says_what_its_run_says(tiny: Model) -> None:
    draft = json.loads(json.dumps(describe_draft(tiny, texts())))
    result = nbp.patch(tiny, PromptPair(**texts()), "z", metric=["prob", "logit_diff"])
    kept = result.provenance["pairs"][0]
    for side in ("clean", "corrupted"):
        assert draft[side]["tokens"] == kept[f"{side}_tokens"]
        assert [token for token, _ in draft[side]["top"][:5]] == [token for token, _ in kept[f"{side}_top"]]
        shares = [[share for _, share in top] for top in (draft[side]["top"][:5], kept[f"{side}_top"])]
        np.testing.assert_allclose(*shares, atol=1e-6)
        assert draft[side]["answer"] == pytest.approx(result.baselines[side].sel(metric="prob").item(), abs=1e-6)
    assert draft["answers"] == {"answer": [" Mary"], "wrong": [" John"]}
    assert draft["errors"] == {}
    assert draft["spans"] == []
    differs = [a for a, b in draft["columns"] if draft["clean"]["tokens"][a] != draft["corrupted"]["tokens"][b]]
    assert differs == kept["differs"]


def test_a_draft_of_a_model_that_is_run_by_hooks_is_the_same(model: Model) -> None:
    plain = describe_draft(model, as_typed(PAIR))
    slow = load((micro.gpt2(), micro.tokenizer()))
    slow.engine = "replay"
    hooked = describe_draft(slow, as_typed(PAIR))
    for side in ("clean", "corrupted"):
        assert plain[side]["answer"] == pytest.approx(hooked[side]["answer"], abs=1e-6)
        assert plain[side]["wrong"] == pytest.approx(hooked[side]["wrong"], abs=1e-6)


def test_several_answers_count_with_their_summed_probability(model: Model) -> None:
    one, other, both = (
        describe_draft(model, {**as_typed(PAIR), "answer": answer})["clean"]["answer"]
        for answer in (" Paul", " drink", " Paul |  drink")
    )
    assert both == pytest.approx(one + other, abs=1e-6)


def test_unequal_prompts_are_read_all_the_same(tiny: Model) -> None:
    draft = describe_draft(tiny, texts(corrupted=LONGER))
    alone = describe_draft(tiny, texts(clean=LONGER, corrupted=LONGER))
    assert draft["subtitle"] == "clean has 15 tokens, corrupted has 17."
    assert "From position 5 on" in draft["line"]
    assert [column for column in draft["columns"] if column[0] is None] == [[None, 5], [None, 6]]
    said = [(span["kind"], span["from"], span["to"], span["text"]) for span in draft["spans"]]
    assert said == [
        ("alone", 5, 7, "2 tokens without a partner"),
        ("shifted", 7, 12, "same words, shifted by 2"),
        ("differ", 12, 13, "differ"),
        ("shifted", 13, 17, "same words, shifted by 2"),
    ]
    assert draft["corrupted"]["wrong"] == pytest.approx(alone["corrupted"]["wrong"], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"clean": ""}, "clean", "The prompt is empty"),
        ({"corrupted": CORRUPTED + " xyzzy"}, "corrupted", "vocabulary lacks words"),
        ({"answer": " Mary gave"}, "answer", "The answer is 2 tokens"),
        ({"wrong": " Mary"}, "wrong", "the same token"),
        ({"clean": "\ud800"}, "clean", "half of a character"),
    ],
)
def test_what_is_wrong_is_said_of_its_field(tiny: Model, change: dict[str, str], field: str, words: str) -> None:
    draft = describe_draft(tiny, {**texts(), **change})
    assert words in draft["errors"][field]["text"]
    assert draft["repairs"] == []


def test_the_other_prompt_is_read_when_one_cannot_be(tiny: Model) -> None:
    draft = describe_draft(tiny, texts(corrupted=CORRUPTED + " xyzzy"))
    assert draft["clean"]["top"][0][0] == " Mary"
    assert draft["corrupted"]["top"] == []
    assert draft["corrupted"]["tokens"][-1] == "<unk>"


def test_the_lint_speaks_while_it_is_typed(tiny: Model) -> None:
    turned = describe_draft(tiny, texts(answer=" John", wrong=" Mary"))["warnings"]
    assert [one["about"] for one in turned] == ["answer", "wrong"]
    result = nbp.patch(tiny, PromptPair(**texts(answer=" John", wrong=" Mary")), "z")
    assert any(warning.startswith("The clean run of pair 1 does not prefer the answer") for warning in result.warnings)
    same = describe_draft(tiny, texts(corrupted=CLEAN))["warnings"]
    assert any("same tokens" in one["text"] for one in same)


def test_warnings_of_a_sweep_say_what_they_concern(tiny: Model) -> None:
    other = "When John Mary John Mary drink drink drink, Mary drink drink store store"
    result = nbp.patch(tiny, PromptPair(**texts(corrupted=other)), "z")
    spec = describe(result, can_run=True, works={})
    said = {text.split(".")[0]: about for text, about in zip(spec["warnings"], spec["concerns"], strict=True)}
    assert said["One direction only"] is None
    assert any(about == "corrupted" for text, about in said.items() if "differ in most" in text)


# -- columns


ids = st.lists(st.integers(0, 4), min_size=1, max_size=9)


@given(ids, ids)
def test_columns_hold_every_token_once_and_in_order(clean: list[int], corrupted: list[int]) -> None:
    columns = columns_of(clean, corrupted)
    assert [a for a, _ in columns if a is not None] == list(range(len(clean)))
    assert [b for _, b in columns if b is not None] == list(range(len(corrupted)))
    spans = spans_of(columns, clean, corrupted)
    assert all(one["to"] <= other["from"] for one, other in itertools.pairwise(spans))


@given(ids, ids)
def test_an_alignment_by_word_is_shown_as_the_columns_it_came_from(clean: list[int], corrupted: list[int]) -> None:
    align = aligned_by_word(columns_of(clean, corrupted))
    assert aligned_by_word(columns_of(clean, corrupted, align)) == align
    shown = columns_of(clean, corrupted, align)
    assert sorted(b for _, b in shown if b is not None) == list(range(len(corrupted)))


# -- ways out


def repairs(model: Model, values: dict[str, str], **options: Any) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in describe_draft(model, values, **options)["repairs"]}


def test_every_way_out_leads_out_and_says_where(tiny: Model) -> None:
    bench = Workbench(tiny, PromptPair(**texts()))
    found = repairs(tiny, texts(corrupted=LONGER), ask=bench._ask)
    assert list(found) == ["remove", "add", "align", "heads"]
    assert found["remove"]["edit"]["values"] == {"corrupted": CORRUPTED}
    assert found["remove"]["note"] == "15 tokens each; one differs."
    assert found["add"]["edit"]["values"] == {"clean": CLEAN.replace("John went", "John and Tom went")}
    assert found["add"]["note"] == "17 tokens each; one differs."
    assert found["align"]["note"] == "0–4 with 0–4, 5–14 with 7–16; two positions are not patched."
    for one in found.values():
        pair = rewritten(PromptPair(**texts(corrupted=LONGER)), one["edit"]["values"])
        component = one["edit"].get("set", {}).get("component", "resid_pre")
        assert np.isfinite(nbp.patch(tiny, pair, component).effect()).all() or component == "resid_pre"


def test_the_longer_clean_prompt_is_repaired_as_well(tiny: Model) -> None:
    found = repairs(tiny, texts(clean=LONGER.replace("Mary gave", "John gave")))
    assert found["remove"]["edit"]["values"] == {"clean": CLEAN}
    assert found["add"]["edit"]["values"] == {"corrupted": LONGER}
    assert "heads" not in found, "an editor alone has no component to change"


def test_what_does_not_apply_is_not_offered(tiny: Model) -> None:
    patterns = Workbench(tiny, PromptPair(**texts()), "pattern")
    assert "align" not in repairs(tiny, texts(corrupted=LONGER), ask=patterns._ask)
    heads = Workbench(tiny, PromptPair(**texts()), "z")
    assert "heads" not in repairs(tiny, texts(corrupted=LONGER), ask=heads._ask)
    assert repairs(tiny, texts(corrupted=LONGER, answer=" Mary gave")) == {}


def test_a_repair_of_the_page_is_run_with_its_component(page: Page) -> None:
    page.bench.run()
    page.say("edit", field="corrupted", pair=0, value=" John and Mary and John gave")
    page.settle()
    assert page.bench.error["typed"]["texts"]["corrupted"] == " John and Mary and John gave"
    values = {**page.bench.error["typed"]["texts"], "align": [[0, 0], [4, 6]]}
    page.say("edit", pair=0, values=values, set={"component": "z", "over": ["layer", "head"]})
    page.settle()
    assert page.bench.error is None
    made = page.bench.result.provenance
    assert (made["component"], made["pairs"][0]["aligned"]) == ("z", [[0, 0], [4, 6]])
    assert page.bench.spec["pairs"][0]["aligned"] == [[0, 0], [4, 6]]
    same = nbp.patch(page.bench.model, page.bench.pairs, "z", metric=["logit_diff", "prob"])
    np.testing.assert_allclose(page.bench.result.data["prob"], same.data["prob"], atol=1e-6)


def test_a_page_asks_what_is_typed_and_nothing_is_run(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    before = page.bench.result
    page.say("ask", kind="draft", key="draft", id=7, pair=0, **{**as_typed(PAIR), "clean": " Paul and John gave"})
    (answer,) = page.wait_for("answer")
    assert answer["id"] == 7
    assert answer["clean"]["tokens"][1] == " Paul"
    assert page.bench.result is before
    assert page.bench.pairs[0] == PAIR


def test_what_is_typed_does_not_wait_for_a_running_sweep(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_waves(monkeypatch)
    page.say("run")
    page.wait_for("map", 2)
    page.say("ask", kind="draft", key="draft", id=1, pair=0, **as_typed(PAIR))
    (answer,) = page.wait_for("answer")
    assert not page.bench._done.is_set()
    page.say("cancel")
    page.settle()
    assert answer["clean"]["answer"] is not None


# -- editing


def test_labels_and_alignment_stay_only_where_they_still_fit() -> None:
    pair = PromptPair("Mary met John", "Anna met John", " a", align={0: 0}, labels={"name": "Mary", "verb": "met"})
    moved = rewritten(pair, {"clean": "So Anna met John"})
    assert moved.labels == {"verb": (8, 11)}
    assert moved.align is None
    assert rewritten(pair, {"answer": " b"}).align == {0: 0}
    assert rewritten(pair, {"answer": " b | c"}).answer == (" b", "c")
    assert rewritten(pair, {"align": [[1, 2]]}).align == {1: 2}
    with pytest.raises(PlanError, match="no field 'claen'"):
        rewritten(pair, {"claen": "x"})


def some(name: str) -> Pairs:
    return Pairs([PromptPair(name, name, " a")])


def test_history_goes_back_and_forth_and_leaps_over_what_failed() -> None:
    past = History(some("a"))
    past.note(some("b"))
    past.note(some("bad"))
    past.fail(some("bad"))
    assert past.go("undo") == some("b")
    assert past.go("undo") == some("a")
    assert past.go("undo") is None
    assert past.go("redo") == some("b")
    assert past.go("redo") == some("bad"), "what was typed last is not lost"
    past.note(some("b"))
    assert past.now == some("b")
    past.note(some("c"))
    assert [one["text"] for one in past.describe()["items"]] == ["c", "b", "a"]
    assert past.go("return", 0) == some("a")
    assert past.go("return", 99) is None


def test_history_keeps_the_newest() -> None:
    past = History(some("0"))
    for number in range(1, 80):
        past.note(some(str(number)))
        if number == 40:
            past.fail(some("40"))
    said = past.describe()
    assert said["items"][0]["text"] == "79"
    assert len(said["items"]) == 20
    for _ in range(48):
        assert past.go("undo") is not None
    assert past.now == some("30")
    assert past.go("undo") is None


@given(st.lists(st.sampled_from(["note", "fail", "undo", "redo"]), max_size=30))
def test_undo_and_redo_are_each_other_s_inverse(acts: list[str]) -> None:
    past = History(some("first"))
    for number, act in enumerate(acts):
        if act == "note":
            past.note(some(str(number)))
        elif act == "fail" and past.now != some("first"):
            past.fail(past.now)
        else:
            past.go(act)
    here = past.now
    failed = past._at in past._failed
    if past.go("undo") is not None and not failed:
        assert past.go("redo") == here


def test_the_last_pair_cannot_be_removed() -> None:
    with pytest.raises(PromptError, match="only pair"):
        Editing(some("a")).asked({"type": "pairs", "do": "remove"}, some("a"), 0)


def test_pairs_are_added_removed_and_brought_back(page: Page) -> None:
    page.bench.run()
    page.say("pairs", do="add", pair=1)
    page.settle()
    assert list(page.bench.pairs) == [PAIR, OTHER, OTHER]
    assert page.bench.spec["pair"] == 2
    page.say("edit", field="answer", pair=2, value=" drink")
    page.settle()
    assert page.bench.pairs[2].answer == (" drink",)
    page.say("pairs", do="remove", pair=0)
    page.settle()
    assert len(page.bench.pairs) == 2
    page.say("pairs", do="undo")
    page.settle()
    assert [len(page.bench.pairs), page.bench.pairs[0]] == [3, PAIR]
    page.say("pairs", do="redo")
    page.settle()
    assert len(page.bench.pairs) == 2
    page.say("pairs", do="return", at=0)
    page.settle()
    assert list(page.bench.pairs) == [PAIR, OTHER]
    assert page.bench.spec["history"]["at"] == 0


def test_undo_after_a_failed_edit_loses_nothing(page: Page) -> None:
    finished = page.bench.run()
    page.say("edit", field="clean", pair=0, value=" Mary and John and Paul gave")
    page.settle()
    assert page.bench.spec["history"]["items"][0]["failed"]
    page.say("pairs", do="undo")
    page.settle()
    assert page.bench.error is None
    np.testing.assert_allclose(page.bench.result.data["prob"], finished.data["prob"])
    page.say("pairs", do="redo")
    page.settle()
    assert page.bench.error["typed"] == {
        "pair": 0,
        "texts": as_typed(rewritten(PAIR, {"clean": " Mary and John and Paul gave"})),
    }
    page.say("edit", field="corrupted", pair=0, value=" John and Mary and John gave")
    page.settle()
    assert page.bench.error is None
    assert page.bench.pairs[0].clean == " Mary and John and Paul gave"


def test_a_failed_edit_is_still_there_after_another_control_was_changed(page: Page) -> None:
    page.bench.run()
    page.say("edit", field="clean", pair=0, value=" Mary and John and Paul gave")
    page.settle()
    page.say("set", component="z")
    page.settle()
    assert page.bench.error is None
    page.say("edit", field="corrupted", pair=0, value=" John and Mary and John gave")
    page.settle()
    assert page.bench.pairs[0].clean == " Mary and John and Paul gave"


def test_pairs_set_in_python_can_be_undone(page: Page) -> None:
    page.bench.pairs = [OTHER]
    page.settle()
    page.say("pairs", do="undo")
    page.settle()
    assert list(page.bench.pairs) == [PAIR, OTHER]


# -- templates


def test_a_template_becomes_the_pairs_and_can_be_undone(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(Workbench(tiny, PromptPair(**texts())), monkeypatch)
    page.say("template", name="pronouns")
    page.wait_for("map", 1)
    page.settle()
    assert list(page.bench.pairs) == list(build(tiny, "pronouns"))
    assert len(page.bench.pairs) == 8
    page.say("pairs", do="undo")
    page.settle()
    assert page.bench.pairs[0].clean == CLEAN


def test_templates_that_cannot_be_built_say_why(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(Workbench(tiny, PromptPair(**texts())), monkeypatch)
    page.say("ask", kind="templates", key="templates", id=1)
    said = {one["name"]: one for one in page.wait_for("answer", 9)[-1]["templates"]}
    assert list(said) == [name for name in said if name in nbp.tasks.__all__]
    assert len(said) == len(nbp.tasks.__all__)
    assert said["ioi"]["off"] == ""
    assert said["docstring"]["off"].startswith("This tokenizer has too few arguments")
    with pytest.raises(NbpatchError, match="no template"):
        build(tiny, "iio")


# -- the editor alone


def test_the_editor_gives_a_pair_or_says_why_not(tiny: Model) -> None:
    editor = nbp.PromptEditor(tiny, PromptPair(**texts()))
    assert editor.pair == PromptPair(**texts())
    editor.corrupted = LONGER
    with pytest.raises(PromptError, match="different numbers of tokens"):
        _ = editor.pair
    assert {one["name"] for one in editor.spec["draft"]["repairs"]} == {"remove", "add", "align"}
    assert editor.spec["view"] == "prompts"
    editor.pair = PromptPair(**texts(), labels={"io": (5, 9)})
    assert editor.pair.labels == {"io": (5, 9)}


def test_the_editor_starts_empty_and_is_filled_by_links(tiny: Model) -> None:
    import traitlets

    one, other = nbp.PromptEditor(tiny), nbp.PromptEditor(tiny, PromptPair(**texts()))
    assert one.spec["draft"]["errors"]["clean"]["text"] == "The prompt is empty."
    for field in FIELDS:
        traitlets.link((other, field), (one, field))
    assert one.pair == other.pair
    other.clean = CORRUPTED
    assert one.spec["pairs"][0]["clean"] == CORRUPTED


def test_the_editor_is_shown_in_words_too(tiny: Model) -> None:
    editor = nbp.PromptEditor(tiny, PromptPair(**texts()))
    data, _ = editor._repr_mimebundle_()
    assert "·Mary 99 %" in data["text/plain"]
    assert data["text/plain"].startswith("clean:     <bos>|When|·Mary")


def until_asked(editor: Any) -> None:
    import time

    from nbpatch.live.worker import TYPING

    done: list[int] = []
    TYPING.submit(("test", editor), lambda: done.append(1))
    end = time.monotonic() + 20
    while not done and time.monotonic() < end:
        time.sleep(0.01)


def test_the_editor_takes_what_its_page_sends(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = nbp.PromptEditor(tiny, PromptPair(**texts()))
    got: list[dict[str, Any]] = []
    monkeypatch.setattr(editor, "send", lambda message, buffers=(): got.append(message))
    editor._receive({"v": 1, "type": "edit", "field": "corrupted", "pair": 0, "value": LONGER})
    until_asked(editor)
    assert editor.corrupted == LONGER
    align = next(one for one in editor.spec["draft"]["repairs"] if one["name"] == "align")
    editor._receive({"v": 1, "type": "edit", "pair": 0, **align["edit"]})
    until_asked(editor)
    assert editor.pair.align == editor.align
    assert (editor.align or {})[14] == 16
    editor._receive({"v": 1, "type": "ask", "kind": "draft", "key": "draft", "id": 3, **texts()})
    editor._receive({"v": 1, "type": "ask", "kind": "drift", "key": "drift", "id": 4})
    until_asked(editor)
    assert [one["id"] for one in got] == [3, 4]
    assert got[0]["clean"]["top"][0][0] == " Mary"
    assert "draft" in got[1]["error"]["lines"][-1]


def test_the_editor_refuses_what_is_no_pair(tiny: Model) -> None:
    with pytest.raises(PlanError, match="not one prompt pair"):
        nbp.PromptEditor(tiny, [PromptPair(**texts())])
