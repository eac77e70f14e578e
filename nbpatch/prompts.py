"""Prompt pairs: what is compared, as the model's tokens; where the prompts differ; which token is the answer."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

from nbpatch.errors import AnswerError, NbpatchError, PromptError, combine, suggest
from nbpatch.tokens import Coder, answer_id, encode, parting, prompt_ids, span_of, token_text, visible

__all__ = [
    "Pairs",
    "PromptPair",
    "TokenizedPair",
    "as_pairs",
    "encode",
    "parting",
    "token_text",
    "tokenize_pairs",
    "visible",
]

_COLUMNS = ("clean", "corrupted", "answer", "wrong")
_FORM = 'nbp.PromptPair(clean="…", corrupted="…", answer=" Mary", wrong=" John")'
_STRIP = 12
"""Tokens of a strip shown on each side of the one it is about."""


@dataclass(frozen=True, repr=False)
class PromptPair:
    """A clean prompt that shows a behaviour, a corrupted one that does not, and the answers that tell them apart.

    Attributes:
        clean: the prompt whose next token should be the answer.
        corrupted: a minimal change of it, best of the same number of tokens.
        answer: the clean prompt's answer; several mean alternatives that all count. Kept as a tuple.
        wrong: the corrupted prompt's answer; needed for logit_diff. Kept as a tuple, empty for None.
        align: clean position → corrupted position, for prompts of unequal length; other positions are not patched.
        labels: names of places in the clean prompt: the text there, which must occur once, or its characters as
            (start, end). Kept as (start, end).
        group: the distribution the pair is from, such as its template.

    Raises:
        PromptError: a part that is not text, all of them at once.
    """

    clean: str
    corrupted: str
    answer: str | Sequence[str]
    wrong: str | Sequence[str] | None = None
    align: Mapping[int, int] | None = None
    labels: Mapping[str, str | tuple[int, int]] | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        answers, wrongs = _several(self.answer), _several(self.wrong)
        texts = [("clean", self.clean), ("corrupted", self.corrupted)]
        texts += [("answer", text) for text in answers] + [("wrong", text) for text in wrongs]
        problems: list[NbpatchError] = [_not_text(name, text) for name, text in texts if not isinstance(text, str)]
        if not answers:
            problems.append(
                AnswerError("there is no answer.", where="answer", seen=repr(self.answer), fix='answer=" Mary"')
            )
        if not (self.align is None or _is_places(self.align)):
            fix = "align={clean position: corrupted position}, such as align={0: 0, 1: 2}"
            problems.append(PromptError("align is no map of positions.", where="align", seen=repr(self.align), fix=fix))
        spans: dict[str, tuple[int, int]] = {}
        if isinstance(self.clean, str):
            for name, place in dict(self.labels or {}).items():
                try:
                    spans[name] = span_of(name, place, self.clean)
                except NbpatchError as error:
                    problems.append(error)
        if problems:
            raise _together(problems)
        object.__setattr__(self, "labels", spans)
        object.__setattr__(self, "answer", answers)
        object.__setattr__(self, "wrong", wrongs)
        object.__setattr__(self, "align", None if self.align is None else dict(self.align))

    def __hash__(self) -> int:
        return hash((self.clean, self.corrupted, self.answer, self.wrong))

    def __repr__(self) -> str:
        answers = [f"{name}={_one_or_all(given)}" for name in ("answer", "wrong") if (given := getattr(self, name))]
        more = [f"{name}={given!r}" for name in ("align", "labels", "group") if (given := getattr(self, name))]
        return f"PromptPair({', '.join([f'clean={self.clean!r}', f'corrupted={self.corrupted!r}', *answers, *more])})"


def _several(answer: object) -> tuple[Any, ...]:
    if answer is None:
        return ()
    return tuple(answer) if isinstance(answer, (list, tuple)) else (answer,)


def _one_or_all(answers: Sequence[str]) -> str:
    return repr(answers[0]) if len(answers) == 1 else repr(list(answers))


def _is_places(align: object) -> bool:
    if not isinstance(align, Mapping) or not align:
        return False
    places: list[object] = [*align.keys(), *align.values()]
    return all(isinstance(place, int) and not isinstance(place, bool) for place in places)


def _not_text(name: str, value: object) -> PromptError:
    kind = AnswerError if name in ("answer", "wrong") else PromptError
    seen = f"{value!r:.80} ({type(value).__name__})"
    return kind(f"{name} is not text.", where=f"PromptPair({name}=…)", seen=seen, fix=_FORM)


class Pairs(Sequence[PromptPair]):
    """Several prompt pairs, in order.

    Raises:
        PromptError: something else than prompt pairs, or none.
    """

    def __init__(self, pairs: Iterable[PromptPair]) -> None:
        self._pairs = tuple(pairs)
        if not self._pairs:
            raise PromptError("there are no prompt pairs.", where="Pairs", fix=f"nbp.Pairs([{_FORM}, …])")
        for number, pair in enumerate(self._pairs):
            if not isinstance(pair, PromptPair):
                raise _not_a_pair(pair).at(f"pair {number + 1} of {len(self._pairs)}")

    @classmethod
    def from_frame(cls, frame: Any) -> "Pairs":
        """Returns one pair for each row of a DataFrame with columns clean, corrupted, answer and, if any, wrong.

        Raises:
            PromptError: not a DataFrame, a column is missing, or a row holds something else than text.
        """
        if not hasattr(frame, "columns"):
            fix = "pandas.DataFrame with columns clean, corrupted, answer, wrong"
            raise PromptError("not a DataFrame.", where="Pairs.from_frame", seen=type(frame).__name__, fix=fix)
        names = [str(name) for name in frame.columns]
        for column in _COLUMNS[:3]:
            if column not in names:
                raise _no_column(column, names)
        kept = [column for column in _COLUMNS if column in names]
        records = frame[kept].to_dict("records")
        return cls(_all_or_all_errors([_row_maker(number, row, len(records)) for number, row in enumerate(records)]))

    @overload
    def __getitem__(self, index: int) -> PromptPair: ...
    @overload
    def __getitem__(self, index: slice) -> "Pairs": ...
    def __getitem__(self, index: int | slice) -> "PromptPair | Pairs":
        return Pairs(self._pairs[index]) if isinstance(index, slice) else self._pairs[index]

    @property
    def groups(self) -> tuple[str | None, ...]:
        """The distribution each pair is from; None where it does not say."""
        return tuple(pair.group for pair in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[PromptPair]:
        return iter(self._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pairs) and self._pairs == other._pairs

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        shown = [
            f"  {prompt!r} → {_one_or_all(answer)}" if answer else f"  {prompt!r}"
            for pair in self._pairs[:5]
            for prompt, answer in ((pair.clean, pair.answer), (pair.corrupted, pair.wrong))
        ]
        rest = [f"  … {len(self) - 5} more"] if len(self) > 5 else []
        return "\n".join([f"{len(self)} prompt pair{'s' if len(self) != 1 else ''}", *shown, *rest])


def _no_column(column: str, names: Sequence[str]) -> PromptError:
    hint = suggest(column, names) if names else ""
    near = hint.split('"')[1] if hint.startswith("did you mean") else "…"
    fix = f'Pairs.from_frame(frame.rename(columns={{"{near}": "{column}"}}))'
    return PromptError(f"no column {column!r}.", where="frame", seen=f"columns {', '.join(names) or 'none'}", fix=fix)


def _row_maker(number: int, row: Mapping[str, Any], rows: int) -> Callable[[], PromptPair]:
    def make() -> PromptPair:
        try:
            return PromptPair(**{name: _cell(value) for name, value in row.items()})
        except NbpatchError as error:
            raise error.at(f"row {number + 1} of {rows}") from None

    return make


def _cell(value: Any) -> Any:
    """Returns a frame's value with its ways of saying "nothing" (NaN, NA) read as None."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return None if is_nan or type(value).__name__ in ("NAType", "NaTType") else value


