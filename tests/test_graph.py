"""Graphs and circuits: counts by hand, sets that obey their laws, networkx as the slow twin, files that come back."""

import json
import math
import time
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpatch.errors import CircuitError
from nbpatch.graph import Circuit, Edge, Graph, Node, random_circuit

GPT2 = Graph(12, 12, 12, (False,) * 12)
SMALL = Graph(2, 2, 2, (False, False))
GROUPED = Graph(2, 4, 2, (False, True))

sizes = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.lists(st.booleans(), min_size=3))
"""Layers, key-value heads, heads that share each, parallel or not; what checks types draws at random itself, so that
graphs and circuits are made in the tests."""


def graph_of(drawn_sizes) -> Graph:
    layers, kv, size, parallel = drawn_sizes
    return Graph(layers, kv * size, kv, tuple(parallel[:layers]))


def drawn(graph: Graph, seed: int, *, positions: int = 0, share: float = 0.3, scored: float = 0.8) -> Circuit:
    """Returns a circuit with any edges, whether they lead anywhere or not, some of them without a score."""
    rng = np.random.default_rng(seed)
    shape = graph.possible.shape + ((positions,) if positions else ())
    possible = np.broadcast_to(graph.possible.reshape(*graph.possible.shape, *[1] * bool(positions)), shape)
    scores = np.where(rng.random(shape) < scored, rng.normal(size=shape), np.nan)
    return Circuit(graph, scores, possible & (rng.random(shape) < share), provenance={"method": "eap"})


def recipes(count=1):
    """Yields what `made` makes circuits from: sizes, positions, share of edges kept, seeds."""
    seeds = st.lists(st.integers(0, 10_000), min_size=count, max_size=count)
    return st.tuples(sizes, st.sampled_from([0, 1, 3]), st.sampled_from([0.05, 0.15, 0.3, 0.9]), seeds)


def made(recipe) -> list[Circuit]:
    drawn_sizes, positions, share, seeds = recipe
    return [drawn(graph_of(drawn_sizes), seed, positions=positions, share=share) for seed in seeds]


def twin(circuit: Circuit) -> nx.MultiDiGraph:
    """Returns the circuit as nodes (name, position) and edges with their text; keys and values reach later positions.

    One head of a group stands for itself: an edge that ends in a shared head leads on if any of the group does.
    """
    graph, places = circuit.graph, range(circuit.positions or 1)
    size = graph.n_heads // graph.n_kv_heads
    made = nx.MultiDiGraph()
    made.add_nodes_from((name, pos) for name in (*graph.sender_names, "logits") for pos in places)
    for edge in circuit.edges:
        at, pos = edge.receiver, edge.pos or 0
        heads = range(at.head * size, (at.head + 1) * size) if edge.input in ("k", "v") else [at.head]
        ends = [str(Node("head", at.layer, head)) for head in heads] if edge.input else [str(at)]
        for place in places if edge.input in ("k", "v") else [pos]:
            for end in ends if place >= pos else ():
                made.add_edge((str(edge.sender), pos), (end, place), text=str(edge))
    return made


def leading(circuit: Circuit) -> set[str]:
    """Returns the texts of the edges from which a path leads to the logits, by networkx."""
    made = twin(circuit)
    ends = [("logits", pos) for pos in range(circuit.positions or 1)]
    there = set(ends).union(*(nx.ancestors(made, end) for end in ends))
    return {text for _, end, text in made.edges(data="text") if end in there}


def names(circuit: Circuit) -> set[str]:
    return {str(edge) for edge in circuit.edges}


# -- graphs


def test_gpt2_small_has_its_edges():
    assert (len(GPT2.senders), len(GPT2.inputs), GPT2.n_edges) == (157, 445, 32_491)


