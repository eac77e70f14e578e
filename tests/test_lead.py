"""Base runs that walk with the first wave: they are plain forwards, and it matters to no number who walks along."""

import itertools
from collections.abc import Sequence
from typing import Any

import families
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nbpatch as nbp
from nbpatch.engine import run_together
from nbpatch.engine.fit import fit_of
from nbpatch.engine.frontier import Frontier
from nbpatch.engine.loop import drive
from nbpatch.engine.rows import base_rows
from nbpatch.engine.trace import OPTIONAL, Trace, trace
from nbpatch.engine.walk import Walk
from nbpatch.errors import PlanError, SiteError
from nbpatch.metrics import as_metrics
from nbpatch.model import Model
from nbpatch.plan import EXACT, MEASURED, NOT_RUN, Plan, make_plan
from nbpatch.prompts import PromptPair, TokenizedPair
from nbpatch.result import Result
from nbpatch.sites import SWEEPABLE

TOLERANCE = 1e-5
LED = ("gpt2", "llama", "gemma2", "olmo2", "opt", "gptj", "gpt_neo", "mixtral")
Ids = tuple[int, ...]


def tokenized(clean: Ids, corrupted: Ids) -> TokenizedPair:
    """Returns a pair of any tokens, also such that no text has: different in their first, or not at all."""
    same = tuple((place, place) for place in range(len(clean)))
    texts = tuple(map(str, clean)), tuple(map(str, corrupted))
    pair = PromptPair("clean", "corrupted", "answer", "wrong")
    return TokenizedPair(pair, clean, corrupted, *texts, (3,), (4,), ("3",), ("4",), same, has_bos=False)


# Lengths in no order; different in one early token, in several, in the first, in the last, in all, in none.
PAIRS = (
    tokenized((0, 5, 6, 7, 8, 9, 3, 4, 5), (0, 2, 6, 7, 8, 9, 3, 4, 5)),
    tokenized((0, 5, 9, 7, 3), (0, 5, 9, 7, 4)),
    tokenized((7, 2, 3, 12, 6, 4, 11, 9, 13, 10, 8, 2), (7, 2, 3, 5, 6, 4, 2, 9, 13, 10, 3, 2)),
    tokenized((5, 3, 4), (2, 3, 4)),
    tokenized((0, 6, 2, 8, 3, 3, 7), (0, 6, 2, 8, 3, 3, 7)),
    tokenized((9, 9), (4, 5)),
    tokenized((11,), (12,)),
    tokenized((2, 6, 2, 6, 10, 6, 2, 6, 3), (2, 6, 2, 6, 10, 6, 2, 5, 4)),
)


@st.composite
def drawn_pairs(draw: st.DrawFn) -> list[tuple[Ids, Ids]]:
    """Tokens of one to four pairs; pairs are made of them inside the test."""
    found: list[tuple[Ids, Ids]] = []
    for _ in range(draw(st.integers(1, 4))):
        clean = draw(st.lists(st.integers(1, 13), min_size=1, max_size=13))
        corrupted = [*clean]
        for place in draw(st.lists(st.integers(0, len(clean) - 1), max_size=3, unique=True)):
            corrupted[place] = draw(st.integers(1, 13))
        found.append((tuple(clean), tuple(corrupted)))
    return found


class Alone(Frontier):
    """The engine whose base runs always go without patched rows."""

    def trace(self, *, alone: bool = False) -> Any:
        return super().trace(alone=True)


def working(model: Model) -> list[str]:
    return [name for name in SWEEPABLE if not fit_of(model).works[name]]


def plan_of(model: Model, pairs: Sequence[TokenizedPair], component: str, metric: Any = "logit_diff") -> Plan:
    return make_plan(model.shape, tuple(pairs), component, direction="both", metrics=as_metrics(metric))


def engine_of(model: Model, plans: Sequence[Plan], kind: type[Frontier] = Frontier) -> Frontier:
    fit = fit_of(model)
    assert fit.parts is not None, fit.reason
    return kind(plans, model, fit.parts, fit.returns)


