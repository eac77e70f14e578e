"""Plans: which cells there are, which are known without running, how they are grouped, what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpatch.errors import MetricError, PlanError
from nbpatch.metrics import as_metrics
from nbpatch.plan import EXACT, NO_POSITION, NOT_RUN, Plan, make_plan
from nbpatch.prompts import PromptPair, TokenizedPair
from nbpatch.result import STATES
from nbpatch.sites import ModelShape

SHAPE = ModelShape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=32, d_head=8, d_mlp=64, d_vocab=50, n_ctx=32)
METRICS = as_metrics("logit_diff")


def tokens(clean: list[int], corrupted: list[int], *, wrong: tuple[int, ...] = (2,)) -> TokenizedPair:
    """A pair given by token ids; only ids matter to a plan."""
    text = PromptPair("clean", "corrupted", " a", " b" if wrong else None)
    return TokenizedPair(
        pair=text,
        clean_ids=tuple(clean),
        corrupted_ids=tuple(corrupted),
        clean_tokens=tuple(map(str, clean)),
        corrupted_tokens=tuple(map(str, corrupted)),
        answer_ids=(1,),
        wrong_ids=wrong,
        answer_tokens=(" a",),
        wrong_tokens=(" b",) if wrong else (),
        aligned=tuple((place, place) for place in range(min(len(clean), len(corrupted)))),
        has_bos=True,
    )


ONE = tokens([0, 5, 6, 7, 8], [0, 5, 9, 7, 8])


def plan(
    component: str, over: str, *pairs: TokenizedPair, direction: str = "denoising", shape: ModelShape = SHAPE
) -> Plan:
    return make_plan(shape, pairs or (ONE,), component, over, direction=direction, metrics=METRICS)


def grid(component: str, over: str) -> list[str]:
    """The states of one pair, a letter a cell: . exact, # planned."""
    states = plan(component, over).states[0, ..., 0]
    return ["".join(".#"[int(code == NOT_RUN)] for code in row) for row in states.reshape(-1, states.shape[-1])]


def test_the_residual_stream_acts_from_the_first_differing_token_on_and_only_there_in_layer_0():
    assert grid("resid_pre", "layer pos") == ["..#..", "..###", "..###"]


def test_outputs_of_the_last_layer_act_at_the_answer_only():
    assert grid("mlp_out", "layer pos") == ["..###", "..###", "....#"]
    assert grid("resid_post", "layer pos")[-1] == "....#"


def test_keys_act_everywhere_in_the_last_layer_but_queries_at_the_answer_only():
    assert grid("k", "layer head pos")[:2] == ["..#..", "..#.."]
    assert grid("k", "layer head pos")[-1] == "..###"
    assert grid("q", "layer head pos")[-1] == "....#"


def test_patterns_act_on_and_below_the_diagonal():
    states = plan("pattern", "layer head dest src").states[0, 1, 0, :, :, 0]
    assert ["".join(".#"[int(code == NOT_RUN)] for code in row) for row in states] == [
        ".....", ".....", "###..", "####.", "#####",
    ]  # fmt: skip


def test_whole_axes_act_if_any_part_does():
    assert grid("z", "layer head") == ["####"] * 3
    assert grid("resid_pre", "pos") == ["..###"]


def test_without_causal_attention_earlier_positions_act_too():
    shape = ModelShape(3, 4, 4, 32, 8, 64, 50, 32, causal=False)
    states = plan("resid_mid", "layer pos", shape=shape).states[0, ..., 0]
    assert (states[:2] == NOT_RUN).all()


def test_identical_prompts_leave_nothing_to_run():
    same = tokens([0, 5, 6], [0, 5, 6])
    assert plan("z", "layer head", same).n_runs == 0


def test_a_shorter_pair_has_no_cells_beyond_its_end():
    states = plan("resid_mid", "layer pos", ONE, tokens([0, 5, 6], [0, 7, 6])).states
    assert (states[0, :, 3:, 1] == NO_POSITION).all()
    assert (states[0, :, :3, 1] != NO_POSITION).all()


@given(st.integers(1, 300), st.sampled_from(["resid_pre", "z", "pattern"]), st.sampled_from(["denoising", "both"]))
def test_waves_hold_every_planned_cell_once_and_keep_to_the_budget(max_tokens: int, component: str, direction: str):
    sweep = plan(component, "layer", ONE, tokens([0, 5, 6], [0, 7, 6]), direction=direction)
    waves = list(sweep.waves(max_tokens))
    cells = [cell for wave in waves for cell in wave]
    assert cells == list(sweep.cells())
    assert sum(len(cell.pairs) for cell in cells) == sweep.n_runs
    for wave in waves:
        cost = sum(sweep.base_length(cell.direction, pair) for cell in wave for pair in cell.pairs)
        assert cost <= max_tokens or len(wave) == 1


def test_describe_counts_what_is_run_and_what_is_not():
    text = plan("resid_pre", "layer pos", direction="both").describe()
    assert text.splitlines() == [
        "resid_pre over layer pos, denoising and noising: 30 cells × 1 pair.",
        "14 runs.",
        "16 exactly the base value by construction, not run.",
    ]


def test_a_cell_names_its_site():
    sweep = plan("pattern", "layer head dest")
    assert str(sweep.site(next(sweep.cells()))) == "pattern[0.0] @ 2"


@pytest.mark.parametrize(
    ("call", "what", "fix"),
    [
        (
            lambda: make_plan(SHAPE, (ONE,), "z", direction="denoise", metrics=METRICS),
            "no direction 'denoise'",
            "denoising",
        ),
        (lambda: make_plan(SHAPE, (), "z", metrics=METRICS), "no prompt pairs", "PromptPair"),
        (lambda: plan("pattern", "layer head", tokens([0, 1, 2], [0, 1])), "unequal length", '"z", "q" or "k"'),
    ],
)
def test_senseless_sweeps_are_refused(call, what, fix):
    with pytest.raises(PlanError, match=what) as caught:
        call()
    assert fix in caught.value.fix


def test_logit_diff_without_a_wrong_answer_is_refused():
    with pytest.raises(MetricError, match="needs a wrong answer"):
        plan("z", "layer", tokens([0, 1], [0, 2], wrong=()))


def test_the_codes_are_those_of_a_result():
    assert [STATES[code] for code in (EXACT, NOT_RUN, NO_POSITION)] == ["exact", "not run", "no position"]
    assert plan("z", "layer").states.dtype == np.int8
