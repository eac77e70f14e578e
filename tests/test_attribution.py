"""Attribution patching against its slow twin, against finite differences, against TransformerLens, and by its laws."""

import copy
import itertools
import zlib
from functools import lru_cache
from typing import Any

import families
import numpy as np
import oracle_gradients as oracle
import override
import pytest
import torch
from oracle_ablation import TRIOS

import nbpatch
from nbpatch import PromptPair
from nbpatch.model import Model
from nbpatch.plan import MEASURED

TOLERANCE = 1e-4
METHODS = ("atp", "atp*", "ig")
DIRECTIONS = ("denoising", "noising")
STEPS = 3

MODELS = ("tiny", "llama", "qwen3")
# Of the embedded model two lengths; of the random ones, in which all is twelve or thirteen tokens long, two places.
PAIRS = {"tiny": TRIOS["tiny"][:2], **dict.fromkeys(("llama", "qwen3"), families.PAIRS[:2])}

SWEEPS = [
    ("embed", "pos"), ("resid_pre", "layer pos"), ("resid_mid", "pos"), ("resid_post", "layer"),
    ("attn_out", "layer pos"), ("mlp_out", "layer pos"), ("z", "layer head"), ("z", "layer head pos"),
    ("z", "head"), ("q", "layer head pos"), ("q", "layer pos"), ("k", "layer head pos"), ("k", "layer head"),
    ("k", "layer pos"), ("v", "layer head pos"), ("pattern", "layer head"), ("pattern", "layer head dest src"),
    ("head_out", "layer head pos"), ("mlp_post", "layer neuron"), ("mlp_post", "layer neuron pos"),
]  # fmt: skip


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


def expected(name: str, number: int, component: str, over: str, **options: Any) -> np.ndarray:
    return oracle.attribute(model_of(name)._hf, ones_of(name)[number], component, over, steps=STEPS, **options)


def attribute(name: str, sites: Any, **options: Any) -> Any:
    return nbpatch.attribute(model_of(name), PAIRS[name], sites, **{"steps": STEPS, **options})


def scores(result: Any, over: str, metric: str | None = None) -> np.ndarray:
    """Returns each pair's scores [*over pair]."""
    return result.effect(metric, per_pair=True).transpose(..., *over.split(), "pair").to_numpy()


def close(found: np.ndarray, wanted: np.ndarray, message: str = "", *, seen: bool = True) -> None:
    """Compares scores, by themselves and with the strongest one, and looks whether there was anything to compare."""
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=TOLERANCE, err_msg=message)
    strongest = np.nanmax(abs(wanted))
    # What float32 leaves of a saturated probability is no better than 1e-6.
    assert np.nanmax(abs(found - wanted)) <= TOLERANCE * strongest + 1e-6, message
    assert not seen or strongest > 1e-4, f"{message}: no score to compare"


