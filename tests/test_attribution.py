"""Attribution patching against its slow twin, against finite differences, against TransformerLens, and by its laws."""

import copy
import inspect
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import families
import numpy as np
import oracle_gradients as oracle
import override
import pytest
import torch
import xarray as xr
from oracle_ablation import TRIOS

import nbpatch
from nbpatch import PromptPair
from nbpatch.errors import MetricError, NbpatchError, PlanError, ResultError, SiteError
from nbpatch.model import Model
from nbpatch.plan import EXACT, MEASURED, NO_POSITION
from nbpatch.result import read

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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("component", "over"), SWEEPS, ids=lambda one: str(one).replace(" ", "-"))
@pytest.mark.parametrize("name", MODELS)
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


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", MODELS)
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


# -- laws


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("site", ["embed over pos", "resid_pre over layer pos"])
@pytest.mark.parametrize("name", ["tiny", "qwen3"])
def test_law_integrated_gradients_of_the_input_add_up_to_the_gap(name, site, direction):
    """The mean over right ends of n parts is off by c / n and smaller: 2 S(2n) − S(n) is nearer still."""
    sums = []
    for steps in (64, 128):
        effect = attribute(name, site, method="ig", steps=steps, direction=direction).effect(per_pair=True)
        sums.append(effect.isel(layer=0).sum("pos") if "layer" in effect.dims else effect.sum("pos"))
    result = attribute(name, site, direction=direction)
    gap = result.gap() if direction == "denoising" else -result.gap()
    np.testing.assert_allclose(2 * sums[1] - sums[0], gap, atol=2e-2 * float(abs(gap).max()))
    assert (abs(sums[1] - gap) <= np.maximum(abs(sums[0] - gap), 1e-2 * abs(gap))).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sites", ["z", "k over layer head pos", "mlp_out"])
@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_law_noising_the_pair_is_denoising_the_exchanged_pair(name, sites, method):
    exchanged = [PromptPair(one.corrupted, one.clean, one.answer, one.wrong) for one in PAIRS[name]]
    noised = attribute(name, sites, method=method, direction="noising").effect(per_pair=True)
    denoised = nbpatch.attribute(model_of(name), exchanged, sites, method=method, steps=STEPS).effect(per_pair=True)
    close(noised.to_numpy(), denoised.to_numpy())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sites", ["z over layer head pos", "q over layer head pos", "resid_post", "mlp_post"])
@pytest.mark.parametrize("name", MODELS)
def test_law_pairs_of_all_lengths_together_are_what_each_is_alone(name, sites, method):
    pairs = [*PAIRS[name], *(TRIOS[name][2:] if name in TRIOS else [SHORT])]
    lengths = {len(one.clean_ids) for one in model_of(name).tokenize(pairs)}
    assert len(lengths) > 1
    together = nbpatch.attribute(model_of(name), pairs, sites, method=method, steps=STEPS, direction="both")
    over = " ".join(together.over)
    for number, pair in enumerate(pairs):
        alone = nbpatch.attribute(model_of(name), pair, sites, method=method, steps=STEPS, direction="both")
        own = scores(together, over)[..., number]
        close(own, padded(scores(alone, over)[..., 0], own.shape), f"pair {number}")
        states = together.data["state"].isel(pair=number)
        if "pos" in together.over:
            length = len(model_of(name).tokenize(pair)[0].clean_ids)
            assert (states.isel(pos=slice(length, None)) == NO_POSITION).all()
            assert (states.isel(pos=slice(length)) != NO_POSITION).all()


@pytest.mark.parametrize("method", ["atp", "ig"])
@pytest.mark.parametrize("name", MODELS)
def test_law_scores_of_parts_add_up(name, method):
    def effect(sites: str) -> xr.DataArray:
        return attribute(name, sites, method=method).effect(per_pair=True)

    close(effect("z over layer head pos").sum("pos").to_numpy(), effect("z over layer head").to_numpy())
    close(effect("z over layer head").sum("head").to_numpy(), effect("attn_out over layer").to_numpy())
    close(effect("z over layer head pos").to_numpy(), effect("head_out over layer head pos").to_numpy())
    close(effect("mlp_post over layer neuron").sum("neuron").to_numpy(), effect("mlp_post over layer").to_numpy())
    close(effect("embed").to_numpy(), effect("resid_pre").isel(layer=0).to_numpy())
    later, earlier = effect("resid_pre").isel(layer=slice(1, None)), effect("resid_post").isel(layer=slice(-1))
    close(later.to_numpy(), earlier.to_numpy())


