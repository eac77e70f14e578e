"""The paths tab without a browser: its maps are path_patch's numbers, sent bit by bit, kept, refused in words."""

import time
from typing import Any

import micro
import numpy as np
import pytest

import nbpatch as nbp
import nbpatch.live.paths as home
from nbpatch.live.paths import names_of
from nbpatch.model import Model, load
from nbpatch.plan import NO_PATH, NOT_RUN
from nbpatch.workbench import Workbench

PAIR = nbp.PromptPair(" Mary and John gave", " John and Mary gave", " Paul", " Mary")
OTHER = nbp.PromptPair(" Paul and John went", " John and Paul went", " Mary", " Paul")
UNEQUAL = nbp.PromptPair(" Mary and John gave", " John gave", " Paul", " Mary", align={0: 0, 3: 1, 4: 2})


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Model:
    return load(({"gpt2": micro.gpt2, "llama": micro.llama}[request.param](), micro.tokenizer()))


@pytest.fixture(scope="module")
def plain() -> Model:
    return load((micro.gpt2(), micro.tokenizer()))


class Tab:
    """The page's side of the tab: asks, and keeps every answer with its buffers."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch, pairs: Any = (PAIR,), metric: Any = "logit_diff"):
        self.bench = Workbench(model, list(pairs), "z", metric=metric)
        self.got: list[tuple[dict[str, Any], list[bytes]]] = []
        monkeypatch.setattr(self.bench, "send", lambda message, buffers=(): self.got.append((message, list(buffers))))
        self.count = 0

    def ask(self, **content: Any) -> list[tuple[dict[str, Any], list[bytes]]]:
        """Returns all replies to one question."""
        self.count += 1
        self.bench._receive({"v": 1, "type": "ask", "kind": "paths", "key": "paths", "id": self.count, **content})
        until = time.monotonic() + 60
        while time.monotonic() < until:
            mine = [one for one in self.got if one[0].get("id") == self.count]
            if mine and ("error" in mine[-1][0] or mine[-1][0]["map"]["final"]):
                return mine
            time.sleep(0.01)
        raise AssertionError("no final answer")

    def cells(self, **content: Any) -> tuple[dict[str, float], dict[str, int], dict[str, Any]]:
        """Returns effects and states by name, and what the last reply said."""
        said, (effect, state) = self.ask(**content)[-1]
        (axis,) = said["map"]["dims"]
        names = said["map"]["coords"][axis]
        effects = np.frombuffer(effect, np.float32)
        assert said["map"]["shape"] == [len(names)] == [len(effects)]
        states = np.frombuffer(state, np.uint8)
        return (
            dict(zip(names, effects.tolist(), strict=True)),
            dict(zip(names, states.tolist(), strict=True)),
            said,
        )


@pytest.fixture
def tab(model: Model, monkeypatch: pytest.MonkeyPatch) -> Tab:
    return Tab(model, monkeypatch)


@pytest.fixture
def one(plain: Model, monkeypatch: pytest.MonkeyPatch) -> Tab:
    return Tab(plain, monkeypatch)


def check(found: dict[str, float], kind: str, model: Model, ends: tuple[str, str], **ways: Any) -> None:
    """Compares a kind's cells with one call of `path_patch`, by name."""
    expected = nbp.path_patch(model, PAIR, *ends, **ways).effect(per_pair=True).isel(pair=0).to_numpy().ravel()
    names = names_of(kind, model.shape)
    np.testing.assert_allclose([found[name] for name in names], expected, atol=1e-5, equal_nan=True)


INTO = [
    ("q[1.3]", "direct", "denoising"),
    ("v[1.1]", "wang", "noising"),
    ("mlp[1]", "tree", "denoising"),
    ("logits", "direct", "noising"),
    ("v[0.1] -> q[1.2]", "tree", "noising"),
]


@pytest.mark.parametrize(("receiver", "variant", "direction"), INTO)
def test_into_a_receiver_every_sender_has_the_number_of_path_patch(tab, model, receiver, variant, direction) -> None:
    found, _, said = tab.cells(receiver=receiver, variant=variant, direction=direction)
    assert said["axis"] == "sender"
    for kind in ("z", "mlp_out", "embed"):
        check(found, kind, model, (kind, receiver), variant=variant, direction=direction)


@pytest.mark.parametrize(("sender", "variant"), [("z[0.1]", "direct"), ("mlp_out[0]", "wang"), ("embed", "tree")])
def test_from_a_sender_every_receiver_has_the_number_of_path_patch(tab, model, sender, variant) -> None:
    found, states, said = tab.cells(sender=sender, variant=variant)
    assert said["axis"] == "receiver"
    for kind in ("q", "k", "v", "mlp", "logits"):
        check(found, kind, model, (sender, kind), variant=variant)
    if sender == "z[0.1]":
        assert {name for name, state in states.items() if state == NO_PATH} >= {"q[0.0]", "k[0.0]", "v[0.1]"}
        assert np.isnan(found["q[0.0]"])


def test_the_map_is_in_the_metrics_unit_with_both_baselines(one, plain) -> None:
    _, _, said = one.cells(receiver="logits", metric="prob", direction="noising")
    direct = nbp.path_patch(plain, PAIR, "z", "logits", metric="prob", direction="noising")
    shown = said["map"]
    assert shown["key"]["metric"] == "prob"
    assert shown["base"] == pytest.approx(float(direct.baselines["clean"].item()))
    assert shown["gap"] == pytest.approx(float(direct.gap().item()))
    assert said["code"] == "nbp.path_patch(model, pair, 'z', 'logits', direction='noising', metric='prob')"
    assert "path patching" in said["words"]


