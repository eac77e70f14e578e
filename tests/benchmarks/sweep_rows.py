"""The rows of the benchmark: what is swept, by which function of TransformerLens, and the ratio to reach."""

from dataclasses import dataclass

POSITIONS = "layer pos"
HEADS = "layer head"

THEIRS = {
    ("resid_pre", POSITIONS): "get_act_patch_resid_pre",
    ("resid_mid", POSITIONS): "get_act_patch_resid_mid",
    ("attn_out", POSITIONS): "get_act_patch_attn_out",
    ("mlp_out", POSITIONS): "get_act_patch_mlp_out",
    ("z", HEADS): "get_act_patch_attn_head_out_all_pos",
    ("q", HEADS): "get_act_patch_attn_head_q_all_pos",
    ("k", HEADS): "get_act_patch_attn_head_k_all_pos",
    ("v", HEADS): "get_act_patch_attn_head_v_all_pos",
    ("pattern", HEADS): "get_act_patch_attn_head_pattern_all_pos",
    ("z", "layer head pos"): "get_act_patch_attn_head_out_by_pos",
    ("q", "layer head pos"): "get_act_patch_attn_head_q_by_pos",
    ("k", "layer head pos"): "get_act_patch_attn_head_k_by_pos",
    ("v", "layer head pos"): "get_act_patch_attn_head_v_by_pos",
    ("pattern", "layer head dest"): "get_act_patch_attn_head_pattern_by_pos",
}
"""TransformerLens's function for a component and the axes it is swept over."""

AXES = {"head_index": "head", "dest_pos": "dest"}
"""TransformerLens's names of axes that are called something else here."""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        calls: what nbpatch is asked for: components and the axes they are swept over.
        edges: or the two ends of edges, senders and receivers.
        scored: or "edge" or "node": what is estimated from gradients, edges by position, or what `calls` says.
        whole: the function of TransformerLens that runs all the row's sweeps by itself, where there is one.
        pairs: how many prompt pairs are run at once.
        longer: tokens on top of the prompts' usual number.
    """

    name: str
    calls: tuple[tuple[tuple[str, ...], str], ...]
    whole: str | None = None
    pairs: int = 1
    longer: int = 0
    edges: tuple[str, ...] = ()
    scored: str = ""

    @property
    def sweeps(self) -> list[tuple[str, str]]:
        """The row's sweeps one by one: component and axes."""
        return [(component, over) for components, over in self.calls for component in components]


_BLOCKS = ("resid_pre", "attn_out", "mlp_out")
_HEADS = ("z", "q", "k", "v", "pattern")

ROWS = {
    row.name: row
    for row in (
        *(Row(name, (((name,), POSITIONS),)) for name in _BLOCKS),
        *(Row(name, (((name,), HEADS),)) for name in _HEADS),
        Row("z_by_pos", ((("z",), "layer head pos"),)),
        Row("blocks", ((_BLOCKS, POSITIONS),), whole="get_act_patch_block_every"),
        Row("heads", ((_HEADS, HEADS),), whole="get_act_patch_attn_head_all_pos_every"),
        Row("resid_pre_8_pairs", ((("resid_pre",), POSITIONS),), pairs=8),
        Row("z_8_pairs", ((("z",), HEADS),), pairs=8),
        Row("edges_q", (), edges=("z", "q")),
        Row("eap", (), scored="edge"),
        # With one token more these are the 592 cells of the table on 4 layers with 4 heads.
        Row(
            "everything",
            (((*_BLOCKS, "resid_mid"), POSITIONS), (("z",), "layer head pos"), (_HEADS, HEADS)),
            longer=1,
        ),
        # Not in the table; run when named, and by --quick, for their values.
        Row("resid_mid", ((("resid_mid",), POSITIONS),)),
        *(Row(f"{name}_by_pos", (((name,), "layer head pos"),)) for name in ("q", "k", "v")),
        Row("pattern_by_pos", ((("pattern",), "layer head dest"),)),
        Row("attribute", ((("z",), "layer head pos"), (("mlp_out",), POSITIONS)), scored="node"),
    )
}

_TABLE = tuple(ROWS)[: tuple(ROWS).index("everything")]

USUAL = {"gpt2": _TABLE, "llama": ("resid_pre", "z"), "gemma2": ("resid_pre", "z"), "tiny": ("everything",)}
"""The rows that are run on a shape when none are named: those that PERFORMANCE.md gives a ratio for."""

LONG = ("resid_pre", "z")
"""The rows that --long adds at more tokens."""

PLACES = ((15, (10, 2)),)
LONG_PLACES = ((64, (50, 4)), (256, (224, 8)))
"""Numbers of tokens, each with the positions of the first difference."""

_REACH_GPT2 = {
    **dict.fromkeys(_BLOCKS, (100, 40)),
    **dict.fromkeys(("z", "q", "k", "v"), (35, 18)),
    "pattern": (30, 17),
    "z_by_pos": (250, 45),
    "blocks": (150, 45),
    "heads": (40, 18),
    "resid_pre_8_pairs": (60, 15),
    "z_8_pairs": (12, 5.5),
    "edges_q": (80, 50),
    "eap": (25, 25),
}
_REACH_OTHERS = {"resid_pre": (85, 30), "z": (28, 15)}
_REACH = {"gpt2": _REACH_GPT2, "llama": _REACH_OTHERS, "gemma2": _REACH_OTHERS, "tiny": {"everything": (150, 100)}}


def reach(shape: str, row: str, p0: int) -> float | None:
    """Returns the ratio to reach at the usual number of tokens, or None where PERFORMANCE.md names none."""
    wanted = _REACH[shape].get(row)
    return None if wanted is None else dict(zip(PLACES[0][1], wanted, strict=True)).get(p0)
