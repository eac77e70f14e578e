"""Path patching against its slow twin on every family, against TransformerLens, and against its laws."""

import inspect
import itertools
import zlib
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import families
import micro
import numpy as np
import oracle
import override
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_paths import Twin

import nbpatch
from nbpatch.engine import edges
from nbpatch.engine import receivers as receiving
from nbpatch.engine.edge_plan import NO_PATH, RECEIVERS, SENDERS, make_edge_plan
from nbpatch.engine.fit import fit_of
from nbpatch.engine.tail import unembedded
from nbpatch.errors import MetricError, NbpatchError, PatchNotApplied, PlanError, SiteError
from nbpatch.methods.paths import path_patch
from nbpatch.metrics import as_metrics
from nbpatch.model import Model, load
from nbpatch.plan import EXACT, MEASURED, NOT_RUN
from nbpatch.prompts import PromptPair
from nbpatch.result import read

TOLERANCE = 1e-4
POST_NORM = ("gemma2", "gemma3", "olmo2")
ENDS = list(itertools.product(SENDERS, RECEIVERS))

PAIR = PromptPair(
    clean="When Mary and John went to the store, John gave a drink to",
    corrupted="When Mary and John went to the store, Mary gave a drink to",
    answer=" Mary",
    wrong=" John",
)
LATE = PromptPair(clean=" Mary and John gave a ball", corrupted=" Mary and John gave a drink", answer=" to", wrong=" a")
BOTH = PromptPair(clean=" Mary and John gave a ball", corrupted=" Mary and Paul gave a drink", answer=" to", wrong=" a")
EARLY = PromptPair(clean=" Mary and John gave", corrupted=" John and Mary gave", answer=" Paul", wrong=" Mary")


@lru_cache(maxsize=2)
def small(family: str) -> Model:
    return load((micro.gpt2() if family == "gpt2" else micro.llama(layers=3), micro.tokenizer()))


def twin(family: str) -> Twin:
    hf: Any = small(family)._hf
    return Twin(lambda ids, edit: oracle.forward(hf, ids, edit)[-1], 3)


def sides(one: Any, direction: str) -> tuple[Any, Any]:
    """Returns the token ids of (base, source)."""
    both = (one.corrupted_ids, one.clean_ids)
    return both if direction == "denoising" else both[::-1]


def answered(logits: torch.Tensor, one: Any) -> float:
    return float(logits[one.answer_ids[0]] - logits[one.wrong_ids[0]])


def compare(model: Model, slow: Twin, pair: PromptPair, ends: tuple[str, str], cells: Any = None) -> float:
    """Holds cells of both directions to the twin, all or those drawn, and returns the strongest effect."""
    result = path_patch(model, pair, *ends, direction="both")
    (one,) = model.tokenize(pair)
    values, state = (result.data[name].isel(pair=0).to_numpy() for name in ("logit_diff", "state"))
    there = np.argwhere((state == MEASURED) | (state == EXACT))
    for place in there if cells is None else cells(there):
        ids = sides(one, ("denoising", "noising")[place[0]])
        cell = dict(zip(result.over, map(int, place[1:]), strict=True))
        expected = answered(slow.edge(ids, *ends, cell), one)
        assert values[tuple(place)] == pytest.approx(expected, abs=TOLERANCE), (ends, cell)
    return float(abs(result.effect()).max())


@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: f"{ends[0]}-{ends[1]}")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_edge_equals_three_hand_written_forwards(family, ends):
    strongest = compare(small(family), twin(family), BOTH, ends)
    assert strongest > 1e-3, "the sweep shows no effect to compare"


def test_edges_that_carry_nothing_by_construction_carry_nothing_in_the_twin():
    assert compare(small("llama"), twin("llama"), PAIR, ("embed", "logits")) == 0
    result = path_patch(small("llama"), PAIR, "embed", "q")
    assert (result.data["state"].isel(layer=-1) == EXACT).all()
    assert (result.data["state"].isel(layer=slice(0, -1)) == MEASURED).all()
    for receivers in RECEIVERS:
        compare(small("llama"), twin("llama"), EARLY, ("embed", receivers))


