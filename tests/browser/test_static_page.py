"""The exported page, opened from a file with no network: nothing is asked for, and everyone can use it."""

import hostile
import pytest
from axe import violations

import nbpatch as nbp

PAIR = nbp.PromptPair(
    clean="When Mary and John went to the store, John gave a drink to",
    corrupted="When Mary and John went to the store, Mary gave a drink to",
    answer=" Mary",
    wrong=" John",
)


@pytest.fixture(scope="module")
def result():
    return nbp.patch(nbp.load("tiny"), PAIR, "z", "layer head", direction="both", metric=["logit_diff", "prob"])


@pytest.fixture(scope="module")
def file(result, tmp_path_factory):
    return result.to_html(tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture
def opened(chromium):
    """Opens a page in a context of its own, without network; nothing may go wrong in it, and nothing be asked for."""
    contexts, wrong = [], []

    def open_page(path, width=1000, **options):
        context = chromium.new_context(offline=True, viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda one: one.url == path.as_uri() or wrong.append(one.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.goto(path.as_uri())
        page.locator("[data-testid=nbp-heatmap] canvas").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1600])
def test_the_page_fits_and_axe_finds_nothing(opened, file, theme, width, screens):
    page = opened(file, width, color_scheme=theme)
    assert page.get_by_test_id("nbp-root").get_attribute("data-theme") == theme
    inside, room = page.evaluate("() => [document.scrollingElement.scrollWidth, document.scrollingElement.clientWidth]")
    assert inside <= room
    assert violations(page, "html") == []
    page.screenshot(path=screens / f"page-{theme}-{width}.png", full_page=True)


def test_the_numbers_of_the_page_are_those_of_the_engine(opened, file, result):
    page = opened(file)
    heatmap = page.get_by_test_id("nbp-heatmap")
    heatmap.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    share = float(result.share().sel(direction="denoising", layer=1, head=1))
    readout = page.get_by_test_id("nbp-readout").inner_text()
    assert f"{abs(share):.2f}" in readout, (share, readout)
    page.get_by_test_id("nbp-direction").locator("[value=noising]").check()
    share = float(result.share().sel(direction="noising", layer=1, head=1))
    assert f"{abs(share):.2f}" in page.get_by_test_id("nbp-readout").inner_text()


def test_what_needs_python_is_off_and_says_why(opened, file):
    page = opened(file)
    run = page.get_by_test_id("nbp-run")
    assert run.is_disabled()
    assert "No kernel" in run.get_attribute("title")
    assert page.get_by_test_id("nbp-clean").evaluate("e => e.readOnly") is True
    assert page.get_by_test_id("nbp-cancel").count() == 0


def test_without_scripts_the_page_says_what_was_measured(chromium, file):
    page = chromium.new_page(java_script_enabled=False)
    page.goto(file.as_uri())
    assert "denoising      2     3  +5.92" in page.locator("pre").inner_text()
    page.close()


def test_tokens_that_are_markup_stay_text(opened, tmp_path):
    page = opened(nbp.patch(hostile.model(), hostile.pair(), "z").to_html(tmp_path / "hostile.html"))
    assert page.evaluate("() => window.hurt") is None
    root = page.get_by_test_id("nbp-root")
    assert root.locator("img, script").count() == 0
    shown = page.get_by_test_id("nbp-tokens-clean").evaluate("e => e.textContent")
    for token in (hostile.SCRIPT, hostile.IMAGE, "<!--", "&lt;", "U+202Ereversed"):
        assert "".join(token.split()) in "".join(shown.replace("·", "").split()), token
