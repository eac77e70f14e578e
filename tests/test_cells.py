"""What hangs on the chosen cells, as the page receives it: checked against `patch`, `patch_sites` and the sweep."""

from dataclasses import replace
from typing import Any

import micro
import numpy as np
import pytest
import torch
from test_workbench import OTHER, PAIR, Page

import nbpatch as nbp
from nbpatch.engine import Origin
from nbpatch.engine.base import trace_runs
from nbpatch.errors import PlanError
from nbpatch.live import cells
from nbpatch.methods.patching import dry_run
from nbpatch.model import Model, load
from nbpatch.plan import DIRECTIONS
from nbpatch.workbench import Workbench

CELL = {"layer": 1, "head": 2}
BASES = {"denoising": "corrupted", "noising": "clean"}


@pytest.fixture(scope="module")
def model() -> Model:
    return load((micro.gpt2(), micro.tokenizer()))


def opened(model: Model, monkeypatch: pytest.MonkeyPatch, component: str = "z", **options: Any) -> Page:
    page = Page(Workbench(model, options.pop("pairs", [PAIR, OTHER]), component, **options), monkeypatch)
    page.bench.run()
    return page


@pytest.fixture
def page(model: Model, monkeypatch: pytest.MonkeyPatch) -> Page:
    return opened(model, monkeypatch)


def ask(page: Page, kind: str, count: int, **content: Any) -> list[dict[str, Any]]:
    page.say("ask", kind=kind, key=kind, id=1, **content)
    return page.wait_for("answer", count)


def answered(page: Page, kind: str, **content: Any) -> dict[str, Any]:
    (reply,) = ask(page, kind, 1, **content)
    assert "error" not in reply, reply["error"]
    return reply


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("component", ["z", "resid_pre", "mlp_out", "head_out", "pattern", "k"])
def test_next_tokens_before_and_after_are_those_of_the_sweeps_run(model, monkeypatch, component, direction):
    page = opened(model, monkeypatch, component, direction=direction, metric=["prob", "logit_diff"])
    chosen = dict.fromkeys(page.bench.result.over, 1)
    reply = answered(page, "cell", cell=chosen)
    result = page.bench.result
    here = {**chosen, "pair": 0}
    assert reply["base"] == BASES[direction]
    text, before, after, kind = reply["tokens"][0]
    assert (text, kind) == (" Paul", "answer")
    assert before == pytest.approx(float(result.baselines[BASES[direction]].sel(metric="prob", pair=0)), abs=1e-6)
    assert after == pytest.approx(float(result.data["prob"].sel(here)), abs=1e-6)
    assert reply["value"] == pytest.approx(float(result.data["prob"].sel(here)), abs=1e-6)
    rest = [max(one[1:3]) for one in reply["tokens"][2:]]
    assert rest == sorted(rest, reverse=True)
    assert [one[3] for one in reply["tokens"][1:]] == ["wrong", *[""] * (len(reply["tokens"]) - 2)]


def test_the_top_tokens_are_the_likeliest_of_the_patched_run(page, model):
    reply = answered(page, "cell", cell=CELL)
    share = 0.0
    columns = model.shape.d_vocab
    for column in range(columns):
        chosen = nbp.patch(model, PAIR, "z", metric=lambda logits, c=column: logits.softmax(-1)[:, c])
        share = max(share, float(chosen.data[chosen.metrics[0]].sel(**CELL, pair=0)))
    assert max(one[2] for one in reply["tokens"]) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_spread_is_each_pairs_share_with_its_mean_and_interval(model, monkeypatch, direction):
    page = opened(model, monkeypatch, direction=direction)
    spread = answered(page, "cell", cell=CELL)["spread"]
    assert list(spread) == [direction]
    result = page.bench.result
    shares = result.share(per_pair=True).sel(**CELL)
    np.testing.assert_allclose(spread[direction]["values"], shares.to_numpy(), atol=1e-9)
    assert spread[direction]["mean"] == pytest.approx(float(result.share().sel(**CELL)))
    shift = 1.0 if direction == "noising" else 0.0
    for side in ("low", "high"):
        whole = float(result.interval()[side].sel(**CELL)) - shift
        assert spread[direction][side] == pytest.approx(whole, abs=1e-9)