def slow_family(family: str) -> Twin:
    hf: Any = families.plain(family)
    scale = float(getattr(hf.config, "residual_multiplier", 1.0))
    return Twin(lambda ids, edit: override.forward(hf, ids, edit), families.LAYERS, family in families.PARALLEL, scale)


@pytest.mark.parametrize("family", [*families.FAST, *families.OVERRIDDEN])
def test_edges_equal_three_literal_forwards_in_every_family(family):
    random = np.random.default_rng(zlib.crc32(family.encode()))
    known = [one for one in SENDERS if one != "z" or family not in POST_NORM]
    for receivers in RECEIVERS:
        senders = "z" if "z" in known and receivers == "mlp" else str(random.choice(known))
        pair = families.PAIRS[1 + random.integers(len(families.PAIRS) - 1)]

        def draw(there: Any) -> Any:
            return random.choice(there, min(2, len(there)), replace=False)

        compare(families.loaded(family), slow_family(family), pair, (senders, receivers), draw)


@pytest.mark.parametrize("family", ["gpt2", *(one for one in families.PARALLEL if one not in families.SLOW)])
def test_a_head_precedes_the_mlp_of_its_layer_unless_both_read_the_same_input(family):
    state = path_patch(families.loaded(family), families.PAIRS[0], "z", "mlp").data["state"]
    own = [int(state.isel(sender_layer=i, layer=i, sender_head=0, pair=0)) for i in range(families.LAYERS)]
    assert own == [NO_PATH if family in families.PARALLEL else MEASURED] * families.LAYERS


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", ["tiny", "gpt2"])
def test_head_to_head_edges_equal_transformer_lens(name, direction, tiny):
    from transformer_lens.patching import get_act_patch_direct_path_all_sources

    model = tiny if name == "tiny" else small(name)
    (one,) = model.tokenize(PAIR)
    base, source = (torch.tensor([ids]) for ids in sides(one, direction))
    with torch.no_grad():
        caches = [model.bridge.run_with_cache(ids)[1] for ids in (source, base)]
        for receivers in ("q", "k", "v"):
            theirs = get_act_patch_direct_path_all_sources(
                model.bridge, base, *caches, lambda logits: torch.tensor(answered(logits[0, -1], one)),
                component=receivers, verbose=False,
            ).numpy()  # fmt: skip
            result = path_patch(model, PAIR, "z", receivers, direction=direction)
            ours = result.data["logit_diff"].isel(pair=0).to_numpy()
            there = np.isfinite(ours)
            sender, receiver = np.indices(there.shape)[[0, 2]]
            np.testing.assert_array_equal(there, sender < receiver)
            assert np.ptp(theirs[there]) > 1e-3, "the sweep shows no effect to compare"
            np.testing.assert_allclose(ours[there], theirs[there], atol=TOLERANCE)


# Laws.

WORDS = st.sampled_from([word for word in micro.WORDS if word.startswith(" ")])
PROMPTS = st.integers(2, 7).flatmap(lambda n: st.tuples(*[st.lists(WORDS, min_size=n, max_size=n)] * 2))
LAWS = settings(max_examples=10, deadline=None)
FAMILIES = st.sampled_from(["gpt2", "llama"])


def as_pair(texts: tuple[list[str], list[str]]) -> PromptPair:
    return PromptPair("".join(texts[0]), "".join(texts[1]), " Mary", " John")


def engine_of(model: Model, pair: PromptPair, ends: tuple[str, str]) -> edges.Edges:
    parts = fit_of(model).parts
    parallel = [block.mid is None for block in parts.blocks]
    plan = make_edge_plan(
        model.shape, model.tokenize(pair), ends, direction="denoising", metrics=as_metrics("logit_diff"),
        parallel=parallel,
    )  # fmt: skip
    return edges.Edges(plan, model, parts)


