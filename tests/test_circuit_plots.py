"""What is drawn and written of circuits: a curve for each edge, a box for each node, a band for the random ones."""

import base64
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyBboxPatch, PathPatch
from test_graph import GROUPED as SHARED
from test_graph import SMALL as PAIRED
from test_graph import scored

from nbpatch.errors import ResultError
from nbpatch.graph import Circuit, Graph, random_circuit
from nbpatch.result import Result
from nbpatch.view import circuits, scatter
from nbpatch.view.style import TOKENS, diverging

SMALL = Graph(3, 4, 4, (False,) * 3)
GROUPED = Graph(2, 4, 2, (True, True))
GPT2 = Graph(12, 12, 12, (False,) * 12)


def found(graph: Graph, n_edges: int, *, positions: int = 0) -> Circuit:
    circuit = random_circuit(graph, n_edges, seed=1, positions=positions)
    scores = np.where(circuit.kept, np.random.default_rng(0).normal(size=circuit.kept.shape), np.nan)
    return replace(circuit, scores=scores, provenance={"method": "eap", "model": {"name": "tiny"}})


def curves(figure) -> dict[str, PathPatch]:
    return {one.get_gid(): one for one in figure.axes[0].patches if isinstance(one, PathPatch)}


def boxes(figure) -> dict[str, FancyBboxPatch]:
    return {one.get_gid(): one for one in figure.axes[0].patches if isinstance(one, FancyBboxPatch)}


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def rendered(figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def colour(value) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in value[:3])


# -- circuits


@pytest.mark.parametrize("dark", [False, True])
def test_every_edge_is_a_curve_in_the_colour_and_width_of_its_score(dark):
    circuit = found(SMALL, 20)
    drawn, edges = curves(circuit.plot(dark=dark)), circuit.edges
    assert set(drawn) == {str(edge) for edge in edges}
    widths = [drawn[str(edge)].get_linewidth() for edge in edges]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == len(edges)
    strongest = edges[0]
    expected = diverging(np.sign(strongest.score), "dark" if dark else "light")
    assert colour(drawn[str(strongest)].get_edgecolor()) == expected
    for edge in edges:
        red, _, blue = colour(drawn[str(edge)].get_edgecolor())
        assert (blue > red) == (edge.score > 0), edge


def test_stronger_edges_lie_above_weaker_ones():
    circuit = found(SMALL, 20)
    drawn = curves(circuit.plot())
    orders = [drawn[str(edge)].get_zorder() for edge in circuit.edges]
    assert orders == sorted(orders, reverse=True)
    assert orders[0] > orders[-1]


def test_nodes_of_the_circuit_have_their_names_and_others_are_faint():
    circuit = found(SMALL, 6)
    figure = circuit.plot()
    names, drawn = {str(node) for node in circuit.nodes}, boxes(figure)
    assert set(drawn) == {*SMALL.sender_names, "logits", "legend"}
    assert names < set(drawn)
    assert names <= set(texts(figure))
    for text in figure.texts:
        if text.get_text() in names:
            box, (x, y) = drawn[text.get_text()].get_bbox(), text.get_position()
            middle = x * figure.get_figwidth(), (1 - y) * figure.get_figheight()
            assert middle == pytest.approx(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))
    faint = {name for name, box in drawn.items() if colour(box.get_edgecolor()) == _rgb("line")}
    assert faint == set(drawn) - names - {"legend"}
    assert not faint & set(texts(figure))


def _rgb(name: str, theme: str = "light") -> tuple[int, ...]:
    text = TOKENS[theme][name]
    return tuple(int(text[at : at + 2], 16) for at in (1, 3, 5))


def test_nodes_stand_by_layer_and_head():
    drawn = {name: box.get_bbox() for name, box in boxes(found(SMALL, 20).plot()).items()}
    heights = [drawn[name].y0 for name in ("logits", "m2", "a2.0", "m1", "a1.0", "m0", "a0.0", "embed")]
    assert heights == sorted(heights)
    assert drawn["a1.0"].y0 == drawn["a1.3"].y0
    across = [drawn[name].x0 for name in ("a1.0", "a1.1", "a1.2", "a1.3", "m1")]
    assert across == sorted(across)


