"""What a view asks and how it is answered: each kind of question has one function, in a file of its own."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from nbpatch.live.controls import Ask
from nbpatch.model import Model
from nbpatch.result import Result
from nbpatch.view.payload import Message

Reply: TypeAlias = tuple[Message, Sequence[bytes]]
"""What an answer says, and its numbers as buffers."""


@dataclass(frozen=True)
class Question:
    """What a view wants to know of what is on screen.

    Attributes:
        ask: the controls as they are on screen.
        result: the sweep on screen, finished or as far as it got.
        content: what the page said, such as the cell it asks about.
        kept: what answers of this workbench remember; keys start with the kind of question.
    """

    model: Model
    ask: Ask
    result: Result
    content: Message
    kept: dict[Any, Any]


Answer: TypeAlias = Callable[[Question], Iterable[Reply]]
"""Answers a question, once or bit by bit. Between two replies other work is done, and a newer question of the same
kind takes its place; a long answer therefore replies often, if only with its progress."""
