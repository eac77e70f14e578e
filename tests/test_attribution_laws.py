"""Attribution patching: its laws, what comes back, what is verified exactly, and what is refused."""

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import families
import numpy as np
import pytest
import torch
import xarray as xr
from oracle_ablation import TRIOS
from test_attribution import (
    ALIGNED,
    DIRECTIONS,
    METHODS,
    MODELS,
    PAIRS,
    SHORT,
    STEPS,
    TOLERANCE,
    attribute,
    close,
    model_of,
    ones_of,
    padded,
    scores,
)

import nbpatch
from nbpatch import PromptPair
from nbpatch.errors import MetricError, NbpatchError, PlanError, ResultError, SiteError
from nbpatch.plan import EXACT, NO_POSITION
from nbpatch.result import read

# -- laws


@pytest.mark.parametrize(
    ("name", "site", "direction"),
    [
        ("tiny", "embed over pos", "denoising"),
        ("tiny", "resid_pre over layer pos", "noising"),
        ("qwen3", "embed over pos", "noising"),
    ],
)
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
        "ig needs prompts of equal length: both runs' embeddings meet position by position.\n  in     pair 1 of 1\n"
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
