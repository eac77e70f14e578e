"""The methods card: what was done, in words, from a result's provenance alone."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

_METHOD = {
    "patch": "Activation patching: one site at a time takes its value from another run.",
    "attribute": "Attribution patching: what a patch would change, estimated from the gradient at the run that is "
    "changed; nothing was patched but what was verified.",
    "evaluate": "Circuit evaluation: everything outside the kept edges stands at its ablated value, exactly.",
    "compare": "Activation patching, the same sweep with several metrics, corruptions and directions.",
    "trace": "Causal tracing: a hidden state, or a window of MLP or attention outputs, is restored in the noised run.",
    "mediate": "Causal mediation: total effect of exchanging the prompts, and what of it goes through a mediator "
    "(indirect) and around it (direct).",
    "logit_lens": "Logit lens: the residual stream at each depth through the final norm and unembedding; nothing was "
    "patched.",
    "direct_logit_attribution": "Direct logit attribution: what each part writes, through the final norm with the "
    "run's own scale, onto the answer's direction; nothing was patched.",
    "attention": "Attention patterns of the clean and the corrupted run; nothing was patched.",
}

_VARIANT = {
    "direct": "Direct path patching: receivers' inputs get what senders write in another run; the receivers recompute "
    "with it, everything else reads what it did.",
    "wang": "Path patching (Wang et al. 2022): receivers' inputs get what senders write in another run, MLPs between "
    "them recomputed and all other heads frozen; the receivers recompute with it.",
    "tree": "Path patching in the treeified model (Goldowsky-Dill et al. 2023): another run on the paths from the "
    "senders through the receivers to the logits, the base run everywhere else.",
}

_DIRECTION = {
    "denoising": "Denoising: the corrupted prompt was run with activations of the clean run.",
    "noising": "Noising: the clean prompt was run with activations of the corrupted run.",
    "both": (
        "Both directions: the corrupted prompt was run with activations of the clean run (denoising), "
        "and the clean prompt with activations of the corrupted run (noising)."
    ),
}


def write_headline(made: Mapping[str, Any], baselines: xr.Dataset, values: xr.DataArray) -> str:
    """Returns one line: what was patched, in which direction, and the baselines.

    Args:
        made: a result's provenance.
        baselines: `clean` and `corrupted` of its first metric [pair].
        values: that metric's values, with their unit.
    """
    kind = made.get("corruption", "counterfactual")
    ablated = "" if kind == "counterfactual" else f" ({kind})"
    how = made.get("kind", "mediation") if made["method"] == "mediate" else made["direction"]
    estimated = f", estimated ({made['variant']})" if made["method"] == "attribute" else ""
    unit = values.attrs.get("unit", "")
    clean, corrupted = (float(baselines[run].mean()) for run in ("clean", "corrupted"))
    pairs = values.sizes["pair"]
    if made["method"] == "evaluate":
        how = f"all other edges {'as in the corrupted run' if kind == 'counterfactual' else 'ablated'}"
        made = {**made, "component": "circuits on their own", "over": ["edges"]}
    return (
        f"{made['component']} over {' '.join(made['over'])}, {how}{ablated}{estimated}, {made['model']['name']}, "
        f"{pairs} pair{'s' if pairs != 1 else ''}: "
        f"{values.name} clean {clean:+.2f}, corrupted {corrupted:+.2f} {unit}".rstrip()
    )


def write_card(
    made: Mapping[str, Any], baselines: xr.Dataset, warnings: Sequence[str], *, markdown: bool = False
) -> str:
    """Returns the card of a result made as `made` says.

    Args:
        made: a result's provenance.
        baselines: its `clean` and `corrupted` [metric pair].
        warnings: what the run could not tell.
        markdown: as a Markdown list instead of aligned lines.
    """
    rows = _rows(made, baselines, warnings)
    if markdown:
        return "\n".join(f"- **{label}.** {_escaped(text)}" for label, text in rows)
    return "\n".join(f"{label + ':':<11} {text}" for label, text in rows)


def _escaped(text: str) -> str:
    """Returns a text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|~$])", r"\\\1", text)


