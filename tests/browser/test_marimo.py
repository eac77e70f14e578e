"""The widget in marimo: inside a shadow root, with no notebook server; Python hears of what is clicked."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from host import LOCAL, ROOT, free_port

APP = """\
import marimo

app = marimo.App(width="full")


@app.cell
def _():
    import json
    from pathlib import Path

    import marimo as mo

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

    def tell(change=None):
        made = wb.result.provenance
        seen = {"selection": wb.selection, "direction": made["direction"], "component": made["component"]}
        Path("seen.json").write_text(json.dumps(seen))

    wb.observe(tell, ["selection", "result"])
    tell()
    mo.ui.anywidget(wb)
    return


if __name__ == "__main__":
    app.run()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("marimo")


@pytest.fixture(scope="module")
def page(chromium, folder):
    (folder / "app.py").write_text(APP)
    port, log = free_port(), folder / "server.log"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_STATE_HOME": str(folder / "state"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "MARIMO_SKIP_UPDATE_CHECK": "1",
    }
    command = [sys.executable, "-m", "marimo", "-q", "run", "app.py", "--headless", "--no-token"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, env=environment, start_new_session=True)
    try:
        for _ in range(150):
            if server.poll() is not None:
                pytest.fail(log.read_text())
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.2)
        opened = chromium.new_page(viewport={"width": 1300, "height": 1500})
        opened.strangers = []
        opened.on("request", lambda one: one.url.startswith(LOCAL) or opened.strangers.append(one.url))
        opened.goto(f"http://127.0.0.1:{port}/")
        opened.get_by_test_id("nbp-heatmap").locator("canvas").first.wait_for(timeout=90_000)
        yield opened
        opened.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def eventually(folder: Path, **expected):
    deadline = time.monotonic() + 20
    seen = {}
    while time.monotonic() < deadline:
        with contextlib.suppress(ValueError, OSError):
            seen = json.loads((folder / "seen.json").read_text())
        if expected.items() <= seen.items():
            return
        time.sleep(0.1)
    pytest.fail(f"Python saw {seen}, not {expected}")


def test_keys_select_and_python_hears_of_it(page, folder):
    heatmap = page.get_by_test_id("nbp-heatmap")
    heatmap.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    eventually(folder, selection={"layer": 1, "head": 1})


def test_turning_the_direction_and_another_component_are_run(page, folder):
    page.get_by_test_id("nbp-direction").locator('label:has([value="noising"])').click()
    eventually(folder, direction="noising")
    page.get_by_test_id("nbp-component").select_option("q")
    eventually(folder, component="q", direction="noising")


def test_its_style_reaches_into_the_shadow_root(page, screens):
    root = page.get_by_test_id("nbp-root")
    assert root.evaluate("e => e.getRootNode() instanceof ShadowRoot") is True
    assert root.evaluate("e => getComputedStyle(e).borderRadius") == "8px"
    page.get_by_test_id("nbp-attention").wait_for(timeout=30_000)
    page.screenshot(path=screens / "marimo.png")


def test_it_follows_marimos_dark_theme(page):
    page.evaluate("() => { document.body.classList.remove('light'); document.body.classList.add('dark') }")
    page.wait_for_function(
        """() => {
            const find = node => node.querySelector('[data-testid=nbp-root]')
                ?? [...node.querySelectorAll('*')].map(e => e.shadowRoot && find(e.shadowRoot)).find(Boolean);
            return find(document).dataset.theme === 'dark';
        }"""
    )
