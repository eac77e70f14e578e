"""What is copied off the screen is run, as Python and as a cell, and every value is compared with the one on screen."""

import atexit
import base64
import io
import re
from typing import Any

import micro
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from IPython.core.interactiveshell import InteractiveShell
from test_export import data_of
from traitlets.config import Config

import nbpatch as nbp
from nbpatch.live.exports import exported
from nbpatch.model import Model, load
from nbpatch.result import Result
from nbpatch.view import payload
from nbpatch.workbench import Workbench

PAIR = nbp.PromptPair(" Mary and John gave", " John and Mary gave", " Paul", " Mary")
OTHER = nbp.PromptPair(" Paul and John went", " John and Paul went", " Mary", " Paul")
LONGER = nbp.PromptPair(
    " Mary and John gave", " Mary and the John gave", " Paul", " Mary", align={0: 0, 1: 1, 2: 2, 3: 4, 4: 5}
)
SEVERAL = nbp.PromptPair(" Mary and John gave", " John and Mary gave", [" Paul", " John"], [" Mary", " store"])
QUOTED = nbp.PromptPair(' Mary and "John" gave', " Mary and 'Paul' gave", " Paul", " Mary")
LINES = nbp.PromptPair(" Mary\n\tand John gave", " John\n\tand Mary gave", " Paul", " Mary")
FOREIGN = nbp.PromptPair(" Mary — naïve 東京 🙂 \\ gave", " John — naïve 京都 🙂 \\ gave", " Paul", " Mary")

PIECE = r" ?\w+|\s|[^\w\s]"

SCREENS: dict[str, dict[str, Any]] = {
    "denoising": {"pairs": [PAIR]},
    "noising": {"pairs": [PAIR], "direction": "noising"},
    "both": {"pairs": [PAIR], "component": "z", "direction": "both", "metric": ["logit_diff", "prob"], "shown": "prob"},
    "several metrics": {"pairs": [PAIR], "metric": ["logit_diff", "prob", "kl"], "shown": "kl"},
    "several pairs": {"pairs": [PAIR, OTHER, SEVERAL], "direction": "both"},
    "aligned": {"pairs": [LONGER], "direction": "both"},
    "heads at positions": {"pairs": [PAIR, OTHER], "component": "z", "over": "layer head pos"},
    "patterns": {"pairs": [PAIR], "component": "pattern", "over": "layer head dest src"},
    "quotes": {"pairs": [QUOTED], "direction": "noising"},
    "line breaks": {"pairs": [LINES]},
    "other scripts": {"pairs": [FOREIGN, PAIR], "direction": "both"},
}


