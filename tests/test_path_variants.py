"""The variants of path patching, sets of senders and receivers and paths of several hops, against their slow twin."""

import itertools
import zlib
from functools import cache
from typing import Any

import families
import numpy as np
import oracle
import pytest
import torch
from oracle_circuits import (
    EMBED,
    LOGITS,
    Net,
    Part,
    all_senders,
    connected,
    part,
    parts,
    path_logits,
    plain_logits,
    precedes,
    stages,
)
from oracle_paths import Twin

import nbpatch as nbp
from nbpatch.model import Model
from nbpatch.plan import EXACT, MEASURED, NO_PATH

TOLERANCE = 1e-4
VARIANTS = ("direct", "wang", "tree")
DIRECTIONS = ("denoising", "noising")
MODELS = ("tiny", "llama")
SENDERS = {"z": ("sender_layer", "sender_head"), "mlp_out": ("sender_layer",), "embed": ()}
RECEIVERS = {"q": ("layer", "head"), "k": ("layer", "head"), "v": ("layer", "head"), "mlp": ("layer",), "logits": ()}

IOI = nbp.PromptPair(
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    " Mary", " John",
)  # fmt: skip
# Differs in its last token too, so that embeddings reach the logits.
FACT = nbp.PromptPair("The capital of Greece is", "The capital of Spain was", " Athens", " Madrid")
# The same, in words that random models know.
LAST = nbp.PromptPair(" Mary and John gave a ball", " Mary and Paul gave a drink", " to", " a")
PAIRS = {"tiny": IOI, "llama": families.PAIRS[1]}
LATE = {"tiny": FACT, "llama": LAST}


@cache
def model_of(name: str) -> Model:
    return nbp.load("tiny") if name == "tiny" else families.loaded(name)


@cache
def net_of(name: str) -> Net:
    return Net(model_of(name)._hf)


def sides(one: Any, direction: str) -> tuple[Any, Any]:
    """Returns the token ids of (base, source)."""
    both = (one.corrupted_ids, one.clean_ids)
    return both if direction == "denoising" else both[::-1]


def answered(logits: torch.Tensor, one: Any) -> float:
    return float(logits[one.answer_ids[0]] - logits[one.wrong_ids[0]])


def cell_parts(texts: Any, sweepable: dict[str, Any], cell: dict[str, int], prefix: str) -> list[Part] | None:
    """Returns the one part of a cell when `texts` is swept, else None."""
    if not isinstance(texts, str) or texts not in sweepable:
        return None
    return [Part(texts, cell.get(f"{prefix}layer", -1), cell.get(f"{prefix}head", -1))]


def compare(name: str, senders: Any, receivers: Any, variant: str, pair: Any = None, some: int = 6) -> float:
    """Holds a path patch in both directions to the twin, up to `some` cells of each, and returns the strongest effect.

    NaN is checked in every cell.
    """
    model, net, pair = model_of(name), net_of(name), pair or PAIRS[name]
    result = nbp.path_patch(model, pair, senders, receivers, variant=variant, direction="both")
    (one,) = model.tokenize(pair)
    *before, last = receivers.split("->") if isinstance(receivers, str) else [receivers]
    last = last.strip() if isinstance(last, str) else last
    swept = SENDERS.get(senders, ()) if isinstance(senders, str) else ()
    swept += RECEIVERS.get(last, ()) if isinstance(last, str) else ()
    assert result.data["logit_diff"].dims == ("direction", *swept, "pair")
    values, state = (result.data[key].isel(pair=0).to_numpy() for key in ("logit_diff", "state"))
    random, strongest = np.random.default_rng(zlib.crc32(repr((senders, receivers, variant)).encode())), 0.0
    cells = list(itertools.product(*(range(size) for size in values.shape[1:])))
    there: list[Any] = []
    for place in cells:
        cell = dict(zip(swept, place, strict=True))
        chosen = cell_parts(senders, SENDERS, cell, "sender_") or parts(senders)
        chain = [*(parts(stage) for stage in before), cell_parts(last, RECEIVERS, cell, "") or parts(last)]
        if connected(net, chosen, chain):
            there.append((place, chosen, chain))
            assert set(state[(slice(None), *place)].ravel()) <= {MEASURED, EXACT}, (place, chosen, chain)
        else:
            assert np.isnan(values[(slice(None), *place)]).all(), (place, chosen, chain)
            assert (state[(slice(None), *place)] == NO_PATH).all(), (place, chosen, chain)
    for place, chosen, chain in [there[i] for i in random.permutation(len(there))[:some]]:
        for number, direction in enumerate(DIRECTIONS):
            base, source = sides(one, direction)
            expected = answered(path_logits(net, base, source, chosen, chain, variant), one)
            assert values[(number, *place)] == pytest.approx(expected, abs=TOLERANCE), (direction, chosen, chain)
            strongest = max(strongest, abs(expected - answered(path_logits(net, base, base, [], [[]], "direct"), one)))
    return strongest


