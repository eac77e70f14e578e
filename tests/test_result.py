"""Results: the statistics by their definitions, absent values that say why, files that open without torch."""

import dataclasses
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import nbpatch
from nbpatch.errors import ResultError
from nbpatch.result import NO_GAP, REASONS, STATES, Result

SIZES = {"layer": 2, "head": 3, "pos": 4, "dest": 4, "src": 4}
TOKENS = ["<bos>", "The", " girl", ","]
UNICODE = ["<bos>", "日本", "🦊", "שלום"]


def provenance(over: tuple[str, ...], direction: str, pairs: int, tokens: list[str]) -> dict[str, Any]:
    pair = {
        "clean": "".join(tokens[1:]), "corrupted": "The boy,", "answer": [" she"], "wrong": [" he"],
        "clean_tokens": tokens, "corrupted_tokens": ["<bos>", "The", " boy", ","], "clean_ids": [0, 1, 2, 3],
        "corrupted_ids": [0, 1, 4, 3], "aligned": [[0, 0], [1, 1], [2, 2], [3, 3]], "differs": [2], "clean_end": 3,
        "corrupted_end": 3, "has_bos": True, "clean_top": [[" she", 0.8]], "corrupted_top": [[" he", 0.7]],
    }  # fmt: skip
    return {
        "method": "patch", "component": "z" if "head" in over else "resid_pre", "component_label": "attention heads",
        "over": list(over), "direction": direction, "corruption": "counterfactual",
        "corruption_words": "Values came from the other prompt of the same pair (counterfactual).", "seed": None,
        "metrics": [{"name": "logit_diff", "unit": "logit", "label": "logit difference", "linear": True}],
        "model": {
            "name": "small", "hash": "0123456789abcdef", "family": "gpt2", "n_layers": 2, "n_heads": 3, "n_kv_heads": 3,
            "d_model": 6, "d_vocab": 9, "dtype": "float32", "device": "cpu",
        },
        "pairs": [pair] * pairs,
        "engine": {"name": "replay", "cells": 6, "run": 6, "exact": 0, "forwards": 2, "seconds": 0.5},
        "versions": {"python": "3.11", "nbpatch": "0.1.0"},
    }  # fmt: skip


def result(
    values: Any = None,
    *,
    over: tuple[str, ...] = ("layer", "head"),
    direction: str = "denoising",
    clean: Any = (4.0,),
    corrupted: Any = (-4.0,),
    state: Any = None,
    tokens: list[str] = TOKENS,
) -> Result:
    """A result with given m(patched) [(direction) *over pair]; by default 0, 1, 2 …."""
    pairs = len(clean)
    dims = (*(("direction",) if direction == "both" else ()), *over, "pair")
    shape = [2 if dim == "direction" else pairs if dim == "pair" else SIZES[dim] for dim in dims]
    filled = np.arange(np.prod(shape), dtype=float).reshape(shape) if values is None else np.asarray(values, float)
    filled = np.broadcast_to(filled, shape).copy()
    states = np.zeros(shape, np.int8) if state is None else np.broadcast_to(np.asarray(state, np.int8), shape)
    coords: dict[str, Any] = {dim: np.arange(size) for dim, size in zip(dims, shape, strict=True)}
    if direction == "both":
        coords["direction"] = ["denoising", "noising"]
    data = xr.Dataset(
        {"logit_diff": (dims, filled, {"unit": "logit", "label": "logit difference"})},
        coords={**coords, "state": (dims, states)},
    )
    base = {"clean": (("metric", "pair"), [list(clean)]), "corrupted": (("metric", "pair"), [list(corrupted)])}
    baselines = xr.Dataset(base, coords={"metric": ["logit_diff"], "pair": np.arange(pairs)})
    return Result(data, baselines, provenance(over, direction, pairs, tokens), ("One pair only. Add pairs.",))


def attention() -> Result:
    dims = ("run", "layer", "head", "dest", "src", "pair")
    data = xr.Dataset({"pattern": (dims, np.full((2, 2, 3, 4, 4, 1), 0.25))}, coords={"run": ["clean", "corrupted"]})
    made = provenance((), "denoising", 1, TOKENS)
    kept = {key: made[key] for key in ("model", "pairs", "versions")}
    return Result(data, xr.Dataset(), {"method": "attention", **kept})


