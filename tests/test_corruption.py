"""Corruptions against their slow twin, and against the laws that need no expected numbers."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import oracle_ablation as oracle
import pandas as pd
import pytest
import torch
from oracle_ablation import (
    DATASETS,
    MODELS,
    ONE_OF_EACH,
    PAIRS,
    TOLERANCE,
    TRIOS,
    Run,
    model_of,
    tokens_of,
    with_marks,
)

import nbpatch
from nbpatch import Pairs, PromptPair
from nbpatch.errors import ResultError

DIRECTED = ("noise denoising", "noise noising")
# Components that are swept in one call, with the axes they are swept over.
GROUPS = {
    "resid_pre resid_mid resid_post attn_out mlp_out mlp_post": "layer pos",
    "q k v": "layer head pos",
    "z": "layer head",
    "pattern": "layer head dest",
    "embed": "pos",
}
OVER = {component: over for group, over in GROUPS.items() for component in group.split()}
WHOLE = ("resid_pre", "z", "embed")
FEW = 2


class Case(NamedTuple):
    """A corruption, made when it is needed, and the runs that stand for it."""

    make: Callable[[str], Any]
    runs: Callable[[str, int, Any], list[Run]]
    direction: str | None = None


def ones_of(name: str) -> tuple[Any, ...]:
    return model_of(name, "auto").tokenize(PAIRS[name])


def _mean(name: str, number: int, *, own: bool = False, per_position: bool = True) -> list[Run]:
    hf, ones = oracle.hf_of(name), ones_of(name)
    prompts = [one.clean_ids for one in ones] if own else [tokens_of(name, text) for text in DATASETS[name]]
    return oracle.mean(hf, ones[number], prompts, per_position=per_position)


def _noise(name: str, number: int, direction: str) -> list[Run]:
    ones = ones_of(name)
    noised = oracle.Noised(tuple(one.labels["subject"] for one in ones), n=2, seed=5)
    return noised.runs(oracle.hf_of(name), ones, number, direction)


def noise_at_subject(name: str) -> Any:
    return nbpatch.Noise("subject", n=2, seed=5)


CASES = {
    "zero": Case(
        lambda name: nbpatch.Zero(), lambda name, number, draws: oracle.zero(oracle.hf_of(name), ones_of(name)[number])
    ),
    "mean": Case(lambda name: nbpatch.Mean(list(DATASETS[name])), lambda name, number, draws: _mean(name, number)),
    "mean of pairs": Case(lambda name: nbpatch.Mean(), lambda name, number, draws: _mean(name, number, own=True)),
    "mean over positions": Case(
        lambda name: nbpatch.Mean(list(DATASETS[name]), per_position=False),
        lambda name, number, draws: _mean(name, number, per_position=False),
    ),
    "resample": Case(
        lambda name: nbpatch.Resample(list(DATASETS[name]), k=2, seed=3),
        lambda name, number, draws: oracle.resample(oracle.hf_of(name), ones_of(name)[number], draws[number]),
    ),
    "noise denoising": Case(noise_at_subject, lambda name, number, draws: _noise(name, number, "denoising")),
    "noise noising": Case(noise_at_subject, lambda name, number, draws: _noise(name, number, "noising"), "noising"),
}


def draws_of(result: Any) -> tuple[Any, ...]:
    """Returns, per pair, the token ids of each draw; nothing where nothing is drawn from a dataset."""
    return tuple(tuple(map(tuple, drawn)) for drawn in result.provenance.get("draws") or ())


@lru_cache(maxsize=512)
def runs_of(name: str, case: str, number: int, draws: tuple[Any, ...]) -> list[Run]:
    return CASES[case].runs(name, number, draws)


@lru_cache(maxsize=2048)
def expected(
    name: str, case: str, component: str, over: str, few: int | None, draws: tuple[Any, ...], number: int, window: int
) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Returns the cells of one pair that are looked at, and their mean and spread over draws [cell 2]."""
    hf, one = oracle.hf_of(name), ones_of(name)[number]
    axes = over.split()
    cells = oracle.cells_of(hf, one, component, axes, few)
    layers = hf.config.num_hidden_layers
    runs = runs_of(name, case, number, draws)
    found = [
        oracle.over_runs(
            hf,
            runs,
            oracle.spots_of(component, dict(zip(axes, cell, strict=True)), layers, window),
            oracle.difference(one),
        )
        for cell in cells
    ]
    return cells, np.array(found)