# Against the twin.


def spread(cases: Any) -> list[Any]:
    """Returns (model, variant, case): on the random model every variant of every case, on the other one of each."""
    return [
        ("llama", variant, case) for case in cases for variant in VARIANTS
    ] + [("tiny", VARIANTS[number % len(VARIANTS)], case) for number, case in enumerate(cases)]  # fmt: skip


ENDS = list(itertools.product(SENDERS, RECEIVERS))


@pytest.mark.parametrize(("name", "variant", "ends"), spread(ENDS), ids=str)
def test_every_variant_of_every_sweep_equals_hand_written_runs(name, variant, ends):
    assert compare(name, *ends, variant, LATE[name]) > 1e-3, "the cells show no effect to compare"


SETS: list[tuple[Any, Any]] = [
    ("z", "q[2.1]"),
    ("z", ["q[2.1]", "q[2.2]"]),
    ("z", ["q[2.1]", "k[2.0]", "v[1.1]", "mlp[2]", "logits"]),
    ("mlp_out", ["k[2.0]", "k[2.1]", "mlp[1]"]),
    ("embed", ["v[0.0]", "q[1.3]", "mlp[0]"]),
    ("z[0.1]", "q"),
    (["z[0.1]", "z[1.2]"], "k"),
    (["z[0.1]", "mlp_out[1]", "embed"], "mlp"),
    (["z[0.0]", "z[0.1]", "mlp_out[0]", "mlp_out[2]"], "logits"),
    ("mlp_out[0]", "v"),
    (["embed"], "q"),
    ("z[1.0]", "q[2.3]"),
    (["z[0.1]", "mlp_out[2]", "embed"], ["q[2.1]", "k[2.0]", "mlp[2]", "logits"]),
    (["z[1.0]", "z[1.1]", "mlp_out[1]"], ["q[1.0]", "mlp[1]", "v[2.1]"]),
    (["mlp_out[1]", "z[2.1]"], ["mlp[1]", "mlp[2]", "q[2.1]", "logits"]),
    ("mlp_out", ["mlp[1]"]),
]


@pytest.mark.parametrize(("name", "variant", "ends"), spread(SETS), ids=str)
def test_sets_of_senders_and_receivers_equal_hand_written_runs(name, variant, ends):
    compare(name, *ends, variant)


