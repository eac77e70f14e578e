"""The field's standard tasks to start from: which this tokenizer can build, and one of them built."""

import warnings
from collections.abc import Iterator

from nbpatch import tasks
from nbpatch.errors import NbpatchError, PromptError, suggest
from nbpatch.live.question import Question, Reply
from nbpatch.model import Model
from nbpatch.prompts import Pairs
from nbpatch.view.payload import Message

PAIRS = 8
"""Pairs that a template makes."""

_LABELS = {
    "ioi": "Indirect object", "facts": "Facts", "greater_than": "Greater than", "induction": "Induction",
    "sentiment": "Sentiment", "pronouns": "Pronouns", "agreement": "Agreement", "docstring": "Docstring",
}  # fmt: skip


def templates(question: Question) -> Iterator[Reply]:
    """Answers which templates there are, one more with each reply: the words of each are looked for in turn."""
    found: dict[str, Message] = question.kept.setdefault("templates", {})
    for name, label in _LABELS.items():
        if name not in found:
            found[name] = {"name": name, "label": label, **_tried(question.model, name)}
            yield {"templates": list(found.values()), "of": len(_LABELS)}, ()
    yield {"templates": list(found.values()), "of": len(_LABELS)}, ()


def _tried(model: Model, name: str) -> Message:
    try:
        return {"off": "", "example": build(model, name)[0].clean}
    except NbpatchError as error:
        return {"off": error.what[:1].upper() + error.what[1:], "example": ""}


def build(model: Model, name: str) -> Pairs:
    """Returns the pairs of a template.

    Raises:
        PromptError: no such template, or this tokenizer has too few words for it.
    """
    if name not in _LABELS:
        raise PromptError(f"no template {name!r}.", where="template", fix=suggest(name, _LABELS))
    with warnings.catch_warnings():
        # What words a tokenizer lacks is no news to somebody who chose from a menu.
        warnings.simplefilter("ignore")
        most = PAIRS
        while True:
            try:
                return getattr(tasks, name)(model, most)
            except PromptError as error:
                if error.where != "n" or most == 1:
                    raise
                most //= 2
