"""Edge attribution patching against its slow twin, against finite differences, against TransformerLens, by its laws."""

import copy
import inspect
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import families
import numpy as np
import oracle_gradients as oracle
import override
import pytest
import torch
from oracle_ablation import TRIOS
from oracle_paths import Twin

import nbpatch
from nbpatch import PromptPair
from nbpatch.errors import MetricError, NbpatchError, PlanError, SiteError
from nbpatch.model import Model

TOLERANCE = 1e-4
METHODS = ("eap", "eap-ig", "eap-ig-activations", "clean-corrupted")
DIRECTIONS = ("denoising", "noising")
STEPS = 2
MODELS = ("tiny", "llama", "qwen3")
POST_NORM = ("gemma2", "gemma3", "olmo2")
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")

# Two pairs as long as each other: their positions are the same, by_position too.
PAIRS = {"tiny": TRIOS["tiny"][::2], "llama": families.PAIRS[::3], "qwen3": families.PAIRS[::3]}


# Shorter than the thirteen tokens of all others.
SHORT = PromptPair(" Mary and John gave a ball", " Mary and Paul gave a drink", " to", " a")


def model_of(name: str) -> Model:
    """A model loaded once; tests must not change it."""
    return _tiny() if name == "tiny" else families.loaded(name)


@lru_cache(maxsize=1)
def _tiny() -> Model:
    return nbpatch.load("tiny")


def ones_of(name: str) -> tuple[Any, ...]:
    return model_of(name).tokenize(PAIRS[name])


def eap(name: str, pairs: Any = None, **options: Any) -> Any:
    return nbpatch.eap(model_of(name), PAIRS[name] if pairs is None else pairs, **{"steps": STEPS, **options})


@lru_cache(maxsize=64)
def expected(name: str, number: int, method: str, direction: str, metric: str = "logit_diff") -> Any:
    """Returns one pair's score of each edge at each position."""
    options: dict[str, Any] = {"method": method, "direction": direction, "metric": metric, "steps": STEPS}
    return oracle.eap(model_of(name)._hf, ones_of(name)[number], **options)


def table(circuit: Any, edges: Any) -> np.ndarray:
    """Returns the slow twin's edges laid out as a circuit's scores, NaN elsewhere."""
    found = np.full(circuit.scores.shape, np.nan)
    senders, inputs = named(circuit)
    for (sender, reader), score in edges.items():
        found[senders.index(sender), inputs.index(reader)] = score if found.ndim == 3 else score.sum()
    return found


def named(circuit: Any) -> tuple[list[str], list[str]]:
    """Returns the names of senders and inputs, written out from their parts."""
    graph = circuit.graph
    inputs = []
    for node, part in graph.inputs:
        shared = "kv" if part in ("k", "v") and graph.n_kv_heads < graph.n_heads else ""
        inputs.append(f"a{node.layer}.{shared}{node.head}.{part}" if part else str(node))
    return [str(node) for node in graph.senders], inputs


def close(found: np.ndarray, wanted: np.ndarray, message: str = "", *, seen: bool = True) -> None:
    """Compares scores, by themselves and with the strongest one, and looks whether there was anything to compare."""
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted), err_msg=message)
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=TOLERANCE, err_msg=message)
    strongest = np.nanmax(abs(wanted))
    # What float32 leaves of a saturated probability is no better than 1e-6.
    assert np.nanmax(abs(found - wanted)) <= TOLERANCE * strongest + 1e-6, message
    assert not seen or strongest > 1e-3, f"{message}: no score to compare"


# -- against the slow twin


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_edges_equal_the_hand_written_gradients(name, method, direction):
    whole = eap(name, method=method, direction=direction)
    places = eap(name, method=method, direction=direction, by_position=True)
    edges = [expected(name, number, method, direction) for number in range(2)]
    mean = {edge: (score + edges[1][edge]) / 2 for edge, score in edges[0].items()}
    close(whole.scores, table(whole, mean))
    close(places.scores, table(places, mean), "by position")
    assert int(np.isfinite(whole.scores).sum()) == len(mean) == whole.graph.n_edges


