"""Figures: what is drawn is what was found, nothing leaves the page, nothing outside the figure is touched."""

import dataclasses
import io
import subprocess
import sys
from typing import Any

import golden
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from test_result import SIZES, attention, result

from nbpatch.errors import ResultError
from nbpatch.result import STATES, Result
from nbpatch.view import canvas, plots, words
from nbpatch.view.patterns import heads
from nbpatch.view.style import TOKENS, cell_number, diverging, rgb

PLAIN = ["<bos>", "The", " girl", ","]
UNICODE = ["<bos>", "日本", "🦊", " שלום", "$x_1$", "\n"]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text")) if text.get_text()]


def maps(figure: Figure) -> list[Any]:
    """The axes of the maps; the colour scale comes last."""
    return figure.axes[:-1]


def pixels(figure: Figure, panel: int = 0) -> np.ndarray:
    return np.asarray(maps(figure)[panel].images[0].get_array())


def like(pixel: Any, colour: tuple[int, int, int]) -> bool:
    """Whether two colours are equal but for rounding."""
    return bool(np.abs(np.asarray(pixel, int) - colour).max() <= 1)


def marked(figure: Figure) -> int:
    colour = tuple(value / 255 for value in rgb(TOKENS["light"]["mark"]))
    return sum(np.allclose(box.get_facecolor()[:3], colour) for box in figure.findobj(Rectangle))


def of_tokens(tokens: list[str], other: list[str], **options: Any) -> Result:
    """A result over layer and pos on given tokens."""
    SIZES["pos"], kept = len(tokens), SIZES["pos"]
    try:
        one = result(over=("layer", "pos"), **options)
    finally:
        SIZES["pos"] = kept
    return of_pair(one, tokens, other)


def of_pair(one: Result, tokens: list[str], other: list[str]) -> Result:
    every = range(len(tokens))
    differs = [place for place in every if tokens[place] != other[place]]
    pair = {
        **one.provenance["pairs"][0], "clean_tokens": tokens, "corrupted_tokens": other, "differs": differs,
        "clean_ids": list(every), "corrupted_ids": [place + 1000 * (place in differs) for place in every],
        "aligned": [[place, place] for place in every], "clean_end": len(tokens) - 1, "corrupted_end": len(tokens) - 1,
    }  # fmt: skip
    return dataclasses.replace(one, provenance={**one.provenance, "pairs": [pair] * one.data.sizes["pair"]})


def of_words(count: int) -> Result:
    sentence = ["<bos>", *(" " + word for word in ("when mary and john went to the store " * 40).split())][:count]
    other = [*sentence]
    other[2], other[-2] = " alexandria", " to"
    return of_tokens(sentence, other)


# Colours and marks.


def test_a_cell_has_the_colour_of_its_share_and_layer_0_is_on_top():
    one = result([[[4.0], [0.0], [-4.0]], [[-8.0], [12.0], [-4.4]]])
    figure = plots.plot(one)
    for layer in range(2):
        for head in range(3):
            assert like(pixels(figure)[layer, head], diverging(float(one.share()[layer, head])))
    bottom, top = maps(figure)[0].get_ylim()
    assert bottom > top


@pytest.mark.parametrize(("most", "limit"), [(0.05, 0.1), (0.2, 0.25), (0.5, 1.0), (3.0, 1.0)])
def test_a_weak_map_has_a_finer_scale_that_says_so(most, limit):
    one = result(-4 + 8 * most)
    figure = plots.plot(one)
    assert like(pixels(figure)[0, 0], diverging(most / limit))
    ends = {1.0: "1", 0.25: ".25", 0.1: ".1"}[limit]
    assert {f"+{ends}", f"−{ends}", "0"} <= set(texts(figure))


def test_both_directions_are_two_panels_on_one_scale():
    values = np.full((2, 2, 3, 1), 0.0)
    values[1] = 3.9
    figure = plots.plot(result(values, direction="both"))
    assert len(maps(figure)) == 2
    assert like(pixels(figure, 0)[0, 0], diverging(0.5))
    assert like(pixels(figure, 1)[0, 0], diverging(-0.0125))
    assert {"Denoise", "Noise", "share of the gap restored", "share of the gap lost"} <= set(texts(figure))


