"""The frontier's laws: how it cuts, orders and packs changes nothing, and hooks in whole forwards give the same."""

import itertools
from functools import lru_cache
from typing import Any

import micro
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nbpatch.engine import run
from nbpatch.engine.frontier import Frontier
from nbpatch.errors import PlanError
from nbpatch.methods.patching import patch
from nbpatch.metrics import as_metrics
from nbpatch.model import Model, load
from nbpatch.plan import EXACT, FAILED, MEASURED, make_plan
from nbpatch.prompts import PromptPair
from nbpatch.result import Result
from nbpatch.sites import COMPONENTS, SWEEPABLE

TOLERANCE = 1e-5

# Three lengths; they differ in one token early, in two tokens, and in the token that is answered from.
PAIRS = (
    PromptPair(" Mary and John went to", " Paul and John went to", " Mary", " John"),
    PromptPair(" John gave a drink to Mary and went", " John gave the drink to Paul and went", " Mary", " Paul"),
    PromptPair(" Mary and John gave", " Mary and John went", " a", " to"),
)
LAWS = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FAMILIES = st.sampled_from(["gpt2", "llama"])
OVERS = [
    (component, ("layer", *others))
    for component in SWEEPABLE
    for count in range(len(COMPONENTS[component].axes))
    for others in itertools.combinations(COMPONENTS[component].axes[1:], count)
]


def fresh(family: str, layers: int = 3) -> Model:
    return load((micro.gpt2(layers) if family == "gpt2" else micro.llama(layers), micro.tokenizer()))


@lru_cache(maxsize=2)
def small(family: str) -> Model:
    return fresh(family)


@lru_cache(maxsize=2)
def spoiled(table: str, place: int) -> Model:
    """A model in one of whose embedding tables one row is not a number, the unembedding apart from it."""
    model = fresh("gpt2")
    embeddings = getattr(model._hf.transformer, table)
    embeddings.weight = torch.nn.Parameter(embeddings.weight.detach().clone())
    with torch.no_grad():
        embeddings.weight[place] = float("nan")
    return model


def values(result: Result, name: str = "logit_diff") -> np.ndarray:
    return result.data[name].to_numpy()


def fast(model: Model, pairs: Any, component: str, over: Any = None, **options: Any) -> Result:
    """Returns a sweep that is known to have been made by the frontier."""
    result = patch(model, pairs, component, over, **options)
    assert result.provenance["engine"]["name"] == "frontier"
    return result


def slow(model: Model, pairs: Any, component: str, over: Any = None, **options: Any) -> Result:
    model.engine = "replay"
    try:
        result = patch(model, pairs, component, over, **options)
    finally:
        model.engine = "auto"
    assert result.provenance["engine"]["name"] == "replay"
    return result


@pytest.mark.parametrize(("component", "over"), OVERS)
def test_every_component_over_any_axes_equals_replay(component, over):
    """In both directions where there are few cells, in one where there are hundreds; heads where they share keys."""
    model = small("llama" if COMPONENTS[component].has_heads else "gpt2")
    many = {"neuron", "pos"} <= set(over) or "src" in over
    pairs = PAIRS[2:] if many else PAIRS[:2]
    options = {"direction": "noising" if many else "both"}
    one, other = (engine(model, pairs, component, over, **options) for engine in (fast, slow))
    assert (one.data["state"].to_numpy() == other.data["state"].to_numpy()).all()
    assert np.nanmax(abs(one.effect().to_numpy())) > 1e-3, "the sweep shows no effect to compare"
    np.testing.assert_allclose(values(one), values(other), atol=TOLERANCE)


def cut(model: Model, plan: Any, bucket: int, tokens: int) -> Result:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Frontier, "_bucket", lambda *args: bucket)
        patched.setattr("nbpatch.engine.frontier.MOST_TOKENS", tokens)
        return run(plan, model)


@settings(LAWS, max_examples=12)
@given(FAMILIES, st.sampled_from(OVERS), st.sampled_from([1, 2, 3, 4, 8, 64]), st.integers(20, 600))
def test_law_neither_bucket_nor_wave_changes_anything(family, site, bucket, tokens):
    model, (component, over) = small(family), site
    pairs = PAIRS[2:] if len(over) > 2 else PAIRS
    metrics = as_metrics("logit_diff")
    plan = make_plan(model.shape, model.tokenize(pairs), component, over, direction="both", metrics=metrics)
    one, other = cut(model, plan, bucket, tokens), cut(model, plan, 1, 10**6)
    assert other.provenance["engine"]["waves"] == 1
    np.testing.assert_allclose(values(one), values(other), atol=TOLERANCE)