@pytest.mark.parametrize("metric", ["log_prob", "prob", "kl"])
@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_other_metrics_equal_the_hand_written_gradients(name, metric):
    ways = [
        (method, way) for method in METHODS for way in DIRECTIONS if (metric, method, way) != ("kl", "eap", "noising")
    ]
    for method, direction in ways:
        circuit = eap(name, PAIRS[name][0], method=method, direction=direction, metric=metric)
        wanted = table(circuit, expected(name, 0, method, direction, metric))
        close(circuit.scores, wanted, f"{method}, {direction}", seen=False)


@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_a_function_of_the_user_is_differentiated(name):
    (one,) = model_of(name).tokenize(PAIRS[name][0])

    def mine(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, one.answer_ids[0]] ** 2 / 10 - logits[:, one.wrong_ids[0]]

    for method in METHODS:
        circuit = eap(name, PAIRS[name][0], method=method, metric=mine)
        edges = oracle.eap(
            model_of(name)._hf, one, method=method, steps=STEPS,
            metric=lambda logits: logits[one.answer_ids[0]] ** 2 / 10 - logits[one.wrong_ids[0]],
        )  # fmt: skip
        close(circuit.scores, table(circuit, edges), method)


# -- against finite differences


@lru_cache(maxsize=64)
def twin(family: str) -> Twin:
    """Path patching by hand on the family's model, in float64 where its experts know such a thing."""
    hf: Any = families.plain(family)
    wide = hf if family in EXPERTS else copy.deepcopy(hf).double()
    scale = float(getattr(hf.config, "residual_multiplier", 1.0))
    return Twin(
        lambda ids, edit: override.forward(wide, ids, edit), families.LAYERS, family in families.PARALLEL, scale
    )


def sites_of(sender: Any, receiver: Any, part: str) -> tuple[str, str, dict[str, int]]:
    """Returns the names by which an edge is patched."""
    kind = {"head": "z", "mlp": "mlp_out"}.get(sender.kind, sender.kind)
    cell = {"sender_layer": sender.layer, "sender_head": sender.head, "layer": receiver.layer, "head": receiver.head}
    return kind, part or receiver.kind, cell


@pytest.mark.parametrize("family", [one for one in (*families.FAST, *families.OVERRIDDEN) if one not in POST_NORM])
def test_every_family_equals_path_patching_of_a_small_change(family):
    """A hundredth of the sender's change, added to one receiver's own copy of the stream by hand."""
    model, random = families.loaded(family), np.random.default_rng(zlib.crc32(family.encode()))
    pair, direction = families.PAIRS[random.integers(len(families.PAIRS))], str(random.choice(DIRECTIONS))
    circuit = nbpatch.eap(model, pair, direction=direction)
    assert circuit.graph.parallel == ((family in families.PARALLEL),) * families.LAYERS
    (one,) = model.tokenize(pair)
    runs, slow = oracle.two(one, direction), twin(family)
    step, tolerance = 0.01, 5e-3 if family in EXPERTS else 1e-3
    strongest = np.nanmax(abs(circuit.scores))
    for part in ("q", "k", "v", "mlp", "logits"):
        columns = [i for i, (node, name) in enumerate(circuit.graph.inputs) if (name or node.kind) == part]
        there = [(s, i) for i in columns for s in np.flatnonzero(np.isfinite(circuit.scores[:, i]))]
        for s, i in [there[number] for number in random.choice(len(there), 2, replace=False)]:
            senders, receivers, cell = sites_of(circuit.graph.senders[s], *circuit.graph.inputs[i])
            change = slow.change((runs.base, runs.source), senders, cell)

            def slope(
                step: float, receivers: str = receivers, cell: Any = cell, change: torch.Tensor = change
            ) -> float:
                ends = [slow.received(runs.base, receivers, cell, way * step * change) for way in (1, -1)]
                found = [float(end[one.answer_ids[0]] - end[one.wrong_ids[0]]) for end in ends]
                return (found[0] - found[1]) / (2 * step)

            wanted = (4 * slope(step / 2) - slope(step)) / 3
            edge = f"{circuit.graph.senders[s]}->{circuit.graph.inputs[i]}"
            assert circuit.scores[s, i] == pytest.approx(wanted, abs=tolerance * max(strongest, 1e-2)), edge