def test_numbers_stand_in_cells_that_are_more_than_nothing():
    one = result([[[4.0], [-3.95], [-4.0]], [[-8.0], [12.0], [-4.4]]])
    shown = [text.get_text() for text in maps(plots.plot(one))[0].texts]
    assert shown == ["1.00", "−.50", "2.00", "−.05"]


def test_too_many_cells_carry_no_numbers():
    assert not maps(plots.plot(of_words(80)))[0].texts


def test_a_cell_that_cannot_act_is_a_dot_on_white():
    state = np.zeros((2, 3, 1), np.int8)
    state[0, 1] = STATES.index("exact")
    figure = plots.plot(result(-4.0, state=state))
    (dots,) = maps(figure)[0].findobj(PathCollection)
    np.testing.assert_allclose(dots.get_offsets(), [[1.5, 0.5]])
    assert tuple(pixels(figure)[0, 1]) == (255, 255, 255)
    assert like(pixels(figure)[0, 0], diverging(0.0))
    assert "dot: exactly 0 by construction, not run" in texts(figure)


@pytest.mark.parametrize("why", ["not run", "no position", "failed"])
def test_a_cell_without_a_value_is_hatched_and_says_why(why):
    values, state = np.full((2, 3, 1), 1.0), np.zeros((2, 3, 1), np.int8)
    values[1, 2], state[1, 2] = np.nan, STATES.index(why)
    figure = plots.plot(result(values, state=state))
    (hatched,) = maps(figure)[0].findobj(PatchCollection)
    (cell,) = hatched.get_paths()
    np.testing.assert_allclose(cell.get_extents().get_points().mean(0), [2.5, 1.5])
    assert hatched.get_hatch()
    assert f"hatched: no value ({why})" in texts(figure)


def test_without_a_gap_all_is_hatched():
    figure = plots.plot(result(1.0, clean=(1.0,), corrupted=(1.0,)))
    assert len(maps(figure)[0].findobj(PatchCollection)[0].get_paths()) == 6
    assert "hatched: no value (no gap to share out)" in texts(figure)


def test_over_pairs_a_dot_needs_every_pair_that_has_the_cell():
    exact, absent, measured, left = (STATES.index(name) for name in ("exact", "no position", "measured", "not run"))
    state = np.zeros((2, 3, 2), np.int8)
    state[0, 0], state[0, 1], state[0, 2], state[1, 0] = (exact, absent), (exact, measured), (exact, left), (left, left)
    values = np.where(np.isin(state, (absent, left)), np.nan, -4.0)
    figure = plots.plot(result(values, state=state, clean=(4.0, 4.0), corrupted=(-4.0, -4.0)))
    (dots,) = maps(figure)[0].findobj(PathCollection)
    np.testing.assert_allclose(dots.get_offsets(), [[0.5, 0.5]])
    assert any("hatched: no value (not run)" in text for text in texts(figure))


# The prompt is the axis.


def test_both_prompts_stand_over_the_columns_and_differing_tokens_are_marked():
    figure = plots.plot(result(over=("layer", "pos")))
    shown = texts(figure)
    assert shown.count("bos") == 2
    assert {"The", "·girl", "·boy", ",", "clean", "corrupted", "→ ·she 80%", "→ ·he 70%", "answer read at 3"} <= set(
        shown
    )
    assert marked(figure) == 2
    assert {"layer 0", "1"} <= set(shown)


def test_heads_have_the_prompts_in_a_line():
    figure = plots.plot(result())
    assert {"bos", "·girl", "·boy", "head", "layer 0"} <= set(texts(figure))
    assert marked(figure) == 2


def test_a_long_line_begins_shortly_before_what_differs():
    tokens = ["<bos>", *(f" word{number}" for number in range(40))]
    other = [*tokens]
    other[20] = " other"
    shown = texts(plots.plot(of_pair(result(), tokens, other)))
    assert "·word16" in shown
    assert "·word15" not in shown
    assert "·other" in shown
    assert shown.count("…") >= 2


