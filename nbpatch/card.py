"""The methods card: what was done, in words, from a result's provenance alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

_METHOD = {
    "patch": "Activation patching: one site at a time takes its value from another run.",
    "path_patch": "Direct path patching: one receiver's input gets what one sender writes in another run; the "
    "receiver recomputes with it, everything else reads what it did.",
    "attention": "Attention patterns of the clean and the corrupted run; nothing was patched.",
}

_DIRECTION = {
    "denoising": "Denoising: the corrupted prompt was run with activations of the clean run.",
    "noising": "Noising: the clean prompt was run with activations of the corrupted run.",
    "both": (
        "Both directions: the corrupted prompt was run with activations of the clean run (denoising), "
        "and the clean prompt with activations of the corrupted run (noising)."
    ),
}

_CORRUPTION = {"counterfactual": "Values came from the other prompt of the same pair (counterfactual)."}


def write_card(made: Mapping[str, Any], baselines: xr.Dataset, warnings: Sequence[str]) -> str:
    """Returns the card of a result made as `made` says.

    Args:
        made: a result's provenance.
        baselines: its `clean` and `corrupted` [metric pair].
        warnings: what the run could not tell.
    """
    rows = [("Method", _METHOD.get(made["method"], made["method"]))]
    rows += [("Model", _model(made["model"])), ("Prompts", _prompts(made["pairs"]))]
    if made["method"] in ("patch", "path_patch"):
        rows += [
            ("Sites", f"{made['component']} over {' '.join(made['over'])}; an axis not named was patched whole."),
            ("Direction", _DIRECTION[made["direction"]]),
            ("Corruption", _CORRUPTION[made["corruption"]]),
            *(("Metric", _metric(metric, baselines)) for metric in made["metrics"]),
            ("Engine", _engine(made["engine"])),
        ]
    seed = made.get("seed")
    rows.append(("Seed", "none: nothing was drawn at random." if seed is None else str(seed)))
    rows.append(("Versions", ", ".join(f"{name} {number}" for name, number in made["versions"].items())))
    rows += [("Warning", warning) for warning in warnings]
    return "\n".join(f"{label + ':':<11} {text}" for label, text in rows)


def _model(model: Mapping[str, Any]) -> str:
    return (
        f"{model['name']} ({model['family']}), {model['n_layers']} layers, {model['n_heads']} heads, "
        f"d_model {model['d_model']}, {model['dtype']} on {model['device']}, weights {model['hash']}."
    )


def _prompts(pairs: Sequence[Mapping[str, Any]]) -> str:
    first = pairs[0]
    answers = " against ".join(" or ".join(map(repr, first[name])) for name in ("answer", "wrong") if first[name])
    many = f"{len(pairs)} pairs, the first: " if len(pairs) > 1 else ""
    return f"{many}clean {first['clean']!r}, corrupted {first['corrupted']!r}, answer {answers}."


def _metric(metric: Mapping[str, Any], baselines: xr.Dataset) -> str:
    clean, corrupted = (float(baselines[run].sel(metric=metric["name"]).mean()) for run in ("clean", "corrupted"))
    unit = f" [{metric['unit']}]" if metric["unit"] else ""
    return f"{metric['name']}{unit}: clean {clean:.4g}, corrupted {corrupted:.4g}, gap {clean - corrupted:.4g}."


def _precision(engine: Mapping[str, Any]) -> str:
    error = engine.get("error_against_float32")
    return "" if error is None else f" Logits are off by up to {error:.1e} from float32."


def _engine(engine: Mapping[str, Any]) -> str:
    name = "wave" if "waves" in engine else "forward"
    count = engine[f"{name}s"]
    inside = f"{count} {name}" if count == 1 else f"{count} {name}s"
    why = f" ({engine['reason']})" if engine.get("reason") else ""
    return (
        f"{engine['name']}{why}, {engine['cells']} cells: {engine['run']} runs in {inside}, "
        f"{engine['exact']} exactly the base value by construction.{_precision(engine)}"
    )