def _not_a_pair(value: object) -> PromptError:
    fix = _FORM
    if isinstance(value, Mapping) and {*_COLUMNS[:3]} <= {*value}:
        fix = "nbp.PromptPair(**this_dict)"
    elif hasattr(value, "columns"):
        fix = "nbp.Pairs.from_frame(frame)"
    seen = f"{value!r:.80} ({type(value).__name__})".replace("\n", " ")
    return PromptError("not a prompt pair.", where="pairs", seen=seen, fix=fix)


def as_pairs(pairs: object) -> Pairs:
    """Returns one pair, or several, as `Pairs`.

    Raises:
        PromptError: something else.
    """
    if isinstance(pairs, Pairs):
        return pairs
    if isinstance(pairs, PromptPair):
        return Pairs([pairs])
    if isinstance(pairs, (list, tuple)):
        return Pairs(pairs)
    raise _not_a_pair(pairs)


@dataclass(frozen=True)
class TokenizedPair:
    """A prompt pair as one model's tokens.

    Attributes:
        clean_tokens: the text of each clean token; a leading space is part of it.
        answer_ids: the answer's alternatives; `wrong_ids` may be empty.
        aligned: (clean position, corrupted position) that stand for each other.
        has_bos: whether position 0 is the beginning-of-sequence token.
        labels: the clean positions of each named place.
        altered: clean positions at which the corrupted run differs by more than its tokens: by noise, or wholly.
        warnings: what is odd about the prompts, each with the one action that settles it.
    """

    pair: PromptPair
    clean_ids: tuple[int, ...]
    corrupted_ids: tuple[int, ...]
    clean_tokens: tuple[str, ...]
    corrupted_tokens: tuple[str, ...]
    answer_ids: tuple[int, ...]
    wrong_ids: tuple[int, ...]
    answer_tokens: tuple[str, ...]
    wrong_tokens: tuple[str, ...]
    aligned: tuple[tuple[int, int], ...]
    has_bos: bool
    labels: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    altered: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    @cached_property
    def differs(self) -> tuple[int, ...]:
        """Clean positions whose token differs from the aligned corrupted one, or that have none."""
        corrupted = dict(self.aligned)
        return tuple(
            place
            for place, token in enumerate(self.clean_ids)
            if place in self.altered or place not in corrupted or self.corrupted_ids[corrupted[place]] != token
        )

    @property
    def marked(self) -> tuple[int, ...]:
        """Clean positions to point out: where the prompts differ, or, in the same prompt, where its run does."""
        wholly = len(self.altered) == len(self.clean_ids)
        return self.differs if not wholly else _parted(self.clean_ids, self.corrupted_ids)

    @cached_property
    def first_difference(self) -> int | None:
        """The first clean position at which the runs can differ under causal attention; None if they are the same."""
        if self.altered:
            return min(self.altered)
        moved = [clean for clean, corrupted in self.aligned if clean != corrupted]
        if self.clean_ids == self.corrupted_ids and not moved:
            return None
        return min([*moved, parting(self.clean_ids, self.corrupted_ids)])

    def places(self, name: str | int) -> tuple[int, ...]:
        """Returns the clean positions of a label, of "END" (the last token) or of a position; none where it is not."""
        if isinstance(name, int):
            return (name,) if 0 <= name < len(self.clean_ids) else ()
        return self.labels.get(name, (self.clean_end,) if name == "END" else ())

    @property
    def clean_end(self) -> int:
        """The clean prompt's last position, where the answer is read."""
        return len(self.clean_ids) - 1

    @property
    def corrupted_end(self) -> int:
        """The corrupted prompt's last position, where the answer is read."""
        return len(self.corrupted_ids) - 1


