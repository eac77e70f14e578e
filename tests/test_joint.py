"""Several places patched at once: windows of layers, sets of sites, labels, and the components that came with them."""

from typing import Any

import numpy as np
import oracle_ablation as oracle
import pytest
from oracle_ablation import ENGINES, ONE_OF_EACH, PAIRS, PLACES, TOLERANCE, TRIOS, Run, Spot, hf_of, model_of
from test_corruption import CASES, DIRECTED, OVER, check, draws_of, ones_of, runs_of, swept, values

import nbpatch
from nbpatch import PromptPair
from nbpatch.errors import NbpatchError, PlanError

FEW = 2
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

WINDOWED = {
    "resid_pre resid_mid resid_post attn_out mlp_out mlp_post": "layer pos",
    "q k v": "layer head pos",
    "z head_out": "layer head",
    "pattern": "layer head dest",
}


@pytest.mark.parametrize("group", WINDOWED)
@pytest.mark.parametrize(("name", "engine"), PLACES)
def test_windows_equal_the_hand_written_forward(name, engine, group):
    over, window = WINDOWED[group], 2 if engine == "auto" else 3
    result = swept(name, engine, group, over, direction="both", window=window)
    for component in group.split():
        compared(result.sel(component), name, component, over, FEW, window)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_windows_of_every_corruption_equal_the_hand_written_forward(name, engine, case):
    """All layers of a draw take their values from one prompt."""
    made, component = CASES[case], "mlp_out" if name == "tiny" else "k"
    options = {"corruption": made.make(name), "direction": made.direction, "window": 3}
    check(swept(name, engine, component, OVER[component], **options), name, case, component, OVER[component], FEW, 3)


@pytest.mark.parametrize(
    ("group", "over"), [*WINDOWED.items(), ("pattern scores", "layer head dest src"), ("q k v", "layer pos")]
)
def test_law_a_window_of_one_layer_is_none_and_so_is_the_first_of_two(group, over):
    plain, one, two = (
        swept("tiny", "auto", group, over, direction="noising", **options).data["logit_diff"]
        for options in ({}, {"window": 1}, {"window": 2})
    )
    np.testing.assert_allclose(one, plain, atol=TOLERANCE)
    np.testing.assert_allclose(two.isel(layer=0), plain.isel(layer=0), atol=TOLERANCE)


