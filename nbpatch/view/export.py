"""One self-contained HTML file: the same bundle and the same payload as the widget, with no kernel and no network."""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path

from nbpatch.errors import ResultError
from nbpatch.result import Result
from nbpatch.view.payload import VERSION, Message, attention_message, describe, maps_of, to_base64
from nbpatch.view.widgets import BUNDLE, STATIC

PAGE = ("views", "tools")
"""The later bundles that work without a kernel."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'sha256-{hash}'; style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>html{{color-scheme:light dark}}body{{margin:0;padding:16px;font-family:system-ui,sans-serif}}
h1{{position:absolute;width:1px;height:1px;margin:0;overflow:hidden;clip-path:inset(50%);white-space:nowrap}}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<div id="nbp"></div>
</main>
<noscript><pre>{text}</pre></noscript>
<script type="application/json" id="nbp-data">{data}</script>
<script type="module">{bundle}</script>
</body>
</html>
"""


def document(
    results: Sequence[Result], attention: Result | None = None, *, pair: int = 0, metric: str | None = None
) -> Message:
    """Returns everything a page without a kernel needs: the description and every map of the given sweeps.

    Args:
        results: sweeps of the same pairs; the first is shown first, the others are behind the toggles.
        attention: patterns of all pairs, or of the shown one alone, if they are to be shown.
        pair, metric: what is shown first; the first metric by default. Maps of other metrics stand behind the toggles.
    """
    maps = [one.document() for result in results for name in result.metrics for one in maps_of(result, name, pair=pair)]
    layers: list[Message] = []
    if attention is not None:
        for layer in range(attention.data.sizes["layer"]):
            number = pair if pair < attention.data.sizes["pair"] else 0
            head, values = attention_message(attention, layer, pair=number)
            layers.append({**head, "pair": pair, "data64": to_base64(values)})
    spec = describe(results[0], pair=pair, metric=metric, can_run=False, works={})
    return {"v": VERSION, "spec": spec, "maps": maps, "attention": layers, "selection": None}


def page(
    results: Sequence[Result], attention: Result | None = None, *, pair: int = 0, metric: str | None = None
) -> str:
    """Returns the HTML page of one or more sweeps of the same pairs."""
    if not BUNDLE.is_file():
        raise ResultError("the front end is not built.", where="to_html", seen=str(BUNDLE.name), fix="make js")
    bundle = _script()
    return _PAGE.format(
        hash=base64.b64encode(hashlib.sha256(bundle.encode()).digest()).decode("ascii"),
        title=html.escape(results[0].headline()),
        text=html.escape(repr(results[0])),
        data=script_safe(json.dumps(document(results, attention, pair=pair, metric=metric), allow_nan=False)),
        bundle=bundle,
    )


def write(
    path: str,
    results: Sequence[Result],
    attention: Result | None = None,
    *,
    pair: int = 0,
    metric: str | None = None,
) -> Path:
    """Writes the page and returns its path.

    Raises:
        ResultError: the folder does not exist.
    """
    target = Path(path).expanduser()
    if not target.parent.is_dir():
        raise ResultError("no such folder.", where="to_html", seen=str(target.parent), fix='result.to_html("map.html")')
    target.write_text(page(results, attention, pair=pair, metric=metric), encoding="utf-8")
    return target


def script_safe(text: str) -> str:
    """Returns JSON that no token can end the script element of: a token may hold "</script>" or "<!--"."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _script() -> str:
    """Returns all bundles as one inline module that mounts itself: each keeps its names, its exports are returned."""
    later = ",".join(f"{name}:{_scope(STATIC / f'{name}.js')}.bundle" for name in PAGE)
    data = "JSON.parse(document.getElementById('nbp-data').textContent)"
    return f"{_scope(BUNDLE)}.mountStatic(document.getElementById('nbp'),{data},{{{later}}});"


def _scope(path: Path) -> str:
    """Returns a bundle as an expression whose value are its exports."""
    code = path.read_text(encoding="utf-8").replace("</script", "<\\/script")
    head, _, names = code.rpartition("export{")
    pairs = [part.split(" as ") for part in names.rstrip().rstrip(";").rstrip("}").split(",")]
    exports = ",".join(f"{pair[-1]}:{pair[0]}" for pair in pairs)
    return f"(()=>{{{head}\nreturn{{{exports}}}}})()"
