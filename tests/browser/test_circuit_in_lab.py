"""The circuit view in JupyterLab: what it draws and says is what `eap` and `evaluate` say in Python.

The tests of a notebook run in order of the file.
"""

import re

import pytest

SETUP = """\
import gc
import nbpatch as nbp

model = nbp.load("tiny")
WORDS = [("Mary", "John"), ("Anna", "Tom"), ("Susan", "Peter")]
TEXT = "When {} and {} went to the store, {} gave a drink to"

def pair(a, b):
    return nbp.PromptPair(TEXT.format(a, b, b), TEXT.format(a, b, a), " " + a, " " + b)

pairs = [pair(*words) for words in WORDS]

def bench():
    return wb

def kept(n):
    return scored.top_edges(n).prune()

def faithful(circuit, of):
    return round(float(nbp.evaluate(model, circuit, of, random=0).recovered()[0, 0]), 2)
"""
BENCH = "wb = nbp.Workbench(model, pairs)\nwb"
VIEW = """\
circuit = nbp.eap(model, pairs[0], method="eap", by_position=True)
view = nbp.CircuitView(circuit, model, pairs)
view"""
ALONE = "bare = nbp.CircuitView(circuit.top_edges(60).summed())\nbare"


@pytest.fixture(scope="module")
def book(open_book):
    opened = open_book("circuit.ipynb", SETUP, BENCH)
    opened.run(0)
    opened.run(1)
    opened.part("nbp-heatmap").wait_for(timeout=30_000)
    opened.choose("nbp-tab", "circuit")
    opened.part("nbp-circuit").wait_for(timeout=30_000)
    opened.python('globals().update(scored=nbp.eap(model, pairs[0], method="eap-ig", by_position=True))')
    return opened


@pytest.fixture(scope="module")
def lone(open_book):
    opened = open_book("circuit_view.ipynb", SETUP, VIEW, ALONE)
    for cell in range(3):
        opened.run(cell)
    opened.part("nbp-circuit").wait_for(timeout=30_000)
    return opened


def big(book):
    """Returns the faithfulness on the page, once it is of what is kept."""
    section = book.part("nbp-faithful")
    book.wait_for_text(section, r"Kept circuit\s+\d\.\d\d\s")
    book.page.wait_for_function(
        "() => !document.querySelector('[data-testid=nbp-faithful]').classList.contains('old')", timeout=30_000
    )
    return float(re.search(r"Kept circuit\s+(−?\d\.\d\d)", section.inner_text())[1].replace("−", "-"))


def count(book):
    return int(re.match(r"(\d+) of", book.part("nbp-threshold").get_attribute("aria-valuetext"))[1])


def test_the_tab_draws_what_python_keeps_and_says_how_faithful_it_is(book):
    n = count(book)
    assert int(book.part("nbp-circuit").get_attribute("data-edges")) == book.python(f"len(kept({n}))")
    shown = big(book)
    assert shown == book.python(f"faithful(kept({n}), pairs[0])")
    book.eventually("wb.circuit is not None and wb.circuit.same_edges(kept(" + str(n) + "))", True)
    drawn = book.part("nbp-circuit").locator(".hits path").evaluate_all("all => all.map(p => p.dataset.edge)")
    assert set(drawn) == set(book.python(f"[str(e) for e in kept({n}).edges]"))


def test_keys_of_the_slider_keep_more_edges(book):
    before = count(book)
    book.part("nbp-threshold").focus()
    for _ in range(3):
        book.page.keyboard.press("ArrowRight")
    after = count(book)
    assert after > before
    book.eventually(f"wb.circuit.same_edges(kept({after}))", True)
    assert big(book) == book.python(f"faithful(kept({after}), pairs[0])")
    assert book.cells() == 2
    book.page.keyboard.press("End")
    total = book.python("len(scored)")
    assert count(book) == total
    assert big(book) == 1.0
    book.page.keyboard.press("Home")
    assert count(book) == 1


def test_the_threshold_is_the_weakest_kept_score(book):
    slider = book.part("nbp-threshold")
    slider.evaluate(
        "e => { e.value = 1000 * Math.log(25) / Math.log(7185); e.dispatchEvent(new Event('input', {bubbles: true})) }"
    )
    n = count(book)
    assert n == 25
    least = book.python(f"round(min(abs(e.score) for e in scored.top_edges({n}).edges), 2)")
    assert f"score at least {least:.2f} logits" in slider.get_attribute("aria-valuetext")
    assert big(book) == book.python(f"faithful(kept({n}), pairs[0])")


