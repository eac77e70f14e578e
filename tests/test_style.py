"""Colours and numbers: the scale is even and safe for all eyes, text on it can be read, the front end has the same."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpatch.view.style import (
    CELL_LEAST,
    SCALE,
    TOKENS,
    cell_number,
    diverging,
    readout_number,
    rgb,
    text_on,
    typescript,
)

GENERATED = Path(__file__).parent.parent / "js" / "src" / "style.generated.ts"
THEMES = ("light", "dark")

# What eyes see: linear light, OKLab (Ottosson 2020), colour vision deficiencies (Machado et al. 2009, severity 1).

TO_LMS = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
          [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
TO_LAB = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
          [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
DEFICIENT = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    share = np.asarray(colour, float) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def lab(colour, eyes=None):
    light = linear(colour) if eyes is None else np.clip(np.asarray(DEFICIENT[eyes]) @ linear(colour), 0, 1)
    return np.asarray(TO_LAB) @ np.cbrt(np.asarray(TO_LMS) @ light)


def contrast(one, other):
    lights = sorted(float(np.dot([0.2126, 0.7152, 0.0722], linear(rgb(colour)))) for colour in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def hexed(colour):
    return "#{:02X}{:02X}{:02X}".format(*colour)


# The scale.


@pytest.mark.parametrize("theme", THEMES)
def test_the_anchors_are_met(theme):
    for place, anchor in zip(np.linspace(-1, 1, 11), SCALE[theme], strict=True):
        assert hexed(diverging(float(place), theme)) == anchor


@pytest.mark.parametrize("theme", THEMES)
def test_beyond_the_ends_the_ends_are_kept(theme):
    assert diverging(7.0, theme) == diverging(1.0, theme)
    assert diverging(-7.0, theme) == diverging(-1.0, theme)


@pytest.mark.parametrize("theme", THEMES)
@given(share=st.floats(0, 1))
def test_both_sides_are_equally_strong(theme, share):
    plus, minus = (lab(diverging(sign * share, theme))[0] for sign in (1, -1))
    assert abs(plus - minus) < 0.03


@pytest.mark.parametrize("theme", THEMES)
def test_stronger_is_always_farther_from_nothing(theme):
    for sign in (1, -1):
        lights = [lab(diverging(sign * share, theme))[0] for share in np.linspace(0, 1, 21)]
        steps = np.diff(lights) if theme == "dark" else -np.diff(lights)
        assert (steps > 0).all()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("eyes", DEFICIENT)
def test_the_two_sides_look_different_to_all_eyes(theme, eyes):
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        apart = lab(diverging(share, theme), eyes) - lab(diverging(-share, theme), eyes)
        assert np.linalg.norm(apart) > 0.05


@pytest.mark.parametrize("theme", THEMES)
def test_numbers_on_cells_can_be_read(theme):
    worst = min(contrast(text_on(cell), hexed(cell)) for cell in (diverging(i / 50, theme) for i in range(-50, 51)))
    assert worst > 4.2


def test_text_is_light_on_dark_and_dark_on_light():
    assert text_on((0, 0, 0)) == "#FFFFFF"
    assert text_on((255, 255, 255)) == "#111418"


# Everything else has no hue, and is readable.


@pytest.mark.parametrize(
    ("theme", "name", "least"),
    [("light", "ink", 16), ("light", "ink2", 6), ("light", "ink3", 5), ("light", "accent", 5.5), ("light", "err", 6),
     ("dark", "ink", 13), ("dark", "ink2", 7.5), ("dark", "ink3", 5.7), ("dark", "accent", 9.5), ("dark", "err", 8)],
)  # fmt: skip
def test_words_can_be_read_on_both_backgrounds(theme, name, least):
    for ground in ("bg", "bg1"):
        assert contrast(TOKENS[theme][name], TOKENS[theme][ground]) >= least


@pytest.mark.parametrize(("theme", "least"), [("light", 14), ("dark", 9)])
def test_words_can_be_read_on_the_mark(theme, least):
    assert contrast(TOKENS[theme]["ink"], TOKENS[theme]["mark"]) >= least


def test_both_themes_have_the_same_colours():
    assert TOKENS["light"].keys() == TOKENS["dark"].keys()
    assert all(len(colour) == 7 and colour == colour.upper() for theme in THEMES for colour in TOKENS[theme].values())


# Numbers.


@pytest.mark.parametrize(
    ("value", "cell", "readout"),
    [
        (0.96, ".96", "+0.96"),
        (-0.39, "−.39", "−0.39"),
        (1.037, "1.04", "+1.04"),
        (-1.0, "−1.00", "−1.00"),
        (0.999, "1.00", "+1.00"),
        (CELL_LEAST, ".01", "+0.01"),
        (0.0149, "", "+0.01"),
        (0.0, "", "0.00"),
        (-0.0, "", "0.00"),
        (-0.004, "", "0.00"),
        (12.345, "12.35", "+12.35"),
        (math.nan, "", "no value"),
        (math.inf, "", "no value"),
    ],
)
def test_numbers_as_cells_and_read_outs_show_them(value, cell, readout):
    assert cell_number(value) == cell
    assert readout_number(value) == readout


@given(st.floats(-100, 100))
def test_a_number_can_be_read_back(value):
    for text in (cell_number(value), readout_number(value)):
        if text:
            assert float(text.replace("−", "-")) == pytest.approx(value, abs=0.00501)
            assert "-" not in text


# The front end's copy.


def test_the_front_end_has_the_same_colours():
    assert GENERATED.read_text(encoding="utf-8") == typescript(), (
        "python -m nbpatch.view.style > js/src/style.generated.ts"
    )


def test_the_command_prints_the_copy_and_loads_nothing_heavy():
    program = (
        "import runpy, sys; runpy.run_module('nbpatch.view.style', run_name='__main__');"
        "assert not {'matplotlib', 'torch', 'xarray', 'numpy'} & {*sys.modules}, 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == typescript()
