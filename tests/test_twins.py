"""The fast engine and its slow twin on sweeps and sets of sites drawn at random, over many families."""

import random
from functools import lru_cache
from typing import Any

import families
import micro
import numpy as np
import pytest

import nbpatch
from nbpatch.errors import NbpatchError, SiteError
from nbpatch.model import Model

FAMILIES = ("gpt2", "llama", "gemma2", "qwen3", "cohere", "granite", "gpt_neox", "phi", "gptj")
COMPONENTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "mlp_post")
TOLERANCE = 1e-4


@lru_cache(maxsize=16)
def replayed(family: str) -> Model:
    model = nbpatch.load((families.plain(family), micro.tokenizer()))
    model.engine = "replay"
    return model


def drawn_corruption(draw: random.Random) -> Any:
    return draw.choice(
        [
            None,
            nbpatch.Zero(),
            nbpatch.Mean(list(families.PAIRS)),
            nbpatch.Mean(list(families.PAIRS), per_position=False),
            nbpatch.Resample(list(families.PAIRS), k=2, run="corrupted", seed=draw.randrange(9)),
            nbpatch.Noise((2, 4), n=2, seed=draw.randrange(9)),
        ]
    )


def drawn_sweep(draw: random.Random) -> tuple[str, dict[str, Any]]:
    component = draw.choice([*COMPONENTS, "embed", "head_out", "pattern"])
    axes = {"pattern": ["layer head", "layer dest"], "embed": ["pos"], "mlp_post": ["layer", "layer pos"]}
    heads = ["layer head", "layer head pos", "head pos"] if component in ("z", "q", "k", "v", "head_out") else []
    over = draw.choice(axes.get(component, ["layer pos", "layer", "pos", *heads]))
    corruption = drawn_corruption(draw)
    ablates = corruption is not None and corruption.ablates
    return component, {
        "over": over,
        "corruption": corruption,
        "direction": None if ablates else draw.choice(["denoising", "noising", "both"]),
        "window": draw.choice([1, 2, 3]) if "layer" in over else 1,
    }


def drawn_site(draw: random.Random, component: str) -> str:
    unit = f".{draw.randrange(2)}" if component in ("z", "q", "k", "v", "mlp_post") else ""
    return f"{component}[{draw.randrange(3)}{unit}]{draw.choice(['', f' @ {draw.randrange(1, 6)}', ' @ END'])}"


def drawn_sites(draw: random.Random) -> tuple[list[Any], list[str] | None]:
    """Returns sets of sites, each component once in a set; or single sites with the places they come from."""
    if draw.random() < 0.5:
        return [[drawn_site(draw, one) for one in draw.sample(COMPONENTS, draw.randint(1, 4))] for _ in range(3)], None
    components = draw.sample([one for one in COMPONENTS if one not in ("q", "k")], 3)
    places = [draw.choice(["", " @ 3"]) for _ in components]
    both = [
        [drawn_site(draw, one).partition(" @")[0] + place for one, place in zip(components, places, strict=True)]
        for _ in range(2)
    ]
    return both[0], [one.replace(" @ 3", " @ 5") for one in both[1]]


def same(family: str, ask: Any) -> bool:
    """Compares both engines' numbers; returns whether there were any."""
    found: list[Any] = []
    for model in (families.loaded(family), replayed(family)):
        try:
            found.append(ask(model))
        except SiteError:
            return False
        except NbpatchError as error:
            found.append(str(error))
    if isinstance(found[0], str) or isinstance(found[1], str):
        assert found[0] == found[1]
        return False
    one, other = found
    for metric in one.metrics:
        np.testing.assert_allclose(one.data[metric], other.data[metric], atol=TOLERANCE, rtol=1e-5)
        np.testing.assert_allclose(one.baselines["corrupted"], other.baselines["corrupted"], atol=TOLERANCE)
    return True


@pytest.mark.parametrize("family", FAMILIES)
def test_sweeps_drawn_at_random_are_the_same_in_both_engines(family):
    draw = random.Random(family)
    compared = 0
    for _ in range(8):
        component, options = drawn_sweep(draw)
        pairs = draw.sample(families.PAIRS, 2)
        compared += same(family, lambda model, c=component, o=options, p=pairs: nbpatch.patch(model, p, c, **o))
    assert compared >= 3


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_drawn_at_random_are_the_same_in_both_engines(family):
    draw = random.Random(f"sites of {family}")
    compared = 0
    for _ in range(7):
        sites, origins = drawn_sites(draw)
        pairs, direction = draw.sample(families.PAIRS, 2), draw.choice(["denoising", "noising", "both"])
        compared += same(
            family,
            lambda model, s=sites, o=origins, p=pairs, d=direction: nbpatch.patch_sites(
                model, p, s, from_=o, direction=d
            ),
        )
    assert compared >= 2