@torch.no_grad()
def changes(model: Model, pair: PromptPair, senders: str) -> tuple[torch.Tensor, edges.Edges]:
    """Returns the sum over all senders of one kind of what they add to the stream at the answer position."""
    engine = engine_of(model, pair, (senders, "logits"))
    engine.trace()
    reader = edges._Reader(engine.plan, engine.parts, engine.traced, engine.scales)
    axes = [range(size) for size in engine.plan.states.shape[1:-1]]
    cells = np.array([*itertools.product(*axes)], np.int64)
    columns = [cells[:, i] if i < len(axes) else np.full(len(cells), -1) for i in range(2)]
    last = np.full(len(cells), engine.plan.tokenized[0].clean_end)
    copies = edges.Copies(np.ones_like(last), *columns, last, last)
    return reader._changes(copies, copies.tokens()).sum(0), engine


@LAWS
@given(PROMPTS, st.sampled_from(["gpt2", "llama", "granite", "gpt_neox parallel"]))
def test_law_all_senders_together_into_the_logits_are_the_source_run(texts, family):
    model, pair = small(family) if family in ("gpt2", "llama") else families.loaded(family), as_pair(texts)
    together, base = torch.zeros(()), None
    for senders in SENDERS:
        change, base = changes(model, pair, senders)
        together = together + change
    final = base.traced.out[1, base.plan.tokenized[0].clean_end] + together
    logits = unembedded(base.parts, base.traced.returns, final[None], None)[0]
    np.testing.assert_allclose(logits, base.traced.logits[0], atol=TOLERANCE)


@LAWS
@given(PROMPTS, FAMILIES, st.sampled_from(ENDS))
def test_law_denoising_the_exchanged_pair_is_noising_the_pair(texts, family, ends):
    pair = as_pair(texts)
    exchanged = PromptPair(pair.corrupted, pair.clean, " Mary", " John")
    noised = path_patch(small(family), pair, *ends, direction="noising").data["logit_diff"]
    denoised = path_patch(small(family), exchanged, *ends, direction="denoising").data["logit_diff"]
    np.testing.assert_allclose(noised, denoised, atol=TOLERANCE)


@LAWS
@given(st.lists(WORDS, min_size=2, max_size=7), FAMILIES, st.sampled_from(ENDS))
def test_law_a_run_into_itself_changes_nothing(words, family, ends):
    result = path_patch(small(family), as_pair((words, words)), *ends)
    assert set(np.unique(result.data["state"])) <= {EXACT, NO_PATH}
    assert result.provenance["engine"]["runs"] == 0
    assert np.nanmax(abs(result.effect()), initial=0) == 0


@LAWS
@given(PROMPTS, FAMILIES)
def test_law_cells_said_to_be_exact_change_nothing_when_run(texts, family):
    model, pair = small(family), as_pair(texts)
    for receivers in ("q", "mlp", "logits"):
        known = path_patch(model, pair, "embed", receivers)
        engine = engine_of(model, pair, ("embed", receivers))
        engine.plan.states[:] = NOT_RUN
        engine.trace()
        values = {int(filled.cell[i]): filled for wave in engine.waves() for _, filled in wave() for i in [0]}
        assert values, "nothing was run"
        table = known.data["logit_diff"].to_numpy().ravel()
        answers = engine.runs.answers.within(engine.columns)
        for filled in values.values():
            found = filled.logits[:, answers.answer[0, 0]] - filled.logits[:, answers.wrong[0, 0]]
            np.testing.assert_allclose(found, table[filled.cell], atol=TOLERANCE)


# What is run, and how.