@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_law_what_patching_leaves_alone_scores_exactly_nothing(name):
    for sites in ("resid_pre", "z over layer head pos", "k over layer head pos", "pattern over layer head dest src"):
        exact, score = nbpatch.patch(model_of(name), PAIRS[name], *sites.split(" over ")), attribute(name, sites)
        states = exact.data["state"].to_numpy()
        np.testing.assert_array_equal(score.data["state"].to_numpy(), states)
        effect = scores(score, " ".join(score.over))
        assert (effect[states == EXACT] == 0).all()
        assert (states == EXACT).any()
        assert np.isnan(effect[states == NO_POSITION]).all()
        assert np.isfinite(effect[states != NO_POSITION]).all()
        assert score.data["logit_diff"].dims == exact.data["logit_diff"].dims
        for axis in score.over:
            np.testing.assert_array_equal(score.data[axis], exact.data[axis])
        xr.testing.assert_allclose(score.baselines, exact.baselines, atol=TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
def test_law_a_run_into_itself_scores_nothing(method):
    same = PromptPair(PAIRS["tiny"][0].clean, PAIRS["tiny"][0].clean, " Paris", " Seattle")
    for sites in ("z", "q", "mlp_out", "embed"):
        result = nbpatch.attribute(model_of("tiny"), same, sites, method=method, direction="both")
        assert float(abs(result.effect()).max()) == 0


@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_law_dropping_changes_the_size_of_a_score_and_not_its_sign(name):
    plain, dropped = (attribute(name, "z over layer head pos", method=method).effect() for method in ("atp", "atp*"))
    assert abs(plain - dropped).max() > 1e-3
    one = nbpatch.attribute(model_of(name), PAIRS[name][0], "z", method="atp*").effect().to_numpy()
    np.testing.assert_array_equal(
        np.sign(one), np.sign(nbpatch.attribute(model_of(name), PAIRS[name][0], "z").effect())
    )


@pytest.mark.parametrize("sites", ["mlp_out over layer pos", "attn_out over layer pos", "z over layer head pos"])
@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_law_of_the_last_layer_dropping_another_changes_nothing(name, sites):
    """All layers but its own are dropped without effect, its own leaves nothing: L − 1 times the score, over L − 1."""
    plain, dropped = (
        attribute(name, sites, method=method).effect(per_pair=True).isel(layer=-1) for method in ("atp", "atp*")
    )
    close(dropped.to_numpy(), plain.to_numpy())


def test_law_more_steps_come_to_the_same_number():
    few, many, most = (attribute("tiny", "z", method="ig", steps=steps).effect() for steps in (4, 32, 64))
    assert float(abs(most - many).max()) < float(abs(many - few).max())


# -- several at once, and what comes back


@pytest.mark.parametrize("method", METHODS)
def test_several_components_directions_and_metrics_are_what_they_are_alone(method):
    options: dict[str, Any] = {"method": method, "direction": "both", "metric": ["logit_diff", "prob"]}
    for together in ("q k v", ["resid_pre", "mlp_out"]):
        result = attribute("llama", together, **options)
        assert result.data["logit_diff"].dims[:2] == ("component", "direction")
        names = together.split() if isinstance(together, str) else together
        assert result.components == tuple(names)
        for component in names:
            over = " ".join(result.over)
            for metric in ("logit_diff", "prob"):
                alone = attribute("llama", component, method=method, direction="both", metric=metric)
                close(scores(result.sel(component), over, metric), scores(alone, over), f"{component}, {metric}")
                for at, direction in enumerate(DIRECTIONS):
                    single = attribute("llama", component, method=method, direction=direction, metric=metric)
                    close(scores(alone, over)[at], scores(single, over), direction)


def test_components_with_axes_named_are_what_they_are_alone():
    result = attribute("tiny", "q k v over layer head pos")
    assert result.data["logit_diff"].dims == ("component", "layer", "head", "pos", "pair")
    for component in "qkv":
        alone = attribute("tiny", f"{component} over layer head pos")
        close(scores(result.sel(component), "layer head pos"), scores(alone, "layer head pos"))


def test_heads_of_keys_and_values_carry_their_labels():
    result = attribute("llama", "k over layer head pos")
    assert result.data["head"].to_numpy().tolist() == ["kv0", "kv1"]


@pytest.mark.parametrize("method", METHODS)
def test_a_function_of_the_user_is_differentiated(method):
    ids = [(one.answer_ids[0], one.wrong_ids[0]) for one in ones_of("tiny")]

    def mine(logits: torch.Tensor) -> torch.Tensor:
        assert len(logits) == len(ids)
        return torch.stack([row[answer] - row[wrong] for row, (answer, wrong) in zip(logits, ids, strict=True)])

    ours = attribute("tiny", "z over layer head pos", method=method, metric=[mine, "logit_diff"], direction="both")
    close(scores(ours, "layer head pos", "mine"), scores(ours, "layer head pos", "logit_diff"))


def test_the_scores_read_like_an_exact_sweep(tmp_path):
    result, exact = attribute("tiny", "z", direction="both"), None
    exact = nbpatch.patch(model_of("tiny"), PAIRS["tiny"], "z", direction="both")
    np.testing.assert_allclose(result.gap(), exact.gap(), atol=TOLERANCE)
    share, recovered = result.share(), result.recovered()
    np.testing.assert_allclose(recovered.sel(direction="denoising"), share.sel(direction="denoising"), atol=1e-9)
    np.testing.assert_allclose(recovered.sel(direction="noising"), 1 + share.sel(direction="noising"), atol=1e-9)
    assert list(result.top(3)["effect"].abs()) == sorted(abs(result.effect().to_numpy().ravel()))[:-4:-1]
    again = read(result.save(tmp_path / "scores.nc"))
    np.testing.assert_array_equal(again.data["logit_diff"], result.data["logit_diff"])
    assert "ttribution" in result.card()


@pytest.mark.parametrize("method", METHODS)
def test_what_made_it_is_kept(method):
    made = attribute("tiny", "z", method=method).provenance
    assert made["method"] == "attribute"
    assert made["variant"] == method
    assert (made["component"], made["direction"]) == ("z", "denoising")


def test_the_model_is_left_as_it_was():
    hf: Any = model_of("tiny")._hf
    before = {name: (weight.requires_grad, weight.detach().clone()) for name, weight in hf.named_parameters()}
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules())
    attribute("tiny", "q k v", method="atp*")
    with torch.no_grad():
        no_graph = attribute("tiny", "z").effect()
    close(no_graph.to_numpy(), attribute("tiny", "z").effect().to_numpy())
    for name, weight in hf.named_parameters():
        assert (weight.requires_grad, weight.grad) == (before[name][0], None)
        assert torch.equal(weight, before[name][1])
    assert hooks == sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules())