def test_both_directions_have_a_spread_each_and_show_the_denoising_run(model, monkeypatch):
    page = opened(model, monkeypatch, direction="both")
    reply = answered(page, "cell", cell=CELL)
    assert list(reply["spread"]) == list(DIRECTIONS)
    assert (reply["direction"], reply["base"]) == ("denoising", "corrupted")
    value = float(page.bench.result.data["logit_diff"].sel(direction="denoising", **CELL, pair=0))
    assert reply["value"] == pytest.approx(value, abs=1e-4)


def test_one_pair_has_no_spread(model, monkeypatch):
    page = opened(model, monkeypatch, pairs=[PAIR])
    assert answered(page, "cell", cell=CELL)["spread"] == {}


def test_the_other_pairs_run_is_shown_when_it_is_on_screen(page):
    page.say("set", pair=1)
    page.settle()
    reply = answered(page, "cell", cell=CELL)
    value = float(page.bench.result.data["logit_diff"].sel(**CELL, pair=1))
    assert reply["value"] == pytest.approx(value, abs=1e-4)
    assert reply["tokens"][0][0] == " Mary"


def test_attention_of_the_patched_run_is_the_base_runs_until_the_patch_and_another_after_it(page):
    assert "shape" not in answered(page, "cell", cell=CELL)
    page.got.clear()
    page.buffers.clear()
    second = answered(page, "cell", cell=CELL, layer=2)
    assert second["shape"] == [4, 5, 5]
    pattern = np.frombuffer(page.buffers[page.got.index(second)][0], np.float32).reshape(second["shape"])
    np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-5)
    base = nbp.attention(page.bench.model, PAIR).data["pattern"].isel(pair=0).sel(run="corrupted")
    assert np.abs(pattern - base.isel(layer=2).to_numpy()).max() > 1e-3
    page.got.clear()
    page.buffers.clear()
    before = answered(page, "cell", cell=CELL, layer=1)
    pattern = np.frombuffer(page.buffers[page.got.index(before)][0], np.float32).reshape(before["shape"])
    np.testing.assert_allclose(pattern, base.isel(layer=1).to_numpy(), atol=1e-6)


def test_a_patched_pattern_is_seen_as_it_was_put(model, monkeypatch):
    page = opened(model, monkeypatch, "pattern")
    reply = answered(page, "cell", cell=CELL, layer=1)
    pattern = np.frombuffer(page.buffers[page.got.index(reply)][0], np.float32).reshape(reply["shape"])
    both = nbp.attention(model, PAIR).data["pattern"].isel(pair=0, layer=1)
    for head in range(4):
        run = "clean" if head == CELL["head"] else "corrupted"
        np.testing.assert_allclose(pattern[head], both.sel(run=run, head=head).to_numpy(), atol=1e-6)


def test_a_run_that_is_not_the_sweeps_is_refused(page, monkeypatch):
    def elsewhere(*arguments: Any, **options: Any) -> Any:
        runs = trace_runs(*arguments, **options)
        runs.groups[0].sources["clean", "z", 1].mul_(1.5)
        return runs

    monkeypatch.setattr(cells, "trace_runs", elsewhere)
    (reply,) = ask(page, "cell", 1, cell=CELL)
    assert reply["error"]["title"].startswith("the patched run gives another value than the sweep")
    assert any("in the sweep" in line for line in reply["error"]["lines"])
    assert "tokens" not in reply


def test_a_wholly_user_made_metric_is_shown_without_a_value(model, monkeypatch):
    def mine(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 3]

    page = opened(model, monkeypatch, metric=mine)
    reply = answered(page, "cell", cell=CELL)
    assert reply["value"] is None
    assert reply["tokens"]