def test_edges_counted_by_hand():
    """Per layer: heads see what is before them, the MLP also the heads unless parallel, the logits all."""
    assert SMALL.n_edges == (6 * 1 + 3) + (6 * 4 + 6) + 7
    assert replace(SMALL, parallel=(True, True)).n_edges == (6 * 1 + 1) + (6 * 4 + 4) + 7
    assert GROUPED.n_edges == ((4 + 2 + 2) * 1 + 5) + ((4 + 2 + 2) * 6 + 6) + 11


def test_senders_and_inputs_stand_in_model_order():
    assert SMALL.sender_names == ("embed", "a0.0", "a0.1", "m0", "a1.0", "a1.1", "m1")
    of_layer = ("a0.0.q", "a0.1.q", "a0.0.k", "a0.1.k", "a0.0.v", "a0.1.v", "m0")
    assert SMALL.input_names == (*of_layer, *(name.replace("0", "1", 1) for name in of_layer[:-1]), "m1", "logits")
    assert GROUPED.input_names[:9] == (
        "a0.0.q", "a0.1.q", "a0.2.q", "a0.3.q", "a0.kv0.k", "a0.kv1.k", "a0.kv0.v", "a0.kv1.v", "m0",
    )  # fmt: skip


@given(sizes)
def test_an_edge_is_there_where_the_input_reads_after_the_sender_wrote(asked):
    graph = graph_of(asked)
    for row, sender in enumerate(graph.senders):
        for column, (receiver, _) in enumerate(graph.inputs):
            earlier = sender.layer < receiver.layer or receiver.kind == "logits"
            own = sender.kind == "head" and receiver == Node("mlp", sender.layer) and not graph.parallel[sender.layer]
            assert graph.possible[row, column] == (earlier or own)


@given(sizes)
def test_inputs_feed_the_nodes_they_belong_to(asked):
    graph = graph_of(asked)
    fed, size = graph.nodes_fed(), graph.n_heads // graph.n_kv_heads
    for row, (node, name) in enumerate(graph.inputs):
        heads = range(node.head * size, (node.head + 1) * size) if name in ("k", "v") else [node.head]
        expected = {Node("head", node.layer, head) for head in heads} if name else {node} - {Node("logits")}
        assert {graph.senders[at] for at in np.flatnonzero(fed[row])} == expected


@pytest.mark.parametrize("sizes", [(0, 1, 1, ()), (1, 3, 2, (False,)), (2, 2, 2, (False,)), (1, 2, 0, (True,))])
def test_sizes_that_no_transformer_has(sizes):
    with pytest.raises(CircuitError, match="no transformer"):
        Graph(*sizes)


def test_what_is_cached_cannot_be_written_to():
    for values in (SMALL.possible, SMALL.nodes_fed(), drawn(SMALL, 0).kept, drawn(SMALL, 0).scores):
        with pytest.raises(ValueError, match="read-only"):
            values[0, 0] = 1


# -- edges


def test_edges_as_text():
    sender = Node("head", 0, 1)
    assert str(Edge(sender, Node("head", 3, 1), "q", None, 0.5)) == "a0.1->a3.1.q"
    assert str(Edge(sender, Node("head", 3, 0), "k", 7, 0.5, grouped=True)) == "a0.1->a3.kv0.k @ 7"
    assert str(Edge(Node("embed"), Node("mlp", 2), "", None, 0.5)) == "embed->m2"
    assert str(Edge(Node("mlp", 2), Node("logits"), "", 7, math.nan)) == "m2->logits @ 7"


@given(recipes())
def test_every_edge_is_found_again(recipe):
    (circuit,) = made(recipe)
    everything = replace(circuit, kept=np.broadcast_to(_possible(circuit), circuit.kept.shape))
    assert len(names(everything)) == len(everything) == everything.graph.n_edges * (circuit.positions or 1)
    for edge in everything.edges[:100]:
        there = str(edge) in names(circuit)
        assert (edge in circuit) == (str(edge) in circuit) == there


def _possible(circuit: Circuit) -> np.ndarray:
    return circuit.graph.possible.reshape(*circuit.graph.possible.shape, *[1] * (circuit.kept.ndim - 2))