# -- against TransformerLens


@pytest.mark.parametrize("number", [0, 1])
def test_edges_equal_transformer_lens(number, tiny):
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    one = ones_of("tiny")[number]
    result = attribution_patch(
        tiny.bridge, torch.tensor([one.clean_ids]), torch.tensor([one.corrupted_ids]),
        lambda logits: logits[0, -1, one.answer_ids[0]] - logits[0, -1, one.wrong_ids[0]],
        EdgeAttributionConfig(granularity="edge"),
    )  # fmt: skip
    circuit = nbpatch.eap(tiny, PAIRS["tiny"][number], by_position=True)
    names = {
        "embed": "embed", "logits": "logits", "attn_head_out": "a{0.layer}.{0.head}", "mlp_out": "m{0.layer}",
        "mlp_in": "m{0.layer}", **{f"{part}_input": "a{0.layer}.{0.head}." + part for part in "qkv"},
    }  # fmt: skip
    senders, inputs = named(circuit)
    theirs = np.full(circuit.scores.shape, np.nan)
    for (sender, reader), score in result.edge_scores.items():
        ends = [names[node.kind].format(node) for node in (sender, reader)]
        assert sender.position == reader.position
        theirs[senders.index(ends[0]), inputs.index(ends[1]), sender.position] = score
    close(circuit.scores, theirs)


# -- laws


def of_nodes(name: str, **options: Any) -> dict[str, float]:
    """Returns each sender's score as a node, the mean over pairs."""
    found = {}
    for sites, text in (("embed", "embed"), ("z over layer head", "a{}.{}"), ("mlp_out over layer", "m{}")):
        effect = nbpatch.attribute(model_of(name), PAIRS[name], sites, **options).effect().to_numpy()
        effect = effect.sum() if sites == "embed" else effect
        found |= {text.format(*place): float(score) for place, score in np.ndenumerate(effect)}
    return found


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_law_a_senders_edges_add_up_to_the_sender(name, direction):
    for method, of_node in (("eap", "atp"), ("eap-ig", "ig")):
        circuit = eap(name, method=method, direction=direction)
        wanted = of_nodes(name, method=of_node, direction=direction, steps=STEPS)
        sums = dict(zip(named(circuit)[0], np.nansum(circuit.scores, 1).tolist(), strict=True))
        assert sums == pytest.approx(wanted, abs=TOLERANCE, rel=TOLERANCE), method