# -- verified exactly


@pytest.mark.parametrize("sites", ["z", "z over layer head pos", "resid_pre", "k over layer head"])
@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_verified_cells_are_those_of_a_patch(name, sites):
    for direction in DIRECTIONS:
        result = attribute(name, sites, verify=4, direction=direction)
        patched = nbpatch.patch(model_of(name), PAIRS[name], *sites.split(" over "), direction=direction)
        exact = result.data.coords["exact_logit_diff"]
        assert exact.dims == result.data["logit_diff"].dims
        ran = exact.notnull().any("pair").to_numpy()
        strength = abs(result.effect()).to_numpy()
        assert ran.sum() == 4
        assert strength[ran].min() >= np.nanmax(strength[~ran])
        wanted = patched.data["logit_diff"].where(xr.DataArray(ran, dims=exact.dims[:-1]))
        np.testing.assert_allclose(exact, wanted, atol=TOLERANCE)
        assert result.metrics == ("logit_diff",)


def test_verified_cells_of_several_metrics_are_the_strongest_of_the_first():
    result = attribute("tiny", "z", verify=3, metric=["prob", "logit_diff"])
    ran = result.data.coords["exact_prob"].notnull().any("pair").to_numpy()
    np.testing.assert_array_equal(result.data.coords["exact_logit_diff"].notnull().any("pair"), ran)
    strength = abs(result.effect("prob")).to_numpy()
    assert strength[ran].min() >= strength[~ran].max()
    patched = nbpatch.patch(model_of("tiny"), PAIRS["tiny"], "z", metric=["prob", "logit_diff"])
    for metric in ("prob", "logit_diff"):
        exact = result.data.coords[f"exact_{metric}"].to_numpy()
        np.testing.assert_allclose(exact[ran], patched.data[metric].to_numpy()[ran], atol=TOLERANCE)


# -- estimate against exact