def swept(model: Model, plans: Sequence[Plan], kind: type[Frontier] = Frontier) -> list[Result]:
    return drive(engine_of(model, plans, kind), plans, model)


def agree(found: Sequence[Result], expected: Sequence[Result]) -> None:
    for one, other in zip(found, expected, strict=True):
        for name in one.metrics:
            np.testing.assert_allclose(one.data[name], other.data[name], atol=TOLERANCE)
        assert (one.data["state"].to_numpy() == other.data["state"].to_numpy()).all()
        for base in ("clean", "corrupted"):
            np.testing.assert_allclose(one.baselines[base], other.baselines[base], atol=TOLERANCE)


def prompts_of(pairs: Sequence[TokenizedPair]) -> list[Ids]:
    return [ids for one in pairs for ids in (one.clean_ids, one.corrupted_ids)]


@torch.no_grad()
def plain_logits(hf: Any, pairs: Sequence[TokenizedPair]) -> torch.Tensor:
    """Returns answer logits [run d_vocab], each prompt by itself through the model as it is."""
    return torch.stack([hf(torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in prompts_of(pairs)])


# -- who walks along


class Watched(Walk):
    """A walk that says how many base runs and how many patched rows it takes."""

    seen: list[tuple[int, int]]

    def __init__(self, rows: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(rows, *args, **kwargs)
        self.seen.append((self.n_lead, len(rows)))


@pytest.fixture
def walks(monkeypatch):
    Watched.seen = []
    monkeypatch.setattr("nbpatch.engine.frontier.Walk", Watched)
    return Watched.seen


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("component", SWEEPABLE)
def test_results_are_the_same_whether_base_runs_go_alone_or_with_rows(family, component, walks):
    model = families.loaded(family)
    plans = [plan_of(model, PAIRS, component, ["logit_diff", "kl"])]
    together = swept(model, plans)
    assert [walk for walk in walks if walk[0]] == [(len(prompts_of(PAIRS)), walks[0][1])]
    assert walks[0][1], "no row walked with the base runs"
    walks.clear()
    apart = swept(model, plans, Alone)
    assert walks[0] == (len(prompts_of(PAIRS)), 0)
    assert sum(count for _, count in walks) == plans[0].n_runs
    agree(together, apart)
    assert np.nanmax(abs(together[0].effect().to_numpy())) > 1e-3, "the sweep shows no effect to compare"


@pytest.mark.parametrize("family", LED)
def test_all_components_together_are_the_same_too(family):
    model = families.loaded(family)
    plans = [plan_of(model, PAIRS, component) for component in working(model)]
    agree(swept(model, plans), swept(model, plans, Alone))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["gpt2", "llama"]), st.sampled_from(SWEEPABLE), drawn_pairs(), st.sampled_from([1, 2, 3, 8]))
def test_law_any_pairs_and_any_bucket_are_the_same(family, component, drawn, bucket):
    class Coarse(Frontier):
        def _bucket(self) -> int:
            return bucket

    model = families.loaded(family)
    plans = [plan_of(model, [tokenized(*one) for one in drawn], component)]
    agree(swept(model, plans, Coarse), swept(model, plans, Alone))


def test_identical_prompts_are_exactly_at_base_and_nothing_is_walked(walks):
    model, pair = families.loaded("gpt2"), PAIRS[4]
    assert pair.first_difference is None
    (result,) = swept(model, [plan_of(model, [pair], "z")])
    assert (result.data["state"] == EXACT).all()
    assert walks == [(2, 0)]
    np.testing.assert_array_equal(result.baselines["clean"], result.baselines["corrupted"])


