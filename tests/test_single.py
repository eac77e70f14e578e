"""Single views as widgets: what they show, what can be set and linked, and what they refuse."""

import json
import time
from typing import Any

import ipywidgets
import numpy as np
import pytest
import traitlets
from test_workbench import PAIR, model  # noqa: F401 - a fixture

import nbpatch as nbp
from nbpatch.errors import PlanError, ResultError, SiteError
from nbpatch.model import Model


@pytest.fixture(scope="module")
def both(model: Model) -> nbp.Result:  # noqa: F811
    return nbp.patch(model, PAIR, "z", direction="both", metric=["logit_diff", "prob"])


def sent_by(widget: Any, message: dict[str, Any], count: int) -> list[tuple[dict[str, Any], list[bytes]]]:
    got: list[tuple[dict[str, Any], list[bytes]]] = []
    widget.send = lambda content, buffers=(): got.append((content, [bytes(one) for one in buffers]))
    for callback in widget._msg_callbacks.callbacks:
        callback(widget, {"v": 1, **message}, [])
    until = time.monotonic() + 20
    while len(got) < count and time.monotonic() < until:
        time.sleep(0.01)
    return got


def test_the_toggle_starts_observes_and_refuses() -> None:
    toggle = nbp.DirectionToggle("noising")
    seen: list[str] = []
    toggle.observe(lambda change: seen.append(change["new"]), "value")
    toggle.value = "both"
    assert seen == ["both"]
    assert json.loads(json.dumps(toggle.spec))["view"] == "direction"
    with pytest.raises(ResultError, match="no direction 'up'"):
        toggle.value = "up"
    assert toggle.value == "both"


def test_the_toggle_turns_a_workbench_and_the_other_way_round(model: Model) -> None:  # noqa: F811
    bench, toggle = nbp.Workbench(model, PAIR, "z"), nbp.DirectionToggle()
    link = traitlets.link((toggle, "value"), (bench, "direction"))
    toggle.value = "noising"
    assert bench._done.wait(20)
    assert bench.result.provenance["direction"] == "noising"
    bench.direction = "both"
    assert toggle.value == "both"
    link.unlink()


def test_a_heat_map_sends_the_maps_of_its_result(both: nbp.Result) -> None:
    shown = nbp.Heatmap(both, "prob")
    maps = sent_by(shown, {"type": "need"}, 2)
    assert [one["direction"] for one, _ in maps] == ["denoising", "noising"]
    effect = np.frombuffer(maps[0][1][0], np.float32)
    np.testing.assert_allclose(effect, both.effect("prob").sel(direction="denoising").to_numpy().ravel(), atol=1e-6)
    assert shown.spec["metric"] == "prob"
    assert shown.spec["can_run"] is False


def test_a_heat_map_takes_another_result_and_metric(both: nbp.Result, model: Model) -> None:  # noqa: F811
    shown = nbp.Heatmap(both)
    shown.metric = "prob"
    assert shown.spec["metric"] == "prob"
    shown.direction = "noising"
    other = nbp.patch(model, PAIR, "resid_pre")
    shown.result = other
    assert (shown.metric, shown.direction, shown.spec["component"]) == ("logit_diff", "denoising", "resid_pre")
    shown.selection = {"layer": 0, "pos": 1}
    assert shown.selection == {"layer": 0, "pos": 1}


def test_a_heat_map_refuses_what_it_cannot_show(both: nbp.Result, model: Model, untyped: None) -> None:  # noqa: F811
    with pytest.raises(ResultError, match="a heat map shows a result"):
        nbp.Heatmap("z")
    with pytest.raises(ResultError, match="single places"):
        nbp.Heatmap(nbp.attribute(model, PAIR, "z"))
    with pytest.raises(ResultError, match="no metric 'kl'"):
        nbp.Heatmap(both, "kl")
    one = nbp.Heatmap(nbp.patch(model, PAIR, "z"))
    with pytest.raises(ResultError, match="was not measured"):
        one.direction = "noising"


def test_a_heat_map_has_a_picture_beside_it(both: nbp.Result) -> None:
    data, _ = nbp.Heatmap(both)._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}