def test_queries_keys_and_values_end_at_three_places_below_their_head():
    kept = np.zeros(SMALL.possible.shape, bool)
    names = ["a2.1.q", "a2.1.k", "a2.1.v"]
    for name in names:
        kept[SMALL.sender_names.index("a0.3"), SMALL.input_names.index(name)] = True
    figure = Circuit(SMALL, np.where(kept, 1.0, np.nan), kept).plot()
    ends = [curves(figure)[f"a0.3->{name}"].get_path().vertices[-1] for name in names]
    box = boxes(figure)["a2.1"].get_bbox()
    places = [(x - box.x0) / (box.x1 - box.x0) for x, _ in ends]
    np.testing.assert_allclose(places, [0.2, 0.5, 0.8])
    np.testing.assert_allclose([y for _, y in ends], max(box.y0, box.y1))
    start = curves(figure)["a0.3->a2.1.q"].get_path().vertices[0]
    sender = boxes(figure)["a0.3"].get_bbox()
    np.testing.assert_allclose(start, ((sender.x0 + sender.x1) / 2, min(sender.y0, sender.y1)))


def test_only_the_strongest_of_many_are_drawn_and_the_foot_says_so():
    circuit = found(GPT2, 300)
    figure = circuit.plot()
    assert set(curves(figure)) == {str(edge) for edge in circuit.edges[:150]}
    assert "drawn: the strongest 150 of 300 edges · nbpatch" in texts(figure)
    assert not any("drawn" in text for text in texts(found(GPT2, 150).plot()))


def test_positions_are_summed_and_the_foot_says_so():
    circuit = found(SMALL, 30, positions=3)
    figure = circuit.plot()
    assert set(curves(figure)) == {str(edge) for edge in circuit.summed().edges}
    assert "scores of the kept edges summed over 3 positions · nbpatch" in texts(figure)
    # What was scored and not kept adds nothing.
    more = replace(circuit, scores=np.where(circuit.kept, circuit.scores, 100.0))
    most = max(abs(edge.score) for edge in circuit.summed().edges)
    assert f"+{most:.2g}" in texts(figure)
    assert texts(figure) == texts(more.plot())


def test_edges_without_a_score_are_grey():
    figure = random_circuit(SMALL, 8, seed=0).plot()
    assert {colour(one.get_edgecolor()) for one in curves(figure).values()} == {_rgb("edge")}
    assert "grey: no score · nbpatch" in texts(figure)
    assert "score" not in texts(figure)


def test_shared_keys_and_values_end_at_a_bar_below_their_heads():
    circuit = found(GROUPED, 40)
    figure = circuit.plot()
    shared = {str(edge.receiver): edge for edge in circuit.edges if edge.grouped}
    bars = {name for name in boxes(figure) if ".kv" in name}
    assert bars == {f"a{edge.receiver.layer}.kv{edge.receiver.head}" for edge in shared.values()}
    bar, heads = boxes(figure)["a1.kv1"].get_bbox(), [boxes(figure)[name].get_bbox() for name in ("a1.2", "a1.3")]
    assert bar.x0 <= heads[0].x0 + 1e-9 < heads[1].x1 <= bar.x1 + 1e-9
    assert min(bar.y0, bar.y1) > max(heads[0].y0, heads[0].y1)
    assert any("share" in text for text in texts(figure))
    for edge in shared.values():
        bar = boxes(figure)[f"a{edge.receiver.layer}.kv{edge.receiver.head}"].get_bbox()
        x, y = curves(figure)[str(edge)].get_path().vertices[-1]
        assert bar.x0 < x < bar.x1
        assert y == pytest.approx(max(bar.y0, bar.y1))


def test_the_headline_stands_above_and_may_be_left_out():
    circuit = found(SMALL, 12)
    assert circuit.headline() in texts(circuit.plot())
    assert circuit.headline() not in texts(circuit.plot(title=False))


def test_an_empty_circuit_is_drawn_faint():
    figure = random_circuit(SMALL, 0, seed=0).plot()
    assert curves(figure) == {}
    assert colour(boxes(figure)["logits"].get_edgecolor()) == _rgb("line")


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_has_the_theme_and_nothing_leaves_it(dark):
    theme = "dark" if dark else "light"
    figure = found(GPT2, 60).plot(dark=dark)
    pixels = rendered(figure)
    assert tuple(pixels[0, 0]) == _rgb("bg", theme)
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (edge == _rgb("bg", theme)).all()