def test_an_edge_without_a_position_is_there_at_any():
    kept = np.zeros((7, 15, 3), bool)
    kept[0, 6, 1] = True
    circuit = Circuit(SMALL, np.full(kept.shape, np.nan), kept)
    assert "embed->m0" in circuit
    assert "embed->m0 @ 1" in circuit
    assert "embed->m0 @ 0" not in circuit
    assert "embed->m0 @ 9" not in circuit
    assert "embed->m0 @ 1" not in circuit.summed()
    assert "embed->m0" in circuit.summed()


@pytest.mark.parametrize(
    ("text", "what"),
    [("embed", "no edge"), ("embed->m7", "no 'm7'"), ("a9.9->m1", "no 'a9.9'"), ("embed->m1 @ x", "no edge")],
)
def test_what_is_no_edge_of_the_graph_is_refused(text, what):
    with pytest.raises(CircuitError, match=what) as caught:
        _ = text in drawn(SMALL, 0)
    assert caught.value.fix
    assert caught.value.seen


# -- order and choice


@given(recipes())
def test_the_strongest_come_first_and_those_without_a_score_last(recipe):
    (circuit,) = made(recipe)
    scores = [abs(edge.score) for edge in circuit.edges]
    known = [score for score in scores if not math.isnan(score)]
    assert scores[: len(known)] == sorted(known, reverse=True)
    assert len(scores) == len(circuit) == len(circuit.to_frame())


@given(recipes(), st.booleans(), st.integers(0, 10_000))
def test_top_edges_are_the_first_of_all(recipe, absolute, seed):
    (circuit,) = made(recipe)
    # Few different scores, so that there are ties.
    circuit = replace(circuit, scores=np.round(circuit.scores))
    known = [edge for edge in circuit.edges if not math.isnan(edge.score)]
    ordered = known if absolute else sorted(known, key=lambda edge: -edge.score)
    k = seed % (len(known) + 1)
    chosen = circuit.top_edges(k, absolute=absolute)
    size = (lambda edge: abs(edge.score)) if absolute else (lambda edge: edge.score)
    assert len(chosen) == k
    assert chosen <= circuit
    assert sorted(map(size, chosen.edges)) == sorted(map(size, ordered[:k]))
    if absolute:
        assert [str(edge) for edge in chosen.edges] == [str(edge) for edge in known[:k]]


@given(recipes(), st.sampled_from([0.0, 0.5, 1.5]), st.booleans())
def test_a_threshold_keeps_what_reaches_it(recipe, t, absolute):
    (circuit,) = made(recipe)
    circuit = replace(circuit, scores=np.round(2 * circuit.scores) / 2)
    expected = {str(edge) for edge in circuit.edges if (abs(edge.score) if absolute else edge.score) >= t}
    assert names(circuit.threshold(t, absolute=absolute)) == expected


def test_impossible_choices_are_refused():
    circuit = drawn(SMALL, 0)
    there = sum(not math.isnan(edge.score) for edge in circuit.edges)
    for k in (-1, there + 1):
        with pytest.raises(CircuitError, match="no such number") as caught:
            circuit.top_edges(k)
        assert caught.value.fix == f"k=0 to {there}"
    with pytest.raises(CircuitError, match="is a number"):
        circuit.threshold(math.nan)
    with pytest.raises(CircuitError, match="below zero") as caught:
        circuit.threshold(-0.5)
    assert caught.value.fix == "threshold(-0.5, absolute=False)"


# -- sets


@given(recipes(count=3))
def test_sets_of_edges_obey_their_laws(recipe):
    a, b, c = made(recipe)
    for circuit, expected in (
        (a | b, names(a) | names(b)),
        (a & b, names(a) & names(b)),
        (a - b, names(a) - names(b)),
        (a ^ b, names(a) ^ names(b)),
    ):
        assert names(circuit) == expected
    assert (a & (b | c)).same_edges((a & b) | (a & c))
    assert (a ^ b).same_edges((a | b) - (a & b))
    assert (a <= b) == (names(a) <= names(b))
    assert (a & b) <= a <= (a | b)
    assert a.same_edges(b) == (names(a) == names(b))
    assert a.jaccard(b) == (len(names(a) & names(b)) / len(names(a) | names(b)) if names(a) | names(b) else 1.0)


