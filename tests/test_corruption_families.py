"""Corruptions and windows on other families: the engine, its replay and a literal override say the same."""

from functools import lru_cache
from typing import Any

import families
import micro
import numpy as np
import oracle_ablation as oracle
import override
import pytest
import torch
from oracle_ablation import TOLERANCE
from test_corruption import values

import nbpatch
from nbpatch.engine.fit import fit_of
from nbpatch.engine.lead import begin
from nbpatch.engine.supply import noise_of
from nbpatch.metrics import as_metrics
from nbpatch.model import Model
from nbpatch.plan import make_plan

FAMILIES = ["gemma2", "llama", "gpt_neox", "opt", "falcon"]
PLACES = ((0, 4), (1, 11), (2, 12))


@lru_cache(maxsize=8)
def replayed(family: str) -> Model:
    model = nbpatch.load((families.plain(family), micro.tokenizer()))
    model.engine = "replay"
    return model


def literally(family: str, component: str, number: int, place: tuple[int, int], mean: bool) -> float:
    """Returns the metric with one position of one layer replaced, by the literal override."""
    hf = families.plain(family)
    ones = families.loaded(family).tokenize(families.PAIRS)
    runs = [override.activations(hf, one.clean_ids)[component, place[0]] for one in ones]
    new = torch.stack(runs).mean(0)[place[1]] if mean else torch.zeros_like(runs[0][0])

    def edit(name: str, layer: int, value: torch.Tensor) -> torch.Tensor:
        if (name, layer) != (component, place[0]):
            return value
        value = value.clone()
        value[place[1]] = new
        return value

    return oracle.difference(ones[number])(override.forward(hf, ones[number].clean_ids, edit))


@pytest.mark.parametrize("mean", [False, True], ids=["zero", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_equal_their_replay_and_the_literal_override(family, mean):
    corruption = nbpatch.Mean() if mean else nbpatch.Zero()
    results = [
        nbpatch.patch(model, families.PAIRS, "z resid_pre", "layer pos", corruption=corruption)
        for model in (families.loaded(family), replayed(family))
    ]
    np.testing.assert_allclose(values(results[0]), values(results[1]), atol=TOLERANCE)
    for component in ("z", "resid_pre"):
        one = results[0].sel(component)
        assert float(abs(one.effect()).max()) > 1e-3
        for number, (layer, place) in enumerate(PLACES):
            # Where no token is put in front, the last place is one earlier.
            pos = min(place, one.data.sizes["pos"] - 1)
            wanted = literally(family, component, number, (layer, pos), mean)
            found = float(one.data["logit_diff"].isel(layer=layer, pos=pos, pair=number))
            assert found == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_is_added_to_what_the_embedding_module_gives(family):
    """Before it is scaled, and before positions are added, whatever the family does."""
    hf, model = families.plain(family), families.loaded(family)
    pairs, places = families.PAIRS[:2], (2, 4)
    ones = model.tokenize(pairs)
    table = hf.get_input_embeddings()
    with torch.no_grad():
        size = 3 * float(table(torch.tensor([[one.clean_ids[pos] for pos in places] for one in ones])).std())
    results = [
        nbpatch.patch(one, pairs, "z", corruption=nbpatch.Noise(places, n=2)) for one in (model, replayed(family))
    ]
    for number, one in enumerate(ones):
        found = [
            plainly_noised(hf, one, places, size * np.random.default_rng([0, number, draw]).standard_normal((2, 32)))
            for draw in range(2)
        ]
        for result in results:
            corrupted = float(result.baselines["corrupted"].isel(metric=0, pair=number))
            assert corrupted == pytest.approx(np.mean(found), abs=TOLERANCE)
    np.testing.assert_allclose(values(results[0]), values(results[1]), atol=TOLERANCE)


def test_noise_is_that_of_its_run_however_many_passes_the_base_runs_take():
    model = families.loaded("gpt2")
    tokenized = model.tokenize(families.PAIRS[:2])
    metrics = as_metrics("prob")
    plan = make_plan(model.shape, tokenized, "z", metrics=metrics, corruption=nbpatch.Noise((2, 4), n=2))
    prompts = [ids for one in plan.tokenized for ids in (one.clean_ids, one.corrupted_ids)]
    noise = {2 * pair + 1: one for pair, one in noise_of(plan, model).items()}
    fit = fit_of(model)
    whole, cut = (
        begin(fit.parts, prompts, fit.returns, noise, device=model.device, max_tokens=most).pre(0)
        for most in (10**6, 3 * len(prompts[0]))
    )
    torch.testing.assert_close(whole, cut)
    changed = (whole[1::2] - whole[0::2]).abs().sum(-1) > 0
    assert [row.nonzero().flatten().tolist() for row in changed] == [[2, 4]] * 4


@torch.no_grad()
def plainly_noised(hf: Any, one: Any, places: tuple[int, ...], noise: np.ndarray) -> float:
    def add(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[0, list(places)] += torch.tensor(noise, dtype=output.dtype)
        return output

    handle = hf.get_input_embeddings().register_forward_hook(add)
    try:
        return oracle.difference(one)(hf(torch.tensor([one.clean_ids]), use_cache=False).logits[0, -1])
    finally:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_of_families_equal_their_replay_and_the_literal_override(family):
    model, window = families.loaded(family), 3 if family == "gemma2" else 2
    one, other = (
        nbpatch.patch(each, families.PAIRS, "mlp_out", window=window, direction="noising")
        for each in (model, replayed(family))
    )
    assert float(abs(one.effect()).max()) > 1e-3
    np.testing.assert_allclose(values(one), values(other), atol=TOLERANCE)
    last = one.data.sizes["pos"] - 1
    for number, (layer, pos) in enumerate(((0, 6), (1, 8), (2, last), (1, last))):
        wanted = in_windows(family, number, layer, pos, window)
        found = float(one.data["logit_diff"].isel(layer=layer, pos=pos, pair=number))
        assert found == pytest.approx(wanted, abs=TOLERANCE)


def in_windows(family: str, number: int, layer: int, pos: int, window: int) -> float:
    hf = families.plain(family)
    one = families.loaded(family).tokenize(families.PAIRS)[number]
    source = override.activations(hf, one.corrupted_ids)
    layers = range(layer - window // 2, layer - window // 2 + window)

    def edit(name: str, at: int, value: torch.Tensor) -> torch.Tensor:
        if name != "mlp_out" or at not in layers:
            return value
        value = value.clone()
        value[pos] = source[name, at][pos]
        return value

    return oracle.difference(one)(override.forward(hf, one.clean_ids, edit))
