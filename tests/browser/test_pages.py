"""Exported pages in Chromium, from a file and with no network: hover, selection, attention, tools, tokens."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from pages import PAIR, opened, with_cells

import nbpatch as nbp
from nbpatch.view import export
from nbpatch.workbench import Workbench

HOSTILE = [
    "<s>", "When", " Donaudampfschifffahrtsgesellschaft", "\n", "\t", " ", " سلام", "東京", "👩‍👩‍👧", "e\u0301",
    "</script><script>window.hacked = 1</script>", "<img src=x onerror='window.hacked=1'>", "<!--",
    "\u202eevil", "\x07", "]]>", "&lt;", "${1}", "\\u003c", "'\"`",
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return nbp.load("tiny")


@pytest.fixture(scope="module")
def heads(model):
    return nbp.patch(model, PAIR, "z", direction="both")


@pytest.fixture(scope="module")
def plain(model):
    return export.page([nbp.patch(model, PAIR, "resid_pre")])


@pytest.fixture
def show(chromium):
    pages = []

    def shown(path, **options):
        pages.append(opened(chromium, path, **{"viewport": {"width": 1400, "height": 1000}, **options}))
        return pages[-1]

    yield shown
    for page in pages:
        assert page.faults == []
        assert page.evaluate("window.violations") == []
        assert [url for url in page.requested if not url.startswith(("file:", "blob:"))] == []
        page.context.close()


def readout(page):
    return page.get_by_test_id("nbp-readout").inner_text()


def point(page, row, col, *, which=0):
    surface = page.locator(".surface").nth(which)
    box = surface.bounding_box()
    rows, cols = (int(page.get_by_test_id("nbp-heatmap").get_attribute(f"data-{axis}")) for axis in ("rows", "cols"))
    return box["x"] + box["width"] * (col + 0.5) / cols, box["y"] + box["height"] * (row + 0.5) / rows


def test_the_standard_page_is_small_and_alive(show, heads, tmp_path):
    path = heads.to_html(tmp_path / "heads.html")
    size = path.stat().st_size
    print(f"to_html: {size} bytes")
    assert size < 500_000
    page = show(path)
    share = heads.share()
    for value, shown in (("denoising", 0), ("noising", 0), ("both", 1)):
        page.locator(f"[data-testid=nbp-direction] input[value={value}]").check()
        page.mouse.move(*point(page, 2, 3, which=shown))
        direction = "noising" if value != "denoising" else "denoising"
        wanted = float(share.sel(direction=direction, layer=2, head=3))
        assert f"{abs(wanted):.2f} of the gap" in readout(page)
        assert "Layer 2, head 3" in readout(page)
    assert page.locator(".surface").count() == 2
    page.mouse.click(*point(page, 1, 2))
    attention = page.get_by_test_id("nbp-attention")
    assert (attention.get_attribute("data-layer"), attention.get_attribute("data-head")) == ("1", "2")
    assert page.locator(".surface i.ring").count() == 2


def test_sweeps_of_a_session_stand_behind_the_toggles(show, model, tmp_path):
    bench = Workbench(model, PAIR, "z", metric=["logit_diff", "prob"])
    bench.run()
    bench.direction = "noising"
    bench.run()
    bench.component = "resid_pre"
    bench.run()
    page = show(bench.to_html(str(tmp_path / "session.html")))
    page.get_by_test_id("nbp-component").select_option("z")
    for direction, open_ in (("noising", True), ("denoising", True), ("both", True)):
        assert page.locator(f"[data-testid=nbp-direction] input[value={direction}]").is_enabled() is open_
    page.locator("[data-testid=nbp-direction] input[value=denoising]").check()
    page.get_by_test_id("nbp-metric").select_option("prob")
    (made,) = [one for one in bench.results if one.provenance["component"] == "z"][:1]
    page.mouse.move(*point(page, 2, 3))
    assert f"{float(made.share('prob').sel(layer=2, head=3)):.2f} of the gap restored" in readout(page)
    page.get_by_test_id("nbp-compare").select_option(label="logit diff")
    page.mouse.move(*point(page, 2, 3))
    one, other = (float(made.share(name).sel(layer=2, head=3)) for name in ("prob", "logit_diff"))
    assert f"{abs(one - other):.2f} of the gap" in readout(page)
    assert "minus Heads, denoise, logit diff" in page.locator(".facts").inner_text()


def test_tokens_are_text_whatever_they_hold(show, plain, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "hostile.html"
    path.write_text(with_cells(plain, rng.normal(0, 0.3, (4, len(HOSTILE))), HOSTILE), encoding="utf-8")
    page = show(path)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    shown = page.locator("[data-testid=nbp-tokens-clean] [data-testid=nbp-token]")
    assert shown.all_text_contents()[2:10] == [
        "·Donaudampfschifffahrtsgesellschaft", "↵", "⇥", "·", "·سلام", "東京", "👩‍👩‍👧", "e\u0301"
    ]  # fmt: skip
    assert shown.all_text_contents()[13:15] == ["U+202Eevil", "U+0007"]
    page.get_by_test_id("nbp-zoom-in").click()
    names = page.locator(".columns > span[title]")
    assert names.nth(2).get_attribute("title") == "position 2 ‘·Donaudampfschifffahrtsgesellschaft’"
    assert names.all_text_contents()[10].startswith("</script>")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    drawing = saved(page, "svg").read_text(encoding="utf-8")
    texts = [
        "".join(one.itertext()) for one in ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert {"·سلام", "東京", "👩‍👩‍👧", "↵", "⇥"} <= set(texts)
    assert "<script" not in drawing


def saved(page, kind):
    page.get_by_test_id("nbp-export").locator("summary").click()
    with page.expect_download() as download:
        page.locator(f"[data-kind={kind}]").click()
    return download.value.path()


def test_the_drawing_says_what_the_screen_says(show, heads, tmp_path):
    page = show(heads.to_html(tmp_path / "heads.html"))
    page.locator("[data-testid=nbp-direction] input[value=denoising]").check()
    page.get_by_test_id("nbp-sort").select_option("strongest")
    root = ElementTree.fromstring(saved(page, "svg").read_text(encoding="utf-8"))
    sentence = page.locator(".sentence").first.inner_text().replace("·", "")
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == re.sub(r"\s+", " ", sentence).strip()
    texts = ["".join(one.itertext()) for one in root.iter(f"{space}text")]
    share = heads.share().sel(direction="denoising")
    order = np.argsort(-abs(share.to_numpy()).max(axis=1))
    assert [t.removeprefix("layer ") for t in texts if re.fullmatch(r"(layer )?\d", t)][-5:-1] == [
        str(n) for n in order
    ]
    numbers = {f"{abs(v):.2f}".lstrip("0") for v in share.to_numpy().ravel() if abs(v) >= 0.015}
    assert numbers <= {t.lstrip("−") for t in texts}
    assert saved(page, "png").read_bytes().startswith(b"\x89PNG")
    assert len(saved(page, "csv").read_text().splitlines()) == 1 + share.size


def test_a_hundred_thousand_cells(show, plain, tmp_path):
    rng = np.random.default_rng(0)
    effect = rng.normal(0, 0.2, (100, 1000)).clip(-0.9, 0.9)
    effect[37, 512] = 1
    path = tmp_path / "large.html"
    path.write_text(with_cells(plain, effect, [f" t{n}" for n in range(1000)]), encoding="utf-8")
    page = show(path)
    grid = page.get_by_test_id("nbp-heatmap")
    assert (grid.get_attribute("data-rows"), grid.get_attribute("data-cols")) == ("100", "1000")
    page.mouse.move(*point(page, 37, 512))
    assert "Layer 37, position 512 ‘t512’: +1.00 of the gap restored" in readout(page)
    page.evaluate(
        """() => {
            window.painted = 0
            const clear = CanvasRenderingContext2D.prototype.clearRect
            CanvasRenderingContext2D.prototype.clearRect = function (...box) {
                window.painted++
                return clear.apply(this, box)
            }
        }"""
    )
    for col in (3, 400, 900):
        page.mouse.move(*point(page, 50, col))
        assert re.search(r"Layer 50, position \d+", readout(page))
    assert page.evaluate("window.painted") == 0, "pointing at cells paints the map again"
    heights = page.evaluate(
        """async () => {
            const seen = []
            for (let i = 0; i < 20; i++) {
                await new Promise(requestAnimationFrame)
                seen.push(document.querySelector('.nbp').getBoundingClientRect().height)
            }
            return seen
        }"""
    )
    assert len(set(heights)) == 1, heights
    page.get_by_test_id("nbp-sort").select_option("strongest")
    assert page.locator(".rownames > span").first.inner_text() == "layer 37"
    for _ in range(14):
        page.get_by_test_id("nbp-zoom-in").click()
    sizes = page.locator(".surface canvas").evaluate("c => [c.width, c.height]")
    assert max(sizes) < 8000
    assert page.locator(".surface").evaluate("s => s.clientWidth") > 12_000
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = page.locator(".one")
    box.evaluate("b => { b.scrollLeft = 5000 }")
    page.wait_for_function("document.querySelector('.surface canvas').style.transform.includes('translate(4')")
    seen = box.bounding_box()
    page.mouse.move(seen["x"] + 300, seen["y"] + 100)
    row, col = (int(n) for n in re.findall(r"\d+", readout(page))[:2])
    value = float(re.search(r": ([+−]?[\d.]+) of", readout(page))[1].replace("−", "-"))
    assert value == pytest.approx(effect[row, col], abs=0.006)


def test_tools_by_keyboard(show, heads, tmp_path):
    page = show(heads.to_html(tmp_path / "heads.html"))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    grid = page.get_by_test_id("nbp-heatmap")
    grid.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Control+c"):
        page.keyboard.press(key)
    page.wait_for_function("document.querySelector('[data-testid=nbp-status]').textContent.startsWith('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == readout(page)
    page.keyboard.press("+")
    assert page.get_by_test_id("nbp-zoom").inner_text() == "125 %"
    page.keyboard.press("0")
    assert page.get_by_test_id("nbp-zoom").inner_text() == "100 %"
    page.mouse.move(*point(page, 1, 1))
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function("document.querySelector('[data-testid=nbp-zoom]').textContent === '125 %'")
    assert "Layer 1, head 1" in readout(page), "what lies under the pointer moved away"
    grid.focus()
    page.keyboard.press("?")
    keys = page.get_by_test_id("nbp-keys-list")
    keys.wait_for()
    for _ in range(4):
        page.keyboard.press("Tab")
        inside = "document.activeElement.closest('dialog') !== null || document.activeElement === document.body"
        assert page.evaluate(inside), "the focus left the dialog"
    page.keyboard.press("Escape")
    keys.wait_for(state="detached")
    page.get_by_test_id("nbp-full").click()
    page.wait_for_function("document.fullscreenElement?.classList.contains('nbp')")
    page.get_by_test_id("nbp-full").click()
    page.wait_for_function("document.fullscreenElement === null")
    assert page.get_by_test_id("nbp-full").get_attribute("aria-pressed") == "false"


def test_where_the_page_may_not_have_the_screen_the_widget_takes_the_page(show, heads, tmp_path):
    page = show(heads.to_html(tmp_path / "heads.html"))
    page.evaluate("() => { Element.prototype.requestFullscreen = () => Promise.reject(new Error('no')) }")
    page.get_by_test_id("nbp-heatmap").focus()
    page.keyboard.press("f")
    root = page.get_by_test_id("nbp-root")
    page.locator(".nbp.full").wait_for()
    assert root.bounding_box() == {"x": 0, "y": 0, "width": 1400, "height": 1000}
    page.get_by_test_id("nbp-full").focus()
    page.keyboard.press("Escape")
    page.locator(".nbp:not(.full)").wait_for()


@pytest.mark.parametrize("width", [360, 800, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_tools_fit_every_width(show, heads, tmp_path, screens, width, scheme):
    page = show(heads.to_html(tmp_path / "heads.html"), viewport={"width": width, "height": 1000}, color_scheme=scheme)
    page.get_by_test_id("nbp-scale").select_option("clipped")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert "clipped: " in page.locator(".legend").first.inner_text()
    page.screenshot(path=screens / f"tools-{scheme}-{width}.png", full_page=True)
