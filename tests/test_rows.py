"""Patched runs as rows: each planned run once, decoded as the plan means it, in waves that keep their promises."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpatch.engine.rows import ATTN, COMPONENT_NAMES, HEADS, KINDS, MLP, NEURONS, PRE, WHOLE, Rows, rows_of, waves
from nbpatch.engine.rows import fits as refusal
from nbpatch.metrics import as_metrics
from nbpatch.plan import NOT_RUN, Plan, make_plan
from nbpatch.prompts import PromptPair, TokenizedPair
from nbpatch.sites import COMPONENTS, SWEEPABLE, ModelShape

SHAPE = ModelShape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=8, d_head=2, d_mlp=3, d_vocab=9, n_ctx=32)
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Sweep:
    """What to make a plan of."""

    component: str
    over: tuple[str, ...]
    direction: str


def tokenized(clean: Ids, corrupted: Ids, aligned: tuple[tuple[int, int], ...] | None = None) -> TokenizedPair:
    pair = PromptPair("clean", "corrupted", "answer", "wrong")
    texts = tuple(map(str, clean)), tuple(map(str, corrupted))
    same = tuple((place, place) for place in range(len(clean)))
    return TokenizedPair(pair, clean, corrupted, *texts, (1,), (2,), ("1",), ("2",), aligned or same, has_bos=True)


def plan_of(sweep: Sweep, ids: Sequence[tuple[Ids, Ids]]) -> Plan:
    ones = tuple(tokenized(*one) for one in ids)
    metrics = as_metrics("logit_diff")
    return make_plan(SHAPE, ones, sweep.component, sweep.over, direction=sweep.direction, metrics=metrics)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Ids, Ids]:
    """Prompts of equal length that differ in one or two tokens, or not at all."""
    clean = draw(st.lists(st.integers(1, 4), min_size=1, max_size=7))
    corrupted = list(clean)
    for place in draw(st.lists(st.integers(0, len(clean) - 1), max_size=2, unique=True)):
        corrupted[place] = draw(st.integers(1, 4))
    return (0, *clean), (0, *corrupted)


@st.composite
def one_sweep(draw: st.DrawFn) -> Sweep:
    """Any component over any axes with layers among them."""
    component = draw(st.sampled_from(SWEEPABLE))
    others = [axis for axis in COMPONENTS[component].axes if axis != "layer"]
    over = ("layer", *draw(st.lists(st.sampled_from(others), unique=True)))
    return Sweep(component, over, draw(st.sampled_from(["denoising", "noising", "both"])))


def sweeps() -> st.SearchStrategy[Any]:
    """One to three sweeps and the pairs they are made on; plans are made of them inside the tests."""
    return st.tuples(st.lists(one_sweep(), min_size=1, max_size=3), st.lists(pairs(), min_size=1, max_size=3))


def plans_of(drawn: tuple[list[Sweep], list[tuple[Ids, Ids]]]) -> list[Plan]:
    return [plan_of(one, drawn[1]) for one in drawn[0]]


def planned(plans: list[Plan]) -> list[tuple[int, int]]:
    """Returns each run of some plans, as (plan, flat cell)."""
    return [(number, int(cell)) for number, plan in enumerate(plans) for cell in np.flatnonzero(plan.states == NOT_RUN)]


def runs(*groups: Rows) -> list[tuple[int, int]]:
    return sorted((int(plan), int(cell)) for rows in groups for plan, cell in zip(rows.plan, rows.cell, strict=True))


@given(sweeps())
def test_rows_are_the_planned_runs_each_once(drawn):
    plans = plans_of(drawn)
    assert runs(rows_of(plans)) == planned(plans)


@given(sweeps())
def test_each_row_is_the_cell_that_the_plan_means(drawn):
    plans = plans_of(drawn)
    rows = rows_of(plans)
    for row in range(len(rows)):
        plan = plans[rows.plan[row]]
        direction, *index, pair = (int(i) for i in np.unravel_index(rows.cell[row], plan.states.shape))
        swept = dict(zip(plan.over, index, strict=True))
        one = plan.tokenized[pair]
        clean, corrupted = 2 * pair, 2 * pair + 1
        base, source = (corrupted, clean) if plan.directions[direction] == "denoising" else (clean, corrupted)
        assert (rows.run[row], rows.source[row]) == (base, source)
        assert COMPONENT_NAMES[rows.component[row]] == plan.component
        assert rows.layer[row] == swept["layer"] + (plan.component == "resid_post")
        pos = swept.get("dest" if plan.component == "pattern" else "pos", WHOLE)
        assert (rows.pos[row], rows.head[row]) == (pos, swept.get("head", WHOLE))
        assert (rows.neuron[row], rows.src[row]) == (swept.get("neuron", WHOLE), swept.get("src", WHOLE))
        assert rows.first[row] == (one.first_difference if pos == WHOLE else pos)
        assert rows.last[row] == len(one.clean_ids) - 1
        assert one.first_difference <= rows.first[row] <= rows.last[row], "a row that cannot change anything"
        # A key or a value is read by every later position: only the other components stay at one token.
        assert rows.alone[row] == (pos != WHOLE and plan.component not in ("k", "v"))


def test_kinds_say_where_in_a_block_a_patch_acts_and_from_which_layer_on_it_is_dense():
    expected = {
        PRE: {"resid_pre", "resid_post"},
        HEADS: {"z", "q", "k", "v", "pattern"},
        ATTN: {"attn_out", "resid_mid"},
        NEURONS: {"mlp_post"},
        MLP: {"mlp_out"},
    }
    assert {kind: {name for name, one in KINDS.items() if one == kind} for kind in expected} == expected
    assert set(KINDS) == set(SWEEPABLE)
    for component in SWEEPABLE:
        rows = rows_of([plan_of(Sweep(component, ("layer",), "denoising"), [((0, 1, 2), (0, 3, 2))])])
        layers = np.arange(3) + (component != "resid_pre")
        assert sorted(rows.enter) == sorted(layers)


@given(sweeps(), st.integers(1, 60), st.booleans())
def test_every_planned_run_is_in_exactly_one_wave(drawn, most, whole):
    plans = plans_of(drawn)
    together = len(plans[0].tokenized) if whole else 0
    found = list(waves(rows_of(plans), max_tokens=most, together=together))
    assert runs(*found) == planned(plans)
    assert all(len(wave) for wave in found)


@given(sweeps(), st.integers(1, 60))
def test_a_wave_holds_at_most_so_many_tokens_or_one_row(drawn, most):
    plans = plans_of(drawn)
    found = list(waves(rows_of(plans), max_tokens=most))
    assert all(wave.tokens.sum() <= most or len(wave) == 1 for wave in found)
    tokens = sum(int(wave.tokens.sum()) for wave in found)
    assert len(found) <= 2 * np.ceil(tokens / most) + 1, "waves of next to nothing"


@given(sweeps(), st.integers(1, 60), st.booleans())
def test_the_deepest_layers_come_first(drawn, most, whole):
    plans = plans_of(drawn)
    together = len(plans[0].tokenized) if whole else 0
    found = list(waves(rows_of(plans), max_tokens=most, together=together))
    for earlier, later in itertools.pairwise(found):
        assert earlier.enter.min() >= later.enter.max()


@given(sweeps(), st.integers(1, 60))
def test_together_keeps_all_pairs_of_a_cell_in_one_wave(drawn, most):
    plans = plans_of(drawn)
    n_pairs = len(plans[0].tokenized)
    found = list(waves(rows_of(plans), max_tokens=most, together=n_pairs))
    cells = [set(zip(wave.plan.tolist(), (wave.cell // n_pairs).tolist(), strict=True)) for wave in found]
    assert sum(map(len, cells)) == len(set().union(*cells)), "a cell in two waves"


def lengths(tokens: list[int]) -> Rows:
    """Returns rows of so many tokens that are the same in all else."""
    columns: dict[str, Any] = {name: np.zeros(len(tokens), np.int64) for name in Rows.__dataclass_fields__}
    columns["alone"] = np.zeros(len(tokens), np.bool_)
    columns["cell"], columns["last"] = np.arange(len(tokens)), np.array(tokens) - 1
    return Rows(**columns)


@pytest.mark.parametrize(
    ("tokens", "most", "count"),
    [([6, 6, 6, 6], 10, 4), ([5, 5, 5], 8, 3), ([5, 5, 5, 5], 10, 2), ([30, 2, 2], 10, 2), ([3] * 8, 24, 1)],
)
def test_rows_that_do_not_divide_evenly_do_not_overfill_a_wave(tokens, most, count):
    sizes = [wave.tokens.tolist() for wave in waves(lengths(tokens), max_tokens=most)]
    assert all(sum(size) <= most or len(size) == 1 for size in sizes)
    assert len(sizes) == count


def test_no_rows_are_no_wave():
    rows = rows_of([plan_of(Sweep("z", ("layer", "head"), "denoising"), [((0, 1, 2), (0, 1, 2))])])
    assert not len(rows)
    assert list(waves(rows, max_tokens=10)) == []


@given(sweeps(), st.data())
def test_taking_rows_takes_every_column(drawn, data):
    plans = plans_of(drawn)
    rows = rows_of(plans)
    if not len(rows):
        return
    index = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5)))
    taken = rows.take(index)
    for name in Rows.__dataclass_fields__:
        assert getattr(taken, name).tolist() == getattr(rows, name)[index].tolist()


def test_what_the_frontier_does_not_take_is_said():
    metrics = as_metrics("logit_diff")
    unequal = tokenized((0, 1, 2, 3), (0, 2, 3), ((0, 0), (1, 1), (3, 2)))
    equal = tokenized((0, 1, 2), (0, 2, 2))
    assert refusal(make_plan(SHAPE, [unequal], "resid_pre", metrics=metrics)) == "prompts of unequal length in a pair"
    assert refusal(make_plan(SHAPE, [equal], "z", "head", metrics=metrics)) == "all layers patched at once"
    assert refusal(make_plan(SHAPE, [equal], "z", metrics=metrics)) == ""
