"""Suffixes behind the family's own cache: exact where blocks attend by themselves, and only where that was seen."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import families
import micro
import numpy as np
import override
import pytest
import torch
from families import PAIRS, SLOW

import nbpatch
from nbpatch.bridges import bridge_beside
from nbpatch.engine import inline as inline_module
from nbpatch.engine import run, steps, suffixes
from nbpatch.engine.fit import fit_of
from nbpatch.engine.inline import PLACES
from nbpatch.errors import PatchNotApplied, SiteError
from nbpatch.methods.patching import patch
from nbpatch.metrics import as_metrics
from nbpatch.model import Model, load
from nbpatch.plan import make_plan
from nbpatch.prompts import PromptPair
from nbpatch.result import Result

TOLERANCE = 2e-5
SHORT = PromptPair(" Mary and John gave", " John and Mary gave", " Paul", " Mary")
MIXED = (PAIRS[0], SHORT, PAIRS[3])
METRICS = ("logit_diff", "kl")
INLINE = "attention is computed inside the blocks"


def fresh(family: str = "bloom") -> Model:
    return load((families.build(family), micro.tokenizer()))


@cache
def replayed(family: str) -> Model:
    model = load((families.plain(family), micro.tokenizer()))
    model.engine = "replay"
    return model


def engine(result: Result) -> str:
    spent = result.provenance["engine"]
    return f"{spent['name']}: {spent['reason']}"


def off(one: Result, other: Result) -> float:
    """Returns the largest difference; what was measured must be the same, and something must have happened."""
    assert (one.data["state"].to_numpy() == other.data["state"].to_numpy()).all()
    assert np.nanmax(abs(one.effect().to_numpy())) > 1e-3, "the sweep shows no effect to compare"
    pairs = [(one.data[name].to_numpy(), other.data[name].to_numpy()) for name in one.metrics]
    return max(float(np.nanmax(abs(mine - theirs))) for mine, theirs in pairs)


def results(sites: str, over: str | None, family: str, **options: Any) -> list[tuple[Result, Result]]:
    """Returns results of each component by the engine that is chosen and by replay."""
    both = [patch(model, MIXED, sites, over, **options) for model in (families.loaded(family), replayed(family))]
    return [(both[0].sel(name), both[1].sel(name)) for name in sites.split()] if " " in sites else [tuple(both)]


SWEEPS = {
    "resid_pre resid_post attn_out mlp_out z mlp_post": "layer pos",
    "resid_mid": "layer pos",
    "z head_out": "layer head",
    "z": "layer head pos",
    "embed": "pos",
    "mlp_post": "layer neuron",
}


@pytest.mark.parametrize("sites", SWEEPS)
@pytest.mark.parametrize("family", SLOW)
def test_sweeps_both_ways_over_prompts_of_different_lengths_equal_replay(family, sites):
    if sites == "resid_mid" and family in families.PARALLEL:
        with pytest.raises(SiteError, match="resid_mid cannot be patched"):
            patch(families.loaded(family), MIXED, sites)
        return
    for fast, slow in results(sites, SWEEPS[sites], family, direction="both", metric=METRICS):
        assert engine(fast) == f"suffix: {INLINE}"
        assert engine(slow) == "replay: asked for"
        assert off(fast, slow) <= TOLERANCE


@pytest.mark.parametrize("family", SLOW)
def test_whole_heads_and_positions_equal_the_literal_override(family):
    model, hf = families.loaded(family), families.plain(family)
    for component, over in (("z", "layer head"), ("resid_pre", "layer pos")):
        result = patch(model, MIXED, component, over, direction="both")
        for number, one in enumerate(model.tokenize(MIXED)):
            runs = {"noising": (one.clean_ids, one.corrupted_ids), "denoising": (one.corrupted_ids, one.clean_ids)}
            unit = {"head": 1} if component == "z" else {"pos": len(one.clean_ids) - 2}
            for layer, (way, (base, source)) in enumerate(runs.items()):
                logits = override.patched_logits(hf, base, source, component, layer, **unit)
                expected = float(logits[one.answer_ids[0]] - logits[one.wrong_ids[0]])
                value = result.data["logit_diff"].sel(direction=way).isel(pair=number, layer=layer, **unit)
                assert float(value) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("family", ["falcon alibi", "mpt"])
def test_a_call_that_mixes_routes_gives_each_component_by_its_own(family):
    found = results("q z k", "layer head", family)
    assert [fast.provenance["component"] for fast, _ in found] == ["q", "z", "k"]
    by_hooks = f"replay: {INLINE}, and patched there through hooks"
    assert [engine(fast) for fast, _ in found] == [by_hooks, f"suffix: {INLINE}", by_hooks]
    assert max(off(fast, slow) for fast, slow in found) <= TOLERANCE
    together = patch(families.loaded(family), SHORT, "q z k").provenance["engine"]
    assert together["name"] == "replay and suffix"
    assert together["runs"] == together["run"] > 0


def share(logits: torch.Tensor) -> torch.Tensor:
    """A metric that reads all tokens, and all pairs at once."""
    some = logits.softmax(-1)[:, ::3].sum(-1)
    return some / some.sum()


@pytest.mark.parametrize("budget", [None, 400_000])
def test_many_waves_and_a_metric_that_sees_all_pairs(budget):
    model = fresh("mpt")
    model.budget = budget
    fast = patch(model, MIXED, "z", "layer head pos", metric=["prob", share], direction="both")
    slow = patch(replayed("mpt"), MIXED, "z", "layer head pos", metric=["prob", share], direction="both")
    assert engine(fast) == f"suffix: {INLINE}"
    assert (fast.provenance["engine"]["waves"] > 1) is (budget is not None)
    assert max(abs(fast.data[name] - slow.data[name]).max() for name in ("prob", "share")) <= TOLERANCE


def test_noise_goes_behind_the_cache_and_what_is_put_in_by_hooks_to_replay():
    model, slow = families.loaded("bloom"), replayed("bloom")
    noise = nbpatch.Noise([2, 3], n=2)
    pairs = PAIRS[:2]
    fast = patch(model, pairs, "z", "layer pos", corruption=noise)
    assert engine(fast) == f"suffix: {INLINE}"
    assert off(fast, patch(slow, pairs, "z", "layer pos", corruption=noise)) <= TOLERANCE
    asked = {
        "replay: values of an ablation are put in by hooks": {"corruption": nbpatch.Zero()},
        "replay: several places are patched at once": {"window": 2},
    }
    assert engine(patch(model, pairs, "z", "head")) == "replay: several places are patched at once"
    for reason, options in asked.items():
        assert engine(patch(model, pairs, "z", "layer pos", **options)) == reason
    assert engine(patch(model, pairs, "scores", "layer head")).startswith("replay: scores is patched through hooks")


def test_a_run_is_stopped_between_blocks_and_keeps_nothing_of_the_wave():
    model, asked = families.loaded("falcon"), iter([False] * 4 + [True])
    plan = make_plan(model.shape, model.tokenize(SHORT), "z", metrics=as_metrics("logit_diff"))
    result = run(plan, model, stop=lambda: next(asked))
    made = result.provenance["engine"]
    assert (made["name"], made["run"], made["waves"]) == ("suffix", 0, 0)
    assert next(asked, "asked five times") == "asked five times"
    assert np.isnan(result.data["logit_diff"]).any()


def test_a_bridge_of_the_users_own_is_run_the_same_way():
    model = load(bridge_beside(families.build("mpt"), micro.tokenizer(), "mine"))
    fast = patch(model, MIXED, "z")
    assert engine(fast) == f"suffix: {INLINE}"
    assert off(fast, patch(replayed("mpt"), MIXED, "z")) <= TOLERANCE


def test_a_model_says_which_way_each_component_goes():
    lines = families.loaded("falcon parallel").describe().splitlines()
    assert lines[0].endswith(f"engine: suffix: {INLINE}")
    said = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[2:]}
    assert {name for name, words in said.items() if words == "works (by replay)"} == {
        "q",
        "k",
        "v",
        "pattern",
        "scores",
    }
    assert said["resid_mid"].startswith("absent")
    assert {said[name] for name in ("resid_pre", "z", "head_out", "embed", *PLACES) if name != "resid_mid"} == {"works"}
    assert replayed("bloom").describe().splitlines()[0].endswith("engine: replay: asked for")


# -- what the self-test finds


def slower(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor, str], torch.Tensor]) -> None:
    """Lets all patches write something else."""
    original = steps.Patches.write

    def write(self: Any, value: torch.Tensor, source: torch.Tensor, start: int) -> None:
        original(self, value, change(source, self.component), start)

    monkeypatch.setattr(steps.Patches, "write", write)


@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_a_stream_that_is_patched_wrongly_sends_the_model_to_replay(factor, monkeypatch):
    slower(monkeypatch, lambda source, component: source * factor)
    model = fresh()
    result = patch(model, SHORT, "z")
    assert engine(result).startswith("replay: patches of the residual stream behind a cache: differs from a full for")
    assert off(result, patch(replayed("bloom"), SHORT, "z")) <= TOLERANCE
    assert "engine: replay: patches of the residual stream" in model.describe()


def test_a_component_that_is_patched_wrongly_goes_to_replay_alone(monkeypatch):
    slower(monkeypatch, lambda source, component: source * (0.5 if component == "mlp_out" else 1.0))
    model = fresh()
    assert {name for name, why in fit_of(model).inline.works.items() if "differs" in why} == {"mlp_out"}
    assert engine(patch(model, SHORT, "mlp_out")).startswith("replay: differs from a full forward by ")
    assert engine(patch(model, SHORT, "z")) == f"suffix: {INLINE}"
    assert model.capabilities["mlp_out"].note == "by replay"


def test_keys_and_values_that_are_not_the_base_runs_send_the_model_to_replay(monkeypatch):
    original = inline_module.filled
    monkeypatch.setattr(steps, "filled", lambda layer, keys, values: original(layer, keys, values * 1.5))
    assert fit_of(fresh()).reason.startswith("patches of the residual stream behind a cache: differs")


def test_arguments_that_are_not_the_rows_own_send_the_model_to_replay(monkeypatch):
    monkeypatch.setattr(
        steps, "called_with", lambda *args, rows, start: called(*args, rows=rows, start=max(0, start - 1))
    )
    called = inline_module.called_with
    fit = fit_of(fresh("mpt"))
    assert fit.inline is None
    assert "cache" in fit.reason


def test_attention_that_sees_later_positions_means_replay(monkeypatch):
    model = fresh("mpt")
    assert model.shape.causal
    from transformers.models.mpt import modeling_mpt

    original = modeling_mpt.create_causal_mask
    monkeypatch.setattr(modeling_mpt, "create_causal_mask", lambda **options: torch.zeros_like(original(**options)))
    assert fit_of(model).reason == "attention is not causal"
    assert engine(patch(model, SHORT, "z")) == "replay: attention is not causal"


@pytest.mark.parametrize("hidden", [True, False])
def test_masks_of_either_sense_are_read(hidden):
    later = torch.ones(1, 1, 4, 4, dtype=torch.bool).triu(1)
    causal = later if hidden else ~later
    arguments = {"attention_mask": causal}
    inline_module._refuse_later(arguments, 4)
    inline_module._refuse_later({"attention_mask": later.float() * torch.finfo(torch.float32).min}, 4)
    some = causal.clone()
    some[..., 1, 3] = some[..., 0, 0]
    for wrong in ({"attention_mask": some}, {"attention_mask": None}, {}):
        with pytest.raises(inline_module.Unfit, match="not causal"):
            inline_module._refuse_later(wrong, 4)


def test_what_would_be_replayed_on_a_bridge_that_is_another_model_is_refused():
    """With torch's fused attention Falcon adds alibi once; its Bridge is eager, and adds it twice (families.py)."""
    eager: Any = families.plain("falcon alibi")
    config = type(eager.config)(**{**eager.config.to_dict(), "attn_implementation": "sdpa"})
    hf = type(eager)(config).eval()
    hf.load_state_dict(eager.state_dict())
    model = load((hf, micro.tokenizer()))
    (one,) = model.tokenize(SHORT)
    with torch.no_grad():
        logits = hf(torch.tensor([one.clean_ids])).logits[0, -1]
    result = patch(model, SHORT, "z")
    assert engine(result) == f"suffix: {INLINE}"
    assert float(result.baselines["clean"][0, 0]) == pytest.approx(
        float(logits[one.answer_ids[0]] - logits[one.wrong_ids[0]]), abs=TOLERANCE
    )
    with pytest.raises(SiteError, match=r"q cannot be patched in .* by replay") as caught:
        patch(model, SHORT, "q")
    assert "the Bridge and the model inside it differ by" in caught.value.seen
    assert model.capabilities["q"].status == "absent"
    model.engine = "replay"
    assert engine(patch(model, SHORT, "q")) == "replay: asked for"