@pytest.mark.parametrize("name", MODELS)
def test_law_gradients_at_both_ends_are_the_mean_of_both_directions(name):
    """What noising calls a loss is a gain the other way round."""
    there, back = (eap(name, direction=direction).scores for direction in DIRECTIONS)
    close(eap(name, method="clean-corrupted").scores, (there - back) / 2)
    close(eap(name, method="clean-corrupted", direction="noising").scores, (back - there) / 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_law_one_step_and_no_change_of_place(name, method):
    """One step of integrated gradients is the gradient at the source, where the other direction has its base."""
    noised = eap(name, direction="noising").scores
    if method == "eap-ig":
        close(eap(name, method=method, steps=1).scores, -noised)
    exchanged = [PromptPair(one.corrupted, one.clean, one.answer, one.wrong) for one in PAIRS[name]]
    close(eap(name, exchanged, method=method).scores, eap(name, method=method, direction="noising").scores)


@pytest.mark.parametrize("name", ["tiny", "qwen3"])
def test_law_activations_integrated_add_up_to_patching_the_group(name):
    """All edges from one group of senders; the mean over right ends is off by c / n, so 2 S(2n) − S(n) is nearer."""
    pair = PAIRS[name][0]
    circuits = [eap(name, pair, method="eap-ig-activations", steps=steps) for steps in (16, 32)]
    one, two = (np.nansum(circuit.scores, 1) for circuit in circuits)
    sums = dict(zip(named(circuits[0])[0], (2 * two - one).tolist(), strict=True))
    model = model_of(name)
    for site, start in (("attn_out", "a"), ("mlp_out", "m")):
        exact = nbpatch.patch(model, pair, site, "layer").effect()
        for layer in range(model.shape.n_layers):
            mine = [score for sender, score in sums.items() if sender.partition(".")[0] == f"{start}{layer}"]
            assert sum(mine) == pytest.approx(float(exact[layer]), abs=2e-2 * max(1.0, float(abs(exact).max())))
    gap = float(nbpatch.attribute(model, pair, "embed").gap().mean())
    assert sums["embed"] == pytest.approx(gap, abs=2e-2 * max(1.0, abs(gap)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_law_the_pairs_score_is_the_mean_and_positions_add_up(name, method):
    pairs = [*PAIRS[name], *(TRIOS[name][1:2] if name in TRIOS else [SHORT])]
    assert len({len(one.clean_ids) for one in model_of(name).tokenize(pairs)}) > 1
    together = eap(name, pairs, method=method).scores
    alone = np.stack([eap(name, pair, method=method).scores for pair in pairs])
    close(together, alone.mean(0))
    close(
        np.nansum(eap(name, method=method, by_position=True).scores, 2), np.nan_to_num(eap(name, method=method).scores)
    )


@pytest.mark.parametrize("method", METHODS)
def test_law_a_run_into_itself_scores_nothing(method):
    pair = PAIRS["tiny"][0]
    same = PromptPair(pair.clean, pair.clean, pair.answer, pair.wrong)
    assert np.nanmax(abs(eap("tiny", same, method=method).scores)) == 0


@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_law_before_the_prompts_part_there_is_nothing(name):
    circuit = eap(name, by_position=True)
    first = min(one.first_difference for one in ones_of(name))
    assert first > 0
    assert np.nanmax(abs(circuit.scores[:, :, :first])) <= 1e-7
    assert np.nanmax(abs(circuit.scores[:, -1, :-1])) == 0, "only the answer position is read"
    embedded = circuit.scores[0][:, first:]
    same = [
        pos for pos in range(first, circuit.scores.shape[2]) if all(pos not in one.differs for one in ones_of(name))
    ]
    assert np.nanmax(abs(embedded[:, np.array(same) - first])) <= 1e-7


def test_law_integrated_edges_from_the_embeddings_add_up_to_the_gap():
    pair = PAIRS["tiny"][0]
    sums = [np.nansum(eap("tiny", pair, method="eap-ig", steps=steps).scores[0]) for steps in (32, 64)]
    gap = float(nbpatch.attribute(model_of("tiny"), pair, "embed").gap().mean())
    assert 2 * sums[1] - sums[0] == pytest.approx(gap, rel=2e-2)


# -- what comes back


@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_edges_are_printed_by_their_ends(name):
    circuit = eap(name)
    assert len(circuit) == circuit.graph.n_edges
    (one,) = model_of(name).tokenize(PAIRS[name][0])
    printed = [str(edge) for edge in circuit.edges]
    edges = {f"{sender}->{reader}" for sender, reader in oracle.eap(model_of(name)._hf, one)}
    assert set(printed) == edges
    assert ("a0.1->a2.kv0.k" if name == "llama" else "a0.1->a2.1.k") in printed
    assert {"embed->a0.0.q", "m1->m2", "a2.0->logits", "embed->logits", "a1.0->m1"} <= set(printed)
    strength = [abs(edge.score) for edge in circuit.edges]
    assert strength == sorted(strength, reverse=True)


def test_positions_have_tokens_where_the_pairs_share_them():
    circuit = eap("tiny", PAIRS["tiny"][0], by_position=True)
    assert circuit.positions == len(ones_of("tiny")[0].clean_ids)
    assert circuit.tokens == () or len(circuit.tokens) == circuit.positions
    np.testing.assert_allclose(circuit.summed().scores, eap("tiny", PAIRS["tiny"][0]).scores, atol=TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
def test_what_made_it_is_kept(method, tmp_path):
    circuit = eap("tiny", method=method, direction="noising", metric="prob")
    made = str(dict(circuit.provenance))
    for word in (method, "noising", "prob", "tiny"):
        assert word in made
    again = type(circuit).read(circuit.save(tmp_path / "edges.json"))
    np.testing.assert_array_equal(again.scores, circuit.scores)


def test_the_model_is_left_as_it_was():
    hf: Any = model_of("llama")._hf
    before = {name: (weight.requires_grad, weight.detach().clone()) for name, weight in hf.named_parameters()}
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules())
    first = eap("llama", method="eap-ig-activations").scores
    with torch.no_grad():
        np.testing.assert_array_equal(eap("llama", method="eap-ig-activations").scores, first)
    for name, weight in hf.named_parameters():
        assert (weight.requires_grad, weight.grad) == (before[name][0], None)
        assert torch.equal(weight, before[name][1])
    assert hooks == sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules())


def test_the_public_name_takes_at_most_eight():
    parameters = inspect.signature(nbpatch.eap).parameters
    assert list(parameters) == ["model", "pairs", "method", "direction", "metric", "steps", "by_position"]
    assert parameters["steps"].default == 5


# -- what is refused


def refused(**asked: Any) -> Any:
    options = {"model": model_of("tiny"), "pairs": PAIRS["tiny"], **asked}
    with pytest.raises(NbpatchError) as caught:
        nbpatch.eap(options.pop("model"), options.pop("pairs"), **options)
    return caught.value


ALIGNED = PromptPair(
    " Mary and John and Paul gave a ball", " John and Paul gave a drink", " to", " the",
    align={0: 0, 3: 1, 4: 2, 5: 3, 6: 4, 7: 5, 8: 6},
)  # fmt: skip


def cases() -> Iterator[tuple[dict[str, Any], Any, tuple[str, ...]]]:
    yield {"method": "eap-gi"}, PlanError, ("method", "eap-ig")
    yield {"direction": "up"}, PlanError, ("direction", "denoising")
    yield {"direction": "both"}, PlanError, ("direction", "both")
    yield {"metric": "logit"}, MetricError, ("logit_diff",)
    yield {"steps": 0, "method": "eap-ig"}, PlanError, ("steps", "0")
    yield {"metric": "kl", "direction": "noising"}, (MetricError, PlanError), ("kl", "zero", "clean")
    yield {"model": families.loaded("llama"), "pairs": ALIGNED}, PlanError, ("equal length", "9", "7")
    yield {"pairs": TRIOS["tiny"], "by_position": True}, PlanError, ("length",)


@pytest.mark.parametrize(("asked", "kind", "words"), list(cases()), ids=lambda one: str(one)[:40])
def test_what_makes_no_sense_is_refused_with_the_way_out(asked, kind, words):
    error = refused(**asked)
    assert isinstance(error, kind), repr(error)
    for word in words:
        assert word in str(error), str(error)
    assert "\n  try " in str(error), "an error says what to type next"


@pytest.mark.parametrize("family", POST_NORM)
def test_heads_behind_a_common_norm_are_refused(family):
    error = refused(model=families.loaded(family), pairs=families.PAIRS[0])
    assert isinstance(error, SiteError)
    assert "a norm or a scale of all heads together stands behind their projection" in str(error)
    assert "\n  try " in str(error)
