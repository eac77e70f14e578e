"""What a corruption refuses: each with what, where, what was seen and what to type next."""

from collections.abc import Callable
from typing import Any

import pytest
from oracle_ablation import PAIRS, TRIOS, model_of
from test_corruption import CASES, swept, values

import nbpatch
from nbpatch import PromptPair
from nbpatch.errors import NbpatchError, PlanError

LONG = "Then Mary and John went to the store, and John gave a drink to"
UNLABELLED = PromptPair("The capital of Greece is", "The capital of Spain is", " Athens", " Madrid")


def wrong(make: Callable[[], Any], component: str = "z", pairs: Any = None, **options: Any) -> NbpatchError:
    with pytest.raises(NbpatchError) as caught:
        nbpatch.patch(model_of("tiny", "auto"), pairs or PAIRS["tiny"], component, corruption=make(), **options)
    assert caught.value.what
    assert "\n  try" in str(caught.value)
    return caught.value


@pytest.mark.parametrize("direction", ["denoising", "both"])
@pytest.mark.parametrize("case", ["zero", "mean", "resample"])
def test_values_of_an_ablation_go_into_the_clean_run_only(case, direction):
    error = wrong(lambda: CASES[case].make("tiny"), direction=direction)
    assert isinstance(error, PlanError)


@pytest.mark.parametrize("component", ["resid_pre", "z", "pattern"])
def test_a_position_that_no_prompt_of_the_dataset_has_is_refused(component):
    error = wrong(lambda: nbpatch.Mean(["The capital of Peru is"]), component)
    assert isinstance(error, PlanError)
    assert values(swept("tiny", "auto", "z", corruption=nbpatch.Mean([LONG]))).size


def test_a_mean_pattern_over_positions_is_refused():
    assert isinstance(wrong(lambda: nbpatch.Mean(per_position=False), "pattern"), PlanError)


@pytest.mark.parametrize("dataset", [None, ["The capital city of France is", "The capital of Greece is", "Paul gave"]])
def test_a_pair_that_no_prompt_can_be_drawn_for_is_named(dataset):
    """The second pair has no other prompt of its length; its own, though it is there, is not drawn."""
    error = wrong(lambda: nbpatch.Resample(dataset), pairs=TRIOS["tiny"])
    assert isinstance(error, PlanError)
    assert "pair 2" in str(error)
    assert "pair 1" not in str(error)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    "make",
    [
        lambda: nbpatch.Noise("nothing"),
        lambda: nbpatch.Noise(("subject", "nothing")),
        lambda: nbpatch.Noise((6,)),
        lambda: nbpatch.Noise(()),
        lambda: nbpatch.Noise("subject", n=0),
        lambda: nbpatch.Resample(k=0),
        lambda: nbpatch.Resample(run="other"),
        lambda: nbpatch.Mean(run="other"),
        lambda: nbpatch.Mean([]),
        lambda: nbpatch.Mean(["The zxqv is"]),
        lambda: nbpatch.Mean(3),
        lambda: "zero",
    ],
    ids=[
        "no label", "one of two labels", "a position that a pair lacks", "no place", "no draws",
        "no draw", "no such run", "no such run either", "no prompts", "unknown words", "no dataset", "no corruption",
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make):
    wrong(make)


def test_a_pair_without_the_label_is_named():
    error = wrong(lambda: nbpatch.Noise("subject"), pairs=[PAIRS["tiny"][0], UNLABELLED])
    assert "pair 2" in str(error)


def test_an_unknown_direction_is_refused_whatever_the_corruption():
    for make in (nbpatch.Zero, lambda: nbpatch.Noise("subject")):
        wrong(make, direction="sideways")
