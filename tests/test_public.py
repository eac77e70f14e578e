"""The public surface: few names, sorted, each loaded on first use, each documented."""

import ast
import inspect
from pathlib import Path

import pytest

import nbpatch

PACKAGE = Path(nbpatch.__file__).parent
OBJECTS = [name for name in nbpatch.__all__ if not name.startswith("__")]


def test_all_is_sorted_unique_and_small():
    assert nbpatch.__all__ == sorted(set(nbpatch.__all__))
    assert len(nbpatch.__all__) <= 45


def test_dir_lists_all_names():
    assert set(nbpatch.__all__) <= set(dir(nbpatch))


@pytest.mark.parametrize("name", OBJECTS)
def test_each_name_loads_and_is_documented(name):
    thing = getattr(nbpatch, name)
    assert inspect.getdoc(thing), name


def test_lazy_names_and_typing_imports_say_the_same():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    typing_only = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {
        alias.name: node.module
        for node in typing_only.body
        if isinstance(node, ast.ImportFrom) and node.module.startswith("nbpatch.")
        for alias in node.names
    }
    assert homes == nbpatch._HOMES
    others = {"__version__", "tasks", "load_ipython_extension", "unload_ipython_extension"}
    assert set(homes) | others == set(nbpatch.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'pach'"):
        _ = nbpatch.pach


def takes_a_model(name):
    """Whether a public name is a method: a function whose first parameter is a model."""
    thing = getattr(nbpatch, name)
    return inspect.isfunction(thing) and next(iter(inspect.signature(thing).parameters), "") == "model"


METHODS = [name for name in OBJECTS if takes_a_model(name)]
ABOUT = {"evaluate": "circuit", "trace": "facts"}
"""What a method takes behind the model where that is no pairs."""


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_model_and_pairs_first_and_at_most_eight(name):
    parameters = list(inspect.signature(getattr(nbpatch, name)).parameters.values())
    assert [p.name for p in parameters[:2]] == ["model", ABOUT.get(name, "pairs")]
    assert len(parameters) <= 8
    assert not [p for p in parameters if isinstance(p.default, bool) and p.kind is not p.KEYWORD_ONLY]


def test_the_methods_are_found_without_being_named():
    """Public functions that take no model, or make one, are known; any other has to take it first."""
    others = {
        "agreement", "load", "load_ipython_extension", "of_corruption", "of_kind", "read", "top_cells",
        "unload_ipython_extension",
    }  # fmt: skip
    functions = {name for name in OBJECTS if inspect.isfunction(getattr(nbpatch, name))}
    assert functions - set(METHODS) == others
    assert set(ABOUT) < set(METHODS)


def test_no_public_name_is_also_a_module():
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert modules & set(nbpatch.__all__) == {"tasks"}, "tasks is a module, and loaded as one"


def test_version_is_that_of_the_package():
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{nbpatch.__version__}"' in text
