"""Several places patched at once: windows of layers, sets of sites, labels, and the components that came with them."""

from typing import Any

import families
import numpy as np
import oracle_ablation as oracle
import override
import pytest
import torch
from oracle_ablation import ENGINES, MODELS, PAIRS, TOLERANCE, TRIOS, Run, Spot, hf_of, model_of
from test_corruption import CASES, DIRECTED, OVER, check, draws_of, ones_of, replayed, runs_of, swept, values

import nbpatch
from nbpatch import PromptPair
from nbpatch.errors import NbpatchError, PlanError

FEW = 3
BOTH = ("denoising", "noising")


def layers_of(name: str) -> int:
    return int(hf_of(name).config.num_hidden_layers)


def compared(result: Any, name: str, component: str, over: str, few: int | None, window: int = 1) -> None:
    """Compares a counterfactual sweep in both directions with the hand-written forward."""
    hf, axes, seen = hf_of(name), over.split(), 0.0
    for direction in BOTH:
        for number, one in enumerate(ones_of(name)):
            runs = oracle.counterfactual(hf, one, direction)
            own = result.data["logit_diff"].sel(direction=direction).isel(pair=number)
            for cell in oracle.cells_of(hf, one, component, axes, few):
                chosen = dict(zip(axes, cell, strict=True))
                spots = oracle.spots_of(component, chosen, layers_of(name), window)
                wanted, _ = oracle.over_runs(hf, runs, spots, oracle.difference(one))
                assert float(own.isel(**chosen)) == pytest.approx(wanted, abs=TOLERANCE), (direction, number, chosen)
                base = oracle.over_runs(hf, runs, (), oracle.difference(one))[0] if not seen else 0.0
                seen = seen or float(abs(wanted - base) > 1e-3)
    assert seen, "the sweep shows no effect to compare"


# -- windows of layers