@LAWS
@given(FAMILIES, st.sampled_from(SWEEPABLE), st.permutations(range(len(PAIRS))))
def test_law_the_order_of_pairs_changes_nothing(family, component, order):
    model = small(family)
    one = fast(model, PAIRS, component, metric=["logit_diff", "kl"])
    other = fast(model, [PAIRS[number] for number in order], component, metric=["logit_diff", "kl"])
    for name in ("logit_diff", "kl"):
        np.testing.assert_allclose(values(other, name), values(one, name)[..., list(order)], atol=TOLERANCE)


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, ...]:
    """What to make a pair of that differs in one to four words."""
    words = [word for word in micro.WORDS if word.startswith(" ")]
    clean = draw(st.lists(st.sampled_from(words), min_size=2, max_size=8))
    corrupted = list(clean)
    for place in draw(st.lists(st.integers(0, len(clean) - 1), min_size=1, max_size=4, unique=True)):
        corrupted[place] = draw(st.sampled_from([word for word in words if word != clean[place]]))
    return "".join(clean), "".join(corrupted), " Mary", " John"


@LAWS
@given(FAMILIES, st.sampled_from(SWEEPABLE), st.lists(texts(), min_size=2, max_size=3))
def test_law_pairs_of_several_lengths_are_what_they_are_alone(family, component, drawn):
    model, pairs = small(family), [PromptPair(*one) for one in drawn]
    together = fast(model, pairs, component, direction="both").data
    for number, pair in enumerate(pairs):
        alone = fast(model, pair, component, direction="both").data.isel(pair=0)
        own = together.isel(pair=number, **{name: slice(size) for name, size in alone.sizes.items()})
        np.testing.assert_allclose(own["logit_diff"], alone["logit_diff"], atol=TOLERANCE)
        assert (own["state"].to_numpy() == alone["state"].to_numpy()).all()


@LAWS
@given(FAMILIES, st.sampled_from(SWEEPABLE), texts())
def test_law_positions_before_the_first_difference_are_exactly_at_base(family, component, drawn):
    model, pair = small(family), PromptPair(*drawn)
    axis = "dest" if component == "pattern" else "pos"
    result = fast(model, pair, component, ("layer", axis), direction="both")
    first = model.tokenize(pair)[0].first_difference
    for direction, base in (("denoising", "corrupted"), ("noising", "clean")):
        before = result.data.isel(pair=0, **{axis: slice(first)}).sel(direction=direction)
        assert (before["logit_diff"] == float(result.baselines[base].isel(metric=0, pair=0))).all()
        assert (before["state"] == EXACT).all()


def test_the_side_of_padding_is_irrelevant():
    found = []
    for side in ("left", "right"):
        words = micro.tokenizer.__wrapped__()
        words.padding_side, words.pad_token = side, "<unk>"
        found.append(values(fast(load((micro.gpt2(), words)), PAIRS, "z", "layer pos")))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_metric_of_the_whole_vocabulary_leaves_the_others_as_they_are(family, monkeypatch):
    """Also where so many logits are unembedded a few rows at a time."""
    monkeypatch.setattr("nbpatch.engine.memory._LOGITS", 64)
    model = small(family)
    alone = fast(model, PAIRS, "z")
    beside = fast(model, PAIRS, "z", metric=["logit_diff", "kl", "log_prob", "rank"])
    np.testing.assert_allclose(values(beside), values(alone), atol=TOLERANCE)
    other = slow(model, PAIRS, "z", metric=["logit_diff", "kl", "log_prob", "rank"])
    for name in ("kl", "log_prob", "rank"):
        np.testing.assert_allclose(values(beside, name), values(other, name), atol=TOLERANCE)


@pytest.mark.parametrize("tokens", [1, 20, 10**6])
def test_a_function_of_the_user_sees_all_pairs_of_a_cell(tokens, monkeypatch):
    monkeypatch.setattr("nbpatch.engine.frontier.MOST_TOKENS", tokens)
    monkeypatch.setattr("nbpatch.engine.memory._LOGITS", 64)
    model = small("gpt2")
    weights = torch.linspace(-1, 1, model.shape.d_vocab)

    def mixed(logits: torch.Tensor) -> torch.Tensor:
        assert logits.shape == (len(PAIRS), model.shape.d_vocab)
        # A weight of each pair's own, and what all have in common: neither may a row be misplaced, nor a pair missing.
        found = logits @ weights * torch.arange(1.0, len(PAIRS) + 1)
        return found - found.mean()

    one = fast(model, PAIRS, "resid_mid", direction="both", metric=mixed)
    other = slow(model, PAIRS, "resid_mid", direction="both", metric=mixed)
    np.testing.assert_allclose(values(one, "mixed"), values(other, "mixed"), atol=1e-4)


# -- memory

LENGTH = 200


@lru_cache(maxsize=1)
def patient() -> tuple[Model, PromptPair]:
    """A model with room for long prompts, and a pair that differs late in one."""
    hf = micro.gpt2(2)
    hf.config.n_positions = 256
    torch.manual_seed(1)
    hf.transformer.wpe = torch.nn.Embedding(256, 32).requires_grad_(False)
    for block in hf.transformer.h:
        block.attn.bias = torch.tril(torch.ones(256, 256, dtype=torch.bool)).view(1, 1, 256, 256)
    words = [micro.WORDS[3 + place % 4] for place in range(LENGTH - 1)]
    other = [*words]
    other[99] = " Paul"
    return load((hf, micro.tokenizer())), PromptPair("".join(words), "".join(other), " Mary", " John")