@given(recipes(count=2))
def test_scores_are_the_left_ones_filled_from_the_right(recipe):
    a, b = made(recipe)
    scores = (a | b).scores
    np.testing.assert_array_equal(scores, np.where(np.isnan(a.scores), b.scores, a.scores))


def test_what_was_done_and_warned_of_is_kept():
    a, b = (replace(drawn(SMALL, seed), warnings=(f"w{seed}", "both")) for seed in (1, 2))
    made = a.top_edges(3).prune() | b
    assert made.provenance["steps"] == ["top_edges(3)", "prune()", "| EAP"]
    assert made.warnings == ("w1", "both", "w2")
    assert "steps" not in a.provenance


def test_circuits_that_cannot_be_compared_are_refused():
    a = drawn(SMALL, 0)
    for other, what in ((drawn(GROUPED, 0), "different graphs"), (drawn(SMALL, 0, positions=2), "positions")):
        for together in (a.__or__, a.__and__, a.__sub__, a.__xor__, a.__le__, a.same_edges, a.jaccard):
            with pytest.raises(CircuitError, match=what) as caught:
                together(other)
            assert caught.value.fix
            assert caught.value.where


# -- paths


@given(recipes())
def test_pruning_keeps_what_networkx_finds(recipe):
    (circuit,) = made(recipe)
    assert names(circuit.prune()) == leading(circuit)


def test_a_key_leads_to_later_positions_and_a_query_only_to_its_own():
    texts = ("embed->a0.0.q @ 0", "embed->a0.0.k @ 0", "embed->a0.0.v @ 1", "embed->a0.0.k @ 2", "a0.0->logits @ 1")
    kept = np.zeros((7, 15, 3), bool)
    for text in texts:
        ends, pos = text.split(" @ ")
        sender, receiver = ends.split("->")
        kept[SMALL.sender_names.index(sender), SMALL.input_names.index(receiver), int(pos)] = True
    circuit = Circuit(SMALL, np.full(kept.shape, np.nan), kept)
    assert names(circuit.prune()) == {texts[1], texts[2], texts[4]} == leading(circuit)


@given(recipes(count=2))
def test_pruning_twice_is_pruning_once_and_more_edges_keep_more(recipe):
    a, b = made(recipe)
    assert a.prune().prune().same_edges(a.prune())
    assert a.prune() <= (a | b).prune()


@given(sizes, st.sampled_from([0, 1, 3]), st.integers(0, 10_000), st.floats(0, 1))
def test_every_edge_of_a_random_circuit_leads_to_the_logits(asked, positions, seed, share):
    graph = graph_of(asked)
    n_edges = round(share * graph.n_edges * max(1, positions))
    circuit = random_circuit(graph, n_edges, seed=seed, positions=positions)
    assert len(circuit) == n_edges
    assert names(circuit) == leading(circuit)
    assert circuit.positions == (positions or None)
    assert circuit.same_edges(random_circuit(graph, n_edges, seed=seed, positions=positions))


def test_the_first_edge_is_drawn_uniformly():
    """Seven senders reach the logits; 700 draws of one edge give each of them about 100 times."""
    first = [str(random_circuit(SMALL, 1, seed=seed).edges[0]) for seed in range(700)]
    counts = np.unique(first, return_counts=True)[1]
    assert len(counts) == 7
    assert counts.min() > 65
    assert counts.max() < 140


