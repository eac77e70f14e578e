"""Two prompts side by side: which tokens stand for each other, which have no partner, and what that is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TypeAlias

from nbpatch.errors import NbpatchError
from nbpatch.prompts import PromptPair, TokenizedPair, parting
from nbpatch.view.payload import Message

Column: TypeAlias = tuple[int | None, int | None]
"""A clean and a corrupted position that stand for each other; None for a hole."""


@dataclass(frozen=True)
class Draft:
    """Texts that may be a pair one day.

    Attributes:
        ids: the tokens of each prompt, empty where there are none.
        problems: what is wrong, by field; "lengths" for prompts that do not meet.
        pair: the pair they make, if they are texts at all.
        tokenized: the pair as tokens, when nothing is wrong or only its lengths are; those then stand for nothing.
    """

    ids: Mapping[str, tuple[int, ...]]
    problems: Mapping[str, NbpatchError]
    pair: PromptPair | None
    tokenized: TokenizedPair | None


def columns_of(clean: Sequence[int], corrupted: Sequence[int], align: Mapping[int, int] | None = None) -> list[Column]:
    """Returns two prompts as columns: as aligned, position by position, or, where lengths differ, by word."""
    if align is not None:
        return _as_aligned(len(clean), len(corrupted), align)
    if len(clean) == len(corrupted):
        return [(place, place) for place in range(len(clean))]
    first = parting(clean, corrupted)
    last = min(parting(clean[::-1], corrupted[::-1]), min(len(clean), len(corrupted)) - first)
    middle = (clean[first : len(clean) - last], corrupted[first : len(corrupted) - last])
    columns: list[Column] = [(place, place) for place in range(first)]
    for _, a, b, c, d in SequenceMatcher(None, *middle, autojunk=False).get_opcodes():
        left, right = range(first + a, first + b), range(first + c, first + d)
        columns += [
            (left[at] if at < len(left) else None, right[at] if at < len(right) else None)
            for at in range(max(len(left), len(right)))
        ]
    ends = (len(clean) - last, len(corrupted) - last)
    return [*columns, *((ends[0] + at, ends[1] + at) for at in range(last))]


def _as_aligned(clean: int, corrupted: int, align: Mapping[int, int]) -> list[Column]:
    """Returns columns in the order of the clean prompt, each corrupted token without a partner before the next."""
    columns: list[Column] = []
    taken, done = set(align.values()), 0
    for place in range(clean):
        partner = align.get(place)
        if partner is not None:
            columns += [(None, other) for other in range(done, partner) if other not in taken]
            done = max(done, partner + 1)
        columns.append((place, partner))
    return columns + [(None, other) for other in range(done, corrupted) if other not in taken]


def aligned_by_word(columns: Sequence[Column]) -> dict[int, int]:
    """Returns the alignment that columns are."""
    return {a: b for a, b in columns if a is not None and b is not None}


def _kind(column: Column, clean: Sequence[int], corrupted: Sequence[int]) -> tuple[str, int]:
    a, b = column
    if a is None or b is None:
        return "alone", 0
    if clean[a] != corrupted[b]:
        return "differ", 0
    return ("shifted", abs(a - b)) if a != b else ("same", 0)


def spans_of(columns: Sequence[Column], clean: Sequence[int], corrupted: Sequence[int]) -> list[Message]:
    """Returns the stretches of columns that have a name, with it."""
    kinds = [_kind(column, clean, corrupted) for column in columns]
    spans: list[Message] = []
    start = 0
    for at in range(1, len(kinds) + 1):
        if at < len(kinds) and kinds[at] == kinds[start]:
            continue
        kind, by = kinds[start]
        if kind != "same":
            spans.append({"kind": kind, "from": start, "to": at, "text": _called(kind, at - start, by)})
        start = at
    return spans


def _called(kind: str, count: int, by: int) -> str:
    if kind == "alone":
        return f"{count} token{'s' if count > 1 else ''} without a partner"
    return "differ" if kind == "differ" else f"same words, shifted by {by}"