class Peak(TorchDispatchMode):
    """Adds up the bytes of all tensors alive that were made inside, and keeps the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return result


def with_budget(budget: int | None) -> tuple[Result, int]:
    model, pair = patient()
    model.budget = budget
    try:
        with Peak() as peak:
            result = fast(model, pair, "resid_mid")
    finally:
        model.budget = None
    return result, peak.most


def test_a_small_budget_takes_more_waves_less_memory_and_gives_the_same():
    model, _ = patient()
    assert model.probe.engine == "frontier"
    (roomy, most), (tight, least) = with_budget(2**30), with_budget(9_000_000)
    assert tight.provenance["engine"]["waves"] > roomy.provenance["engine"]["waves"]
    assert least < most
    assert least < 9_000_000
    np.testing.assert_allclose(values(tight), values(roomy), atol=TOLERANCE)
    assert (roomy.data["state"] == MEASURED).sum() == 101


NO_ROOM = """\
the memory budget does not hold one run.
  in     model.budget
  seen   0.3 MiB; base runs and one run of 200 tokens need 8.2 MiB
  try    model.budget = 16777216"""


def test_a_budget_too_small_for_one_run_names_one_that_is_enough():
    with pytest.raises(PlanError) as caught:
        with_budget(300_000)
    assert str(caught.value) == NO_ROOM
    result, _ = with_budget(int(caught.value.fix.removeprefix("model.budget = ")))
    assert (result.data["state"] == MEASURED).any()


# -- what is not a number


def test_a_late_layer_that_is_not_a_number_fails_every_run_and_says_so():
    model = fresh("gpt2")
    with torch.no_grad():
        model._hf.transformer.h[2].mlp.c_fc.weight[3, 5] = float("nan")
    result = patch(model, PAIRS[0], "z", "layer head pos")
    state = result.data["state"].to_numpy()
    assert set(np.unique(state)) == {EXACT, FAILED}
    assert np.isnan(values(result)).all()
    assert any(warning.startswith("Not a number.") for warning in result.warnings)


@pytest.mark.parametrize("component", SWEEPABLE)
def test_a_pair_that_is_not_a_number_leaves_the_others_intact(component):
    """Position 8 is not a number, and only the second pair is so long."""
    right = fast(small("gpt2"), PAIRS, component).data
    result = fast(spoiled("wpe", 8), PAIRS, component).data
    assert (result["state"].isel(pair=1) != MEASURED).all()
    assert (result["state"].isel(pair=1) == FAILED).any()
    assert result["logit_diff"].isel(pair=1).isnull().all()
    for pair in (0, 2):
        np.testing.assert_allclose(result["logit_diff"].isel(pair=pair), right["logit_diff"].isel(pair=pair), atol=1e-5)
        assert (result["state"].isel(pair=pair) == right["state"].isel(pair=pair)).all()


@pytest.mark.parametrize("component", SWEEPABLE)
def test_a_patch_that_cures_what_is_not_a_number_is_measured(component):
    """The corrupted answer token's embedding is not a number: patches that replace all that came of it are fine."""
    model = spoiled("wte", micro.WORDS.index(" went") + 2)
    one, other = (engine(model, PAIRS[2], component).data for engine in (fast, slow))
    found, expected = one["logit_diff"].to_numpy(), other["logit_diff"].to_numpy()
    # A weight of 0 times a value that is no number is none: in a whole forward it reaches back, to the positions that
    # both runs share; these the frontier takes from the clean run.
    finite, both = np.isfinite(found), np.isfinite(found) & np.isfinite(expected)
    assert (np.isfinite(expected) <= finite).all()
    np.testing.assert_allclose(found[both], expected[both], atol=TOLERANCE)
    assert (one["state"].to_numpy()[..., 0][finite[..., 0]] == MEASURED).all()
    if component in ("resid_mid", "resid_post"):
        assert np.isfinite(found[-1, -1]).all()
        assert both.any()


def test_attention_that_writes_nothing_is_no_failure():
    model = fresh("gpt2")
    with torch.no_grad():
        model._hf.transformer.h[1].attn.c_proj.weight.zero_()
        model._hf.transformer.h[1].attn.c_proj.bias.zero_()
    one, other = (engine(model, PAIRS[0], "resid_mid") for engine in (fast, slow))
    np.testing.assert_allclose(values(one), values(other), atol=TOLERANCE)


# -- half precision


@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"), [("llama", torch.bfloat16, 0.1), ("gpt2", torch.float16, 0.012)]
)
def test_half_precision_is_as_near_to_its_replay_as_the_numbers_are_fine(family, dtype, tolerance):
    exact = small(family)
    model = load((fresh(family)._hf.to(dtype), micro.tokenizer()))
    for component in ("resid_mid", "k", "pattern"):
        half, other = fast(model, PAIRS[1], component, "layer"), slow(model, PAIRS[1], component, "layer")
        full = fast(exact, PAIRS[1], component, "layer")
        np.testing.assert_allclose(values(half), values(other), atol=tolerance)
        np.testing.assert_allclose(values(half), values(full), atol=tolerance)