def by_hand(estimate: np.ndarray, exact: np.ndarray) -> tuple[Any, Any]:
    """Returns an attribution and a sweep of one pair [layer head] whose effects are what one writes down."""
    pair = PAIRS["tiny"][0]
    found = []
    for result, effect in (
        (nbpatch.attribute(model_of("tiny"), pair, "z"), estimate),
        (nbpatch.patch(model_of("tiny"), pair, "z"), exact),
    ):
        base = result.baselines["corrupted"].sel(metric="logit_diff", drop=True)
        values = xr.DataArray(effect[..., None], dims=("layer", "head", "pair")) + base
        data = result.data.assign(logit_diff=result.data["logit_diff"].copy(data=values.to_numpy()))
        found.append(replace(result, data=data))
    return found[0], found[1]


def r_squared(estimate: np.ndarray, exact: np.ndarray) -> float:
    return 1 - ((exact - estimate) ** 2).sum() / ((exact - exact.mean()) ** 2).sum()


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the correlation of the places of numbers none of which are equal."""
    return float(np.corrcoef(one.ravel().argsort().argsort(), other.ravel().argsort().argsort())[0, 1])


def test_agreement_of_estimates_is_as_defined():
    random = np.random.default_rng(0)
    exact = random.normal(size=(4, 4))
    for estimate in (
        exact,
        exact + 0.3 * random.normal(size=(4, 4)),
        -exact,
        2 * exact + 1,
        random.normal(size=(4, 4)),
    ):
        table = by_hand(estimate, exact)[0].against(by_hand(estimate, exact)[1], k=5)
        np.testing.assert_allclose(table["estimate"], estimate, atol=1e-6)
        np.testing.assert_allclose(table["exact"], exact, atol=1e-6)
        assert table["estimate"].dims == table["exact"].dims == ("layer", "head")
        assert table.attrs["r2"] == pytest.approx(r_squared(estimate, exact), abs=1e-6)
        assert table.attrs["rank_correlation"] == pytest.approx(spearman(estimate, exact), abs=1e-6)
        strongest = [set(np.argsort(-abs(one).ravel())[:5].tolist()) for one in (estimate, exact)]
        assert table.attrs["top_recall"] == pytest.approx(len(strongest[0] & strongest[1]) / 5)


def test_agreement_counted_on_fingers():
    exact, estimate = np.zeros((4, 4)), np.zeros((4, 4))
    exact[0], estimate[0] = [4, -3, 2, 1], [4, 3, 0, 1]
    table = by_hand(estimate, exact)[0].against(by_hand(estimate, exact)[1], k=3)
    # Mean of the exact effects 4 / 16; SS_tot = 30 − 16 / 16 = 29; SS_res = 36 + 4 = 40.
    assert table.attrs["r2"] == pytest.approx(1 - 40 / 29, abs=1e-5)
    # Of 4, −3 and 2, the estimate has 4 and 3 among its strongest three: the third is 1.
    assert table.attrs["top_recall"] == pytest.approx(2 / 3)


def test_agreement_is_of_means_over_pairs_and_by_metric():
    metrics = ["logit_diff", "prob"]
    result = attribute("tiny", "z over layer head pos", metric=metrics)
    exact = nbpatch.patch(model_of("tiny"), PAIRS["tiny"], "z", "layer head pos", metric=metrics)
    for metric in (None, *metrics):
        table = result.against(exact, metric, k=6)
        estimated, true = result.effect(metric).to_numpy(), exact.effect(metric).to_numpy()
        np.testing.assert_allclose(table["estimate"], estimated, atol=1e-9)
        np.testing.assert_allclose(table["exact"], true, atol=1e-9)
        assert table.attrs["r2"] == pytest.approx(r_squared(estimated, true), rel=1e-6)
        assert -1 <= table.attrs["rank_correlation"] <= 1
    assert result.against(exact).attrs["r2"] == result.against(exact, "logit_diff").attrs["r2"]


def test_agreement_on_the_verified_cells():
    result = attribute("tiny", "z over layer head pos", verify=7)
    table, exact = result.against(), nbpatch.patch(model_of("tiny"), PAIRS["tiny"], "z", "layer head pos").effect()
    ran = table["exact"].notnull()
    assert int(ran.sum()) == 7
    np.testing.assert_allclose(table["exact"].to_numpy()[ran], exact.to_numpy()[ran], atol=TOLERANCE)
    estimated = result.effect().to_numpy()[ran.to_numpy()]
    assert table.attrs["r2"] == pytest.approx(r_squared(estimated, exact.to_numpy()[ran.to_numpy()]), abs=1e-3)


def test_the_public_name_takes_at_most_eight():
    parameters = inspect.signature(nbpatch.attribute).parameters
    assert list(parameters) == ["model", "pairs", "sites", "method", "direction", "metric", "steps", "verify"]
    assert parameters["sites"].default == "z"


# -- what is refused


def refused(**asked: Any) -> Any:
    options = {"model": model_of("tiny"), "pairs": PAIRS["tiny"], **asked}
    with pytest.raises(NbpatchError) as caught:
        nbpatch.attribute(options.pop("model"), options.pop("pairs"), options.pop("sites", "z"), **options)
    return caught.value


AT_ITS_TOP = (
    "the gradient of −KL from the clean run is zero at the clean run: it is at its maximum there.\n"
    "  in     metric\n"
    '  seen   metric="kl" and noising\n'
    '  try    direction="denoising", metric="logit_diff", or gradients between the runs: method="ig"'
)


def cases() -> Iterator[tuple[dict[str, Any], type[NbpatchError], str]]:
    yield {"method": "atp**"}, PlanError, "no method 'atp**'.\n  in     method\n  try    did you mean \"atp*\"?"
    yield (
        {"direction": "up"},
        PlanError,
        "no direction 'up'.\n  in     direction\n  try    one of: denoising, noising, both",
    )
    yield {"metric": "logit"}, MetricError, "no metric 'logit'.\n  in     metric\n  try    did you mean \"logit_diff\"?"
    yield (
        {"steps": 0, "method": "ig"},
        PlanError,
        "steps is a number from 1.\n  in     steps\n  seen   0\n  try    steps=10",
    )
    yield {"verify": -1}, PlanError, "verify is a number from 0.\n  in     verify\n  seen   -1\n  try    verify=10"
    yield {"sites": "zz"}, SiteError, "no component 'zz'.\n  in     component\n  try    did you mean \"z\"?"
    yield (
        {"sites": "scores"},
        SiteError,
        "scores cannot be estimated in tiny.\n  in     sites\n  seen   scores are seen by hooks only\n"
        "  try    nbp.patch runs it exactly",
    )
    yield (
        {"sites": "z over layer neuron"},
        SiteError,
        "z has no axis 'neuron'.\n  in     over='layer neuron'\n  seen   axes of z: layer head pos\n"
        "  try    one of: layer, head, pos",
    )
    yield (
        {"sites": "z resid_pre"},
        SiteError,
        "components of one sweep need the same axes.\n  in     sites='z resid_pre'\n"
        '  seen   z: layer head; resid_pre: layer pos\n  try    "z mlp_out over layer pos"',
    )
    yield {"sites": ""}, SiteError, "no component named.\n  in     sites=''\n  try    \"z mlp_out over layer pos\""
    yield {"metric": "kl", "direction": "noising"}, MetricError, AT_ITS_TOP
    yield {"metric": "kl", "direction": "both", "method": "atp*"}, MetricError, AT_ITS_TOP
    yield (
        {"metric": "rank"},
        MetricError,
        "rank has no gradient: it does not change with small changes of the logits.\n  in     metric\n"
        '  try    metric="logit_diff"',
    )
    yield (
        {"model": families.loaded("llama"), "pairs": ALIGNED, "method": "ig"},
        PlanError,
        "ig needs prompts of equal length: both runs meet position by position.\n  in     pair 1 of 1\n"
        '  seen   9 and 7 tokens\n  try    method="atp"',
    )


@pytest.mark.parametrize(("asked", "kind", "message"), list(cases()), ids=lambda one: str(one)[:40])
def test_what_makes_no_sense_is_refused_with_the_way_out(asked, kind, message):
    error = refused(**asked)
    assert isinstance(error, kind), repr(error)
    assert str(error) == message


def test_a_function_that_cuts_the_gradient_is_refused():
    def mine(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 0].detach()

    assert "mine" in str(refused(metric=mine))


def test_patterns_of_unequal_prompts_are_refused():
    error = refused(model=families.loaded("llama"), pairs=ALIGNED, sites="pattern")
    assert "patterns cannot move between prompts of unequal length" in str(error)


def test_what_was_not_verified_cannot_be_compared():
    with pytest.raises(ResultError) as caught:
        attribute("tiny", "z").against()
    assert str(caught.value) == (
        "no cell was run exactly.\n  in     against\n"
        "  try    nbp.attribute(…, verify=20), or result.against(nbp.patch(…))"
    )
