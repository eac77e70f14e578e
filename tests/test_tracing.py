"""Causal tracing against plain forwards: noise, one restored state, severed paths, what the model does not know."""

import itertools
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import golden
import micro
import numpy as np
import oracle
import pytest
import torch
from oracle_ablation import model_of

import nbpatch as nbp
from nbpatch.errors import NbpatchError, PlanError
from nbpatch.methods import patching
from nbpatch.methods.tracing import KINDS, ROLES, roles_of, trace
from nbpatch.model import Model, load
from nbpatch.result import STATES, Result, read

TOLERANCE = 1e-4
NOISE = nbp.Noise("subject", n=2, seed=3)
WINDOW = 2
EVERY: dict[str, Any] = {"window": WINDOW, "severed": ("mlp", "attn")}
NAMES = ["hidden", "mlp", "attn", "hidden, mlp severed", "hidden, attn severed"]
NO_POSITION, EXACT = STATES.index("no position"), STATES.index("exact")


def fact(clean: str, subject: str, answer: str) -> nbp.PromptPair:
    return nbp.PromptPair(clean, clean, answer, " Lima", labels={"subject": subject})


# The second is unknown: the numbers of the others' noise must not count it.
FACTS = [
    fact("The Empire State Building is located in", "Empire State Building", " Manhattan"),
    fact("The Louvre is located in", "Louvre", " Rome"),
    fact("The capital of Greece is", "Greece", " Athens"),
    fact("The Red Square is located in", "Red Square", " Moscow"),
]
KNOWN = [FACTS[0], FACTS[2], FACTS[3]]


# -- plain torch


def noises(hf: Any, ones: list[Any], noise: nbp.Noise) -> list[list[torch.Tensor]]:
    """Returns the noise on the embeddings [pos d_model], for each fact and draw."""
    table = hf.get_input_embeddings().weight.detach()
    subjects = torch.cat([table[[one.clean_ids[pos] for pos in one.labels["subject"]]] for one in ones])
    size, width = noise.scale * float(subjects.std()), table.shape[1]
    found = []
    for number, one in enumerate(ones):
        places, draws = sorted(one.labels["subject"]), []
        for draw in range(noise.n):
            drawn = np.random.default_rng([noise.seed, number, draw]).standard_normal((len(places), width))
            added = torch.zeros(len(one.clean_ids), width)
            added[places] = torch.tensor(size * drawn, dtype=torch.float32)
            draws.append(added)
        found.append(draws)
    return found


def probability(logits: torch.Tensor, one: Any) -> float:
    return float(logits[-1].double().softmax(-1)[one.answer_ids[0]])


def values_of(hf: Any, ids: Any, added: torch.Tensor) -> dict[tuple[str, int], torch.Tensor]:
    kept = {}

    def edit(name: str, layer: int, value: torch.Tensor) -> torch.Tensor:
        value = value + added if (name, layer) == ("resid_pre", 0) else value
        kept[name, layer] = value.clone()
        return value

    oracle.forward(hf, ids, edit)
    return kept


class Drowned(NamedTuple):
    """One fact, with what all states are without noise and under each draw of it."""

    one: Any
    clean: dict[tuple[str, int], torch.Tensor]
    draws: list[tuple[torch.Tensor, dict[tuple[str, int], torch.Tensor]]]


def drowned(hf: Any, ones: list[Any], noise: nbp.Noise) -> list[Drowned]:
    return [
        Drowned(
            one,
            values_of(hf, one.clean_ids, torch.zeros(1)),
            [(added, values_of(hf, one.clean_ids, added)) for added in draws],
        )
        for one, draws in zip(ones, noises(hf, ones, noise), strict=True)
    ]


