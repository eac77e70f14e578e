"""The circuit view without a browser: what Python answers is what `eap` and `evaluate` say, and is asked for once."""

import json
import time
from typing import Any

import micro
import numpy as np
import pytest

import nbpatch as nbp
from nbpatch.errors import CircuitError
from nbpatch.graph import Graph, random_circuit
from nbpatch.live import circuits
from nbpatch.model import Model, load
from nbpatch.view.widgets import PatchWidget

PAIR = nbp.PromptPair(" Mary and John gave", " John and Mary gave", " Paul", " Mary")
OTHER = nbp.PromptPair(" Paul and John went", " John and Paul went", " Mary", " Paul")
LONGER = nbp.PromptPair(" Paul and John went to", " John and Paul went to", " Mary", " Paul")


@pytest.fixture(scope="module")
def model() -> Model:
    return load((micro.gpt2(), micro.tokenizer()))


class Page:
    """What a page would have received of its questions' answers."""

    def __init__(self, widget: PatchWidget, monkeypatch: pytest.MonkeyPatch) -> None:
        self.widget: Any = widget
        self.got: list[tuple[dict[str, Any], list[bytes]]] = []
        self.count = 0
        monkeypatch.setattr(widget, "send", lambda said, buffers=(): self.got.append((said, list(buffers))))

    def ask(self, kind: str, **content: Any) -> int:
        self.count += 1
        self.widget._receive({"v": 1, "type": "ask", "kind": kind, "key": kind, "id": self.count, **content})
        return self.count

    def answers(self, number: int) -> list[tuple[dict[str, Any], list[bytes]]]:
        return [one for one in list(self.got) if one[0]["type"] == "answer" and one[0]["id"] == number]

    def answer(self, kind: str, **content: Any) -> tuple[dict[str, Any], list[bytes]]:
        """Returns the last answer to a question, once there are no more to come."""
        number = self.ask(kind, **content)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for said, buffers in self.answers(number):
                if said.get("done") or "error" in said or kind == "circuit":
                    return json.loads(json.dumps(said, allow_nan=False)), buffers
            time.sleep(0.01)
        raise AssertionError(f"no whole answer to {kind}: {self.got}")


@pytest.fixture
def page(model: Model, monkeypatch: pytest.MonkeyPatch) -> Page:
    return Page(nbp.Workbench(model, [PAIR, OTHER, LONGER]), monkeypatch)


def found(said: dict[str, Any], buffers: list[bytes]) -> list[tuple[str, float]]:
    """Returns the edges of an answer as text, with their scores."""
    sender, receiver, pos = np.frombuffer(buffers[0], np.int32).reshape(3, -1).tolist()
    names = [
        f"{said['senders'][a]}->{said['inputs'][b]}" + ("" if c < 0 else f" @ {c}")
        for a, b, c in zip(sender, receiver, pos, strict=True)
    ]
    return list(zip(names, np.frombuffer(buffers[1], np.float32).tolist(), strict=True))


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
@pytest.mark.parametrize("positions", [True, False])
def test_edges_are_those_of_eap(page: Page, model: Model, method: str, positions: bool) -> None:
    said, buffers = page.answer("circuit", method=method, positions=positions)
    whole = nbp.eap(model, PAIR, method=method, by_position=positions)
    edges = found(said, buffers)
    assert [name for name, _ in edges] == [str(edge) for edge in whole.edges[: circuits.SENT]]
    np.testing.assert_allclose([score for _, score in edges], [e.score for e in whole.edges[: len(edges)]], rtol=1e-5)
    assert (said["total"], said["positions"]) == (len(whole), whole.positions)
    assert said["others"] == (1 if positions else 2)
    for size, least in zip(said["sizes"], said["thresholds"], strict=True):
        assert len(whole.threshold(least)) >= size
        assert least == pytest.approx(abs(whole.edges[size - 1].score))


