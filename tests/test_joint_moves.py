"""Values that come from another layer, position or head of the source run: `patch_sites(…, from_=…)`."""

import numpy as np
import oracle_ablation as oracle
import pytest
from oracle_ablation import PLACES, TOLERANCE, Spot, hf_of
from test_corruption import ones_of, values
from test_joint import BOTH, at_sites, checked

# Where values go and where they come from, and both by hand: component, layer, index into its value.
MOVES = {
    ("resid_pre[2] @ 3", "resid_pre[3] @ 2"): Spot("resid_pre", 2, (3,), 3, (2,)),
    ("resid_post[1] @ END", "resid_post[2] @ END"): Spot("resid_post", 1, (-1,), 2, (-1,)),
    ("mlp_out[0] @ 4", "mlp_out[0] @ 2"): Spot("mlp_out", 0, (4,), 0, (2,)),
    ("attn_out[1]", "attn_out[2]"): Spot("attn_out", 1, (slice(None),), 2, (slice(None),)),
    ("z[3.1] @ END", "z[2.1] @ 3"): Spot("z", 3, (-1, 1), 2, (3, 1)),
    ("z[1.2]", "z[2.2]"): Spot("z", 1, (slice(None), 2), 2, (slice(None), 2)),
    ("q[2.1] @ END", "q[2.1] @ 2"): Spot("q", 2, (-1, 1), 2, (2, 1)),
    ("q[1.2] @ 4", "q[3.2] @ 1"): Spot("q", 1, (4, 2), 3, (1, 2)),
    ("k[1.0] @ 2", "k[1.0] @ 4"): Spot("k", 1, (2, 0), 1, (4, 0)),
    ("k[2.1] @ 1", "k[3.1] @ 3"): Spot("k", 2, (1, 1), 3, (3, 1)),
    ("v[1.0] @ 2", "v[2.0] @ 4"): Spot("v", 1, (2, 0), 2, (4, 0)),
    ("mlp_post[1.17] @ 3", "mlp_post[2.17] @ 2"): Spot("mlp_post", 1, (3, 17), 2, (2, 17)),
}
HEADS = {
    ("z[3.1] @ END", "z[2.0] @ 3"): Spot("z", 3, (-1, 1), 2, (3, 0)),
    ("z[1.2]", "z[1.3]"): Spot("z", 1, (slice(None), 2), 1, (slice(None), 3)),
    ("q[1.2] @ 4", "q[3.0] @ 1"): Spot("q", 1, (4, 2), 3, (1, 0)),
    ("mlp_post[1.17] @ 3", "mlp_post[2.5] @ 2"): Spot("mlp_post", 1, (3, 17), 2, (2, 5)),
}


@pytest.mark.parametrize(("name", "engine"), PLACES)
def test_values_from_another_layer_or_position_equal_the_hand_written_forward(name, engine):
    """Queries and keys are moved as they are before rotary embedding."""
    check_moves(name, engine, MOVES)


def test_values_from_another_head_equal_the_hand_written_forward():
    check_moves("tiny", "auto", HEADS)


def quick(moves: dict[tuple[str, str], Spot]) -> dict[tuple[str, str], Spot]:
    """Returns what the fast engine moves itself: queries and keys take the whole call to replay."""
    return {texts: spot for texts, spot in moves.items() if spot.component not in ("q", "k")}


@pytest.mark.parametrize("name", ["tiny", "stories260K"])
@pytest.mark.parametrize("moves", [MOVES, HEADS], ids=["places", "heads"])
def test_the_fast_engine_moves_values_itself(name, moves):
    sites, origins = map(list, zip(*quick(moves), strict=True))
    assert at_sites(name, "auto", sites, from_=origins).provenance["engine"]["name"] == "frontier"
    check_moves(name, "auto", quick(moves))


def check_moves(name: str, engine: str, moves: dict[tuple[str, str], Spot]) -> None:
    sites, origins = map(list, zip(*moves, strict=True))
    result = at_sites(name, engine, sites, from_=origins, direction="both")
    cells = [[move] for move in moves.values()]
    for number, one in enumerate(ones_of(name)):
        for direction in BOTH:
            checked(result, name, cells, number, oracle.counterfactual(hf_of(name), one, direction), direction)


def test_law_values_from_the_place_itself_are_the_usual_ones():
    sites = ["z[1.0] @ 3", "k[1.1] @ 2", "resid_pre[2] @ END", "resid_mid[1] @ subject"]
    moved, usual = (values(at_sites("tiny", "auto", sites, from_=one, direction="both")) for one in (sites, None))
    np.testing.assert_allclose(moved, usual, atol=TOLERANCE)
