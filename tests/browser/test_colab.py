"""The package versions of Colab, without its page: nbpatch loads, runs, takes what a page sends, and is displayed."""

import json
import os
import subprocess
import sys

import pytest
from host import COLAB, OURS, other_packages

pytestmark = pytest.mark.long

CODE = """\
import json, IPython, ipykernel, ipywidgets, anywidget
import nbpatch as nbp
from IPython.core.interactiveshell import InteractiveShell
from nbpatch.workbench import Workbench

shell = InteractiveShell.instance()
pair = nbp.PromptPair(
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    " Mary",
    " John",
)
wb = Workbench(nbp.load("tiny"), pair, "z", "layer head")
wb.run()
sent = []
wb.send = lambda message, buffers=None: sent.append([message["type"], [len(one) for one in buffers or []]])

def page(content):
    wb._handle_msg({"content": {"data": {"method": "custom", "content": {"v": 1, **content}}}, "buffers": []})

wb._handle_msg({"content": {"data": {"method": "update", "state": {"selection": {"layer": 1, "head": 2}}}}})
page({"type": "bundle", "name": "views"})
page({"type": "set", "direction": "noising"})
assert wb._done.wait(30)
data, _ = wb._repr_mimebundle_()
shell.run_line_magic("load_ext", "nbpatch")
print("<<<" + json.dumps({
    "versions": [one.__version__ for one in (IPython, ipykernel, ipywidgets, anywidget)],
    "selection": wb.selection, "direction": wb.result.provenance["direction"], "state": wb.status["state"],
    "sent": sent, "mimes": sorted(data), "magic": "patch" in shell.magics_manager.magics["cell"],
}))
"""


def test_the_packages_of_colab_are_enough(tmp_path):
    folder = other_packages("colab", *COLAB)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), OURS]), "IPYTHONDIR": str(tmp_path)}
    made = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, timeout=200, check=False
    )
    assert made.returncode == 0, made.stderr
    seen = json.loads(made.stdout.split("<<<", 1)[1])
    assert seen["versions"] == ["7.34.0", "6.17.1", "7.7.1", "0.9.21"]
    assert seen["selection"] == {"layer": 1, "head": 2}
    assert seen["direction"] == "noising"
    assert seen["state"] == "done"
    assert seen["magic"] is True
    assert {kind for kind, _ in seen["sent"]} == {"bundle", "map"}
    assert all(len(sizes) == (1 if kind == "bundle" else 2) for kind, sizes in seen["sent"])
    assert seen["mimes"] == ["application/vnd.jupyter.widget-view+json", "image/png", "text/plain"]
