"""A sweep in stages gives what one run gives, the strongest cells first; its estimate comes before all of them."""

import time
from typing import Any

import numpy as np
import pytest
from test_workbench import OTHER, PAIR, Page, model  # noqa: F401 - a fixture

import nbpatch as nbp
import nbpatch.workbench as home
from nbpatch.engine import Progress, run, staged
from nbpatch.engine.staged import run_in_stages, stages
from nbpatch.live import measuring
from nbpatch.live.controls import Ask
from nbpatch.live.looks import ESTIMATE
from nbpatch.live.stream import Stream
from nbpatch.metrics import as_metrics
from nbpatch.model import Model
from nbpatch.plan import NOT_RUN, Plan, make_plan
from nbpatch.prompts import as_pairs
from nbpatch.workbench import Workbench


def plan_of(model: Model, component: str = "z", over: str = "layer head pos", direction: str = "both") -> Plan:  # noqa: F811
    metrics = as_metrics(["logit_diff", "prob"])
    return make_plan(model.shape, model.tokenize([PAIR, OTHER]), component, over, direction=direction, metrics=metrics)


def scores_of(plan: Plan) -> np.ndarray:
    return np.random.default_rng(0).normal(size=plan.states.shape[:-1])


@pytest.fixture(autouse=True)
def short_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "_FEWEST", 2)