def test_attention_is_sent_for_the_layer_asked_for(model: Model) -> None:  # noqa: F811
    view = nbp.AttentionView(model, PAIR, layer=1, head=2)
    ((message, buffers),) = sent_by(view, {"type": "attention", "layer": 2}, 1)
    expected = nbp.attention(model, PAIR).data["pattern"].isel(layer=2, pair=0)
    np.testing.assert_allclose(np.frombuffer(buffers[0], np.float32).reshape(message["shape"]), expected, atol=1e-6)
    spec = json.loads(json.dumps(view.spec))
    assert (spec["view"], spec["model"]["n_layers"]) == ("attention", 3)
    assert spec["pairs"][0]["clean_tokens"][1] == " Mary"
    assert (view.layer, view.head) == (1, 2)


def test_attention_refuses_what_is_not_there(model: Model) -> None:  # noqa: F811
    view = nbp.AttentionView(model, PAIR)
    with pytest.raises(SiteError, match="no layer 7"):
        view.layer = 7
    with pytest.raises(SiteError, match="no head -1"):
        nbp.AttentionView(model, PAIR, head=-1)
    with pytest.raises(PlanError, match="no mode"):
        view.mode = "cleen"
    with pytest.raises(nbp.NbpatchError, match="different"):
        view.pair = nbp.PromptPair(" Mary", " Mary and", " Paul", " John")
    assert view.pair == PAIR


def test_another_pair_brings_its_own_attention(model: Model) -> None:  # noqa: F811
    view = nbp.AttentionView(model, PAIR)
    other = nbp.PromptPair(" Paul and John went", " John and Paul went", " Mary", " Paul")
    view.pair = other
    ((_, buffers),) = sent_by(view, {"type": "attention", "layer": 0}, 1)
    expected = nbp.attention(model, other).data["pattern"].isel(layer=0, pair=0).to_numpy()
    np.testing.assert_allclose(np.frombuffer(buffers[0], np.float32), expected.ravel(), atol=1e-6)


def test_layout_containers_hold_them(both: nbp.Result, model: Model) -> None:  # noqa: F811
    views = [nbp.DirectionToggle(), nbp.Heatmap(both), nbp.AttentionView(model, PAIR), nbp.Workbench(model, PAIR)]
    assert ipywidgets.VBox(views).children == tuple(views)


def test_selected_rows_are_those_of_the_frame(model: Model) -> None:  # noqa: F811
    bench = nbp.Workbench(model, PAIR, "z", direction="both")
    result = bench.run()
    assert len(bench.selected) == 0
    bench.selection = {"layer": 1, "head": 3}
    rows = bench.selected
    assert rows["direction"].tolist() == ["denoising", "noising"]
    expected = result.effect().sel(layer=1, head=3).to_numpy()
    np.testing.assert_allclose(rows["effect"], expected)


def test_pairs_and_result_are_set_from_python(model: Model) -> None:  # noqa: F811
    bench = nbp.Workbench(model, PAIR, "z")
    seen: list[Any] = []
    bench.observe(lambda change: seen.append(change["name"]), ["pairs", "result"])
    other = nbp.PromptPair(" Paul and John went", " John and Paul went", " Mary", " Paul")
    bench.pairs = other
    assert bench._done.wait(20)
    assert bench.result.provenance["pairs"][0]["clean"] == other.clean
    assert {"pairs", "result"} <= set(seen)
    mine = nbp.patch(model, PAIR, "resid_pre", direction="noising")
    bench.result = mine
    assert bench._done.wait(20)
    assert bench.result is mine
    assert (bench.component, bench.direction, bench.pairs[0]) == ("resid_pre", "noising", PAIR)
    with pytest.raises(nbp.NbpatchError, match="different numbers"):
        bench.pairs = nbp.PromptPair(" Mary", " Mary and", " Paul", " John")
    assert bench.pairs[0] == PAIR
    with pytest.raises(PlanError, match="of its own model"):
        bench.result = nbp.attribute(model, PAIR, "z")