# The statistics are their definitions.


def test_denoising_is_measured_from_the_corrupted_run():
    one = result(2.0)
    assert float(one.effect()[0, 0]) == 6.0
    assert float(one.share()[0, 0]) == pytest.approx(0.75)
    assert float(one.recovered()[0, 0]) == pytest.approx(0.75)
    assert float(one.gap()[0]) == 8.0


def test_noising_is_measured_from_the_clean_run():
    one = result(2.0, direction="noising")
    assert float(one.effect()[0, 0]) == -2.0
    assert float(one.share()[0, 0]) == pytest.approx(-0.25)
    assert float(one.recovered()[0, 0]) == pytest.approx(0.75)


def test_both_directions_have_a_base_each():
    one = result(2.0, direction="both")
    assert one.effect().dims == ("direction", "layer", "head")
    np.testing.assert_allclose(one.effect()[:, 0, 0], [6.0, -2.0])
    np.testing.assert_allclose(one.recovered()[:, 0, 0], [0.75, 0.75])
    np.testing.assert_allclose(one.share()[:, 0, 0], [0.75, -0.25])


def test_over_pairs_recovered_is_the_ratio_of_means():
    one = result([1.0, 4.0], clean=(2.0, 6.0), corrupted=(0.0, 0.0))
    assert float(one.recovered()[0, 0]) == pytest.approx(5 / 8)
    np.testing.assert_allclose(one.recovered(per_pair=True)[0, 0], [1 / 2, 4 / 6])
    np.testing.assert_allclose(one.effect(per_pair=True)[0, 0], [1.0, 4.0])
    assert float(one.effect()[0, 0]) == 2.5


def test_a_pair_without_the_cell_counts_in_neither_mean():
    one = result([1.0, np.nan], clean=(2.0, 6.0), corrupted=(0.0, 0.0), state=[0, 3])
    assert float(one.recovered()[0, 0]) == pytest.approx(1 / 2)
    assert float(one.effect()[0, 0]) == 1.0
    assert np.isnan(one.recovered(per_pair=True)[0, 0, 1])


@pytest.mark.parametrize("gap", [0.0, NO_GAP / 2, -NO_GAP / 2])
def test_without_a_gap_there_is_nothing_to_recover(gap):
    one = result(1.0, clean=(gap,), corrupted=(0.0,))
    for values in (one.recovered(), one.share(), one.recovered(per_pair=True)):
        assert np.isnan(values).all()
    assert float(one.effect()[0, 0]) == 1.0
    assert one.reason(layer=0, head=0) == "no gap: the metric is the same in the clean and the corrupted run"


def test_a_gap_just_large_enough_counts():
    assert float(result(1.0, clean=(1.01 * NO_GAP,), corrupted=(0.0,)).recovered()[0, 0]) > 1


numbers = st.floats(-50, 50, allow_subnormal=False)


@given(hnp.arrays(float, (2, 3, 3), elements=numbers), numbers, st.floats(0.1, 20))
def test_the_two_directions_tell_one_story(values, corrupted, gap):
    base = {"clean": (corrupted + gap,) * 3, "corrupted": (corrupted,) * 3}
    there, back = result(values, **base), result(values, direction="noising", **base)
    np.testing.assert_allclose(there.share(), there.recovered(), atol=1e-6)
    np.testing.assert_allclose(back.share(), back.recovered() - 1, atol=1e-6)
    swapped = result(values, direction="noising", clean=base["corrupted"], corrupted=base["clean"])
    np.testing.assert_allclose(swapped.recovered(), 1 - there.recovered(), atol=1e-6)


@given(hnp.arrays(float, (2, 3, 4), elements=numbers), st.permutations(range(4)))
def test_the_order_of_pairs_changes_nothing(values, order):
    clean, corrupted = np.arange(4) + 3.0, -np.arange(4) - 1.0
    one = result(values, clean=clean, corrupted=corrupted)
    other = result(values[..., order], clean=clean[order], corrupted=corrupted[order])
    np.testing.assert_allclose(one.recovered(), other.recovered(), atol=1e-9)
    np.testing.assert_allclose(one.effect(), other.effect(), atol=1e-9)


def test_an_unknown_metric_is_refused_with_a_suggestion():
    with pytest.raises(ResultError) as caught:
        result().effect("logit_dif")
    assert caught.value.fix == 'did you mean "logit_diff"?'