def test_where_nothing_could_change_is_said_once():
    state = np.zeros((2, 12, 1), np.int8)
    state[:, :8] = STATES.index("exact")
    tokens = ["<bos>", *(f" w{number}" for number in range(11))]
    figure = plots.plot(of_tokens(tokens, [*tokens[:8], " x", *tokens[9:]], values=-4.0, state=state))
    assert "same tokens so far: exactly 0, not run" in texts(figure)


def test_a_few_long_tokens_are_cut_and_many_stand_upright():
    tokens = ["<bos>", " internationalisation", *(f" w{number}" for number in range(16))]
    flat = plots.plot(of_tokens(tokens, tokens))
    assert any(text.endswith("…") for text in texts(flat))
    assert not any(text.get_rotation() for text in flat.texts)
    upright = plots.plot(of_words(60))
    assert {text.get_rotation() for text in upright.texts} == {0.0, 90.0}


def test_in_a_very_long_prompt_the_differing_tokens_keep_their_labels():
    figure = plots.plot(of_words(200))
    assert "·alexandria" in texts(figure)
    assert texts(figure).count("·mary") < 40


def test_unaligned_positions_of_the_corrupted_prompt_are_empty():
    one = result(over=("layer", "pos"))
    pair = {**one.provenance["pairs"][0], "aligned": [[0, 0], [3, 3]], "differs": [1, 2]}
    figure = plots.plot(dataclasses.replace(one, provenance={**one.provenance, "pairs": [pair]}))
    assert "·boy" not in texts(figure)
    assert marked(figure) == 4


# All kinds of maps stay on the page.


