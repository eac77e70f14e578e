"""Exported pages: one file, no network, whatever the tokens hold; and attention through CircuitsVis's own script."""

import base64
import hashlib
import html
import json
import re
from dataclasses import replace

import micro
import pytest

import nbpatch as nbp
from nbpatch.errors import ResultError
from nbpatch.model import Model, load
from nbpatch.result import Result
from nbpatch.view import attention, export

PAIR = nbp.PromptPair(" Mary and John gave", " John and Mary gave", " Paul", " Mary")


@pytest.fixture(scope="module")
def model() -> Model:
    return load((micro.gpt2(), micro.tokenizer()))


@pytest.fixture(scope="module")
def result(model: Model) -> Result:
    return nbp.patch(model, PAIR, "z", direction="both")


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="nbp-data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_the_page_holds_both_directions_and_every_layers_attention(result: Result, model: Model) -> None:
    data = data_of(export.page([result], nbp.attention(model, PAIR)))
    assert [one["direction"] for one in data["maps"]] == ["denoising", "noising"]
    assert [one["layer"] for one in data["attention"]] == [0, 1, 2]
    assert data["spec"]["can_run"] is False


def test_several_sweeps_stand_behind_the_toggles(result: Result, model: Model) -> None:
    data = data_of(export.page([result, nbp.patch(model, PAIR, "resid_pre", metric=["logit_diff", "prob"])]))
    assert [(one["key"]["component"], one["key"]["metric"]) for one in data["maps"]] == [
        ("z", "logit_diff"), ("z", "logit_diff"), ("resid_pre", "logit_diff"), ("resid_pre", "prob"),
    ]  # fmt: skip


def test_the_page_asks_for_nothing_and_runs_only_its_own_script(result: Result) -> None:
    page = export.page([result])
    assert not re.findall(r'(?:src|href)="?https?:', page)
    (policy,) = re.findall(r'content="(default-src[^"]*)"', page)
    assert policy.startswith("default-src 'none'")
    (script,) = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_page_is_small(result: Result, model: Model) -> None:
    assert len(export.page([result], nbp.attention(model, PAIR)).encode()) < 500_000


@pytest.mark.parametrize(
    "token", ["</script><script>alert(1)</script>", "<!--", "<img src=x onerror=alert(1)>", "&lt;"]
)
def test_no_token_ends_the_script_or_becomes_markup(result: Result, token: str) -> None:
    pair = {
        **result.provenance["pairs"][0],
        "clean_tokens": [token, *result.provenance["pairs"][0]["clean_tokens"][1:]],
    }
    hostile = replace(result, provenance={**result.provenance, "pairs": [pair]})
    page = export.page([hostile])
    assert token not in page.replace(html.escape(token), "")
    assert data_of(page)["spec"]["pairs"][0]["clean_tokens"][0] == token
    assert page.count("<script") == 2


def test_to_html_writes_the_page_with_attention_while_the_model_is_there(result: Result, tmp_path) -> None:
    path = result.to_html(tmp_path / "map.html")
    assert len(data_of(path.read_text())["attention"]) == 3
    with pytest.raises(ResultError, match="no such folder"):
        result.to_html(tmp_path / "nowhere" / "map.html")


def test_a_saved_result_writes_the_page_without(result: Result, tmp_path) -> None:
    path = nbp.read(result.save(tmp_path / "z.nc")).to_html(tmp_path / "map.html")
    assert data_of(path.read_text())["attention"] == []


def test_circuitsvis_runs_from_its_packaged_script(model: Model) -> None:
    frame = attention.frame(nbp.attention(model, PAIR), layer=1, run="corrupted")
    inside = html.unescape(re.findall(r'srcdoc="(.*?)"', frame, re.DOTALL)[0])
    assert "CircuitsVis.render(" in inside
    assert not re.findall(r'(?:src|href)="?https?:|import\(|from "https?:', inside.split("CircuitsVis.render(")[-1])
    props = json.loads(re.findall(r"AttentionHeads, (\{.*\})\)</script>", inside)[0])
    assert props["tokens"] == ["<bos>", " John", " and", " Mary", " gave"]
    expected = nbp.attention(model, PAIR).data["pattern"].sel(run="corrupted").isel(layer=1, pair=0, head=2, dest=3)
    assert props["attention"][2][3] == pytest.approx(expected.to_numpy().tolist(), abs=1e-4)


def test_showing_attention_gives_the_frame_and_refuses_what_is_not_there(model: Model, result: Result) -> None:
    patterns = nbp.attention(model, PAIR)
    assert "<iframe" in patterns.show(layer=0).data
    with pytest.raises(ResultError, match="no such attention pattern"):
        patterns.show(layer=3)
    with pytest.raises(ResultError, match="no attention patterns"):
        attention.frame(result)