def test_the_kept_circuit_is_run_as_evaluate_runs_it(page: Page, model: Model) -> None:
    assert page.widget.circuit is None
    said, _ = page.answer("faithful", method="eap", positions=True, n=30)
    whole = nbp.eap(model, PAIR, by_position=True)
    kept = whole.top_edges(30).prune()
    result = nbp.evaluate(model, kept, PAIR, random=circuits.RANDOM)
    shares = result.recovered().isel(edges=0)
    assert said["faithful"] == pytest.approx(float(shares.sel(circuit="found")), abs=1e-6)
    assert said["value"] == pytest.approx(float(result.data["logit_diff"].sel(circuit="found").item()), abs=1e-5)
    assert (said["clean"], said["empty"]) == pytest.approx(
        [float(result.baselines[run].sel(metric="logit_diff").item()) for run in ("clean", "corrupted")], abs=1e-5
    )
    assert said["random"]["mean"] == pytest.approx(float(shares[1:].mean()), abs=1e-6)
    assert (said["edges"], said["negative"]) == (len(kept), sum(edge.score < 0 for edge in kept.edges))
    assert said["threshold"] == pytest.approx(abs(whole.edges[29].score))
    assert page.widget.circuit.same_edges(kept)
    sizes, values = zip(*said["curve"], strict=True)
    assert sizes[-1] == len(whole)
    assert values[-1] == pytest.approx(1, abs=1e-4)
    curve = nbp.evaluate(model, whole, PAIR, sizes=sizes, random=0).recovered().sel(circuit="found")
    np.testing.assert_allclose(values, curve, atol=1e-5)


def test_the_first_answer_is_the_kept_circuit_and_the_curve_follows(page: Page) -> None:
    number = page.ask("faithful", method="eap", positions=False, n=12)
    until = time.monotonic() + 60
    while not any(said["done"] for said, _ in page.answers(number)):
        assert time.monotonic() < until
        time.sleep(0.01)
    said = [one for one, _ in page.answers(number)]
    assert (said[0]["random"], len(said[0]["curve"])) == (None, 1)
    assert said[1]["random"] is not None
    counts = [len(one["curve"]) for one in said]
    assert counts == sorted(counts)
    assert counts[-1] >= 10


