"""Pages without a kernel, made of what a real export holds, with any tokens and cells in it."""

import json
import re

import numpy as np

import nbpatch as nbp
from nbpatch.view import export
from nbpatch.view.payload import to_base64

PAIR = nbp.PromptPair(
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    " Mary",
    " John",
)

WATCH = """() => {
    window.violations = [];
    document.addEventListener('securitypolicyviolation', e => window.violations.push(e.violatedDirective));
}"""


def data_of(page):
    """The document inside a page."""
    (text,) = re.findall(r'<script type="application/json" id="nbp-data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def with_data(page, data):
    """The page with another document inside."""
    safe = export.script_safe(json.dumps(data))
    return re.sub(
        r'(id="nbp-data">).*?(</script>)', lambda found: found[1] + safe + found[2], page, count=1, flags=re.DOTALL
    )


def with_cells(page, effect, tokens, *, over=("layer", "pos"), labels=None):
    """The page with one map of these effects over these tokens, in both directions: noising is −½ of it."""
    data = data_of(page)
    effect = np.asarray(effect, np.float32)
    coords = labels or {axis: list(range(size)) for axis, size in zip(over, effect.shape, strict=True)}
    head = data["maps"][0]
    maps = []
    for direction, times in (("denoising", 1.0), ("noising", -0.5)):
        key = {"component": "resid_pre", "over": list(over), "direction": direction, "metric": "logit_diff", "pair": 0}
        values = effect * np.float32(times)
        arrays = {"effect64": to_base64(values), "state64": to_base64(np.zeros(effect.shape, np.uint8))}
        shape = {"dims": list(over), "shape": list(effect.shape), "coords": coords}
        maps.append({**head, **arrays, **shape, "key": key, "direction": direction, "gap": 1.0})
    pair = {
        **data["spec"]["pairs"][0],
        "clean_tokens": tokens,
        "corrupted_tokens": tokens,
        "differs": [2],
        "clean_end": len(tokens) - 1,
    }
    spec = {"component": "resid_pre", "over": list(over), "direction": "denoising", "metric": "logit_diff"}
    spec = {**data["spec"], **spec, "pairs": [pair], "pair": 0}
    return with_data(page, {**data, "maps": maps, "spec": spec, "attention": []})


def opened(browser, path, **options):
    """A page of the file with no network, and everything that went wrong on it."""
    context = browser.new_context(offline=True, **options)
    page = context.new_page()
    page.faults, page.requested = [], []
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda request: page.requested.append(request.url))
    page.add_init_script(f"({WATCH})()")
    page.goto(path.as_uri())
    page.get_by_test_id("nbp-scale").wait_for()
    return page