def _rows(made: Mapping[str, Any], baselines: xr.Dataset, warnings: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the card's lines: what each is about, and what it says."""
    method = str(made["method"])
    words = _VARIANT.get(str(made.get("variant")), "") if method == "path_patch" else _METHOD.get(method, method)
    rows = [("Method", words)]
    rows += [("Model", _model(made["model"])), ("Prompts", _prompts(made["pairs"]))]
    if "component" in made:
        rows += [("Sites", _sites(made)), ("Direction", _direction(made))]
        rows += [("Corruption", words) for words in _corruptions(made)]
    rows += [("Metric", _metric(metric, baselines)) for metric in made.get("metrics", ())]
    if "engine" in made:
        rows.append(("Engine", _engine(made["engine"])))
    seed = made.get("seed")
    rows.append(("Seed", "none: nothing was drawn at random." if seed is None else str(seed)))
    rows.append(("Versions", ", ".join(f"{name} {number}" for name, number in made["versions"].items())))
    rows += [("Warning", warning) for warning in warnings]
    return rows


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


def _corruptions(made: Mapping[str, Any]) -> list[str]:
    if "corruptions" not in made:
        return [made["corruption_words"]]
    shared = made["corruption_words"]
    return [f"{name}: {one.get('corruption_words', shared)}" for name, one in made["corruptions"].items()]


def _metric(metric: Mapping[str, Any], baselines: xr.Dataset) -> str:
    unit = f" [{metric['unit']}]" if metric["unit"] else ""
    own = baselines.sel(metric=metric["name"]) if "metric" in baselines.coords else None
    if own is None:
        return f"{metric['name']}{unit}."
    if "corruption" not in own.dims:
        return f"{metric['name']}{unit}: {_both_runs(own)}."
    each = [f"{name}: {_both_runs(own.sel(corruption=name))}" for name in own["corruption"].to_numpy()]
    return f"{metric['name']}{unit}: {'; '.join(each)}."


def _both_runs(own: xr.Dataset) -> str:
    clean, corrupted = (float(own[run].mean()) for run in ("clean", "corrupted"))
    return f"clean {clean:.4g}, corrupted {corrupted:.4g}, gap {clean - corrupted:.4g}"


def _sites(made: Mapping[str, Any]) -> str:
    if "sets" in made:
        chosen = f"{made['select']} of {made['candidates']} by the NIE of {made['selected_by']}"
        return f"{', '.join(made['sets'][-1])}, joined in this order and patched together; {chosen}."
    if made["over"] == ["site"]:
        return f"named sets of {made['component']}; each set was patched in one run."
    window = 1 if "kinds" in made else made.get("window", 1)
    windows = f" {window} adjacent layers were patched together." if window > 1 else ""
    swept = " ".join(made["over"]) or "nothing"
    return f"{made['component']} over {swept}; an axis not named was patched whole.{windows}"


def _direction(made: Mapping[str, Any]) -> str:
    if made["method"] == "mediate":
        return f"{_DIRECTION['both']} Effects are against the clean run."
    if made["corruption"] in ("zero", "mean", "resample"):
        return "Noising: sites were changed in the clean run."
    if made["method"] == "evaluate":
        return "None: kept edges carry what their senders put out in the clean prompt's run, all others are ablated."
    text = _DIRECTION[made["direction"]]
    return text.replace("corrupted prompt", "noised prompt") if made["corruption"] == "noise" else text


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _precision(engine: Mapping[str, Any]) -> str:
    error = engine.get("error_against_float32")
    return "" if error is None else f" Logits are off by up to {error:.1e} from float32."


def _engine(engine: Mapping[str, Any]) -> str:
    name = "wave" if "waves" in engine else "forward"
    count = engine[f"{name}s"]
    inside = _counted(count, name)
    why = f" ({engine['reason']})" if engine.get("reason") else ""
    if "backwards" in engine:
        both = f"{_counted(engine['forwards'], 'forward')} and {_counted(engine['backwards'], 'backward')}"
        return f"{engine['name']}, {engine['cells']} cells estimated from {both}.{_precision(engine)}"
    return (
        f"{engine['name']}{why}, {engine['cells']} cells: {engine['run']} runs in {inside}, "
        f"{engine['exact']} exactly the base value by construction.{_precision(engine)}"
    )
