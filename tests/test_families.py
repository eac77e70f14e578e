"""Every family against the literal override: same model, same cell, one plain full forward."""

import zlib
from typing import Any

import families
import numpy as np
import override
import pytest
import torch
from families import FAMILIES, FAST, OVERRIDDEN, PAIRS, PARALLEL, SLOW

from nbpatch.methods.patching import patch
from nbpatch.plan import DIRECTIONS, MEASURED

TOLERANCE = 1e-4
CELLS = 2

# ENGINE.md § Families: through the attention interface, or by `_attn` on the instance.
FRONTIER = (*FAST, *OVERRIDDEN)

OVER = {
    **dict.fromkeys(override.RESIDUAL, ("layer pos",)),
    **dict.fromkeys(("z", "q", "k", "v"), ("layer head", "layer head pos")),
    "pattern": ("layer head", "layer head dest"),
}


def sites(family: str) -> tuple[str, ...]:
    """What can be compared: parallel blocks have no middle, inline attention shows no q, k, v and pattern."""
    absent = (*(("resid_mid",) if family in PARALLEL else ()), *(override.ATTENTION if family in SLOW else ()))
    return tuple(component for component in OVER if component not in absent)


CASES = [(family, component) for family in FAMILIES for component in sites(family)]


def seeded(*words: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(" ".join(words).encode()))


def expected(family: str, one: Any, direction: str, component: str, cell: dict[str, int]) -> torch.Tensor:
    base, source = (
        (one.corrupted_ids, one.clean_ids) if direction == "denoising" else (one.clean_ids, one.corrupted_ids)
    )
    return override.patched_logits(families.plain(family), base, source, component, **{"layer": None, **cell})


def tolerance(logits: torch.Tensor) -> float:
    return TOLERANCE * min(1.0, float(logits.abs().max()))


@pytest.mark.parametrize(("family", "component"), CASES)
def test_cells_equal_the_literal_override(family, component):
    model, random = families.loaded(family), seeded(family, component)
    pair = PAIRS[random.integers(len(PAIRS))]
    (one,) = model.tokenize(pair)
    directions = list(random.permutation(DIRECTIONS))
    for over in OVER[component]:
        # Where two sweeps are made, each goes one way: half the time, and both ways are seen all the same.
        direction = "both" if len(OVER[component]) == 1 else str(directions.pop())
        result = patch(model, pair, component, over, direction=direction)
        values = result.data["logit_diff"].isel(pair=0)
        assert float(abs(result.effect()).max()) > 1e-3, "the sweep shows no effect to compare"
        measured = np.argwhere(result.data["state"].isel(pair=0).to_numpy() == MEASURED)
        for place in random.choice(measured, min(CELLS, len(measured)), replace=False):
            cell = dict(zip(over.split(), map(int, place[-len(over.split()) :]), strict=True))
            way = str(values["direction"].to_numpy()[place[0]]) if direction == "both" else direction
            logits = expected(family, one, way, component, cell)
            difference = float(logits[one.answer_ids[0]] - logits[one.wrong_ids[0]])
            assert float(values[tuple(place)]) == pytest.approx(difference, abs=tolerance(logits)), (over, way, cell)


@pytest.mark.parametrize("family", FAMILIES)
def test_several_pairs_and_the_whole_vocabulary_equal_the_literal_override(family):
    model, random = families.loaded(family), seeded(family)
    weights = torch.linspace(-1, 1, model.shape.d_vocab)
    weights /= weights.norm()

    def mixed(logits: torch.Tensor) -> torch.Tensor:
        return logits @ weights

    component = str(random.choice(("resid_post", "z")))
    result = patch(model, PAIRS, component, "layer pos", metric=mixed)
    for number, one in enumerate(model.tokenize(PAIRS)):
        measured = np.argwhere(result.data["state"].isel(pair=number).to_numpy() == MEASURED)
        layer, pos = map(int, random.choice(measured))
        logits = expected(family, one, "denoising", component, {"layer": layer, "pos": pos})
        value = float(result.data["mixed"].isel(layer=layer, pos=pos, pair=number))
        assert value == pytest.approx(float(logits @ weights), abs=tolerance(logits)), (number, layer, pos)


@pytest.mark.parametrize("family", FRONTIER)
def test_the_fast_engine_is_used(family):
    assert patch(families.loaded(family), PAIRS[0], "z").provenance["engine"]["name"] == "frontier"


@pytest.mark.parametrize("family", SLOW)
def test_the_slower_route_is_used_where_attention_is_inline(family):
    assert patch(families.loaded(family), PAIRS[0], "z").provenance["engine"]["name"] == "suffix"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_override_without_an_edit_is_the_model_and_with_the_whole_stream_the_other_run(family):
    hf = families.plain(family)
    (one,) = families.loaded(family).tokenize(PAIRS[0])
    assert override.components(hf) == sites(family)
    base, source = one.corrupted_ids, one.clean_ids
    with torch.no_grad():
        plain_base, plain_source = (hf(torch.tensor([ids])).logits[0, -1] for ids in (base, source))
    assert torch.allclose(override.forward(hf, base), plain_base, atol=TOLERANCE)
    whole = override.patched_logits(hf, base, source, "resid_post", families.LAYERS - 1)
    assert torch.allclose(whole, plain_source, atol=TOLERANCE)
    assert not torch.allclose(plain_base, plain_source, atol=100 * TOLERANCE)


def test_an_override_that_does_not_fire_is_an_error(monkeypatch):
    monkeypatch.setattr(override, "_eager_copy", lambda hf: hf)
    with pytest.raises(RuntimeError, match="expected once each"):
        override.forward(families.build("llama"), (0, 2, 3))
