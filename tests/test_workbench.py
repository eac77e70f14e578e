"""The workbench without a browser: what the page asks for is run, streamed, kept, superseded, cancelled, said again."""

import json
import threading
import time
from typing import Any

import micro
import numpy as np
import pytest

import nbpatch as nbp
from nbpatch.engine import Progress
from nbpatch.errors import NbpatchError, PlanError, PromptError
from nbpatch.live.controls import as_magic, as_python, describe_error
from nbpatch.live.worker import Worker
from nbpatch.model import Model, load
from nbpatch.plan import NOT_RUN
from nbpatch.workbench import Workbench

PAIR = nbp.PromptPair(" Mary and John gave", " John and Mary gave", " Paul", " Mary")
OTHER = nbp.PromptPair(" Paul and John went", " John and Paul went", " Mary", " Paul")


@pytest.fixture(scope="module")
def model() -> Model:
    return load((micro.gpt2(), micro.tokenizer()))


class Page:
    """What a page would have received, and a way to send what it would send."""

    def __init__(self, bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench = bench
        self.got: list[dict[str, Any]] = []
        self.buffers: list[list[bytes]] = []
        monkeypatch.setattr(bench, "send", self._take)

    def _take(self, message: dict[str, Any], buffers: Any = ()) -> None:
        self.got.append(message)
        self.buffers.append([bytes(one) for one in buffers])

    def say(self, message: str, /, **rest: Any) -> None:
        self.bench._receive({"v": 1, "type": message, **rest})

    def settle(self) -> None:
        assert self.bench._done.wait(20)

    def wait_for(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            found = [one for one in self.got if one["type"] == kind and not one.get("estimate")]
            if len(found) >= count:
                return found
            time.sleep(0.01)
        raise AssertionError(f"no {count} messages {kind}: {[one['type'] for one in self.got]}")


@pytest.fixture
def page(model: Model, monkeypatch: pytest.MonkeyPatch) -> Page:
    return Page(Workbench(model, [PAIR, OTHER], "resid_mid", metric=["logit_diff", "prob"]), monkeypatch)


def test_before_the_run_the_prompts_and_both_baselines_are_there(page: Page) -> None:
    spec = json.loads(json.dumps(page.bench.spec))
    assert spec["pairs"][0]["clean_tokens"][1] == " Mary"
    assert spec["pairs"][0]["metrics"]["logit_diff"]["clean"] != spec["pairs"][0]["metrics"]["logit_diff"]["corrupted"]
    assert bool((page.bench.result.data["state"] == NOT_RUN).any())


def test_run_returns_what_patch_returns_and_the_page_has_it(page: Page, model: Model) -> None:
    result = page.bench.run()
    same = nbp.patch(model, [PAIR, OTHER], "resid_mid", metric=["logit_diff", "prob"])
    for name in ("logit_diff", "prob"):
        np.testing.assert_allclose(result.data[name], same.data[name], atol=1e-6)
    last = page.wait_for("map")[-1]
    assert last["final"]
    shown = np.frombuffer(page.buffers[page.got.index(last)][0], np.float32)
    np.testing.assert_allclose(shown, same.effect(per_pair=True).sel(pair=0).to_numpy().ravel(), atol=1e-6)
    assert page.bench.status["state"] == "done"


def test_turning_the_direction_runs_the_missing_one_and_comes_back_at_once(page: Page, monkeypatch) -> None:
    page.bench.run()
    page.say("set", direction="noising")
    page.settle()
    assert page.bench.result.provenance["direction"] == "noising"
    runs = count_runs(monkeypatch)
    page.say("set", direction="both")
    page.settle()
    assert runs == []
    assert list(page.bench.result.data["direction"].to_numpy()) == ["denoising", "noising"]
    assert page.bench.spec["direction"] == "both"
    page.say("set", direction="denoising")
    page.settle()
    assert runs == []
    assert page.bench.result.provenance["direction"] == "denoising"


def test_both_from_the_cache_equals_both_run_together(page: Page, model: Model) -> None:
    page.bench.run()
    page.say("set", direction="both")
    page.settle()
    together = nbp.patch(model, [PAIR, OTHER], "resid_mid", direction="both", metric=["logit_diff", "prob"])
    np.testing.assert_allclose(page.bench.result.recovered(), together.recovered(), atol=1e-5)
    assert not any(warning.startswith("One direction") for warning in page.bench.result.warnings)


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    import nbpatch.live.measuring as home

    runs: list[str] = []
    plain = home.run

    def counted(plan: Any, model: Any, **options: Any) -> Any:
        runs.append(plan.component)
        return plain(plan, model, **options)

    monkeypatch.setattr(home, "run", counted)
    return runs


def test_another_component_takes_its_own_axes(page: Page) -> None:
    page.say("set", component="z")
    page.settle()
    assert page.bench.result.provenance["over"] == ["layer", "head"]
    page.say("set", component="z", over=["layer", "head", "pos"])
    page.settle()
    assert page.bench.result.provenance["over"] == ["layer", "head", "pos"]


def test_a_metric_that_was_not_measured_is_run_and_shown(page: Page) -> None:
    page.say("set", metric="kl")
    page.settle()
    assert page.wait_for("map")[-1]["key"]["metric"] == "kl"
    assert page.bench.spec["metric"] == "kl"


def test_the_other_pair_is_shown_without_a_run(page: Page, monkeypatch) -> None:
    page.bench.run()
    runs = count_runs(monkeypatch)
    page.say("set", pair=1)
    page.settle()
    assert page.wait_for("map")[-1]["key"]["pair"] == 1
    assert runs == []


def test_an_edited_prompt_is_tokenised_and_run(page: Page) -> None:
    page.bench.run()
    page.say("edit", field="clean", pair=0, value=" Paul and John gave")
    page.settle()
    assert page.bench.pairs[0].clean == " Paul and John gave"
    assert page.bench.result.provenance["pairs"][0]["clean_tokens"][1] == " Paul"


def test_an_edit_that_does_not_fit_keeps_the_last_sweep_and_can_be_completed(page: Page) -> None:
    finished = page.bench.run()
    page.say("edit", field="clean", pair=0, value=" Mary and John and Paul gave")
    page.settle()
    assert page.bench.error["field"] == "clean"
    assert page.bench.error["title"].startswith("the prompts have different numbers of tokens")
    assert page.bench.status["state"] == "error"
    assert page.bench.result is finished
    page.say("edit", field="corrupted", pair=0, value=" John and Mary and John gave")
    page.settle()
    assert page.bench.error is None
    assert page.bench.pairs[0].clean == " Mary and John and Paul gave"


def test_an_empty_wrong_answer_means_none(page: Page) -> None:
    page.say("set", metric="log_prob")
    page.settle()
    page.say("edit", field="wrong", pair=0, value="")
    page.settle()
    assert page.bench.error["title"].startswith("logit_diff needs a wrong answer")


def test_quick_changes_are_all_kept(page: Page, monkeypatch) -> None:
    slow_waves(monkeypatch)
    page.say("run")
    page.say("set", direction="both")
    page.say("set", component="mlp_out")
    page.say("edit", field="clean", pair=0, value=" Paul and John gave")
    page.say("edit", field="answer", pair=0, value=" drink")
    page.settle()
    assert page.bench.result.provenance["direction"] == "both"
    assert page.bench.result.provenance["component"] == "mlp_out"
    assert page.bench.pairs[0].clean == " Paul and John gave"
    assert page.bench.pairs[0].answer == (" drink",)


def test_alternatives_of_an_answer_are_typed_with_a_bar_between_them(page: Page) -> None:
    page.say("edit", field="answer", pair=0, value=" Paul |  drink")
    page.settle()
    assert page.bench.pairs[0].answer == (" Paul", " drink")


def test_all_layers_asked_for_at_once_are_answered(page: Page) -> None:
    for layer in range(3):
        page.say("attention", layer=layer)
    assert [one["layer"] for one in page.wait_for("attention", 3)] == [0, 1, 2]


def test_a_newer_request_supersedes_a_running_one(page: Page, monkeypatch) -> None:
    slow_waves(monkeypatch)
    page.say("set", component="attn_out")
    time.sleep(0.1)
    page.say("set", component="mlp_out")
    page.settle()
    assert page.bench.result.provenance["component"] == "mlp_out"
    assert {key[1] for key in page.bench._kept._found} == {"mlp_out"}


def slow_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    from nbpatch.engine import frontier

    plain = frontier.Walk

    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.3)
        return plain(*arguments, **options)

    monkeypatch.setattr(frontier, "MOST_TOKENS", 5)
    monkeypatch.setattr(frontier, "Walk", slowly)
    monkeypatch.setattr("nbpatch.live.measuring.QUICK", 0.0)


def test_cancel_keeps_what_is_finished(page: Page, monkeypatch) -> None:
    slow_waves(monkeypatch)
    page.say("run")
    page.wait_for("map", 4)
    started = time.monotonic()
    page.say("cancel")
    page.settle()
    assert time.monotonic() - started < 2
    states = page.bench.result.data["state"]
    assert bool((states == NOT_RUN).any())
    assert bool((states == 0).any())
    assert page.bench.status["state"] == "cancelled"
    assert page.bench.status["text"].startswith("Cancelled. ")
    assert page.bench.results == ()


def test_an_interrupt_of_the_cell_cancels_and_returns(page: Page, monkeypatch) -> None:
    slow_waves(monkeypatch)
    waits = iter([False, False])

    def wait(timeout: float | None = None) -> bool:
        if timeout is None:
            return real(20)
        if next(waits, None) is None:
            raise KeyboardInterrupt
        return real(timeout)

    real = page.bench._done.wait
    monkeypatch.setattr(page.bench._done, "wait", wait)
    result = page.bench.run()
    assert bool((result.data["state"] == NOT_RUN).any())


def test_a_running_map_streams_and_is_marked_as_not_final(page: Page, monkeypatch) -> None:
    slow_waves(monkeypatch)
    page.bench.run()
    maps = page.wait_for("map", 3)
    assert [one["final"] for one in maps][-1]
    assert not maps[1]["final"]
    statuses = page.bench.status
    assert statuses["text"].endswith("exactly 0 by construction")


def test_a_new_view_gets_everything(page: Page) -> None:
    page.bench.run()
    before = len(page.wait_for("map"))
    page.say("need")
    page.wait_for("map", before + 1)
    assert page.got[-1]["final"]


def test_attention_of_a_layer_is_sent_on_demand(page: Page) -> None:
    page.say("attention", layer=2)
    (message,) = page.wait_for("attention")
    assert message["shape"] == [2, 4, 5, 5]
    values = np.frombuffer(page.buffers[page.got.index(message)][0], np.float32).reshape(message["shape"])
    expected = nbp.attention(page.bench.model, PAIR).data["pattern"].isel(layer=2, pair=0)
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_an_unknown_layer_or_message_is_left_alone(page: Page) -> None:
    page.say("attention", layer=99)
    page.say("no such thing")
    page.say("need")
    page.wait_for("map")
    assert not [one for one in page.got if one["type"] == "attention"]


@pytest.mark.parametrize("kind", ["png", "nc", "csv", "html", "python", "magic"])
def test_every_export_is_answered(page: Page, kind: str) -> None:
    page.bench.run()
    page.say("export", kind=kind)
    (message,) = page.wait_for("export")
    data = page.buffers[page.got.index(message)]
    start = {
        "csv": "layer,pos,",
        "html": "<!DOCTYPE html>",
        "python": "import nbpatch as nbp",
        "magic": "%%patch --model",
    }
    if kind == "png":
        assert data[0].startswith(b"\x89PNG")
    elif kind == "nc":
        assert data[0][:4] in (b"\x89HDF", b"CDF\x01", b"CDF\x02", b"CDF\x05")
    else:
        assert message["text"].startswith(start[kind])


def test_copied_python_makes_the_same_result(page: Page, monkeypatch) -> None:
    result = page.bench.run()
    space: dict[str, Any] = {}
    code = as_python(page.bench._ask, "stand-in")
    monkeypatch.setattr(nbp, "load", lambda name: page.bench.model if name == "stand-in" else None)
    exec(code, space)
    np.testing.assert_allclose(space["result"].data["prob"], result.data["prob"], atol=1e-6)


def test_a_copied_cell_is_read_back_as_the_same_request(page: Page) -> None:
    from nbpatch.magics import read_spec

    head, _, body = as_magic(page.bench._ask, "tiny").partition("\n")
    spec = read_spec(head, head.removeprefix("%%patch "), body, {})
    assert spec.pairs == page.bench.pairs
    assert (spec.component, spec.over, spec.direction) == ("resid_mid", ("layer", "pos"), "denoising")
    assert list(spec.metric) == ["logit_diff", "prob"]


def test_selection_can_be_set_and_is_checked(page: Page) -> None:
    page.bench.selection = {"layer": 1, "pos": 2}
    assert page.bench.selection == {"layer": 1, "pos": 2}
    with pytest.raises(PlanError, match="names every swept axis"):
        page.bench.selection = {"layer": 1}
    page.bench.selection = None
    assert page.bench.selection is None


def test_what_patch_refuses_the_workbench_refuses_before_it_shows_anything(model: Model) -> None:
    with pytest.raises(PromptError, match="different numbers"):
        Workbench(model, nbp.PromptPair(" Mary", " Mary and", " Paul", " John"))
    with pytest.raises(NbpatchError, match="no component"):
        Workbench(model, PAIR, "resid_per")


def test_the_notebook_output_has_widget_picture_and_text_but_no_html(page: Page) -> None:
    page.bench.run()
    data, _ = page.bench._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert len(data["image/png"]) * 3 / 4 < 150_000
    assert data["text/plain"].startswith("resid_mid over layer pos")


def test_a_result_shows_itself_and_goes_on_from_there(model: Model) -> None:
    result = nbp.patch(model, PAIR, "z")
    shown = result.show()
    assert isinstance(shown, Workbench)
    assert shown.result is result
    assert shown.run() is result


def test_a_saved_result_shows_itself_without_a_model(model: Model, tmp_path) -> None:
    path = nbp.patch(model, PAIR, "z").save(tmp_path / "z.nc")
    widget = nbp.read(path).show()
    assert widget.spec["can_run"] is False
    got: list[dict[str, Any]] = []
    widget.send = lambda message, buffers=(): got.append(message)
    for callback in widget._msg_callbacks.callbacks:
        callback(widget, {"v": 1, "type": "need"}, [])
    assert [one["type"] for one in got] == ["map"]


def test_an_unexpected_error_reaches_the_page_with_its_traceback(page: Page, monkeypatch) -> None:
    import nbpatch.live.measuring as home

    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(home, "run", broken)
    page.say("set", component="z")
    page.settle()
    assert page.bench.error["title"] == "RuntimeError: the disk is full"
    assert "raise RuntimeError" in page.bench.error["traceback"]
    with pytest.raises(RuntimeError):
        page.bench.run()


def test_several_problems_are_shown_as_rows() -> None:
    from nbpatch.errors import combine

    shown = describe_error(combine([PromptError("a.", where="clean", fix="b"), PromptError("c.")]))
    assert shown == {"title": "2 problems. a. c.", "lines": ["in: clean", "try: b"], "field": "clean"}


def test_the_worker_runs_the_latest_job_of_each_owner() -> None:
    worker, ran, gate = Worker(), [], threading.Event()
    worker.submit("a", lambda: (gate.wait(5), ran.append("a1")))
    time.sleep(0.05)
    for name in ("a2", "a3"):
        worker.submit("a", lambda name=name: ran.append(name))
    worker.submit("b", lambda: ran.append("b1"))
    gate.set()
    until = time.monotonic() + 5
    while len(ran) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert ran == ["a1", "a3", "b1"]


def test_progress_is_sent_at_most_twenty_times_a_second(page: Page) -> None:
    from nbpatch.live.stream import Stream

    plan = page.bench._plan(page.bench._ask)
    sent: list[Any] = []
    stream = Stream(page.bench._ask, plan, page.bench.result, {}, lambda status: None, sent.append)
    values = {name: np.zeros(plan.states.shape) for name in ("logit_diff", "prob")}
    for done in range(1, 50):
        stream.send(Progress(done, 50, 1.0, values, plan.states))
    assert len(sent) == 1
