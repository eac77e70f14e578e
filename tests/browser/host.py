"""A real JupyterLab on loopback with directories of its own, and a page of Chromium that drives it."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

SERVER_OPTIONS = [
    "--no-browser",
    "--allow-root",
    "--ServerApp.ip=127.0.0.1",
]

ROOT = Path(__file__).parents[2]
OURS = os.pathsep.join(map(str, [ROOT, Path(__file__).parent]))
KERNELS = ROOT / "build" / "kernels"

PROMPTS = """\
clean:     When Mary and John went to the store, John gave a drink to
corrupted: When Mary and John went to the store, Mary gave a drink to
answer:    " Mary"
wrong:     " John"
"""
"""The body of the usual `%%patch`."""

LOCAL = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


COLAB = (
    "anywidget==0.9.21", "backcall==0.2.0", "decorator==5.3.1", "ipykernel==6.17.1", "ipython==7.34.0",
    "ipython_genutils==0.2.0", "ipywidgets==7.7.1", "jedi==0.19.2", "pickleshare==0.7.5",
    "traitlets==5.7.1", "widgetsnbextension==3.6.10",
)  # fmt: skip
"""What Colab had in August 2026, and what those need beside what is there."""


def other_packages(name, *pins):
    """Returns a folder with other packages, to stand in front of a kernel's path; the environment stays as it is."""
    folder = KERNELS / name
    if not (folder / "complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
        made = subprocess.run([*command, "--target", folder, *pins], capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.fail(made.stderr) if os.environ.get("CI") else pytest.skip(f"not to be had: {' '.join(pins)}")
        (folder / "complete").touch()
    return folder


class Lab:
    """The server of JupyterLab: started on entry, stopped by its process group on exit.

    Args:
        first: a folder of packages for the kernels, which have them before those of the environment.
        save_widgets: write the state of widgets into notebooks, which is off unless one asks for it.
    """

    module = "jupyterlab"
    page = "lab/tree"
    options = (
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    )

    def __init__(self, folder, *, first=None, save_widgets=False):
        self.root = folder / "notebooks"
        self.root.mkdir()
        self.log = folder / "server.log"
        self.token = secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.environment = {
            **os.environ,
            **{f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")},
            "IPYTHONDIR": str(folder / "ipython"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": OURS,
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }

        if first is not None:
            kernel = folder / "path" / "kernels" / "python3"
            kernel.mkdir(parents=True)
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
            spec["env"] = {"PYTHONPATH": os.pathsep.join([str(first), OURS])}
            (kernel / "kernel.json").write_text(json.dumps(spec))
            # Kernel and page need the same anywidget.
            self.environment["JUPYTER_PATH"] = os.pathsep.join([str(folder / "path"), str(first / "share" / "jupyter")])
        settings = folder / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
        if save_widgets:
            settings = settings.parents[1] / "@jupyter-widgets" / "jupyterlab-manager"
            settings.mkdir(parents=True)
            (settings / "plugin.jupyterlab-settings").write_text('{"saveState": true}')

    def __enter__(self):
        command = [sys.executable, "-m", self.module, *SERVER_OPTIONS, *self.options]
        command += [f"--ServerApp.root_dir={self.root}"]
        command += [f"--ServerApp.port={self.url.rsplit(':', 1)[1]}", f"--IdentityProvider.token={self.token}"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment, cwd=self.root, start_new_session=True
            )
        self._wait()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)

    def _wait(self):
        for _ in range(300):
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text())
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"{self.url}/api/status?token={self.token}", timeout=5).close()
                return
            time.sleep(0.2)
        raise RuntimeError(f"{self.module} did not start:\n" + self.log.read_text())

    def write(self, name, *cells):
        """Writes a notebook of code cells and returns its name."""
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, self.root / name)
        return name


class Notebook(Lab):
    """The server of Notebook 7."""

    module = "notebook"
    page = "notebooks"
    options = ("--JupyterNotebookApp.expose_app_in_browser=True",)