CHAINS: list[tuple[Any, str]] = [
    ("z", "k[1.1] -> q[2.1] -> logits"),
    ("embed", "k[1.1] -> q[2.1] -> logits"),
    ("mlp_out[0]", "q[2.1] q[2.2] -> logits"),
    ("z", "v[1.0] -> mlp"),
    (["z[0.1]", "z[0.2]", "embed"], "v[1.0] q[1.3] mlp[1] -> q"),
    ("embed", "mlp[0] -> mlp[1] mlp[2] -> logits"),
    (["embed", "mlp_out[0]"], "q[1.1] k[1.1] v[1.1] -> mlp[1] q[2.3] -> k"),
    ("embed", "v[0.1] -> mlp[0] -> v[1.0] -> mlp[1] -> mlp[2]"),
    ("z", "mlp[1] v[1.1] -> v[2.0] logits"),
    (["mlp_out[1]", "embed"], "mlp[0] v[2.0] -> v[1.0] mlp[2] -> logits"),
]


@pytest.mark.parametrize(("name", "variant", "ends"), spread(CHAINS), ids=str)
def test_paths_of_several_hops_equal_hand_written_runs(name, variant, ends):
    strongest = compare(name, *ends, variant, LATE[name])
    assert strongest > 3e-4 or name == "tiny", "the cells show no effect to compare"


@pytest.mark.parametrize("name", MODELS)
def test_wang_differs_from_direct_where_an_mlp_stands_between(name):
    direct, wang = (
        nbp.path_patch(model_of(name), PAIRS[name], "z", "q[2.1]", variant=one).data["logit_diff"].to_numpy()
        for one in ("direct", "wang")
    )
    assert np.nanmax(abs(direct - wang)) > 10 * TOLERANCE, "the comparison with the twin tells the variants not apart"


# Laws.


def swept(name: str, senders: Any, receivers: Any, variant: str, **options: Any) -> np.ndarray:
    pair = options.pop("pair", PAIRS[name])
    result = nbp.path_patch(model_of(name), pair, senders, receivers, variant=variant, **options)
    return result.data["logit_diff"].to_numpy()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_law_wang_without_an_mlp_between_is_direct(name, direction):
    layers = net_of(name).n_layers
    for senders, receivers, between in (
        ("z", "mlp", lambda sender, receiver: sender == receiver),
        ("mlp_out", "q", lambda sender, receiver: sender + 1 == receiver),
        ("mlp_out", "k", lambda sender, receiver: sender + 1 == receiver),
        ("mlp_out", "v", lambda sender, receiver: sender + 1 == receiver),
    ):
        both = [swept(name, senders, receivers, one, direction=direction) for one in ("direct", "wang")]
        for sender, receiver in itertools.product(range(layers), repeat=2):
            if between(sender, receiver):
                at = (sender, slice(None), receiver) if senders == "z" else (sender, receiver)
                direct, wang = (one[at] for one in both)
                assert np.isfinite(direct).all()
                np.testing.assert_allclose(wang, direct, atol=TOLERANCE)
    for senders, receivers in (
        ("embed", ["q[0.1]", "k[0.1]", "v[0.0]"]),
        (f"mlp_out[{layers - 1}]", "logits"),
        ("embed", "v[0.1] -> mlp[0] -> v[1.0] -> mlp[1]"),
    ):
        direct, wang = (swept(name, senders, receivers, one, direction=direction) for one in ("direct", "wang"))
        np.testing.assert_allclose(wang, direct, atol=TOLERANCE)


@pytest.mark.parametrize("variant", ["direct", "tree"])
@pytest.mark.parametrize("senders", SENDERS)
@pytest.mark.parametrize("name", MODELS)
def test_law_into_the_logits_it_is_the_direct_effect(name, senders, variant):
    model, hf = model_of(name), model_of(name)._hf
    (one,) = model.tokenize(LATE[name])
    twin = Twin(lambda ids, edit: oracle.forward(hf, ids, edit)[-1], net_of(name).n_layers)
    for number, direction in enumerate(DIRECTIONS):
        table = swept(name, senders, "logits", variant, direction="both", pair=LATE[name])[number, ..., 0]
        for place in itertools.product(*(range(size) for size in table.shape)):
            cell = dict(zip(SENDERS[senders], place, strict=True))
            expected = answered(twin.edge(sides(one, direction), senders, "logits", cell), one)
            assert table[place] == pytest.approx(expected, abs=TOLERANCE), (direction, cell)