def check(result: Any, name: str, case: str, component: str, over: str, few: int | None, window: int = 1) -> None:
    """Compares a result with its twin, pair by pair, and looks whether there was anything to compare."""
    seen = 0.0
    draws = draws_of(result)
    for number, base in enumerate(result.baselines["clean"].isel(metric=0).to_numpy()):
        cells, wanted = expected(name, case, component, over, few, draws, number, window)
        values = at(result.data["logit_diff"], over, cells, number)
        np.testing.assert_allclose(values, wanted[:, 0], atol=TOLERANCE, err_msg=f"{component}, pair {number}")
        if case in ("resample", *DIRECTED):
            spread = at(result.spread(), over, cells, number)
            np.testing.assert_allclose(spread, wanted[:, 1], atol=TOLERANCE, err_msg=f"{component}, pair {number}")
        seen = max(seen, float(abs(wanted[:, 0] - base).max()))
    assert seen > 1e-3, "the sweep shows no effect to compare"


def at(array: Any, over: str, cells: Any, number: int) -> np.ndarray:
    """Returns the values of some cells of one pair."""
    table = array.isel(pair=number).transpose(*over.split()).to_numpy()
    return np.array([table[cell] for cell in cells])


def values(result: Any) -> np.ndarray:
    return result.data["logit_diff"].to_numpy()


def swept(name: str, engine: str, component: str, over: str | None = None, **options: Any) -> Any:
    return nbpatch.patch(model_of(name, engine), PAIRS[name], component, over, **options)


# -- against the hand-written forward

# All corruptions by the fast engine in one model, and each of the rest where something may be another.
BY_HAND = [
    *(("tiny", "auto", case) for case in CASES),
    *(("stories260K", "auto", case) for case in ("mean", "mean over positions", "resample", "noise denoising")),
    *(("tiny", "replay", case) for case in ("mean", "resample")),
    *(("stories260K", "replay", case) for case in ("zero", "mean over positions", "noise noising")),
]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("name", "engine", "case"), with_marks(BY_HAND))
def test_cells_equal_the_hand_written_forward(name, engine, case, group):
    if (case, group) == ("mean over positions", "pattern"):
        pytest.skip("refused, as a test of errors sees")
    made = CASES[case]
    result = swept(name, engine, group, GROUPS[group], corruption=made.make(name), direction=made.direction)
    if engine == "replay":
        assert result.provenance["engine"]["name"] == "replay"
    all_cells = name == "tiny" or case in ("zero", "mean")
    for component in group.split():
        few = None if all_cells and component in WHOLE else FEW
        check(result.sel(component), name, case, component, GROUPS[group], few)


@pytest.mark.parametrize("case", ["zero", "mean", "mean over positions", "resample"])
@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_single_neurons_equal_the_hand_written_forward(name, engine, case):
    """Of the second pair alone, the shortest: there are many neurons."""
    pair, over = PAIRS[name][1], "layer neuron"
    result = nbpatch.patch(model_of(name, engine), pair, "mlp_post", over, corruption=CASES[case].make(name))
    cells, wanted = expected(name, case, "mlp_post", over, FEW, ((), *draws_of(result)), 1, 1)
    np.testing.assert_allclose(at(result.data["logit_diff"], over, cells, 0), wanted[:, 0], atol=TOLERANCE)
    assert float(abs(result.effect()).max()) > 1e-3


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_both_baselines_are_those_of_plain_runs(name, engine, case):
    """Of an ablation the corrupted one is still the corrupted prompt; of noise, the mean over draws."""
    made, hf = CASES[case], oracle.hf_of(name)
    result = swept(name, engine, "z", "layer", corruption=made.make(name), direction=made.direction)
    for number, one in enumerate(ones_of(name)):
        metric = oracle.difference(one)
        runs = [Run(one.corrupted_ids, {})]
        if case in DIRECTED:
            runs = _noise(name, number, "denoising")
        wanted = (metric(oracle.forward(hf, one.clean_ids)[-1]), oracle.over_runs(hf, runs, (), metric)[0])
        for run, value in zip(("clean", "corrupted"), wanted, strict=True):
            assert float(result.baselines[run].isel(metric=0, pair=number)) == pytest.approx(value, abs=TOLERANCE), run


