"""What a notebook does to a widget: two views, many widgets, broken callbacks, other versions, a kernel that goes.

The tests share one open notebook and run in order of the file; the last one restarts the kernel.
"""

import hostile
import pytest

pytestmark = pytest.mark.long

SETUP = """\
import nbpatch as nbp
from IPython.display import display
from nbpatch.workbench import Workbench

model = nbp.load("tiny")
pair = nbp.PromptPair(
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    " Mary",
    " John",
)
wb = Workbench(model, pair, "z", "layer head")
wb.run()
bench = lambda: wb
"""
BROKEN = """\
def broken(change):
    raise ValueError(f"my own <b>{change['name']}</b>")

wb.observe(broken, ["selection", "direction"])
"""
HOSTILE = """\
import hostile
bad = Workbench(hostile.model(), hostile.pair(), "z")
bad.run()
bad
"""
MANY = """\
sent = []
plain = Workbench._send_bundle
Workbench._send_bundle = lambda self, name: (sent.append(name), plain(self, name))
many = [Workbench(model, pair, "z", "layer head", result=wb.results[0]) for _ in range(50)]
for one in many:
    display(one)
"""
CLICKS = """\
async count => {
    const root = document.querySelector('[data-testid=nbp-root]');
    const begun = performance.now();
    let slow = 0, done = 0;
    const watch = new PerformanceObserver(list => {
        for (const one of list.getEntries()) slow = Math.max(slow, one.duration);
    });
    watch.observe({entryTypes: ['longtask']});
    const click = i => {
        const toggles = root.querySelectorAll('[data-testid=nbp-direction] input');
        if (i % 10 === 9) return toggles[Math.floor(i / 10) % 3].click();
        const canvas = root.querySelector('[data-testid=nbp-heatmap] canvas'), box = canvas.getBoundingClientRect();
        const x = ((i * 7) % 16 + 0.5) / 16, y = ((i * 3) % 8 + 0.5) / 8;
        const at = {clientX: box.x + box.width * x, clientY: box.y + box.height * y};
        canvas.dispatchEvent(new MouseEvent('click', {bubbles: true, ...at}));
    };
    while (done < count && performance.now() - begun < 90000) {
        // As many as a hand of that speed would have made by now, however long the page took over the last ones.
        for (const due = count * (performance.now() - begun) / 60000; done < Math.min(due, count);) click(done++);
        await new Promise(next => setTimeout(next, 2));
    }
    watch.disconnect();
    return [done, performance.now() - begun, slow];
}"""


@pytest.fixture(scope="module")
def book(open_book):
    opened = open_book("robust.ipynb", SETUP, "wb", "wb", BROKEN, HOSTILE, MANY)
    opened.run(0)
    for cell in (1, 2):
        opened.run(cell)
    opened.page.get_by_test_id("nbp-heatmap").nth(1).wait_for(timeout=30_000)
    return opened


def roots(book):
    return book.page.get_by_test_id("nbp-root")


def test_two_views_of_one_model_show_the_same(book):
    first, second = (book.page.get_by_test_id("nbp-heatmap").nth(n) for n in (0, 1))
    for heatmap, key, cell in ((first, "Home", (0, 0)), (second, "End", (0, 3))):
        heatmap.focus()
        book.page.keyboard.press(key)
        book.eventually("wb.selection", dict(zip(("layer", "head"), cell, strict=True)))
        for readout in book.page.get_by_test_id("nbp-readout").all()[:2]:
            book.wait_for_text(readout, rf"(?i)layer 0.*head {cell[1]}")
    book.page.get_by_test_id("nbp-direction").nth(1).locator('label:has([value="noising"])').click()
    book.eventually("wb.result.provenance['direction']", "noising")
    book.page.wait_for_function(
        "() => document.querySelectorAll('[data-testid=nbp-direction] [value=noising]:checked').length === 2"
    )


def test_messages_of_other_versions_change_nothing_and_newer_ones_are_said(book):
    head = "next(iter(__import__('nbpatch.view.payload', fromlist=['x']).maps_of(wb.result))).document()"
    shown = book.part("nbp-heatmap").inner_text()
    book.python(f"wb.send({{**{head}, 'v': 0, 'gen': 10**9, 'shape': [1, 1]}})")
    book.python("wb.send({'v': 99, 'type': 'map', 'shape': 'nonsense'})")
    book.wait_for_text(book.part("nbp-status"), "Python speaks version 99")
    assert book.part("nbp-heatmap").inner_text() == shown
    assert book.errors == []


def test_a_callback_that_raises_is_shown_with_its_traceback_on_request(book):
    book.run(3)
    book.turn("both")
    error = roots(book).first.get_by_test_id("nbp-error")
    error.wait_for()
    book.wait_for_text(error, r"A callback on direction raised ValueError: my own <b>direction</b>")
    assert error.locator("pre").is_visible() is False
    error.locator("summary").click()
    assert "raise ValueError" in error.locator("pre").inner_text()
    book.eventually("wb.result.provenance['direction']", "both")
    book.eventually("wb.status['state']", "done")
    error.get_by_role("button", name="Close").click()
    error.wait_for(state="hidden")
    book.python("wb.unobserve_all('selection') or wb.unobserve(broken, 'direction')")


