"""Circuits and estimates in use: what is picked by name, drawn beside exact values, warned of, and said of them."""

from functools import cache

import numpy as np
import pytest

import nbpatch as nbp
from nbpatch.errors import CircuitError
from nbpatch.graph import Circuit
from nbpatch.model import Model

IOI = nbp.PromptPair(
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    " Mary", " John",
)  # fmt: skip
OTHER = nbp.PromptPair("The capital of Greece is", "The capital of Spain is", " Athens", " Madrid")


@cache
def model() -> Model:
    return nbp.load("tiny")


@cache
def edges() -> Circuit:
    return nbp.eap(model(), IOI, method="eap-ig", steps=3)


def texts(figure) -> str:
    return " ".join(one.get_text() for axes in figure.axes for one in axes.texts) + " ".join(
        one.get_text() for one in figure.texts
    )


def test_edges_are_picked_by_name():
    few = edges().only(["embed->m0", "m0->a2.3.v"])
    assert sorted(map(str, few.edges)) == ["embed->m0", "m0->a2.3.v"]
    assert few <= edges()
    assert float(next(edge.score for edge in few.edges if str(edge) == "embed->m0")) == edges().scores[0, 12]


def test_an_edge_that_is_none_is_refused():
    with pytest.raises(CircuitError, match=r"no 'a2\.9\.v' in this graph\."):
        edges().only(["m0->a2.9.v"])
    with pytest.raises(CircuitError, match="reads before the sender writes"):
        edges().only(["m3->a2.3.v"])


def test_edges_at_one_position_are_picked_by_name():
    placed = nbp.eap(model(), OTHER, by_position=True)
    assert [str(edge) for edge in placed.only(["m0->a2.3.v @ 3"]).edges] == ["m0->a2.3.v @ 3"]
    assert len(placed.only(["m0->a2.3.v"])) == placed.positions


def test_the_method_and_the_model_stand_in_the_first_line():
    assert repr(edges()).startswith("479 of 479 edges, 22 nodes, EAP-IG on tiny")
    assert edges().provenance["baselines"]["clean"] > 0 > edges().provenance["baselines"]["corrupted"]


def test_evaluation_on_the_pairs_of_discovery_is_warned_of():
    same = nbp.evaluate(model(), edges().top_edges(20), [IOI, OTHER], random=0)
    assert [one for one in same.warnings if "share 1 of 2 pairs" in one]
    held_out = nbp.evaluate(model(), edges().top_edges(20), OTHER, random=0)
    assert not [one for one in held_out.warnings if "Discovery" in one]
    assert not [one for one in held_out.warnings if "One direction" in one]


def test_an_estimate_of_whole_residual_streams_is_warned_of_with_the_exact_cost():
    warned = nbp.attribute(model(), IOI, "resid_pre").warnings[0]
    assert warned.startswith("Attribution of whole resid_pre is a poor estimate")
    assert 'nbp.patch(model, pairs, "resid_pre")' in warned
    runs = nbp.dry_run(model(), IOI, "resid_pre").n_runs
    assert f"{runs} runs (about " in warned
    assert "poor estimate" not in " ".join(nbp.attribute(model(), IOI, "z").warnings)


def test_figures_and_cards_say_that_numbers_are_estimates():
    result = nbp.attribute(model(), IOI, "z", verify=3)
    shown = texts(result.plot())
    assert "by estimate sufficient to restore" in shown
    assert "estimated (atp), 3 cells run exactly" in shown
    assert "exact runs" not in shown
    assert "16 cells estimated from 1 forward and 1 backward." in result.card()
    assert "estimated (atp)" in repr(result)
    assert "exact runs" in texts(nbp.patch(model(), IOI, "z").plot())


def test_estimates_are_drawn_against_exact_values():
    result = nbp.attribute(model(), IOI, "z", verify=3)
    exact = nbp.patch(model(), IOI, "z")
    figure = result.plot(kind="against", exact=exact)
    points = np.concatenate([np.asarray(one.get_offsets()) for one in figure.axes[0].collections])
    wanted = np.stack([result.effect().to_numpy().ravel(), exact.effect().to_numpy().ravel()], 1)
    np.testing.assert_allclose(sorted(points.tolist()), sorted(wanted.tolist()), atol=1e-9)
    assert f"{result.against(exact).attrs['r2']:.2f}" in texts(figure)
    with_own = result.plot(kind="against", dark=True)
    assert sum(len(one.get_offsets()) for one in with_own.axes[0].collections) == 3


def test_the_model_may_be_asked_with_gradients_switched_off():
    import torch

    with torch.no_grad():
        quiet = nbp.eap(model(), IOI)
    with torch.inference_mode():
        quieter = nbp.eap(model(), IOI)
    np.testing.assert_array_equal(quiet.scores, nbp.eap(model(), IOI).scores)
    np.testing.assert_array_equal(quieter.scores, quiet.scores)


def test_a_function_of_the_user_sees_all_pairs_of_a_circuit_at_once():
    model_, pairs = model(), [IOI, OTHER]
    ones = model_.tokenize(pairs)
    assert len({len(one.clean_ids) for one in ones}) == 2
    few = edges().top_edges(20)

    def above_the_mean(logits):
        own = logits[range(2), [one.answer_ids[0] for one in ones]]
        return own - own.mean()

    def answer(logits):
        return logits[range(2), [one.answer_ids[0] for one in ones]]

    found = nbp.evaluate(model_, few, pairs, metric=[above_the_mean, answer], random=0).data
    plain = found["answer"].to_numpy()
    np.testing.assert_allclose(found["above_the_mean"], plain - plain.mean(-1, keepdims=True), atol=1e-5)
    assert np.ptp(plain) > 0.1
