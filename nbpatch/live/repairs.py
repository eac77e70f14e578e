"""Ways out for prompts of unequal length: what to change so that a sweep can run, tried before it is offered."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nbpatch.errors import NbpatchError
from nbpatch.live.columns import Column, Draft, aligned_by_word
from nbpatch.live.controls import Ask
from nbpatch.live.editing import rewritten
from nbpatch.model import Model
from nbpatch.plan import PATTERNS
from nbpatch.prompts import PromptPair
from nbpatch.tokens import Coder
from nbpatch.view.payload import Message

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_CHIPS = 5


def ways_out(model: Model, coder: Coder, one: Draft, columns: Sequence[Column], ask: Ask | None) -> list[Message]:
    """Returns the repairs that would make a pair of unequal prompts run, as the page lists them.

    Args:
        ask: the sweep it is for; None where there is none, and no component to change.
    """
    if one.pair is None:
        return []
    found = [*_by_text(model, coder, one, one.pair, columns), *_by_align(model, one, one.pair, columns, ask)]
    return [*found]


def _by_text(model: Model, coder: Coder, one: Draft, pair: PromptPair, columns: Sequence[Column]) -> Iterator[Message]:
    """Yields what rewrites one prompt: the extra tokens out of the longer, or into the shorter."""
    longer = "clean" if len(one.ids["clean"]) > len(one.ids["corrupted"]) else "corrupted"
    shorter = "corrupted" if longer == "clean" else "clean"
    side = 0 if longer == "clean" else 1
    extra = [column[side] for column in columns if column[1 - side] is None]
    places = [place for place in extra if place is not None]
    if not places or any(column[side] is None for column in columns):
        return
    tokens = [coder.text(one.ids[longer][place]) for place in places]
    ends = _ends(coder, getattr(pair, longer), len(one.ids[longer]))
    others = _ends(coder, getattr(pair, shorter), len(one.ids[shorter]))
    text: str = getattr(pair, longer)
    pieces = {place: text[ends[place - 1] if place else 0 : ends[place]] for place in range(len(ends))}
    without = "".join(piece for place, piece in pieces.items() if place not in places)
    note = _lengths_after(model, one, pair, {longer: without})
    if note:
        yield _way("remove", f"Take {{}} out of the {longer} prompt", tokens, note, "Remove", {longer: without})
    done, filled = 0, ""
    short: str = getattr(pair, shorter)
    for column in columns:
        here, other = column[side], column[1 - side]
        if other is None:
            filled += pieces[here or 0]
        else:
            filled += short[done : others[other]]
            done = others[other]
    filled += short[done:]
    note = _lengths_after(model, one, pair, {shorter: filled})
    if note:
        yield _way("add", f"Put {{}} into the {shorter} prompt", tokens, note, "Add", {shorter: filled})


def _ends(coder: Coder, text: str, count: int) -> list[int]:
    """Returns where each token ends in a prompt; a space between two belongs to the later one."""
    ends: list[int] = []
    for _, stop in coder.offsets(text)[:count]:
        ends.append(max([0, stop, *ends[-1:]]))
    return ends + [len(text)] * (count - len(ends))


def _way(name: str, form: str, tokens: Sequence[str], note: str, action: str, values: Mapping[str, Any]) -> Message:
    before, _, after = form.partition("{}")
    shown = [*tokens[:_CHIPS], *(["…"] if len(tokens) > _CHIPS else [])]
    label = form.replace("{}", " ".join(token.strip() or token for token in shown))
    parts: Message = {"before": before.strip(), "tokens": shown if after else [], "after": after.strip()}
    return {"name": name, "label": label, **parts, "note": note, "action": action, "edit": {"values": dict(values)}}


def _problems(model: Model, pair: PromptPair) -> set[str]:
    try:
        model.tokenize(pair)
    except NbpatchError as error:
        return {problem.where for problem in error.problems or (error,)}
    return set()


def _lengths_after(model: Model, one: Draft, pair: PromptPair, values: Mapping[str, Any]) -> str:
    """Returns what a rewritten prompt leads to in words; "" where it repairs nothing or leaves no difference."""
    try:
        made = rewritten(pair, values)
        (both,) = model.tokenize(made)
    except NbpatchError:
        return ""
    if not both.differs:
        return ""
    return f"{len(both.clean_ids)} tokens each; {_number(len(both.differs))} differ{'s' * (len(both.differs) == 1)}."


def _by_align(
    model: Model, one: Draft, pair: PromptPair, columns: Sequence[Column], ask: Ask | None
) -> Iterator[Message]:
    """Yields what leaves the prompts as they are and says which positions stand for each other."""
    align = aligned_by_word(columns)
    same = [one.ids["clean"][a] == one.ids["corrupted"][b] and a == b for a, b in align.items()]
    if all(same):
        return
    values = {"align": [[clean, corrupted] for clean, corrupted in align.items()]}
    if _problems(model, rewritten(pair, values)):
        return
    alone = len(columns) - len(align)
    left = f"{_number(alone)} position{' is' if alone == 1 else 's are'} not patched"
    if ask is None or ask.component not in PATTERNS:
        yield _way("align", "Pair the positions by word", (), f"{_ranges(align)}; {left}.", "Align", values)
    if ask is not None and (ask.component, tuple(ask.over)) != ("z", ("layer", "head")):
        note = f"Whole heads at the paired positions, no position axis; {left}."
        way = _way("heads", "Patch heads, recompute their patterns", (), note, "Heads only", values)
        way["edit"]["set"] = {"component": "z", "over": ["layer", "head"]}
        yield way


def _ranges(align: Mapping[int, int]) -> str:
    """Returns an alignment as ranges: "0–8 with 0–8, 9–19 with 12–22"."""
    runs: list[list[int]] = []
    for clean, corrupted in sorted(align.items()):
        if runs and clean == runs[-1][1] + 1 and corrupted - clean == runs[-1][2]:
            runs[-1][1] = clean
        else:
            runs.append([clean, clean, corrupted - clean])
    texts = [f"{_range(a, b)} with {_range(a + by, b + by)}" for a, b, by in runs]
    return ", ".join(texts[:4]) + (f" and {len(texts) - 4} more" if len(texts) > 4 else "")


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)