@pytest.mark.parametrize("case", ["zero", "resample", "noise denoising"])
@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_a_pair_without_a_position_has_no_number_there(name, engine, case):
    made = CASES[case]
    result = swept(name, engine, "resid_mid", corruption=made.make(name), direction=made.direction)
    lengths = [len(one.clean_ids) for one in ones_of(name)]
    for number, length in enumerate(lengths):
        own = result.data["logit_diff"].isel(pair=number)
        assert own.isel(pos=slice(length)).notnull().all()
        assert own.isel(pos=slice(length, None)).isnull().all()
    assert result.data.sizes["pos"] == max(lengths) > min(lengths)


@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_both_directions_of_noise_are_each_as_alone(name, engine):
    both = swept(name, engine, "resid_mid", corruption=noise_at_subject(name), direction="both")
    for direction in ("denoising", "noising"):
        alone = swept(name, engine, "resid_mid", corruption=noise_at_subject(name), direction=direction)
        own = both.data["logit_diff"].sel(direction=direction)
        np.testing.assert_allclose(own, alone.data["logit_diff"], atol=TOLERANCE)
        np.testing.assert_allclose(both.spread().sel(direction=direction), alone.spread(), atol=TOLERANCE)


@pytest.mark.parametrize("case", ["mean", "resample", "noise denoising"])
def test_several_components_and_metrics_at_once_are_what_they_are_alone(case):
    made, metrics = CASES[case], ["logit_diff", "prob", "kl"]
    options = {"corruption": made.make("tiny"), "direction": made.direction, "metric": metrics}
    together = swept("tiny", "auto", "resid_pre mlp_out", **options)
    alone, own = swept("tiny", "auto", "mlp_out", **options), together.sel("mlp_out")
    for metric in metrics:
        np.testing.assert_allclose(own.data[metric], alone.data[metric], atol=TOLERANCE, err_msg=metric)
        if case != "mean":
            np.testing.assert_allclose(own.spread(metric), alone.spread(metric), atol=TOLERANCE, err_msg=metric)


# -- draws


@pytest.mark.parametrize("name", MODELS)
def test_draws_are_other_prompts_of_the_dataset_that_are_as_long(name):
    result = swept(name, "auto", "z", corruption=nbpatch.Resample(list(DATASETS[name]), k=6))
    options = {tokens_of(name, text) for text in DATASETS[name]}
    draws = draws_of(result)
    assert [len(drawn) for drawn in draws] == [6] * len(PAIRS[name])
    for one, drawn in zip(ones_of(name), draws, strict=True):
        assert set(drawn) <= {ids for ids in options if len(ids) == len(one.clean_ids) and ids != one.clean_ids}


@pytest.mark.parametrize("run", ["clean", "corrupted"])
@pytest.mark.parametrize("name", MODELS)
def test_draws_from_pairs_are_their_clean_or_their_corrupted_prompts(name, run):
    pairs, model = TRIOS[name][::2], model_of(name, "auto")
    options = {getattr(one, f"{run}_ids") for one in model.tokenize(pairs)}
    for dataset in (None, list(pairs), Pairs(pairs)):
        result = nbpatch.patch(model, pairs, "z", corruption=nbpatch.Resample(dataset, k=3, run=run))
        for one, drawn in zip(model.tokenize(pairs), draws_of(result), strict=True):
            assert set(drawn) <= options - {one.clean_ids}


