"""A study: the numbers of single calls, what was left out by name, and agreement recomputed another way."""

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Callable

import golden
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.collections import PatchCollection, PathCollection
from matplotlib.figure import Figure

import nbpatch as nbp
from nbpatch.corruption import Mean, Noise, Resample, Zero
from nbpatch.errors import NbpatchError
from nbpatch.methods import patching
from nbpatch.methods.comparing import agreement, compare, of_corruption, top_cells
from nbpatch.result import STATES
from nbpatch.view import study
from nbpatch.view.style import diverging

PAIRS = [
    nbp.PromptPair(
        clean="When Mary and John went to the store, John gave a drink to",
        corrupted="When Mary and John went to the store, Mary gave a drink to",
        answer=" Mary",
        wrong=" John",
    ),
    nbp.PromptPair(
        clean="When Mary and John went to the store, Mary gave a drink to",
        corrupted="When Mary and John went to the store, John gave a drink to",
        answer=" John",
        wrong=" Mary",
    ),
]
METRICS = ("logit_diff", "log_prob", "prob", "kl")
REAL = patching.patch
FOUR = (None, Zero(), Mean(), Mean(per_position=False))


@pytest.fixture(scope="module")
def heads(tiny) -> nbp.Result:
    return compare(tiny, PAIRS, "z")


def pretended(made: list[tuple]) -> Callable[..., nbp.Result]:
    """A `patch` that notes its calls; other corruptions than the other prompt change numbers, prompts and warnings."""

    def patch(model, pairs, component, over, *, direction, metric, corruption):
        made.append((corruption, direction, metric))
        one = REAL(model, pairs, component, over, direction=direction, metric=metric)
        if corruption is None:
            return one
        data = one.data.map(lambda values: values * 0.5 + len(made), keep_attrs=True)
        baselines = one.baselines.assign(corrupted=one.baselines["corrupted"] - len(made))
        shown = [{**pair, "corrupted": f"{pair['clean']} + noise"} for pair in one.provenance["pairs"]]
        provenance = {**one.provenance, "corruption": corruption.words(), "draws": len(made), "pairs": shown}
        warnings = (*one.warnings, f"{corruption.kind} was warned of.")
        return dataclasses.replace(one, data=data, baselines=baselines, provenance=provenance, warnings=warnings)

    return patch


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    made: list[tuple] = []
    monkeypatch.setattr(patching, "patch", pretended(made))
    return made


@pytest.fixture(scope="module")
def four(tiny) -> nbp.Result:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patching, "patch", pretended([]))
        return compare(tiny, PAIRS, "z", corruptions=FOUR, metrics=METRICS[:2])


# The numbers.


def test_the_numbers_are_exactly_those_of_a_call_of_patch(tiny, heads):
    alone = nbp.patch(tiny, PAIRS, "z", direction="both", metric=METRICS)
    for metric in METRICS:
        for name in ("effect", "recovered", "share"):
            one = getattr(heads, name)(metric).sel(corruption="counterfactual", drop=True)
            xr.testing.assert_identical(one, getattr(alone, name)(metric))
        np.testing.assert_array_equal(heads.gap(metric).sel(corruption="counterfactual"), alone.gap(metric))
    np.testing.assert_array_equal(heads.data["state"].sel(corruption="counterfactual"), alone.data["state"])


def test_every_column_has_the_numbers_of_a_call_of_its_own(tiny, heads):
    for metric, direction in itertools.product(METRICS, ("denoising", "noising")):
        alone = nbp.patch(tiny, PAIRS, "z", direction=direction, metric=metric)
        where = {"corruption": "counterfactual", "direction": direction}
        for name in ("effect", "recovered", "share"):
            one, other = getattr(heads, name)(metric).sel(where), getattr(alone, name)()
            assert one.dims == other.dims
            # Other batches, other rounding.
            np.testing.assert_allclose(one, other, atol=2e-5)