def test_heads_come_first_and_the_rest_is_not_run_yet(one) -> None:
    replies = one.ask(sender=None, receiver="mlp[1]")
    assert [said["to_come"] for said, _ in replies] == [["MLPs", "embeddings"], ["embeddings"], []]
    assert [said["map"]["final"] for said, _ in replies] == [False, False, True]
    left = [np.frombuffer(buffers[1], np.uint8) == NOT_RUN for _, buffers in replies]
    assert [int(part.sum()) for part in left] == [one.bench.model.shape.n_layers + 1, 1, 0]
    assert np.isnan(np.frombuffer(replies[0][1][0], np.float32)[left[0]]).all()


def test_what_was_run_once_comes_back_at_once(one, monkeypatch) -> None:
    first = one.ask(receiver="q[1.0]")
    one.ask(sender="z[0.0]")
    monkeypatch.setattr(home, "path_patch", lambda *_, **__: pytest.fail("run again"))
    again = one.ask(receiver="q[1.0]", pair=0)
    assert len(again) == 1
    assert again[0][1] == first[-1][1]
    assert one.bench.path.provenance["receivers"] == "q[1.0]"


def test_python_has_what_the_tab_has_shown_last(one, tmp_path) -> None:
    assert one.bench.path is None
    found, _, _ = one.cells(receiver="v[1.1]")
    result = one.bench.path
    frame = result.to_frame()
    assert frame["sender"].tolist() == list(found)
    np.testing.assert_allclose(frame["effect"], list(found.values()), atol=1e-6, equal_nan=True)
    assert "v[1.1]" in result.card()
    assert result.provenance["engine"]["cells"] == len(found)
    read = nbp.read(result.save(tmp_path / "path.nc"))
    np.testing.assert_allclose(read.effect(), result.effect(), equal_nan=True)
    one.ask(sender="mlp_out[0]")
    assert one.bench.path.over == ("receiver",)


def test_with_both_ends_the_map_is_over_all_senders(one) -> None:
    both, into = one.cells(sender="z[0.1]", receiver="q[1.0]")[0], one.cells(receiver="q[1.0]")[0]
    np.testing.assert_array_equal(list(both.values()), list(into.values()))


def test_without_an_end_the_logits_receive(one) -> None:
    assert one.cells()[2]["end"] == "logits"


def test_the_pair_on_screen_is_patched(plain, monkeypatch) -> None:
    tab = Tab(plain, monkeypatch, [OTHER, PAIR])
    found, _, _ = tab.cells(receiver="logits", pair=1)
    check(found, "z", plain, ("z", "logits"))


def test_a_metric_that_is_a_function_is_found_by_its_name(plain, monkeypatch) -> None:
    def spread(logits: Any) -> Any:
        return logits.std(-1)

    tab = Tab(plain, monkeypatch, metric=[spread])
    found, _, _ = tab.cells(receiver="logits", metric="spread")
    check(found, "z", plain, ("z", "logits"), metric=spread)


REFUSED = [
    ({"receiver": "q[9.0]"}, "no layer 9"),
    ({"receiver": "z[1.0]"}, "z cannot be among the receivers"),
    ({"sender": "q[1.0]"}, "q cannot be among the senders"),
    ({"receiver": "logits", "variant": "wong"}, "no variant 'wong'"),
    ({"receiver": "logits", "direction": "both"}, "a map of paths has one direction"),
    ({"receiver": "logits", "metric": "logit_dif"}, "logit_dif"),
]


@pytest.mark.parametrize(("content", "words"), REFUSED, ids=str)
def test_what_makes_no_sense_is_refused_with_a_way_out(plain, monkeypatch, content, words) -> None:
    tab = Tab(plain, monkeypatch)
    error = tab.ask(**content)[-1][0]["error"]
    assert words in error["title"]
    assert any(line.startswith("try: ") for line in error["lines"])
    assert tab.bench.path is None


def test_prompts_of_unequal_length_are_refused_with_a_way_out(plain, monkeypatch) -> None:
    error = Tab(plain, monkeypatch, [UNEQUAL]).ask(receiver="logits")[-1][0]["error"]
    assert "equal length" in error["title"]
    assert "try: two prompts with the same number of tokens" in error["lines"]


def test_a_model_without_exact_paths_says_so_and_what_to_do(monkeypatch) -> None:
    model = load((micro.gpt2(), micro.tokenizer()))
    model.engine = "replay"
    error = Tab(model, monkeypatch).ask(receiver="q[1.0]")[-1][0]["error"]
    assert "they need the fast engine" in error["title"]
    assert 'try: model.engine = "auto"' in error["lines"]


def test_a_kind_that_is_refused_leaves_the_others(plain, monkeypatch) -> None:
    true = home.path_patch

    def partly(model: Any, pairs: Any, senders: str, *rest: Any, **ways: Any) -> Any:
        if senders == "mlp_out":
            raise nbp.NbpatchError("what mlp_out adds is not known exactly in this model.")
        return true(model, pairs, senders, *rest, **ways)

    monkeypatch.setattr(home, "path_patch", partly)
    found, states, said = Tab(plain, monkeypatch).cells(receiver="logits")
    assert said["left_out"] == [{"what": "MLPs", "why": "what mlp_out adds is not known exactly in this model."}]
    assert states["mlp_out[0]"] == NOT_RUN
    check(found, "z", plain, ("z", "logits"))