@pytest.mark.parametrize("ends", [("z", "q"), ("z", "k"), ("mlp_out", "mlp"), ("embed", "v"), ("z", "logits")])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_pairs_of_all_lengths_small_waves_and_the_order_of_axes_change_nothing(family, ends, monkeypatch):
    model, pairs = small(family), [PAIR, EARLY, LATE]
    whole = path_patch(model, pairs, *ends, direction="both", metric=["logit_diff", "log_prob"])
    turned = " ".join(reversed(whole.over))
    monkeypatch.setattr("nbpatch.engine.frontier.MOST_TOKENS", 40)
    waves = path_patch(model, pairs, *ends, turned, direction="both", metric=["logit_diff", "log_prob"])
    assert waves.provenance["engine"]["waves"] > whole.provenance["engine"]["waves"]
    assert waves.data["logit_diff"].dims == ("direction", *turned.split(), "pair")
    for name in ("logit_diff", "log_prob"):
        np.testing.assert_allclose(waves.data[name].transpose(*whole.data[name].dims), whole.data[name], atol=1e-5)
    likely = path_patch(model, pairs, *ends, direction="both", metric="log_prob")
    np.testing.assert_allclose(whole.data["log_prob"], likely.data["log_prob"], atol=1e-5)
    for number, pair in enumerate(pairs):
        alone = path_patch(model, pair, *ends, direction="both").data["logit_diff"].isel(pair=0)
        np.testing.assert_allclose(whole.data["logit_diff"].isel(pair=number), alone, atol=1e-5)


def test_a_function_of_the_user_sees_all_pairs_of_a_cell():
    seen = []

    def mine(logits):
        seen.append(logits.shape)
        return logits[:, 2] - logits[:, 3]

    result = path_patch(small("llama"), [PAIR, LATE], "mlp_out", "k", metric=mine)
    assert set(seen) == {(2, small("llama").shape.d_vocab)}
    assert np.isfinite(result.data["mine"].isel(sender_layer=0, layer=1)).all()


def test_the_result_says_what_it_is_and_what_made_it(tmp_path):
    result = path_patch(small("llama"), PAIR, "z", "v", direction="both")
    assert result.data["logit_diff"].dims == ("direction", "sender_layer", "sender_head", "layer", "head", "pair")
    assert result.data["head"].to_numpy().tolist() == ["kv0", "kv1"]
    made = result.provenance
    assert (made["method"], made["variant"]) == ("path_patch", "direct")
    assert (made["senders"], made["receivers"], made["direction"]) == ("z", "v", "both")
    runs = 2 * 3 * 4 * 2
    assert made["engine"]["run"] == made["engine"]["runs"] == runs
    assert made["engine"]["no_path"] == 2 * 3 * 4 * 3 * 2 - runs
    assert made["engine"]["name"] == "frontier"
    assert made["engine"]["flops"] > 0
    assert np.isnan(result.effect().sel(sender_layer=1, layer=1)).all()
    recovered = result.recovered().sel(direction="noising")
    share = result.share().sel(direction="noising")
    np.testing.assert_allclose(recovered, 1 + share, atol=TOLERANCE)
    top = result.top(3)
    assert (top["sender_layer"] < top["layer"]).all()
    assert set(top["head"]) <= {"kv0", "kv1"}
    again = read(result.save(tmp_path / "edges.nc"))
    np.testing.assert_array_equal(again.data["logit_diff"], result.data["logit_diff"])
    assert repr(again).startswith("z → v over sender_layer sender_head layer head")
    assert again._repr_mimebundle_() is not None, "a notebook shows the result"
    assert "Direct path patching" in again.card()


def test_one_number_where_neither_end_has_axes():
    result = path_patch(small("gpt2"), LATE, "embed", "logits")
    assert result.data["logit_diff"].dims == ("pair",)
    assert result.top(1)["effect"][0] == pytest.approx(float(result.effect()))


def test_the_public_name_is_there_and_takes_at_most_eight():
    parameters = list(inspect.signature(nbpatch.path_patch).parameters.values())
    assert [one.name for one in parameters[:2]] == ["model", "pairs"]
    assert len(parameters) <= 8


# What is refused, and what is lost.

