"""Activation patching in notebooks: two prompts in, an exact, linked heat map out.

Every public name is loaded on first use (PEP 562): `import nbpatch` loads neither torch, transformer_lens, xarray
nor matplotlib, and changes nothing in the interpreter.
"""

import importlib
from typing import TYPE_CHECKING, Any

from nbpatch import display

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from nbpatch import tasks
    from nbpatch.attention_view import AttentionView
    from nbpatch.circuit_view import CircuitView
    from nbpatch.corruption import Mean, Noise, Resample, Zero
    from nbpatch.engine import load
    from nbpatch.errors import NbpatchError
    from nbpatch.graph import Circuit
    from nbpatch.methods.attribution import attribute
    from nbpatch.methods.companions import attention
    from nbpatch.methods.comparing import agreement, compare, of_corruption, top_cells
    from nbpatch.methods.eap import eap
    from nbpatch.methods.evaluation import evaluate
    from nbpatch.methods.lens import direct_logit_attribution, logit_lens
    from nbpatch.methods.mediation import mediate, of_kind
    from nbpatch.methods.patching import dry_run, patch, patch_every, patch_sites
    from nbpatch.methods.paths import path_patch
    from nbpatch.methods.tracing import trace
    from nbpatch.model import Model
    from nbpatch.prompt_editor import PromptEditor
    from nbpatch.prompts import Pairs, PromptPair
    from nbpatch.result import Result, read
    from nbpatch.view.single import DirectionToggle, Heatmap
    from nbpatch.workbench import Workbench

__version__ = "0.1.0"

_HOMES = {
    "AttentionView": "nbpatch.attention_view",
    "Circuit": "nbpatch.graph",
    "CircuitView": "nbpatch.circuit_view",
    "DirectionToggle": "nbpatch.view.single",
    "Heatmap": "nbpatch.view.single",
    "Mean": "nbpatch.corruption",
    "Model": "nbpatch.model",
    "NbpatchError": "nbpatch.errors",
    "Noise": "nbpatch.corruption",
    "Pairs": "nbpatch.prompts",
    "PromptEditor": "nbpatch.prompt_editor",
    "PromptPair": "nbpatch.prompts",
    "Resample": "nbpatch.corruption",
    "Result": "nbpatch.result",
    "Workbench": "nbpatch.workbench",
    "Zero": "nbpatch.corruption",
    "agreement": "nbpatch.methods.comparing",
    "attention": "nbpatch.methods.companions",
    "attribute": "nbpatch.methods.attribution",
    "compare": "nbpatch.methods.comparing",
    "direct_logit_attribution": "nbpatch.methods.lens",
    "dry_run": "nbpatch.methods.patching",
    "eap": "nbpatch.methods.eap",
    "evaluate": "nbpatch.methods.evaluation",
    "load": "nbpatch.engine",
    "logit_lens": "nbpatch.methods.lens",
    "mediate": "nbpatch.methods.mediation",
    "of_corruption": "nbpatch.methods.comparing",
    "of_kind": "nbpatch.methods.mediation",
    "patch": "nbpatch.methods.patching",
    "patch_every": "nbpatch.methods.patching",
    "patch_sites": "nbpatch.methods.patching",
    "path_patch": "nbpatch.methods.paths",
    "read": "nbpatch.result",
    "top_cells": "nbpatch.methods.comparing",
    "trace": "nbpatch.methods.tracing",
}

__all__ = [
    "AttentionView",
    "Circuit",
    "CircuitView",
    "DirectionToggle",
    "Heatmap",
    "Mean",
    "Model",
    "NbpatchError",
    "Noise",
    "Pairs",
    "PromptEditor",
    "PromptPair",
    "Resample",
    "Result",
    "Workbench",
    "Zero",
    "__version__",
    "agreement",
    "attention",
    "attribute",
    "compare",
    "direct_logit_attribution",
    "dry_run",
    "eap",
    "evaluate",
    "load",
    "load_ipython_extension",
    "logit_lens",
    "mediate",
    "of_corruption",
    "of_kind",
    "patch",
    "patch_every",
    "patch_sites",
    "path_patch",
    "read",
    "tasks",
    "top_cells",
    "trace",
    "unload_ipython_extension",
]


def __getattr__(name: str) -> Any:
    if name == "tasks":
        return importlib.import_module("nbpatch.tasks")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(shell: "InteractiveShell") -> None:
    """Registers the magics: what `%load_ext nbpatch` calls."""
    from nbpatch import magics

    magics.register(shell)


def unload_ipython_extension(shell: "InteractiveShell") -> None:
    """Takes the magics out again and restores what they replaced: what `%unload_ext nbpatch` calls."""
    from nbpatch import magics

    magics.unregister(shell)


def _display(*, live: bool) -> display.Display:
    if live:
        from nbpatch import showing

        return showing
    from nbpatch.view import saved

    return saved


display.provider = _display