@pytest.mark.parametrize("engine", ["auto", "replay"])
def test_stages_give_what_one_run_gives(model: Model, engine: str, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(model, "engine", engine)
    plan = plan_of(model)
    whole, parts = run(plan, model), run_in_stages(plan, model, scores_of(plan))
    for name in ("logit_diff", "prob"):
        np.testing.assert_allclose(parts.data[name], whole.data[name], atol=1e-6)
    np.testing.assert_array_equal(parts.data["state"], whole.data["state"])
    assert parts.warnings == whole.warnings
    assert parts.provenance["engine"]["run"] == whole.provenance["engine"]["run"] == plan.n_runs
    assert parts.card().splitlines()[0] == whole.card().splitlines()[0]


def test_each_cell_is_in_one_stage_and_stronger_ones_are_in_earlier_ones(model: Model) -> None:  # noqa: F811
    plan = plan_of(model)
    scores = scores_of(plan)
    made = list(stages(plan, scores))
    assert len(made) == 3
    count = sum((one.states == NOT_RUN).astype(int) for one in made)
    np.testing.assert_array_equal(count, plan.states == NOT_RUN)
    planned = [(one.states == NOT_RUN).any(-1) for one in made]
    strengths = [np.abs(scores)[one] for one in planned]
    assert strengths[0].min() >= strengths[1].max()
    assert strengths[1].min() >= strengths[2].max()


def test_a_cell_without_an_estimate_comes_last(model: Model) -> None:  # noqa: F811
    plan = plan_of(model)
    scores = np.full(plan.states.shape[:-1], 1.0)
    cell = tuple(np.argwhere((plan.states == NOT_RUN).any(-1))[0])
    scores[cell] = np.nan
    *_, last = stages(plan, scores)
    assert (last.states[cell] == NOT_RUN).any()


def test_stopping_between_stages_keeps_the_strongest(model: Model) -> None:  # noqa: F811
    plan = plan_of(model)
    scores = scores_of(plan)
    (first, *_) = stages(plan, scores)
    done: list[int] = []
    result = run_in_stages(
        plan, model, scores, on_progress=lambda one: done.append(one.done), stop=lambda: done[-1:] == [first.n_runs]
    )
    state = result.data["state"].to_numpy()
    np.testing.assert_array_equal(state == 0, first.states == NOT_RUN)
    assert (state == NOT_RUN).sum() == plan.n_runs - first.n_runs
    assert done == sorted(done)


# -- the estimate on the page


@pytest.fixture
def page(model: Model, monkeypatch: pytest.MonkeyPatch) -> Page:  # noqa: F811
    return Page(Workbench(model, [PAIR, OTHER], "z"), monkeypatch)


def effect_and_state(page: Page, message: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    (number,) = [i for i, one in enumerate(page.got) if one is message]
    one, other = page.buffers[number]
    return np.frombuffer(one, np.float32), np.frombuffer(other, np.uint8)


def test_the_estimate_comes_first_and_exact_cells_replace_it(page: Page, monkeypatch) -> None:
    monkeypatch.setattr(measuring, "QUICK", 0.0)
    result = page.bench.run()
    sent = [one for one in page.got if one["type"] == "map"]
    estimated = nbp.attribute(page.bench.model, [PAIR, OTHER], "z").effect(per_pair=True).sel(pair=0).to_numpy().ravel()
    exact = result.effect(per_pair=True).sel(pair=0).to_numpy().ravel()
    first = next(one for one in sent if not one.get("estimate") and ESTIMATE in effect_and_state(page, one)[1])
    effect, state = effect_and_state(page, first)
    np.testing.assert_allclose(effect[state == ESTIMATE], estimated[state == ESTIMATE], atol=1e-5)
    effect, state = effect_and_state(page, sent[-1])
    assert sent[-1]["final"]
    assert ESTIMATE not in state
    np.testing.assert_allclose(effect, exact, atol=1e-5)
    alone = [one for one in sent if one.get("estimate")][-1]
    np.testing.assert_allclose(effect_and_state(page, alone)[0], estimated, atol=1e-5)
    assert alone["key"] == sent[-1]["key"]


def test_without_an_estimate_the_sweep_runs_all_the_same(page: Page) -> None:
    page.say("set", metric="rank")
    page.settle()
    assert page.bench.error is None
    assert page.bench.status["state"] == "done"
    assert not any(one.get("estimate") and one["key"]["metric"] == "rank" for one in page.got)


def test_an_estimate_that_another_request_took_the_place_of_is_made_after_that(page: Page, monkeypatch) -> None:
    monkeypatch.setattr(measuring, "QUICK", 1e9)
    monkeypatch.setattr(home.KERNEL, "follow", lambda *_: None)
    page.bench.run()
    assert not any(one.get("estimate") for one in page.got)
    monkeypatch.undo()
    seen: list[Any] = []
    monkeypatch.setattr(page.bench, "send", lambda message, buffers=(): seen.append(message))
    page.bench.run()
    until = time.monotonic() + 20
    while not any(one.get("estimate") for one in seen):
        assert time.monotonic() < until, "no estimate"
        time.sleep(0.01)


def test_a_quick_sweep_is_there_before_its_estimate(page: Page, monkeypatch) -> None:
    monkeypatch.setattr(measuring, "QUICK", 1e9)
    page.bench.run()
    page.wait_for("map", 2)
    page.settle()
    sent = [one for one in page.got if one["type"] == "map"]
    assert [bool(one.get("estimate")) for one in sent][:2] == [False, True]
    assert all(one["final"] for one in sent if not one.get("estimate"))
    assert not any(ESTIMATE in effect_and_state(page, one)[1] for one in sent if not one.get("estimate"))
    alone = next(one for one in sent if one.get("estimate"))
    estimated = nbp.attribute(page.bench.model, [PAIR, OTHER], "z").effect(per_pair=True).sel(pair=0).to_numpy().ravel()
    np.testing.assert_allclose(effect_and_state(page, alone)[0], estimated, atol=1e-5)


@pytest.mark.parametrize(
    ("component", "over", "updates"), [("z", "layer head", 20), ("pattern", "layer head dest src", 2)]
)
def test_a_large_map_is_sent_less_often(model: Model, monkeypatch, component, over, updates) -> None:  # noqa: F811
    plan = plan_of(model, component, over, "denoising")
    begun = run(plan, model, stop=measuring.at_once)
    ask = Ask(as_pairs([PAIR, OTHER]), component, plan.over, "denoising", plan.metrics, "logit_diff")
    monkeypatch.setattr("nbpatch.live.stream._PER_CELL", 0.5 / plan.states[..., 0].size if updates < 20 else 25e-6)
    posted: list[Any] = []
    send = Stream(ask, plan, begun, {}, lambda status: None, posted.append).send
    clock = iter(np.arange(1.0, 2.0, 0.01))
    monkeypatch.setattr("nbpatch.live.stream.time.monotonic", lambda: next(clock))
    values = {name: begun.data[name].to_numpy()[None] for name in ("logit_diff", "prob")}
    for _ in range(100):
        send(Progress(1, plan.n_runs, 1.0, values, begun.data["state"].to_numpy()[None]))
    assert len(posted) == pytest.approx(updates, abs=1)


def test_a_long_sweep_is_run_in_stages(page: Page, monkeypatch) -> None:
    ran: list[np.ndarray] = []
    plain = measuring.run_in_stages
    monkeypatch.setattr(measuring, "QUICK", 0.0)
    monkeypatch.setattr(measuring, "LONG", 0.0)
    monkeypatch.setattr(
        measuring, "run_in_stages", lambda plan, *rest, **more: ran.append(rest[1]) or plain(plan, *rest, **more)
    )
    page.say("set", component="mlp_out")
    page.settle()
    same = nbp.patch(page.bench.model, [PAIR, OTHER], "mlp_out")
    np.testing.assert_allclose(page.bench.result.data["logit_diff"], same.data["logit_diff"], atol=1e-6)
    estimated = nbp.attribute(page.bench.model, [PAIR, OTHER], "mlp_out").effect()
    np.testing.assert_allclose(ran[0][0], estimated, atol=1e-6)


def test_a_cancelled_sweep_keeps_its_estimate_beside_what_was_run(page: Page, monkeypatch) -> None:
    from test_workbench import slow_waves

    slow_waves(monkeypatch)
    page.say("run")
    page.wait_for("map", 4)
    page.say("cancel")
    page.settle()
    last = [one for one in page.got if one["type"] == "map" and not one.get("estimate")][-1]
    _, state = effect_and_state(page, last)
    assert {0, ESTIMATE} <= set(state.tolist())
    assert (page.bench.result.data["state"] == NOT_RUN).any()
