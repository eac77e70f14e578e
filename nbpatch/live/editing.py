"""Prompt pairs as they are edited: one rewritten, one more, one less, and all that were there before."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nbpatch.errors import PlanError, PromptError, suggest
from nbpatch.live.controls import typed
from nbpatch.prompts import Pairs, PromptPair
from nbpatch.view.payload import Message

FIELDS = ("clean", "corrupted", "answer", "wrong")
"""What of a pair is typed."""

_MOST = 50
"""Remembered pairs."""

_SHOWN = 20
"""Remembered pairs that the page lists."""

_BRIEF = 60


def rewritten(pair: PromptPair, values: Mapping[str, Any]) -> PromptPair:
    """Returns a pair with some fields as they were typed, and `align` as pairs of positions.

    Labels stay where their text is still there once. An alignment of other prompts is dropped: it counts positions.

    Raises:
        PlanError: an unknown field.
        PromptError: no text.
    """
    for field in values:
        if field not in (*FIELDS, "align"):
            raise PlanError(f"no field {field!r}.", where="edit", fix=suggest(field, FIELDS))
    parts: dict[str, Any] = {field: typed(field, str(values[field])) for field in FIELDS if field in values}
    clean = str(parts.get("clean", pair.clean))
    moved = clean != pair.clean or parts.get("corrupted", pair.corrupted) != pair.corrupted
    if "align" in values:
        places: Sequence[Any] = values["align"] or ()
        parts["align"] = {int(one): int(other) for one, other in places} or None
    elif moved:
        parts["align"] = None
    if clean != pair.clean:
        parts["labels"] = _labels(pair, clean)
    return replace(pair, **parts)


def _labels(pair: PromptPair, clean: str) -> dict[str, str]:
    texts = {
        name: pair.clean[slice(*place)] for name, place in (pair.labels or {}).items() if not isinstance(place, str)
    }
    return {name: text for name, text in texts.items() if text and clean.count(text) == 1}


def as_typed(pair: PromptPair) -> dict[str, str]:
    """Returns a pair's fields as they would be typed."""
    alternatives = {name: " | ".join(getattr(pair, name)) for name in ("answer", "wrong")}
    return {"clean": pair.clean, "corrupted": pair.corrupted, **alternatives}


def one_more(pairs: Pairs, number: int) -> Pairs:
    """Returns pairs with a copy of one behind all, to be changed."""
    return Pairs([*pairs, pairs[number]])


def one_less(pairs: Pairs, number: int) -> Pairs:
    """Returns pairs without one of them.

    Raises:
        PromptError: it is the only one.
    """
    if len(pairs) == 1:
        raise PromptError("the only pair cannot be removed.", where="pairs", fix="change it instead")
    return Pairs([pair for place, pair in enumerate(pairs) if place != number])


class History:
    """All pairs that were asked for, oldest first, and where among them the workbench is.

    Those that could not be run are kept as well, so that nothing typed is lost; going back leaps over them.
    """

    def __init__(self, first: Pairs) -> None:
        self._items: list[Pairs] = [first]
        self._failed: set[int] = set()
        self._at = 0

    @property
    def now(self) -> Pairs:
        """The pairs asked for last, or gone back to."""
        return self._items[self._at]

    def note(self, pairs: Pairs) -> None:
        """Remembers pairs that are asked for; what was undone before is forgotten."""
        if pairs == self.now:
            return
        back = self._back()
        if self._at in self._failed and back is not None and pairs == self._items[back]:
            self._at = back
            return
        self._items = [*self._items[: self._at + 1], pairs]
        cut = max(0, len(self._items) - _MOST)
        self._items = self._items[cut:]
        self._at = len(self._items) - 1
        self._failed = {place - cut for place in self._failed if cut <= place and place - cut < self._at}

    def fail(self, pairs: Pairs) -> None:
        """Notes that pairs could not be run."""
        if pairs == self.now:
            self._failed.add(self._at)

    def ran(self, pairs: Pairs) -> None:
        """Notes that pairs were run after all."""
        if pairs == self.now:
            self._failed.discard(self._at)

    def _back(self) -> int | None:
        return next((place for place in range(self._at - 1, -1, -1) if place not in self._failed), None)

    def _forth(self) -> int | None:
        """Returns where redo leads: to the next that ran, else to the last, which did not."""
        later = range(self._at + 1, len(self._items))
        return next((place for place in later if place not in self._failed), later[-1] if later else None)

    def go(self, where: str, at: int = -1) -> Pairs | None:
        """Goes back ("undo"), forth ("redo") or to one of the list; returns what is there, None for nothing."""
        place = self._back() if where == "undo" else self._forth() if where == "redo" else at
        if place is None or not 0 <= place < len(self._items):
            return None
        self._at = place
        return self.now

    def describe(self) -> Message:
        """Returns what the page shows of it: the newest first."""
        first = max(0, len(self._items) - _SHOWN)
        return {
            "undo": self._back() is not None,
            "redo": self._forth() is not None,
            "at": self._at,
            "items": [
                {"at": place, "text": _brief(self._items[place]), "failed": place in self._failed}
                for place in range(len(self._items) - 1, first - 1, -1)
            ],
        }