def test_more_edges_than_there_are_cannot_be_drawn():
    for asked in ({"n_edges": 47}, {"n_edges": -1}, {"n_edges": 1, "positions": -1}, {"n_edges": 139, "positions": 3}):
        with pytest.raises(CircuitError, match="not so many") as caught:
            random_circuit(SMALL, seed=0, **asked)
        assert caught.value.fix.startswith("n_edges=0 to")


def test_gpt2_small_takes_no_time():
    start = time.perf_counter()
    circuit = random_circuit(GPT2, 30_000, seed=0)
    assert time.perf_counter() - start < 1.0  # 0.04 s on an idle core
    start = time.perf_counter()
    circuit = replace(circuit, scores=np.random.default_rng(0).normal(size=circuit.scores.shape))
    repr(circuit.top_edges(200).prune() | circuit)
    assert time.perf_counter() - start < 0.5  # 0.01 s


# -- nodes, positions, tables


@given(recipes())
def test_nodes_are_those_of_networkx_in_model_order(recipe):
    (circuit,) = made(recipe)
    network = circuit.to_networkx()
    order = [*circuit.graph.senders, Node("logits")]
    assert [str(node) for node in circuit.nodes] == list(network.nodes)
    assert sorted(circuit.nodes, key=order.index) == circuit.nodes
    touched = {end for start, stop in network.edges() for end in (start, stop)}
    assert touched == set(network.nodes)


@given(recipes())
def test_networkx_has_every_edge_with_its_score(recipe):
    (circuit,) = made(recipe)
    size = circuit.graph.n_heads // circuit.graph.n_kv_heads
    expected = sorted(
        (str(edge.sender), edge.input, edge.pos or 0, edge.score)
        for edge in circuit.edges
        for _ in range(size if edge.grouped else 1)
        if not math.isnan(edge.score)
    )
    found = circuit.to_networkx().edges(data=True)
    seen = [(start, at["input"], at["pos"] or 0, at["score"]) for start, _, at in found if not math.isnan(at["score"])]
    assert sorted(seen) == expected


@given(recipes())
def test_the_table_says_what_the_edges_say(recipe):
    (circuit,) = made(recipe)
    frame, edges = circuit.to_frame(), circuit.edges
    assert frame["edge"].tolist() == [str(edge) for edge in edges]
    assert frame["sender"].tolist() == [str(edge.sender) for edge in edges]
    assert frame["input"].tolist() == [edge.input for edge in edges]
    np.testing.assert_array_equal(frame["score"], [edge.score for edge in edges])
    for row in frame.itertuples():
        assert row.edge.startswith(f"{row.sender}->{row.receiver}{row.input and '.'}{row.input}")
    if circuit.positions:
        assert frame["pos"].tolist() == [edge.pos for edge in edges]


@given(recipes())
def test_summed_adds_over_positions(recipe):
    (circuit,) = made(recipe)
    summed = circuit.summed()
    assert {text.partition(" @ ")[0] for text in names(circuit)} == names(summed)
    if circuit.positions:
        frame = replace(circuit, kept=np.broadcast_to(_possible(circuit), circuit.kept.shape)).to_frame()
        expected = frame.groupby(["sender", "receiver", "input"])["score"].sum(min_count=1)
        there = replace(summed, kept=summed.graph.possible).to_frame().set_index(["sender", "receiver", "input"])
        np.testing.assert_allclose(there["score"].sort_index(), expected.sort_index())
    else:
        assert summed is circuit


# -- files


def scored(text_scores: dict[str, float], graph: Graph = SMALL, **more) -> Circuit:
    scores = np.full(graph.possible.shape, np.nan)
    for text, score in text_scores.items():
        sender, receiver = text.split("->")
        scores[graph.sender_names.index(sender), graph.input_names.index(receiver)] = score
    return Circuit(graph, scores, ~np.isnan(scores), **more)


