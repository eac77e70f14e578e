"""The parts of a run: grouping pairs, padding answers, index arrays of patches, the table, the lint."""

import micro
import numpy as np
import pytest
import torch

from nbpatch.engine.base import BaseRuns, Group, group_pairs, pad_ids, trace_runs
from nbpatch.engine.finished import finished
from nbpatch.engine.lint import lint
from nbpatch.engine.replay import flat, replay
from nbpatch.engine.table import Filled, Table
from nbpatch.methods.patching import patch
from nbpatch.metrics import as_metrics
from nbpatch.model import Model, load
from nbpatch.plan import EXACT, FAILED, MEASURED, NOT_RUN, Plan, make_plan
from nbpatch.prompts import PromptPair

SHORT = PromptPair(" Mary and John gave", " John and Mary gave", " Paul", " Mary")
LONG = PromptPair(" Mary and John gave a", " Mary and Paul gave a", " drink", " ball")


@pytest.fixture(scope="module")
def model() -> Model:
    return load((micro.gpt2(), micro.tokenizer()))


@pytest.fixture
def plan(model: Model) -> Plan:
    return make_plan(
        model.shape, model.tokenize([SHORT, LONG, SHORT]), "z", direction="both", metrics=as_metrics("logit_diff kl")
    )


@pytest.fixture
def runs(plan: Plan, model: Model) -> BaseRuns:
    return trace_runs(plan, model, max_tokens=512)


def test_pairs_of_one_length_share_a_group(plan: Plan) -> None:
    groups = group_pairs(plan.tokenized)
    assert [group.pairs for group in groups] == [(0, 2), (1,)]
    assert [tuple(group.ids["clean"].shape) for group in groups] == [(2, 5), (1, 6)]
    np.testing.assert_array_equal(groups[0].aligned[1], [[place, place] for place in range(5)])


def test_a_group_finds_its_rows() -> None:
    group = Group((0, 2, 5), {}, np.zeros((3, 0, 2), np.int64))
    assert group.places(np.array([5, 0, 2, 5])).tolist() == [2, 0, 1, 2]


def test_answers_are_padded_with_minus_one() -> None:
    assert pad_ids([(3,), (4, 5), ()]).tolist() == [[3, -1], [4, 5], [-1, -1]]
    assert pad_ids([(), ()]).shape == (2, 0)


def test_base_runs_are_the_plain_forwards_whatever_the_chunk(plan: Plan, model: Model, runs: BaseRuns) -> None:
    small = trace_runs(plan, model, max_tokens=1)
    for run in ("clean", "corrupted"):
        torch.testing.assert_close(runs.logits[run], small.logits[run], atol=1e-5, rtol=0)
        for number, one in enumerate(plan.tokenized):
            ids = one.clean_ids if run == "clean" else one.corrupted_ids
            with torch.no_grad():
                plain = model._hf(torch.tensor([ids])).logits[0, -1]
            torch.testing.assert_close(runs.logits[run][number], plain, atol=1e-4, rtol=0)


def test_only_the_sources_that_a_direction_needs_are_kept(model: Model) -> None:
    tokenized = model.tokenize(SHORT)
    for direction, kept in (("denoising", {"clean"}), ("noising", {"corrupted"}), ("both", {"clean", "corrupted"})):
        plan = make_plan(model.shape, tokenized, "q", direction=direction, metrics=as_metrics("prob"))
        (group,) = trace_runs(plan, model, max_tokens=512).groups
        assert {run for run, _, _ in group.sources} == kept
        assert {layer for _, _, layer in group.sources} == {0, 1, 2}


def test_a_fresh_table_knows_the_cells_that_cannot_act_and_nothing_else(model: Model) -> None:
    plan = make_plan(
        model.shape, model.tokenize(SHORT), "resid_post", direction="both", metrics=as_metrics("logit_diff")
    )
    table = Table(plan, trace_runs(plan, model, max_tokens=512))
    for number, base in enumerate(("corrupted", "clean")):
        values, states = table.values["logit_diff"][number], table.state[number]
        assert (values[states == EXACT] == table.baselines["logit_diff"][base][0]).all()
        assert np.isnan(values[states == NOT_RUN]).all()
    assert table.progress().done == 0


def test_filling_wave_by_wave_measures_every_planned_run(plan: Plan, model: Model, runs: BaseRuns) -> None:
    table = Table(plan, runs)
    done = [table.progress().done]
    for wave in plan.waves(30):
        for batch, logits in replay(wave, plan, runs, model):
            table.fill(Filled(flat(plan, wave, batch), logits))
        done.append(table.progress().done)
    assert done == sorted(set(done))
    assert done[-1] == plan.n_runs == int((table.state == MEASURED).sum())
    assert all(np.isfinite(values).all() for values in table.values.values())


def test_a_batch_holds_one_direction_and_one_length(plan: Plan, model: Model, runs: BaseRuns) -> None:
    (wave,) = plan.waves(10_000)
    batches = [batch for batch, _ in replay(wave, plan, runs, model)]
    assert [(batch.direction, batch.group.pairs) for batch in batches] == [
        (0, (0, 2)),
        (0, (1,)),
        (1, (0, 2)),
        (1, (1,)),
    ]
    for batch in batches:
        assert {wave[cell].direction for cell in batch.cells} == {batch.direction}


def messages(plan: Plan, runs: BaseRuns, **changed: object) -> str:
    table = Table(plan, runs)
    table.state[table.state == NOT_RUN] = MEASURED
    for name, value in changed.items():
        setattr(table, name, value)
    return "\n".join(lint(finished(table), stopped=False))


def test_the_lint_is_silent_about_what_is_fine(plan: Plan, runs: BaseRuns) -> None:
    fine = {name: {"clean": np.full(3, 2.0), "corrupted": np.full(3, -1.0)} for name in ("logit_diff", "kl")}
    assert messages(plan, runs, baselines=fine) == ""


@pytest.mark.parametrize(
    ("clean", "corrupted", "start"),
    [
        (1.0, 1.0, "No gap. logit_diff is the same in both runs of pair 1, 2, 3."),
        (1.0, 2.0, "The corrupted prompt does better than the clean one on logit_diff in pair 1, 2, 3."),
        (-1.0, -2.0, "The clean run of pair 1, 2, 3 does not prefer the answer"),
    ],
)
def test_the_lint_names_the_pairs_whose_baselines_are_off(plan, runs, clean, corrupted, start) -> None:
    both = {"clean": np.full(3, clean), "corrupted": np.full(3, corrupted)}
    fine = {"clean": np.full(3, 2.0), "corrupted": np.full(3, -1.0)}
    assert start in messages(plan, runs, baselines={"logit_diff": both, "kl": fine})


def test_the_lint_says_where_the_first_nan_was(plan: Plan, runs: BaseRuns) -> None:
    state = np.full(plan.states.shape, MEASURED, np.int8)
    state[1, 2, 3, 0] = FAILED
    assert "Not a number. 1 runs gave NaN logits, first at direction 1, layer 2, head 3, pair 0." in messages(
        plan, runs, state=state
    )


def test_identical_prompts_change_nothing_and_the_lint_says_there_is_no_gap(model: Model) -> None:
    same = PromptPair(SHORT.clean, SHORT.clean, " Paul", " Mary")
    result = patch(model, same, "z", direction="both")
    assert (result.data["state"] == EXACT).all()
    assert float(abs(result.effect()).max()) == 0
    assert result.recovered().isnull().all()
    assert any(warning.startswith("No gap.") for warning in result.warnings)