def _parted(clean: Sequence[int], corrupted: Sequence[int]) -> tuple[int, ...]:
    """Returns the clean positions at which two prompts have different tokens; none where lengths differ."""
    if len(clean) != len(corrupted):
        return ()
    return tuple(place for place, both in enumerate(zip(clean, corrupted, strict=True)) if both[0] != both[1])


def tokenize_pairs(pairs: Pairs, tokenizer: Any, *, n_ctx: int | None, bos: bool = True) -> tuple[TokenizedPair, ...]:
    """Returns the pairs as tokens.

    A beginning-of-sequence token is put in front if the tokenizer has one and does not add it itself, as
    TransformerLens does. Answers are tokenised as the continuation of their prompt.

    Args:
        n_ctx: the longest prompt the model takes, in tokens; None for no limit.
        bos: whether prompts begin with that token: a Bridge's `cfg.default_prepend_bos`.

    Raises:
        PromptError: pairs that cannot be used, all problems at once.
    """
    coder = Coder(tokenizer, bos)
    done: list[TokenizedPair] = []
    problems: list[NbpatchError] = []
    for number, pair in enumerate(pairs):
        where = f"pair {number + 1} of {len(pairs)}" if len(pairs) > 1 else ""
        try:
            done.append(_tokenize(pair, coder, n_ctx))
        except NbpatchError as error:
            found = error.problems or (error,)
            problems.extend(one.at(where) if where else one for one in found)
    if problems:
        raise _together(problems)
    return tuple(done)


