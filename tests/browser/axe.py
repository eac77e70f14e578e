"""What axe-core, a checker of accessibility, finds wrong in a part of a page."""

from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parents[2] / "js" / "node_modules" / "axe-core" / "axe.min.js"


def violations(page, inside='[data-testid="nbp-root"]'):
    """Returns what is wrong inside the parts that match, a line for each rule with the first place it is broken at."""
    if not _SCRIPT.is_file():
        pytest.fail("no axe-core: run `make js` once")
    # Evaluated, not added as an element: a page with a strict policy runs no script but its own.
    if not page.evaluate("() => !!window.axe"):
        page.evaluate(_SCRIPT.read_text(encoding="utf-8"))
    found = page.evaluate(
        """async inside => (await window.axe.run(inside, {
            resultTypes: ['violations'],
            // A widget cannot know the level of the headings around it.
            rules: {'heading-order': {enabled: false}},
        })).violations.map(
            one => [one.id, one.impact, one.nodes.length, one.nodes[0].html, one.nodes[0].any.map(a => a.message)]
        )""",
        inside,
    )
    return [f"{name} ({impact}, {count}×): {html} {said}" for name, impact, count, html, said in found]
