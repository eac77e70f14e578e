"""Mediation: TE, NDE and NIE against hand-written forwards on both scales, sets by brute force, and their laws."""

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from oracle_ablation import MODELS, STORIES, TOLERANCE, hf_of, model_of
from oracle_ablation import PAIRS as FIXED
from torch import Tensor

import nbpatch
from nbpatch import PromptPair, tasks
from nbpatch.errors import MetricError, NbpatchError, PlanError, ResultError
from nbpatch.methods import mediation
from nbpatch.methods.mediation import KINDS, mediate, of_kind
from nbpatch.result import STATES

Spot = tuple[str, int, int | None]
"""A component, a layer and a head or neuron there; None for all of them."""

UNIT = {"z": "head", "k": "head", "pattern": "head", "mlp_post": "neuron"}
MOST = {"neuron": 2, "head": 4}
"""How many places along an axis are compared."""


@lru_cache(maxsize=2)
def pairs_of(name: str) -> tuple[PromptPair, ...]:
    if name != "tiny":
        return FIXED[name]
    model = model_of("tiny", "auto")
    with pytest.warns(UserWarning, match="leaves out"):
        return (*tasks.pronouns(model, 2), *tasks.ioi(model, 1))


def model(name: str) -> Any:
    return model_of(name, "auto")


@pytest.fixture(scope="module")
def tiny() -> Any:
    """The one that its twin is of."""
    return model("tiny")


def exchanged(pair: PromptPair) -> PromptPair:
    return PromptPair(pair.corrupted, pair.clean, pair.answer, pair.wrong)


# -- the slow twin


def as_in(spots: Sequence[Spot], values: Mapping[tuple[str, int], Tensor]) -> oracle.Edit:
    """Puts the values of another run at all spots."""

    def edit(name: str, layer: int, value: Tensor) -> Tensor:
        here = [unit for component, at, unit in spots if (component, at) == (name, layer)]
        changed = value.clone() if here else value
        for unit in here:
            where = () if unit is None else (unit,) if name == "pattern" else (slice(None), unit)
            changed[where] = values[name, layer][where]
        return changed

    return edit


@lru_cache(maxsize=32)
def run_of(name: str, ids: tuple[int, ...]) -> tuple[Tensor, dict[tuple[str, int], Tensor]]:
    """Returns a prompt's logits and activations."""
    return oracle.forward(hf_of(name), ids)[-1].double(), oracle.activations(hf_of(name), ids)


def logits_of(name: str, one: Any, spots: Sequence[Spot]) -> list[Tensor]:
    """Returns the logits of x; of x'; of x' with the spots as in x; of x with the spots as in x'."""
    both = one.clean_ids, one.corrupted_ids
    (x, values), (other, changed) = (run_of(name, ids) for ids in both)
    held = oracle.forward(hf_of(name), both[1], as_in(spots, values))
    moved = oracle.forward(hf_of(name), both[0], as_in(spots, changed))
    return [x, other, held[-1].double(), moved[-1].double()]


def wanted(name: str, one: Any, spots: Sequence[Spot]) -> dict[str, list[float]]:
    """Returns TE, NDE and NIE of one pair on both scales, as Vig et al. define them."""
    logits = logits_of(name, one, spots)
    y = [float(each[list(one.answer_ids)].mean() - each[list(one.wrong_ids)].mean()) for each in logits]
    probs = [each.softmax(-1) for each in logits]
    odds = [float(each[list(one.wrong_ids)].sum() / each[list(one.answer_ids)].sum()) for each in probs]
    return {"logit_diff": [new - y[0] for new in y[1:]], "odds_ratio": [new / odds[0] - 1 for new in odds[1:]]}


def cells_of(result: Any, component: str) -> list[tuple[dict[str, int], list[Spot]]]:
    """Returns some of a sweep's cells as places along its axes, each with its spots."""
    axes = [str(dim) for dim in result.data["state"].dims[1:-1]]
    layers = result.provenance["model"]["n_layers"]
    sizes = [min(result.data.sizes[axis], MOST.get(axis, 99)) for axis in axes]
    found = []
    for cell in itertools.product(*map(range, sizes)):
        chosen = dict(zip(axes, cell, strict=True))
        at = [chosen["layer"]] if "layer" in chosen else range(layers)
        found.append((chosen, [(component, layer, chosen.get(UNIT.get(component, ""))) for layer in at]))
    return found


