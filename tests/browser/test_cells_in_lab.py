"""What hangs on the chosen cells, in JupyterLab: what the page shows is what Python computed.

The tests share one open notebook and run in order of the file; each sets up what it needs through the page.
"""

import re

import pytest

PAIRS = [
    ("When Mary and John went to the store, John gave", "When Mary and John went to the store, Mary gave", "Mary John"),
    ("When Tom and Mary went to the park, Mary gave", "When Tom and Mary went to the park, Tom gave", "Tom Mary"),
    ("When John and Tom went to the store, Tom gave", "When John and Tom went to the store, John gave", "John Tom"),
]
PROMPTS = "\n\n".join(
    f'clean:     {clean} a drink to\ncorrupted: {corrupted} a drink to\nanswer:    " {names.split()[0]}"\n'
    f'wrong:     " {names.split()[1]}"'
    for clean, corrupted, names in PAIRS
)
CELL = f'%%patch --component z --over "layer head" --direction denoising --metric logit_diff prob -o result\n{PROMPTS}'
SETUP = """\
%load_ext nbpatch
from ipywidgets.widgets import widget
import numpy as np
import nbpatch as nbp
import nbpatch.workbench as home
from nbpatch.live import cells, question

def bench():
    (found,) = [one for one in widget._instances.values() if type(one).__name__ == "Workbench"]
    return found

def exact(*sites, **options):
    wb = bench()
    found = nbp.patch_sites(wb.model, wb.pairs[0], list(sites), metric="logit_diff", direction=wb.direction, **options)
    return float(found.share()[0])

def patched_weight(layer, head, dest, src):
    wb = bench()
    asked = question.Question(wb.model, wb._ask, wb.result, {"cell": wb.selection, "layer": layer}, {})
    said, (buffer,) = list(cells.cell(asked))[-1]
    return float(np.frombuffer(buffer, np.float32).reshape(said["shape"])[head, dest, src])

def count_questions():
    wb = bench()
    wb.asked, plain = [], home.ANSWERS["cell"]
    home.ANSWERS["cell"] = lambda one: (wb.asked.append(one.content["cell"]), plain(one))[1]
"""


@pytest.fixture(scope="module")
def book(open_book):
    opened = open_book("cells.ipynb", SETUP, CELL)
    opened.run(0)
    opened.run(1)
    opened.part("nbp-heatmap").wait_for(timeout=30_000)
    opened.eventually("bench().status['state']", "done")
    return opened


@pytest.fixture
def at_rest(book):
    """The notebook with heads denoised, nothing selected and nothing brushed."""
    book.page.mouse.move(0, 0)
    book.select("nbp-component", "z")
    book.eventually("bench().result.provenance['component']", "z")
    book.turn("denoising")
    book.eventually("bench().result.provenance['direction']", "denoising")
    book.eventually("bench().status['state']", "done")
    book.part("nbp-heatmap").focus()
    book.page.keyboard.press("Escape")
    book.page.keyboard.press("Escape")
    book.eventually("[bench().selection, bench().brushed]", [None, []])
    return book


def drag(book, *cells):
    """Presses at the first cell, moves over the others and returns the mouse, still down."""
    canvas = book.part("nbp-heatmap").locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box, mouse = canvas.bounding_box(), book.page.mouse
    for number, cell in enumerate(cells):
        spot = book._spot(*cell)
        mouse.move(box["x"] + spot["x"], box["y"] + spot["y"], steps=3)
        if number == 0:
            mouse.down()
    return mouse


def read(value):
    """Returns a number as the page writes it in read-outs."""
    text = f"{abs(value):.2f}"
    return text if float(text) == 0 else ("−" if value < 0 else "+") + text


def percent(value):
    return f"{100 * value:.0f}" if value >= 0.01 else f"{100 * value:.1f}"


def test_next_tokens_are_those_of_the_patched_run(at_rest):
    at_rest.click(2, 1)
    at_rest.eventually("bench().selection", {"layer": 2, "head": 1})
    at_rest.page.locator("[data-testid=nbp-logits][data-of=patched] table:not(.old)").wait_for()
    patched = at_rest.python("float(bench().result.data['prob'].sel(layer=2, head=1, pair=0))")
    base = at_rest.python("float(bench().result.baselines['corrupted'].sel(metric='prob', pair=0))")
    row = at_rest.part("nbp-logits").locator("tr").first.inner_text()
    assert "Mary" in row
    assert f"{percent(base)} → {percent(patched)} %" in row
    at_rest.part("nbp-heatmap").focus()
    at_rest.page.keyboard.press("Escape")
    at_rest.page.locator("[data-testid=nbp-logits][data-of=prompts]").wait_for()


