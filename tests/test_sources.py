"""Where the workbench's values come from: the other prompt, zero, a mean, other pairs; on the page and said again."""

from typing import Any

import numpy as np
import pytest
from test_workbench import OTHER, PAIR, Page, model  # noqa: F401 - a fixture

import nbpatch as nbp
from nbpatch.corruption import SOURCES
from nbpatch.errors import PlanError
from nbpatch.live.controls import as_magic, as_python
from nbpatch.model import Model
from nbpatch.workbench import Workbench


@pytest.fixture
def page(model: Model, monkeypatch: pytest.MonkeyPatch) -> Page:  # noqa: F811
    return Page(Workbench(model, [PAIR, OTHER], "z"), monkeypatch)


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_an_ablation_chosen_on_the_page_is_what_patch_gives(page: Page, kind: str) -> None:
    page.say("set", corruption=kind, direction="noising")
    page.settle()
    assert page.bench.error is None
    same = nbp.patch(page.bench.model, [PAIR, OTHER], "z", corruption=SOURCES[kind])
    np.testing.assert_allclose(page.bench.result.data["logit_diff"], same.data["logit_diff"], atol=1e-6)
    assert page.wait_for("map")[-1]["key"]["corruption"] == kind
    spec = page.bench.spec
    assert (spec["corruption"], spec["direction"]) == (kind, "noising")
    words = next(one["words"] for one in spec["corruptions"] if one["name"] == kind)
    assert words == same.provenance["corruption_words"]


def test_the_trait_follows_and_leads(page: Page) -> None:
    page.bench.corruption = "zero"
    page.settle()
    assert page.bench.direction == "noising"
    assert page.bench.result.provenance["corruption"] == "zero"
    page.bench.corruption = "counterfactual"
    page.settle()
    assert page.bench.result.provenance["corruption"] == "counterfactual"
    with pytest.raises(PlanError, match="no corruption 'zeros'"):
        page.bench.corruption = "zeros"
    assert page.bench.corruption == "counterfactual"


def test_an_ablation_restores_nothing(page: Page) -> None:
    page.bench.corruption = "zero"
    page.settle()
    with pytest.raises(PlanError, match="they restore nothing"):
        page.bench.direction = "denoising"
    assert page.bench.direction == "noising"
    assert page.bench.corruption == "zero"


def test_maps_of_different_sources_are_kept_apart(page: Page) -> None:
    plain = page.bench.run()
    page.bench.direction = "noising"
    page.settle()
    noised = page.bench.result
    page.bench.corruption = "zero"
    page.settle()
    assert page.bench.result.provenance["corruption"] == "zero"
    page.bench.corruption = "counterfactual"
    page.settle()
    assert page.bench.result is noised
    assert len(page.bench.results) == 3
    assert plain in page.bench.results


def test_one_pair_offers_no_mean_and_no_other_pair(model: Model) -> None:  # noqa: F811
    bench = Workbench(model, PAIR, "z")
    off = {one["name"]: one["off"] for one in bench.spec["corruptions"]}
    assert off == {"counterfactual": "", "zero": "", "mean": "Needs several pairs.", "resample": "Needs several pairs."}


def test_noise_has_no_workbench(model: Model) -> None:  # noqa: F811
    with pytest.raises(PlanError, match="no view of noise"):
        Workbench(model, PAIR, "z", corruption=nbp.Noise(1))


def test_a_result_of_an_ablation_shows_itself(model: Model) -> None:  # noqa: F811
    result = nbp.patch(model, [PAIR, OTHER], "z", corruption=nbp.Resample(k=3))
    shown = result.show()
    assert isinstance(shown, Workbench)
    assert shown.result is result
    assert shown.run() is result
    assert shown.pairs == nbp.Pairs([PAIR, OTHER])


@pytest.mark.parametrize(
    "source",
    [nbp.Zero(), nbp.Mean(), nbp.Resample(k=8), nbp.Mean([" Mary and John gave"]), nbp.Resample([OTHER, PAIR], k=2)],
)
def test_copied_python_makes_the_same_ablation(model: Model, source: Any, monkeypatch) -> None:  # noqa: F811
    bench = Workbench(model, [PAIR, OTHER], "z", corruption=source)
    result = bench.run()
    space: dict[str, Any] = {}
    monkeypatch.setattr(nbp, "load", lambda name: bench.model)
    exec(as_python(bench._ask, "stand-in"), space)
    assert space["result"].provenance["corruption_words"] == result.provenance["corruption_words"]
    np.testing.assert_allclose(space["result"].data["logit_diff"], result.data["logit_diff"], atol=1e-6)


def test_a_copied_cell_names_the_ablation_or_says_that_it_cannot(model: Model) -> None:  # noqa: F811
    from nbpatch.magics import read_spec

    bench = Workbench(model, [PAIR, OTHER], "z", corruption=nbp.Mean())
    head, _, body = as_magic(bench._ask, "tiny").partition("\n")
    spec = read_spec(head, head.removeprefix("%%patch "), body, {})
    assert spec.corruption == nbp.Mean()
    assert spec.direction == "noising"
    own = Workbench(model, [PAIR, OTHER], "z", corruption=nbp.Mean([" Mary and John gave"]))
    with pytest.raises(PlanError, match="by its kind alone"):
        as_magic(own._ask, "tiny")