def compared(result: Any, name: str, cells: Sequence[tuple[dict[str, int], list[Spot]]]) -> None:
    seen, effects = 0.0, {metric: result.effect(metric, per_pair=True) for metric in result.metrics}
    assert result.data["kind"].to_numpy().tolist() == list(KINDS)
    for number, one in enumerate(model(name).tokenize(pairs_of(name)[: result.data.sizes["pair"]])):
        for chosen, spots in cells:
            right = wanted(name, one, spots)
            found = {metric: each.isel(pair=number, **chosen).to_numpy() for metric, each in effects.items()}
            assert found["logit_diff"] == pytest.approx(right["logit_diff"], rel=0, abs=TOLERANCE), chosen
            # Odds of 1e9 have no absolute tolerance: y_new / y(x), the effect and 1, has a relative one.
            ratio = 1 + np.array(right["odds_ratio"])
            assert 1 + found["odds_ratio"] == pytest.approx(ratio, rel=TOLERANCE, abs=0), chosen
            seen = max(seen, abs(right["logit_diff"][2]))
    assert seen > 1e-3, "the sweep shows no effect to compare"


def on_stories(*given: str) -> Any:
    return pytest.param("stories260K", *given, marks=STORIES)


SWEEPS = [
    ("tiny", "z", None),
    ("tiny", "z", "head"),
    ("tiny", "z", "all"),
    ("tiny", "mlp_post", ""),
    ("tiny", "resid_mid", "layer"),
    on_stories("z", "layer head"),
    on_stories("z", "all"),
    on_stories("mlp_post", "layer neuron"),
]


@pytest.mark.parametrize(("name", "component", "over"), SWEEPS)
def test_all_effects_equal_the_hand_written_forwards_on_both_scales(name, component, over):
    result = mediate(model(name), pairs_of(name), component, over)
    compared(result, name, cells_of(result, component))


@pytest.mark.parametrize(("name", "over"), [("tiny", None), on_stories("all")])
def test_patterns_are_mediators_too(name, over):
    result = mediate(model(name), pairs_of(name)[:1], "pattern", over)
    compared(result, name, cells_of(result, "pattern"))


def test_alternatives_count_with_their_summed_probability(tiny):
    pair = PromptPair("Karen left the beach because", "Sam left the beach because", [" she", " Karen"], [" he", " Sam"])
    result = mediate(tiny, pair, "z", "layer")
    one = tiny.tokenize(pair)[0]
    for layer in range(4):
        right = wanted("tiny", one, [("z", layer, None)])["odds_ratio"]
        found = result.effect("odds_ratio").sel(layer=layer).to_numpy()
        assert 1 + found == pytest.approx(1 + np.array(right), rel=TOLERANCE)


def test_means_over_pairs_are_those_of_each_pairs_own_effects(tiny):
    result = mediate(tiny, pairs_of("tiny"))
    ratios = [wanted("tiny", one, [("z", 1, 1)])["odds_ratio"][2] for one in tiny.tokenize(pairs_of("tiny"))]
    found = float(result.effect("odds_ratio").sel(kind="NIE", layer=1, head=1))
    assert found == pytest.approx(np.mean(ratios), rel=TOLERANCE)


# -- the result


@pytest.fixture(scope="module")
def heads(tiny) -> nbpatch.Result:
    return mediate(tiny, pairs_of("tiny"), metric=["logit_diff", "prob"])


def test_the_axes_units_and_baselines_are_those_of_a_result(heads):
    assert heads.metrics == ("logit_diff", "prob", "odds_ratio")
    assert heads.data["odds_ratio"].dims == ("kind", "layer", "head", "pair")
    assert heads.data["kind"].to_numpy().tolist() == ["TE", "NDE", "NIE"]
    assert [heads.data[name].attrs["unit"] for name in heads.metrics] == ["logit", "prob", "ratio"]
    assert heads.baselines["clean"].sel(metric="odds_ratio").to_numpy().tolist() == [1.0] * 3
    assert heads.over == ("layer", "head")
    assert heads.provenance["method"] == "mediate"
    assert heads.provenance["component"] == "z"