def test_dims_are_those_of_patch_behind_the_corruption(tiny, heads):
    assert heads.data["prob"].dims == ("corruption", "direction", "layer", "head", "pair")
    assert heads.baselines["clean"].dims == ("metric", "corruption", "pair")
    assert heads.data["prob"].attrs["unit"] == "prob"
    one = compare(tiny, PAIRS, "mlp_out", "layer", metrics="kl", directions="noising")
    assert one.data["kl"].dims == ("corruption", "layer", "pair")
    np.testing.assert_array_equal(
        one.effect().sel(corruption="counterfactual"),
        nbp.patch(tiny, PAIRS, "mlp_out", "layer", metric="kl", direction="noising").effect(),
    )


def test_one_call_for_each_corruption_with_all_metrics_in_both_directions_where_both_make_sense(tiny, calls):
    one = compare(tiny, PAIRS, "z", corruptions=FOUR, metrics=METRICS[:2])
    assert [(one and one.kind, direction) for one, direction, _ in calls] == [
        (None, "both"), ("zero", "noising"), ("mean", "noising"), ("mean", "noising"),
    ]  # fmt: skip
    assert {metric for _, _, metric in calls} == {METRICS[:2]}
    assert one.data["corruption"].to_numpy().tolist() == ["counterfactual", "zero", "mean 1", "mean 2"]


def test_noise_is_run_in_both_directions_and_the_order_of_directions_is_fixed(tiny, calls):
    kinds = [Noise("END"), Zero()]
    both = compare(tiny, PAIRS, "z", corruptions=kinds, directions=("noising", "denoising"), metrics="kl")
    assert [direction for _, direction, _ in calls] == ["both", "noising"]
    assert both.data["direction"].to_numpy().tolist() == ["denoising", "noising"]
    assert [(one["corruption"], one["direction"]) for one in both.provenance["left_out"]] == [("zero", "denoising")]


def test_each_corruption_is_measured_against_its_own_baselines(four):
    own = of_corruption(four, "counterfactual")
    noised = own.data["logit_diff"].sel(direction="noising", drop=True)
    for call, name in ((2, "zero"), (3, "mean 1"), (4, "mean 2")):
        values = noised * 0.5 + call
        corrupted = own.baselines["corrupted"].sel(metric="logit_diff") - call
        clean = own.baselines["clean"].sel(metric="logit_diff")
        expected = (values - corrupted).mean("pair") / (clean - corrupted).mean("pair")
        found = four.recovered().sel(corruption=name, direction="noising")
        np.testing.assert_allclose(found, expected, atol=2e-6)
        effect = four.effect().sel(corruption=name, direction="noising")
        np.testing.assert_allclose(effect, (values - clean).mean("pair"), atol=2e-5)


# What was left out.


def test_combinations_that_make_no_sense_are_nan_and_named(four):
    absent = four.data.sel(corruption=["zero", "mean 1", "mean 2"], direction="denoising")
    assert absent["logit_diff"].isnull().all()
    assert (absent["state"] == STATES.index("not run")).all()
    assert absent["state"].dtype == np.int8
    there = four.data.sel(corruption="counterfactual")
    assert there["logit_diff"].notnull().all()
    assert four.warnings[0] == (
        "not run: zero, denoising: an ablation changes the clean run; there is no corrupted run to restore anything in."
    )
    assert [warning.partition(": an")[0] for warning in four.warnings[:3]] == [
        "not run: zero, denoising", "not run: mean 1, denoising", "not run: mean 2, denoising",
    ]  # fmt: skip


def test_warnings_of_one_corruption_carry_its_name_and_common_ones_stand_once(tiny, calls):
    kinds = (None, Zero(), Mean(), Mean(per_position=False))
    one = compare(tiny, PAIRS[:1], "z", corruptions=kinds, metrics="kl", directions="noising")
    common = REAL(tiny, PAIRS[:1], "z", direction="noising", metric="kl").warnings
    assert common
    assert one.warnings == (*common, "zero: zero was warned of.", "mean 1, mean 2: mean was warned of.")


# The engine's own corruptions.


