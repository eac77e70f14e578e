"""Circuits run on their own, against a run with a residual stream for every input, TransformerLens, and laws."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import families
import numpy as np
import pytest
import torch
from oracle_circuits import (
    EMBED,
    LOGITS,
    Net,
    Part,
    ablated_by_mean,
    ablated_by_run,
    ablated_by_zero,
    all_edges,
    all_inputs,
    all_senders,
    circuit_logits,
    part,
    path_logits,
    plain_logits,
    play,
    stages,
    writers,
)

import nbpatch as nbp
from nbpatch.graph import Circuit, Graph
from nbpatch.model import Model
from nbpatch.tokens import encode

TOLERANCE = 1e-4
MODELS = ("tiny", "llama")

IOI = nbp.PromptPair(
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    " Mary", " John",
)  # fmt: skip
FACT = nbp.PromptPair("The capital of Greece is", "The capital of Spain was", " Athens", " Madrid")
LAST = nbp.PromptPair(" Mary and John gave a ball", " Mary and Paul gave a drink", " to", " a")
PAIRS = {"tiny": IOI, "llama": families.PAIRS[1]}
LATE = {"tiny": FACT, "llama": LAST}
# Prompts of other lengths too, one of them at least as long as each pair.
DATASETS = {
    "tiny": (
        "When Mary and John went to the store, Paul gave a drink to", "The capital of Peru is",
        "The Red Square is located in",
    ),
    "llama": (
        "When Paul and Mary went to the ball, John gave the", " Mary and John gave a drink", " John went to the store",
    ),
}  # fmt: skip
CORRUPTIONS = ("other prompt", "zero", "mean", "mean over positions", "mean of the pairs")


@cache
def model_of(name: str) -> Model:
    return nbp.load("tiny") if name == "tiny" else families.loaded(name)


@cache
def net_of(name: str) -> Net:
    return Net(model_of(name)._hf)


def corruption_of(name: str, kind: str) -> Any:
    return {
        "other prompt": lambda: None,
        "zero": nbp.Zero,
        "mean": lambda: nbp.Mean(DATASETS[name]),
        "mean over positions": lambda: nbp.Mean(list(DATASETS[name]), per_position=False),
        "mean of the pairs": nbp.Mean,
    }[kind]()


def ablated_by(name: str, kind: str, ones: Sequence[Any], number: int) -> dict[Part, torch.Tensor]:
    """Returns what each sender writes when it is ablated, for one pair of several."""
    model, net, one = model_of(name), net_of(name), ones[number]
    if kind == "other prompt":
        return ablated_by_run(net, one.corrupted_ids)
    if kind == "zero":
        return ablated_by_zero(net, len(one.clean_ids))
    prompts = [encode(model.tokenizer, text, bos=model.prepends_bos) for text in DATASETS[name]]
    if kind == "mean of the pairs":
        prompts = [other.clean_ids for other in ones]
    return ablated_by_mean(net, prompts, len(one.clean_ids), per_position=kind != "mean over positions")


def answered(logits: torch.Tensor, one: Any) -> float:
    return float(logits[one.answer_ids[0]] - logits[one.wrong_ids[0]])


def graph_of(name: str) -> Graph:
    net = net_of(name)
    return Graph(net.n_layers, net.n_heads, net.n_kv, (False,) * net.n_layers)


def circuit_of(name: str, kept: np.ndarray, scores: np.ndarray | None = None) -> Circuit:
    scores = np.random.default_rng(0).normal(size=kept.shape) if scores is None else scores
    return Circuit(graph_of(name), scores, kept)


def drawn(name: str, share: float, seed: int, positions: int = 0) -> np.ndarray:
    """Returns a share of all edges [sender input] or [sender input pos]."""
    edges = all_edges(net_of(name))
    edges = np.repeat(edges[:, :, None], positions, 2) if positions else edges
    return edges & (np.random.default_rng(seed).random(edges.shape) < share)


def only(name: str, *edges: tuple[str, str]) -> np.ndarray:
    """Returns the circuit of a few edges, named by their ends."""
    net = net_of(name)
    kept = np.zeros_like(all_edges(net))
    for sender, receiver in edges:
        kept[all_senders(net).index(part(sender)), all_inputs(net).index(part(receiver))] = True
    return kept


def found(result: nbp.Result) -> np.ndarray:
    """Returns the circuit's own values [edges pair]."""
    return result.data["logit_diff"].sel(circuit="found").transpose("edges", "pair").to_numpy()