KINDS = {
    "layer": lambda: result(over=("layer",)),
    "pos": lambda: result(over=("pos",)),
    "layer pos": lambda: result(over=("layer", "pos")),
    "layer head": result,
    "both heads": lambda: result(direction="both"),
    "both pos": lambda: result(direction="both", over=("layer", "pos")),
    "layer head pos": lambda: result(over=("layer", "head", "pos")),
    "dest src": lambda: result(over=("dest", "src")),
    "layer head dest src": lambda: result(over=("layer", "head", "dest", "src")),
    "pairs": lambda: result(clean=(4.0, 5.0), corrupted=(-4.0, -4.0)),
    "long": lambda: of_words(60),
    "very long": lambda: of_words(120),
    "unicode": lambda: of_tokens(
        ["<bos>", "日本", "🦊", " שלום", "$x_1$", "\n"], ["<bos>", "日本", "🐈", " x", "$", "\t"]
    ),
    "nothing": lambda: result(np.nan, state=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_leaves_the_page(kind):
    figure = plots.plot(KINDS[kind]())
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in figure.findobj(lambda one: hasattr(one, "get_text")):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent(renderer)
            assert box.x0 >= 0, text.get_text()
            assert box.y0 >= 0, text.get_text()
            assert box.x1 <= figure.bbox.x1, text.get_text()
            assert box.y1 <= figure.bbox.y1, text.get_text()


@pytest.mark.parametrize("kind", ["both heads", "layer pos", "layer head dest src", "very long", "unicode", "nothing"])
def test_the_picture_is_small_white_and_opaque(kind):
    data = plots.png(KINDS[kind]())
    assert len(data) <= 150_000
    picture = imread(io.BytesIO(data))
    assert (picture[0, :] == 1).all()
    assert (picture[:, -1] == 1).all()
    assert picture.min() < 0.5


def test_a_picture_that_would_be_too_large_is_made_coarser(monkeypatch):
    fine = plots.png(result())
    monkeypatch.setattr(plots, "_PNG_MOST", len(fine) - 1)
    assert len(plots.png(result())) < len(fine)


def test_the_same_result_gives_the_same_picture():
    assert plots.png(result()) == plots.png(result())


def test_letters_that_no_font_has_are_boxes():
    fonts = canvas.type_for(["a", "\U0001f98a"])
    assert fonts.drawable("a\U0001f98a") in ("a▯", "a\U0001f98a")
    assert canvas.Type(missing=frozenset("x")).drawable("axb") == "a▯b"


def test_lines_break_between_words_and_only_there():
    fonts = canvas.Type()
    lines = fonts.wrap("one two three four", 10, 0.8)
    assert " ".join(lines) == "one two three four"
    assert len(lines) > 1
    assert all(fonts.width(line, 10) <= 0.8 for line in lines)
    assert fonts.wrap("unbreakable", 10, 0.1) == ["unbreakable"]
    assert fonts.cut("unbreakable", 10, 0.4).endswith("…")
    assert fonts.width(fonts.cut("unbreakable", 10, 0.4), 10) <= 0.4


# Choices.


def test_one_pairs_own_map():
    one = result([0.0, 4.0], clean=(4.0, 4.0), corrupted=(-4.0, -4.0))
    assert like(pixels(plots.plot(one))[0, 0], diverging(0.75))
    assert like(pixels(plots.plot(one, pair=0))[0, 0], diverging(0.5))
    assert like(pixels(plots.plot(one, pair=1))[0, 0], diverging(1.0))
    assert "pair 2 of 2" in " ".join(texts(plots.plot(one, pair=1)))


def test_title_and_note():
    bare, full = plots.plot(result(), title=False), plots.plot(result(), note="Run the cell.")
    assert not any("Which" in text or "nbpatch" in text for text in texts(bare))
    assert "Run the cell." in texts(full)
    assert bare.get_size_inches()[1] < full.get_size_inches()[1]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ResultError, match="no metric 'x'"):
        plots.plot(result(), "x")
    with pytest.raises(ResultError, match="no pair 3"):
        plots.plot(result(), pair=3)
    with pytest.raises(ResultError, match="attention patterns have no effect"):
        plots.plot(attention())


# Words.


QUESTIONS = [
    ("resid_pre", "positions of the residual stream", ("layer", "pos"), "denoising", "logit_diff"),
    ("resid_mid", "positions of the residual stream after attention", ("layer",), "noising", "prob"),
    ("attn_out", "attention outputs", ("layer", "pos"), "denoising", "log_prob"),
    ("mlp_out", "MLP outputs", ("layer", "pos"), "noising", "kl"),
    ("z", "attention heads", ("layer", "head"), "both", "logit_diff"),
    ("z", "attention heads", ("layer", "head", "pos"), "denoising", "rank"),
    ("q", "heads’ queries", ("layer", "head"), "denoising", "accuracy"),
    ("k", "heads’ keys", ("layer", "head"), "noising", "logit_diff"),
    ("v", "heads’ values", ("layer", "head"), "denoising", "my metric"),
    ("pattern", "attention patterns", ("layer", "head"), "denoising", "logit_diff"),
]


def test_the_questions():
    lines: list[str] = []
    for component, label, over, direction, metric in QUESTIONS:
        made = {
            **result(over=over).provenance,
            "component": component,
            "component_label": label,
            "direction": direction,
        }
        lines += words.question(made, made["pairs"][0], metric)
    grouped = {**made, "component": "k", "component_label": "heads’ keys", "model": {"n_heads": 8, "n_kv_heads": 4}}
    lines += words.question(grouped, {**made["pairs"][0], "answer": [" she", " her"], "wrong": []}, "logit_diff")
    golden.check("plots_questions", "\n".join(lines).replace("\u00a0", " "))


def test_the_facts():
    golden.check("plots_facts", words.facts(result(), "logit_diff", None))
    pairs = result(direction="both", clean=(4.0, 5.0), corrupted=(-4.0, -3.0))
    assert "both directions" in words.facts(pairs, "logit_diff", None)
    assert "clean +4.50, corrupted −3.50" in words.facts(pairs, "logit_diff", None)
    assert "clean +5.00, corrupted −3.00" in words.facts(pairs, "logit_diff", 1)


@pytest.mark.parametrize(
    ("clean", "amount"),
    [
        (4.0, "8.00 logits"),
        (-3.0, "1.00 logit"),
        (-3.9975, "0.0025 logits"),
        (-5.0, "−1.00 logit"),
        (-4.0, "0.00 logits"),
    ],
)
def test_the_size_of_the_gap_in_words(clean, amount):
    key = words.colour_key(result(clean=(clean,)), "logit_diff")
    assert key == f"Colour: effect as a share of the gap ({amount})."


# Attention.


def looking() -> Result:
    one = attention()
    values = one.data["pattern"].copy(data=np.zeros((2, 2, 3, 4, 4, 1)))
    values[0, :, :, :, 0], values[1, :, :, :, 1] = 1.0, 1.0
    values[0, 1, 2, 3, :, 0] = [0.5, 0.0, 0.5, 0.0]
    return dataclasses.replace(one, data=one.data.assign(pattern=values))


def test_one_head_all_heads_of_a_layer_or_all():
    for options, count in (({"layer": 1, "head": 2}, 1), ({"layer": 1}, 3), ({}, 6)):
        figure = heads(looking(), **options)
        assert len(figure.axes) == count
    assert "head 1.2" in texts(heads(looking(), layer=1, head=2))


def test_the_darker_the_more_weight():
    colours = np.asarray(heads(looking(), layer=1, head=2).axes[0].images[0].get_array()).astype(int)
    assert (colours[3, 1] == 255).all()
    assert colours[0, 0].sum() < colours[3, 0].sum() < 3 * 255
    np.testing.assert_array_equal(colours[3, 0], colours[3, 2])


def test_the_difference_is_clean_minus_corrupted():
    colours = np.asarray(heads(looking(), layer=0, head=0, run="difference").axes[0].images[0].get_array())
    assert like(colours[0, 0], diverging(1.0))
    assert like(colours[0, 1], diverging(-1.0))
    assert like(colours[0, 2], diverging(0.0))


def test_the_tokens_of_the_chosen_run_name_rows_and_columns():
    assert texts(heads(looking(), layer=0, head=0)).count("·girl") == 2
    assert texts(heads(looking(), layer=0, head=0, run="corrupted")).count("·boy") == 2


def test_attention_has_a_picture_too():
    assert plots.png(looking()).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layer": 2}, "no layer 2"), ({"layer": 0, "head": 3}, "no head 3"), ({"run": "x"}, "no run 'x'"),
     ({"pair": 1}, "no pair 1"), ({"layer": -1}, "no layer -1")],
)  # fmt: skip
def test_a_head_that_is_not_there_is_refused(options, message):
    with pytest.raises(ResultError, match=message) as caught:
        heads(looking(), **options)
    assert caught.value.fix