def _brief(pairs: Pairs) -> str:
    text = pairs[0].clean.strip()
    text = text if len(text) <= _BRIEF else text[: _BRIEF - 1].rstrip() + "…"
    return text if len(pairs) == 1 else f"{text} and {len(pairs) - 1} more"


class Editing:
    """What a workbench's pairs were, are and may become: the pairs on screen stay as they are until others have run."""

    def __init__(self, first: Pairs) -> None:
        self._history = History(first)
        self._draft = first

    def asked(self, message: Message, now: Pairs, number: int) -> tuple[Pairs, int]:
        """Returns the pairs that a message of the page asks for, and which of them to show.

        Args:
            now: the pairs on screen.
            number: the one that is shown.
        """
        pairs, shown = self._turned(message, now, number)
        self.note(pairs)
        return pairs, shown

    def _turned(self, message: Message, now: Pairs, number: int) -> tuple[Pairs, int]:
        if message["type"] == "edit":
            return self._rewritten(message, number)
        do, place = str(message.get("do")), min(max(int(message.get("pair", number)), 0), len(now) - 1)
        if do == "add":
            return one_more(now, place), len(now)
        if do == "remove":
            return one_less(now, place), max(0, place - 1)
        pairs = self._history.go(do, int(message.get("at", -1))) if do != "back" else None
        return pairs or now, _changed(now, pairs or now, number)

    def _rewritten(self, message: Message, number: int) -> tuple[Pairs, int]:
        """Returns the pairs with fields of one rewritten: of what was typed last, also where that could not be run."""
        place = min(max(int(message.get("pair", number)), 0), len(self._draft) - 1)
        values = message.get("values") or {str(message.get("field")): message.get("value", "")}
        pairs = list(self._draft)
        pairs[place] = rewritten(pairs[place], values)
        return Pairs(pairs), place if "values" in message else number

    def note(self, pairs: Pairs) -> None:
        """Remembers pairs that are asked for."""
        self._draft = pairs
        self._history.note(pairs)

    def fail(self, pairs: Pairs, now: Pairs) -> Message:
        """Notes that pairs could not be run, unless they are those on screen; returns what the page shows of them."""
        if pairs == now:
            return {}
        self._history.fail(pairs)
        if len(pairs) != len(now):
            return {}
        place = _changed(now, pairs, 0)
        return {"typed": {"pair": place, "texts": as_typed(pairs[place])}}

    def ran(self, pairs: Pairs) -> None:
        """Notes that pairs were run after all."""
        self._history.ran(pairs)

    def describe(self) -> Message:
        """Returns what the page shows of it."""
        return self._history.describe()


def _changed(before: Pairs, after: Pairs, number: int) -> int:
    """Returns which pair to show: the first that is another one, else the one that was shown."""
    for place, pair in enumerate(after):
        if place >= len(before) or pair != before[place]:
            return place
    return min(number, len(after) - 1)