@pytest.fixture(scope="module")
def true(tiny) -> nbp.Result:
    """A study of all kinds, as the engine runs them."""
    return compare(tiny, PAIRS, "z", corruptions=(None, *KINDS.values()), metrics=METRICS[:2])


KINDS = {"zero": Zero(), "mean": Mean(), "resample": Resample(k=2), "noise": Noise(10, n=3)}


@pytest.mark.parametrize("name", KINDS)
def test_the_engines_corruptions_have_the_numbers_of_patch(tiny, true, name):
    direction = "both" if name == "noise" else "noising"
    alone = nbp.patch(tiny, PAIRS, "z", direction=direction, metric=METRICS[:2], corruption=KINDS[name])
    one = of_corruption(true, name)
    xr.testing.assert_identical(one.data, alone.data)
    xr.testing.assert_identical(one.baselines, alone.baselines)
    assert plain(one) == plain(alone)
    assert (one.warnings, one.card().partition("Engine")[0]) == (alone.warnings, alone.card().partition("Engine")[0])
    run = {} if direction == "both" else {"direction": "noising"}
    for metric in METRICS[:2]:
        for of in ("effect", "recovered", "share"):
            found = getattr(true, of)(metric).sel(corruption=name, **run, drop=True)
            xr.testing.assert_identical(found, getattr(alone, of)(metric))


def test_deviations_over_draws_are_kept_and_nan_where_nothing_was_drawn(tiny, true):
    drawn = nbp.patch(tiny, PAIRS, "z", direction="both", metric="logit_diff", corruption=KINDS["noise"]).spread()
    np.testing.assert_allclose(true.spread().sel(corruption="noise"), drawn, atol=2e-5)
    assert true.spread().sel(corruption=["counterfactual", "zero"]).isnull().all()
    assert true.spread().sel(corruption="resample", direction="denoising").isnull().all()
    assert true.spread().sel(corruption="resample", direction="noising").notnull().all()


def plain(result: nbp.Result) -> dict:
    """The provenance without how long it took."""
    return {key: value for key, value in result.provenance.items() if key != "engine"}


# One corruption, and files.


def test_one_corruption_is_what_patch_returned(tiny, calls, four):
    for name, corruption in (("counterfactual", None), ("zero", Zero())):
        direction = "noising" if corruption else "both"
        calls[:] = [()] if corruption else []
        alone = patching.patch(tiny, PAIRS, "z", None, direction=direction, metric=METRICS[:2], corruption=corruption)
        one = of_corruption(four, name)
        xr.testing.assert_identical(one.data, alone.data)
        xr.testing.assert_identical(one.baselines, alone.baselines)
        assert plain(one) == plain(alone)
        assert one.warnings == alone.warnings
        assert one.plot().axes


def test_a_saved_study_is_the_same_study(four, tmp_path):
    again = nbp.read(four.save(tmp_path / "study.nc"))
    pd.testing.assert_frame_equal(agreement(again), agreement(four))
    pd.testing.assert_frame_equal(top_cells(again), top_cells(four))
    np.testing.assert_array_equal(of_corruption(again, "zero").effect(), of_corruption(four, "zero").effect())
    assert len(study.panels(again).axes) == len(study.panels(four).axes)


