"""The Paths tab in JupyterLab: what it shows is what Python computed, and what `path_patch` says by itself."""

import pytest

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
PROMPTS = f'clean:     {CLEAN}\ncorrupted: {CORRUPTED}\nanswer:    " Mary"\nwrong:     " John"'
CELL = f'%%patch --component z --over "layer head" --direction denoising --metric logit_diff prob -o result\n{PROMPTS}'
SETUP = """\
%load_ext nbpatch
from ipywidgets.widgets import widget
import numpy as np
import nbpatch as nbp

def bench():
    (found,) = [one for one in widget._instances.values() if type(one).__name__ == "Workbench"]
    return found

def share(senders, receivers, **ways):
    result = nbp.path_patch(bench().model, bench().pairs, senders, receivers, **ways)
    return float(result.share().item())

def apart():
    '''The largest difference of what the tab shows from one call of path_patch per name, for every fifth name.'''
    path = bench().path
    (axis,) = path.over
    ways = {name: path.provenance[name] for name in ("variant", "direction")}
    metric, end = path.metrics[0], path.provenance["receivers" if axis == "sender" else "senders"]
    most = 0.0
    for name in path.data[axis].to_numpy().tolist()[::5]:
        ends = (name, end) if axis == "sender" else (end, name)
        alone = nbp.path_patch(bench().model, bench().pairs, *ends, metric=metric, **ways)
        shown, true = float(path.effect().sel({axis: name})), float(alone.effect())
        assert np.isnan(shown) == np.isnan(true), name
        most = max(most, 0.0 if np.isnan(true) else abs(shown - true))
    return most
"""


@pytest.fixture(scope="module")
def book(open_book):
    opened = open_book("paths.ipynb", SETUP, CELL, "untouched = 1", "also_untouched = 1")
    opened.run(0)
    opened.run(1)
    opened.part("nbp-heatmap").wait_for(timeout=30_000)
    return opened


@pytest.fixture
def paths(book):
    """The tab on what the logits receive, directly, denoising."""
    book.choose("nbp-tab", "paths")
    book.part("nbp-paths").wait_for(timeout=30_000)
    book.select("nbp-paths-receiver", "logits")
    book.select("nbp-paths-sender", "")
    book.choose("nbp-paths-variant", "direct")
    book.choose("nbp-paths-direction", "denoising")
    book.select("nbp-paths-metric", "logit_diff")
    shown(book, "receivers", "logits")
    return book


def shown(book, end, name):
    """Waits until Python has shown a map with that end and the page has drawn it."""
    book.eventually(f"bench().path and bench().path.provenance['{end}']", name)
    book.page.wait_for_selector('[data-testid=nbp-paths-map][data-final="true"]', timeout=15_000)


def readout(book):
    return book.part("nbp-paths-readout").inner_text()


def test_the_map_has_every_sender_and_the_numbers_of_path_patch(paths):
    grid = paths.part("nbp-paths-map")
    layers, heads = paths.python("[bench().model.shape.n_layers, bench().model.shape.n_heads]")
    assert grid.get_attribute("data-rows") == str(layers + 1)
    assert grid.get_attribute("data-cols") == str(heads + 1)
    assert paths.drawn(grid)
    assert paths.python("len(bench().path.to_frame())") == layers * (heads + 1) + 1
    assert paths.python("apart()") < 1e-5


def test_a_cell_reads_out_the_number_of_one_call(paths):
    paths.part("nbp-paths-map").focus()
    # Embeddings are the first row, so layer 2 is the fourth; heads 0 to 3, then the MLP.
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown", "End"):
        paths.page.keyboard.press(key)
    paths.wait_for_text(paths.part("nbp-paths-readout"), "MLP 2 → the logits")
    value = paths.python("share('mlp_out[2]', 'logits')")
    assert abs(value) > 0.1
    assert f"{value:+.2f} of the gap restored" in readout(paths), (value, readout(paths))
    assert paths.python("bench().selection") is None
    # In JupyterLab's command mode "d" twice deletes a cell and arrows move to another one.
    paths.page.keyboard.press("Escape")
    assert (paths.cells(), paths.active()) == (4, 1)


def test_a_click_on_a_cell_chooses_the_part_under_the_pointer(paths):
    canvas = paths.part("nbp-paths-map").locator("canvas")
    box = canvas.bounding_box()
    layers = paths.python("bench().model.shape.n_layers")
    layer = (box["height"] - 8) / (layers + 1)
    canvas.click(position={"x": 3.5 * 56, "y": box["height"] - 1.5 * layer}, force=True)
    paths.wait_for_text(paths.part("nbp-paths-readout"), r"Head 2\.3 → the logits")
    value = paths.python("share('z[2.3]', 'logits')")
    assert f"{value:+.2f} of the gap" in paths.part("nbp-paths-chosen").inner_text().replace("\n", " ")


