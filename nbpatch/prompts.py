"""Prompt pairs: what is compared, as the model's tokens; where the prompts differ; which token is the answer."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

from nbpatch.errors import AnswerError, NbpatchError, PromptError, combine, suggest

_COLUMNS = ("clean", "corrupted", "answer", "wrong")
_FORM = 'nbp.PromptPair(clean="…", corrupted="…", answer=" Mary", wrong=" John")'


@dataclass(frozen=True)
class PromptPair:
    """A clean prompt that shows a behaviour, a corrupted one that does not, and the answers that tell them apart.

    Attributes:
        clean: the prompt whose next token should be the answer.
        corrupted: a minimal change of it, best of the same number of tokens.
        answer: the clean prompt's answer; several mean alternatives that all count.
        wrong: the corrupted prompt's answer; needed for logit_diff.
        align: clean position → corrupted position, for prompts of unequal length; other positions are not patched.

    Raises:
        PromptError: a part that is not text.
    """

    clean: str
    corrupted: str
    answer: str | Sequence[str]
    wrong: str | Sequence[str] | None = None
    align: Mapping[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("clean", "corrupted"):
            _refuse_no_text(name, getattr(self, name))
        answers = _several(self.answer)
        if not answers:
            raise PromptError("there is no answer.", where="answer", seen=repr(self.answer), fix='answer=" Mary"')
        for name, texts in (("answer", answers), ("wrong", _several(self.wrong))):
            for text in texts:
                _refuse_no_text(name, text)
        object.__setattr__(self, "answer", answers)
        object.__setattr__(self, "wrong", _several(self.wrong))

    def __hash__(self) -> int:
        return hash((self.clean, self.corrupted, self.answer, self.wrong))


def _several(answer: object) -> tuple[Any, ...]:
    if answer is None:
        return ()
    return tuple(answer) if isinstance(answer, (list, tuple)) else (answer,)


def _refuse_no_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        seen = f"{value!r} ({type(value).__name__})"
        raise PromptError(f"{name} is not text.", where=f"PromptPair({name}=…)", seen=seen, fix=_FORM)


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
                where = f"pair {number + 1} of {len(self._pairs)}"
                raise PromptError("not a prompt pair.", where=where, seen=f"{pair!r:.80}", fix=_FORM)

    @classmethod
    def from_frame(cls, frame: Any) -> "Pairs":
        """Returns one pair for each row of a DataFrame with columns clean, corrupted, answer and, if any, wrong.

        Raises:
            PromptError: a column is missing.
        """
        names = [str(name) for name in frame.columns]
        for column in _COLUMNS[:3]:
            if column not in names:
                hint = suggest(column, names) if names else ""
                fix = f'frame.rename(columns={{"…": "{column}"}}); {hint}'
                raise PromptError(f"no column {column!r}.", where="frame", seen=f"columns {', '.join(names)}", fix=fix)
        kept = [column for column in _COLUMNS if column in names]
        return cls(PromptPair(**{name: _cell(row[name]) for name in kept}) for row in frame[kept].to_dict("records"))

    @overload
    def __getitem__(self, index: int) -> PromptPair: ...
    @overload
    def __getitem__(self, index: slice) -> "Pairs": ...
    def __getitem__(self, index: int | slice) -> "PromptPair | Pairs":
        return Pairs(self._pairs[index]) if isinstance(index, slice) else self._pairs[index]

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[PromptPair]:
        return iter(self._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pairs) and self._pairs == other._pairs

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        shown = [f"  {pair.clean!r} / {pair.corrupted!r}" for pair in self._pairs[:5]]
        rest = [f"  … {len(self) - 5} more"] if len(self) > len(shown) else []
        return "\n".join([f"{len(self)} prompt pair{'s' if len(self) != 1 else ''}", *shown, *rest])


def _cell(value: Any) -> Any:
    """Returns a frame's value with its way of saying "nothing" (NaN) read as None."""
    return None if isinstance(value, float) else value


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
    raise PromptError("not prompt pairs.", where="pairs", seen=f"{pairs!r:.80} ({type(pairs).__name__})", fix=_FORM)