def test_a_notebook_gets_text_and_a_picture():
    circuit = found(GPT2, 100)
    data, _ = circuit._repr_mimebundle_()
    assert set(data) == {"text/plain", "image/png"}
    assert data["text/plain"] == repr(circuit)
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")


# -- faithfulness


def evaluated(n_random: int = 3, total: int | None = 1000) -> Result:
    edges = np.array([0, 1, 10, 100, 1000])
    values = np.array([[0, 0.5, 0.95, 1.2, 1.0], *[[0, 0.01 * at, 0.1 * at, 0.3, 1.0] for at in range(n_random)]])
    both = np.stack([values * 2, values * 4], -1)
    names = ["found", *(f"random {at}" for at in range(n_random))]
    coords = {"circuit": names, "edges": edges, "pair": [0, 1]}
    data = xr.Dataset({"logit_diff": (("circuit", "edges", "pair"), both)}, coords=coords)
    runs = {
        name: (("metric", "pair"), np.array([row])) for name, row in (("clean", [2.0, 4.0]), ("corrupted", [0.0, 0.0]))
    }
    made = {"method": "evaluate", "model": {"name": "tiny"}, **({"n_edges": total} if total else {})}
    return Result(data, xr.Dataset(runs, coords={"metric": ["logit_diff"]}), made)


@pytest.mark.parametrize("dark", [False, True])
def test_the_found_circuit_is_a_line_and_random_ones_a_band(dark):
    figure = evaluated().plot(dark=dark)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["found circuit"].get_xdata(), [0.001, 0.01, 0.1, 1])
    np.testing.assert_allclose(lines["found circuit"].get_ydata(), [0.5, 0.95, 1.2, 1.0])
    np.testing.assert_allclose(lines["their mean"].get_ydata(), [0.01, 0.1, 0.3, 1.0])
    assert lines["found circuit"].get_linewidth() > lines["their mean"].get_linewidth()
    levels = {float(line.get_ydata()[0]) for line in axes.lines if line.get_linestyle() == "--"}
    assert levels == {0.0, 1.0}
    (band,) = axes.collections
    corners = {(round(x, 6), round(y, 6)) for x, y in band.get_paths()[0].vertices}
    assert {(0.01, 0.0), (0.01, 0.2), (0.001, 0.02)} <= corners
    assert axes.get_xscale() == "log"
    assert tuple(rendered(figure)[0, 0]) == _rgb("bg", "dark" if dark else "light")


def test_the_title_says_how_few_edges_are_enough():
    assert (
        " ".join(texts(evaluated().plot())[:2])
        == "10 of 1000 edges (1 %) recover 0.95 of the behaviour; random circuits of that size 0.10"
    )
    half = evaluated()
    weak = replace(half, data=half.data * 0.5)
    assert any(text.startswith("100 of 1000 edges (10 %) recover 0.60") for text in texts(weak.plot()))


def test_without_random_circuits_or_a_total_the_rest_is_drawn():
    figure = evaluated(0, None).plot()
    (axes,) = figure.axes
    assert len(axes.collections) == 0
    assert axes.get_xlabel() == "edges kept"
    assert "10 edges recover 0.95 of the behaviour" in texts(figure)


def test_no_gap_is_said():
    result = evaluated()
    flat = replace(result, baselines=result.baselines * 0)
    assert "No circuit has a faithfulness: there is no gap to recover" in texts(flat.plot())


def test_other_results_have_no_curve():
    result = evaluated()
    with pytest.raises(ResultError, match="several sizes") as caught:
        circuits.curve(replace(result, data=result.data.isel(edges=1)))
    assert caught.value.seen == "a result of evaluate"


# -- an estimate against the exact


def compared(**attrs) -> xr.Dataset:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(3, 4))
    estimate = exact + 0.01 * rng.normal(size=exact.shape)
    for layer, head in ((0, 1), (1, 2), (2, 3), (2, 0), (1, 0)):
        estimate[layer, head] += 1 + layer
    exact[0, 0] = np.nan
    made = {"r2": 0.9, "rank_correlation": -0.25, "top_recall": 0.8, "k": 5, "unit": "logits", "label": "z of tiny"}
    return xr.Dataset(
        {"estimate": (("layer", "head"), estimate), "exact": (("layer", "head"), exact)},
        coords={"layer": range(3), "head": range(4)},
        attrs=made | attrs,
    )