@pytest.mark.parametrize("metric", ["logit_diff", "prob"])
def test_the_numbers_are_those_of_patch_in_both_directions(tiny, heads, metric):
    both = nbpatch.patch(tiny, pairs_of("tiny"), "z", direction="both", metric=["logit_diff", "prob"])
    total = -heads.gap(metric)
    np.testing.assert_allclose(heads.effect(metric).sel(kind="TE"), np.full((4, 4), total.mean()))
    for kind, direction in (("NDE", "denoising"), ("NIE", "noising")):
        one = both.recovered(metric).sel(direction=direction)
        np.testing.assert_allclose(heads.recovered(metric).sel(kind=kind), one, atol=TOLERANCE)
        effect = both.effect(metric).sel(direction=direction) + (float(total.mean()) if kind == "NDE" else 0)
        np.testing.assert_allclose(heads.effect(metric).sel(kind=kind), effect, atol=TOLERANCE)


def test_the_share_of_the_total_effect_is_one_minus_recovered(heads):
    for metric in heads.metrics:
        effect = heads.effect(metric)
        np.testing.assert_allclose(1 - heads.recovered(metric), effect / effect.sel(kind="TE"), atol=1e-6)


def test_one_kind_is_a_result_of_its_own(heads):
    own = of_kind(heads, "NDE")
    assert own.data["prob"].dims == ("layer", "head", "pair")
    np.testing.assert_array_equal(own.effect("prob"), heads.effect("prob").sel(kind="NDE"))
    assert own.provenance["kind"] == "NDE"
    strongest = abs(heads.effect().sel(kind="NIE")).argmax(...)
    assert of_kind(heads, "NIE").top(1)[["layer", "head"]].loc[0].tolist() == [int(at) for at in strongest.values()]
    assert len(of_kind(heads, "NIE").to_frame()) == 16


def test_every_question_to_a_result_has_an_answer(heads):
    assert set(heads.to_frame()["kind"]) == set(KINDS)
    assert heads.interval(n=50)["low"].dims == ("kind", "layer", "head")
    assert heads.significance()["p"].sizes == {"kind": 3, "layer": 4, "head": 4}
    assert len(heads.compare_metrics()) == 3
    assert heads.by_group().sizes["group"] == len(heads.groups)
    assert heads.reason(kind="TE", layer=0, head=0) == "measured"
    assert "mediation" in repr(heads)
    assert "prompts" in heads.card().lower()


@pytest.mark.parametrize("select", [None, "top"])
def test_a_saved_result_is_the_same(tiny, heads, tmp_path, select):
    one = mediate(tiny, pairs_of("tiny"), "attn_out", "layer", select=select, k=2) if select else heads
    again = nbpatch.read(one.save(tmp_path / "one.nc"))
    assert again.data.equals(one.data)
    assert again.baselines.equals(one.baselines)
    assert again.provenance == one.provenance
    assert of_kind(again, "NIE").effect("odds_ratio").equals(of_kind(one, "NIE").effect("odds_ratio"))


def test_a_place_that_a_pair_lacks_has_no_total_effect_either(tiny):
    longer = PromptPair(
        "Mary went to the store because", "Then John went to the store because", " she", " he",
        align={0: 0, 2: 3, 3: 4, 4: 5, 5: 6},
    )  # fmt: skip
    result = mediate(tiny, longer, "resid_pre", "layer pos")
    effect, state = result.effect().isel(layer=1), result.data["state"].isel(layer=1, pair=0)
    assert np.isnan(effect.sel(pos=1)).all()
    assert (state.sel(pos=1) == STATES.index("no position")).all()
    assert np.isfinite(effect.sel(pos=[0, 2, 3])).all()