# The interval.


def spread(seed: int = 0) -> Result:
    drawn = np.random.default_rng(seed).normal(2.0, 1.0, (2, 3, 12))
    return result(drawn, clean=(4.0,) * 12, corrupted=(0.0,) * 12)


def test_the_interval_holds_the_value_and_repeats():
    one = spread()
    bounds = one.interval()
    assert (bounds["low"] <= one.recovered()).all()
    assert (bounds["high"] >= one.recovered()).all()
    assert (bounds["low"] < bounds["high"]).all()
    xr.testing.assert_identical(bounds, one.interval())
    assert not bounds.identical(one.interval(seed=1))
    assert bounds["low"].dims == one.recovered().dims


def test_a_wider_level_gives_a_wider_interval():
    narrow, wide = spread().interval(level=0.5), spread().interval(level=0.99)
    assert (wide["low"] < narrow["low"]).all()
    assert (wide["high"] > narrow["high"]).all()


def test_the_interval_is_the_bootstrap_done_by_hand():
    one = spread()
    draws = np.random.default_rng(3).integers(0, 12, (50, 12))
    ratios = [float(one.data["logit_diff"][1, 2, row].mean()) / 4.0 for row in draws]
    low, high = np.quantile(ratios, [0.05, 0.95])
    bounds = one.interval(level=0.9, n=50, seed=3)
    assert float(bounds["low"][1, 2]) == pytest.approx(low)
    assert float(bounds["high"][1, 2]) == pytest.approx(high)


def test_equal_pairs_leave_no_width():
    bounds = result(2.0, clean=(4.0,) * 3, corrupted=(0.0,) * 3).interval(n=20)
    np.testing.assert_allclose(bounds["low"], 0.5)
    np.testing.assert_allclose(bounds["high"], 0.5)


def test_absent_cells_have_no_interval_and_do_not_spoil_others():
    values = np.full((2, 3, 3), 2.0)
    values[0, 0], values[0, 1, 0] = np.nan, np.nan
    bounds = result(values, clean=(4.0, 8.0, 8.0), corrupted=(0.0,) * 3).interval(n=200)
    assert np.isnan(bounds["low"][0, 0])
    np.testing.assert_allclose([bounds["low"][0, 1], bounds["high"][0, 1]], 0.25)
    assert np.isfinite(bounds["low"][1]).all()


def test_many_cells_go_in_parts(monkeypatch):
    whole = spread().interval(n=30)
    monkeypatch.setattr("nbpatch.statistics._CELLS_AT_ONCE", 4)
    xr.testing.assert_allclose(spread().interval(n=30), whole)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (result, {}, "at least two pairs"),
        (spread, {"level": 95}, "level is a share"),
        (spread, {"level": 0}, "level is a share"),
    ],
)
def test_an_interval_that_makes_no_sense_is_refused(make, options, words):
    with pytest.raises(ResultError, match=words):
        make().interval(**options)


# Tables.


def test_the_frame_has_a_row_per_cell_and_names_the_tokens():
    frame = result(over=("layer", "pos")).to_frame()
    assert list(frame) == ["layer", "pos", "pos_token", "effect", "share", "recovered", "state"]
    assert len(frame) == 8
    assert list(frame["pos_token"][:4]) == TOKENS
    assert frame["effect"][1] == 5.0
    assert set(frame["state"]) == {"measured"}


def test_the_frame_of_both_directions_names_them():
    frame = result(direction="both", over=("layer", "dest", "src")).to_frame()
    assert list(frame)[:6] == ["direction", "layer", "dest", "dest_token", "src", "src_token"]
    assert list(frame["direction"].unique()) == ["denoising", "noising"]


def test_tokens_that_differ_between_pairs_are_marked():
    one = result(over=("pos",), clean=(4.0, 4.0), corrupted=(0.0, 0.0))
    pairs = [{**one.provenance["pairs"][0], "clean_tokens": tokens} for tokens in (TOKENS, ["<bos>", "A"])]
    frame = dataclasses.replace(one, provenance={**one.provenance, "pairs": pairs}).to_frame()
    assert list(frame["pos_token"]) == ["<bos>", "The …", " girl", ","]


