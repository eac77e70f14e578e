"""How quick the widget is in JupyterLab: printed beside its bars; the tests ask only that it all arrives."""

import statistics

import pytest

pytestmark = pytest.mark.long

SETUP = """\
import time
import nbpatch as nbp
from nbpatch.workbench import Workbench

pair = nbp.PromptPair(
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    " Mary",
    " John",
)
wb = Workbench(nbp.load("tiny"), pair, "z", "layer head")
wb.run()
bench = lambda: wb
heard = []
plain = wb.cancel
def cancel():
    heard.append(1000 * time.time())
    plain()
wb.cancel = cancel

def slow():
    from nbpatch.engine import frontier
    from nbpatch.live import measuring
    measuring.QUICK = 0
    whole = frontier.Walk
    def slowly(*rows, **options):
        time.sleep(0.05)
        return whole(*rows, **options)
    frontier.Walk, frontier.MOST_TOKENS = slowly, 64
"""
WATCH = """() => {
    window.longTasks = [];
    new PerformanceObserver(list => {
        for (const one of list.getEntries()) window.longTasks.push(Math.round(one.duration));
    }).observe({entryTypes: ['longtask']});
}"""
HOVER = """async () => {
    const surface = document.querySelector('[data-testid=nbp-heatmap] .surface');
    const readout = document.querySelector('[data-testid=nbp-readout]');
    const box = surface.getBoundingClientRect(), times = [];
    for (let i = 0; i < 40; i++) {
        const before = readout.textContent, begun = performance.now();
        const x = ((i % 4) + 0.5) / 4, y = ((i * 3 % 4) + 0.5) / 4;
        const spot = {clientX: box.x + box.width * x, clientY: box.y + box.height * y};
        surface.dispatchEvent(new MouseEvent('mousemove', {bubbles: true, ...spot}));
        await Promise.resolve();
        if (readout.textContent !== before) times.push(performance.now() - begun);
        await new Promise(requestAnimationFrame);
    }
    return times;
}"""
TURN = """async direction => {
    const root = document.querySelector('[data-testid=nbp-root]');
    const begun = performance.now();
    root.querySelector(`[data-testid=nbp-direction] [value=${direction}]`).click();
    const there = () => root.querySelector('.one')?.dataset.direction === direction
        && root.querySelectorAll('.one').length === 1 && root.querySelector('.count.exact')
        && root.querySelector('[data-testid=nbp-status]').dataset.state === 'done';
    while (!there()) {
        if (performance.now() - begun > 20000) throw new Error('the map did not come');
        await new Promise(done => setTimeout(done, 2));
    }
    return performance.now() - begun;
}"""
CANCEL = """async () => {
    const root = document.querySelector('[data-testid=nbp-root]'), clicked = Date.now();
    root.querySelector('[data-testid=nbp-cancel]').click();
    const until = async there => {
        while (!there(root.querySelector('[data-testid=nbp-status]'))) {
            if (Date.now() - clicked > 20000) throw new Error('it goes on');
            await new Promise(done => setTimeout(done, 2));
        }
        return Date.now() - clicked;
    };
    const said = await until(e => /^Cancel/.test(e.textContent));
    return [clicked, said, await until(e => e.dataset.state === 'cancelled')];
}"""


@pytest.fixture(scope="module")
def book(open_book):
    opened = open_book("bars.ipynb", SETUP, "wb")
    opened.run(0)
    opened.page.evaluate(WATCH)
    opened.run(1)
    opened.part("nbp-attention").wait_for(timeout=30_000)
    opened.page.wait_for_timeout(500)
    return opened


def test_hovering(book):
    times = book.page.evaluate(HOVER)
    assert len(times) > 20
    slow = statistics.quantiles(times, n=10)[-1]
    print(f"\nhover → read-out: median {statistics.median(times):.1f} ms, nine of ten within {slow:.1f} ms (bar 16)")


def test_turning_the_direction(book):
    times = []
    for component in ("z", "q", "attn_out", "resid_pre"):
        book.select("nbp-component", component)
        book.eventually("wb.result.provenance['component']", component)
        book.eventually("wb.status['state']", "done")
        book.page.wait_for_timeout(300)
        times.append(book.page.evaluate(TURN, "noising"))
        back = book.page.evaluate(TURN, "denoising")
        print(f"\n{component}: run {times[-1]:.0f} ms, back to what was run {back:.0f} ms", end="")
    print(f"\ntoggle → finished exact map: most {max(times):.0f} ms (bar 250)")
    assert book.python("len(wb.results)") == 8


def test_cancelling(book):
    book.python("slow()")
    book.python("[setattr(wb, 'direction', 'both'), 1][1]")
    book.eventually("wb.status['state']", "done")
    book.python("wb._receive({'v': 1, 'type': 'set', 'component': 'pattern', 'over': 'layer head dest src'})")
    book.part("nbp-cancel").wait_for(timeout=20_000)
    clicked, seen, ended = book.page.evaluate(CANCEL)
    heard = book.python("heard[-1]") - clicked
    print(
        f"\nCancel: in Python after {heard:.0f} ms, said on the page after {seen} ms (bar 100), ended after {ended} ms"
    )


def test_no_part_of_it_blocks_the_page(book):
    found = book.page.evaluate("() => window.longTasks")
    print(f"\nlong tasks of the page, JupyterLab's included: {found} ms (bar 100)")
    assert book.errors == []