def test_edges_are_scored_and_circuits_run_only_once(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    def counted(name: str) -> None:
        plain = getattr(circuits, name)

        def call(*arguments: Any, **options: Any) -> Any:
            runs.append(name)
            return plain(*arguments, **options)

        monkeypatch.setattr(circuits, name, call)

    counted("eap")
    counted("evaluate")
    page.answer("circuit", method="eap", positions=False)
    page.answer("faithful", method="eap", positions=False, n=12)
    assert runs.count("eap") == 1
    before = len(runs)
    page.answer("faithful", method="eap", positions=False, n=12)
    assert len(runs) == before
    page.answer("faithful", method="eap", positions=False, n=15)
    assert len(runs) == before + 2, "the new size and its random circuits; the curve is there already"


def test_a_newer_question_takes_the_place_of_an_older_one(page: Page) -> None:
    older = page.ask("faithful", method="eap", positions=True, n=10)
    said, _ = page.answer("faithful", method="eap", positions=True, n=11)
    assert said["n"] == 11
    assert not any(one["done"] for one, _ in page.answers(older))


def test_held_out_pairs_are_the_others_that_fit(page: Page, model: Model) -> None:
    said, _ = page.answer("faithful", method="eap", positions=False, n=15, on="others")
    kept = nbp.eap(model, PAIR).top_edges(15).prune()
    shown = float(nbp.evaluate(model, kept, [OTHER, LONGER], random=0).recovered()[0, 0])
    assert (said["on"], said["pairs"]) == ("others", 2)
    assert said["faithful"] == pytest.approx(shown, abs=1e-6)


def test_the_kept_circuit_is_of_the_pair_on_screen(page: Page) -> None:
    page.answer("circuit", method="eap", positions=True)
    assert page.widget.circuit is not None
    page.widget._receive({"v": 1, "type": "set", "pair": 1})
    assert page.widget._done.wait(20)
    assert page.widget.circuit is None


@pytest.mark.parametrize(
    ("content", "text"),
    [({"method": "eep"}, "no method 'eep'"), ({"method": "eap", "metric": "rank"}, "rank has no gradient")],
)
def test_what_eap_refuses_is_an_answer_with_what_to_do(page: Page, content: dict[str, Any], text: str) -> None:
    if "metric" in content:
        page.widget._receive({"v": 1, "type": "set", "metric": content["metric"]})
        assert page.widget._done.wait(20)
    said, _ = page.answer("circuit", **content)
    assert text in said["error"]["title"]
    assert any(line.startswith("try") for line in said["error"]["lines"])
    assert page.widget.error is None


# -- a circuit by itself


@pytest.fixture(scope="module")
def whole(model: Model) -> nbp.Circuit:
    return nbp.eap(model, PAIR, by_position=True)


def test_a_view_keeps_what_it_is_told_and_tells_what_is_kept(
    whole: nbp.Circuit, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = nbp.CircuitView(whole, model)
    assert view.n_edges == view.spec["kept"]["n"] > 0
    seen: list[int] = []
    view.observe(lambda change: seen.append(change["new"]), "n_edges")
    view.n_edges = 21
    assert view.kept.same_edges(whole.top_edges(21).prune())
    assert view.spec["kept"] == {"n": 21, "by": 2}
    page = Page(view, monkeypatch)
    said, _ = page.answer("faithful", n=25, on="same")
    assert (view.n_edges, seen) == (25, [21, 25])
    assert view.spec["kept"] == {"n": 25, "by": 2}, "the page's own change is none to follow"
    shown = nbp.evaluate(model, view.kept, PAIR, random=0).recovered()
    assert said["faithful"] == pytest.approx(float(shown[0, 0]), abs=1e-6)
    edges = found(*page.answer("circuit"))
    assert [name for name, _ in edges] == [str(edge) for edge in whole.edges[: len(edges)]]


def test_pairs_that_the_circuit_was_not_found_on_are_told_apart(
    whole: nbp.Circuit, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(nbp.CircuitView(whole, model, [PAIR, OTHER]), monkeypatch)
    said, _ = page.answer("circuit")
    assert (said["same"], said["others"], said["scored_on"]) == (1, 1, 1)
    assert page.answer("faithful", n=9)[0]["on"] == "same"
    assert page.answer("faithful", n=9, on="others")[0]["on"] == "others"


def test_without_a_model_nothing_is_run(whole: nbp.Circuit, monkeypatch: pytest.MonkeyPatch) -> None:
    view = nbp.CircuitView(whole.top_edges(40))
    assert view.spec["can_run"] is False
    page = Page(view, monkeypatch)
    said, _ = page.answer("faithful", n=400)
    assert "faithful" not in said
    assert view.n_edges == 40
    assert page.answer("circuit")[0]["runs"] is False


def test_a_circuit_without_scores_or_pairs_is_drawn(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = random_circuit(Graph(3, 4, 4, (False,) * 3), 20, seed=0)
    page = Page(nbp.CircuitView(drawn), monkeypatch)
    said, buffers = page.answer("circuit")
    assert {name for name, _ in found(said, buffers)} == {str(edge) for edge in drawn.edges}
    with pytest.raises(CircuitError, match="does not say on which pairs"):
        nbp.CircuitView(drawn, model)
    said, _ = Page(nbp.CircuitView(drawn, model, OTHER), monkeypatch).answer("faithful", n=20)
    shown = nbp.evaluate(model, drawn, OTHER, random=0).recovered()
    assert said["faithful"] == pytest.approx(float(shown[0, 0]), abs=1e-6)


def test_an_empty_circuit_is_a_circuit(whole: nbp.Circuit, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    view = nbp.CircuitView(whole.top_edges(0), model)
    page = Page(view, monkeypatch)
    assert page.answer("circuit")[0]["total"] == 0
    assert page.answer("faithful", n=3)[0]["faithful"] == pytest.approx(0, abs=1e-6)


def test_the_display_has_widget_picture_and_text(whole: nbp.Circuit) -> None:
    view = nbp.CircuitView(whole)
    data, _ = view._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert data["text/plain"] == repr(view.kept)


def test_what_is_no_edge_or_number_of_edges_is_refused(whole: nbp.Circuit) -> None:
    view = nbp.CircuitView(whole.top_edges(30))
    with pytest.raises(CircuitError, match="no such number of edges"):
        view.n_edges = 31
    with pytest.raises(CircuitError, match="an edge or a node is selected"):
        view.selection = {"layer": 1}
    with pytest.raises(CircuitError, match="no 'm9' in this graph"):
        view.selection = {"edge": "m9->logits"}
    view.selection = {"edge": str(view.kept.edges[0])}
    view.selection = None


def test_heads_that_share_keys_are_named_as_the_graph_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = load((micro.llama(), micro.tokenizer()))
    page = Page(nbp.Workbench(shared, PAIR), monkeypatch)
    edges = [name for name, _ in found(*page.answer("circuit", method="eap", positions=True))]
    assert edges == [str(edge) for edge in nbp.eap(shared, PAIR, by_position=True).edges[: circuits.SENT]]
    assert any(".kv1.v @" in name for name in edges)