def test_the_spread_is_that_of_the_result(at_rest):
    at_rest.click(2, 1)
    spread = at_rest.part("nbp-spread")
    spread.wait_for()
    assert spread.locator("circle").count() == len(PAIRS)
    mean = at_rest.python("float(bench().result.share().sel(layer=2, head=1))")
    low, high = at_rest.python("[float(bench().result.interval()[s].sel(layer=2, head=1)) for s in ('low', 'high')]")
    shown = [
        float(text.replace("−", "-")) for text in re.findall(r"−?\d+\.?\d*", spread.locator(".amount").inner_text())
    ]
    assert shown == pytest.approx([mean, low, high], abs=0.0051)


def test_passing_over_cells_asks_for_the_last_only(at_rest):
    at_rest.click(0, 0)
    at_rest.eventually("bench().selection", {"layer": 0, "head": 0})
    at_rest.page.wait_for_timeout(300)
    at_rest.python("count_questions()")
    at_rest.part("nbp-heatmap").evaluate(
        """async map => { for (let i = 0; i < 3; i++) {
            map.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true, cancelable: true}));
            await new Promise(queueMicrotask);
        } }"""
    )
    at_rest.eventually("bench().asked", [{"layer": 0, "head": 3}])


def test_attention_of_the_patched_run(at_rest):
    at_rest.click(2, 1)
    at_rest.select("nbp-attention-head", "3.2")
    matrices = at_rest.part("nbp-attention").locator(".matrix")
    at_rest.wait_for_text(at_rest.part("nbp-attention-readout"), "patched")
    assert matrices.count() == 4
    readout = at_rest.part("nbp-attention-readout").inner_text()
    dest, src = map(int, re.search(r"(\d+)\s*to\s.*?(\d+)\s*:", readout, re.DOTALL).groups())
    weight = at_rest.python(f"patched_weight(3, 2, {dest}, {src})")
    shown = re.search(r"patched (\S+)", readout)[1]
    assert float(shown) == pytest.approx(weight, abs=0.0051)


def test_keys_choose_from_where_to_where(at_rest):
    at_rest.click(2, 1)
    at_rest.part("nbp-attention").locator(".matrix").first.focus()
    readout = at_rest.part("nbp-attention-readout")
    before = readout.inner_text()
    at_rest.page.keyboard.press("ArrowUp")
    at_rest.page.keyboard.press("Home")
    at_rest.wait_for_text(readout, r"to\s+\S+ 0")
    assert readout.inner_text() != before
    at_rest.page.keyboard.press("Escape")
    assert at_rest.python("bench().selection") == {"layer": 2, "head": 1}


def test_arcs_lie_on_the_prompts_columns(at_rest):
    at_rest.click(2, 1)
    at_rest.choose("nbp-attention-kind", "arcs")
    arcs = at_rest.part("nbp-attention-arcs")
    arcs.wait_for()
    weights = "nbp.attention(bench().model, bench().pairs[0]).data['pattern'].sel(run='clean', layer=2, head=1, pair=0)"
    assert arcs.locator("path.near").count() == at_rest.python(f"int((({weights})[-1] >= 0.02).sum())")
    tokens = at_rest.python("len(bench().result.provenance['pairs'][0]['clean_tokens'])")
    strip = at_rest.part("nbp-tokens-clean").get_by_test_id("nbp-token").last.bounding_box()
    last = arcs.locator(".bar-names span").last.bounding_box()
    assert arcs.locator(".bar-names span").count() == tokens
    assert abs(strip["x"] - last["x"]) < 2
    at_rest.choose("nbp-attention-kind", "matrix")
    at_rest.part("nbp-attention").locator(".matrix").first.wait_for()


def test_a_brush_is_patched_together_and_python_has_its_rows(at_rest):
    mouse = drag(at_rest, (1, 0), (2, 1))
    assert at_rest.page.locator(".brush-count").inner_text() == "4 cells together"
    mouse.up()
    at_rest.eventually("bench().brushed", [{"layer": layer, "head": head} for layer in (1, 2) for head in (0, 1)])
    assert at_rest.python("bench().selection") is None
    assert at_rest.python("bench().selected[['layer', 'head']].values.tolist()") == [[1, 0], [1, 1], [2, 0], [2, 1]]
    together = at_rest.part("nbp-together")
    at_rest.wait_for_text(together, r"add up to")
    joint = at_rest.python("exact(['z[1.0]', 'z[1.1]', 'z[2.0]', 'z[2.1]'])")
    share = "bench().result.share(per_pair=True).sel(pair=0)"
    total = at_rest.python(f"float(sum({share}.sel(layer=a, head=b) for a in (1, 2) for b in (0, 1)))")
    text = together.inner_text()
    assert f"{read(joint)}\nof the gap" in text
    assert f"add up to {read(total)}" in text
    at_rest.part("nbp-heatmap").focus()
    at_rest.page.keyboard.press("Escape")
    at_rest.eventually("bench().brushed", [])


