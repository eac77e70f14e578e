"""The figure of a causal trace: colours, lines and bands at the numbers, in both themes, nothing over anything else."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection, PathCollection
from matplotlib.figure import Figure
from oracle_ablation import model_of

import nbpatch as nbp
from nbpatch.errors import ResultError
from nbpatch.methods.tracing import trace
from nbpatch.result import STATES, Result, read
from nbpatch.view.style import TOKENS, cell_number, diverging, rgb, text_on
from nbpatch.view.tracing import plot_trace

KINDS = ("hidden", "mlp", "attn", "hidden, mlp severed", "hidden, attn severed")


def fact(clean: str, subject: str, answer: str) -> nbp.PromptPair:
    return nbp.PromptPair(clean, clean, answer, labels={"subject": subject})


FACTS = [
    fact("The Eiffel Tower is located in", "Eiffel Tower", " Paris"),
    fact("The capital of Greece is", "Greece", " Athens"),
    fact("The Red Square is located in", "Red Square", " Moscow"),
]


def traced(facts, **options) -> Result:
    return trace(model_of("tiny", "auto"), facts, noise=nbp.Noise("subject", n=2), window=2, **options)


@pytest.fixture(scope="module")
def roles() -> Result:
    return traced(FACTS, severed=("mlp", "attn"))


@pytest.fixture(scope="module")
def figures(roles) -> dict[str, Figure]:
    return {theme: plot_trace(roles, theme=theme) for theme in ("light", "dark")}


@pytest.fixture(scope="module")
def one() -> Result:
    return traced(FACTS[0])


def maps(figure) -> list:
    """Returns the axes of the maps, in the order of the kinds; the last picture is the scale."""
    return [axes for axes in figure.axes if axes.images][:-1]


def lines(figure) -> list:
    return [axes for axes in figure.axes if not axes.images]


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def numbers_beside(axes) -> list:
    """Returns the numbers of an axis that are drawn: those within its ends."""
    low, high = axes.get_ylim()
    return [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]


def stretched(result: Result, layers: int) -> Result:
    """The same numbers over more layers, as of a larger model."""
    chosen = np.linspace(0, result.data.sizes["layer"] - 1, layers).round().astype(int)
    return replace(result, data=result.data.isel(layer=chosen).assign_coords(layer=np.arange(layers)))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_the_effects_on_one_scale(roles, figures, theme):
    figure = figures[theme]
    effect, state = roles.effect().transpose("kind", "role", "layer"), roles.data["state"]
    still = (state == STATES.index("exact")).any("pair") & (state != STATES.index("measured")).all("pair")
    still = still.transpose("kind", "role", "layer").to_numpy()
    (limit,) = [float(text[1:]) for text in texts(figure) if text.startswith("+")]
    assert 1 <= limit / float(abs(effect).max()) < 1.6
    assert "prob" in texts(figure)
    assert len(maps(figure)) == len(KINDS)
    for kind, axes in enumerate(maps(figure)):
        pixels = np.asarray(axes.images[0].get_array())
        for row, layer in np.ndindex(6, 4):
            value = float(effect[kind, row, layer])
            blank = still[kind, row, layer] or not np.isfinite(value)
            wanted = rgb(TOKENS[theme]["bg"]) if blank else diverging(value / limit, theme)
            np.testing.assert_allclose(pixels[row, layer], wanted, atol=1)
        for number in axes.texts:
            column, row = (int(place) for place in number.get_position())
            assert number.get_text() == cell_number(float(effect[kind, row, column]))
            assert number.get_color() == text_on(diverging(float(effect[kind, row, column]) / limit, theme))


def test_cells_without_a_number_are_hatched_and_unmoved_ones_dotted(roles, figures):
    effect, state = roles.effect(), roles.data["state"]
    still = (state == STATES.index("exact")).any("pair") & (state != STATES.index("measured")).all("pair")
    for kind, axes in zip(KINDS, maps(figures["light"]), strict=True):
        (hatched,) = [one for one in axes.collections if isinstance(one, PatchCollection)]
        (dots,) = [one for one in axes.collections if isinstance(one, PathCollection)]
        assert len(hatched.get_paths()) == int(effect.sel(kind=kind).isnull().sum()) > 0
        assert len(dots.get_offsets()) == int(still.sel(kind=kind).sum())


def test_lines_are_means_and_bands_their_intervals(roles, figures):
    effect = roles.effect(per_pair=True)
    drawn = lines(figures["light"])
    assert len(drawn) == len(KINDS)
    assert len({axes.get_ylim() for axes in drawn}) == 1
    for kind, axes in zip(KINDS, drawn, strict=True):
        for role in ("last subject token", "last token"):
            own = effect.sel(kind=kind, role=role)
            (line,) = [one for one in axes.lines if one.get_label() == role]
            np.testing.assert_allclose(line.get_xdata(), np.arange(4) + 0.5)
            np.testing.assert_allclose(line.get_ydata(), own.mean("pair"))
        band = axes.collections[-1].get_datalim(axes.transData)
        # Each of three facts alone makes up 1 of 27 resamples, more than the 2.5 % beyond each bound.
        assert band.y0 == pytest.approx(float(own.min()), abs=1e-6)
        assert band.y1 == pytest.approx(float(own.max()), abs=1e-6)


def test_facts_on_their_positions_have_the_lines_of_their_roles():
    same = [FACTS[0], FACTS[2]]
    by_pos, by_role = (lines(plot_trace(traced(same, kinds="hidden", by=by)))[0] for by in ("pos", "role"))
    for left, right in zip(by_pos.lines, by_role.lines, strict=True):
        np.testing.assert_allclose(left.get_ydata(), right.get_ydata(), atol=1e-6)


def test_a_group_of_facts_keeps_the_roles_of_its_own():
    """Of three facts on the same positions the first, of another group, has its last subject token elsewhere."""
    prompts, subjects = (FACTS[2], FACTS[0], FACTS[2]), ("The Red", "Eiffel Tower", "Red Square")
    facts = [
        replace(one, labels={"subject": subject}, group="in" if number else "out")
        for number, (one, subject) in enumerate(zip(prompts, subjects, strict=True))
    ]
    group = traced(facts, kinds="hidden", by="pos").of_group("in")
    (axes,) = lines(plot_trace(group))
    wanted = group.effect().sel(kind="hidden", pos=3)
    np.testing.assert_allclose(axes.lines[1].get_ydata(), wanted, atol=1e-9)


def test_one_fact_has_its_tokens_as_rows_those_with_noise_marked_and_no_lines(one):
    figure = plot_trace(one)
    assert lines(figure) == []
    rows = {text.get_text(): text for text in figure.texts}
    assert [rows[f"·{name}"].get_fontweight() for name in ("Eiffel", "Tower", "is")] == ["bold", "bold", "normal"]
    assert len([box for box in figure.artists if box.get_facecolor()[:3] == _colour("mark")]) == 2
    assert any("brings ·Paris back after noise on “Eiffel Tower”" in text for text in rows)


def _colour(name: str) -> tuple[float, ...]:
    return tuple(part / 255 for part in rgb(TOKENS["light"][name]))


def test_what_is_said_around_it(roles, figures):
    written = texts(figures["light"])
    said = " ".join(written)
    assert "Which state brings 3 facts back" in said
    total = float(roles.gap().mean())
    assert f"Average total effect of the noise: {total:.2f} prob" in said
    assert "band: 95 % bootstrap interval over 3 facts" in said
    for name in ("hidden state", "MLP output, 2 layers", "attention output, 2 layers"):
        assert name in written
    assert "severed" in said
    bare = texts(plot_trace(replace(roles, data=roles.data.isel(kind=[0])), title=False))
    assert not any(one.startswith(("Which state", "Average total", "dot:", "tiny")) for one in bare)


def test_unknown_facts_are_counted():
    more = [*FACTS, fact("The Louvre is located in", "Louvre", " Rome")]
    said = " ".join(texts(plot_trace(traced(more, kinds="hidden"))))
    assert "3 facts, 1 unknown left out" in said


def test_another_metric_has_its_own_scale_and_unit():
    pairs = [nbp.PromptPair(one.clean, one.clean, one.answer, " Lima", labels=one.labels) for one in FACTS]
    result = traced(pairs, kinds="hidden", metric=["prob", "logit_diff"])
    figure = plot_trace(result, "logit_diff")
    assert "logit" in texts(figure)
    assert max(float(text[1:]) for text in texts(figure) if text.startswith("+")) > 1


@pytest.mark.parametrize("which", ["roles", "one", "single", "large", "large one"])
def test_no_text_lies_on_another_or_outside(request, which):
    name = "one" if which.endswith("one") else "roles"
    result = request.getfixturevalue(name)
    if which == "single":
        result = replace(result, data=result.data.isel(kind=[3]))
    if which.startswith("large"):
        result = stretched(result, 48)
    figure = plot_trace(result)
    renderer = FigureCanvasAgg(figure).get_renderer()
    drawn = [*figure.texts, *(label for axes in lines(figure) for label in numbers_beside(axes))]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in drawn if text.get_text()]
    assert len(boxes) > 15
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for (left, first), (right, second) in itertools.combinations(boxes, 2):
        assert not first.overlaps(second), (left, right)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_can_be_read_on_the_page(figures, theme):
    figure = figures[theme]
    page = np.array(figure.get_facecolor()[:3]) * 255
    np.testing.assert_allclose(page, rgb(TOKENS[theme]["bg"]), atol=1)
    for text in figure.texts:
        assert np.abs(np.array(rgb(text.get_color())) - page).max() > 90, text.get_text()


def test_a_saved_trace_is_drawn_the_same(roles, figures, tmp_path):
    again = read(roles.save(tmp_path / "trace.nc"))
    assert texts(plot_trace(again)) == texts(figures["light"])


def test_a_trace_without_any_effect_is_drawn(one):
    flat = replace(one, data=one.data.copy(data={"prob": np.full(one.data["prob"].shape, np.nan)}))
    assert len(maps(plot_trace(flat))) == 3


def test_what_cannot_be_drawn_is_refused(roles):
    model = model_of("tiny", "auto")
    plain = nbp.patch(model, nbp.PromptPair(FACTS[0].clean, FACTS[2].clean, " Paris", " Moscow"), "resid_post")
    with pytest.raises(ResultError, match="draws a causal trace") as caught:
        plot_trace(plain)
    assert caught.value.seen == "a result of patch"
    with pytest.raises(ResultError, match="no theme 'drak'") as caught:
        plot_trace(roles, theme="drak")
    assert caught.value.fix == 'did you mean "dark"?'
    with pytest.raises(ResultError, match="no metric 'kl'"):
        plot_trace(roles, "kl")
