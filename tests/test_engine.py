"""The engine against its slow twin, against TransformerLens, and against the laws that need no expected numbers."""

from functools import lru_cache
from typing import Any

import micro
import numpy as np
import oracle
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbpatch.engine import Progress, run
from nbpatch.errors import PatchNotApplied, PlanError, SiteError
from nbpatch.methods.patching import patch, patch_every
from nbpatch.metrics import as_metrics
from nbpatch.model import Capability, Model, load
from nbpatch.plan import EXACT, FAILED, MEASURED, NO_POSITION, NOT_RUN, make_plan
from nbpatch.prompts import PromptPair
from nbpatch.sites import COMPONENTS, SWEEPABLE, default_over

TOLERANCE = 1e-4

PAIR = PromptPair(
    clean="When Mary and John went to the store, John gave a drink to",
    corrupted="When Mary and John went to the store, Mary gave a drink to",
    answer=" Mary",
    wrong=" John",
)
SHORT = PromptPair(clean=" Mary and John gave", corrupted=" John and Mary gave", answer=" Paul", wrong=" Mary")
STORIES_PAIR = PromptPair(
    clean="There was a little girl who liked to play. One day,",
    corrupted="There was a little boy who liked to play. One day,",
    answer="she",
    wrong="he",
)


@lru_cache(maxsize=4)
def small(family: str) -> Model:
    return load((micro.gpt2() if family == "gpt2" else micro.llama(), micro.tokenizer()))


def everything(result: Any, name: str = "logit_diff") -> np.ndarray:
    return result.data[name].isel(pair=0).to_numpy()


def difference(answer: int, wrong: int) -> Any:
    return lambda logits: float(logits[answer] - logits[wrong])


def slow(model: Model, pair: PromptPair, component: str, over: tuple[str, ...], direction: str) -> np.ndarray:
    (one,) = model.tokenize(pair)
    metric = difference(one.answer_ids[0], one.wrong_ids[0])
    return oracle.sweep(model._hf, one.clean_ids, one.corrupted_ids, component, over, direction, metric)