@pytest.fixture(scope="module")
def model() -> Model:
    """A random GPT-2 that knows every piece of the prompts here."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    prompts = [QUOTED, LINES, FOREIGN]
    pieces = [piece for one in prompts for text in (one.clean, one.corrupted) for piece in re.findall(PIECE, text)]
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys(("<bos>", "<unk>", *micro.WORDS, *pieces)))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", unk_token="<unk>")
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=3,
        n_head=4,
        n_embd=32,
        n_positions=32,
        vocab_size=len(vocabulary),
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return load((GPT2LMHeadModel(config).eval(), tokenizer))


@pytest.fixture(params=SCREENS, scope="module")
def bench(request: pytest.FixtureRequest, model: Model) -> Workbench:
    screen = dict(SCREENS[request.param])
    shown = screen.pop("shown", None)
    bench = Workbench(model, **screen)
    bench.run()
    if shown:
        bench.metric = shown
        assert bench._done.wait(20)
    return bench


@pytest.fixture
def shell(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    config = Config()
    config.HistoryManager.enabled = False
    made = InteractiveShell(config=config)
    made.extension_manager.load_extension("nbpatch")
    yield made
    atexit.unregister(made.atexit_operations)
    made.restore_sys_module_state()
    made.atexit_operations()


def copied(bench: Workbench, kind: str) -> str:
    return exported(kind, bench._ask, bench.result, [], None)[0]["text"]


def assert_same_screen(made: Result, bench: Workbench) -> None:
    """Every value of every metric, and the maps that a page of `made` would show first."""
    there = bench.result
    assert made.provenance["direction"] == there.provenance["direction"] == bench.direction
    assert made.metrics[0] == bench.metric
    assert set(made.metrics) == set(there.metrics)
    assert [one["clean"] for one in made.provenance["pairs"]] == [one.clean for one in bench.pairs]
    for name in there.metrics:
        assert made.data[name].dims == there.data[name].dims
        np.testing.assert_allclose(made.data[name], there.data[name], atol=1e-6)
        xr.testing.assert_allclose(made.baselines.sel(metric=name), there.baselines.sel(metric=name), atol=1e-6)
    np.testing.assert_array_equal(made.data["state"], there.data["state"])
    for pair in range(len(bench.pairs)):
        shown = payload.maps_of(there, bench.metric, pair=pair)
        again = payload.maps_of(made, pair=pair)
        assert [one.head["key"] for one in again] == [one.head["key"] for one in shown]
        for one, other in zip(again, shown, strict=True):
            np.testing.assert_allclose(one.effect, other.effect, atol=1e-5)
            assert np.isfinite(one.effect).any()


def test_copied_python_makes_the_screen_again(bench: Workbench, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(nbp, "load", lambda name: asked.append(name) or model)
    names: dict[str, Any] = {}
    exec(copied(bench, "python"), names)
    assert asked == [bench.result.provenance["model"]["name"]]
    assert_same_screen(names["result"], bench)


def test_a_copied_cell_makes_the_screen_again(
    bench: Workbench, model: Model, shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbpatch.model.load", lambda name: model)
    head, _, body = copied(bench, "magic").partition("\n")
    shell.run_cell_magic("patch", head.removeprefix("%%patch ") + " -o made", body)
    assert_same_screen(shell.user_ns["made"], bench)


def test_a_copied_cell_is_a_cell(shell: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbpatch.model.load", lambda name: model)
    bench = Workbench(model, [PAIR, OTHER], direction="both")
    bench.run()
    text = copied(bench, "magic").replace("--metric", "-o made --metric", 1)
    shell.run_cell(text).raise_error()
    assert_same_screen(shell.user_ns["made"], bench)


def test_a_metric_of_the_notebook_goes_by_its_name(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_logit(logits: Any) -> Any:
        return logits[:, 0]

    bench = Workbench(model, [PAIR], metric=[first_logit, "prob"])
    bench.run()
    monkeypatch.setattr(nbp, "load", lambda name: model)
    names: dict[str, Any] = {"first_logit": first_logit}
    exec(copied(bench, "python"), names)
    assert_same_screen(names["result"], bench)


def test_the_whole_result_as_netcdf_reads_back(bench: Workbench, tmp_path: Any) -> None:
    head, (data,) = exported("nc", bench._ask, bench.result, [], None)
    assert (head["filename"], head["mime"]) == ("nbpatch.nc", "application/x-netcdf")
    path = tmp_path / head["filename"]
    path.write_bytes(data)
    again = nbp.read(path)
    assert again.provenance["direction"] == bench.direction
    for name in bench.result.data.data_vars:
        np.testing.assert_array_equal(again.data[name], bench.result.data[name])


def test_the_csv_has_the_numbers_on_screen(bench: Workbench) -> None:
    frame = pd.read_csv(io.StringIO(copied(bench, "csv")))
    wanted = bench.result.to_frame(bench.metric)
    assert len(frame) == bench.result.data[bench.metric].isel(pair=0).size
    np.testing.assert_allclose(frame["effect"], wanted["effect"], atol=1e-6)


def test_the_page_shows_what_is_on_screen_first(model: Model) -> None:
    bench = Workbench(model, [PAIR, OTHER], "z", direction="denoising", metric=["logit_diff", "prob"])
    bench.run()
    bench._receive({"v": 1, "type": "set", "pair": 1, "metric": "prob"})
    assert bench._done.wait(20)
    patterns = bench._patterns(bench._ask)
    data = data_of(exported("html", bench._ask, bench.result, [], patterns)[0]["text"])
    assert (data["spec"]["pair"], data["spec"]["metric"]) == (1, "prob")
    assert {one["key"]["pair"] for one in data["maps"]} == {1}
    assert {one["pair"] for one in data["attention"]} == {1}
    (shown,) = [one for one in data["maps"] if one["key"]["metric"] == "prob"]
    effect = np.frombuffer(base64.b64decode(shown["effect64"]), np.float32)
    wanted = payload.maps_of(bench.result, "prob", pair=1)[0].effect.ravel()
    np.testing.assert_array_equal(effect, wanted)