class Book:
    """One notebook, open in one page."""

    def __init__(self, lab, page, name):
        self.lab, self.page, self.name = lab, page, name
        self.requests, self.errors = [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda one: self.requests.append(one.url))
        page.on("pageerror", lambda error: self.errors.append(f"page error: {error}"))
        page.on("console", self._on_console)

    def _on_console(self, message):
        if message.type == "error":
            self.errors.append(f"console: {message.text} ({message.location.get('url', '')})")

    def open(self):
        self.page.goto(f"{self.lab.url}/{self.lab.page}/{self.name}?reset&token={self.lab.token}")
        self.wait_for_kernel()
        return self

    def restart(self):
        """Restarts the kernel and forgets how often cells were run."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
        self.wait_for_kernel()
        self.page.evaluate(
            """() => {
                for (const cell of window.jupyterapp.shell.currentWidget.content.widgets)
                    if (cell.model.type === 'code') cell.model.executionCount = null;
            }"""
        )

    def close_kernel(self):
        """Saves the notebook and ends its kernel."""
        self.command("docmanager:save")
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")

    def reload(self):
        self.page.reload()
        self.wait_for_kernel()

    def wait_for_kernel(self):
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=120_000,
        )

    def start(self, index):
        """Runs a cell without waiting for it."""
        self.page.evaluate(
            """async index => {
                const app = window.jupyterapp, book = app.shell.currentWidget.content;
                book.activeCellIndex = index;
                book.deselectAll();
                app.commands.execute('notebook:run-cell');
            }""",
            index,
        )

    def run(self, index, *, fails=False):
        """Runs a cell and waits until the kernel is idle again; an error in it is one here unless it should fail."""
        before = self.count(index)
        self.start(index)
        self.page.wait_for_function(
            """([index, before]) => {
                const panel = window.jupyterapp.shell.currentWidget;
                const count = panel.content.widgets[index].model.executionCount;
                return count !== null && count !== before && panel.sessionContext.session.kernel.status === 'idle';
            }""",
            arg=[index, before],
            timeout=120_000,
        )
        errors = [output for output in self.outputs(index) if output["output_type"] == "error"]
        assert bool(errors) is fails, "\n".join(errors[0]["traceback"]) if errors else "the cell did not fail"

    def wait_until_idle(self, seconds):
        self.page.wait_for_timeout(100)
        self.page.wait_for_function(
            "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'",
            timeout=1000 * seconds,
        )

    def count(self, index):
        return self.page.evaluate(
            "index => window.jupyterapp.shell.currentWidget.content.widgets[index].model.executionCount", index
        )

    def outputs(self, index):
        """Returns a cell's outputs as they would be saved."""
        return self.page.evaluate(
            "index => window.jupyterapp.shell.currentWidget.content.widgets[index].model.outputs.toJSON()", index
        )

    def python(self, expression):
        """Returns what an expression is worth in the kernel, through JSON: what Python really received."""
        code = f"import json as _json\nprint('<<<' + _json.dumps({expression}, default=str) + '>>>')"
        text = self.said(code)
        assert "<<<" in text, text
        return json.loads(text.split("<<<", 1)[1].rsplit(">>>", 1)[0])

    def said(self, code):
        """Returns what code prints in the kernel, or its traceback."""
        return self.page.evaluate(
            """async code => {
                const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                const future = kernel.requestExecute({code, store_history: false});
                let text = '';
                future.onIOPub = message => {
                    if (message.header.msg_type === 'stream') text += message.content.text;
                    if (message.header.msg_type === 'error') text += message.content.traceback.join('\\n');
                };
                await future.done;
                return text;
            }""",
            code,
        )

    def eventually(self, expression, expected, seconds=30):
        """Waits until an expression in the kernel has a value; fails with the last one seen."""
        deadline = time.monotonic() + seconds
        while (seen := self.python(expression)) != expected:
            if time.monotonic() > deadline:
                failure = self.python("repr(getattr(bench(), '_failure', None))") if "bench" in expression else ""
                pytest.fail(f"{expression} is {seen!r}, not {expected!r} {failure}")
            self.page.wait_for_timeout(100)
        return seen

    def command(self, name, **arguments):
        self.page.evaluate("([name, args]) => window.jupyterapp.commands.execute(name, args)", [name, arguments])

    def cells(self):
        return self.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.widgets.length")

    def active(self):
        return self.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.activeCellIndex")

    def part(self, name):
        """Returns the part of the widget with that test id."""
        return self.page.get_by_test_id(name).first

    def turn(self, direction):
        """Turns the direction toggle."""
        self.choose("nbp-direction", direction)

    def choose(self, group, value):
        """Chooses a value of a radio group or of a tab list."""
        self.part(group).locator(f'label:has([value="{value}"]), [data-value="{value}"]').first.click()

    def select(self, name, value):
        self.part(name).select_option(value)

    def type_into(self, name, text):
        field = self.part(name)
        field.fill(text)
        field.press("Enter")

    def wait_for_text(self, locator, pattern):
        """Waits until a part's text matches a pattern."""
        deadline = time.monotonic() + 15
        while not re.search(pattern, locator.inner_text(), re.DOTALL):
            assert time.monotonic() < deadline, f"{locator.inner_text()!r} does not match {pattern!r}"
            self.page.wait_for_timeout(50)

    def _spot(self, row, col):
        """Returns the middle of a cell of the first map, relative to its canvas."""
        heatmap = self.part("nbp-heatmap")
        box = heatmap.locator("canvas").first.bounding_box()
        rows, cols = (int(heatmap.get_attribute(f"data-{axis}")) for axis in ("rows", "cols"))
        return {"x": (col + 0.5) * box["width"] / cols, "y": (row + 0.5) * box["height"] / rows}

    def point(self, row, col):
        self.part("nbp-heatmap").locator("canvas").first.hover(position=self._spot(row, col), force=True)

    def click(self, row, col):
        self.part("nbp-heatmap").locator("canvas").first.click(position=self._spot(row, col), force=True)

    def colour(self, row, col):
        """Returns red, green and blue of a cell, beside its number."""
        spot = self._spot(row, col)
        return (
            self.part("nbp-heatmap")
            .locator("canvas")
            .first.evaluate(
                """(canvas, spot) => {
                const scale = canvas.width / canvas.getBoundingClientRect().width;
                const x = Math.round((spot.x - 14) * scale), y = Math.round((spot.y - 10) * scale);
                return [...canvas.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3);
            }""",
                spot,
            )
        )

    def drawn(self, locator):
        """Whether a canvas inside a part holds more than one colour."""
        return locator.locator("canvas").evaluate_all(
            """all => all.some(canvas => {
                if (!canvas.width || !canvas.height) return false;
                const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
                const colours = new Set();
                for (let i = 0; i < data.length; i += 4) colours.add(data.slice(i, i + 3).join());
                return colours.size > 1;
            })"""
        )

    def strangers(self):
        """Returns all requests that were not to this machine."""
        return [url for url in self.requests if not url.startswith(LOCAL)]
