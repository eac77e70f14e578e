"""One-way flow: a file imports only from rows above its own; typing-only and in-function imports count."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "nbpatch"

ROWS: dict[str, float] = {
    "nbpatch.errors": 0,
    "nbpatch.card": 0.5,
    "nbpatch.display": 0.5,
    "nbpatch.tokens": 0.5,
    "nbpatch.statistics": 0.5,
    "nbpatch.files": 0.5,
    "nbpatch.frames": 0.5,
    "nbpatch.task_words": 0.5,
    "nbpatch.sites": 1,
    "nbpatch.prompts": 1,
    "nbpatch.corruption": 1.5,
    "nbpatch.result": 1,
    "nbpatch.metrics": 2,
    "nbpatch.edges": 1.5,
    "nbpatch.graph": 2,
    "nbpatch.tasks": 2,
    "nbpatch.plan": 3,
    "nbpatch.joint": 3.2,
    "nbpatch.several": 2,
    "nbpatch.bridges": 3.5,
    "nbpatch.hub": 3.5,
    "nbpatch.parts": 3.5,
    "nbpatch.model": 4,
    "nbpatch.engine": 5,
    "nbpatch.methods": 6,
    "nbpatch.view": 6,
    "nbpatch.cell": 7,
    "nbpatch.circuit_view": 7,
    "nbpatch.live": 6.5,
    "nbpatch.cluster": 7,
    "nbpatch.compat": 7,
    "nbpatch.tiny": 7,
    "nbpatch.prompt_editor": 7,
    "nbpatch.workbench": 7,
    "nbpatch.attention_view": 7,
    "nbpatch.showing": 7.5,
    "nbpatch.magics": 8,
    "nbpatch.__main__": 8,
    "nbpatch": 8,
}
LAST_ROW = 8
"""Its files reach for each other inside functions; cycles are still refused."""

PACKAGES_OF_SIBLINGS = ("nbpatch.engine", "nbpatch.live", "nbpatch.tiny", "nbpatch.view")
"""Inside these, files may import each other; cycles are still refused."""

FORBIDDEN = {
    "nbpatch.view": ("torch", "transformer_lens", "transformers"),
    "nbpatch.result": ("torch", "transformer_lens", "transformers", "matplotlib", "IPython"),
    "nbpatch.prompts": ("torch", "transformer_lens", "transformers", "xarray"),
    "nbpatch.plan": ("torch", "transformer_lens", "transformers", "xarray"),
    "nbpatch.sites": ("torch", "transformer_lens", "transformers", "numpy", "xarray"),
    "nbpatch.errors": ("torch", "numpy", "xarray", "IPython"),
}
"""Libraries that a module must not load anywhere, not even inside a function."""


def modules(package: Path) -> dict[str, Path]:
    names = {".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in package.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in sorted(names.items())}


def imported(source: str, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) of each import in `source`; `from a import b` yields both a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if is_package else module.split(".")[:-1]
            parts = parts[: len(parts) - (node.level - 1)] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
            yield from ((node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def edges(package: Path) -> dict[str, set[tuple[int, str]]]:
    """Returns for each module the (line, module) of all it imports; names inside a module count as the module."""
    known = modules(package)
    graph: dict[str, set[tuple[int, str]]] = {}
    for name, path in known.items():
        is_package = path.name == "__init__.py"
        for line, target in imported(path.read_text(encoding="utf-8"), name, is_package=is_package):
            inside = target if target in known else target.rpartition(".")[0]
            graph.setdefault(name, set())
            if inside in known and inside != name:
                graph[name].add((line, inside))
            elif not target.startswith(package.name):
                graph[name].add((line, target))
    return graph


def row_of(module: str) -> float:
    """Returns the row of a module or of the package it is in; a new top-level module has none until it is placed."""
    if module == "nbpatch":
        return ROWS[module]
    top = ".".join(module.split(".")[:2])
    if top not in ROWS:
        pytest.fail(f"{top} stands in no row of DESIGN.md's table; place it in ROWS")
    return ROWS[top]


def siblings(one: str, other: str) -> bool:
    return any(one.startswith(p) and (other == p or other.startswith(f"{p}.")) for p in PACKAGES_OF_SIBLINGS)


def offences(package: Path) -> list[str]:
    found = []
    for module, targets in edges(package).items():
        for line, target in sorted(targets):
            if not target.startswith("nbpatch"):
                continue
            if module.startswith("nbpatch.methods") and target == "nbpatch.methods.patching":
                continue
            if not siblings(module, target) and row_of(target) >= row_of(module) and row_of(module) < LAST_ROW:
                found.append(f"{module}:{line} (row {row_of(module)}) imports {target} (row {row_of(target)})")
            if module.startswith("nbpatch.view") and not siblings(module, target) and row_of(target) > 2:
                found.append(f"{module}:{line} is a view and imports {target} (row {row_of(target)})")
    return found


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Returns one import cycle, or []."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := visit(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_every_import_points_to_a_row_above():
    assert offences(PACKAGE) == []


def test_no_cycles():
    graph = {m: {t for _, t in targets if t.startswith("nbpatch")} for m, targets in edges(PACKAGE).items()}
    assert cycle(graph) == []


@pytest.mark.parametrize("module", sorted(FORBIDDEN))
def test_libraries_that_stay_out(module):
    found = [
        f"{name}:{line} imports {target}"
        for name, targets in edges(PACKAGE).items()
        if name == module or name.startswith(f"{module}.")
        for line, target in targets
        if target.split(".")[0] in FORBIDDEN[module]
    ]
    assert found == []


def test_heavy_libraries_are_not_loaded_at_module_level_above_the_model():
    heavy = ("torch", "transformer_lens", "transformers", "matplotlib")
    light = (
        "errors",
        "display",
        "sites",
        "prompts",
        "metrics",
        "result",
        "plan",
        "cell",
        "magics",
        "__main__",
        "__init__",
    )
    for name in light:
        body = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8")).body
        top = "\n".join(ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom))
        names = {target.split(".")[0] for _, target in imported(top, f"nbpatch.{name}", is_package=False)}
        assert not names & set(heavy), name


@pytest.mark.parametrize(
    ("file", "text", "offence"),
    [
        (
            "sites.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nbpatch.plan import Plan\n",
            "row 3",
        ),
        ("result.py", "def plot():\n    from nbpatch import view\n", "row 6"),
        ("view/plots.py", "from nbpatch.model import Model\n", "is a view"),
        ("methods/eap.py", "from nbpatch.methods import acdc\n", "row 6"),
        ("plan.py", "import importlib\nimportlib.import_module('nbpatch.engine')\n", "row 5"),
        ("prompts.py", "from .sites import Site\n", "row 1"),
    ],
)
def test_the_check_finds_offences(tmp_path, file, text, offence):
    package = tmp_path / "nbpatch"
    for name in ("__init__", "sites", "prompts", "result", "plan", "model"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / f"{name}.py").write_text("")
    for folder, name in (("view", "plots"), ("methods", "acdc"), ("methods", "eap"), ("engine", "run")):
        (package / folder).mkdir(exist_ok=True)
        (package / folder / "__init__.py").write_text("")
        (package / folder / f"{name}.py").write_text("")
    assert offences(package) == []
    (package / file).write_text(text)
    assert offence in " ".join(offences(package))


def test_the_check_finds_cycles():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
