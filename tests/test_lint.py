"""Every check a run makes on itself: provoked, worded, with what to do; and silent where there is nothing to say."""

import pytest

import nbpatch
from nbpatch import Mean, Noise, PromptPair, Resample, Zero, patch

IOI = PromptPair(
    clean="When Mary and John went to the store, John gave a drink to",
    corrupted="When Mary and John went to the store, Mary gave a drink to",
    answer=" Mary",
    wrong=" John",
    labels={"S2": (38, 42)},
)
TURNED = PromptPair(IOI.corrupted, IOI.clean, " Mary", " John")
SAME = PromptPair(IOI.clean, IOI.clean, " Mary", " John")
KEPT = PromptPair(IOI.clean, IOI.clean.replace("drink", "letter"), " Mary", " John")
OTHER = PromptPair(
    IOI.clean.replace("drink", "ball"), "While Tom and Jane were at the house, Jane offered a key to", " Mary", " John"
)
MODEL = "tiny"


def warned(pairs, component="resid_pre", **options):
    return patch(MODEL, pairs, component, **options).warnings


@pytest.fixture(autouse=True)
def embedded(tiny, monkeypatch):
    monkeypatch.setitem(globals(), "MODEL", tiny)


def begins(warnings, words):
    return sum(one.startswith(words) for one in warnings)


PROVOKED = [
    (IOI, {}, "One pair only"),
    (IOI, {}, "One direction only. Denoising does not show"),
    (IOI, {"direction": "noising"}, "One direction only. Noising misses"),
    (IOI, {"corruption": Zero()}, "One direction only. An ablation misses"),
    (IOI, {"metric": "prob"}, "Probability only."),
    (SAME, {}, "No gap. logit_diff is the same in both runs of pair 1."),
    (SAME, {}, "The prompts are the same tokens"),
    (TURNED, {}, "The corrupted prompt does better than the clean one on logit_diff in pair 1."),
    (TURNED, {}, "The clean run of pair 1 does not prefer the answer"),
    (KEPT, {}, "Small gap. The corrupted run of pair 1 prefers the answer"),
    (OTHER, {}, "The prompts of pair 1 differ in most of their tokens"),
    (IOI, {"corruption": Noise("S2", n=2)}, "Noise takes the model where it was not trained."),
    (IOI, {"corruption": Zero()}, "Every effect is one of zero ablation. Compare with mean or resample"),
    (IOI, {"corruption": Mean([TURNED.clean])}, "Every effect is one of mean ablation. Compare with zero or resample"),
    (IOI, {"corruption": Resample([TURNED.clean])}, "Every effect is one of resample ablation. Compare with zero"),
]


@pytest.mark.parametrize(("pair", "options", "words"), PROVOKED)
def test_each_check_is_provoked_once_and_says_what_to_do(pair, options, words):
    found = warned(pair, **options)
    assert begins(found, words) == 1, found
    told = next(one for one in found if one.startswith(words))
    assert told.rstrip(".").count(".") >= 1, "a second sentence says what to do"


def test_a_part_that_stands_in_for_another_is_suspected():
    found = warned(IOI, "k", over="layer head", direction="both")
    assert begins(found, "No single cell takes away more than") == 1
    assert not begins(warned(IOI, "z", over="layer head", direction="both"), "No single cell")
    assert not begins(warned(IOI, "k", over="layer head"), "No single cell"), "denoising asks something else"


def test_nothing_is_said_of_a_good_sweep(tiny):
    with pytest.warns(UserWarning, match="leaves out"):
        pairs = nbpatch.tasks.ioi(tiny, n=4, seed=1)
    assert warned(pairs, "z", direction="both") == ()


def test_an_ablation_does_not_ask_for_another_prompt():
    found = warned([SAME, IOI], corruption=Zero())
    assert not begins(found, "The prompts are the same tokens")
    assert not begins(found, "Pair 1: The prompts are the same tokens")


@pytest.mark.parametrize("options", [{}, {"corruption": Noise("S2", n=2)}, {"corruption": Zero()}])
def test_the_card_carries_every_warning_in_both_forms(options, tmp_path):
    result = patch(MODEL, IOI, "resid_pre", **options)
    assert result.warnings
    lines = [one for one in result.card().splitlines() if one.startswith("Warning:")]
    assert [one.removeprefix("Warning:").strip() for one in lines] == list(result.warnings)
    assert result.card(markdown=True).count("- **Warning.**") == len(result.warnings)
    assert result.provenance["corruption_words"] in result.card()


def test_the_card_is_in_the_saved_file_for_other_programs(tmp_path):
    import xarray as xr

    result = patch(MODEL, IOI, "resid_pre", corruption=Zero())
    path = result.save(tmp_path / "zero.nc")
    with xr.open_dataset(path, group="data", engine="h5netcdf") as data:
        assert data.attrs["methods_card"] == result.card()
    again = nbpatch.read(path)
    assert again.card() == result.card()
    assert "methods_card" not in again.data.attrs


def test_markdown_shows_what_is_meant_to_be_read():
    card = patch(MODEL, IOI, "resid_pre").card(markdown=True)
    assert "logit\\_diff \\[logit\\]" in card
    assert all(line.startswith("- **") for line in card.splitlines())


@pytest.mark.parametrize(("corruption", "kind"), [(Zero(), "zero"), (Mean(), "mean"), (Noise("S2", n=2), "noise")])
def test_the_kind_stands_with_every_number(corruption, kind):
    result = patch(MODEL, IOI, "resid_pre", corruption=corruption)
    assert f"({kind})" in repr(result).splitlines()[0]
    assert result.provenance["corruption"] == kind