@pytest.mark.parametrize(("component", "over"), [("resid_pre", "pos"), ("pattern", "head"), ("k", "head")])
@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_law_a_window_of_all_layers_is_the_sweep_without_that_axis(name, engine, component, over):
    window = 2 * layers_of(name)
    wide = swept(name, engine, component, f"layer {over}", direction="both", window=window).data["logit_diff"]
    whole = swept(name, engine, component, over, direction="both").data["logit_diff"]
    for layer in range(layers_of(name)):
        np.testing.assert_allclose(wide.isel(layer=layer), whole, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
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
SITES: dict[str, Spot | tuple[str, int, int | None, int | str | None]] = {
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
    "pattern[1.0] @ 4": Spot("pattern", 1, (0, 4)),
    "pattern[2.1] @ 4 <- 2": Spot("pattern", 2, (1, 4, 2)),
    "pattern[0.3]": Spot("pattern", 0, (3,)),
    "scores[1.2] @ 5 <- 3": Spot("scores", 1, (2, 5, 3)),
}
JOINT = [
    ["resid_pre[2] @ subject", "z[3.1] @ END"],
    ["z[1.0] @ 3", "z[2.3]", "k[1.1] @ subject", "mlp_out[1]"],
    ["mlp_post[1.17] @ 3", "mlp_post[2.5]", "q[0.2]"],
    ["resid_mid[1] @ verb", "attn_out[2] @ 4", "v[1.0] @ subject", "resid_pre[0] @ 2"],
    ["z[3.1] @ END", "resid_post[3] @ END"],
    ["pattern[1.0] @ 4", "pattern[2.1] @ 4 <- 2", "resid_pre[0] @ 2"],
]


def spot(text: str, one: Any) -> Spot:
    """Returns what a site is in one pair."""
    site = SITES[text]
    if isinstance(site, Spot):
        return site
    component, layer, unit, place = site
    where: Any = {None: slice(None), "END": len(one.clean_ids) - 1}.get(place, place)
    if isinstance(where, str):
        where = list(one.labels[where])
    return Spot(component, layer, (where,) if unit is None else (where, unit))


def checked(
    result: Any,
    name: str,
    cells: list[list[Spot]],
    number: int,
    runs: list[Run],
    direction: str = "",
    *,
    spread: bool = False,
) -> None:
    """Compares one pair's cells, in the order of the sites, with their mean and spread over runs."""
    one = ones_of(name)[number]
    wanted = [oracle.over_runs(hf_of(name), runs, spots, oracle.difference(one)) for spots in cells]
    tables = [result.data["logit_diff"], *([result.spread()] if spread else [])]
    for table, values_of in zip(tables, zip(*wanted, strict=True), strict=False):
        own = table.sel(direction=direction) if direction else table
        np.testing.assert_allclose(own.isel(pair=number).to_numpy(), values_of, atol=TOLERANCE)


def at_sites(name: str, engine: str, sites: Any, pairs: Any = None, **options: Any) -> Any:
    return nbpatch.patch_sites(model_of(name, engine), pairs or PAIRS[name], sites, **options)


@pytest.mark.parametrize(("name", "engine"), PLACES)
def test_sites_alone_and_together_equal_the_hand_written_forward(name, engine):
    asked = [*SITES, *JOINT]
    result = at_sites(name, engine, asked, direction="both")
    assert list(result.data["site"].to_numpy()) == [*SITES, *(" + ".join(texts) for texts in JOINT)]
    assert result.data["logit_diff"].dims == ("direction", "site", "pair")
    if engine == "replay":
        assert result.provenance["engine"]["name"] == "replay"
    assert float(abs(result.effect()).max()) > 1e-3
    for number, one in enumerate(ones_of(name)):
        cells = [[spot(text, one) for text in ([texts] if isinstance(texts, str) else texts)] for texts in asked]
        for direction in BOTH:
            checked(result, name, cells, number, oracle.counterfactual(hf_of(name), one, direction), direction)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_sets_of_every_corruption_equal_the_hand_written_forward(name, engine, case):
    """All sites of a set take their values from one draw."""
    made = CASES[case]
    sets = [texts for texts in JOINT if case != "mean over positions" or "pattern" not in str(texts)]
    asked = [*sets, "resid_pre[2] @ subject", "q[0.2]"]
    result = at_sites(name, engine, asked, corruption=made.make(name), direction=made.direction)
    draws = draws_of(result)
    for number, one in enumerate(ones_of(name)):
        runs = runs_of(name, case, number, draws)
        cells = [[spot(text, one) for text in ([texts] if isinstance(texts, str) else texts)] for texts in asked]
        checked(result, name, cells, number, runs, spread=case in ("resample", *DIRECTED))


def test_without_a_word_the_clean_run_s_values_are_restored():
    asked = ["z[1.0] @ 3", JOINT[0]]
    both = at_sites("tiny", "auto", asked, direction="both").data["logit_diff"]
    default = at_sites("tiny", "auto", asked).data["logit_diff"]
    assert default.dims == ("site", "pair")
    np.testing.assert_allclose(default, both.sel(direction="denoising"), atol=TOLERANCE)


# -- laws of sets


@pytest.mark.parametrize(
    ("text", "over", "chosen"),
    [
        ("z[{}.1] @ 2", "layer head pos", {"head": 1, "pos": 2}),
        ("resid_mid[{}] @ 4", "layer pos", {"pos": 4}),
        ("v[{}.0]", "layer head", {"head": 0}),
    ],
)
@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_law_one_site_is_its_cell_of_the_sweep(name, engine, text, over, chosen):
    """Also as a set of one."""
    component = text.partition("[")[0]
    cells = swept(name, engine, component, over, direction="both").data["logit_diff"].isel(**chosen)
    for asked in (text, [text]):
        sites = [asked.format(layer) if asked is text else [text.format(layer)] for layer in range(layers_of(name))]
        found = at_sites(name, engine, sites, direction="both")
        np.testing.assert_allclose(values(found), cells, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("case", "engine"),
    [("zero", "replay"), ("mean", "auto"), ("mean over positions", "replay"), ("noise noising", "auto")],
)
def test_law_one_site_of_a_corruption_is_its_cell_of_the_sweep(engine, case):
    made = CASES[case].make("tiny")
    cells = swept("tiny", engine, "z", "layer head pos", corruption=made).data["logit_diff"]
    sites = at_sites("tiny", engine, ["z[1.2] @ 3", "z[3.0] @ END"], corruption=made).data["logit_diff"]
    np.testing.assert_allclose(sites.isel(site=0), cells.isel(layer=1, head=2, pos=3), atol=TOLERANCE)
    for number, one in enumerate(ones_of("tiny")):
        last = cells.isel(layer=3, head=0, pos=len(one.clean_ids) - 1, pair=number)
        np.testing.assert_allclose(sites.isel(site=1, pair=number), last, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_law_the_order_in_a_set_and_of_sets_changes_nothing(name, engine):
    forwards = at_sites(name, engine, JOINT, direction="both").data["logit_diff"]
    backwards = at_sites(name, engine, [texts[::-1] for texts in JOINT[::-1]], direction="both").data["logit_diff"]
    np.testing.assert_allclose(forwards, backwards.isel(site=slice(None, None, -1)), atol=TOLERANCE)


@pytest.mark.parametrize("case", [None, "zero", "mean"])
@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
def test_law_all_heads_of_a_layer_are_the_layer(name, engine, case):
    corruption = CASES[case].make(name) if case else None
    heads = hf_of(name).config.num_attention_heads
    whole = values(swept(name, engine, "z", "layer", corruption=corruption))
    sets = [[f"z[{layer}.{head}]" for head in range(heads)] for layer in range(layers_of(name))]
    stars = [f"z[{layer}]" for layer in range(layers_of(name))]
    found = values(at_sites(name, engine, [*sets, *stars], corruption=corruption))
    np.testing.assert_allclose(found, [*whole, *whole], atol=TOLERANCE)


@pytest.mark.parametrize("engine", ENGINES)
def test_law_all_positions_of_a_stream_are_the_other_run(engine):
    """With anything else beside them: what comes before is overwritten, and nothing comes behind."""
    asked = [["resid_post[3]"], ["resid_post[3]", "z[1.0] @ 3"], ["mlp_post[2.5]", "resid_post[3]", "q[0.2]"]]
    recovered = at_sites("tiny", engine, asked, direction="both").recovered()
    for direction, wanted in zip(BOTH, (1, 0), strict=True):
        np.testing.assert_allclose(recovered.sel(direction=direction), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pair_without_a_position_has_no_number_there(engine):
    """The second pair is six tokens long, and has a label that the first one lacks."""
    result = at_sites("tiny", engine, ["resid_pre[2] @ 6", "resid_pre[2] @ own", "resid_pre[2] @ 5"])
    there = [list(result.data["logit_diff"].isel(site=site).notnull().to_numpy()) for site in range(3)]
    assert there == [[True, False], [False, True], [True, True]]


# -- labels

LABELLED = {"resid_pre resid_mid mlp_out mlp_post": "layer label", "z k": "layer head label"}


@pytest.mark.parametrize("group", LABELLED)
@pytest.mark.parametrize(("name", "engine"), PLACES)
def test_labels_equal_the_hand_written_forward(name, engine, group):
    """Those that all pairs have, in the order of the first, and the end; all tokens of one at once."""
    window = 3 if (name, engine) in (("tiny", "auto"), ("stories260K", "replay")) else 1
    both = swept(name, engine, group, LABELLED[group], direction="noising", window=window)
    assert list(both.data["label"].to_numpy()) == ["subject", "verb", "END"]
    for component in group.split():
        same_at_labels(both.sel(component), name, component, window)


def same_at_labels(result: Any, name: str, component: str, window: int) -> None:
    """Compares one layer, and one head of it, of all labels and pairs."""
    hf, unit = hf_of(name), {"head": 1} if "head" in result.data.dims else {}
    for number, one in enumerate(ones_of(name)):
        runs = oracle.counterfactual(hf, one, "noising")
        for label in ("subject", "verb", "END"):
            places = [*one.labels[label]] if label in one.labels else [len(one.clean_ids) - 1]
            spots = oracle.spots_of(component, {"layer": 1, "pos": places, **unit}, layers_of(name), window)
            wanted, _ = oracle.over_runs(hf, runs, spots, oracle.difference(one))
            own = result.data["logit_diff"].sel(label=label).isel(pair=number, layer=1, **unit)
            assert float(own) == pytest.approx(wanted, abs=TOLERANCE), (component, label, number)


@pytest.mark.parametrize("case", CASES)
def test_labels_of_a_corruption_are_sites_at_them(case):
    made, labels = CASES[case], ("subject", "verb", "END")
    options = {"corruption": made.make("tiny"), "direction": made.direction}
    result = swept("tiny", "auto", "resid_mid", "layer label", **options)
    sites = at_sites("tiny", "auto", [f"resid_mid[{at}] @ {label}" for at in range(4) for label in labels], **options)
    assert draws_of(sites) == draws_of(result)
    np.testing.assert_allclose(values(result).reshape(12, -1), values(sites), atol=TOLERANCE)


def test_labels_alone_are_patched_in_all_layers():
    result = swept("tiny", "auto", "resid_post", "label", direction="both")
    assert result.data["logit_diff"].dims == ("direction", "label", "pair")
    end = result.recovered().sel(label="END")
    np.testing.assert_allclose(end, [1, 0], atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:tasks.ioi leaves out")
def test_the_end_is_named_once_and_pairs_that_share_no_label_are_refused():
    model = model_of("tiny", "auto")
    result = nbpatch.patch(model, nbpatch.tasks.ioi(model, n=2, order="ABBA"), "z", "layer label")
    assert list(result.data["label"].to_numpy()) == ["IO", "S1", "S1+1", "S2", "END"]
    plain = [PromptPair(pair.clean, pair.corrupted, pair.answer, pair.wrong) for pair in PAIRS["tiny"]]
    with pytest.raises(PlanError, match="the pairs share no label"):
        nbpatch.patch(model, [plain[0], PAIRS["tiny"][1]], "z", "layer label")


@pytest.mark.parametrize("component", ["pattern", "scores"])
def test_a_component_without_positions_has_no_labels(component):
    with pytest.raises(NbpatchError, match="label") as caught:
        swept("tiny", "auto", component, "layer label")
    assert "\n  try" in str(caught.value)


# -- embed, head_out, scores


@pytest.mark.parametrize(
    ("component", "over"),
    [("embed", "pos"), ("head_out", "layer head pos"), ("scores", "layer head"), ("scores", "layer head dest src")],
)
@pytest.mark.parametrize(("name", "engine"), PLACES)
def test_new_components_equal_the_hand_written_forward(name, engine, component, over):
    window = 2 if component != "embed" and engine == "replay" else 1
    result = swept(name, engine, component, over, direction="both", window=window)
    compared(result, name, component, over, None if component == "embed" else 4, window)


@pytest.mark.parametrize(
    ("new", "old", "over"),
    [("head_out", "z", "layer head pos"), ("scores", "pattern", "layer head dest"), ("scores", "pattern", "layer")],
)
@pytest.mark.parametrize(("name", "engine"), PLACES)
def test_law_outputs_of_heads_are_z_and_whole_rows_of_scores_are_patterns(name, engine, new, old, over):
    found, usual = (values(swept(name, engine, part, over, direction="both")) for part in (new, old))
    np.testing.assert_allclose(found, usual, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "engine"), PLACES)
def test_law_embeddings_are_the_first_stream(name, engine):
    embed = swept(name, engine, "embed", direction="both").data["logit_diff"]
    stream = swept(name, engine, "resid_pre", direction="both").data["logit_diff"].isel(layer=0)
    np.testing.assert_allclose(embed, stream, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "engine"), ONE_OF_EACH)
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


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("sites", "options", "word"),
    [
        ([], {}, ""),
        ([[]], {}, ""),
        ([["z[1.0] @ 3", "z[1.0] @ 3"]], {}, "z[1.0] @ 3"),
        (["nothing[1]"], {}, "nothing"),
        (["z[1"], {}, "z"),
        (["z[9.1]"], {}, "9"),
        (["z[1.9]"], {}, "9"),
        (["mlp_post[1.9999]"], {}, "9999"),
        ([["z[1.0]", "z[9.0]"]], {}, "9"),
        (["resid_pre[1] @ nowhere"], {}, "nowhere"),
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


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("window", [0, -1, 1.5])
def test_a_window_is_a_number_of_layers(window):
    with pytest.raises(NbpatchError) as caught:
        swept("tiny", "auto", "z", window=window)
    assert "\n  try" in str(caught.value)