def test_the_frame_says_why_a_value_is_absent():
    state = np.zeros((2, 3, 2), np.int8)
    state[0, 1], state[0, 2], state[1, 0] = 1, 2, [0, 3]
    frame = result(
        np.where(np.isin(state, (2, 3)), np.nan, 1.0), state=state, clean=(4, 4), corrupted=(0, 0)
    ).to_frame()
    assert list(frame["state"][:4]) == ["measured", "exact", "not run", "mixed"]
    assert np.isnan(frame["effect"][2])


def test_the_strongest_cells_come_first_whatever_their_sign():
    top = result([[[0.0], [-20.0], [1.0]], [[9.0], [np.nan], [-3.0]]], state=0).top(3)
    assert [(row.layer, row.head) for row in top.itertuples()] == [(0, 1), (1, 0), (0, 2)]
    assert list(top.index) == [0, 1, 2]


def test_there_are_never_more_rows_than_values():
    assert len(result(np.nan).top()) == 0
    assert len(result().top(99)) == 6


def test_the_text_form():
    golden.check("result_repr", repr(result(over=("layer", "pos"))))
    golden.check("result_repr_both", repr(result(direction="both", clean=(4.0, 5.0), corrupted=(0.0, -1.0))))
    assert "no cell has a value" in repr(result(np.nan))
    assert repr(attention()) == "Result of attention on small (run 2, layer 2, head 3, dest 4, src 4, pair 1)"


def test_small_effects_are_not_shown_as_nothing():
    one = result(0.0004, clean=(0.001,), corrupted=(0.0,))
    assert "+0.00040 +0.40" in repr(one)


# Reasons.


@pytest.mark.parametrize("code", range(len(STATES)))
def test_every_state_has_its_reason(code):
    values = 1.0 if code < 2 else np.nan
    assert result(values, state=code).reason(layer=0, head=0) == REASONS[STATES[code]]


def test_not_run_comes_before_no_gap():
    one = result(np.nan, state=2, clean=(0.0,), corrupted=(0.0,))
    assert one.reason(layer=0, head=0).startswith("not run")


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ({"layer": 9, "head": 0}, "no such cell"),
        ({"layr": 0, "head": 0}, "no such cell"),
        ({"layer": 0}, "more than one cell"),
        ({"layer": 0, "head": 0, "pair": 7}, "no such cell"),
    ],
)
def test_a_reason_for_no_cell_is_refused(cell, words):
    with pytest.raises(ResultError, match=words) as caught:
        result().reason(**cell)
    assert caught.value.fix


# Attention has no effect.


@pytest.mark.parametrize("name", ["effect", "recovered", "share", "gap", "interval", "to_frame", "top", "reason"])
def test_attention_patterns_have_no_statistics(name):
    with pytest.raises(ResultError) as caught:
        getattr(attention(), name)()
    golden.check("result_attention", str(caught.value))


# The card.


def test_the_card_in_words():
    golden.check("result_card", result().card())
    golden.check("result_card_both", result(direction="both", clean=(4.0, 5.0), corrupted=(0.0, -1.0)).card())
    golden.check("result_card_attention", attention().card())


# A result is a value.


def test_a_result_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        result().warnings = ()  # type: ignore[misc]


def test_there_is_no_html_form_of_its_own():
    assert not hasattr(Result, "_repr_html_")


def test_the_views_come_through_the_one_registration_point(monkeypatch):
    seen: list[Any] = []

    class Views:
        def __getattr__(self, name: str) -> Any:
            def view(_: Result, *args: Any, **options: Any) -> Path:
                seen.append((name, args, options))
                return ({}, {}) if name == "mimebundle" else Path("x.html")

            return view

    asked: list[bool] = []
    monkeypatch.setattr(nbpatch.display, "provider", lambda *, live: asked.append(live) or Views())
    one = result()
    one.plot("logit_diff", title=False)
    one.show(pair=1)
    one.to_html("x.html")
    one._repr_mimebundle_()
    assert seen == [
        ("plot", (), {"metric": "logit_diff", "title": False}),
        ("show", (), {"pair": 1}),
        ("to_html", ("x.html",), {"attention": True}),
        ("mimebundle", (), {}),
    ]
    assert asked == [False] * 4
    dataclasses.replace(one, origin=object()).show()
    assert asked[-1]


def test_the_frame_is_a_plain_frame():
    assert type(result().to_frame()) is pd.DataFrame