def _tokenize(pair: PromptPair, coder: Coder, n_ctx: int | None) -> TokenizedPair:
    clean, corrupted = _all_or_all_errors(
        [
            lambda: prompt_ids(coder, "clean", pair.clean, n_ctx=n_ctx),
            lambda: prompt_ids(coder, "corrupted", pair.corrupted, n_ctx=n_ctx),
        ]
    )
    texts = [tuple(coder.text(token) for token in ids) for ids in (clean, corrupted)]
    aligned, answers, wrongs = _all_or_all_errors(
        [
            lambda: _aligned(pair, texts[0], texts[1]),
            lambda: _answer_ids(coder, "answer", pair, clean),
            lambda: _answer_ids(coder, "wrong", pair, clean),
        ]
    )
    _refuse_same(coder, pair, answers, wrongs)
    return TokenizedPair(
        pair=pair,
        clean_ids=clean,
        corrupted_ids=corrupted,
        clean_tokens=texts[0],
        corrupted_tokens=texts[1],
        answer_ids=answers,
        wrong_ids=wrongs,
        answer_tokens=tuple(coder.text(token) for token in answers),
        wrong_tokens=tuple(coder.text(token) for token in wrongs),
        aligned=aligned,
        has_bos=coder.has_bos(clean),
        labels={name: coder.positions(pair.clean, *span) for name, span in _spans(pair).items()},
        warnings=tuple(_warnings(coder, pair, clean, corrupted)),
    )


def _spans(pair: PromptPair) -> dict[str, tuple[int, int]]:
    """Returns a pair's labels; `PromptPair` has made them all (start, end)."""
    return {name: place for name, place in (pair.labels or {}).items() if not isinstance(place, str)}


