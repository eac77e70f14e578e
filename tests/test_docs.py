"""Documents and notebooks speak only of what exists: names, options, commands, targets, files."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nbpatch
from nbpatch import __main__ as command
from nbpatch.magics import PatchMagics
from nbpatch.metrics import METRICS
from nbpatch.result import Result
from nbpatch.sites import SWEEPABLE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def source_of(path):
    return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])


TEXTS = {"README.md": README, "CONTRIBUTING.md": CONTRIBUTING, "CHANGELOG.md": CHANGELOG}
TEXTS |= {path.name: source_of(path) for path in NOTEBOOKS}
EVERY_TEXT = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


def subcommands():
    actions = command._parser()._actions
    return next(set(action.choices) for action in actions if isinstance(action, argparse._SubParsersAction))


@EVERY_TEXT
def test_public_names_exist(text):
    for name in re.findall(r"\bnbp\.(\w+)", text):
        assert name in nbpatch.__all__, f"nbp.{name}"


@EVERY_TEXT
def test_what_a_result_offers_exists(text):
    for name in re.findall(r"(?<![\"/\w.])result\.([a-z_]\w*)", text):
        assert hasattr(Result, name) or name in Result.__dataclass_fields__, f"result.{name}"


@EVERY_TEXT
def test_commands_and_targets_exist(text):
    for name in re.findall(r"python -m nbpatch (\w+)", text):
        assert name in subcommands(), name
    for name in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{''.join(name)}:", MAKEFILE, re.MULTILINE), name


@EVERY_TEXT
def test_options_of_the_magic_exist(text):
    for line in re.findall(r"%%patch .*", text):
        for option in re.findall(r"(?<=\s)--?[a-z]\w*", line):
            assert option in PatchMagics.patch.parser._option_string_actions, option


@EVERY_TEXT
def test_files_exist(text):
    for name in re.findall(r"`((?:tests|notebooks|docs|nbpatch|js)/[\w./-]+)`|\]\((?!http)([\w./-]+)\)", text):
        path = "".join(name)
        assert (ROOT / path).exists(), path


@EVERY_TEXT
def test_quoted_components_and_metrics_exist(text):
    for name in re.findall(r'nbp\.patch\([^)]*?, "(\w+)"', text):
        assert name in SWEEPABLE, name
    for name in re.findall(r'metric="(\w+)"', text):
        assert name in METRICS, name


def test_lengths():
    assert README.count("\n") <= 150
    assert CONTRIBUTING.count("\n") <= 60
    assert len(re.findall(r"!\[", README)) == 1


def test_the_table_of_contributing_is_that_of_the_layers_test():
    from test_layers import ROWS

    for row, modules in re.findall(r"^\| (\d) \| ([^|]*) \|", CONTRIBUTING, re.MULTILINE):
        for name in re.findall(r"[a-z_]+", re.sub(r"\(.*\)|beside (it|them)|above both", "", modules)):
            module = {"__init__": "nbpatch"}.get(name, f"nbpatch.{name}")
            assert int(ROWS[module]) == int(row), name


def test_the_python_of_the_readme_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) <= 14
    environment = {**__import__("os").environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "layer" in done.stdout
    assert (tmp_path / "result.nc").exists()


def test_the_changelog_has_a_place_for_what_comes_next():
    assert "## [Unreleased]" in CHANGELOG
    assert re.findall(r"^### (\w+)", CHANGELOG, re.MULTILINE)