@dataclass(frozen=True)
class TokenizedPair:
    """A prompt pair as one model's tokens.

    Attributes:
        clean_tokens: the text of each clean token; a leading space is part of it.
        answer_ids: the answer's alternatives; `wrong_ids` may be empty.
        aligned: (clean position, corrupted position) that stand for each other.
        has_bos: whether position 0 is the beginning-of-sequence token.
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

    @cached_property
    def differs(self) -> tuple[int, ...]:
        """Clean positions whose token differs from the aligned corrupted one, or that have none."""
        corrupted = dict(self.aligned)
        return tuple(
            place
            for place, token in enumerate(self.clean_ids)
            if place not in corrupted or self.corrupted_ids[corrupted[place]] != token
        )

    @cached_property
    def first_difference(self) -> int | None:
        """The first clean position at which the runs can differ under causal attention; None if they are the same."""
        moved = [clean for clean, corrupted in self.aligned if clean != corrupted]
        if self.clean_ids == self.corrupted_ids and not moved:
            return None
        return min([*moved, parting(self.clean_ids, self.corrupted_ids)])

    @property
    def clean_end(self) -> int:
        """The clean prompt's last position, where the answer is read."""
        return len(self.clean_ids) - 1

    @property
    def corrupted_end(self) -> int:
        """The corrupted prompt's last position, where the answer is read."""
        return len(self.corrupted_ids) - 1


def parting(one: Sequence[object], other: Sequence[object]) -> int:
    """Returns the first index at which two sequences part: they differ there, or one of them has ended."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def tokenize_pairs(pairs: Pairs, tokenizer: Any, *, n_ctx: int | None) -> tuple[TokenizedPair, ...]:
    """Returns the pairs as tokens.

    A beginning-of-sequence token is put in front if the tokenizer has one and does not add it itself, as
    TransformerLens does. Answers are tokenised as the continuation of their prompt.

    Args:
        n_ctx: the longest prompt the model takes, in tokens; None for no limit.

    Raises:
        PromptError: pairs that cannot be used, all problems at once.
    """
    done: list[TokenizedPair] = []
    problems: list[NbpatchError] = []
    for number, pair in enumerate(pairs):
        where = f"pair {number + 1} of {len(pairs)}" if len(pairs) > 1 else ""
        try:
            done.append(_tokenize(pair, tokenizer, n_ctx))
        except NbpatchError as error:
            found = error.problems or (error,)
            problems.extend(one.at(where) if where else one for one in found)
    if problems:
        raise combine(problems)
    return tuple(done)


def _tokenize(pair: PromptPair, tokenizer: Any, n_ctx: int | None) -> TokenizedPair:
    clean, corrupted = _all_or_all_errors(
        [
            lambda: _prompt_ids(tokenizer, "clean", pair.clean, n_ctx),
            lambda: _prompt_ids(tokenizer, "corrupted", pair.corrupted, n_ctx),
        ]
    )
    texts = [tuple(token_text(tokenizer, token) for token in ids) for ids in (clean, corrupted)]
    aligned, answers, wrongs = _all_or_all_errors(
        [
            lambda: _aligned(pair, texts[0], texts[1]),
            lambda: tuple(_answer_id(tokenizer, "answer", pair.clean, clean, text) for text in _several(pair.answer)),
            lambda: tuple(_answer_id(tokenizer, "wrong", pair.clean, clean, text) for text in _several(pair.wrong)),
        ]
    )
    for both in sorted({*answers} & {*wrongs}):
        what = f"answer and wrong are the same token {token_text(tokenizer, both)!r}."
        raise AnswerError(what, where="wrong", seen=repr(pair.wrong), fix="a wrong answer that the corrupted prompt suggests")
    return TokenizedPair(
        pair=pair,
        clean_ids=clean,
        corrupted_ids=corrupted,
        clean_tokens=texts[0],
        corrupted_tokens=texts[1],
        answer_ids=answers,
        wrong_ids=wrongs,
        answer_tokens=tuple(token_text(tokenizer, token) for token in answers),
        wrong_tokens=tuple(token_text(tokenizer, token) for token in wrongs),
        aligned=aligned,
        has_bos=tokenizer.bos_token_id is not None and clean[0] == tokenizer.bos_token_id,
    )


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
        raise combine(problems)
    return values


def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Returns the token ids of a prompt, with the beginning-of-sequence token in front where there is one."""
    ids = [int(token) for token in tokenizer(text)["input_ids"]]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if len(ids) > 1 and ids[-1] == eos and not text.endswith(str(tokenizer.eos_token)):
        ids.pop()
    if bos is not None and ids[:1] != [bos]:
        ids.insert(0, bos)
    return tuple(ids)