def _answer_ids(coder: Coder, name: str, pair: PromptPair, clean: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the answer's alternatives as tokens, each once."""

    def reader(text: str) -> Callable[[], int]:
        return lambda: answer_id(coder, name, pair.clean, clean, text)

    ids = _all_or_all_errors([reader(text) for text in _several(getattr(pair, name))])
    return tuple(dict.fromkeys(ids))


def _refuse_same(coder: Coder, pair: PromptPair, answers: Sequence[int], wrongs: Sequence[int]) -> None:
    for both in answers:
        if both in wrongs:
            raise AnswerError(
                f"answer and wrong are the same token {coder.text(both)!r}.",
                where="wrong",
                seen=f"answer={_one_or_all(pair.answer)}, wrong={_one_or_all(pair.wrong or ())}",
                fix="a wrong answer that the corrupted prompt suggests",
            )


def _warnings(coder: Coder, pair: PromptPair, clean: Sequence[int], corrupted: Sequence[int]) -> Iterator[str]:
    if clean == corrupted:
        yield "The prompts are the same tokens, so nothing can change. Change one word in the corrupted one."
    for name, text, ids in (("clean", pair.clean, clean), ("corrupted", pair.corrupted, corrupted)):
        if text.endswith(" ") and not coder.text(ids[-1]).strip():
            yield (
                f"The {name} prompt ends in a space. It is a token of its own there, and the answer is read "
                "without its space. Remove it."
            )
        if len(ids) > 1 and ids[0] == ids[1] == coder.bos_id:
            yield f"The {name} prompt begins with two {coder.text(ids[0])} tokens. Remove yours."


def _together(problems: Sequence[NbpatchError]) -> NbpatchError:
    """Returns one error for all problems, a PromptError unless they are of one narrower kind."""
    both = combine(problems)
    return both if isinstance(both, PromptError) else PromptError(both.what, problems=both.problems)


def _all_or_all_errors(steps: Sequence[Callable[[], Any]]) -> list[Any]:
    """Returns what all steps return, or raises all their errors at once."""
    values: list[Any] = []
    problems: list[NbpatchError] = []
    for step in steps:
        try:
            values.append(step())
        except NbpatchError as error:
            problems.extend(error.problems or (error,))
    if problems:
        raise _together(problems)
    return values


def _aligned(pair: PromptPair, clean: Sequence[str], corrupted: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Returns which positions stand for each other: all of them, or those the pair names."""
    if pair.align is not None:
        return _named_alignment(pair.align, len(clean), len(corrupted))
    if len(clean) == len(corrupted):
        return tuple((place, place) for place in range(len(clean)))
    place = parting(clean, corrupted)
    raise PromptError(
        "the prompts have different numbers of tokens.",
        where="clean and corrupted",
        notes={
            "clean": f"{len(clean)}: {_strip(clean, place)}",
            "corrupted": f"{len(corrupted)}: {_strip(corrupted, place)}",
            "part at": f"position {place}",
        },
        fix=(
            "another prompt with as many tokens;\n"
            f"{_shared_ends(clean, corrupted)}, which leaves what differs unpatched;\n"
            'with align, head sites such as "z" or "q": their patterns are recomputed for the base prompt'
        ),
    )


def _named_alignment(align: Mapping[int, int], clean: int, corrupted: int) -> tuple[tuple[int, int], ...]:
    for left, right in align.items():
        if not (0 <= left < clean and 0 <= right < corrupted):
            seen = f"{left}: {right}, for {clean} clean and {corrupted} corrupted tokens"
            fix = f"clean positions 0–{clean - 1}, corrupted ones 0–{corrupted - 1}"
            raise PromptError("align names a position that a prompt does not have.", where="align", seen=seen, fix=fix)
    twice = [right for number, right in enumerate(align.values()) if right in [*align.values()][:number]]
    if twice:
        fix = "each corrupted position once"
        seen = f"corrupted position {twice[0]} twice"
        raise PromptError("align is not one to one.", where="align", seen=seen, fix=fix)
    return tuple(sorted(align.items()))


def _shared_ends(clean: Sequence[str], corrupted: Sequence[str]) -> str:
    """Returns, as an argument to type, the alignment of what both prompts begin and end with."""
    shift = len(corrupted) - len(clean)
    first = parting(clean, corrupted)
    last = min(parting(clean[::-1], corrupted[::-1]), min(len(clean), len(corrupted)) - first)
    parts = [f"**{{i: i for i in range({first})}}"] if first else []
    if last:
        parts.append(
            f"**{{i: i {'+' if shift > 0 else '-'} {abs(shift)} for i in range({len(clean) - last}, {len(clean)})}}"
        )
    return f"align={{{', '.join(parts) or '0: 0'}}}"


def _strip(tokens: Sequence[str], place: int) -> str:
    """Returns tokens on one line, the one at `place` in brackets, long prompts cut to what lies around it."""
    first, end = max(0, place - _STRIP), place + _STRIP + 1
    shown = [
        f"[{visible(token)}]" if number == place else visible(token)
        for number, token in enumerate(tokens)
        if first <= number < end
    ]
    return "|".join([*(["…"] if first else []), *shown, *(["…"] if end < len(tokens) else [])])