def padded(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns values with NaN at places that are there in a longer pair only."""
    return np.pad(values, [(0, to - now) for now, to in zip(values.shape, shape, strict=True)], constant_values=np.nan)


# -- against the slow twin


# Every sweep by every method on one model; on the others each sweep by one of them.
CASES = [
    (name, component, over, method)
    for number, (component, over) in enumerate(SWEEPS)
    for place, name in enumerate(MODELS)
    for which, method in enumerate(METHODS)
    if name == "tiny" or (number + place) % len(METHODS) == which
]


@pytest.mark.parametrize(("name", "component", "over", "method"), CASES, ids=lambda one: str(one).replace(" ", "-"))
def test_scores_equal_the_hand_written_gradients(name, component, over, method):
    result = attribute(name, f"{component} over {over}", method=method, direction="both")
    found = scores(result, over)
    for at, direction in enumerate(DIRECTIONS):
        for number in range(len(PAIRS[name])):
            wanted = expected(name, number, component, over, method=method, direction=direction)
            close(found[at, ..., number], padded(wanted, found.shape[1:-1]), f"{direction}, pair {number}")


@pytest.mark.parametrize("metric", ["log_prob", "prob", "kl"])
@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_other_metrics_equal_the_hand_written_gradients(name, metric):
    ways = [(method, way) for method in METHODS for way in DIRECTIONS if (metric, way) != ("kl", "noising")]
    for method, direction in ways:
        result = attribute(name, "z over layer head pos", method=method, direction=direction, metric=metric)
        found = scores(result, "layer head pos")
        for number in range(len(PAIRS[name])):
            wanted = expected(name, number, "z", "layer head pos", method=method, direction=direction, metric=metric)
            close(found[..., number], padded(wanted, found.shape[:-1]), f"{method}, {direction}", seen=False)


def test_a_kl_metric_can_be_integrated_from_the_clean_run():
    """At its own point the gradient is zero, on the way from there it is not."""
    result = attribute("llama", "z", method="ig", metric="kl", direction="noising")
    close(
        scores(result, "layer head")[..., 0],
        expected("llama", 0, "z", "layer head", method="ig", metric="kl", direction="noising"),
    )


ALIGNED = PromptPair(
    " Mary and John and Paul gave a ball", " John and Paul gave a drink", " to", " the",
    align={0: 0, 3: 1, 4: 2, 5: 3, 6: 4, 7: 5, 8: 6},
)  # fmt: skip


@pytest.mark.parametrize("method", ["atp", "atp*"])
@pytest.mark.parametrize(
    ("component", "over"),
    [
        ("resid_post", "layer pos"),
        ("z", "layer head"),
        ("q", "layer head pos"),
        ("k", "layer head pos"),
        ("k", "layer"),
    ],
)
def test_aligned_prompts_of_unequal_length_equal_the_hand_written_gradients(component, over, method):
    model = families.loaded("llama")
    (one,) = model.tokenize(ALIGNED)
    assert len(one.clean_ids) != len(one.corrupted_ids)
    result = nbpatch.attribute(model, ALIGNED, f"{component} over {over}", method=method, direction="both")
    for at, direction in enumerate(DIRECTIONS):
        wanted = oracle.attribute(model._hf, one, component, over, method=method, direction=direction)
        close(scores(result, over)[at, ..., 0], wanted, direction)


# -- the twin itself


@pytest.mark.parametrize("name", MODELS)
def test_the_twins_logits_are_those_of_the_model(name):
    hf: Any = model_of(name)._hf
    for one in ones_of(name):
        for ids in (one.clean_ids, one.corrupted_ids):
            with torch.no_grad():
                theirs = hf(torch.tensor([ids])).logits[0, -1]
            mine = oracle.forward(oracle.net_of(hf), ids)
            np.testing.assert_allclose(mine, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_twins_gradients_are_slopes(name):
    net, one = oracle.net_of(model_of(name)._hf), ones_of(name)[0]
    metric, ids, step = oracle.metric_of(net, one), one.corrupted_ids, 1e-5
    found, held = oracle.gradients(net, ids, metric), oracle.values(net, ids)
    torch.manual_seed(0)
    for place in found:
        change = torch.randn_like(held[place])
        change = change.tril() if place[0] == "pattern" else change
        ends = [metric(oracle.forward(net, ids, oracle.towards(place, change, way * step))) for way in (1, -1)]
        slope = float(ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(float((change * found[place]).sum()), rel=1e-4, abs=1e-5), place


@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_a_gradient_the_twin_drops_is_that_of_a_run_in_which_those_outputs_are_held(name):
    net, one = oracle.net_of(model_of(name)._hf), ones_of(name)[0]
    metric, ids, step = oracle.metric_of(net, one), one.corrupted_ids, 1e-5
    plain = oracle.values(net, ids)
    dropped = (("attn_out", 1), ("mlp_out", 1))
    found = oracle.gradients(net, ids, metric, dropped=dropped)
    torch.manual_seed(0)
    for place in (("resid_pre", 0), ("z", 0), ("z", 1), ("resid_mid", 1), ("mlp_post", 1), ("q", 2)):
        change = torch.randn_like(plain[place])

        def held(way: int) -> Any:
            def edit(component: str, layer: int, value: torch.Tensor) -> torch.Tensor:
                if (component, layer) in dropped:
                    return plain[component, layer]
                return value + way * step * change if (component, layer) == place else value  # noqa: B023

            return edit

        ends = [metric(oracle.forward(net, ids, held(way))) for way in (1, -1)]
        slope = float(ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(float((change * found[place]).sum()), rel=1e-4, abs=1e-5), place


@pytest.mark.parametrize(("name", "direction"), [("tiny", "noising"), ("llama", "denoising")])
def test_the_twins_repaired_query_is_what_its_head_would_write(name, direction):
    """A head is linear in its pattern: the repaired score is that of z made with the patched query or keys."""
    net, one = oracle.net_of(model_of(name)._hf), ones_of(name)[0]
    runs, metric = oracle.two(one, direction), oracle.metric_of(net, one)
    base, source = oracle.values(net, runs.base), oracle.values(net, runs.source)
    found = oracle.gradients(net, runs.base, metric)
    for component in ("q", "k"):
        grid = oracle._cells(net, runs, component, ["layer", "head", "pos"], found, fixed=True)
        for layer, head, pos in itertools.product(*map(range, grid.shape)):
            changed = base[component, layer].clone()
            changed[pos, head] = source[component, layer][pos, head]
            z = oracle.values(net, runs.base, oracle.towards((component, layer), changed - base[component, layer], 1.0))
            change = ((z["z", layer] - base["z", layer]) * found["z", layer]).sum()
            assert grid[layer, head, pos] == pytest.approx(float(change), abs=1e-9)
            oracle.values.cache_clear()


# -- against finite differences


@lru_cache(maxsize=64)
def wide(family: str) -> Any:
    """Returns a family's model in float64; experts know no such thing."""
    hf: Any = families.plain(family)
    return hf if family in EXPERTS else copy.deepcopy(hf).double()


EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
PLACES = {
    **dict.fromkeys(override.RESIDUAL, "layer pos"),
    **dict.fromkeys(("z", "q", "k", "v"), "layer head pos"),
    "pattern": "layer head dest",
}


def slope(family: str, one: Any, direction: str, component: str, cell: dict[str, int], step: float) -> float:
    """Returns (m(a step towards the source) − m(a step away)) / two steps, patched literally."""
    hf, runs = wide(family), oracle.two(one, direction)
    values = override.activations(hf, runs.source)
    order = override.axes_of(component)
    where = tuple(cell.get(axis, slice(None)) for axis in order)

    def measured(share: float) -> float:
        def edit(name: str, layer: int, value: torch.Tensor) -> torch.Tensor:
            if (name, layer) != (component, cell["layer"]):
                return value
            changed = value.clone()
            changed[where] += share * (values[name, layer][where] - value[where])
            return changed

        logits = override.forward(hf, runs.base, edit)
        return float(logits[one.answer_ids[0]] - logits[one.wrong_ids[0]])

    return (measured(step) - measured(-step)) / (2 * step)


@pytest.mark.parametrize("family", [*families.FAST, *families.OVERRIDDEN])
def test_every_family_equals_finite_differences(family):
    """Patching a hundredth of the change literally, in the model as transformers runs it."""
    model, random = families.loaded(family), np.random.default_rng(zlib.crc32(family.encode()))
    pair = families.PAIRS[random.integers(len(families.PAIRS))]
    (one,) = model.tokenize(pair)
    step, tolerance = 0.01, 5e-3 if family in EXPERTS else 1e-3
    for component in sorted({*override.components(families.plain(family))} & {*PLACES}):
        direction = str(random.choice(DIRECTIONS))
        result = nbpatch.attribute(model, pair, f"{component} over {PLACES[component]}", direction=direction)
        found = result.effect()
        strongest = float(abs(found).max())
        there = np.argwhere((result.data["state"].isel(pair=0) == MEASURED).to_numpy())
        for place in random.choice(there, min(2, len(there)), replace=False):
            cell = dict(zip(PLACES[component].split(), map(int, place), strict=True))
            # Two steps, the second half as long: what is left is of the fourth order.
            long, short = (slope(family, one, direction, component, cell, size) for size in (step, step / 2))
            wanted = (4 * short - long) / 3
            assert float(found[tuple(place)]) == pytest.approx(wanted, abs=tolerance * max(strongest, 1e-2)), cell


def test_the_smaller_the_change_the_nearer_the_exact_effect():
    """Shares of the way to the source: exact effects, divided by the share, come to the score."""
    net, one = oracle.net_of(model_of("tiny")._hf), ones_of("tiny")[0]
    runs, metric = oracle.two(one, "denoising"), oracle.metric_of(net, one)
    base, source = oracle.values(net, runs.base), oracle.values(net, runs.source)
    start = float(metric(oracle.forward(net, runs.base)))
    score = attribute("tiny", "mlp_out over layer").effect(per_pair=True).isel(pair=0)
    for layer in range(4):
        place, off = ("mlp_out", layer), []
        for share in (1e-2, 1e-3, 1e-4):
            change = oracle.towards(place, source[place] - base[place], share)
            effect = (float(metric(oracle.forward(net, runs.base, change))) - start) / share
            off.append(abs(effect - float(score[layer])))
        assert off[2] < max(1e-2 * abs(float(score[layer])), TOLERANCE)
        assert off[2] < off[0]


# -- against TransformerLens


def test_nodes_equal_transformer_lens(tiny):
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    for number, one in enumerate(ones_of("tiny")):
        answer, wrong = one.answer_ids[0], one.wrong_ids[0]
        theirs = attribution_patch(
            tiny.bridge, torch.tensor([one.clean_ids]), torch.tensor([one.corrupted_ids]),
            lambda logits: logits[0, -1, answer] - logits[0, -1, wrong],  # noqa: B023
        ).node_scores  # fmt: skip
        pair = PAIRS["tiny"][number]
        for kind, site, over in (
            ("attn_head_out", "z", ("layer", "head", "position")),
            ("mlp_out", "mlp_out", ("layer", "position")),
            ("embed", "embed", ("position",)),
        ):
            axes = [axis.replace("position", "pos") for axis in over]
            ours = nbpatch.attribute(tiny, pair, f"{site} over {' '.join(axes)}").effect().to_numpy()
            table = np.full(ours.shape, np.nan)
            for node, score in theirs.items():
                if node.kind == kind:
                    table[tuple(getattr(node, axis) for axis in over)] = score
            close(ours, table, kind)