@pytest.mark.parametrize(
    "make", [lambda seed: nbpatch.Resample(list(DATASETS["tiny"]), k=16, seed=seed), lambda seed: noise(seed, n=16)]
)
def test_a_seed_is_repeated_exactly_and_another_draws_others_of_a_similar_mean(make):
    first, again, other = (swept("tiny", "auto", "resid_mid", corruption=make(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(values(first), values(again))
    np.testing.assert_array_equal(first.spread(), again.spread())
    assert draws_of(first) == draws_of(again)
    apart = abs(values(first) - values(other))
    assert np.nanmax(apart) > 1e-3
    error = np.sqrt((first.spread().to_numpy() ** 2 + other.spread().to_numpy() ** 2) / 16)
    assert (np.nan_to_num(apart) <= 5 * np.nan_to_num(error) + 1e-3).all()


def noise(seed: int, **options: Any) -> Any:
    return nbpatch.Noise("subject", seed=seed, **options)


def test_spread_has_the_dims_of_the_data_and_one_draw_has_none():
    several = swept("tiny", "auto", "z", corruption=nbpatch.Resample(list(DATASETS["tiny"]), k=3))
    assert several.spread().dims == several.data["logit_diff"].dims
    assert several.spread("logit_diff").identical(several.spread())
    one = swept("tiny", "auto", "z", corruption=nbpatch.Resample(list(DATASETS["tiny"])))
    with pytest.raises(ResultError, match="nothing was drawn several times"):
        one.spread()


def test_the_draws_of_a_pair_do_not_depend_on_the_component():
    made = nbpatch.Resample(list(DATASETS["tiny"]), k=4, seed=9)
    one, other = (swept("tiny", engine, part, corruption=made) for engine, part in (("auto", "z"), ("replay", "k")))
    assert draws_of(one) == draws_of(other)


# -- laws

OTHERS = {"tiny": "The Red Square is located in", "stories260K": "The big dog ran and"}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_law_a_resample_with_one_choice_is_noising_with_that_prompt_and_its_mean(name, engine, group):
    model, pair = model_of(name, engine), PAIRS[name][0]
    exchanged = PromptPair(pair.clean, OTHERS[name], pair.answer, pair.wrong)
    choices = [pair.clean, OTHERS[name], DATASETS[name][2]]
    drawn, mean = (
        nbpatch.patch(model, pair, group, GROUPS[group], corruption=made)
        for made in (nbpatch.Resample(choices, k=2), nbpatch.Mean([OTHERS[name]]))
    )
    noised = nbpatch.patch(model, exchanged, group, GROUPS[group], direction="noising")
    np.testing.assert_allclose(values(drawn), values(noised), atol=TOLERANCE)
    np.testing.assert_allclose(values(mean), values(noised), atol=TOLERANCE)
    # Where nothing was measured there is no spread either: keys have fewer heads than queries.
    assert np.nanmax(drawn.spread()) < TOLERANCE


@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_law_without_the_last_residual_all_prompts_give_what_the_final_norm_makes_of_nothing(name, engine):
    hf = oracle.hf_of(name)
    norm = hf.transformer.ln_f if name == "tiny" else hf.model.norm
    with torch.no_grad():
        nothing = hf.lm_head(norm(torch.zeros(hf.config.hidden_size)))
    result = swept(name, engine, "resid_post", "layer", corruption=nbpatch.Zero())
    for number, one in enumerate(ones_of(name)):
        found = float(result.data["logit_diff"].isel(layer=-1, pair=number))
        assert found == pytest.approx(oracle.difference(one)(nothing), abs=TOLERANCE)


@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_law_without_values_without_patterns_and_without_z_is_the_same(name, engine):
    options = {"over": "layer head", "corruption": nbpatch.Zero()}
    without_z = values(swept(name, engine, "z", **options))
    np.testing.assert_allclose(values(swept(name, engine, "pattern", **options)), without_z, atol=TOLERANCE)
    layer = values(swept(name, engine, "v", "layer", corruption=nbpatch.Zero()))
    np.testing.assert_allclose(layer, values(swept(name, engine, "z", "layer", corruption=nbpatch.Zero())), atol=1e-4)


def test_law_a_mean_over_the_prompt_itself_changes_nothing():
    """Per position; over positions it does change something."""
    model, pair = model_of("tiny", "auto"), PAIRS["tiny"][0]
    clean = oracle.difference(ones_of("tiny")[0])(
        oracle.forward(oracle.hf_of("tiny"), ones_of("tiny")[0].clean_ids)[-1]
    )
    for group, over in GROUPS.items():
        itself = nbpatch.patch(model, pair, group, over, corruption=nbpatch.Mean())
        np.testing.assert_allclose(values(itself), clean, atol=TOLERANCE, err_msg=group)
    level = nbpatch.patch(model, pair, "resid_mid", corruption=nbpatch.Mean(per_position=False))
    assert abs(values(level) - clean).max() > 1e-2


@pytest.mark.parametrize("per_position", [True, False])
def test_law_what_a_dataset_is_made_of_and_its_order_change_nothing(per_position):
    texts = [pair.clean for pair in PAIRS["tiny"]]
    frame = pd.DataFrame({"prompt": texts})
    datasets = [None, list(PAIRS["tiny"]), Pairs(PAIRS["tiny"]), texts, texts[::-1], frame["prompt"]]
    results = [
        values(swept("tiny", "auto", "resid_mid", corruption=nbpatch.Mean(one, per_position=per_position)))
        for one in datasets
    ]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=TOLERANCE)


def test_law_the_corrupted_prompts_of_pairs_are_a_dataset_too():
    texts = [pair.corrupted for pair in PAIRS["tiny"]]
    for component in ("pattern", "embed"):
        one, *others = (
            values(swept("tiny", "auto", component, OVER[component], corruption=made))
            for made in (
                nbpatch.Mean(texts), nbpatch.Mean(run="corrupted"), nbpatch.Mean(Pairs(PAIRS["tiny"]), run="corrupted"),
            )
        )  # fmt: skip
        for other in others:
            np.testing.assert_allclose(other, one, atol=TOLERANCE)


def test_law_a_prompt_twice_in_a_dataset_counts_twice():
    texts = list(DATASETS["tiny"])
    twice = values(swept("tiny", "auto", "resid_mid", corruption=nbpatch.Mean([*texts, *texts])))
    np.testing.assert_allclose(
        twice, values(swept("tiny", "auto", "resid_mid", corruption=nbpatch.Mean(texts))), atol=TOLERANCE
    )
    more = values(swept("tiny", "auto", "resid_mid", corruption=nbpatch.Mean([*texts, texts[0], texts[0]])))
    assert np.nanmax(abs(more - twice)) > 1e-3


@pytest.mark.parametrize("case", ["mean", "mean over positions"])
@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_law_pairs_are_what_they_are_alone(name, engine, case):
    made = CASES[case].make(name)
    together = swept(name, engine, "k", corruption=made).data["logit_diff"]
    for number, pair in enumerate(PAIRS[name]):
        alone = nbpatch.patch(model_of(name, engine), pair, "k", corruption=made).data["logit_diff"]
        np.testing.assert_allclose(together.isel(pair=number), alone.isel(pair=0), atol=TOLERANCE)


# -- noise


def test_noise_of_no_size_leaves_no_gap():
    result = swept("tiny", "auto", "resid_mid", corruption=nbpatch.Noise("subject", scale=0.0, n=2))
    np.testing.assert_allclose(result.gap(), 0, atol=TOLERANCE)
    assert result.recovered().isnull().all()
    assert "no gap" in result.reason(layer=0, pos=3)
    np.testing.assert_allclose(result.spread().isel(pos=slice(6)), 0, atol=TOLERANCE)


def test_the_corrupted_prompt_is_not_used():
    first = PAIRS["tiny"][0]
    other = PromptPair(first.clean, "The Willis Tower is located in", first.answer, first.wrong, labels=first.labels)
    one, same = (
        nbpatch.patch(model_of("tiny", "auto"), pair, "z", direction="both", corruption=noise(0, n=2))
        for pair in (first, other)
    )
    np.testing.assert_allclose(values(one), values(same), atol=TOLERANCE)
    np.testing.assert_allclose(one.baselines["corrupted"], same.baselines["corrupted"], atol=TOLERANCE)


@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_noise_goes_to_several_places_in_order_of_position(name, engine):
    """Names and positions in any order, some of them the same place."""
    hf, ones = oracle.hf_of(name), ones_of(name)
    at = ("verb", 1, "subject", 1)
    places = tuple(tuple(sorted({1, *one.labels["verb"], *one.labels["subject"]})) for one in ones)
    result = swept(name, engine, "resid_mid", corruption=nbpatch.Noise(at, scale=2.0, n=2, seed=4))
    for number, one in enumerate(ones):
        runs = oracle.Noised(places, 2.0, 2, 4).runs(hf, ones, number, "denoising")
        for layer, pos in ((0, 1), (1, 4)):
            spots = oracle.spots_of("resid_mid", {"layer": layer, "pos": pos}, hf.config.num_hidden_layers)
            wanted, _ = oracle.over_runs(hf, runs, spots, oracle.difference(one))
            found = float(result.data["logit_diff"].isel(layer=layer, pos=pos, pair=number))
            assert found == pytest.approx(wanted, abs=TOLERANCE)


def test_a_name_alone_in_a_tuple_or_its_positions_are_the_same_noise():
    model, pair = model_of("tiny", "auto"), PAIRS["tiny"][0]
    (one,) = model.tokenize(pair)
    results = [
        values(nbpatch.patch(model, pair, "z", corruption=nbpatch.Noise(at, n=2)))
        for at in ("subject", ("subject",), one.labels["subject"], one.labels["subject"][::-1])
    ]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=TOLERANCE)


def test_many_draws_with_little_noise_are_near_the_clean_run():
    """The first order of noise has the mean 0, so the mean effect shrinks faster than the spread."""
    model, pair = model_of("tiny", "auto"), PAIRS["tiny"][0]
    small = nbpatch.patch(model, pair, "embed", corruption=nbpatch.Noise("subject", scale=0.01, n=20))
    assert 0 < float(small.spread().max()) < 1
    assert abs(float(small.gap().isel(pair=0))) < 1