def token_text(tokenizer: Any, token: int) -> str:
    """Returns the exact text of one token: a leading space kept, a piece of a character as its bytes in hex."""
    raw = str(tokenizer.convert_ids_to_tokens(token))
    if raw.startswith("▁"):
        return raw.replace("▁", " ")
    if raw.startswith("<0x") and raw.endswith(">"):
        byte = int(raw[3:-1], 16)
        return chr(byte) if byte < 128 else raw
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if "\ufffd" in text and "\ufffd" not in raw:
        return "".join(f"<0x{_BYTES.get(letter, ord(letter)):02X}>" for letter in raw)
    return text


def _byte_letters() -> dict[str, int]:
    """Returns the letters that byte-level BPE writes bytes as: printable ones stand for themselves."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + number): byte for number, byte in enumerate(rest)}}


_BYTES = _byte_letters()


def visible(token: str) -> str:
    """Returns a token with what cannot be seen made visible: leading spaces ·, line breaks ↵, tabs ⇥, controls U+XXXX."""
    shown = {"\n": "↵", "\t": "⇥"}
    bare = token.lstrip(" ")
    marks = "·" * (len(token) - len(bare))
    return marks + "".join(shown.get(one, one if one.isprintable() or ord(one) > 159 else f"U+{ord(one):04X}") for one in bare)


def _prompt_ids(tokenizer: Any, name: str, text: str, n_ctx: int | None) -> tuple[int, ...]:
    if not text:
        raise PromptError("the prompt is empty.", where=name, seen="''", fix=f'{name}="When Mary and John went to"')
    ids = encode(tokenizer, text)
    if n_ctx is not None and len(ids) > n_ctx:
        seen = f"{len(ids)} tokens: {text[:60]!r}…"
        raise PromptError("the prompt is longer than the model's context.", where=name, seen=seen, fix=f"at most {n_ctx} tokens")
    _refuse_unknown(tokenizer, name, text, ids)
    return ids


def _refuse_unknown(tokenizer: Any, name: str, text: str, ids: Sequence[int]) -> None:
    """Refuses a prompt with words the tokenizer does not know: the model would read them all as one and the same."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown == tokenizer.bos_token_id or unknown not in ids:
        return
    words = [text[start:end].strip() for start, end, token in _spans(tokenizer, text) if token == unknown]
    shown = ", ".join(repr(word) for word in words) or f"token {ids.index(unknown)}"
    hints = [suggest(word, known) for word in words for known in [_close(tokenizer, word)] if known]
    fix = "; ".join(hints) or "words the model was trained on"
    raise PromptError("the model's vocabulary lacks words of the prompt.", where=name, seen=shown, fix=fix)


def _spans(tokenizer: Any, text: str) -> list[tuple[int, int, int]]:
    """Returns (start, end, token) for each token of a text, where the tokenizer can tell."""
    if not getattr(tokenizer, "is_fast", False):
        return []
    coded = tokenizer(text, return_offsets_mapping=True)
    return [(start, end, token) for (start, end), token in zip(coded["offset_mapping"], coded["input_ids"], strict=True)]


