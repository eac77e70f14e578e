"""Importing nbpatch is quick, loads nothing heavy and changes nothing: looked at in fresh interpreters."""

import json
import subprocess
import sys

HEAVY = (
    "torch",
    "transformer_lens",
    "transformers",
    "xarray",
    "matplotlib",
    "pandas",
    "numpy",
    "IPython",
    "ipywidgets",
    "anywidget",
)

STATE = """
import sys, threading, warnings, logging, signal, atexit, json

def state():
    import matplotlib
    return {
        "rc": {k: repr(v) for k, v in matplotlib.rcParams.items()},
        "backend": repr(matplotlib.rcParams._get_backend_or_none()),
        "excepthook": sys.excepthook is sys.__excepthook__,
        "displayhook": sys.displayhook is sys.__displayhook__,
        "threads": sorted(t.name for t in threading.enumerate()),
        "filters": repr(warnings.filters),
        "level": logging.getLogger().level,
        "handlers": len(logging.getLogger().handlers),
        "sigint": repr(signal.getsignal(signal.SIGINT)),
        "meta_path": repr(sys.meta_path),
        "path_hooks": len(sys.path_hooks),
        "path": sys.path[:],
    }
"""


def fresh(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_takes_less_than_150_ms():
    code = "import time; t = time.perf_counter(); import nbpatch; print(time.perf_counter() - t)"
    assert min(fresh(code) for _ in range(3)) < 0.150


def test_import_loads_nothing_heavy():
    loaded = fresh("import sys, json, nbpatch; print(json.dumps(sorted(sys.modules)))")
    assert "nbpatch.display" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_a_pair_needs_no_torch():
    loaded = fresh("import sys, json, nbpatch; nbpatch.PromptPair; print(json.dumps(sorted(sys.modules)))")
    assert "nbpatch.prompts" in loaded
    assert [name for name in ("torch", "transformer_lens", "transformers", "matplotlib") if name in loaded] == []


def test_reading_results_needs_no_torch():
    loaded = fresh("import sys, json, nbpatch; nbpatch.read; print(json.dumps(sorted(sys.modules)))")
    assert "nbpatch.result" in loaded
    assert [name for name in ("torch", "transformer_lens", "transformers", "matplotlib") if name in loaded] == []


def test_import_changes_nothing():
    before, after = fresh(f"{STATE}\nb = state()\nimport nbpatch\nprint(json.dumps([b, state()]))")
    assert before == after


def test_loading_every_public_name_changes_no_style_and_no_hook():
    every = "import nbpatch\n[getattr(nbpatch, n) for n in nbpatch.__all__]"
    code = f"{STATE}\nimport torch, xarray, transformer_lens\nb = state()\n{every}\nprint(json.dumps([b, state()]))"
    before, after = fresh(code)
    for kept in ("rc", "backend", "excepthook", "displayhook", "threads", "sigint", "path"):
        assert before[kept] == after[kept], kept