def test_thousands_of_clicks_leave_page_and_python_of_one_mind(book):
    memory = "() => performance.memory.usedJSHeapSize / 1e6"
    before = book.page.evaluate(memory)
    asked = 4000
    done, took, slow = book.page.evaluate(CLICKS, asked)
    grown = book.page.evaluate(memory) - before
    print(f"\n{done} clicks in {took / 1000:.0f} s: longest task {slow:.0f} ms, heap {grown:+.0f} MB")
    book.page.keyboard.press("Escape")
    book.turn("denoising")
    book.eventually("wb.result.provenance['direction']", "denoising")
    book.eventually("wb.status['state']", "done")
    book.click(2, 1)
    book.eventually("wb.selection", {"layer": 2, "head": 1})
    assert book.part("nbp-heatmap").locator("canvas").count() == 1
    assert done == asked
    assert grown < 100
    assert book.errors == []


def test_tokens_that_are_markup_stay_text(book):
    book.run(4)
    root = roots(book).nth(2)
    root.get_by_test_id("nbp-heatmap").wait_for(timeout=30_000)
    assert book.page.evaluate("() => window.hurt") is None
    assert root.locator("img, script").count() == 0
    assert root.get_by_test_id("nbp-clean").input_value() == hostile.CLEAN
    root.get_by_test_id("nbp-clean").fill(hostile.CLEAN + " gave" + hostile.IMAGE)
    root.get_by_test_id("nbp-clean").press("Enter")
    book.wait_for_text(root.get_by_test_id("nbp-error"), "token")
    assert book.page.evaluate("() => window.hurt") is None
    assert book.errors == []


def test_views_that_go_leave_nothing_behind(book):
    session = book.page.context.new_cdp_session(book.page)
    session.send("Performance.enable")

    def counts():
        session.send("HeapProfiler.collectGarbage")
        book.page.wait_for_timeout(300)
        session.send("HeapProfiler.collectGarbage")
        found = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
        return found["Nodes"], found["JSEventListeners"]

    cycle = """() => {
        const cell = window.jupyterapp.shell.currentWidget.content.widgets[4].model;
        const output = cell.outputs.toJSON();
        cell.outputs.clear();
        return output;
    }"""
    shown = roots(book).count()
    kept = []
    for _ in range(6):
        output = book.page.evaluate(cycle)
        book.page.wait_for_function(
            "n => document.querySelectorAll('[data-testid=nbp-root]').length === n", arg=shown - 1
        )
        kept.append(counts())
        book.page.evaluate(
            "output => window.jupyterapp.shell.currentWidget.content.widgets[4].model.outputs.fromJSON(output)", output
        )
        roots(book).nth(shown - 1).get_by_test_id("nbp-heatmap").wait_for(timeout=30_000)
    print(f"\nnodes and listeners without the view, six times: {kept}")
    assert kept[-1][0] - kept[2][0] < 300, kept
    assert kept[-1][1] - kept[2][1] < 30, kept


def test_fifty_workbenches_open_and_no_bundle_is_sent_again(book):
    before = book.page.evaluate("() => performance.now()")
    book.run(5)
    book.page.wait_for_function(
        "() => document.querySelectorAll('[data-testid=nbp-heatmap][data-rows=\"4\"]').length >= 50", timeout=60_000
    )
    print(f"\n50 Workbenches: {(book.page.evaluate('() => performance.now()') - before) / 1000:.1f} s")
    assert book.python("sent") == []
    last = roots(book).last
    last.scroll_into_view_if_needed()
    last.locator('[data-testid=nbp-direction] label:has([value="noising"])').click()
    book.eventually("many[-1].result.provenance['direction']", "noising")
    assert book.python("many[0].result.provenance['direction']") == "denoising"
    assert book.errors == []


def test_a_kernel_that_goes_leaves_the_map_and_says_so(book):
    book.restart()
    book.wait_for_text(book.part("nbp-status"), "^The kernel is gone")
    assert book.part("nbp-heatmap").locator("canvas").count() >= 1
    assert book.part("nbp-run").is_disabled()
    book.point(1, 2)
    book.wait_for_text(book.part("nbp-readout"), r"(?i)layer 1.*head 2")
    book.part("nbp-heatmap").focus()
    book.page.keyboard.press("d")
    book.page.keyboard.press("ArrowDown")
    assert book.errors == []
    book.run(0)
    book.run(1)
    book.page.wait_for_function("() => !document.querySelector('[data-testid=nbp-run]').disabled")
    book.turn("noising")
    book.eventually("wb.result.provenance['direction']", "noising")
