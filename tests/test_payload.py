"""Payloads: the numbers under the pixels are the engine's; nothing but JSON and flat arrays leaves Python."""

import base64
import json

import micro
import numpy as np
import pytest

from nbpatch.methods.companions import attention
from nbpatch.methods.patching import patch
from nbpatch.model import Model, load
from nbpatch.prompts import PromptPair
from nbpatch.result import STATES, Result
from nbpatch.sites import SWEEPABLE
from nbpatch.view import payload

PAIR = PromptPair(" Mary and John gave", " John and Mary gave", " Paul", " Mary")
OTHER = PromptPair(" Paul and John went", " John and Paul went", " Mary", " Paul")


@pytest.fixture(scope="module")
def model() -> Model:
    return load((micro.llama(), micro.tokenizer()))


@pytest.fixture(scope="module")
def both(model: Model) -> Result:
    return patch(model, [PAIR, OTHER], "z", "layer head pos", direction="both", metric=["logit_diff", "prob"])


def test_a_map_holds_the_effects_of_one_pair(both: Result) -> None:
    maps = payload.maps_of(both, "prob", pair=1)
    assert [one.head["direction"] for one in maps] == ["denoising", "noising"]
    expected = both.effect("prob", per_pair=True).sel(pair=1)
    for one in maps:
        np.testing.assert_allclose(one.effect, expected.sel(direction=one.head["direction"]), atol=1e-6)
        assert one.effect.dtype == np.float32
        assert one.state.dtype == np.uint8
        assert {STATES[code] for code in np.unique(one.state)} == {"measured", "exact"}


def test_the_head_of_a_map_is_json_and_says_what_it_is(both: Result) -> None:
    one = payload.maps_of(both, "logit_diff", pair=0)[1]
    head = json.loads(json.dumps(one.head))
    assert head["v"] == payload.VERSION
    assert head["dims"] == ["layer", "head", "pos"]
    assert head["shape"] == [2, 4, 5]
    assert head["coords"] == {"layer": [0, 1], "head": [0, 1, 2, 3], "pos": [0, 1, 2, 3, 4]}
    assert head["gap"] == pytest.approx(head["clean"] - head["corrupted"])
    assert head["base"] == head["clean"]
    assert head["unit"] == "logit"
    assert head["key"] == {
        "component": "z", "over": ["layer", "head", "pos"], "direction": "noising",
            "corruption": "counterfactual", "metric": "logit_diff", "pair": 0,
    }  # fmt: skip


def test_a_message_has_its_numbers_in_two_buffers(both: Result) -> None:
    one = payload.maps_of(both)[0]
    message, (effect, state) = one.message(7)
    assert message["gen"] == 7
    np.testing.assert_array_equal(np.frombuffer(effect, np.float32).reshape(one.effect.shape), one.effect)
    np.testing.assert_array_equal(np.frombuffer(state, np.uint8).reshape(one.state.shape), one.state)


def test_a_document_has_them_as_text(both: Result) -> None:
    one = payload.maps_of(both)[0]
    document = json.loads(json.dumps(one.document()))
    values = np.frombuffer(base64.b64decode(document["effect64"]), np.float32)
    np.testing.assert_array_equal(values, one.effect.ravel())
    assert len(base64.b64decode(document["state64"])) == one.state.size


def test_grouped_heads_keep_their_labels(model: Model) -> None:
    (one,) = payload.maps_of(patch(model, PAIR, "v"))
    assert one.head["coords"]["head"] == ["kv0", "kv1"]


def test_the_description_is_json_and_complete(both: Result) -> None:
    spec = json.loads(
        json.dumps(payload.describe(both, metric="prob", can_run=True, works={"q": "accepted and ignored"}))
    )
    assert spec["metric"] == "prob"
    assert [one["name"] for one in spec["metrics"]] == ["logit_diff", "prob", "log_prob", "kl", "rank"]
    assert [one["name"] for one in spec["components"]] == list(SWEEPABLE)
    assert {one["name"]: one["reason"] for one in spec["components"] if not one["works"]} == {
        "q": "accepted and ignored"
    }
    first = spec["pairs"][0]
    assert first["clean_tokens"] == ["<bos>", " Mary", " and", " John", " gave"]
    assert first["differs"] == [1, 3]
    assert first["metrics"]["prob"]["clean"] == pytest.approx(float(both.baselines["clean"].sel(metric="prob")[0]))
    assert len(first["clean_top"]) == 5
    assert sum(prob for _, prob in first["clean_top"]) <= 1 + 1e-6
    assert spec["card"].startswith("Method:")


def test_without_a_kernel_only_what_was_measured_is_offered(both: Result) -> None:
    spec = payload.describe(both, can_run=False, works={})
    assert [one["name"] for one in spec["metrics"]] == ["logit_diff", "prob"]
    assert set(spec["exports"]) == {"png", "svg", "csv"}


def test_attention_travels_layer_by_layer(model: Model) -> None:
    patterns = attention(model, PAIR)
    head, values = payload.attention_message(patterns, 1)
    assert head["shape"] == [2, 4, 5, 5]
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(values, patterns.data["pattern"].isel(layer=1, pair=0), atol=0)