def test_another_receiver_variant_and_direction_are_run_in_python(paths):
    paths.select("nbp-paths-receiver", "v[2.3]")
    shown(paths, "receivers", "v[2.3]")
    for variant in ("wang", "tree"):
        paths.choose("nbp-paths-variant", variant)
        paths.eventually("bench().path.provenance['variant']", variant)
        assert paths.python("apart()") < 1e-5
    paths.choose("nbp-paths-direction", "noising")
    paths.eventually("bench().path.provenance['direction']", "noising")
    paths.select("nbp-paths-metric", "prob")
    paths.eventually("list(bench().path.metrics)", ["prob"])
    assert paths.python("apart()") < 1e-5
    assert "take away the probability of" in paths.part("nbp-paths-sentence").inner_text()
    # The sweep is left as it was.
    assert paths.python("[bench().direction, bench().metric]") == ["denoising", "logit_diff"]


def test_a_sender_shows_every_receiver(paths):
    paths.select("nbp-paths-sender", "mlp_out[0]")
    paths.select("nbp-paths-receiver", "")
    shown(paths, "senders", "mlp_out[0]")
    heads = paths.python("bench().model.shape.n_heads")
    assert paths.part("nbp-paths-map").get_attribute("data-cols") == str(3 * heads + 1)
    assert paths.python("apart()") < 1e-5
    assert paths.python("bench().path.to_frame()['state'].tolist()[0]") == "no causal path"
    best = paths.python("bench().path.to_frame().dropna().sort_values('effect').iloc[-1]['receiver']")
    strongest = paths.part("nbp-paths-strongest").locator("tr").first.inner_text()
    words = {"q": "queries", "k": "keys", "v": "values"}[best[0]]
    assert strongest.startswith(f"{best[2:-1]} {words}"), (best, strongest)


def test_walking_the_circuit_backwards_and_to_the_attention(paths):
    paths.part("nbp-paths-strongest").get_by_role("button", name="2.3", exact=True).click()
    paths.page.locator("[data-step=v]").click()
    shown(paths, "receivers", "v[2.3]")
    assert "the logits" in paths.part("nbp-paths-walk").inner_text()
    assert paths.python("apart()") < 1e-5
    paths.choose("nbp-paths-variant", "tree")
    paths.page.get_by_test_id("nbp-paths-chosen").locator("[data-step]").first.wait_for()
    paths.part("nbp-paths-walk").get_by_role("button", name="the logits").click()
    shown(paths, "receivers", "logits")
    paths.part("nbp-paths-strongest").get_by_role("button", name="2.3", exact=True).click()
    paths.page.locator("[data-step=attention]").click()
    paths.wait_for_text(paths.part("nbp-attention"), r"layer 2, head 3")
    paths.eventually("bench().selection", {"layer": 2, "head": 3})


def test_a_head_of_the_sweep_opens_the_tab_as_sender_and_as_receiver(book):
    book.choose("nbp-tab", "sweep")
    book.click(1, 2)
    book.eventually("bench().selection", {"layer": 1, "head": 2})
    book.part("nbp-path-buttons").get_by_role("button", name="As sender").click()
    shown(book, "senders", "z[1.2]")
    book.choose("nbp-tab", "sweep")
    book.part("nbp-path-buttons").get_by_role("button", name="As receiver").click()
    shown(book, "receivers", "q[1.2]")
    assert "head 1.2’s queries" in book.part("nbp-paths-sentence").inner_text()


def test_what_cannot_be_patched_is_said_with_a_way_out_and_back(paths):
    paths.python("setattr(bench().model, 'engine', 'replay')")
    paths.select("nbp-paths-receiver", "q[3.3]")
    error = paths.part("nbp-paths-error")
    error.wait_for()
    assert 'model.engine = "auto"' in error.inner_text()
    paths.python("setattr(bench().model, 'engine', 'auto')")
    error.get_by_role("button").click()
    error.wait_for(state="hidden")
    assert paths.part("nbp-paths-receiver").input_value() == "logits"


def test_it_fits_every_width_in_light_and_dark(paths, screens):
    root, page = paths.part("nbp-root"), paths.page
    paths.select("nbp-paths-receiver", "v[2.3]")
    shown(paths, "receivers", "v[2.3]")
    page.set_viewport_size({"width": 1900, "height": 1600})
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        paths.command("apputils:change-theme", theme=theme)
        page.wait_for_function(
            "dark => document.body.dataset.jpThemeLight === String(!dark)", arg=theme.endswith("Dark")
        )
        for width in (1400, 800, 360):
            root.evaluate("(root, width) => { root.parentElement.style.width = width + 'px'; }", width)
            page.wait_for_timeout(400)
            root.screenshot(path=screens / f"paths-{width}-{theme.split()[-1].lower()}.png")
            wide = root.evaluate(
                """root => [...root.querySelectorAll('.say, .bar, .bar > *, .under, .inspector > *, .steps > *')]
                    .filter(e => e.getBoundingClientRect().right > root.getBoundingClientRect().right + 1)
                    .map(e => e.className)"""
            )
            assert wide == [], (width, wide)
    root.evaluate("root => { root.parentElement.style.width = ''; }")
    page.set_viewport_size({"width": 1500, "height": 2000})


def test_no_errors_on_the_console_and_no_request_leaves_the_machine(book):
    assert book.errors == []
    assert book.strangers() == []