def test_a_sweep_has_no_patterns():
    with pytest.raises(ResultError, match="no attention patterns"):
        heads(result())


# Nothing else is touched.


def test_drawing_changes_no_setting_and_loads_no_pyplot(tmp_path):
    path = result().save(tmp_path / "x.nc")
    program = f"""
import matplotlib, sys, nbpatch
before, backend = dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)
from nbpatch.view import plots
one = nbpatch.read({str(path)!r})
plots.png(one)
assert dict(matplotlib.rcParams) == before
assert matplotlib.get_backend(auto_select=False) == backend
assert "matplotlib.pyplot" not in sys.modules and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_dark_text_stays_dark_under_a_dark_style():
    import matplotlib

    with matplotlib.rc_context({"text.color": "white", "figure.facecolor": "black", "text.usetex": False}):
        figure = plots.plot(result())
    assert figure.get_facecolor()[:3] == (1, 1, 1)
    assert all(text.get_color() != "white" for text in figure.texts)


def test_cells_use_the_formats_of_the_front_end():
    assert cell_number(0.5) in {text.get_text() for text in maps(plots.plot(result(0.0)))[0].texts}


def test_the_axis_of_plain_tokens_needs_no_bos():
    one = result(over=("layer", "pos"), tokens=PLAIN)
    pair = {**one.provenance["pairs"][0], "has_bos": False}
    shown = texts(plots.plot(dataclasses.replace(one, provenance={**one.provenance, "pairs": [pair]})))
    assert "<bos>" in shown
    assert "bos" not in shown