@pytest.mark.parametrize("dark", [False, True])
def test_cells_that_have_both_values_are_points_beside_the_line(dark):
    data = compared()
    figure = scatter.against(data, dark=dark)
    (axes,) = figure.axes
    (points,) = axes.collections
    expected = np.stack([data[name].to_numpy().ravel()[1:] for name in ("estimate", "exact")], 1)
    np.testing.assert_allclose(points.get_offsets(), expected)
    assert any(line.get_slope() == 1 for line in axes.lines if hasattr(line, "get_slope"))
    assert {text.get_text() for text in axes.texts} == {"0.1", "1.2", "2.3", "2.0", "1.0"}
    assert "R² 0.900 · rank correlation −0.250 · top-5 recall 0.80 · 11 cells" in texts(figure)
    assert "z of tiny" in texts(figure)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("estimate, logits", "exact, logits")
    assert axes.get_xlim() == axes.get_ylim()
    assert tuple(rendered(figure)[0, 0]) == _rgb("bg", "dark" if dark else "light")


def test_cells_of_edges_and_positions_have_their_names():
    data = compared().isel(layer=slice(0, 2), head=slice(1, 2))
    edges = data.rename(layer="sender", head="receiver").assign_coords(sender=["a0.1", "m0"], receiver=["a1.1.q"])
    names = {text.get_text() for text in scatter.against(edges).axes[0].texts}
    assert names == {"a0.1→a1.1.q", "m0→a1.1.q"}
    places = {text.get_text() for text in scatter.against(data.rename(head="pos")).axes[0].texts}
    assert places == {"L0 @1", "L1 @1"}


def test_nothing_to_compare_is_refused():
    data = compared()
    with pytest.raises(ResultError, match="no cell has both"):
        scatter.against(data.where(data["exact"].isnull()))


# -- as text


def test_the_readable_form():
    circuit = scored(
        {"embed->m0": -0.25, "m0->a1.1.q": 12.5, "a1.1->logits": 0.5},
        provenance={"method": "eap", "model": {"name": "tiny"}},
        warnings=("One pair.",),
    )
    assert repr(circuit).splitlines() == [
        "3 of 46 edges, 4 nodes, EAP on tiny",
        "",
        "  m0->a1.1.q    +12.50",
        "  a1.1->logits   +0.50",
        "  embed->m0      −0.25",
        "",
        "! One pair.",
    ]


def test_more_than_ten_edges_are_counted():
    lines = repr(random_circuit(PAIRED, 14, seed=0)).splitlines()
    assert len(lines) == 13
    assert lines[-1] == "  … 4 more"
    assert "no edge is kept" in repr(random_circuit(PAIRED, 0, seed=0))


def test_the_text_form_goes_layer_by_layer():
    edges = {"embed->a0.1.k": 0.1, "embed->a0.1.q": 0.2, "m0->logits": 2, "a0.1->logits": -3, "a0.1->m0": 1}
    assert scored(edges).text().splitlines()[1:] == [
        "a0.1    q: embed +0.20 · k: embed +0.10",
        "m0      a0.1 +1.00",
        "logits  a0.1 −3.00, m0 +2.00",
    ]
    grouped = scored({"embed->a1.kv1.v": 1, "a1.3->logits": 1}, SHARED)
    assert grouped.text().splitlines()[1] == "a1.kv1  v: embed +1.00"


def test_positions_have_their_tokens():
    kept = np.zeros((7, 15, 2), bool)
    kept[0, 14, 1] = True
    circuit = Circuit(PAIRED, np.where(kept, 1.0, np.nan), kept, ("bos", " Mary"))
    assert repr(circuit).splitlines() == [
        "1 of 92 edges over 2 positions, 2 nodes",
        "",
        "  embed->logits @ 1  +1.00  ' Mary'",
    ]
    assert circuit.to_frame()["token"].tolist() == [" Mary"]
    assert circuit.text().splitlines()[1] == "logits  embed@1 +1.00"
