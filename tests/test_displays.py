"""What the widget cannot say truly is a picture: no widget, no page, and a refusal that says why."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from oracle_ablation import PAIRS, model_of
from test_plots import texts
from test_result import result

import nbpatch as nbp
from nbpatch.errors import ResultError
from nbpatch.result import Result, read

WIDGET = "application/vnd.jupyter.widget-view+json"


def patched(*asked: Any, **options: Any) -> Result:
    return nbp.patch(model_of("tiny", "auto"), PAIRS["tiny"], *asked, **options)


def sites() -> Result:
    return nbp.patch_sites(model_of("tiny", "auto"), PAIRS["tiny"], ["z[3.1] @ END", ["resid_pre[2] @ 3", "z[1.0]"]])


def mediated(**options: Any) -> Result:
    return nbp.mediate(model_of("tiny", "auto"), PAIRS["tiny"], "z", **options)


PICTURES = {
    "corruption noise": lambda: patched("resid_pre", corruption=nbp.Noise("subject", n=2)),
    "windows of 2 layers": lambda: patched("mlp_out", window=2),
    "axis label": lambda: patched("z", "layer head label", direction="both"),
    "axis neuron": lambda: patched("mlp_post", "layer neuron"),
    "axis site": sites,
    "axis set": lambda: mediated(select="top", k=2),
    "kind NDE of effect": lambda: nbp.of_kind(mediated(), "NDE"),
    "a result of path_patch": lambda: nbp.path_patch(model_of("tiny", "auto"), PAIRS["tiny"][:1], "z", "logits"),
    "a result of logit_lens": lambda: nbp.logit_lens(model_of("tiny", "auto"), PAIRS["tiny"]),
    "a result of compare": lambda: nbp.compare(model_of("tiny", "auto"), PAIRS["tiny"], "z", metrics="kl"),
}
SHOWN = {
    "layer pos": lambda: patched("resid_pre"),
    "both": lambda: patched("z", direction="both"),
    "all layers": lambda: patched("resid_pre", "pos"),
    "zero": lambda: patched("z", corruption=nbp.Zero()),
    "mean": lambda: patched("mlp_out", corruption=nbp.Mean()),
    "one layer": lambda: patched("mlp_out", window=1),
    "mediation": mediated,
    "NIE": lambda: nbp.of_kind(mediated(), "NIE"),
}


@cache
def made(kind: str) -> Result:
    return {**PICTURES, **SHOWN}[kind]()


FIRST = 'nbp.of_corruption(result, "…")'


@pytest.mark.parametrize("why", PICTURES)
@pytest.mark.parametrize("alive", [True, False], ids=["live", "saved"])
def test_what_the_widget_cannot_say_truly_is_a_picture(why, alive, tmp_path):
    one = made(why)
    one = one if alive else read(one.save(tmp_path / "one.nc"))
    bundle, _ = one._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png"}
    for where, call in (("show", one.show), ("to_html", lambda: one.to_html(tmp_path / "one.html"))):
        with pytest.raises(ResultError) as caught:
            call()
        assert str(caught.value) == (
            "the widget shows single places, patched with values of the other prompt or of an ablation.\n"
            f"  in     {where}\n  seen   {why}\n  try    {FIRST if 'compare' in why else 'result.plot()'}"
        )
    assert not (tmp_path / "one.html").exists()


@pytest.mark.parametrize("kind", SHOWN)
def test_everything_else_keeps_its_widget(kind, tmp_path):
    one = made(kind)
    assert set(one._repr_mimebundle_()[0]) == {"text/plain", "image/png", WIDGET}
    assert one.to_html(tmp_path / "one.html").exists()
    assert set(read(one.save(tmp_path / "one.nc"))._repr_mimebundle_()[0]) == {"text/plain", "image/png", WIDGET}


def test_attention_has_no_page(tmp_path):
    patterns = nbp.attention(model_of("tiny", "auto"), PAIRS["tiny"][0])
    with pytest.raises(ResultError, match="a result of attention"):
        patterns.to_html(tmp_path / "one.html")


# What their pictures say.


@pytest.mark.parametrize("why", [why for why in PICTURES if why != "a result of compare"])
def test_nothing_leaves_their_page(why):
    figure = made(why).plot()
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in figure.findobj(lambda one: hasattr(one, "get_text")):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent(renderer)
            assert box.x0 >= 0, text.get_text()
            assert box.x1 <= figure.bbox.x1, text.get_text()


def test_windows_are_named_below_the_map():
    said = " ".join(texts(made("windows of 2 layers").plot()))
    assert "mlp_out over layer pos, 2 adjacent layers together" in said
    assert "adjacent" not in " ".join(texts(made("one layer").plot()))


def test_the_rows_axes_are_named_once_beside_two_maps():
    assert texts(made("axis label").plot()).count("layer · head") == 1


def test_the_name_of_a_set_of_many_sites_is_cut():
    one = made("axis site")
    long = one.data.assign_coords(site=["z[3.1] @ END", " + ".join(f"z[{layer}.0]" for layer in range(40))])
    figure = replace(one, data=long).plot()
    assert any(text.startswith("z[0.0] + z[1.0]") and text.endswith("…") for text in texts(figure))
    assert figure.get_size_inches()[0] < 14


def test_each_row_of_a_growing_set_says_what_joined_it():
    one = made("axis set")
    first, second = one.data["set"].to_numpy()
    assert {str(first), f"+ {second}"} <= set(texts(one.plot()))


def test_rows_of_layers_keep_their_place():
    """The maps of usual axes begin 1.2 inches from the left."""
    figure = result().plot()
    assert figure.axes[0].get_position().x0 * figure.get_size_inches()[0] == pytest.approx(1.2)


def test_direct_and_total_effects_ask_their_own_question():
    said = " ".join(texts(made("kind NDE of effect").plot())).replace("\u00a0", " ")
    assert "Past which attention heads does the corrupted prompt change" in said
    assert "each one’s output is kept as it is on the clean prompt" in said
    total = " ".join(texts(nbp.of_kind(made("mediation"), "TE").plot())).replace("\u00a0", " ")
    assert "How much does the corrupted prompt change" in total
    assert "· NIE ·" in " ".join(texts(made("mediation").plot()))