def evaluated(name: str, pairs: Any, kept: np.ndarray, kind: str = "other prompt", **options: Any) -> nbp.Result:
    options = {"random": 0, **options}
    return nbp.evaluate(model_of(name), circuit_of(name, kept), pairs, corruption=corruption_of(name, kind), **options)


# Against the twin.


def test_a_graph_orders_its_ends_as_the_twin_does():
    for name in MODELS:
        graph, net = graph_of(name), net_of(name)
        np.testing.assert_array_equal(graph.possible, all_edges(net))
        kinds = {"embed": "embed", "z": "head", "mlp_out": "mlp"}
        assert [(one.kind, one.layer) for one in graph.senders] == [
            (kinds[one.kind], one.layer) for one in all_senders(net)
        ]
        assert [(node.layer, node.head if name_ else -1, name_ or node.kind) for node, name_ in graph.inputs] == [
            (one.layer, one.head, one.kind) for one in all_inputs(net)
        ]


@pytest.mark.parametrize("positions", [False, True], ids=["all positions", "by position"])
@pytest.mark.parametrize("share", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_a_circuit_equals_a_run_written_out(name, kind, share, positions):
    pairs = [PAIRS[name]] if positions else [PAIRS[name], LATE[name]]
    if kind == "mean of the pairs" and not positions:
        pairs = pairs[::-1]
    net, ones = net_of(name), model_of(name).tokenize(pairs)
    if positions:
        pairs, ones = pairs[0], ones[:1]
    kept = drawn(name, share, int(100 * share), len(ones[0].clean_ids) if positions else 0)
    result = evaluated(name, pairs, kept, kind)
    assert found(result).shape == (1, len(ones))
    empty = np.zeros_like(kept)
    for number, one in enumerate(ones):
        ablated = ablated_by(name, kind, ones, number)
        expected, nothing = (answered(circuit_logits(net, one.clean_ids, e, ablated), one) for e in (kept, empty))
        assert found(result)[0, number] == pytest.approx(expected, abs=TOLERANCE)
        assert float(result.baselines["corrupted"][0, number]) == pytest.approx(nothing, abs=TOLERANCE)
        clean = answered(plain_logits(net, one.clean_ids), one)
        assert float(result.baselines["clean"][0, number]) == pytest.approx(clean, abs=TOLERANCE)
        if share == 0.9 and kind != "mean of the pairs":
            assert abs(expected - nothing) > 1e-3, "the circuit shows no effect to compare"


@pytest.mark.parametrize("positions", [False, True], ids=["all positions", "by position"])
@pytest.mark.parametrize("name", MODELS)
def test_smaller_circuits_keep_the_edges_with_the_strongest_scores(name, positions):
    (one,) = model_of(name).tokenize(PAIRS[name])
    kept = drawn(name, 0.7, 3, len(one.clean_ids) if positions else 0)
    scores = np.random.default_rng(5).normal(size=kept.shape)
    # Edges that are not kept have the strongest scores of all, and stay out.
    scores[~kept] *= 100
    sizes = [1, 17, 60, int(kept.sum())]
    result = nbp.evaluate(model_of(name), circuit_of(name, kept, scores), PAIRS[name], sizes=sizes, random=0)
    assert result.data["edges"].to_numpy().tolist() == sizes
    strength = np.where(kept, abs(scores), -1).ravel()
    order = np.argsort(-strength)
    ablated = ablated_by_run(net_of(name), one.corrupted_ids)
    for number, size in enumerate(sizes):
        chosen = np.zeros(kept.size, bool)
        chosen[order[:size]] = True
        logits = circuit_logits(net_of(name), one.clean_ids, chosen.reshape(kept.shape), ablated)
        assert found(result)[number, 0] == pytest.approx(answered(logits, one), abs=TOLERANCE)


# Laws.


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_law_all_edges_are_the_clean_run_and_none_the_corrupted_one(name, kind):
    pairs = [PAIRS[name], LATE[name]]
    metrics = ["logit_diff", "log_prob", "kl"]
    every = all_edges(net_of(name))
    result = evaluated(name, pairs, every, kind, sizes=[0, int(every.sum())], random=2, metric=metrics)
    for metric in metrics:
        clean, corrupted = (result.baselines[run].sel(metric=metric).to_numpy() for run in ("clean", "corrupted"))
        table = result.data[metric].transpose("edges", "circuit", "pair").to_numpy()
        np.testing.assert_allclose(table[0], np.broadcast_to(corrupted, table[0].shape), atol=TOLERANCE)
        np.testing.assert_allclose(table[1], np.broadcast_to(clean, table[1].shape), atol=TOLERANCE)
    ones = model_of(name).tokenize(pairs)
    ids = [one.clean_ids for one in ones] if kind == "other prompt" else []
    for number, _ in enumerate(ids):
        for run in ("clean", "corrupted"):
            logits = plain_logits(net_of(name), getattr(ones[number], f"{run}_ids"))
            baseline = float(result.baselines[run].sel(metric="logit_diff")[number])
            assert baseline == pytest.approx(answered(logits, ones[number]), abs=TOLERANCE)
    recovered = result.recovered("logit_diff").sel(circuit="found").to_numpy()
    np.testing.assert_allclose(recovered, [0, 1], atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_law_what_is_recovered_is_the_normalised_faithfulness(name):
    pairs = [PAIRS[name], LATE[name]]
    result = evaluated(name, pairs, drawn(name, 0.6, 8), sizes=[5, 50], random=2)
    clean, corrupted = (result.baselines[run][0].to_numpy() for run in ("clean", "corrupted"))
    values = result.data["logit_diff"].transpose("circuit", "edges", "pair").to_numpy()
    expected = (values - corrupted).mean(-1) / (clean - corrupted).mean()
    shown = result.recovered().transpose("circuit", "edges").to_numpy()
    np.testing.assert_allclose(shown, expected, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_law_the_embeddings_alone_into_the_logits_are_their_direct_effect(name):
    model, net = model_of(name), net_of(name)
    (one,) = model.tokenize(LATE[name])
    clean, corrupted = play(net, one.clean_ids), play(net, one.corrupted_ids)
    with torch.no_grad():
        logits = net.unembed(corrupted.streams[LOGITS] + clean.outs[EMBED] - corrupted.outs[EMBED])
    result = evaluated(name, LATE[name], only(name, ("embed", "logits")))
    assert found(result)[0, 0] == pytest.approx(answered(logits, one), abs=TOLERANCE)
    assert abs(found(result)[0, 0] - result.baselines["corrupted"].item()) > 1e-3
    patched = nbp.path_patch(model, LATE[name], "embed", "logits").data["logit_diff"]
    assert found(result)[0, 0] == pytest.approx(patched.item(), abs=TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_law_all_edges_but_one_are_its_noising_path_patch(name):
    (one,) = model_of(name).tokenize(PAIRS[name])
    net = net_of(name)
    for sender, receiver in (("z[0.1]", "q[2.1]"), ("mlp_out[0]", "mlp[2]"), ("z[1.0]", "v[2.1]"), ("embed", "k[1.1]")):
        kept = all_edges(net) & ~only(name, (sender, receiver))
        logits = path_logits(net, one.clean_ids, one.corrupted_ids, [part(sender)], [[part(receiver)]], "direct")
        expected = answered(logits, one)
        assert found(evaluated(name, PAIRS[name], kept))[0, 0] == pytest.approx(expected, abs=TOLERANCE)
        patched = nbp.path_patch(model_of(name), PAIRS[name], sender, receiver, direction="noising")
        assert patched.data["logit_diff"].item() == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("chain", ["v[1.1] -> mlp[1] v[2.0] -> logits", "mlp[0] -> q[1.1] k[1.1] -> mlp[2] -> logits"])
@pytest.mark.parametrize("name", MODELS)
def test_law_the_edges_of_a_chain_are_its_treeified_path_patch(name, chain):
    net, kept, senders = net_of(name), only(name), [EMBED]
    for stage in stages(chain):
        for sender in senders:
            for receiver in stage:
                kept[all_senders(net).index(sender), all_inputs(net).index(receiver)] = True
        senders = writers(net, stage)
    kept &= all_edges(net)
    patched = nbp.path_patch(model_of(name), PAIRS[name], "embed", chain, variant="tree").data["logit_diff"]
    own = found(evaluated(name, PAIRS[name], kept))[0, 0]
    assert own == pytest.approx(patched.item(), abs=TOLERANCE)


def test_law_edges_that_lead_nowhere_change_nothing():
    kept = drawn("tiny", 0.04, 1)
    pruned = circuit_of("tiny", kept).prune().kept
    assert 0 < pruned.sum() < kept.sum()
    alike = [found(evaluated("tiny", IOI, one))[0, 0] for one in (kept, np.array(pruned))]
    assert alike[0] == pytest.approx(alike[1], abs=1e-5)


@pytest.mark.parametrize("kind", ["other prompt", "zero", "mean"])
def test_law_a_pair_alone_is_the_same_pair_among_several(kind):
    pairs = [families.PAIRS[1], LAST, families.PAIRS[3]]
    kept = drawn("llama", 0.5, 2)
    together = evaluated("llama", pairs, kept, kind, sizes=[10, 60], random=3)
    for number, pair in enumerate(pairs):
        alone = evaluated("llama", pair, kept, kind, sizes=[10, 60], random=3)
        np.testing.assert_allclose(
            together.data["logit_diff"].isel(pair=number), alone.data["logit_diff"].isel(pair=0), atol=1e-5
        )


def test_law_one_circuit_for_each_position_is_the_circuit_for_all():
    (one,) = model_of("llama").tokenize(PAIRS["llama"])
    kept = drawn("llama", 0.5, 4)
    by_position = np.repeat(kept[:, :, None], len(one.clean_ids), 2)
    for kind in ("other prompt", "zero"):
        both = [found(evaluated("llama", PAIRS["llama"], each, kind))[0, 0] for each in (kept, by_position)]
        assert both[0] == pytest.approx(both[1], abs=1e-5)


# Random circuits.


def test_random_circuits_have_as_many_edges_each_of_which_leads_to_the_logits():
    net = net_of("llama")
    (one,) = model_of("llama").tokenize(LAST)
    # With the other prompt of the pair, nothing but the embeddings would write anything else along a single edge.
    ablated = ablated_by("llama", "mean", [one], 0)
    sizes = [1, int(all_edges(net).sum())]
    result = evaluated("llama", LAST, all_edges(net), "mean", sizes=sizes, random=8)
    names = ["found", *(f"random {number}" for number in range(8))]
    assert result.data["circuit"].to_numpy().tolist() == names
    table = result.data["logit_diff"].isel(pair=0).transpose("edges", "circuit").to_numpy()
    # One edge that leads to the logits ends in them.
    ends = np.flatnonzero(all_edges(net)[:, -1])
    possible = []
    for sender in ends:
        kept = np.zeros_like(all_edges(net))
        kept[sender, -1] = True
        possible.append(answered(circuit_logits(net, one.clean_ids, kept, ablated), one))
    for value in table[0, 1:]:
        assert np.min(abs(np.array(possible) - value)) < TOLERANCE
    assert np.ptp(table[0, 1:]) > 1e-3, "they are not all the same"
    np.testing.assert_allclose(table[1], result.baselines["clean"].item(), atol=TOLERANCE)


def test_random_circuits_follow_their_seed():
    kept = drawn("llama", 0.5, 2)
    runs = [
        evaluated("llama", LAST, kept, "mean", sizes=[30], random=3, seed=seed).data["logit_diff"] for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (abs(runs[0] - runs[2]).sel(circuit=["random 0", "random 1", "random 2"]) > 1e-6).all()
    assert (runs[0].sel(circuit="found") == runs[2].sel(circuit="found")).all()
    more = evaluated("llama", LAST, kept, "mean", sizes=[30], random=5).data["logit_diff"]
    np.testing.assert_allclose(more.isel(circuit=slice(4)), runs[0], atol=1e-5)


def test_five_random_circuits_of_the_circuits_own_size_are_the_default():
    kept = drawn("llama", 0.3, 2)
    result = nbp.evaluate(model_of("llama"), circuit_of("llama", kept), LAST)
    assert result.data["logit_diff"].dims == ("circuit", "edges", "pair")
    assert result.data["edges"].to_numpy().tolist() == [int(kept.sum())]
    assert result.data["circuit"].to_numpy().tolist() == ["found", *(f"random {number}" for number in range(5))]


# TransformerLens.


def lens_edges(name: str, kept: np.ndarray) -> list[Any]:
    """Returns the edges kept [sender input pos] as TransformerLens names them."""
    from transformer_lens.tools.analysis.attribution_patching import Node

    net = net_of(name)
    writes = {"embed": "embed", "z": "attn_head_out", "mlp_out": "mlp_out"}
    reads = {"q": "q_input", "k": "k_input", "v": "v_input", "mlp": "mlp_in", "logits": "logits"}

    def node(kind: str, one: Part, pos: int) -> Any:
        layer = net.n_layers - 1 if kind == "logits" else one.layer
        return Node(kind, pos, None if layer < 0 else layer, None if one.head < 0 else one.head)

    senders, inputs = all_senders(net), all_inputs(net)
    return [
        (node(writes[senders[i].kind], senders[i], pos), node(reads[inputs[j].kind], inputs[j], pos))
        for i, j, pos in np.argwhere(kept).tolist()
    ]


@pytest.mark.parametrize("kind", ["other prompt", "mean"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_circuit_by_position_equals_transformer_lens(share, kind):
    from transformer_lens.tools.analysis.attribution_patching import FaithfulnessConfig, faithfulness

    model = model_of("tiny")
    (one,) = model.tokenize(IOI)
    kept = drawn("tiny", share, 9, len(one.clean_ids))
    texts = [IOI.clean.replace("Mary", "Paul").replace("John", "Mary"), IOI.clean.replace("John", "Anna")]
    prompts = torch.tensor([encode(model.tokenizer, text, bos=model.prepends_bos) for text in texts])
    theirs = faithfulness(
        model.bridge, torch.tensor([one.clean_ids]), torch.tensor([one.corrupted_ids]),
        lambda logits: logits[0, -1, one.answer_ids[0]] - logits[0, -1, one.wrong_ids[0]],
        lens_edges("tiny", kept), FaithfulnessConfig("mean" if kind == "mean" else "corrupt"),
        mean_tokens=prompts if kind == "mean" else None,
    )  # fmt: skip
    assert (theirs.circuit_size, theirs.total_edges) == (
        int(kept.sum()),
        all_edges(net_of("tiny")).sum() * kept.shape[2],
    )
    value = theirs.corrupt_metric + theirs.recovered * (theirs.full_metric - theirs.corrupt_metric)
    ablated = (
        ablated_by_run(net_of("tiny"), one.corrupted_ids)
        if kind == "other prompt"
        else ablated_by_mean(net_of("tiny"), prompts.tolist(), len(one.clean_ids))
    )
    twin = answered(circuit_logits(net_of("tiny"), one.clean_ids, kept, ablated), one)
    assert twin == pytest.approx(value, abs=TOLERANCE), "the twin itself"
    corruption = nbp.Mean(texts) if kind == "mean" else None
    result = nbp.evaluate(model, circuit_of("tiny", kept), IOI, corruption=corruption, random=0)
    assert found(result)[0, 0] == pytest.approx(value, abs=TOLERANCE)
    assert result.baselines["clean"].item() == pytest.approx(theirs.full_metric, abs=TOLERANCE)
    if kind == "other prompt":
        assert result.recovered().sel(circuit="found").item() == pytest.approx(theirs.recovered, abs=TOLERANCE)
    assert abs(value - theirs.corrupt_metric) > 1e-3


# What the result says, and what is refused.


def test_the_pedigree_names_the_ablation_and_the_seed():
    result = nbp.evaluate(model_of("tiny"), circuit_of("tiny", drawn("tiny", 0.3, 1)), IOI, corruption=nbp.Zero())
    assert result.provenance["method"] == "evaluate"
    assert result.provenance["seed"] == 0
    assert "zero" in result.card().lower()
    assert repr(result)


SHORTER = nbp.PromptPair(" Mary and John gave", " John gave", " to", " a", align={0: 0, 3: 1, 4: 2})
OTHER = Circuit(Graph(2, 4, 4, (False, False)), np.zeros((11, 27)), np.zeros((11, 27), bool))
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"circuit": OTHER}, "layers"),
    ({"circuit": "q[1.0]"}, "Circuit"),
    ({"sizes": [10_000]}, "10000"),
    ({"sizes": [-1]}, "-1"),
    ({"sizes": []}, "sizes"),
    ({"random": -1}, "random"),
    ({"pairs": SHORTER}, "tokens"),
    ({"pairs": []}, "pair"),
    ({"corruption": "zero"}, "corruption"),
    ({"corruption": nbp.Noise(1)}, "oise"),
    ({"metric": "logit"}, "logit_diff"),
]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("asked", "words"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_makes_no_sense_is_refused_with_place_and_way_out(asked, words):
    options = {"pairs": LAST, "circuit": circuit_of("llama", drawn("llama", 0.3, 1)), **asked}
    with pytest.raises(nbp.NbpatchError) as caught:
        nbp.evaluate(model_of("llama"), options.pop("circuit"), options.pop("pairs"), **options)
    message = str(caught.value)
    assert words in message
    for label in ("  in     ", "  try    "):
        assert any(line.startswith(label) for line in message.splitlines()), message


def test_a_circuit_by_position_wants_prompts_of_its_length():
    (one,) = model_of("llama").tokenize(LAST)
    circuit = circuit_of("llama", drawn("llama", 0.3, 1, len(one.clean_ids) + 1))
    with pytest.raises(nbp.NbpatchError) as caught:
        nbp.evaluate(model_of("llama"), circuit, LAST)
    assert f"{len(one.clean_ids) + 1}" in str(caught.value)
    assert "pair 1 of 1" in str(caught.value)