# -- no patch is lost


def swapped(model: Model, name: str, module: torch.nn.Module) -> None:
    """Lets a model's blocks have something else in the place of one of their parts."""
    fit = fit_of(model)
    parts = fit.inline.parts
    blocks = tuple(replace(block, **{name: module}) for block in parts.blocks)
    model.notes["fit"] = replace(fit, inline=replace(fit.inline, parts=replace(parts, blocks=blocks)))


def test_a_place_that_no_base_run_comes_by_is_no_silent_nothing():
    model = fresh()
    swapped(model, "attn_out", torch.nn.Identity())
    with pytest.raises(PatchNotApplied, match="a block or a part of it is not run once"):
        patch(model, SHORT, "attn_out")


def test_a_place_that_no_patched_run_comes_by_is_no_silent_nothing(monkeypatch):
    model = fresh()
    original, parts = suffixes.base_runs, fit_of(model).inline.parts
    swapped(model, "attn_out", torch.nn.Identity())
    monkeypatch.setattr(suffixes, "base_runs", lambda _, *rest, **options: original(parts, *rest, **options))
    with pytest.raises(PatchNotApplied, match=r"attn_out was not patched as planned in layer 0[\s\S]*fired 0 times"):
        patch(model, SHORT, "attn_out")


def test_a_block_that_forgets_the_cache_is_no_silent_nothing(monkeypatch):
    model = fresh("mpt")
    fit_of(model)
    original = suffixes.base_runs

    def spoiled(*args: Any, **options: Any) -> Any:
        found = original(*args, **options)
        model.plain.transformer.blocks[1].attn.layer_idx = 7
        return found

    monkeypatch.setattr(suffixes, "base_runs", spoiled)
    with pytest.raises(PatchNotApplied, match="the cache was not patched as planned in layer 1"):
        patch(model, SHORT, "z")


# -- groups


@pytest.mark.parametrize("worth", [0, 3, 10, 1000])
def test_groups_hold_every_row_once_and_waste_no_more_than_a_call_is_worth(worth):
    first = np.random.default_rng(0).integers(0, 12, 40)
    groups = suffixes.started_together(first, worth)
    assert sorted(np.concatenate(groups)) == list(range(40))
    for rows in groups:
        starts, counts = np.unique(first[rows], return_counts=True)
        assert ((starts - starts.min()) * counts <= worth).all()
    assert len(groups) == {0: len(np.unique(first)), 1000: 1}.get(worth, len(groups))