def _close(tokenizer: Any, word: str, most: int = 3) -> list[str]:
    """Returns single tokens of the vocabulary that look like `word`."""
    vocabulary = {text.strip() for text in (token_text(tokenizer, one) for one in tokenizer.get_vocab().values())}
    near = [text for text in vocabulary if text[:1].lower() == word[:1].lower()]
    return difflib.get_close_matches(word, sorted(near), n=most, cutoff=0.5)


def _aligned(pair: PromptPair, clean: Sequence[str], corrupted: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Returns which positions stand for each other: all of them, or those the pair names."""
    if pair.align is not None:
        for left, right in pair.align.items():
            if not (0 <= left < len(clean) and 0 <= right < len(corrupted)):
                seen = f"{left}: {right}, for {len(clean)} clean and {len(corrupted)} corrupted tokens"
                raise PromptError("align names a position that a prompt does not have.", where="align", seen=seen, fix="0 is the first token")
        return tuple(sorted(pair.align.items()))
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
            f"align={{clean position: corrupted position}}, such as align={{{place - 1}: {place - 1}, "
            f"{len(clean) - 1}: {len(corrupted) - 1}}}; other positions are then not patched;\n"
            'with align, head sites such as "z" or "q": their patterns are recomputed for the longer prompt'
        ),
    )


def _strip(tokens: Sequence[str], place: int) -> str:
    """Returns tokens on one line, the one at `place` in brackets."""
    shown = [f"[{visible(token)}]" if number == place else visible(token) for number, token in enumerate(tokens)]
    return "|".join(shown)


def _answer_id(tokenizer: Any, name: str, prompt: str, ids: tuple[int, ...], answer: str) -> int:
    """Returns the one token that `answer` is as the continuation of the prompt.

    Raises:
        AnswerError: it is empty, several tokens, unknown, or the prompt's end changes how it is split.
    """
    text = answer.replace("▁", " ")
    bare = text.lstrip(" ")
    if not text:
        raise AnswerError("the answer is empty.", where=name, seen=repr(answer), fix=f'{name}=" Mary"')
    spaced_first = not text.startswith(" ") and bare[:1].isalnum() and not prompt[-1:].isspace()
    variants = [" " + bare, text] if spaced_first else [text, bare, " " + bare]
    for variant in dict.fromkeys(variants):
        full = encode(tokenizer, prompt + variant)
        if len(full) == len(ids) + 1 and full[:-1] == ids and full[-1] != getattr(tokenizer, "unk_token_id", None):
            return full[-1]
    raise _answer_error(tokenizer, name, prompt, ids, " " + bare if spaced_first else text)


def _answer_error(tokenizer: Any, name: str, prompt: str, ids: tuple[int, ...], text: str) -> AnswerError:
    if prompt[-1:].isspace():
        what = "the prompt ends in a space, which belongs to the answer's token."
        return AnswerError(what, where="clean", seen=f"…{prompt[-20:]!r}", fix="remove the space at the end of both prompts")
    full = encode(tokenizer, prompt + text)
    pieces = [token_text(tokenizer, token) for token in full[parting(full, ids) :]]
    near = _close(tokenizer, text.strip())
    if full[-1] == getattr(tokenizer, "unk_token_id", None):
        what, seen = "the model's vocabulary lacks the answer.", repr(text)
    else:
        what = f"the answer is {len(pieces)} tokens; a metric reads one."
        seen = f"{text!r} = " + " + ".join(map(repr, pieces))
        near = [pieces[0], *near] if pieces else near
    options = ", ".join(repr(one if one.startswith(" ") else f" {one}") for one in dict.fromkeys(near))
    fix = f"single tokens: {options}" if options else "an answer that is one token of this model"
    return AnswerError(what, where=name, seen=seen, fix=fix)
