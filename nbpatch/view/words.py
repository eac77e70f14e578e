"""The sentences around a map: the question it answers, what its colours mean, what was run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nbpatch.prompts import visible
from nbpatch.result import Result
from nbpatch.view.style import readout_number

_GIVEN = {
    "attn_out": "output", "mlp_out": "output", "z": "output", "head_out": "output", "embed": "embedding", "q": "query",
    "k": "key", "v": "value", "pattern": "pattern", "scores": "scores", "mlp_post": "activation",
}  # fmt: skip
_ABLATED = {"zero": "0", "mean": "its mean over a dataset", "resample": "its value on another prompt"}
_SOURCES = {
    "counterfactual": "other prompt", "noise": "clean prompt with noise", "zero": "zero ablation",
    "mean": "mean ablation", "resample": "resample ablation",
}  # fmt: skip
_UNBROKEN = "\u00a0"
_BY_HEAD = ("z", "q", "k", "v", "head_out")
_COUNTED = ("logit", "nat", "bit", "place")


def question(made: Mapping[str, Any], pair: Mapping[str, Any], metric: str) -> tuple[str, str]:
    """Returns the question a map answers, and what goes on in it, as a second sentence.

    Args:
        made: a result's provenance.
        pair: the prompts it is about, from the provenance.
    """
    subject, given = _subject(made), _GIVEN.get(made["component"], "value")
    behaviour = _behaviour(made, pair, metric).replace(" ", _UNBROKEN)
    noised = made.get("corruption") == "noise"
    corrupted = "noised prompt" if noised else "corrupted prompt"
    if made.get("kind") == "TE":
        return f"How much does the corrupted prompt change {behaviour}", "the same for every cell?"
    if made.get("kind") == "NDE":
        rest = f"when each one’s {given} is kept as it is on the clean prompt?"
        return f"Past which {subject} does the corrupted prompt change {behaviour}", rest
    if made["direction"] == "both":
        return (
            f"Which {subject} are {_seems(made)}sufficient to restore, and which are necessary to keep, {behaviour}?",
            f"Denoising puts their clean {given} into the {corrupted}; noising their "
            f"{'noised' if noised else 'corrupted'} {given} into the clean prompt.",
        )
    if made["direction"] == "denoising":
        asked, rest = f"{_seems(made)}sufficient to restore", f"when the {corrupted} gets their clean {given}?"
    elif made.get("corruption") in _ABLATED:
        asked, rest = (
            f"{_seems(made)}necessary to keep",
            f"when each one’s {given} is set to {_ABLATED[made['corruption']]}?",
        )
    else:
        asked = f"{_seems(made)}necessary to keep"
        rest = f"when the clean prompt gets their {'noised' if noised else 'corrupted'} {given}?"
    return f"Which {subject} are {asked} {behaviour}", rest


def tokens_shown(pair: Mapping[str, Any], run: str) -> list[str]:
    """Returns a prompt's tokens as they are shown; a first token that every prompt gets is "bos"."""
    tokens = [visible(token) for token in pair[f"{run}_tokens"]]
    return ["bos", *tokens[1:]] if pair["has_bos"] else tokens


def _seems(made: Mapping[str, Any]) -> str:
    """Returns the reservation that an estimate is made with."""
    return "by estimate " if made["method"] == "attribute" else ""


def _subject(made: Mapping[str, Any]) -> str:
    subject = str(made["component_label"])
    if made["method"] == "path_patch":
        return f"paths ({subject})"
    if made["component"] in ("k", "v") and made["model"]["n_kv_heads"] < made["model"]["n_heads"]:
        subject = f"key–value {subject}"
    if made["component"].startswith("resid") and "pos" not in made["over"]:
        subject = subject.replace("positions", "layers")
    return f"{subject}, at which positions," if made["component"] in _BY_HEAD and "pos" in made["over"] else subject


def _behaviour(made: Mapping[str, Any], pair: Mapping[str, Any], metric: str) -> str:
    answer, wrong = (" or ".join(visible(token) for token in pair[name]) for name in ("answer", "wrong"))
    named: dict[str, str] = {
        "logit_diff": f"{answer} over {wrong}" if wrong else answer,
        "prob": f"the probability of {answer}",
        "log_prob": f"the log probability of {answer}",
        "rank": f"the rank of {answer}",
        "kl": "the clean prediction",
        "accuracy": f"{answer} as the prediction",
    }
    labels = {one["name"]: one["label"] or one["name"] for one in made["metrics"]}
    return named.get(metric, str(labels.get(metric, metric)))


def colour_key(result: Result, metric: str) -> str:
    """Returns what the colours mean: "Colour: effect as a share of the gap (8.10 logits).", or why there are none."""
    gap = float(result.gap(metric).mean())
    return f"Colour: effect as a share of the gap ({_amount(gap, _unit(result, metric)).lstrip('+')})."


def facts(result: Result, metric: str, pair: int | None) -> str:
    """Returns in one line what was run: model, direction, component, baselines, source, pairs, cells."""
    made = result.provenance
    pairs: Sequence[Any] = made["pairs"]
    chosen = result.baselines.sel(metric=metric)
    chosen = chosen.mean("pair") if pair is None else chosen.isel(pair=pair)
    label = next((one["label"] or one["name"] for one in made["metrics"] if one["name"] == metric), metric)
    direction = "both directions" if made["direction"] == "both" else made.get("kind", made["direction"])
    window = 1 if "kinds" in made else made.get("window", 1)
    together = f", {window} adjacent layers together" if window > 1 else ""
    count = f"{len(pairs)} pair{'s, the first shown' if len(pairs) > 1 else ''}"
    parts = [
        made["model"]["name"], direction, f"{made['component']} over {' '.join(made['over'])}{together}",
        f"{label}: clean {readout_number(float(chosen['clean']))}, "
        f"corrupted {readout_number(float(chosen['corrupted']))}",
        f"source: {_SOURCES.get(made.get('corruption', ''), 'other prompt')}",
        count if pair is None else f"pair {pair + 1} of {len(pairs)}",
        _made_of(made), "nbpatch",
    ]  # fmt: skip
    return " · ".join(parts)


def _made_of(made: Mapping[str, Any]) -> str:
    """Returns how the numbers came about: run exactly, or estimated."""
    if made["method"] != "attribute":
        return f"{made['engine']['run']} exact runs"
    verified = f", {made['verified']} cells run exactly" if made.get("verified") else ""
    return f"estimated ({made['variant']}){verified}"


def _unit(result: Result, metric: str) -> str:
    return str(result.data[metric].attrs.get("unit", ""))


def _amount(value: float, unit: str) -> str:
    if not np.isfinite(value):
        return "unknown"
    number = readout_number(value) if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"
    many = "s" if unit in _COUNTED and number.lstrip("+−") != "1.00" else ""
    return f"{number} {unit}{many}".rstrip()
