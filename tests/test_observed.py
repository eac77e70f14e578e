"""Figures of what was observed: both runs side by side, each cell the metric itself, colours by its sign."""

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from test_lens import TINY
from test_plots import like, marked, texts

import nbpatch as nbp
from nbpatch.errors import ResultError
from nbpatch.result import Result, read
from nbpatch.view import observed
from nbpatch.view.style import diverging, readout_number

RUNS = ("clean", "corrupted")


@pytest.fixture(scope="module")
def looked(tiny) -> Result:
    return nbp.logit_lens(tiny, TINY)


@pytest.fixture(scope="module")
def parts(tiny) -> Result:
    return nbp.direct_logit_attribution(tiny, TINY[:1])


@pytest.fixture(scope="module")
def heads(tiny) -> Result:
    return nbp.direct_logit_attribution(tiny, TINY[:1], by="head")


@pytest.fixture(params=["looked", "parts", "heads"])
def each(request) -> Result:
    return request.getfixturevalue(request.param)


def maps(figure: Figure) -> list[Any]:
    """The axes of the two maps; the colour scale comes last."""
    return figure.axes[:-1]


def pixels(axes: Any) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def table(result: Result, run: str) -> np.ndarray:
    values = result.data[result.metrics[0]].mean("pair").sel(run=run).to_numpy()
    return values if values.ndim > 1 else values[:, None]


def drawn_as(result: Result, axes: Any, run: str, limit: float) -> None:
    """Checks that each cell has the colour of its value, and that those without one are hatched."""
    values = table(result, run)
    found = pixels(axes)
    assert found.shape[:2] == values.shape
    for row, column in np.argwhere(np.isfinite(values)):
        assert like(found[row, column], diverging(values[row, column] / limit)), (run, row, column)
    hatched = [tuple(patch.get_xy()) for patch in axes.patches if patch.get_hatch()]
    wanted = [(column, row) for row, column in np.argwhere(~np.isfinite(values))]
    np.testing.assert_allclose(np.reshape(hatched, (-1, 2)), np.reshape(wanted, (-1, 2)))


def test_each_cell_has_the_colour_of_its_metric_on_one_scale(each):
    figure = observed.plot(each)
    limit = max(float(np.nanmax(np.abs(table(each, run)))) for run in RUNS)
    assert len(maps(figure)) == 2
    for axes, run in zip(maps(figure), RUNS, strict=True):
        drawn_as(each, axes, run, limit)
    assert {f"{readout_number(limit)} logit", "0", readout_number(-limit)} <= set(texts(figure))


def test_what_speaks_for_the_answer_is_blue_and_what_speaks_against_it_red(parts):
    values, found = table(parts, "clean"), pixels(maps(observed.plot(parts))[0]).astype(int)
    for row in np.flatnonzero(np.abs(values[:, 0]) > 0.2 * np.abs(values).max()):
        red, _, blue = found[row, 0]
        assert (blue > red) == (values[row, 0] > 0)
    assert (values > 0).any()
    assert (values < 0).any()


def test_a_cell_without_a_value_is_hatched_and_holds_no_number(looked):
    data = looked.data.copy(deep=True)
    data["logit_diff"][{"run": 0, "layer": 1, "pos": 3}] = np.nan
    axes = maps(observed.plot(replace(looked, data=data)))[0]
    (hatched,) = [patch for patch in axes.patches if patch.get_hatch()]
    assert hatched.get_xy() == (3, 1)
    assert not any(text.get_position() == (3.5, 1.52) for text in axes.texts)


def test_wide_cells_hold_their_numbers(parts):
    values = table(parts, "clean")
    shown = [text.get_text() for text in maps(observed.plot(parts))[0].texts]
    most = max(np.abs(table(parts, run)).max() for run in RUNS)
    assert shown == [readout_number(value) for value in values.ravel() if abs(value) >= 0.02 * most]


def test_the_rows_are_depths_or_parts_and_the_columns_tokens_or_heads(looked, parts, heads):
    said = texts(observed.plot(looked))
    assert {"layer 0_pre", "layer final_post", "clean", "corrupted"} <= set(said)
    assert {"embed", "bias", "0_attn_out", "3_mlp_out"} <= set(texts(observed.plot(parts)))
    assert {"layer 0", "layer 3", "head 0", "3"} <= set(texts(observed.plot(heads)))


def test_each_run_has_its_own_tokens_in_full_and_those_that_differ_are_marked(looked):
    figure = observed.plot(looked)
    said = texts(figure)
    assert said.count("bos") == 2
    assert "<bos>" not in said
    assert not any(text.endswith("…") for text in said)
    pair = looked.provenance["pairs"][0]
    for run in RUNS:
        assert {token.replace(" ", "·") for token in pair[f"{run}_tokens"][1:]} <= set(said)
    assert marked(figure) == 2 * len(pair["differs"])
    upright = {text.get_text() for text in figure.texts if text.get_rotation()}
    assert {"bos", "·Mary", "·store"} <= upright


def test_a_few_short_tokens_lie_flat(tiny):
    figure = observed.plot(nbp.logit_lens(tiny, TINY[1]))
    assert not any(text.get_rotation() for text in figure.texts)
    assert "bos" in texts(figure)


def test_the_question_the_pairs_and_that_nothing_was_patched_are_said(looked, parts):
    said = " ".join(texts(observed.plot(looked)))
    assert "What would the model answer if it stopped at each depth?" in said
    assert "logit difference, ·Mary over ·John · tiny · mean of 2 pairs, the first shown · nothing was patched" in said
    said = " ".join(texts(observed.plot(parts)))
    assert "What does each part write onto the answer?" in said
    assert "tiny · 1 pair · nothing was patched" in said


def test_another_metric_has_its_own_numbers_and_unit(tiny):
    result = nbp.logit_lens(tiny, TINY, metric=["logit_diff", "prob"])
    assert any(text.endswith(" prob") for text in texts(result.plot("prob")))
    assert any(text.endswith(" logit") for text in texts(result.plot()))
    with pytest.raises(ResultError, match="no metric 'kl'") as caught:
        result.plot("kl")
    assert caught.value.fix


def test_a_result_plots_itself_and_its_notebook_display_is_that_picture(each):
    assert texts(each.plot()) == texts(observed.plot(each))
    bundle, metadata = each._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png"}
    assert metadata == {}
    assert bundle["text/plain"] == repr(each)
    picture = imread(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert (picture[0, :] == 1).all()
    assert picture.min() < 0.5


def test_saved_and_read_again_it_is_drawn_the_same(each, tmp_path):
    again = read(each.save(tmp_path / "found.nc"))
    one, other = each.plot(), again.plot()
    assert texts(one) == texts(other)
    for mine, its in zip(maps(one), maps(other), strict=True):
        np.testing.assert_array_equal(pixels(mine), pixels(its))


def test_no_text_leaves_the_page_or_lies_on_another(each):
    figure = observed.plot(each)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts if text.get_text()]
    for number, (text, box) in enumerate(boxes):
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
        for other, its in boxes[:number]:
            wide, high = min(box.x1, its.x1) - max(box.x0, its.x0), min(box.y1, its.y1) - max(box.y0, its.y0)
            assert min(wide, high) < 1.5, (text, other)


def test_nothing_to_draw_is_drawn_as_nothing(looked):
    empty = replace(
        looked, data=looked.data.copy(data={"logit_diff": np.full(looked.data["logit_diff"].shape, np.nan)})
    )
    for axes in maps(observed.plot(empty)):
        assert len([patch for patch in axes.patches if patch.get_hatch()]) == pixels(axes)[..., 0].size
        assert not axes.texts
