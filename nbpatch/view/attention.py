"""Attention patterns with CircuitsVis, from the script that its package brings: no request leaves the page."""

import html
import importlib.resources
import json
from typing import Any

from nbpatch.errors import ResultError
from nbpatch.result import Result

_HEIGHT = 520


def circuitsvis(result: Result, *, layer: int = 0, run: str = "clean", pair: int = 0) -> Any:
    """Returns CircuitsVis's view of one layer's heads, as an object that a notebook displays.

    CircuitsVis's own display loads a script from a network and asks a web site at each display; this one puts the
    packaged script into a frame of its own.

    Args:
        result: what `nbpatch.attention` returned.
        run: "clean" or "corrupted".

    Raises:
        ResultError: not attention, or no such layer or run.
    """
    from IPython.display import HTML

    return HTML(frame(result, layer=layer, run=run, pair=pair))


def frame(result: Result, *, layer: int = 0, run: str = "clean", pair: int = 0) -> str:
    """Returns the frame's HTML."""
    if result.provenance.get("method") != "attention":
        raise ResultError(
            "no attention patterns in this result.", where="circuitsvis", fix="nbp.attention(model, pair)"
        )
    pattern = result.data["pattern"]
    if run not in ("clean", "corrupted") or not 0 <= layer < pattern.sizes["layer"]:
        seen = f"run={run!r}, layer={layer}"
        fix = f'run="clean" or "corrupted", layer 0–{pattern.sizes["layer"] - 1}'
        raise ResultError("no such attention pattern.", where="circuitsvis", seen=seen, fix=fix)
    heads = pattern.sel(run=run).isel(layer=layer, pair=pair).transpose("head", "dest", "src")
    props = {
        "tokens": result.provenance["pairs"][pair][f"{run}_tokens"],
        "attentionHeadNames": [f"{layer}.{head}" for head in range(heads.sizes["head"])],
        "maskUpperTri": False,
        "attention": [[[round(float(one), 4) for one in row] for row in head] for head in heads.to_numpy()],
    }
    data = json.dumps(props).replace("<", "\\u003c")
    script = _bundle().replace("</script", "<\\/script")
    inside = (
        '<!DOCTYPE html><meta charset="utf-8"><div id="view"></div>'
        f"<script>{script}</script>"
        f'<script>CircuitsVis.render("view", CircuitsVis.AttentionHeads, {data})</script>'
    )
    return (
        f'<div><iframe title="attention of layer {layer}, {run} run" srcdoc="{html.escape(inside)}" '
        f'style="width:100%;height:{_HEIGHT}px;border:0"></iframe></div>'
    )


def _bundle() -> str:
    """Returns the script that CircuitsVis carries in its package."""
    folder = importlib.resources.files("circuitsvis")
    for name in ("dist/cdn/iife.js", "dist/cdn/umd.js"):
        script = folder.joinpath(name)
        if script.is_file():
            return script.read_text(encoding="utf-8")
    raise ResultError("this CircuitsVis brings no script.", where="circuitsvis", fix="pip install -U circuitsvis")