def test_shift_and_arrows_extend_a_brush(at_rest):
    at_rest.click(1, 1)
    at_rest.part("nbp-heatmap").focus()
    for key in ("Shift+ArrowRight", "Shift+ArrowDown", "Shift+ArrowLeft"):
        at_rest.page.keyboard.press(key)
    at_rest.eventually("bench().brushed", [{"layer": 1, "head": 1}, {"layer": 2, "head": 1}])
    at_rest.click(0, 0)
    at_rest.eventually("[bench().selection, bench().brushed]", [{"layer": 0, "head": 0}, []])


def test_a_brush_made_in_python_shows_on_the_page(at_rest):
    at_rest.python("[setattr(bench(), 'brushed', [{'layer': 0, 'head': 0}, {'layer': 3, 'head': 2}]), 1][1]")
    at_rest.wait_for_text(at_rest.part("nbp-together"), r"2 cells together")
    assert at_rest.page.locator(".surface .brush").count() == 2
    joint = at_rest.python("exact(['z[0.0]', 'z[3.2]'])")
    at_rest.wait_for_text(at_rest.part("nbp-together"), re.escape(read(joint)))


def test_a_cell_dragged_onto_another_puts_its_value_there(at_rest):
    at_rest.click(1, 2)
    at_rest.eventually("bench().selection", {"layer": 1, "head": 2})
    mouse = drag(at_rest, (1, 2), (2, 0))
    assert at_rest.page.locator(".surface .ghost-cell").count() == 1
    assert at_rest.page.locator(".surface .fade").count() > 0
    mouse.up()
    moved = at_rest.part("nbp-moved")
    moved.wait_for()
    share = at_rest.python("exact('z[2.0]', from_=['z[1.2]'])")
    assert moved.inner_text().startswith(f"z[1.2] put into z[2.0]: {read(share)} of the gap")
    assert at_rest.python("[bench().selection, bench().brushed]") == [{"layer": 1, "head": 2}, []]


def test_m_carries_a_cell_by_keys_across_positions(at_rest):
    at_rest.select("nbp-component", "resid_pre")
    at_rest.eventually("bench().result.provenance['component']", "resid_pre")
    at_rest.eventually("bench().status['state']", "done")
    at_rest.click(1, 11)
    at_rest.eventually("bench().selection", {"layer": 1, "pos": 11})
    at_rest.part("nbp-heatmap").focus()
    for key in ("m", "ArrowRight", "ArrowDown", "m"):
        at_rest.page.keyboard.press(key)
    share = at_rest.python("exact('resid_pre[2] @ 12', from_=['resid_pre[1] @ 11'])")
    told = f"resid_pre[1] @ 11 put into resid_pre[2] @ 12: {read(share)}"
    at_rest.wait_for_text(at_rest.part("nbp-moved"), re.escape(told))


def test_both_directions_list_the_strongest_heads(at_rest):
    at_rest.turn("both")
    at_rest.eventually("bench().result.provenance['direction']", "both")
    rows = at_rest.part("nbp-strongest").locator("tbody tr")
    rows.first.wait_for()
    shares = "np.abs(bench().result.share(per_pair=True).sel(pair=0).values).max(0)"
    layer, head = at_rest.python(f"[int(i) for i in np.unravel_index({shares}.argmax(), {shares}.shape)]")
    assert rows.first.inner_text().startswith(f"{layer}.{head}")
    rows.first.locator("button").click()
    at_rest.eventually("bench().selection", {"layer": layer, "head": head})
    at_rest.page.wait_for_function("() => document.querySelectorAll('[data-testid=nbp-spread] .beeswarm').length === 2")


def test_pictures(at_rest, screens):
    root = at_rest.part("nbp-root")
    at_rest.turn("both")
    at_rest.eventually("bench().result.provenance['direction']", "both")
    at_rest.click(2, 1)
    at_rest.part("nbp-spread").wait_for()
    for theme in ("Dark", "Light"):
        at_rest.command("apputils:change-theme", theme=f"JupyterLab {theme}")
        at_rest.page.wait_for_timeout(300)
        root.screenshot(path=screens / f"cells-{theme.lower()}.png")


def test_no_errors_on_the_console(book):
    assert book.errors == []