def test_pairs_beside_each_other_are_what_they_are_alone():
    """Nothing of one pair's base runs gets into another's, however their lengths stand to each other."""
    model = families.loaded("llama")
    plans = [plan_of(model, PAIRS, component) for component in ("resid_pre", "k", "mlp_post")]
    together = swept(model, plans)
    for number, pair in enumerate(PAIRS):
        own = swept(model, [plan_of(model, [pair], component) for component in ("resid_pre", "k", "mlp_post")])
        for one, other in zip(together, own, strict=True):
            alone = other.data["logit_diff"].isel(pair=0)
            beside = one.data["logit_diff"].isel(
                {"pair": number, **{name: slice(n) for name, n in alone.sizes.items()}}
            )
            np.testing.assert_allclose(beside, alone, atol=TOLERANCE)


# -- base runs are plain forwards


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("family", LED)
def test_base_logits_are_those_of_a_plain_forward(family, alone):
    model = families.loaded(family)
    plan = plan_of(model, PAIRS, "resid_pre", ["logit_diff", "log_prob"])
    engine = engine_of(model, [plan])
    runs = engine.trace(alone=alone)
    expected = plain_logits(families.plain(family), PAIRS)
    torch.testing.assert_close(runs.logits["clean"], expected[0::2], atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(runs.logits["corrupted"], expected[1::2], atol=TOLERANCE, rtol=TOLERANCE)
    (result,) = swept(model, [plan])
    for number, base in enumerate(("clean", "corrupted")):
        logits = expected[number::2]
        found = result.baselines[base].sel(metric="logit_diff")
        np.testing.assert_allclose(found, logits[:, 3] - logits[:, 4], atol=TOLERANCE)
        found = result.baselines[base].sel(metric="log_prob")
        np.testing.assert_allclose(found, logits.log_softmax(-1)[:, 3], atol=TOLERANCE)


def recorded(model: Model, pairs: Sequence[TokenizedPair], *, most: int = 10**6, alone: bool = False) -> Trace:
    """Returns what base runs left behind, with all that any patch could ask of them."""
    plans = [plan_of(model, pairs, component) for component in working(model)]
    engine = engine_of(model, plans)
    engine.max_tokens = most
    engine.trace(alone=alone)
    assert engine.traced is not None
    return engine.traced


def same_trace(found: Trace, expected: Trace) -> None:
    """Compares two traces where patches read them: everywhere, but in the last layer where the answer is."""
    assert found.lengths.tolist() == expected.lengths.tolist()
    last = len(found.layers) - 1
    for run, length in enumerate(found.lengths.tolist()):
        for number, (one, other) in enumerate(zip(found.layers, expected.layers, strict=True)):
            for name in ("pre", "q", "k", "v", *OPTIONAL):
                seen, wanted = getattr(one, name), getattr(other, name)
                assert (seen is None) == (wanted is None), f"{name} of layer {number}"
                if wanted is None:
                    continue
                ends = number == last and name in OPTIONAL
                where = slice(length - 1 if ends else 0, length)
                there = (run, slice(None), where) if wanted.ndim == 4 else (run, where)
                size = max(1.0, float(wanted[there].abs().max()))
                off = float((seen[there] - wanted[there]).abs().max())
                assert off <= TOLERANCE * size, f"{name} of layer {number}, run {run}: off by {off:.1e}"
        torch.testing.assert_close(found.out[run, length - 1], expected.out[run, length - 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("family", LED)
def test_what_base_runs_leave_behind_is_what_a_plain_forward_passes_through(family, alone):
    model = families.loaded(family)
    parts = fit_of(model).parts
    assert parts is not None
    expected = trace(parts, prompts_of(PAIRS), device=model.device, max_tokens=2**30)
    found = recorded(model, PAIRS, alone=alone)
    same_trace(found, expected)
    assert found.layers[0].attn_out is not None
    assert (found.layers[0].neurons is None) == (family == "mixtral")
    assert (found.layers[0].mid is None) == (family == "gptj")


def test_what_no_patch_asks_for_is_not_kept():
    model = families.loaded("gpt2")
    engine = engine_of(model, [plan_of(model, PAIRS, "resid_pre")])
    engine.trace()
    assert engine.traced is not None
    assert all(getattr(layer, name) is None for layer in engine.traced.layers for name in OPTIONAL)


# -- base runs in several chunks


@pytest.mark.parametrize("most", [1, 25])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_base_runs_in_several_chunks_leave_the_same_behind(family, most):
    model = families.loaded(family)
    chunks = list(base_rows(PAIRS, max_tokens=most))
    assert len(chunks) > 1
    assert sorted(itertools.chain(*(rows.run.tolist() for rows in chunks))) == list(range(2 * len(PAIRS)))
    same_trace(recorded(model, PAIRS, most=most), recorded(model, PAIRS))


@pytest.mark.parametrize("most", [12, 40])
@pytest.mark.parametrize("component", ["resid_mid", "k", "pattern", "mlp_post"])
def test_base_runs_in_several_chunks_give_the_same(component, most, walks):
    class Cut(Frontier):
        def trace(self, *, alone: bool = False) -> Any:
            self.max_tokens = most
            return super().trace(alone=alone)

    model = families.loaded("llama")
    plans = [plan_of(model, PAIRS, component)]
    cut = swept(model, plans, Cut)
    leading = [base for base, _ in walks if base]
    assert len(leading) == len(list(base_rows(PAIRS, max_tokens=most)))
    assert sum(leading) == 2 * len(PAIRS)
    agree(cut, swept(model, plans, Alone))


# -- several sweeps in one call

TEXTS = (
    PromptPair(" Mary and John went to", " Paul and John went to", " Mary", " John"),
    PromptPair(" John gave a drink to Mary and", " John gave the drink to Paul and", " Mary", " Paul"),
    PromptPair(" Mary and John gave", " Mary and John went", " a", " to"),
)


@pytest.mark.parametrize("direction", ["noising", "both"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_sweep_has_the_numbers_of_a_call_of_its_own(family, direction):
    model = families.loaded(family)
    asked = ["resid_pre", "z over layer head pos", "z", "k over layer pos", "mlp_post", "pattern over layer"]
    options: dict[str, Any] = {"direction": direction, "metric": ["logit_diff", "kl"]}
    found = nbp.patch_every(model, TEXTS, asked, **options)
    assert list(found) == asked
    for words, one in found.items():
        name, _, over = words.partition(" over ")
        other = nbp.patch(model, TEXTS, name, over or None, **options)
        agree([one], [other])
        assert one.data["logit_diff"].dims == other.data["logit_diff"].dims
        assert one.provenance["component"] == name


@pytest.mark.parametrize("family", ["gpt2", "gptj", "mixtral"])
def test_without_names_every_sweep_that_works_is_made(family):
    model = families.loaded(family)
    found = nbp.patch_every(model, TEXTS[2])
    assert list(found) == working(model)
    assert ("resid_mid" in found) == (family != "gptj")
    assert ("mlp_post" in found) == (family != "mixtral")
    for name, one in found.items():
        agree([one], [nbp.patch(model, TEXTS[2], name)])


@pytest.mark.parametrize(
    ("sweeps", "error", "words"),
    [
        (["z", "q", "z"], PlanError, "a sweep is named twice"),
        (["z over layer head", "z over layer head"], PlanError, "a sweep is named twice"),
        ([], PlanError, "no sweep named"),
        (["resid_pre", "resid_prä"], SiteError, "no component 'resid_prä'"),
        (["resid_pre over layer head"], SiteError, "has no axis"),
        (["z over layer neuron"], SiteError, "has no axis"),
    ],
)
def test_sweeps_that_cannot_be_are_refused(sweeps, error, words):
    with pytest.raises(error) as caught:
        nbp.patch_every(families.loaded("gpt2"), TEXTS[2], sweeps)
    assert words in str(caught.value)
    assert caught.value.fix


# -- stopping and progress


def test_a_stop_at_once_runs_no_patched_cell(walks):
    model = families.loaded("gpt2")
    plans = [plan_of(model, PAIRS, component) for component in ("resid_pre", "z")]
    results = run_together(plans, model, stop=lambda: True)
    assert walks == [(2 * len(PAIRS), 0)]
    expected = plain_logits(families.plain("gpt2"), PAIRS)
    for plan, result in zip(plans, results, strict=True):
        assert result.provenance["engine"]["waves"] == result.provenance["engine"]["run"] == 0
        assert (result.data["state"].to_numpy() == plan.states).all()
        assert (result.data["state"] == NOT_RUN).sum() == plan.n_runs
        assert result.data["logit_diff"].to_numpy()[plan.states == NOT_RUN].size
        assert np.isnan(result.data["logit_diff"].to_numpy()[plan.states == NOT_RUN]).all()
        clean = expected[0::2]
        np.testing.assert_allclose(result.baselines["clean"][0], clean[:, 3] - clean[:, 4], atol=TOLERANCE)


def test_a_later_stop_keeps_what_walked_with_the_base_runs():
    model = families.loaded("gpt2")
    layers = model.shape.n_layers
    answers = itertools.chain([False] * (1 + layers + 1), itertools.repeat(True))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("nbpatch.engine.frontier.MOST_TOKENS", 200)
        (some,) = run_together([plan_of(model, PAIRS, "resid_pre")], model, stop=lambda: next(answers))
    (whole,) = swept(model, [plan_of(model, PAIRS, "resid_pre")])
    there = some.data["state"].to_numpy() == MEASURED
    assert some.provenance["engine"]["waves"] == 1
    assert 0 < there.sum() < (whole.data["state"] == MEASURED).sum()
    found, expected = some.data["logit_diff"].to_numpy(), whole.data["logit_diff"].to_numpy()
    np.testing.assert_allclose(found[there], expected[there], atol=TOLERANCE)


@pytest.mark.parametrize("most", [60, 10**6])
def test_progress_goes_up_to_all_of_it(most, monkeypatch):
    monkeypatch.setattr("nbpatch.engine.frontier.MOST_TOKENS", most)
    model = families.loaded("gpt2")
    plans = [plan_of(model, PAIRS, component) for component in ("resid_pre", "z", "k")]
    total = sum(plan.n_runs for plan in plans)
    seen: list[tuple[int, int]] = []
    run_together(plans, model, on_progress=lambda progress: seen.append((progress.done, progress.total)))
    done = [one for one, _ in seen]
    assert {of for _, of in seen} == {total}
    assert done[0] == 0
    assert done[-1] == total
    assert all(one < other for one, other in itertools.pairwise(done)), done


def test_a_stop_between_two_layers_gives_up_that_wave_alone(monkeypatch):
    monkeypatch.setattr("nbpatch.engine.frontier.MOST_TOKENS", 200)
    model = families.loaded("gpt2")
    (whole,) = swept(model, [plan_of(model, PAIRS, "resid_pre")])
    expected, kept = whole.data["logit_diff"].to_numpy(), []
    while not kept or kept[-1] < (whole.data["state"] == MEASURED).sum():
        answers = itertools.chain([False] * len(kept), itertools.repeat(True))
        (some,) = run_together([plan_of(model, PAIRS, "resid_pre")], model, stop=lambda: next(answers))  # noqa: B023
        there = some.data["state"].to_numpy() == MEASURED
        np.testing.assert_allclose(some.data["logit_diff"].to_numpy()[there], expected[there], atol=TOLERANCE)
        for run in ("clean", "corrupted"):
            np.testing.assert_allclose(some.baselines[run], whole.baselines[run], atol=TOLERANCE)
        kept.append(int(there.sum()))
    waves = whole.provenance["engine"]["waves"]
    assert len(set(kept)) == waves + 1
    assert kept == sorted(kept)
    assert len(kept) > 2 * waves, "nobody asked between two layers"