@pytest.mark.parametrize(
    ("senders", "receivers"), [(one, chain) for one, chain in CHAINS if chain.endswith("-> logits")], ids=str
)
@pytest.mark.parametrize("name", MODELS)
def test_law_a_tree_that_ends_in_the_logits_is_the_direct_path(name, senders, receivers):
    direct, tree = (swept(name, senders, receivers, one, direction="both") for one in ("direct", "tree"))
    np.testing.assert_allclose(tree, direct, atol=TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_law_a_tree_says_its_last_step_to_the_logits_of_itself(name):
    for receivers in ("q[1.1] k[1.0]", "mlp[1]", "v[1.0] -> mlp[1] v[2.1]"):
        implied = receivers.split() if "->" not in receivers else receivers
        short, long = (
            swept(name, "embed", one, variant)
            for one, variant in ((implied, "tree"), (f"{receivers} -> logits", "direct"))
        )
        np.testing.assert_allclose(short, long, atol=TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", MODELS)
def test_law_all_senders_together_into_the_logits_are_the_source_run(name, variant):
    every = [
        "embed" if one == EMBED else f"z[{one.layer}.{one.head}]" if one.kind == "z" else f"mlp_out[{one.layer}]"
        for one in all_senders(net_of(name))
    ]
    metrics = ["logit_diff", "log_prob", "kl"]
    result = nbp.path_patch(
        model_of(name), LATE[name], every, "logits", variant=variant, direction="both", metric=metrics
    )
    for metric in metrics:
        for direction, run in zip(DIRECTIONS, ("clean", "corrupted"), strict=True):
            found = result.data[metric].sel(direction=direction)
            np.testing.assert_allclose(found, result.baselines[run].sel(metric=metric), atol=TOLERANCE)
    np.testing.assert_allclose(result.recovered().sel(direction="denoising"), 1, atol=TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("senders", "receivers"), [("z", ["q[2.1]", "logits"]), ("embed", "v[1.0] -> q")], ids=str)
def test_law_a_pair_alone_is_the_same_pair_among_several(variant, senders, receivers):
    pairs = [families.PAIRS[1], LAST, families.PAIRS[3]]
    together = swept("llama", senders, receivers, variant, pair=pairs)
    for number, pair in enumerate(pairs):
        alone = swept("llama", senders, receivers, variant, pair=pair)
        np.testing.assert_allclose(together[..., number], alone[..., 0], atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("senders", "receivers"), [("z", "mlp"), ("mlp_out", "q[1.1] mlp[1] -> logits")], ids=str)
def test_law_denoising_the_exchanged_pair_is_noising_the_pair(variant, senders, receivers):
    pair = PAIRS["llama"]
    exchanged = nbp.PromptPair(pair.corrupted, pair.clean, pair.answer, pair.wrong)
    noised = swept("llama", senders, receivers, variant, direction="noising")
    denoised = swept("llama", senders, receivers, variant, direction="denoising", pair=exchanged)
    np.testing.assert_allclose(noised, denoised, atol=TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("receivers", ["v", ["q[2.1]", "logits"], "k[1.1] -> q[2.1] -> logits"], ids=str)
def test_law_a_run_into_itself_changes_nothing(variant, receivers):
    pair = nbp.PromptPair(IOI.clean, IOI.clean, " Mary", " John")
    result = nbp.path_patch(model_of("tiny"), pair, "z", receivers, variant=variant)
    found = result.data["logit_diff"].to_numpy()
    assert np.isfinite(found).any()
    base = result.baselines["clean"].isel(pair=0).sel(metric="logit_diff").item()
    np.testing.assert_allclose(found[np.isfinite(found)], base, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", MODELS)
def test_law_a_set_of_one_is_a_cell_of_the_sweep(name, variant):
    whole = swept(name, "z", "k", variant)
    np.testing.assert_allclose(swept(name, "z[0.1]", "k", variant), whole[0, 1], atol=1e-5, equal_nan=True)
    np.testing.assert_allclose(swept(name, "z", "k[2.1]", variant), whole[:, :, 2, 1], atol=1e-5, equal_nan=True)
    np.testing.assert_allclose(swept(name, ["z[1.2]"], ["k[2.0]"], variant), whole[1, 2, 2, 0], atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_law_the_order_within_a_set_is_of_no_account(variant):
    senders, receivers = ["z[0.1]", "mlp_out[1]", "embed"], ["q[2.1]", "k[2.0]", "mlp[1]", "logits"]
    there = swept("llama", senders, receivers, variant)
    back = swept("llama", senders[::-1], receivers[::-1], variant)
    np.testing.assert_allclose(back, there, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_stage_may_be_written_with_spaces_or_as_a_list(variant):
    listed = swept("tiny", "z", ["q[2.1]", "q[2.2]"], variant)
    np.testing.assert_array_equal(swept("tiny", "z", "q[2.1] q[2.2]", variant), listed)


def test_a_shared_key_makes_all_of_its_query_heads_write_differently():
    net = net_of("llama")
    assert (net.n_heads, net.n_kv) == (4, 2)
    together = swept("llama", "embed", "k[1.1] -> logits", "direct")
    (one,) = model_of("llama").tokenize(PAIRS["llama"])
    base, source = sides(one, "denoising")
    # Literally: the final residual stream with the changes of both query heads, one after the other.
    expected = answered(path_logits(net, base, source, [EMBED], stages("k[1.1] -> logits"), "direct"), one)
    assert together.item() == pytest.approx(expected, abs=TOLERANCE)
    unlike = nbp.path_patch(model_of("llama"), PAIRS["llama"], "embed", "k[1.0] -> logits").data["logit_diff"]
    assert abs(unlike.item() - expected) > TOLERANCE


# Axes and states.


def test_axes_are_those_of_the_ends_that_are_swept():
    for senders, receivers, dims in (
        ("z", ["q[2.1]", "q[2.2]"], ("sender_layer", "sender_head", "pair")),
        ("mlp_out", "q[1.1] -> mlp[1] -> logits", ("sender_layer", "pair")),
        (["z[0.1]", "embed"], "v", ("layer", "head", "pair")),
        ("z", "v[1.0] -> mlp", ("sender_layer", "sender_head", "layer", "pair")),
        ("embed", "mlp[2]", ("pair",)),
        (["embed"], ["logits"], ("pair",)),
    ):
        result = nbp.path_patch(model_of("llama"), PAIRS["llama"], senders, receivers)
        assert result.data["logit_diff"].dims == dims, (senders, receivers)
    both = nbp.path_patch(model_of("llama"), PAIRS["llama"], "z[0.1]", "v", direction="both")
    assert both.data["logit_diff"].dims == ("direction", "layer", "head", "pair")
    assert both.data["direction"].to_numpy().tolist() == list(DIRECTIONS)
    assert both.data["head"].to_numpy().tolist() == ["kv0", "kv1"]
    turned = nbp.path_patch(model_of("llama"), PAIRS["llama"], "z", "q[2.1]", over="sender_head sender_layer")
    assert turned.data["logit_diff"].dims == ("sender_head", "sender_layer", "pair")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_logits_are_the_usual_receiver(variant):
    usual = nbp.path_patch(model_of("tiny"), IOI, variant=variant)
    assert usual.data["logit_diff"].dims == ("sender_layer", "sender_head", "pair")
    np.testing.assert_array_equal(usual.data["logit_diff"], swept("tiny", "z", "logits", variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_senders_that_no_receiver_is_later_than_have_no_causal_path(variant):
    result = nbp.path_patch(model_of("tiny"), IOI, "z", ["q[1.0]", "mlp[2]"], variant=variant)
    state = result.data["state"].isel(pair=0, sender_head=0).to_numpy()
    assert (state == NO_PATH).tolist() == [False, False, False, True]
    values = result.data["logit_diff"].isel(pair=0, sender_head=0).to_numpy()
    assert np.isnan(values).tolist() == [False, False, False, True]
    fixed = nbp.path_patch(model_of("tiny"), IOI, ["z[2.1]", "mlp_out[3]"], "q[2.1]", variant=variant)
    assert np.isnan(fixed.data["logit_diff"]).all()
    assert (fixed.data["state"] == NO_PATH).all()
    chained = nbp.path_patch(model_of("tiny"), IOI, "mlp_out", "q[1.1] -> q[3.1] -> logits", variant=variant)
    assert np.isnan(chained.data["logit_diff"].isel(pair=0)).to_numpy().tolist() == [False, True, True, True]


@pytest.mark.parametrize("variant", VARIANTS)
def test_receivers_that_come_before_the_sender_receive_nothing(variant):
    alone = swept("llama", "mlp_out[1]", "v[2.1]", variant)
    np.testing.assert_allclose(swept("llama", "mlp_out[1]", ["v[2.1]", "q[1.0]", "mlp[0]"], variant), alone, atol=1e-5)


def test_the_pedigree_names_the_variant_and_the_ends():
    for variant, words in (("direct", "Direct"), ("wang", "Wang"), ("tree", "Goldowsky-Dill")):
        result = nbp.path_patch(model_of("tiny"), IOI, ["z[0.1]", "embed"], "q[2.1] -> logits", variant=variant)
        assert (result.provenance["method"], result.provenance["variant"]) == ("path_patch", variant)
        assert words in result.card()


# What is refused.

SHORTER = nbp.PromptPair(" Mary and John gave", " John gave", " to", " a", align={0: 0, 3: 1, 4: 2})
REFUSED: list[tuple[dict[str, Any], type[nbp.NbpatchError], str]] = [
    ({"variant": "goldowsky"}, nbp.NbpatchError, "goldowsky"),
    ({"variant": "wong"}, nbp.NbpatchError, 'did you mean "wang"?'),
    ({"pairs": SHORTER}, nbp.NbpatchError, "tokens"),
    ({"receivers": "q -> logits"}, nbp.NbpatchError, "q"),
    ({"receivers": "logits -> q[2.1]"}, nbp.NbpatchError, "logits"),
    ({"receivers": "q[1.1] logits -> q[2.1]"}, nbp.NbpatchError, "logits"),
    ({"receivers": "q[7.1]"}, nbp.NbpatchError, "no layer 7"),
    ({"receivers": "q[1.9]"}, nbp.NbpatchError, "no head 9 in layer 1"),
    ({"receivers": "k[1.2]"}, nbp.NbpatchError, "no head 2 in layer 1"),
    ({"receivers": "mlp[1.2]"}, nbp.NbpatchError, "mlp"),
    ({"receivers": "q[1.0] -> mlp[9] -> logits"}, nbp.NbpatchError, "no layer 9"),
    ({"receivers": "z[1.0]"}, nbp.NbpatchError, "z"),
    ({"receivers": "mlp_out[1]"}, nbp.NbpatchError, "mlp_out"),
    ({"receivers": ["q[1.0]", "k"]}, nbp.NbpatchError, "k"),
    ({"receivers": "q[1.0] -> "}, nbp.NbpatchError, "->"),
    ({"receivers": []}, nbp.NbpatchError, "receivers"),
    ({"senders": []}, nbp.NbpatchError, "senders"),
    ({"senders": "q[1.0]"}, nbp.NbpatchError, "q"),
    ({"senders": "resid_pre[1]"}, nbp.NbpatchError, "resid_pre"),
    ({"senders": "z[3.0]"}, nbp.NbpatchError, "no layer 3"),
    ({"senders": ["z[0.0]", "mlp_out"]}, nbp.NbpatchError, "mlp_out"),
    ({"senders": "z[0.0] @ END"}, nbp.NbpatchError, "END"),
    ({"direction": "up"}, nbp.NbpatchError, "no direction 'up'."),
    ({"over": "layer", "receivers": "q[1.1]"}, nbp.NbpatchError, "over"),
]


@pytest.mark.parametrize(("asked", "kind", "words"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_makes_no_sense_is_refused_with_place_and_way_out(asked, kind, words):
    options = {"pairs": PAIRS["llama"], **asked}
    with pytest.raises(kind) as caught:
        nbp.path_patch(model_of("llama"), options.pop("pairs"), **options)
    message = str(caught.value)
    assert words in message
    assert message.splitlines()[0].endswith(".")
    for label in ("  in     ", "  try    "):
        assert any(line.startswith(label) for line in message.splitlines()), message


def test_the_twin_orders_what_writes_and_what_reads():
    assert precedes(part("z[1.0]"), part("mlp[1]"))
    assert not precedes(part("mlp_out[1]"), part("mlp[1]"))
    assert not precedes(part("z[1.0]"), part("q[1.1]"))
    assert precedes(EMBED, part("k[0.0]"))
    assert precedes(part("mlp_out[2]"), LOGITS)
    assert stages("k[1.2] -> q[2.1] q[2.2] -> logits") == [[part("k[1.2]")], parts(["q[2.1]", "q[2.2]"]), [LOGITS]]


# The twin itself.


@pytest.mark.parametrize("name", MODELS)
def test_the_twin_is_the_model(name):
    net, (one,) = net_of(name), model_of(name).tokenize(PAIRS[name])
    for ids in (one.clean_ids, one.corrupted_ids):
        with torch.no_grad():
            theirs = net.hf(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(plain_logits(net, ids), theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("senders", "receivers"),
    [("z[0.1]", "q[2.1]"), ("embed mlp_out[1] z[0.2]", "k[2.1] v[2.0] mlp[2] q[1.1]"), ("mlp_out[0] z[1.1]", "logits")],
)
@pytest.mark.parametrize("name", MODELS)
def test_the_twin_of_wang_is_two_edited_forwards(name, senders, receivers):
    hf, (one,) = model_of(name)._hf, model_of(name).tokenize(PAIRS[name])
    ends, seen = (set(parts(senders)), parts(receivers)), {}
    base, source = (oracle.activations(hf, ids) for ids in sides(one, "denoising"))

    def frozen(component, layer, value):
        seen[component, layer] = value.clone()
        if (component, layer) == ("resid_pre", 0) and EMBED in ends[0]:
            return source["resid_pre", 0]
        if component == "mlp_out" and Part("mlp_out", layer) in ends[0]:
            return source["mlp_out", layer]
        if component != "z":
            return value
        heads = [source if Part("z", layer, head) in ends[0] else base for head in range(value.shape[1])]
        return torch.stack([run["z", layer][:, head] for head, run in enumerate(heads)], 1)

    def received(component, layer, value):
        for one in ends[1]:
            if (component, layer) == ("mlp_out", one.layer) and one.kind == "mlp":
                value = seen["mlp_out", layer]
            elif (component, layer) == (one.kind, one.layer):
                value = value.clone()
                value[:, one.head] = seen[component, layer][:, one.head]
        return value

    logits = oracle.forward(hf, one.corrupted_ids, frozen)
    if ends[1] != [LOGITS]:
        logits = oracle.forward(hf, one.corrupted_ids, received)
    found = path_logits(net_of(name), one.corrupted_ids, one.clean_ids, parts(senders), [parts(receivers)], "wang")
    torch.testing.assert_close(found, logits[-1], atol=TOLERANCE, rtol=0)