SHORTER = PromptPair(
    clean=" Mary and John gave", corrupted=" John gave", answer=" to", wrong=" a", align={0: 0, 3: 1, 4: 2}
)
REFUSED: list[tuple[dict[str, Any], type[NbpatchError], str]] = [
    ({"variant": "wong"}, PlanError, 'did you mean "wang"?'),
    ({"variant": "dirct"}, PlanError, 'did you mean "direct"?'),
    ({"senders": "mlp"}, SiteError, "no senders 'mlp'.\n  in     senders"),
    ({"receivers": "z"}, SiteError, "one of: q, k, v, mlp, logits"),
    ({"receivers": "q", "over": "layer head"}, PlanError, 'over="sender_layer sender_head layer head", in any order'),
    ({"direction": "up"}, PlanError, "no direction 'up'."),
    ({"metric": "logit"}, MetricError, "logit_diff"),
    ({"pairs": SHORTER}, PlanError, "prompts of equal length"),
    ({"pairs": []}, NbpatchError, "pair"),
]


@pytest.mark.parametrize(("asked", "kind", "words"), REFUSED)
def test_what_makes_no_sense_is_refused_with_the_way_out(asked, kind, words):
    options = {"pairs": PAIR, **asked}
    with pytest.raises(kind) as caught:
        path_patch(small("gpt2"), options.pop("pairs"), **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("family", POST_NORM)
def test_heads_behind_a_common_norm_are_refused_as_senders(family):
    with pytest.raises(SiteError) as caught:
        path_patch(families.loaded(family), families.PAIRS[0], "z", "q")
    assert str(caught.value) == (
        "what z adds to the residual stream is not known exactly in this model.\n"
        "  in     senders\n"
        "  seen   layer 0: a norm or a scale of all heads together stands behind their projection\n"
        '  try    senders="mlp_out" or "embed"'
    )


def test_models_that_the_fast_engine_does_not_take_are_refused():
    with pytest.raises(SiteError, match="they need the fast engine"):
        path_patch(families.loaded("falcon"), families.PAIRS[0])
    model = load((micro.gpt2(layers=1), micro.tokenizer()))
    model.engine = "replay"
    with pytest.raises(SiteError, match=r'model\.engine = "auto"'):
        path_patch(model, PAIR)


def test_a_query_that_is_not_asked_for_is_an_error(monkeypatch):
    attending = receiving.attending
    monkeypatch.setattr(receiving, "attending", lambda parts, keep: attending(parts, nothing_attended))
    with pytest.raises(PatchNotApplied, match="layer 2 did not come to its attention"):
        path_patch(small("gpt2"), PAIR, "z", "q")


def nothing_attended(module, q, k, v, mask, options):
    return torch.zeros_like(q).transpose(1, 2)


def test_an_mlp_that_does_not_read_the_changed_input_is_an_error(monkeypatch):
    monkeypatch.setattr(receiving, "all_replaced", lambda methods: nullcontext())
    with pytest.raises(PatchNotApplied, match="attention was computed where it should have been given"):
        path_patch(small("gpt2"), PAIR, "z", "mlp")


def test_an_mlp_that_is_not_run_is_an_error(monkeypatch):
    replaced = receiving.all_replaced
    monkeypatch.setattr(receiving, "all_replaced", lambda methods: replaced(methods[:-1]))
    with pytest.raises(PatchNotApplied, match="did not run its MLP on the changed input"):
        path_patch(small("gpt2"), PAIR, "z", "mlp")


def test_an_interrupted_run_keeps_what_is_finished(monkeypatch):
    monkeypatch.setattr("nbpatch.engine.frontier.MOST_TOKENS", 40)
    calls = []
    carried = edges.Edges._carried

    def interrupted(self, wave, traced):
        calls.append(len(wave))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return carried(self, wave, traced)

    monkeypatch.setattr(edges.Edges, "_carried", interrupted)
    result = path_patch(small("gpt2"), PAIR, "z", "q")
    assert result.provenance["engine"]["run"] == sum(calls[:2])
    assert any("Stopped early" in warning for warning in result.warnings)
