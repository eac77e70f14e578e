"""Several components in one call: the numbers of single calls, one result, and back to single ones."""

import micro
import numpy as np
import pytest

import nbpatch as nbp
from nbpatch.errors import PlanError, ResultError
from nbpatch.model import Model, load
from nbpatch.result import STATES, read

PAIR = nbp.PromptPair(" Mary and John gave", " John and Mary gave", " Paul", " Mary")


@pytest.fixture(scope="module")
def model() -> Model:
    return load((micro.gpt2(), micro.tokenizer()))


@pytest.fixture(scope="module")
def grouped() -> Model:
    return load((micro.llama(layers=3), micro.tokenizer()))


def same(one: nbp.Result, other: nbp.Result) -> None:
    for name in one.metrics:
        np.testing.assert_allclose(one.data[name], other.data[name], atol=1e-5)
        assert one.data[name].dims == other.data[name].dims
    np.testing.assert_array_equal(one.data["state"], other.data["state"])
    assert one.provenance["component"] == other.provenance["component"]


@pytest.mark.parametrize("direction", ["noising", "both"])
def test_each_component_has_the_numbers_of_a_call_of_its_own(model, direction):
    names = ["resid_pre", "attn_out", "mlp_out"]
    together = nbp.patch(model, PAIR, names, direction=direction, metric=["logit_diff", "prob"])
    assert together.components == tuple(names)
    assert together.data["logit_diff"].dims[0] == "component"
    for name in names:
        same(together.sel(name), nbp.patch(model, PAIR, name, direction=direction, metric=["logit_diff", "prob"]))


def test_key_value_heads_stand_beside_heads(grouped):
    together = nbp.patch(grouped, PAIR, "z, q k v pattern")
    assert list(together.data["head"].to_numpy()) == ["0", "1", "2", "3", "kv0", "kv1"]
    assert together.reason(component="k", layer=1, head="0").startswith("this pair has no such position")
    assert list(together.sel("k").data["head"].to_numpy()) == ["kv0", "kv1"]
    assert list(together.sel("z").data["head"].to_numpy()) == [0, 1, 2, 3]
    for name in ("z", "q", "k", "v", "pattern"):
        same(together.sel(name), nbp.patch(grouped, PAIR, name))


def test_base_runs_and_waves_are_shared(model):
    names = ["z", "q", "v"]
    together = nbp.patch(model, PAIR, names).provenance["engine"]
    alone = [nbp.patch(model, PAIR, name).provenance["engine"] for name in names]
    assert together["waves"] == 1
    assert together["runs"] == sum(one["runs"] for one in alone)
    assert together["flops"] < sum(one["flops"] for one in alone)


def test_the_strongest_cells_of_all_are_found_and_printed(model):
    together = nbp.patch(model, PAIR, "resid_pre mlp_out")
    best = together.top(1).iloc[0]
    assert best["effect"] == max((together.sel(name).top(1).iloc[0]["effect"] for name in together.components), key=abs)
    assert repr(together).startswith("resid_pre mlp_out over layer pos")


def test_files_keep_all_components(model, tmp_path):
    together = nbp.patch(model, PAIR, "z k", direction="both")
    again = read(together.save(tmp_path / "x.nc"))
    for name in together.components:
        same(again.sel(name), together.sel(name))
        assert again.sel(name).plot().axes


def test_one_is_shown_and_goes_on(model):
    together = nbp.patch(model, PAIR, "z k")
    bundle, _ = together._repr_mimebundle_()
    assert bundle["text/plain"] == repr(together)
    assert bundle["image/png"]
    assert together.show().result.provenance["component"] == "z"
    with pytest.raises(ResultError, match="one component is drawn at a time") as caught:
        together.plot()
    assert caught.value.fix == 'result.sel("z").plot()'


def test_replay_runs_several_as_well(model):
    model.engine = "replay"
    try:
        slow = nbp.patch(model, PAIR, "z q")
    finally:
        model.engine = "auto"
    fast = nbp.patch(model, PAIR, "z q")
    assert (slow.provenance["engine"]["name"], fast.provenance["engine"]["name"]) == ("replay", "frontier")
    np.testing.assert_allclose(slow.data["logit_diff"], fast.data["logit_diff"], atol=1e-4)


@pytest.mark.parametrize(
    ("component", "over", "message"),
    [
        ("z z", None, "a component is named twice."),
        ([], None, "no component named."),
        ("resid_pre z", None, "components run together need the same axes."),
    ],
)
def test_what_cannot_run_together_is_refused(model, component, over, message):
    with pytest.raises(PlanError) as caught:
        nbp.patch(model, PAIR, component, over)
    assert caught.value.what == message
    assert caught.value.fix


def test_components_with_different_usual_axes_share_named_ones(model):
    together = nbp.patch(model, PAIR, "resid_pre z", "layer")
    assert together.data["logit_diff"].dims == ("component", "layer", "pair")


def test_an_unknown_component_is_refused_with_a_suggestion(model):
    together = nbp.patch(model, PAIR, "z q")
    with pytest.raises(ResultError, match="no component 'zz'"):
        together.sel("zz")
    assert together.sel("z").sel("z").components == ("z",)
    assert set(np.unique(together.data["state"])) <= set(range(len(STATES)))