AXES = [
    *((component, default_over(component)) for component in SWEEPABLE),
    *((component, ("layer", "head", "pos")) for component in ("z", "q", "k", "v")),
    ("pattern", ("layer", "head", "dest")),
    ("mlp_post", ("layer", "neuron")),
    ("resid_pre", ("pos",)),
    ("resid_post", ("layer",)),
    ("z", ("pos",)),
    ("v", ("head",)),
]


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(("component", "over"), AXES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_cell_equals_the_hand_written_forward(family, component, over, direction):
    model = small(family)
    result = patch(model, PAIR, component, over, direction=direction)
    expected = slow(model, PAIR, component, over, direction)
    base = float(result.baselines["corrupted" if direction == "denoising" else "clean"].isel(metric=0, pair=0))
    assert np.abs(expected - base).max() > 1e-3, "the sweep shows no effect to compare"
    np.testing.assert_allclose(everything(result), expected, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_single_attention_edges_equal_the_hand_written_forward(family):
    model = small(family)
    over = ("layer", "head", "dest", "src")
    for direction in ("denoising", "noising"):
        result = patch(model, SHORT, "pattern", over, direction=direction)
        np.testing.assert_allclose(everything(result), slow(model, SHORT, "pattern", over, direction), atol=TOLERANCE)


TRANSFORMER_LENS = {
    ("resid_pre", ("layer", "pos")): "get_act_patch_resid_pre",
    ("resid_mid", ("layer", "pos")): "get_act_patch_resid_mid",
    ("attn_out", ("layer", "pos")): "get_act_patch_attn_out",
    ("mlp_out", ("layer", "pos")): "get_act_patch_mlp_out",
    ("z", ("layer", "head")): "get_act_patch_attn_head_out_all_pos",
    ("q", ("layer", "head")): "get_act_patch_attn_head_q_all_pos",
    ("k", ("layer", "head")): "get_act_patch_attn_head_k_all_pos",
    ("v", ("layer", "head")): "get_act_patch_attn_head_v_all_pos",
    ("pattern", ("layer", "head")): "get_act_patch_attn_head_pattern_all_pos",
    ("z", ("layer", "pos", "head")): "get_act_patch_attn_head_out_by_pos",
    ("pattern", ("layer", "head", "dest")): "get_act_patch_attn_head_pattern_by_pos",
}


def models_for_transformer_lens() -> list[Any]:
    stories = pytest.mark.skipif(not micro.STORIES.is_dir(), reason="../shared/models is not here")
    return [
        ("tiny", "denoising"),
        ("tiny", "noising"),
        ("random gpt2", "noising"),
        pytest.param("stories260K", "denoising", marks=stories),
    ]


@lru_cache(maxsize=3)
def real(name: str) -> Model:
    return small("gpt2") if name == "random gpt2" else load("tiny" if name == "tiny" else micro.STORIES)


@pytest.mark.parametrize(("name", "direction"), models_for_transformer_lens())
def test_sweeps_equal_transformer_lens(name, direction):
    from transformer_lens import patching

    model = real(name)
    pair = STORIES_PAIR if name == "stories260K" else PAIR
    (one,) = model.tokenize(pair)
    base, source = one.corrupted_ids, one.clean_ids
    base, source = (base, source) if direction == "denoising" else (source, base)
    metric = difference(one.answer_ids[0], one.wrong_ids[0])
    with torch.no_grad():
        _, cache = model.bridge.run_with_cache(torch.tensor([source]))
        for (component, over), function in TRANSFORMER_LENS.items():
            theirs = getattr(patching, function)(
                model.bridge, torch.tensor([base]), cache, lambda logits: torch.tensor(metric(logits[0, -1]))
            )
            ours = patch(model, pair, component, over, direction=direction).data["logit_diff"].isel(pair=0)
            np.testing.assert_allclose(ours.transpose(*over), np.asarray(theirs), atol=TOLERANCE, err_msg=function)


@pytest.mark.skipif(not micro.STORIES.is_dir(), reason="../shared/models is not here")
def test_with_autograd_on_the_residual_stream_is_still_patched_whole():
    """Under autograd `transformer_lens.patching` misses the residual connection at resid_mid; we do not."""
    model = real("stories260K")
    with torch.enable_grad():
        tracked = patch(model, STORIES_PAIR, "resid_mid")
    with torch.no_grad():
        plain = patch(model, STORIES_PAIR, "resid_mid")
    np.testing.assert_array_equal(tracked.data["logit_diff"], plain.data["logit_diff"])
    last = float(tracked.recovered().isel(layer=-1, pos=-1))
    assert last == pytest.approx(1, abs=TOLERANCE)


@st.composite
def prompts(draw: st.DrawFn) -> tuple[str, str]:
    """Two prompts of equal length over the small vocabulary that differ in one or two words."""
    words = [word for word in micro.WORDS if word.startswith(" ")]
    clean = draw(st.lists(st.sampled_from(words), min_size=2, max_size=7))
    corrupted = list(clean)
    for place in draw(st.lists(st.integers(0, len(clean) - 1), min_size=1, max_size=2, unique=True)):
        corrupted[place] = draw(st.sampled_from([word for word in words if word != clean[place]]))
    return "".join(clean), "".join(corrupted)


def as_pair(texts: tuple[str, str]) -> PromptPair:
    return PromptPair(*texts, " Mary", " John")


LAWS = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FAMILIES = st.sampled_from(["gpt2", "llama"])


@LAWS
@given(prompts(), FAMILIES)
def test_law_all_of_the_last_residual_restores_everything(texts, family):
    pair = as_pair(texts)
    result = patch(small(family), pair, "resid_post", "layer", direction="both", metric="log_prob")
    last = result.data["log_prob"].isel(layer=-1, pair=0)
    clean, corrupted = (float(result.baselines[name].isel(metric=0, pair=0)) for name in ("clean", "corrupted"))
    assert float(last.sel(direction="denoising")) == pytest.approx(clean, abs=TOLERANCE)
    assert float(last.sel(direction="noising")) == pytest.approx(corrupted, abs=TOLERANCE)


@LAWS
@given(prompts(), FAMILIES, st.sampled_from(SWEEPABLE))
def test_law_denoising_the_exchanged_pair_is_noising_the_pair(texts, family, component):
    pair = as_pair(texts)
    exchanged = PromptPair(pair.corrupted, pair.clean, " Mary", " John")
    noised = patch(small(family), pair, component, direction="noising")
    denoised = patch(small(family), exchanged, component, direction="denoising")
    np.testing.assert_allclose(everything(noised), everything(denoised), atol=TOLERANCE)
    gap = float((noised.baselines["clean"] - noised.baselines["corrupted"]).isel(metric=0, pair=0))
    if abs(gap) > 0.1:
        np.testing.assert_allclose(noised.recovered(), 1 - denoised.recovered(), atol=TOLERANCE / abs(gap))


@LAWS
@given(prompts(), FAMILIES, st.sampled_from(SWEEPABLE))
def test_law_cells_said_to_be_exact_change_nothing_when_run(texts, family, component):
    pair = as_pair(texts)
    model = small(family)
    over = COMPONENTS[component].axes if component != "pattern" else ("layer", "head", "dest")
    result = patch(model, pair, component, over)
    exact = result.data["state"].isel(pair=0).to_numpy() == EXACT
    expected = slow(model, pair, component, over, "denoising")
    base = float(result.baselines["corrupted"].isel(metric=0, pair=0))
    assert np.abs(expected[exact] - base).max(initial=0) < TOLERANCE
    assert (everything(result)[exact] == base).all()


@LAWS
@given(prompts(), st.sampled_from(SWEEPABLE), st.integers(1, 200))
def test_law_the_batch_size_changes_nothing(texts, component, tokens):
    pair = as_pair(texts)
    model = small("gpt2")
    plan = make_plan(model.shape, model.tokenize(pair), component, direction="both", metrics=as_metrics("logit_diff"))
    one = run_in_chunks(plan, model, tokens)
    np.testing.assert_allclose(one.data["logit_diff"], run(plan, model).data["logit_diff"], atol=TOLERANCE)


def run_in_chunks(plan: Any, model: Model, tokens: int) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("nbpatch.engine.loop.MAX_TOKENS", tokens)
        patched.setattr("nbpatch.engine.frontier.MOST_TOKENS", tokens)
        return run(plan, model)


def test_a_run_patched_into_itself_changes_nothing():
    model = small("gpt2")
    ids = torch.tensor([model.tokenize(PAIR)[0].clean_ids])
    plain = model.answer_logits(ids)
    for component in SWEEPABLE:
        kept: list[torch.Tensor] = []
        name = str(model.hook_name(component, 1))
        model.answer_logits(ids, [(name, lambda value, hook, kept=kept: kept.append(value.clone()))])
        again = model.answer_logits(ids, [(name, lambda value, hook, kept=kept: value.copy_(kept[0]))])
        assert torch.equal(plain, again), component


def test_several_pairs_of_different_lengths_equal_single_runs():
    model = small("llama")
    together = patch(model, [PAIR, SHORT, PAIR], "resid_mid", direction="both", metric=["logit_diff", "kl"])
    for number, pair in enumerate((PAIR, SHORT, PAIR)):
        alone = patch(model, pair, "resid_mid", direction="both", metric=["logit_diff", "kl"])
        length = alone.data.sizes["pos"]
        for name in ("logit_diff", "kl"):
            own = together.data[name].isel(pair=number)
            np.testing.assert_allclose(own.isel(pos=slice(length)), alone.data[name].isel(pair=0), atol=TOLERANCE)
            assert own.isel(pos=slice(length, None)).isnull().all()
    states = together.data["state"].isel(pair=1)
    assert (states.isel(pos=slice(len(model.tokenize(SHORT)[0].clean_ids), None)) == NO_POSITION).all()


def test_aligned_prompts_of_unequal_length_are_patched_where_they_are_aligned():
    model = small("gpt2")
    align = {0: 0, 1: 1, 2: 2, 4: 6}
    pair = PromptPair(" Mary and John gave", " Mary and went to the gave", " Paul", " Mary", align=align)
    (one,) = model.tokenize(pair)
    assert one.aligned == tuple(align.items())
    result = patch(model, pair, "resid_post").data["logit_diff"]
    values = oracle.activations(model._hf, one.clean_ids)
    for layer in range(3):
        for clean, corrupted in one.aligned:

            def edit(name, at, value, layer=layer, clean=clean, corrupted=corrupted):
                if (name, at) == ("resid_post", layer):
                    value = value.clone()
                    value[corrupted] = values["resid_post", layer][clean]
                return value

            logits = oracle.forward(model._hf, one.corrupted_ids, edit)[-1]
            expected = difference(one.answer_ids[0], one.wrong_ids[0])(logits)
            assert float(result.sel(layer=layer, pos=clean, pair=0)) == pytest.approx(expected, abs=TOLERANCE)
    assert result.sel(pos=3).isnull().all()
    with pytest.raises(PlanError, match="unequal length"):
        patch(model, pair, "pattern")


def test_a_user_function_sees_all_pairs_in_order_and_agrees_with_the_built_in():
    model = small("gpt2")
    answers = [(one.answer_ids[0], one.wrong_ids[0]) for one in model.tokenize([PAIR, SHORT])]

    def own(logits: torch.Tensor) -> torch.Tensor:
        assert logits.shape == (2, model.shape.d_vocab)
        return torch.stack([row[good] - row[bad] for row, (good, bad) in zip(logits, answers, strict=True)])

    result = patch(model, [PAIR, SHORT], "z", "layer head pos", direction="both", metric=["logit_diff", own])
    np.testing.assert_allclose(result.data["own"], result.data["logit_diff"], atol=1e-6)


def test_grouped_heads_are_labelled():
    result = patch(small("llama"), PAIR, "k")
    assert list(result.data["head"].to_numpy()) == ["kv0", "kv1"]


def test_progress_counts_up_and_the_view_fills():
    seen: list[tuple[int, int, int]] = []

    def look(progress: Progress) -> None:
        seen.append((progress.done, progress.total, int((progress.state == MEASURED).sum())))

    result = patch_every(small("gpt2"), PAIR, ["resid_mid"], on_progress=look)["resid_mid"]
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] == seen[-1][2] == result.provenance["engine"]["runs"]
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


@pytest.mark.parametrize("how", ["stop", "interrupt"])
def test_stopping_keeps_what_is_finished(how, monkeypatch):
    monkeypatch.setattr("nbpatch.engine.frontier.MOST_TOKENS", 10)
    model = small("gpt2")
    plan = make_plan(model.shape, model.tokenize(PAIR), "resid_pre", metrics=as_metrics("logit_diff"))
    waves = 0

    def count(progress: Progress) -> None:
        nonlocal waves
        waves += 1
        if how == "interrupt" and waves == 2:
            raise KeyboardInterrupt

    result = run(plan, model, on_progress=count, stop=lambda: how == "stop" and waves == 2)
    state = result.data["state"].to_numpy()
    assert 0 < (state == MEASURED).sum() < plan.n_runs
    assert np.isnan(result.data["logit_diff"].to_numpy()[state == NOT_RUN]).all()
    full = run(plan, model).data["logit_diff"].to_numpy()
    np.testing.assert_allclose(
        result.data["logit_diff"].to_numpy()[state == MEASURED], full[state == MEASURED], atol=TOLERANCE
    )
    assert any(warning.startswith("Stopped early.") for warning in result.warnings)


def test_a_patch_at_the_wrong_place_fails_the_run(monkeypatch):
    model = load((micro.gpt2(), micro.tokenizer()))
    model.engine = "replay"
    assert model.capabilities
    real_name, asked = model.hook_name, []

    def moved(component: str, layer: int) -> str | None:
        """The right place while the source is traced, another one when patches are written."""
        asked.append(layer)
        return real_name("q" if asked.count(layer) > 1 else component, layer)

    monkeypatch.setattr(model, "hook_name", moved)
    with pytest.raises(PatchNotApplied, match=r"the patch at attn_out\[0\] does not fit"):
        patch(model, PAIR, "attn_out")


def test_a_hook_that_never_fires_is_counted(monkeypatch):
    model = load((micro.gpt2(), micro.tokenizer()))
    model.engine = "replay"
    assert model.capabilities
    plain = model.answer_logits
    monkeypatch.setattr(
        model, "answer_logits", lambda ids, hooks=(): plain(ids, [h for h in hooks if "write" not in h[1].__name__])
    )
    with pytest.raises(PatchNotApplied, match="fired 0 times, planned 1"):
        patch(model, PAIR, "z")


def test_a_component_that_does_not_work_is_refused_with_the_reason():
    model = load((micro.gpt2(), micro.tokenizer()))
    model.engine = "replay"
    found = {**model.capabilities, "q": Capability("no effect", "accepted and ignored")}
    model.notes["hooks"] = found
    with pytest.raises(SiteError) as caught:
        patch(model, PAIR, "q")
    assert caught.value.seen == "accepted and ignored"
    assert "q" not in caught.value.fix.removeprefix("one of: ").split(", ")


def test_nan_activations_are_named_and_leave_the_rest_intact(monkeypatch):
    hf = micro.gpt2()
    model = load((hf, micro.tokenizer()))
    model.engine = "replay"
    whole = patch(model, PAIR, "resid_post")
    plain = model.answer_logits

    def broken(ids: Any, hooks: Any = ()) -> Any:
        logits = plain(ids, hooks)
        if len(ids) > 2:
            logits[1] = float("nan")
        return logits

    monkeypatch.setattr(model, "answer_logits", broken)
    result = patch(model, PAIR, "resid_post")
    failed = result.data["state"].to_numpy() == FAILED
    assert failed.sum() == 1
    fine = ~failed
    np.testing.assert_allclose(
        result.data["logit_diff"].to_numpy()[fine], whole.data["logit_diff"].to_numpy()[fine], atol=TOLERANCE
    )
    assert any(warning.startswith("Not a number.") for warning in result.warnings)


def test_the_provenance_tells_what_was_done():
    result = patch(small("gpt2"), PAIR, "resid_pre", direction="both")
    engine = result.provenance["engine"]
    assert engine["cells"] == 2 * 3 * 15 == engine["run"] + engine["exact"]
    assert result.provenance["direction"] == "both"
    assert result.provenance["pairs"][0]["clean_tokens"][0] == "<bos>"
    assert len(result.provenance["pairs"][0]["clean_top"]) == 5


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, "One direction only. Denoising"),
        ({"direction": "noising"}, "One direction only. Noising"),
        ({"metric": "prob", "direction": "both"}, "Probability only."),
        ({"direction": "both"}, "One pair only"),
    ],
)
def test_the_lint_says_what_a_run_cannot_tell(options, start):
    assert any(warning.startswith(start) for warning in patch(small("gpt2"), PAIR, "z", **options).warnings)


def test_the_lint_sees_turned_prompts_and_missing_behaviour():
    model = real("tiny")
    turned = PromptPair(PAIR.corrupted, PAIR.clean, " Mary", " John")
    found = " ".join(patch(model, turned, "z").warnings)
    assert "The corrupted prompt does better" in found
    assert "does not prefer the answer" in found
