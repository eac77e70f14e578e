"""What a result remembers of the model, the prompts and the versions that made it: plain values, fit for JSON."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nbpatch.model import Model
from nbpatch.prompts import TokenizedPair


def describe_model(model: Model) -> dict[str, Any]:
    """Returns the model's name, the hash of its weights and its sizes."""
    shape = model.shape
    return {
        "name": model.name,
        "hash": model.hash,
        "family": str(getattr(model.config, "model_type", "")),
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "n_kv_heads": shape.n_kv_heads,
        "d_model": shape.d_model,
        "d_vocab": shape.d_vocab,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }


def describe_tokens(one: TokenizedPair) -> dict[str, Any]:
    """Returns a pair's prompts, answers and tokens."""
    return {
        "clean": one.pair.clean,
        "corrupted": one.pair.corrupted,
        "answer": list(one.answer_tokens),
        "wrong": list(one.wrong_tokens),
        "clean_tokens": list(one.clean_tokens),
        "corrupted_tokens": list(one.corrupted_tokens),
        "clean_ids": list(one.clean_ids),
        "corrupted_ids": list(one.corrupted_ids),
        "answer_ids": list(one.answer_ids),
        "wrong_ids": list(one.wrong_ids),
        "aligned": [list(places) for places in one.aligned],
        "differs": list(one.marked),
        "clean_end": one.clean_end,
        "corrupted_end": one.corrupted_end,
        "has_bos": one.has_bos,
        "labels": {name: list(places) for name, places in one.labels.items()},
        "group": one.pair.group,
    }


@cache
def describe_versions() -> dict[str, str]:
    """Returns the versions a result was made with."""
    packages = ("nbpatch", "torch", "transformers", "transformer-lens")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a source tree on the path, or a build that carries no metadata
        return "not installed"