def test_without_a_wrong_answer_there_is_no_odds_ratio_and_a_warning_says_so(tiny):
    pairs = [PromptPair(one.clean, one.corrupted, one.answer) for one in pairs_of("tiny")]
    result = mediate(tiny, pairs, "z", "layer", metric="log_prob")
    assert result.metrics == ("log_prob",)
    assert result.warnings[-1].startswith("No odds ratio: pair 1 has no wrong answer.")
    with pytest.raises(MetricError, match="odds_ratio needs a wrong answer"):
        mediate(tiny, pairs, metric="log_prob odds_ratio")


def test_what_is_true_of_both_scales_is_said_once(tiny):
    turned = [exchanged(one) for one in pairs_of("tiny")]
    result = mediate(tiny, turned, "z", "layer")
    better = [one for one in result.warnings if one.startswith("The corrupted prompt does better")]
    assert len(better) == 1
    assert "logit_diff" in better[0]
    alone = mediate(tiny, turned, "z", "layer", metric="odds_ratio")
    assert sum("does better" in one and "odds_ratio" in one for one in alone.warnings) == 1


# -- laws


@pytest.mark.parametrize(
    ("name", "component", "over"),
    [("tiny", "z", None), ("tiny", "resid_post", "layer pos"), on_stories("mlp_post", "layer"), on_stories("k", "all")],
)
def test_te_is_nde_minus_nie_of_the_exchanged_pair(name, component, over):
    alike = [one for one in pairs_of(name) if len({len(ids) for ids in ids_of(name, one)}) == 1]
    there = mediate(model(name), alike, component, over).effect(per_pair=True)
    back = mediate(model(name), [exchanged(one) for one in alike], component, over).effect(per_pair=True)
    found = there.sel(kind="NDE") - back.sel(kind="NIE")
    np.testing.assert_allclose(found, there.sel(kind="TE"), atol=2e-5)