def test_a_saved_study_is_read_and_drawn_without_torch(heads, tmp_path):
    path = heads.save(tmp_path / "study.nc")
    code = f"""
import sys
import nbpatch as nbp
from nbpatch.methods.comparing import agreement, of_corruption, top_cells
from nbpatch.view.study import panels
study = nbp.read({str(path)!r})
print(len(agreement(study)), len(top_cells(study)), len(panels(study).axes), of_corruption(study, "counterfactual"))
assert not {{"torch", "transformers", "transformer_lens", "matplotlib.pyplot"}} & set(sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("28 10 9 z over layer head, both")


# What depends on the choices.


def table(result: nbp.Result) -> pd.DataFrame:
    """The signed effects, a column for each reading: computed from the raw values, without the methods of a result."""
    columns = {}
    for corruption in result.data["corruption"].to_numpy():
        for direction in ("denoising", "noising"):
            for metric in result.data.data_vars:
                patched = result.data[metric].sel(corruption=corruption, direction=direction)
                base = result.baselines["corrupted" if direction == "denoising" else "clean"]
                moved = (patched - base.sel(corruption=corruption, metric=metric)).mean("pair").to_numpy().ravel()
                if np.isfinite(moved).any():
                    columns[f"{corruption}, {direction}, {metric}"] = moved if direction == "denoising" else -moved
    return pd.DataFrame(columns)


@pytest.mark.parametrize("k", [3, 10])
def test_agreement_is_spearmans_and_the_shared_top_of_signed_effects(four, k):
    expected = table(four)
    ranks = expected.rank().corr()  # Pearson's of ranks; pandas wants scipy for method="spearman"
    found = agreement(four, k)
    assert list(found["column"].drop_duplicates()) == list(expected)[:-1]
    assert len(found) == len(expected.columns) * (len(expected.columns) - 1) // 2 == 45
    for row in found.itertuples():
        assert row.rank_correlation == pytest.approx(ranks.loc[row.column, row.other])
        tops = [set(expected[name].abs().nlargest(k).index) for name in (row.column, row.other)]
        assert row.top_overlap == pytest.approx(len(tops[0] & tops[1]) / k)
        assert row.cells == 16


def test_agreement_equals_scipys(heads):
    stats = pytest.importorskip("scipy.stats")
    expected = table(heads)
    for row in agreement(heads).itertuples():
        right = stats.spearmanr(expected[row.column], expected[row.other]).statistic
        assert row.rank_correlation == pytest.approx(right)


def test_agreement_says_in_what_two_columns_differ(four):
    differs = agreement(four).set_index(["column", "other"])["differs"]
    one = "counterfactual, denoising, logit_diff"
    assert differs[one, "counterfactual, denoising, log_prob"] == "metric"
    assert differs[one, "counterfactual, noising, logit_diff"] == "direction"
    assert differs["zero, noising, log_prob", "mean 1, noising, log_prob"] == "corruption"
    assert differs[one, "zero, noising, log_prob"] == "corruption, direction, metric"


def test_noising_of_the_swapped_pair_agrees_fully_with_denoising(tiny):
    """With pairs and their swaps, both directions patch the same runs: r ↦ 1 − r, so signed ranks are the same."""
    both = agreement(compare(tiny, PAIRS, "z", metrics="logit_diff"))
    assert both["rank_correlation"].tolist() == [pytest.approx(1.0)]
    assert both["top_overlap"].tolist() == [1.0]


def test_cells_without_a_value_are_left_out_of_agreement(heads):
    data = heads.data.copy(deep=True)
    data["prob"][0, 0, 2, 3] = np.nan
    found = agreement(dataclasses.replace(heads, data=data)).set_index(["column", "other"])["cells"]
    assert found["counterfactual, denoising, logit_diff", "counterfactual, denoising, prob"] == 15
    assert found["counterfactual, denoising, logit_diff", "counterfactual, denoising, kl"] == 16


def test_the_strongest_cells_stand_side_by_side(tiny, heads):
    found = top_cells(heads, 5)
    assert found.index.tolist() == [1, 2, 3, 4, 5]
    assert found.columns.names == ["column", ""]
    assert len(found.columns) == 2 * 4 * 2
    for direction, sign in (("denoising", 1), ("noising", -1)):
        alone = nbp.patch(tiny, PAIRS, "z", direction=direction, metric="prob").top(5)
        mine = found[f"counterfactual, {direction}, prob"]
        assert mine["cell"].tolist() == [f"{row.layer}.{row.head}" for row in alone.itertuples()]
        np.testing.assert_allclose(mine["share"], sign * alone["share"], atol=2e-5)


@pytest.mark.parametrize(
    ("component", "over", "name"),
    [
        ("resid_pre", "layer pos", "L0 John@10"),
        ("mlp_out", "layer", "L0"),
        ("z", "head", "head 3"),
        ("z", "layer head pos", "2.3 to@14"),
        ("resid_pre", "pos", "John@10"),
    ],
)
def test_cells_are_named_as_they_are_written(tiny, component, over, name):
    one = compare(tiny, PAIRS[:1], component, over, metrics="logit_diff", directions="denoising")
    assert name in top_cells(one, 3).iloc[:, 0].tolist()


def test_a_short_column_is_filled_up_with_nothing(heads):
    data = heads.data.copy(deep=True)
    data["kl"][0, 1] = np.nan
    data["kl"][0, 1, 2, 3] = -1.0
    found = top_cells(dataclasses.replace(heads, data=data), 3)["counterfactual, noising, kl"]
    assert found["cell"].tolist() == ["2.3", "", ""]
    assert found["share"].notna().tolist() == [True, False, False]


# The figure.


def maps(figure: Figure) -> dict[str, np.ndarray]:
    """The colours of each map by its name; the colour scale has none."""
    return {one.get_label(): np.asarray(one.images[0].get_array()) for one in figure.axes if one.get_label()}


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_there_is_a_map_for_each_column_in_rows_of_studies_and_columns_of_metrics(four):
    figure = study.panels(four)
    assert list(maps(figure)) == list(table(four))
    boxes = {one.get_label(): one.get_position() for one in figure.axes if one.get_label()}
    assert len({round(box.x0, 6) for box in boxes.values()}) == 2
    assert len({round(box.y0, 6) for box in boxes.values()}) == 5
    down = [boxes[f"{row}, logit_diff"].y0 for row in ("counterfactual, denoising", "counterfactual, noising")]
    assert down[0] > down[1] > boxes["zero, noising, logit_diff"].y0 > boxes["mean 2, noising, log_prob"].y0


def test_colours_are_shares_on_one_scale(heads):
    drawn = maps(study.panels(heads))
    for metric, direction in itertools.product(METRICS, ("denoising", "noising")):
        shares = heads.share(metric).sel(corruption="counterfactual", direction=direction).to_numpy()
        expected = [[diverging(float(share)) for share in row] for row in shares]
        np.testing.assert_array_equal(drawn[f"counterfactual, {direction}, {metric}"], expected)


def test_a_weak_study_has_a_finer_scale_that_says_so(heads):
    quiet = heads.data.map(lambda values: values * 0 + 0.01, keep_attrs=True)
    baselines = heads.baselines.assign(clean=heads.baselines["clean"] * 0 + 0.1, corrupted=heads.baselines["clean"] * 0)
    one = dataclasses.replace(heads, data=quiet.isel(direction=[0]), baselines=baselines)
    assert {"+.1", "−.1", "0"} <= set(texts(study.panels(one)))
    assert {"+1", "−1", "0"} <= set(texts(study.panels(heads)))


def test_labels_are_shared(heads):
    shown = texts(study.panels(heads))
    assert shown.count("logit difference") == 1
    assert shown.count("layer 0") == 2
    assert shown.count("counterfactual") == 2
    assert {"denoising", "noising", "head"} <= set(shown)
    gap = float(heads.gap("prob").mean())
    assert shown.count(f"gap {gap:.2f} prob") == 1


def test_gaps_that_differ_stand_above_every_map(four):
    shown = [text for text in texts(study.panels(four)) if text.startswith("gap ")]
    assert len(shown) == 10
    gap = float(four.gap("log_prob").sel(corruption="mean 2").mean())
    assert f"gap {gap:.2f} nat" in shown


def test_what_was_not_run_is_named_below(four, heads):
    assert "not run: zero, denoising; mean 1, denoising; mean 2, denoising" in " ".join(texts(study.panels(four)))
    assert "not run:" not in " ".join(texts(study.panels(heads)))
    assert len(texts(study.panels(four, title=False))) < len(texts(study.panels(four)))


def test_cells_that_cannot_act_are_dots_and_those_without_a_value_are_hatched(tiny):
    one = compare(tiny, PAIRS[:1], "resid_pre", metrics=("logit_diff", "kl"))
    data = one.data.copy(deep=True)
    data["kl"][0, 1, 2, 10] = np.nan
    figure = study.panels(dataclasses.replace(one, data=data))
    named = {axes.get_label(): axes for axes in figure.axes}
    still = np.argwhere((one.data["state"][0, 0, ..., 0] == STATES.index("exact")).to_numpy())
    for axes in (named[f"counterfactual, {name}"] for name in ("denoising, logit_diff", "noising, kl")):
        (dots,) = axes.findobj(PathCollection)
        np.testing.assert_allclose(dots.get_offsets(), still[:, ::-1] + 0.5)
    hatched = {
        name: sum(len(found.get_paths()) for found in axes.findobj(PatchCollection)) for name, axes in named.items()
    }
    assert {name: count for name, count in hatched.items() if count} == {"counterfactual, noising, kl": 1}
    assert maps(figure)["counterfactual, noising, kl"][2, 10].tolist() == [255, 255, 255]
    shown = texts(figure)
    assert "dot: exactly 0 by construction, not run · hatched: no value" in shown
    assert shown.count("·John") == 4


@pytest.mark.parametrize(("component", "over"), [("z", None), ("resid_pre", None), ("z", "layer head pos"),
                                                  ("mlp_out", "layer")])  # fmt: skip
def test_no_text_lies_on_another_or_off_the_page(tiny, component, over):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = study.panels(compare(tiny, PAIRS[:1], component, over))
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts if text.get_text()]
    for (one, left), (other, right) in itertools.combinations(boxes, 2):
        wide = min(left.x1, right.x1) - max(left.x0, right.x0)
        high = min(left.y1, right.y1) - max(left.y0, right.y0)
        assert min(wide, high) < 1.5, (one, other)
    for name, box in boxes:
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        assert box.y1 <= figure.bbox.y1, name


# What is refused.


def refused(call) -> str:
    with pytest.raises(NbpatchError) as caught:
        call()
    assert caught.value.fix
    return str(caught.value)


def test_what_makes_no_sense_is_refused_with_what_to_type(tiny, heads, calls):
    patched = REAL(tiny, PAIRS, "z")
    one = compare(tiny, PAIRS, "z", metrics="kl", directions="noising")
    noised = compare(tiny, PAIRS, "z", metrics="kl", corruptions=[Noise("END")])
    calls.clear()
    messages = [
        refused(lambda: compare(tiny, PAIRS, "z q")),
        refused(lambda: compare(tiny, PAIRS, ["z", "q"])),
        refused(lambda: compare(tiny, PAIRS, "z", directions=("denoise",))),
        refused(lambda: compare(tiny, PAIRS, "z", directions=())),
        refused(lambda: compare(tiny, PAIRS, "z", corruptions=())),
        refused(lambda: compare(tiny, PAIRS, "z", corruptions=(None, None))),
        refused(lambda: compare(tiny, PAIRS, "z", corruptions=(Zero(), Zero()))),
        refused(lambda: compare(tiny, PAIRS, "z", corruptions=["zero"])),
        refused(lambda: compare(tiny, PAIRS, "z", corruptions=(Zero(), Resample()), directions="denoising")),
        refused(lambda: agreement(patched)),
        refused(lambda: agreement(one)),
        refused(lambda: agreement(heads, 0)),
        refused(lambda: top_cells(patched)),
        refused(lambda: top_cells(heads, 0)),
        refused(lambda: of_corruption(heads, "zreo")),
        refused(lambda: of_corruption(patched, "zero")),
        refused(lambda: of_corruption(dataclasses.replace(noised, data=noised.data.isel(pair=[0])), "noise")),
        refused(lambda: study.panels(patched)),
    ]
    assert not calls
    golden.check("compare_errors", "\n\n".join(messages))


def test_both_directions_may_be_named_in_one_word(tiny):
    assert compare(tiny, PAIRS, "z", metrics="kl", directions="both").data.sizes["direction"] == 2