def traced(hf: Any, of: Drowned, kind: str, layer: int, pos: int, window: int = WINDOW) -> float:
    """Returns the probability of the answer with one state restored, the mean over draws."""
    plain, _, cut = kind.removesuffix(" severed").partition(", ")
    restored = {layer} if plain == "hidden" else set(range(layer - window // 2, layer + window - window // 2))
    found = []
    for added, noised in of.draws:

        def edit(name: str, at: int, value: torch.Tensor, added: Any = added, noised: Any = noised) -> torch.Tensor:
            value = value + added if (name, at) == ("resid_pre", 0) else value
            if name == KINDS[plain] and at in restored:
                value = value.clone()
                value[pos] = of.clean[name, at][pos]
            if cut and name == KINDS[cut] and at > layer:
                value = value.clone()
                value[pos] = noised[name, at][pos]
            return value

        found.append(probability(oracle.forward(hf, of.one.clean_ids, edit), of.one))
    return float(np.mean(found))


@lru_cache(maxsize=4)
def expected(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the table [kind layer role pair], and the clean and the noised baselines [pair]."""
    model, pairs = model_and_known(name)
    hf, ones = model._hf, list(model.tokenize(pairs))
    layers, facts = hf.config.num_hidden_layers, drowned(hf, ones, NOISE)
    table = np.full((len(NAMES), layers, len(ROLES), len(ones)), np.nan)
    for pair, of in enumerate(facts):
        for (at, kind), layer in itertools.product(enumerate(NAMES), range(layers)):
            at_pos = [traced(hf, of, kind, layer, pos) for pos in range(len(of.one.clean_ids))]
            for number, role in enumerate(ROLES):
                if roles_of(of.one)[role]:
                    table[at, layer, number, pair] = np.mean([at_pos[pos] for pos in roles_of(of.one)[role]])
    clean = [probability(oracle.forward(hf, one.clean_ids), one) for one in ones]
    noised = [traced(hf, of, "hidden", -1, 0) for of in facts]
    return table, np.array(clean), np.array(noised)


@lru_cache(maxsize=2)
def llama() -> tuple[Model, list[nbp.PromptPair]]:
    """A random Llama, and prompts with what it says anyway as their answer."""
    model = load((micro.llama(layers=2), micro.tokenizer()))
    known = []
    for clean, subject in (("When Mary and John went", "Mary and John"), (" Paul gave the ball to", "Paul")):
        ids = model.tokenizer(clean)["input_ids"]
        top = model.tokenizer.decode([int(oracle.forward(model._hf, ids)[-1].argmax())])
        known.append(nbp.PromptPair(clean, clean, top, labels={"subject": subject}))
    return model, known


def tiny_model(engine: str) -> Model:
    return model_of("tiny", engine)


def model_and_known(name: str) -> tuple[Model, list[nbp.PromptPair]]:
    return (tiny_model("auto"), KNOWN) if name == "tiny" else llama()


@pytest.fixture(scope="module")
def every() -> Result:
    return trace(tiny_model("auto"), FACTS, noise=NOISE, **EVERY)


@pytest.fixture(scope="module")
def one_fact() -> Result:
    return trace(tiny_model("auto"), KNOWN[0], noise=NOISE, **EVERY)


def check(result: Result, name: str) -> None:
    table, clean, noised = expected(name)
    assert result.data["prob"].dims == ("kind", "layer", "role", "pair")
    np.testing.assert_allclose(result.data["prob"], table, atol=TOLERANCE)
    np.testing.assert_allclose(result.baselines["clean"].sel(metric="prob"), clean, atol=TOLERANCE)
    np.testing.assert_allclose(result.baselines["corrupted"].sel(metric="prob"), noised, atol=TOLERANCE)
    effects = table - noised
    for kind in range(len(NAMES)):
        assert np.nanmax(np.abs(effects[kind])) > 0.01, "there is no effect to compare"
        assert not np.allclose(np.nan_to_num(effects[kind]), np.nan_to_num(effects[kind - 1]), atol=1e-3)


def test_every_kind_equals_plain_torch(every):
    check(every, "tiny")
    assert every.provenance["engine"]["name"] == "frontier"


def test_the_slow_engine_gives_the_same():
    # Other facts, another scale of the noise: the twin is the fast engine on the same facts.
    slow, fast = (trace(tiny_model(engine), FACTS[1:3], noise=NOISE, **EVERY) for engine in ("replay", "auto"))
    assert [one.provenance["engine"]["name"] for one in (slow, fast)] == ["replay", "frontier"]
    np.testing.assert_allclose(slow.data["prob"], fast.data["prob"], atol=TOLERANCE)
    np.testing.assert_array_equal(slow.data["state"], fast.data["state"])


def test_rotary_models_with_grouped_keys_too():
    model, known = llama()
    check(trace(model, known, noise=NOISE, **EVERY), "llama")


def test_by_position_each_cell_is_its_own(one_fact):
    model = tiny_model("auto")
    one = model.tokenize(KNOWN[0])[0]
    (of,) = drowned(model._hf, [one], NOISE)
    assert one_fact.data["prob"].dims == ("kind", "layer", "pos", "pair")
    for kind, layer, pos in itertools.product(NAMES, (0, 2), range(len(one.clean_ids))):
        wanted = traced(model._hf, of, kind, layer, pos)
        found = float(one_fact.data["prob"].sel(kind=kind, layer=layer, pos=pos, pair=0))
        assert found == pytest.approx(wanted, abs=TOLERANCE), (kind, layer, pos)


# -- laws


def test_a_window_is_that_of_patch(every):
    for kind, width in (("hidden", 1), ("mlp", WINDOW), ("attn", WINDOW)):
        single = nbp.patch(
            tiny_model("auto"), KNOWN, KINDS[kind], "layer label", metric="prob", corruption=NOISE, window=width
        )
        end = single.data["prob"].sel(label="END").to_numpy()
        np.testing.assert_allclose(every.data["prob"].sel(kind=kind, role="last token"), end, atol=1e-5)


def test_the_last_state_restores_all_of_it(every):
    effect = every.effect(per_pair=True).sel(layer=3, role="last token")
    for kind in ("hidden", "hidden, mlp severed", "hidden, attn severed"):
        np.testing.assert_allclose(effect.sel(kind=kind), every.gap(), atol=1e-5)


def test_severing_changes_the_map_below_the_last_layer_and_nothing_in_it(every):
    hidden = every.data["prob"].sel(kind="hidden")
    for cut in ("mlp", "attn"):
        severed = every.data["prob"].sel(kind=f"hidden, {cut} severed")
        np.testing.assert_allclose(severed.sel(layer=3), hidden.sel(layer=3), atol=1e-6)
        assert float(abs(severed - hidden).sel(role="last token").max()) > 0.02


def test_severed_mlps_stop_the_subject_from_being_looked_up_later(every):
    """ROME figure 3 in small: what early states restore at the last token goes through later MLPs."""
    effect = every.effect().sel(role="last token", layer=1)
    assert float(effect.sel(kind="hidden, mlp severed")) < float(effect.sel(kind="hidden")) - 0.02


def test_no_noise_no_effect():
    result = trace(tiny_model("auto"), KNOWN[1:], noise=nbp.Noise("subject", scale=0.0, n=1), window=WINDOW)
    np.testing.assert_allclose(result.gap(), 0, atol=1e-6)
    np.testing.assert_allclose(np.nan_to_num(result.effect()), 0, atol=1e-6)


def test_the_corrupted_prompt_does_not_matter(every):
    """One of another length, even."""
    other = [nbp.PromptPair(one.clean, "The Shard is", one.answer, labels=one.labels, align={0: 0}) for one in FACTS]
    again = trace(tiny_model("auto"), other, kinds="hidden", noise=NOISE)
    np.testing.assert_allclose(again.data["prob"].sel(kind="hidden"), every.data["prob"].sel(kind="hidden"), atol=1e-5)


def test_the_order_of_kinds_is_the_order_of_the_result():
    result = trace(tiny_model("auto"), KNOWN, kinds="attn, hidden", noise=NOISE, window=WINDOW)
    assert list(result.data["kind"].to_numpy()) == ["attn", "hidden"]
    table = expected("tiny")[0]
    for kind in ("attn", "hidden"):
        np.testing.assert_allclose(result.data["prob"].sel(kind=kind), table[NAMES.index(kind)], atol=TOLERANCE)


# -- seeds


def test_the_same_seed_gives_the_same_and_another_a_similar_map():
    model = tiny_model("auto")
    with pytest.warns(UserWarning, match="leaves out"):
        facts = nbp.tasks.facts(model, 3)
    one, again = (trace(model, facts, kinds="hidden", noise=nbp.Noise("subject", n=4, seed=1)) for _ in range(2))
    other = trace(model, facts, kinds="hidden", noise=nbp.Noise("subject", n=4, seed=2))
    np.testing.assert_array_equal(one.data["prob"], again.data["prob"])
    assert float(abs(one.gap() - other.gap()).max()) > 1e-3
    maps = [np.nan_to_num(each.effect().to_numpy().ravel()) for each in (one, other)]
    assert np.corrcoef(maps)[0, 1] > 0.95
    assert one.provenance["seed"] == 1


def test_left_out_the_noise_is_that_of_the_paper():
    result = trace(tiny_model("auto"), KNOWN[1], kinds="hidden")
    assert "3 × their standard deviation; the mean of 10 draws" in result.provenance["corruption_words"]
    assert result.metrics == ("prob",)


# -- what the model knows


def test_unknown_facts_are_left_out_and_named(every):
    assert every.data.sizes["pair"] == 3
    assert [pair["clean"] for pair in every.provenance["pairs"]] == [one.clean for one in KNOWN]
    (unknown,) = every.provenance["unknown"]
    assert (unknown["fact"], unknown["clean"], unknown["answer"]) == (1, FACTS[1].clean, [" Rome"])
    assert unknown["top"][0] == " Paris"
    warned = [warning for warning in every.warnings if warning.startswith("Unknown facts")]
    assert warned == [
        "Unknown facts. 1 of 4 are left out, the model does not know them: 'The Louvre is located in' → ' Paris' "
        "(100 %), not ' Rome'. All are in result.provenance[\"unknown\"]."
    ]
    assert trace(tiny_model("auto"), KNOWN, kinds="hidden", noise=NOISE).provenance["unknown"] == []


def test_one_of_several_answers_is_enough():
    pair = nbp.PromptPair("The Louvre is located in", "The Louvre is located in", [" Rome", " Paris"],
                          labels={"subject": "Louvre"})  # fmt: skip
    assert trace(tiny_model("auto"), pair, kinds="hidden", noise=NOISE).provenance["unknown"] == []


def test_what_the_first_look_notices_is_said_once():
    model = tiny_model("auto")
    trace(model, KNOWN[1], kinds="hidden", noise=NOISE)
    model.notes["fit"] = replace(model.notes["fit"], again=True)
    noticed = [trace(model, KNOWN[1], kinds="hidden", noise=NOISE).warnings for _ in range(2)]
    assert [sum(one.startswith("Weights or hooks") for one in each) for each in noticed] == [1, 0]


# -- roles, states, spread


@pytest.mark.parametrize(
    ("clean", "subject", "roles"),
    [
        ("The Empire State Building is located in", "Empire State Building", [[2], [3], [4], [5], [6], [7]]),
        ("The Empire State Building is located in", "The Empire State Building",
         [[1], [2, 3], [4], [5], [6], [7]]),
        ("The capital of Greece is", "Greece", [[], [], [4], [], [], [5]]),
        ("The Louvre is located in", "Louvre", [[], [], [2], [3], [4], [5]]),
        ("The capital of Greece", "capital of Greece", [[2], [3], [], [], [], [4]]),
        ("The Red Square is located in the city of", "Red Square", [[2], [], [3], [4], [5, 6, 7, 8], [9]]),
    ],
)  # fmt: skip
def test_roles(clean, subject, roles):
    (one,) = tiny_model("auto").tokenize(nbp.PromptPair(clean, clean, " Paris", labels={"subject": subject}))
    assert roles_of(one) == dict(zip(ROLES, roles, strict=True))


def test_a_role_that_a_fact_lacks_is_no_number(every):
    greece = every.data["state"].sel(kind="hidden", pair=1)
    for role, there in zip(ROLES, (False, False, True, False, False, True), strict=True):
        assert (greece.sel(role=role) == NO_POSITION).all() == (not there)
    assert (every.data["prob"].isnull() == (every.data["state"] == NO_POSITION)).all()
    assert every.reason(kind="mlp", layer=0, role="further tokens", pair=1).startswith("this pair has no such position")


def test_a_role_that_is_exact_everywhere_stays_so(every):
    assert (every.data["state"].sel(kind="hidden", layer=3, role="last subject token") == EXACT).all()
    assert not (every.data["state"].sel(kind="hidden", layer=3, role="last token") == EXACT).any()


def test_positions_before_the_subject_are_exact(one_fact):
    assert (one_fact.data["state"].sel(pos=slice(0, 1)) == EXACT).all()
    assert (one_fact.effect().sel(pos=slice(0, 1)) == 0).all()


def test_the_spread_over_draws_is_kept_where_it_is_one(every, one_fact):
    spread = every.spread().sel(kind="hidden")
    single = nbp.patch(
        tiny_model("auto"), KNOWN, "resid_post", "layer label", metric="prob", corruption=NOISE
    ).spread()  # fmt: skip
    np.testing.assert_allclose(spread.sel(role="last token"), single.sel(label="END"), atol=1e-5)
    assert float(spread.sel(role="last token").max()) > 1e-3
    longer = trace(tiny_model("auto"), [fact("The Red Square is located in the city of", "Red Square", " Moscow")] * 2,
                   kinds="hidden", noise=NOISE)  # fmt: skip
    assert longer.spread().sel(role="further tokens").isnull().all()
    assert longer.data["prob"].sel(role="further tokens").notnull().all()
    assert one_fact.spread().sizes["pos"] == one_fact.data.sizes["pos"]


def test_facts_of_one_length_can_be_laid_on_their_positions():
    model = tiny_model("auto")
    pairs = [fact("The Red Square is located in", "Red Square", " Moscow"),
             fact("The Eiffel Tower is located in", "Eiffel Tower", " Paris")]  # fmt: skip
    result = trace(model, pairs, kinds="hidden", noise=NOISE, by="pos")
    assert result.data.sizes["pos"] == 7
    roles = trace(model, pairs, kinds="hidden", noise=NOISE)
    np.testing.assert_array_equal(roles.data["prob"].sel(role="first subsequent token"), result.data["prob"].sel(pos=4))
    lone = trace(model, pairs[0], kinds="hidden", noise=NOISE, by="role")
    assert lone.data["prob"].dims == ("kind", "layer", "role", "pair")


# -- one run


def test_all_kinds_are_one_run(monkeypatch):
    calls = []
    real = patching.run_together
    monkeypatch.setattr(patching, "run_together", lambda plans, *rest, **more: calls.append(len(plans)) or real(
        plans, *rest, **more))  # fmt: skip
    result = trace(tiny_model("auto"), KNOWN[1], noise=NOISE, **EVERY)
    assert calls == [5]
    made = result.provenance["engine"]
    assert made["cells"] == 5 * 4 * 6
    assert made["run"] == made["runs"] > 0


def test_several_metrics_are_measured_on_the_same_runs(every):
    result = trace(tiny_model("auto"), FACTS, kinds="hidden", noise=NOISE, metric="prob logit_diff")
    assert result.metrics == ("prob", "logit_diff")
    assert result.data["logit_diff"].attrs["unit"] == "logit"
    np.testing.assert_allclose(result.data["prob"].sel(kind="hidden"), every.data["prob"].sel(kind="hidden"), atol=1e-5)


def test_a_window_as_wide_as_the_model_is_warned_of():
    def wide(window: int) -> list[str]:
        result = trace(tiny_model("auto"), KNOWN[1], kinds="mlp", noise=NOISE, window=window)
        return [one for one in result.warnings if one.startswith("A window")]

    assert wide(10) == ["A window of 10 holds all 4 layers wherever it is. Choose a smaller window."]
    assert [len(wide(window)) for window in (6, 7)] == [0, 1]


# -- the result


def test_total_and_indirect_effects(every):
    table, clean, noised = expected("tiny")
    np.testing.assert_allclose(every.gap(), clean - noised, atol=TOLERANCE)
    there = np.isfinite(table).any(-1)
    wanted = np.nanmean(np.where(there[..., None], table - noised, 0), -1)
    np.testing.assert_allclose(np.nan_to_num(every.effect()), np.where(there, wanted, 0), atol=TOLERANCE)


def test_what_a_result_can_do_works_on_a_trace(every, tmp_path):
    frame = every.to_frame()
    assert list(frame.columns[:3]) == ["kind", "layer", "role"]
    assert len(frame) == 5 * 4 * 6
    assert abs(every.top(1)["effect"][0]) == pytest.approx(float(abs(every.effect()).max()))
    interval = every.interval(n=50)
    there = every.effect().notnull()
    assert (interval["low"] <= interval["high"]).where(there, other=True).all()
    p = every.significance()["p"].sel(role="last token", kind="hidden", layer=3)
    assert float(p) == pytest.approx(2 / 2**3)
    assert "tiny" in repr(every)
    assert "tiny" in every.card()
    again = read(every.save(tmp_path / "trace.nc"))
    np.testing.assert_array_equal(again.data["prob"], every.data["prob"])
    np.testing.assert_array_equal(again.spread(), every.spread())
    assert again.provenance["unknown"] == every.provenance["unknown"]
    assert again.provenance["kinds"]["hidden, mlp severed"] == {
        "component": "resid_post", "window": 1, "severed": "mlp_out",
    }  # fmt: skip
    assert again.warnings == every.warnings


def test_positions_have_their_tokens_in_a_frame(one_fact):
    frame = one_fact.to_frame()
    assert list(frame.columns[:4]) == ["kind", "layer", "pos", "pos_token"]
    assert frame["pos_token"][2] == " Empire"


def test_the_pedigree(every):
    made = every.provenance
    assert made["method"] == "trace"
    assert made["over"] == ["kind", "layer", "role"]
    assert made["component"] == "hidden; mlp (window 2); attn (window 2); hidden, mlp severed; hidden, attn severed"
    assert (made["corruption"], made["direction"], made["seed"]) == ("noise", "denoising", 3)
    assert made["pairs"][0]["roles"]["middle subject tokens"] == [3]


# -- errors


def message(facts: Any, **options: Any) -> str:
    with pytest.raises(NbpatchError) as caught:
        trace(tiny_model("auto"), facts, **options)
    assert isinstance(caught.value, PlanError)
    return str(caught.value)


def test_errors():
    unlabelled = nbp.PromptPair("The Louvre is located in", "The Louvre is located in", " Paris")
    messages = [
        message(KNOWN, kinds="hiden"),
        message(KNOWN, kinds=["mlp", "mlp"]),
        message(KNOWN, kinds=()),
        message(KNOWN, severed="hidden"),
        message(KNOWN, noise=nbp.Zero()),
        message(KNOWN, by="poss"),
        message(KNOWN, by="pos"),
        message(KNOWN, window=0),
        message([KNOWN[0], unlabelled]),
        message([FACTS[1], fact("The Red Square is located in", "Red Square", " Paris")]),
        message(KNOWN, noise=nbp.Noise("verb")),
    ]
    golden.check("tracing_errors", "\n\n".join(messages))