def ids_of(name: str, pair: PromptPair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    one = model(name).tokenize(pair)[0]
    return one.clean_ids, one.corrupted_ids


@pytest.mark.parametrize("name", MODELS)
def test_all_goes_through_the_whole_stream_and_nothing_past_it(name):
    effect = mediate(model(name), pairs_of(name), "resid_pre", "layer").effect(per_pair=True).sel(layer=0)
    np.testing.assert_allclose(effect.sel(kind="NIE"), effect.sel(kind="TE"), atol=2e-5)
    np.testing.assert_allclose(effect.sel(kind="NDE"), 0, atol=2e-5)
    assert (abs(effect.sel(kind="TE")) > 0.1).all()


def test_heads_before_the_first_differing_token_mediate_exactly_nothing(tiny):
    pair = pairs_of("tiny")[2]
    first = tiny.tokenize(pair)[0].first_difference
    assert first
    result = mediate(tiny, pair, "z", "layer head pos")
    for metric in result.metrics:
        before = result.effect(metric).sel(pos=slice(0, first - 1))
        assert (before.sel(kind="NIE") == 0).all()
        assert (before.sel(kind="NDE") == before.sel(kind="TE")).all()
        assert (result.effect(metric).sel(kind="NIE", pos=slice(first, None)) != 0).any()


# -- sets


def brute(name: str, ones: Sequence[Any], spots: Sequence[Spot], metric: str) -> np.ndarray:
    """Returns the means over pairs of TE, NDE and NIE."""
    return np.mean([wanted(name, one, spots)[metric] for one in ones], axis=0)


def far(name: str, ones: Sequence[Any], spots: Sequence[Spot], metric: str) -> float:
    """Returns how far towards TE a NIE is."""
    total, _, indirect = brute(name, ones, spots, metric)
    return float(indirect * np.sign(total))


def sets_of(name: str, pairs: Any, component: str, metric: str, select: str, k: int) -> list[list[Spot]]:
    """Returns the growing set as brute force finds it."""
    config, ones = hf_of(name).config, model(name).tokenize(pairs)
    every: list[Spot] = list(itertools.product([component], range(config.num_hidden_layers), range(4)))
    chosen: list[list[Spot]] = [[]]
    alone = {spot: far(name, ones, [spot], metric) for spot in every}
    for step in range(k):
        left = [spot for spot in every if spot not in chosen[-1]]
        if select == "greedy" and step:
            alone = {spot: far(name, ones, [*chosen[-1], spot], metric) for spot in left}
        chosen.append([*chosen[-1], max(left, key=lambda spot: alone[spot])])
    return chosen[1:]


@pytest.mark.parametrize(("turned", "metric"), [(False, "logit_diff"), (True, "odds_ratio")])
@pytest.mark.parametrize("select", ["top", "greedy"])
def test_sets_are_those_of_brute_force(tiny, turned, select, metric):
    pairs = [exchanged(one) if turned else one for one in pairs_of("tiny")[:2]]
    result = mediate(tiny, pairs, metric=metric, select=select, k=2)
    sets = sets_of("tiny", pairs, "z", metric, select, 2)
    named = [[f"{one}[{layer}.{head}]" for one, layer, head in spots] for spots in sets]
    assert result.provenance["sets"] == named
    assert result.data["set"].to_numpy().tolist() == [each[-1] for each in named]
    assert result.data[metric].dims == ("kind", "set", "pair")
    for number, spots in enumerate(sets):
        right = brute("tiny", tiny.tokenize(pairs), spots, metric)
        assert result.effect(metric).isel(set=number).to_numpy() == pytest.approx(right, rel=TOLERANCE, abs=TOLERANCE)


def test_greedy_is_not_top_and_does_better(tiny):
    top, greedy = (mediate(tiny, pairs_of("tiny")[:2], select=select, k=2) for select in ("top", "greedy"))
    assert top.provenance["sets"][0] == greedy.provenance["sets"][0]
    assert top.provenance["sets"] != greedy.provenance["sets"]
    nie = [one.effect().sel(kind="NIE").to_numpy() for one in (top, greedy)]
    assert nie[0][0] == pytest.approx(nie[1][0], abs=1e-6)
    assert nie[1][1] < nie[0][1] < 0


def test_patterns_can_be_a_set(tiny):
    pair = pairs_of("tiny")[:1]
    result = mediate(tiny, pair, "pattern", "layer", select="greedy", k=2)
    ones = tiny.tokenize(pair)
    alone = [far("tiny", ones, [("pattern", layer, None)], "logit_diff") for layer in range(4)]
    first = int(np.argmax(alone))
    spots: dict[int, list[Spot]] = {
        layer: [("pattern", first, None), ("pattern", layer, None)] for layer in range(4) if layer != first
    }
    second = max(spots, key=lambda layer: far("tiny", ones, spots[layer], "logit_diff"))
    assert result.data["set"].to_numpy().tolist() == [f"pattern[{first}.*]", f"pattern[{second}.*]"]
    right = brute("tiny", ones, spots[second], "logit_diff")
    assert result.effect().isel(set=1).to_numpy() == pytest.approx(right, abs=TOLERANCE)


@pytest.mark.parametrize(("component", "over", "k"), [("k", "head", 99), ("mlp_out", "layer", 2)])
def test_sets_hold_as_many_as_there_are(tiny, component, over, k):
    result = mediate(tiny, pairs_of("tiny")[:1], component, over, select="greedy", k=k)
    assert result.data.sizes["set"] == min(k, 4)
    assert [len(one) for one in result.provenance["sets"]] == list(range(1, min(k, 4) + 1))
    assert result.provenance["candidates"] == 4
    assert result.over == ("set",)


def test_all_heads_together_are_the_last_set(tiny):
    pair = pairs_of("tiny")[:1]
    whole = mediate(tiny, pair, "z", "all").effect().isel(site=0)
    sets = mediate(tiny, pair, "z", select="top", k=16).effect().isel(set=-1)
    np.testing.assert_allclose(sets, whole, atol=2e-5)


@STORIES
def test_shared_keys_are_mediators_under_their_own_names():
    result = mediate(model("stories260K"), pairs_of("stories260K"), "k", select="top", k=2)
    assert all("k[" in str(one) for one in result.data["set"].to_numpy())
    sweep = mediate(model("stories260K"), pairs_of("stories260K"), "k")
    assert sweep.data["head"].to_numpy().tolist() == ["kv0", "kv1", "kv2", "kv3"]


def test_a_set_warns_that_it_was_chosen_on_the_pairs_it_is_measured_on(tiny, heads):
    result = mediate(tiny, pairs_of("tiny")[:1], "z", "layer", select="top", k=1)
    assert "chosen and measured on the same pairs" in result.warnings[-1]
    assert not any("same pairs" in one for one in heads.warnings)


# -- errors


SAME = PromptPair("Mary went to the store because", "Mary went to the store because", " she", " he")
ERRORS = [
    (
        {"select": "tpo"},
        "no selection 'tpo'.\n  in     select\n  seen   select='tpo', k=10\n  try    did you mean \"top\"?",
    ),
    ({"select": "top", "k": 0}, "k counts mediators.\n  in     k\n  seen   0\n  try    k=10"),
    ({"select": "top", "k": True}, "k counts mediators.\n  in     k\n  seen   True\n  try    k=10"),
    (
        {"over": "pos", "select": "top"},
        "sets are chosen among heads, neurons or layers.\n  in     over\n  seen   z over pos\n"
        '  try    over="layer head"',
    ),
    (
        {"mediators": "mlp_out", "over": "all", "select": "greedy"},
        "sets are chosen among heads, neurons or layers.\n  in     over\n  seen   mlp_out over all\n"
        '  try    over="layer"',
    ),
    (
        {"mediators": "embed", "select": "greedy"},
        "sets are chosen among heads, neurons or layers.\n  in     over\n  seen   embed over pos\n"
        '  try    mediators="resid_pre", over="layer"',
    ),
    (
        {"mediators": "mlp_post", "over": "layer neuron", "select": "greedy"},
        'too many candidates to try each again at every step.\n  in     select="greedy"\n'
        '  seen   2048 of mlp_post over layer neuron, at most 2000\n  try    select="top"',
    ),
    (
        {"pairs": SAME, "select": "greedy"},
        "there is no total effect that could be mediated.\n  in     select\n"
        "  seen   TE of logit_diff: +0, the mean of 1 pairs\n  try    a corrupted prompt that changes the answer",
    ),
    (
        {"mediators": "patterns", "over": "all"},
        "no component 'patterns'.\n  in     component\n  try    did you mean \"pattern\"?",
    ),
]


@pytest.mark.parametrize(("given", "message"), ERRORS)
def test_an_error_says_what_where_what_was_seen_and_what_to_type(tiny, given, message):
    with pytest.raises(NbpatchError) as caught:
        mediate(tiny, **{"pairs": pairs_of("tiny")[0], **given})
    assert str(caught.value) == message


def test_a_stopped_run_chooses_nothing(tiny, monkeypatch):
    def stopped(*given: Any, **named: Any) -> nbpatch.Result:
        found = nbpatch.patch(*given, **named)
        found.data["state"][0, 0, 0] = STATES.index("not run")
        return found

    monkeypatch.setattr(mediation, "patch", stopped)
    with pytest.raises(PlanError) as caught:
        mediate(tiny, pairs_of("tiny")[0], select="greedy")
    assert str(caught.value) == (
        "stopped before all candidates were measured: there is nothing to choose by.\n  in     select\n"
        "  seen   1 of 16 runs not run\n  try    the same call again, or fewer candidates"
    )


def test_kinds_are_of_mediation_only(tiny, heads):
    with pytest.raises(ResultError) as caught:
        of_kind(nbpatch.patch(tiny, pairs_of("tiny")[0], "z"), "NIE")
    assert str(caught.value) == (
        "that is about effects and what mediates them.\n  in     of_kind\n"
        "  seen   a result of patch with axes layer head pair\n  try    mediate(model, pairs, …)"
    )
    with pytest.raises(ResultError) as caught:
        of_kind(heads, "NEI")
    assert str(caught.value) == (
        "no kind 'NEI' of effect.\n  in     of_kind\n  seen   kinds TE, NDE, NIE\n  try    did you mean \"NIE\"?"
    )


def test_a_wave_of_huge_odds_stays_finite():
    logits = torch.tensor([[300.0, -300.0, 0.0]])
    one = mediation.Answers(torch.tensor([[0, -1]]), torch.tensor([[1, 2]]), logits.log_softmax(-1))
    assert mediation._log_odds(logits, one).tolist() == [300.0]
