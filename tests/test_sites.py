"""Components, axes, the site grammar, the shape of a model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpatch.errors import SiteError
from nbpatch.sites import (
    COMPONENTS,
    SWEEPABLE,
    ModelShape,
    Site,
    check_site,
    component_of,
    default_over,
    parse_over,
    parse_site,
)

SHAPE = ModelShape(n_layers=4, n_heads=8, n_kv_heads=2, d_model=64, d_head=8, d_mlp=256, d_vocab=100, n_ctx=32)


def test_the_sweepable_components_are_the_ones_of_the_engine() -> None:
    assert SWEEPABLE == (
        "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "mlp_post",
    )  # fmt: skip


@pytest.mark.parametrize("name", SWEEPABLE)
def test_every_sweepable_component_has_a_hook_and_usual_axes(name: str) -> None:
    assert COMPONENTS[name].hook
    assert parse_over(name, None) == default_over(name)
    assert set(default_over(name)) <= set(COMPONENTS[name].axes)


@pytest.mark.parametrize(
    ("text", "pos"),
    [("resid_pre[2] @ S2", "S2"), ("z[1.0] @ last subject token", "last subject token"), ("z[1.0] @ S1+1", "S1+1")],
)
def test_a_label_is_a_position(text: str, pos: str) -> None:
    site = parse_site(text)
    assert site.pos == pos
    assert str(site) == text
    assert parse_site(str(site)) == site


def test_label_stands_where_pos_would() -> None:
    assert parse_over("resid_pre", "label layer") == ("layer", "label")
    assert parse_over("z", "label head layer") == ("layer", "head", "label")
    with pytest.raises(SiteError, match="no axis 'label'"):
        parse_over("pattern", "layer label")
    with pytest.raises(SiteError, match="no axis 'label'"):
        parse_over("resid_pre", "pos label")


@pytest.mark.parametrize("over", ["head layer", "layer, head", ["head", "layer"], " layer  head "])
def test_over_is_read_in_any_form_and_order(over: str | list[str]) -> None:
    assert parse_over("z", over) == ("layer", "head")


@pytest.mark.parametrize(
    ("component", "over", "hint"),
    [
        ("z", "layer haed", 'did you mean "head"?'),
        ("pattern", "layer head pos", '"dest" (the position that looks) or "src" (the position looked at)'),
        ("resid_pre", "layer head", "one of: layer, pos"),
        ("z", "", 'over="layer head"'),
        ("z", "head head", 'over="layer head"'),
    ],
)
def test_a_wrong_axis_says_what_to_type(component: str, over: str, hint: str) -> None:
    with pytest.raises(SiteError) as caught:
        parse_over(component, over)
    assert caught.value.fix == hint


def test_unknown_components_are_refused_with_names() -> None:
    with pytest.raises(SiteError) as caught:
        component_of("resid_per")
    assert caught.value.fix == 'did you mean "resid_pre"?'


def test_key_value_heads_are_labelled_only_where_they_are_shared() -> None:
    assert SHAPE.head_labels("k") == ("kv0", "kv1")
    assert SHAPE.head_labels("q") == tuple(range(8))
    full = ModelShape(4, 8, 8, 64, 8, 256, 100, 32)
    assert full.head_labels("v") == tuple(range(8))


def test_a_head_outside_the_model_is_refused_as_in_the_style_guide() -> None:
    with pytest.raises(SiteError) as caught:
        check_site(parse_site("z[3.14] @ END"), SHAPE)
    assert str(caught.value) == (
        "no head 14 in layer 3.\n"
        '  in     "z[3.14] @ END"\n'
        "  model  4 layers, 8 heads (0–7)\n"
        '  try    "z[3.*] @ END" for all heads of layer 3'
    )


def test_a_layer_outside_the_model_is_refused() -> None:
    with pytest.raises(SiteError, match="no layer 9"):
        check_site(parse_site("resid_pre[9]"), SHAPE)
    assert check_site(parse_site("k[3.1]"), SHAPE) == Site("k", 3, 1)


@pytest.mark.parametrize("text", ["", "z[", "z[1.2.3]", "nothing[1]", "resid_pre[1.2]", "z[1.2] <- 3", "z @ <"])
def test_what_is_no_site_is_refused(text: str) -> None:
    with pytest.raises(SiteError):
        parse_site(text)


@st.composite
def sites(draw: st.DrawFn) -> Site:
    component = draw(st.sampled_from(sorted(COMPONENTS)))
    axes = COMPONENTS[component].axes
    index = st.none() | st.integers(0, 99)
    return Site(
        component,
        draw(index),
        draw(index) if "head" in axes else None,
        draw(index | st.just("END")),
        draw(index) if "src" in axes else None,
    )


@given(sites())
def test_a_site_is_read_back_as_it_is_printed(site: Site) -> None:
    assert parse_site(str(site)) == site