@pytest.mark.parametrize("direction", ["denoising", "noising", "both"])
def test_several_cells_are_patched_in_one_run(model, monkeypatch, direction):
    page = opened(model, monkeypatch, direction=direction)
    chosen = [{"layer": 0, "head": 1}, {"layer": 2, "head": 3}, CELL]
    reply = answered(page, "together", cells=chosen)
    same = nbp.patch_sites(model, PAIR, [["z[0.1]", "z[2.3]", "z[1.2]"]], direction=direction)
    joint, alone = same.effect(), page.bench.result.effect(per_pair=True).sel(pair=0)
    for name in DIRECTIONS if direction == "both" else [direction]:
        one = joint.sel(direction=name) if direction == "both" else joint
        assert reply["together"][name] == pytest.approx(float(one[0]), abs=1e-6)
        swept = alone.sel(direction=name) if direction == "both" else alone
        assert reply["sum"][name] == pytest.approx(sum(float(swept.sel(**cell)) for cell in chosen), abs=1e-5)
    assert reply["sites"] == ["z[0.1]", "z[2.3]", "z[1.2]"]


@pytest.mark.parametrize("cells", [None, [], [CELL], [CELL, CELL]])
def test_one_cell_is_not_together_with_anything(page, cells):
    (reply,) = ask(page, "together", 1, cells=cells)
    assert reply["error"]["title"] == "that patches several cells."


def test_a_cell_of_another_map_is_refused(page):
    (reply,) = ask(page, "cell", 1, cell={"layer": 1, "pos": 2})
    assert reply["error"]["title"] == "no such cell on this map."
    assert "try: axes: layer, head" in reply["error"]["lines"]


@pytest.mark.parametrize(
    ("component", "origin", "target", "sites"),
    [
        ("z", CELL, {"layer": 2, "head": 0}, ("z[1.2]", "z[2.0]")),
        ("resid_pre", {"layer": 2, "pos": 1}, {"layer": 1, "pos": 3}, ("resid_pre[2] @ 1", "resid_pre[1] @ 3")),
    ],
)
def test_a_cells_value_is_put_into_another_place(model, monkeypatch, component, origin, target, sites):
    page = opened(model, monkeypatch, component, direction="both")
    reply = answered(page, "move", **{"from": origin, "to": target})
    same = nbp.patch_sites(model, PAIR, [sites[1]], from_=[sites[0]], direction="both").effect()
    assert (reply["from"], reply["to"]) == sites
    for direction in DIRECTIONS:
        assert reply["effects"][direction] == pytest.approx(float(same.sel(direction=direction)[0]), abs=1e-6)


def test_a_patterns_move_is_refused_with_its_reason(model, monkeypatch):
    page = opened(model, monkeypatch, "pattern")
    (reply,) = ask(page, "move", 1, **{"from": CELL, "to": {"layer": 2, "head": 0}})
    assert reply["error"]["title"] == "a pattern goes to its own place only."


def test_what_is_brushed_can_be_set_and_its_rows_are_selected(page):
    page.bench.selection = {"layer": 0, "head": 0}
    page.bench.brushed = [CELL, {"layer": 2, "head": 1}]
    rows = page.bench.selected
    assert rows[["layer", "head"]].to_numpy().tolist() == [[0, 0], [1, 2], [2, 1]]
    assert rows["effect"][1] == pytest.approx(float(page.bench.result.effect().sel(**CELL)))
    with pytest.raises(PlanError, match="names every swept axis") as error:
        page.bench.brushed = [CELL, {"layer": 1}]
    assert 'wb.brushed = [{"layer": 0, "head": 0}]' in str(error.value)


def test_a_brush_of_other_axes_selects_nothing(page):
    page.bench.brushed = [CELL]
    page.say("set", component="resid_mid")
    page.settle()
    assert len(page.bench.selected) == 0


def test_ablations_show_their_run_and_several_draws_none(model):
    for corruption, drawn in ((nbp.Zero(), False), (nbp.Mean(), False), (nbp.Resample([PAIR, OTHER], k=3), True)):
        result = nbp.patch(model, [PAIR, OTHER], "z", corruption=corruption)
        plan = dry_run(model, [PAIR, OTHER], "z", corruption=corruption)
        result = replace(result, origin=Origin(model, plan))
        asked = Workbench(model, [PAIR, OTHER], "z", direction="noising")._ask
        question = cells.Question(model, asked, result, {"cell": CELL}, {})
        (reply,) = [reply for reply, _ in cells.cell(question)]
        if drawn:
            assert "drawn at random" in reply["note"]
        else:
            assert reply["value"] == pytest.approx(float(result.data["logit_diff"].sel(**CELL, pair=0)), abs=1e-4)