def test_an_edge_chosen_in_the_list_is_read_out_and_can_be_patched(book):
    row = book.page.locator(".edge-list button").nth(1)
    name = row.get_attribute("title")
    row.focus()
    book.page.keyboard.press("Enter")
    assert row.get_attribute("aria-pressed") == "true"
    score = book.python(f"[round(e.score, 2) for e in scored.edges if str(e) == {name!r}][0]")
    assert f"{abs(score):.2f}" in book.part("nbp-circuit").locator(".label").text_content()
    book.page.get_by_role("button", name="Patch this path").wait_for()


def test_edges_summed_over_positions_are_scored_anew(book):
    book.choose("nbp-by-position", "summed")
    book.eventually("wb.circuit.positions", None)
    book.python('globals().update(scored=nbp.eap(model, pairs[0], method="eap-ig"))')
    book.page.wait_for_function("() => !document.querySelector('.circuit-view.waiting')")
    n = count(book)
    assert int(book.part("nbp-circuit").get_attribute("data-edges")) == book.python(f"len(kept({n}))")
    assert big(book) == book.python(f"faithful(kept({n}), pairs[0])")
    book.page.get_by_role("button", name="Evaluate on 2 held-out pairs").click()
    book.wait_for_text(book.part("nbp-faithful"), "On 2 held-out pairs")
    assert big(book) == book.python(f"faithful(kept({n}), pairs[1:])")
    book.page.get_by_role("button", name="Back to the pair").click()
    book.choose("nbp-by-position", "position")
    book.eventually("wb.circuit.positions", 15)


def test_a_metric_without_a_gradient_says_what_to_do(book):
    book.select("nbp-metric", "rank")
    error = book.page.locator(".refusal")
    error.wait_for(timeout=30_000)
    assert "gradient" in error.inner_text()
    book.select("nbp-metric", "logit_diff")
    error.wait_for(state="hidden")
    book.part("nbp-circuit").wait_for()


def test_a_view_of_its_own_is_linked_both_ways(lone):
    lone.eventually("view.n_edges > 0", True)
    lone.python("[setattr(view, 'n_edges', 17), 1][1]")
    lone.page.wait_for_function(
        "() => document.querySelector('[data-testid=nbp-threshold]').getAttribute('aria-valuetext').startsWith('17 of')"
    )
    assert int(lone.part("nbp-circuit").get_attribute("data-edges")) == lone.python("len(view.kept)")
    assert big(lone) == lone.python("faithful(view.kept, pairs[0])")
    lone.part("nbp-threshold").focus()
    lone.page.keyboard.press("ArrowRight")
    lone.eventually("view.n_edges", 18)
    lone.page.locator(".edge-list button").first.click()
    lone.eventually("view.selection", {"edge": lone.python("str(view.kept.edges[0])")})
    lone.python("[setattr(view, 'selection', {'node': 'logits'}), 1][1]")
    lone.wait_for_text(lone.page.locator(".circuit-view").first, "Edges of the answer")


def test_without_a_model_the_edges_are_drawn_and_nothing_is_run(lone):
    bare = lone.page.get_by_test_id("nbp-root").nth(1)
    assert int(bare.get_by_test_id("nbp-circuit").get_attribute("data-edges")) == lone.python("len(bare.kept)")
    assert "there is no model" in bare.inner_text()
    bare.get_by_test_id("nbp-threshold").focus()
    lone.page.keyboard.press("End")
    lone.eventually("bare.n_edges == len(bare.circuit)", True)


def test_the_output_has_widget_picture_and_text(lone):
    (output,) = lone.outputs(1)
    assert set(output["data"]) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}


def test_light_dark_and_narrow(book, lone, screens):
    for name, one in (("tab", book), ("view", lone)):
        one.page.set_viewport_size({"width": 1860, "height": 2000})
        for theme in ("JupyterLab Light", "JupyterLab Dark"):
            one.command("apputils:change-theme", theme=theme)
            one.page.wait_for_function(
                "dark => document.body.dataset.jpThemeLight === String(!dark)", arg=theme.endswith("Dark")
            )
            one.page.wait_for_timeout(700)
            root = one.page.get_by_test_id("nbp-root").first
            root.screenshot(path=screens / f"circuit-{name}-{theme.split()[-1].lower()}.png")
        one.command("apputils:change-theme", theme="JupyterLab Light")
        for width in (800, 360):
            root.evaluate("(e, w) => { e.style.width = w + 'px' }", width)
            one.page.wait_for_timeout(400)
            assert root.locator(".circuit-view").evaluate("e => e.scrollWidth <= e.clientWidth + 1"), (name, width)
            root.screenshot(path=screens / f"circuit-{name}-{width}.png")
        root.evaluate("e => { e.style.width = '' }")


def test_no_errors_on_the_console(book, lone):
    assert book.errors == []
    assert lone.errors == []
    assert lone.strangers() == []