@given(recipe=recipes())
def test_a_saved_circuit_comes_back(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("circuits") / "circuit.json"
    provenance = {"method": "eap", "n": np.int64(3), "shares": np.array([0.5])}
    circuit = replace(made(recipe)[0], provenance=provenance, warnings=("one pair.",))
    again = Circuit.read(circuit.save(path))
    assert again.graph == circuit.graph
    assert again.same_edges(circuit)
    np.testing.assert_array_equal(again.scores, circuit.scores)
    assert again.provenance == {"method": "eap", "n": 3, "shares": [0.5]}
    assert again.warnings == ("one pair.",)
    assert [one.name for one in path.parent.iterdir()] == ["circuit.json"]


def test_scores_beyond_all_numbers_are_plain_json(tmp_path):
    circuit = scored({"embed->m0": math.inf, "embed->m1": -math.inf}, warnings=("é",))
    path = replace(circuit, kept=SMALL.possible).save(tmp_path / "c.json")
    text = path.read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail)["warnings"] == ["é"]
    np.testing.assert_array_equal(Circuit.read(path).scores, circuit.scores)
    assert len(Circuit.read(path)) == 46


def test_files_that_hold_no_circuit_are_refused(tmp_path):
    good = json.loads(drawn(SMALL, 0, positions=2).save(tmp_path / "good.json").read_text(encoding="utf-8"))
    bad = {
        "text": "no JSON",
        "list": "[1]",
        "other": json.dumps({**good, "format": "else"}),
        "names": json.dumps({**good, "senders": ["embed"]}),
        "edge": json.dumps({**good, "edges": [[0, 99, 0, 1.0, True]]}),
        "impossible": json.dumps({**good, "edges": [[6, 0, 0, 1.0, True]]}),
        "short": json.dumps({**good, "edges": [[0, 0, True]]}),
        "head": json.dumps({"format": "nbpatch-circuit"}),
    }
    for name, text in bad.items():
        path = tmp_path / f"{name}.json"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(CircuitError, match="not a circuit saved") as caught:
            Circuit.read(path)
        assert caught.value.seen.startswith(f"{name}.json: ")
    newer = tmp_path / "newer.json"
    newer.write_text(json.dumps({**good, "version": 2}), encoding="utf-8")
    with pytest.raises(CircuitError, match="newer version") as caught:
        Circuit.read(newer)
    assert caught.value.fix == "pip install -U nbpatch"
    with pytest.raises(CircuitError, match="no such file") as caught:
        Circuit.read(tmp_path / "gone.json")
    assert "good.json" in caught.value.fix


def test_folders_that_cannot_be_written_to_are_refused(tmp_path):
    for path, what in ((tmp_path, "that is a folder"), (tmp_path / "gone" / "c.json", "no such folder")):
        with pytest.raises(CircuitError, match=what) as caught:
            drawn(SMALL, 0).save(path)
        assert caught.value.fix == 'circuit.save("circuit.json")'


# -- what does not fit


def test_arrays_that_do_not_fit_are_refused():
    scores, kept = np.zeros((7, 15)), np.zeros((7, 15), bool)
    for arrays, tokens, what in (
        ((scores.T, kept.T), (), "do not fit"),
        ((scores, kept[:, :, None]), (), "do not fit"),
        ((scores, kept), ("a",), "one label"),
        ((scores[..., None], kept[..., None]), ("a", "b"), "one label"),
        ((scores, ~kept), (), "reads before"),
    ):
        with pytest.raises(CircuitError, match=what) as caught:
            Circuit(SMALL, *arrays, tokens)
        assert caught.value.seen
        assert caught.value.fix
    assert np.isnan(Circuit(SMALL, scores, kept).scores[~SMALL.possible]).all()


def test_the_whole_message():
    with pytest.raises(CircuitError) as caught:
        drawn(SMALL, 0).jaccard(drawn(GROUPED, 0))
    assert str(caught.value) == (
        "the circuits are of different graphs.\n"
        "  in     jaccard\n"
        "  seen   2 layers × 2 heads, 46 edges; 2 layers × 4 heads, 78 edges\n"
        "  try    two circuits of one model"
    )