WINDOWED = {**{component: over for component, over in OVER.items() if component != "embed"}, "head_out": "layer head"}


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("component", WINDOWED)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_windows_equal_the_hand_written_forward(name, engine, component, window):
    over = WINDOWED[component]
    result = swept(name, engine, component, over, direction="both", window=window)
    compared(result, name, component, over, FEW, window)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("component", ["mlp_out", "k"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_windows_of_every_corruption_equal_the_hand_written_forward(name, engine, component, case):
    """All layers of a draw take their values from one prompt."""
    made, over = CASES[case], OVER[component]
    options = {"corruption": made.make(name), "direction": made.direction, "window": 3}
    check(swept(name, engine, component, over, **options), name, case, component, over, FEW, 3)


@pytest.mark.parametrize("component", WINDOWED)
@pytest.mark.parametrize("engine", ENGINES)
def test_law_a_window_of_one_layer_is_none(engine, component):
    plain = swept("tiny", engine, component, direction="both")
    one = swept("tiny", engine, component, direction="both", window=1)
    np.testing.assert_allclose(values(one), values(plain), atol=TOLERANCE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_law_a_window_of_all_layers_is_the_sweep_without_that_axis(name, engine):
    for component, over in (("resid_pre", "pos"), ("z", "head"), ("mlp_out", "pos"), ("pattern", "head")):
        window = 2 * layers_of(name)
        wide = swept(name, engine, component, f"layer {over}", direction="both", window=window).data["logit_diff"]
        whole = swept(name, engine, component, over, direction="both").data["logit_diff"]
        for layer in range(layers_of(name)):
            np.testing.assert_allclose(wide.isel(layer=layer), whole, atol=TOLERANCE, err_msg=component)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_law_a_window_of_all_streams_is_the_other_run(name, engine):
    result = swept(name, engine, "resid_pre", "layer", direction="both", window=2 * layers_of(name))
    np.testing.assert_allclose(result.recovered().sel(direction="denoising"), 1, atol=TOLERANCE)
    np.testing.assert_allclose(result.recovered().sel(direction="noising"), 0, atol=TOLERANCE)


def test_a_window_is_rome_s():
    """Layers range(l − w//2, l + ceil(w/2)), as far as there are such."""
    for window in (1, 2, 3, 4, 10):
        for layer in range(4):
            wanted = [one for one in range(layer - window // 2, layer + -(-window // 2)) if 0 <= one < 4]
            assert [spot.layer for spot in oracle.spots_of("mlp_out", {"layer": layer, "pos": 0}, 4, window)] == wanted


# -- sets of sites

# Texts, and by hand what they are: component, layer, head or neuron, position (None is all of them).
SITES: dict[str, tuple[str, int, int | None, int | str | None]] = {
    "z[3.1] @ END": ("z", 3, 1, "END"),
    "z[1.0] @ 3": ("z", 1, 0, 3),
    "z[2.3]": ("z", 2, 3, None),
    "resid_pre[0] @ 2": ("resid_pre", 0, None, 2),
    "resid_pre[2] @ subject": ("resid_pre", 2, None, "subject"),
    "resid_mid[1] @ verb": ("resid_mid", 1, None, "verb"),
    "resid_post[3] @ END": ("resid_post", 3, None, "END"),
    "mlp_out[1]": ("mlp_out", 1, None, None),
    "attn_out[2] @ 4": ("attn_out", 2, None, 4),
    "q[0.2]": ("q", 0, 2, None),
    "k[1.1] @ subject": ("k", 1, 1, "subject"),
    "v[1.0] @ subject": ("v", 1, 0, "subject"),
    "mlp_post[1.17] @ 3": ("mlp_post", 1, 17, 3),
    "mlp_post[2.5]": ("mlp_post", 2, 5, None),
    "head_out[2.1] @ END": ("head_out", 2, 1, "END"),
}
JOINT = [
    ["resid_pre[2] @ subject", "z[3.1] @ END"],
    ["z[1.0] @ 3", "z[2.3]", "k[1.1] @ subject", "mlp_out[1]"],
    ["mlp_post[1.17] @ 3", "mlp_post[2.5]", "q[0.2]"],
    ["resid_mid[1] @ verb", "attn_out[2] @ 4", "v[1.0] @ subject", "resid_pre[0] @ 2"],
    ["z[3.1] @ END", "resid_post[3] @ END"],
]


def spot(text: str, one: Any) -> Spot:
    """Returns what a site is in one pair."""
    component, layer, unit, place = SITES[text]
    where: Any = {None: slice(None), "END": len(one.clean_ids) - 1}.get(place, place)
    if isinstance(where, str):
        where = list(one.labels[where])
    return Spot(component, layer, (where,) if unit is None else (where, unit))


def checked(result: Any, name: str, cells: list[list[Spot]], number: int, runs: list[Run], spread: bool) -> None:
    """Compares one pair's cells, in the order of the sites, with their mean and spread over runs."""
    one = ones_of(name)[number]
    wanted = [oracle.over_runs(hf_of(name), runs, spots, oracle.difference(one)) for spots in cells]
    found = result.data["logit_diff"].isel(pair=number).transpose("site", ...).to_numpy()
    np.testing.assert_allclose(found, [mean for mean, _ in wanted], atol=TOLERANCE)
    if spread:
        found = result.spread().isel(pair=number).transpose("site", ...).to_numpy()
        np.testing.assert_allclose(found, [std for _, std in wanted], atol=TOLERANCE)


def at_sites(name: str, engine: str, sites: Any, pairs: Any = None, **options: Any) -> Any:
    return nbpatch.patch_sites(model_of(name, engine), pairs or PAIRS[name], sites, **options)


@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_sites_alone_and_together_equal_the_hand_written_forward(name, engine, direction):
    asked = [*SITES, *JOINT]
    result = at_sites(name, engine, asked, direction=direction)
    assert list(result.data["site"].to_numpy()) == [*SITES, *(" + ".join(texts) for texts in JOINT)]
    assert result.data["logit_diff"].dims == ("site", "pair")
    for number, one in enumerate(ones_of(name)):
        cells = [[spot(text, one) for text in ([texts] if isinstance(texts, str) else texts)] for texts in asked]
        checked(result, name, cells, number, oracle.counterfactual(hf_of(name), one, direction), spread=False)
    assert float(abs(result.effect()).max()) > 1e-3
    if engine == "replay":
        assert result.provenance["engine"]["name"] == "replay"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_sets_of_every_corruption_equal_the_hand_written_forward(name, engine, case):
    """All sites of a set take their values from one draw."""
    made = CASES[case]
    asked = [*JOINT, "resid_pre[2] @ subject", "q[0.2]"]
    result = at_sites(name, engine, asked, corruption=made.make(name), direction=made.direction)
    draws = draws_of(result)
    for number, one in enumerate(ones_of(name)):
        runs = runs_of(name, case, number, draws)
        cells = [[spot(text, one) for text in ([texts] if isinstance(texts, str) else texts)] for texts in asked]
        checked(result, name, cells, number, runs, spread=case in ("resample", *DIRECTED))


def test_both_directions_of_sites_are_each_as_alone():
    asked = ["z[1.0] @ 3", JOINT[0]]
    both = at_sites("tiny", "auto", asked, direction="both").data["logit_diff"]
    for direction in BOTH:
        alone = at_sites("tiny", "auto", asked, direction=direction).data["logit_diff"]
        np.testing.assert_allclose(both.sel(direction=direction), alone, atol=TOLERANCE)
    default = at_sites("tiny", "auto", asked).data["logit_diff"]
    np.testing.assert_allclose(default, both.sel(direction="denoising"), atol=TOLERANCE)


# -- values from elsewhere

# Where values go and where they come from, and both by hand: component, layer, index into its value.
MOVES = {
    ("resid_pre[2] @ 3", "resid_pre[3] @ 2"): Spot("resid_pre", 2, (3,), 3, (2,)),
    ("resid_post[1] @ END", "resid_post[2] @ END"): Spot("resid_post", 1, (-1,), 2, (-1,)),
    ("mlp_out[0] @ 4", "mlp_out[0] @ 2"): Spot("mlp_out", 0, (4,), 0, (2,)),
    ("attn_out[1]", "attn_out[2]"): Spot("attn_out", 1, (slice(None),), 2, (slice(None),)),
    ("z[3.1] @ END", "z[2.0] @ 3"): Spot("z", 3, (-1, 1), 2, (3, 0)),
    ("z[1.2]", "z[1.3]"): Spot("z", 1, (slice(None), 2), 1, (slice(None), 3)),
    ("q[2.1] @ END", "q[2.1] @ 2"): Spot("q", 2, (-1, 1), 2, (2, 1)),
    ("q[1.2] @ 4", "q[3.0] @ 1"): Spot("q", 1, (4, 2), 3, (1, 0)),
    ("k[1.0] @ 2", "k[1.0] @ 4"): Spot("k", 1, (2, 0), 1, (4, 0)),
    ("k[2.1] @ 1", "k[3.0] @ 3"): Spot("k", 2, (1, 1), 3, (3, 0)),
    ("v[1.0] @ 2", "v[2.1] @ 4"): Spot("v", 1, (2, 0), 2, (4, 1)),
    ("mlp_post[1.17] @ 3", "mlp_post[2.5] @ 2"): Spot("mlp_post", 1, (3, 17), 2, (2, 5)),
}


@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_values_from_another_layer_position_or_head_equal_the_hand_written_forward(name, engine, direction):
    sites, origins = map(list, zip(*MOVES, strict=True))
    result = at_sites(name, engine, sites, from_=origins, direction=direction)
    for number, one in enumerate(ones_of(name)):
        runs = oracle.counterfactual(hf_of(name), one, direction)
        checked(result, name, [[move] for move in MOVES.values()], number, runs, spread=False)


def test_law_values_from_the_place_itself_are_the_usual_ones():
    sites = ["z[1.0] @ 3", "k[1.1] @ 2", "resid_pre[2] @ END", "resid_mid[1] @ subject"]
    for name, engine in (("tiny", "auto"), ("tiny", "replay")):
        moved = at_sites(name, engine, sites, from_=sites, direction="both")
        np.testing.assert_allclose(values(moved), values(at_sites(name, engine, sites, direction="both")), atol=1e-5)


# -- laws of sets


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_law_one_site_is_its_cell_of_the_sweep(name, engine):
    places = {
        "z": ["z[{}.1] @ 2", "layer head pos", {"head": 1, "pos": 2}],
        "resid_mid": ["resid_mid[{}] @ 4", "layer pos", {"pos": 4}],
        "v": ["v[{}.0]", "layer head", {"head": 0}],
    }
    for component, (text, over, chosen) in places.items():
        swept_cells = swept(name, engine, component, over, direction="both").data["logit_diff"].isel(**chosen)
        for sites in ([text.format(layer)] for layer in range(layers_of(name))):
            layer = int(sites[0].split("[")[1][0])
            for asked in (sites, [sites]):
                found = at_sites(name, engine, asked, direction="both").data["logit_diff"].isel(site=0)
                np.testing.assert_allclose(found, swept_cells.isel(layer=layer), atol=TOLERANCE)


@pytest.mark.parametrize("case", ["zero", "mean", "mean over positions", "noise denoising"])
@pytest.mark.parametrize("engine", ENGINES)
def test_law_one_site_of_a_corruption_is_its_cell_of_the_sweep(engine, case):
    made = CASES[case].make("tiny")
    cells = swept("tiny", engine, "z", "layer head pos", corruption=made).data["logit_diff"]
    sites = at_sites("tiny", engine, ["z[1.2] @ 3", "z[3.0] @ END"], corruption=made).data["logit_diff"]
    np.testing.assert_allclose(sites.isel(site=0), cells.isel(layer=1, head=2, pos=3), atol=TOLERANCE)
    for number, one in enumerate(ones_of("tiny")):
        last = cells.isel(layer=3, head=0, pos=len(one.clean_ids) - 1, pair=number)
        np.testing.assert_allclose(sites.isel(site=1, pair=number), last, atol=TOLERANCE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_law_the_order_in_a_set_and_of_sets_changes_nothing(name, engine):
    forwards = at_sites(name, engine, JOINT, direction="both").data["logit_diff"]
    backwards = at_sites(name, engine, [texts[::-1] for texts in JOINT[::-1]], direction="both").data["logit_diff"]
    np.testing.assert_allclose(forwards, backwards.isel(site=slice(None, None, -1)), atol=TOLERANCE)


@pytest.mark.parametrize("case", [None, "zero", "mean"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_law_all_heads_of_a_layer_are_the_layer(name, engine, case):
    corruption = CASES[case].make(name) if case else None
    heads = hf_of(name).config.num_attention_heads
    whole = values(swept(name, engine, "z", "layer", corruption=corruption))
    sets = [[f"z[{layer}.{head}]" for head in range(heads)] for layer in range(layers_of(name))]
    np.testing.assert_allclose(values(at_sites(name, engine, sets, corruption=corruption)), whole, atol=TOLERANCE)
    stars = [f"z[{layer}]" for layer in range(layers_of(name))]
    np.testing.assert_allclose(values(at_sites(name, engine, stars, corruption=corruption)), whole, atol=TOLERANCE)


@pytest.mark.parametrize("engine", ENGINES)
def test_law_all_positions_of_a_stream_are_the_other_run(engine):
    """With anything else beside them: what comes before is overwritten, and nothing comes behind."""
    asked = [["resid_post[3]"], ["resid_post[3]", "z[1.0] @ 3"], ["mlp_post[2.5]", "resid_post[3]", "q[0.2]"]]
    for direction, wanted in zip(BOTH, (1, 0), strict=True):
        result = at_sites("tiny", engine, asked, direction=direction)
        np.testing.assert_allclose(result.recovered(), wanted, atol=TOLERANCE)


def test_a_site_that_is_named_twice_is_patched_once():
    once, twice = (
        values(at_sites("tiny", "auto", [sites])) for sites in (["z[1.0] @ 3"], ["z[1.0] @ 3", "z[1.0] @ 3"])
    )
    np.testing.assert_allclose(twice, once, atol=TOLERANCE)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pair_without_a_position_has_no_number_there(engine):
    """The second pair is six tokens long."""
    result = at_sites("tiny", engine, ["resid_pre[2] @ 6", "resid_pre[2] @ 5"])
    assert list(result.data["logit_diff"].isel(site=0).notnull()) == [True, False]
    assert result.data["logit_diff"].isel(site=1).notnull().all()


# -- labels

LABELLED = {"resid_pre": (), "resid_mid": (), "mlp_out": (), "z": ("head",), "k": ("head",), "mlp_post": ()}


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("component", LABELLED)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_labels_equal_the_hand_written_forward(name, engine, component, window):
    """Those that all pairs have, in the order of the first, and the end; all tokens of one at once."""
    over = " ".join(["layer", *LABELLED[component], "label"])
    result = swept(name, engine, component, over, direction="noising", window=window)
    names = list(result.data["label"].to_numpy())
    assert names == ["subject", "verb", "END"]
    hf, layer = hf_of(name), 1
    for number, one in enumerate(ones_of(name)):
        runs = oracle.counterfactual(hf, one, "noising")
        for label, places in {**one.labels, "END": [len(one.clean_ids) - 1]}.items():
            if label not in names:
                continue
            chosen = {"layer": layer, "pos": list(places), **dict.fromkeys(LABELLED[component], 1)}
            spots = oracle.spots_of(component, chosen, layers_of(name), window)
            wanted, _ = oracle.over_runs(hf, runs, spots, oracle.difference(one))
            own = result.data["logit_diff"].sel(label=label).isel(pair=number, layer=layer)
            own = own.isel(**dict.fromkeys(LABELLED[component], 1))
            assert float(own) == pytest.approx(wanted, abs=TOLERANCE), (label, number)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_labels_of_a_corruption_are_sites_at_them(engine, case):
    made = CASES[case]
    options = {"corruption": made.make("tiny"), "direction": made.direction}
    result = swept("tiny", engine, "resid_mid", "layer label", **options)
    for label in ("subject", "verb", "END"):
        sites = at_sites("tiny", engine, [f"resid_mid[{layer}] @ {label}" for layer in range(4)], **options)
        assert draws_of(sites) == draws_of(result)
        np.testing.assert_allclose(
            result.data["logit_diff"].sel(label=label).transpose("layer", "pair"), values(sites), atol=TOLERANCE
        )


def test_labels_alone_are_patched_in_all_layers():
    result = swept("tiny", "auto", "resid_post", "label", direction="both")
    assert result.data["logit_diff"].dims == ("direction", "label", "pair")
    end = result.recovered().sel(label="END")
    np.testing.assert_allclose(end, [1, 0], atol=TOLERANCE)


def test_the_end_is_named_once_and_pairs_without_labels_have_it():
    model = model_of("tiny", "auto")
    result = nbpatch.patch(model, nbpatch.tasks.ioi(model, n=2, order="ABBA"), "z", "layer label")
    assert list(result.data["label"].to_numpy()) == ["IO", "S1", "S1+1", "S2", "END"]
    plain = [PromptPair(pair.clean, pair.corrupted, pair.answer, pair.wrong) for pair in PAIRS["tiny"]]
    unlabelled = nbpatch.patch(model, [plain[0], PAIRS["tiny"][1]], "z", "layer label")
    assert list(unlabelled.data["label"].to_numpy()) == ["END"]


@pytest.mark.parametrize("component", ["pattern", "scores"])
def test_a_component_without_positions_has_no_labels(component):
    with pytest.raises(NbpatchError, match="label") as caught:
        swept("tiny", "auto", component, "layer label")
    assert "\n  try" in str(caught.value)


# -- embed, head_out, scores


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize(
    ("component", "over"),
    [
        ("embed", "pos"),
        ("head_out", "layer head"),
        ("head_out", "layer head pos"),
        ("scores", "layer head"),
        ("scores", "layer head dest src"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_new_components_equal_the_hand_written_forward(name, engine, component, over, window):
    if component == "embed" and window > 1:
        pytest.skip("embeddings have no layers")
    result = swept(name, engine, component, over, direction="both", window=window)
    compared(result, name, component, over, None if component == "embed" else 5, window)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_laws_of_new_components(name, engine):
    """Outputs of heads are z; whole rows of scores are rows of patterns; embeddings are the first stream."""
    for over in ("layer head", "layer head pos", "layer"):
        outputs, z = (values(swept(name, engine, part, over, direction="both")) for part in ("head_out", "z"))
        np.testing.assert_allclose(outputs, z, atol=TOLERANCE)
    for over in ("layer head", "layer head dest", "layer dest"):
        scores, pattern = (values(swept(name, engine, part, over, direction="both")) for part in ("scores", "pattern"))
        np.testing.assert_allclose(scores, pattern, atol=TOLERANCE)
    embed = swept(name, engine, "embed", direction="both").data["logit_diff"]
    stream = swept(name, engine, "resid_pre", direction="both").data["logit_diff"].isel(layer=0)
    np.testing.assert_allclose(embed, stream, atol=TOLERANCE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_single_scores_are_not_single_weights(name, engine):
    """Where one score is replaced, the others of its row share what is left."""
    over = "layer head dest src"
    scores, pattern = (swept(name, engine, part, over, direction="noising") for part in ("scores", "pattern"))
    assert np.nanmax(abs(values(scores) - values(pattern))) > 1e-3


# -- errors


def wrong(sites: Any, **options: Any) -> NbpatchError:
    pairs = options.pop("pairs", PAIRS["tiny"])
    with pytest.raises(NbpatchError) as caught:
        nbpatch.patch_sites(model_of("tiny", "auto"), pairs, sites, **options)
    assert caught.value.what
    assert "\n  try" in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("sites", "options", "word"),
    [
        ([], {}, ""),
        ([[]], {}, ""),
        (["nothing[1]"], {}, "nothing"),
        (["z[1"], {}, "z"),
        (["z[9.1]"], {}, "9"),
        (["z[1.9]"], {}, "9"),
        (["mlp_post[1.9999]"], {}, "9999"),
        ([["z[1.0]", "z[9.0]"]], {}, "9"),
        (["resid_pre[1] @ nowhere"], {}, "nowhere"),
        (["resid_pre[1] @ own"], {}, "own"),
        (["z[1.0] @ 60"], {}, "60"),
        ([3], {}, "3"),
        (["z[1.0]", "z[1.1]"], {"from_": ["z[1.0]"]}, "from_"),
        (["z[1.0]"], {"from_": ["q[1.0]"]}, "q"),
        (["z[1.0]"], {"from_": ["z[9.0]"]}, "9"),
        (["z[1.0]"], {"from_": ["z[1.9]"]}, "9"),
        (["resid_pre[1] @ 2"], {"from_": ["resid_pre[1]"]}, "from_"),
        (["resid_pre[1] @ 2"], {"from_": ["resid_pre[1] @ 60"]}, "60"),
        (["z[1.0]"], {"direction": "sideways"}, "sideways"),
        (["z[1.0]"], {"metric": "nothing"}, "nothing"),
    ],
)
def test_sites_that_make_no_sense_are_refused(sites, options, word):
    assert word in str(wrong(sites, **options))


@pytest.mark.parametrize("direction", ["denoising", "both"])
@pytest.mark.parametrize("kind", ["Zero", "Mean", "Resample"])
def test_an_ablation_of_sites_goes_one_way(kind, direction):
    error = wrong(["z[1.0]"], corruption=getattr(nbpatch, kind)(), direction=direction, pairs=TRIOS["tiny"][::2])
    assert isinstance(error, PlanError)


def test_a_mean_pattern_over_positions_is_refused_for_sites_too():
    assert isinstance(wrong(["pattern[1.0]"], corruption=nbpatch.Mean(per_position=False)), PlanError)


@pytest.mark.parametrize("window", [0, -1, 1.5])
def test_a_window_is_a_number_of_layers(window):
    with pytest.raises(NbpatchError) as caught:
        swept("tiny", "auto", "z", window=window)
    assert "\n  try" in str(caught.value)


# -- families

FAMILIES = ["gemma2", "llama", "gpt_neox", "opt", "falcon"]


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_windows_of_families_equal_their_replay_and_the_literal_override(family, window):
    model = families.loaded(family)
    one, other = (
        nbpatch.patch(each, families.PAIRS, "mlp_out", window=window, direction="noising")
        for each in (model, replayed(family))
    )
    assert float(abs(one.effect()).max()) > 1e-3
    np.testing.assert_allclose(values(one), values(other), atol=TOLERANCE)
    for number, (layer, pos) in enumerate(((0, 6), (1, 8), (2, 12), (1, 12))):
        wanted = literally(family, number, layer, pos, window)
        found = float(one.data["logit_diff"].isel(layer=layer, pos=pos, pair=number))
        assert found == pytest.approx(wanted, abs=TOLERANCE)


def literally(family: str, number: int, layer: int, pos: int, window: int) -> float:
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
