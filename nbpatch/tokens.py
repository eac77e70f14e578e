"""A tokenizer as the model meets it: prompts as tokens, tokens as exact text, an answer as one token.

Source: TransformerLens 4.3, `TransformerBridge.to_tokens` and `setup_tokenizer`, for what is put before a prompt.
"""

import difflib
import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nbpatch.errors import AnswerError, PromptError

_OPENERS = "([{<=/\\_-–—+*^~#@$€£“‘«¿¡&|"
_UNSPACED_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "IDEOGRAPHIC")
_JOINERS = "\u200c\u200d"
_HIDDEN = ("Cc", "Cf", "Zl", "Zp", "Co", "Cs", "Cn")


@dataclass(frozen=True)
class Coder:
    """A tokenizer with its habits known.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        wants_bos: whether prompts begin with the beginning-of-sequence token, if there is one.
    """

    tokenizer: Any
    wants_bos: bool = True

    @cached_property
    def bos_id(self) -> int | None:
        """The token that begins a prompt: bos, or the end-of-text token where there is no bos."""
        bos = self.tokenizer.bos_token_id
        return self.eos_id if bos is None else int(bos)

    @cached_property
    def eos_id(self) -> int | None:
        """The end-of-sequence token."""
        eos = getattr(self.tokenizer, "eos_token_id", None)
        return None if eos is None else int(eos)

    @cached_property
    def unknown_id(self) -> int | None:
        """The token that stands for everything the vocabulary lacks; None where it has another meaning as well."""
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        return None if unknown is None or unknown in (self.bos_id, self.eos_id) else int(unknown)

    @cached_property
    def _adds(self) -> tuple[bool, bool]:
        """Whether the tokenizer puts a token before, and one behind, each text by itself."""
        ids = [int(one) for one in self.tokenizer("a")["input_ids"]]
        first = (self.bos_id, getattr(self.tokenizer, "cls_token_id", None))
        return len(ids) > 1 and ids[0] in first, len(ids) > 1 and ids[-1] == self.eos_id

    @cached_property
    def _prefix(self) -> str:
        """The text to put before a prompt so that it begins with bos: "" where nothing is needed or possible."""
        text = self.tokenizer.bos_token or getattr(self.tokenizer, "eos_token", None)
        if not self.wants_bos or self._adds[0] or self.bos_id is None or not text:
            return ""
        atomic = len(self.tokenizer(str(text), add_special_tokens=False)["input_ids"]) == 1
        return str(text) if atomic else ""

    def encode(self, text: str) -> tuple[int, ...]:
        """Returns a prompt's token ids, as `bridge.to_tokens(text)` gives them."""
        ids = [int(one) for one in self.tokenizer(self._prefix + text)["input_ids"]]
        while self._adds[1] and len(ids) > 1 and ids[-1] == self.eos_id:
            ids.pop()
        return tuple(ids[1:] if self._adds[0] and not self.wants_bos else ids)

    def positions(self, text: str, start: int, end: int) -> tuple[int, ...]:
        """Returns which of a prompt's tokens hold characters `start` … `end` − 1 of it."""
        return tuple(at for at, (first, stop) in enumerate(self.offsets(text)) if first < end and stop > start)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Returns the characters of each token, in the tokens of `encode`."""
        ids, shift = self.encode(text), len(self._prefix)
        if getattr(self.tokenizer, "is_fast", False):
            coded = self.tokenizer(self._prefix + text, return_offsets_mapping=True)["offset_mapping"]
            found = [(first - shift, stop - shift) for first, stop in coded]
            found = found[1:] if self._adds[0] and not self.wants_bos else found
            return found[: len(ids)]
        texts = [self.text(token) for token in ids]
        begin = -len(texts[0]) if self.has_bos(ids) else 0
        ends = list(itertools.accumulate((len(one) for one in texts), initial=begin))
        return list(itertools.pairwise(ends))

    def text(self, token: int) -> str:
        """Returns the exact text of one token."""
        return token_text(self.tokenizer, token)

    def has_bos(self, ids: Sequence[int]) -> bool:
        """Whether a prompt begins with the beginning-of-sequence token."""
        return self.bos_id is not None and len(ids) > 0 and ids[0] == self.bos_id

    def missing_words(self, text: str) -> list[str]:
        """Returns the words of a prompt that the vocabulary lacks, where the tokenizer can tell."""
        if not getattr(self.tokenizer, "is_fast", False):
            return []
        coded = self.tokenizer(text, return_offsets_mapping=True)
        spans = zip(coded["offset_mapping"], coded["input_ids"], strict=True)
        return [text[start:end] for (start, end), token in spans if token == self.unknown_id]

    def alike(self, word: str, most: int = 3) -> list[str]:
        """Returns tokens that look like `word`; with a leading space those that begin a word."""
        front = " " if word.startswith(" ") else ""
        start = f"{front}{word.strip()[:1]}".lower()
        near = sorted({text for text in self.vocabulary if text.lower().startswith(start) and text.strip().isalnum()})
        return difflib.get_close_matches(word, near, n=most, cutoff=0.6)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """All tokens by their text."""
        return {self.text(token): int(token) for token in sorted(self.tokenizer.get_vocab().values(), reverse=True)}


def encode(tokenizer: Any, text: str, *, bos: bool = True) -> tuple[int, ...]:
    """Returns the token ids of a prompt, with the beginning-of-sequence token in front where there is one."""
    return Coder(tokenizer, bos).encode(text)


def span_of(name: str, place: object, text: str) -> tuple[int, int]:
    """Returns the characters (start, end) of a labelled place in a text.

    Raises:
        PromptError: it is not there, or there more than once.
    """
    if isinstance(place, str) and place and text.count(place) == 1:
        start = text.index(place)
        return start, start + len(place)
    if isinstance(place, (tuple, list)) and len(place) == 2 and all(type(one) is int for one in place):
        start, end = place
        if 0 <= start < end <= len(text):
            return start, end
    many = f"{text.count(place)} times in it" if isinstance(place, str) and place else "no part of it"
    raise PromptError(
        f"label {name!r} is not one place in the clean prompt.",
        where="labels",
        seen=f"{place!r}, {many}",
        fix=f'labels={{"{name}": (start, end)}} with the characters it begins and ends at',
    )


def token_text(tokenizer: Any, token: int) -> str:
    """Returns the exact text of one token: a leading space kept, the bytes of half a character in hex."""
    raw = tokenizer.convert_ids_to_tokens(token)
    if raw is None:
        return f"<id {token}>"
    raw = str(raw)
    if raw.startswith("▁"):
        return raw.replace("▁", " ")
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if "\ufffd" in text and all(letter in _BYTES for letter in raw):
        return _from_bytes(bytes(_BYTES[letter] for letter in raw))
    return text


def _from_bytes(data: bytes) -> str:
    """Returns bytes as text, those that are no whole character as <0x…>."""
    text = data.decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(one) - 0xDC00:02X}>" if 0xDC80 <= ord(one) <= 0xDCFF else one for one in text)


def _byte_letters() -> dict[str, int]:
    """Returns the letters that byte-level BPE writes bytes as: printable ones stand for themselves."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + number): byte for number, byte in enumerate(rest)}}


_BYTES = _byte_letters()


def visible(token: str) -> str:
    """Returns a token with the unseen made visible: leading spaces ·, line breaks ↵, tabs ⇥, controls by number.

    Joiners inside a word or an emoji stay: they shape what is seen.
    """
    bare = token.lstrip(" ")
    joins = any(one not in _JOINERS for one in bare)
    return "·" * (len(token) - len(bare)) + "".join(_seen(one, joins=joins) for one in bare)


def _seen(letter: str, *, joins: bool) -> str:
    mark = {"\n": "↵", "\t": "⇥"}.get(letter)
    if mark is not None:
        return mark
    if letter in _JOINERS and joins:
        return letter
    return f"U+{ord(letter):04X}" if unicodedata.category(letter) in _HIDDEN else letter


def parting(one: Sequence[object], other: Sequence[object]) -> int:
    """Returns the first index at which two sequences part: they differ there, or one of them has ended."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def prompt_ids(coder: Coder, name: str, text: str, *, n_ctx: int | None) -> tuple[int, ...]:
    """Returns the tokens of a prompt.

    Args:
        name: "clean" or "corrupted", for messages.
        n_ctx: the longest prompt the model takes, in tokens; None for no limit.

    Raises:
        PromptError: it is empty, not proper text, longer than the context, or has words the vocabulary lacks.
    """
    if not text.strip():
        raise PromptError(
            "the prompt is empty.", where=name, seen=repr(text), fix=f'{name}="When Mary and John went to"'
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        seen = f"{text[error.start]!r} at character {error.start}"
        fix = 'text.encode("utf-16", "surrogatepass").decode("utf-16")'
        raise PromptError("the prompt holds half of a character.", where=name, seen=seen, fix=fix) from error
    ids = coder.encode(text)
    if not ids:
        raise PromptError(
            "the prompt has no tokens.", where=name, seen=repr(text), fix="other words, or another tokenizer"
        )
    if n_ctx is not None and len(ids) > n_ctx:
        seen = f"{len(ids)} tokens: {text[:60]!r}{'…' * (len(text) > 60)}"
        raise PromptError(
            "the prompt is longer than the model's context.", where=name, seen=seen, fix=f"at most {n_ctx} tokens"
        )
    if coder.unknown_id in ids:
        raise _unknown_words(coder, name, text, ids)
    return ids


def _unknown_words(coder: Coder, name: str, text: str, ids: Sequence[int]) -> PromptError:
    """The model would read all words it does not know as one and the same."""
    words = coder.missing_words(text)
    if words and not words[-1].strip() and text[-1:].isspace():
        fix = f"remove the {'space' if text.endswith(' ') else 'white space'} at the end of the prompt"
    else:
        near = [(word.strip(), coder.alike(word)) for word in words]
        fix = "; ".join(
            f"for {word!r}: {', '.join(repr(one.strip()) for one in found)}" for word, found in near if found
        )
    shown = ", ".join(repr(word.strip() or word) for word in words) or f"token {list(ids).index(coder.unknown_id or 0)}"
    fix = fix or "words that the model was trained on"
    return PromptError("the model's vocabulary lacks words of the prompt.", where=name, seen=shown, fix=fix)


def answer_id(coder: Coder, name: str, prompt: str, ids: tuple[int, ...], answer: str) -> int:
    """Returns the one token that `answer` is as the continuation of a prompt.

    " Mary", "Mary" and "▁Mary" mean the same after a word: the space is added where the text asks for one. After an
    opening sign, a digit before digits, or in a script without spaces, the answer is taken as it is written.

    Args:
        name: "answer" or "wrong", for messages.
        ids: the prompt's tokens.

    Raises:
        AnswerError: it is empty, several tokens, or not in the vocabulary.
    """
    text = f" {answer[1:]}" if answer[:1] in ("▁", "Ġ") else answer
    bare = text.lstrip(" ")
    if not bare:
        raise AnswerError("the answer is empty.", where=name, seen=repr(answer), fix=f'{name}=" Mary"')
    if prompt.endswith(" "):
        text = bare
    written = [f" {bare}", bare] if text == bare and _takes_space(prompt, bare) else [text]
    for variant in written:
        full = coder.encode(prompt + variant)
        if len(full) == len(ids) + 1 and full[:-1] == ids and full[-1] != coder.unknown_id:
            return full[-1]
    if prompt.endswith(" "):
        return _after_space(coder, name, prompt, bare)
    raise _not_one_token(coder, name, prompt, ids, written[0])


def _takes_space(prompt: str, bare: str) -> bool:
    """Whether a space goes between the prompt and a word that continues it."""
    last, first = prompt[-1:], bare[:1]
    if not first.isalnum() or not last or last.isspace() or last in _OPENERS:
        return False
    if last in "\"'":
        return prompt.count(last) % 2 == 0 or (last == "'" and prompt[-2:-1].isalnum())
    if last.isdigit() and first.isdigit():
        return False
    return not any(unicodedata.name(one, "").startswith(_UNSPACED_SCRIPTS) for one in (last, first))


def _after_space(coder: Coder, name: str, prompt: str, bare: str) -> int:
    """Returns the token of exactly this text: after a space that is a token of its own, joining them would re-split."""
    token = coder.vocabulary.get(bare)
    if token is None or token == coder.unknown_id:
        raise AnswerError(
            "the prompt ends in a space, which belongs to the answer's token.",
            where=name,
            seen=f"…{prompt[-20:]!r} and {bare!r}, which is no token without its space",
            fix="remove the space at the end of both prompts",
        )
    return token


def _not_one_token(coder: Coder, name: str, prompt: str, ids: tuple[int, ...], text: str) -> AnswerError:
    full = coder.encode(prompt + text)
    place = parting(full, ids)
    pieces = [coder.text(token) for token in full[place:]]
    near = coder.alike(text)
    if coder.unknown_id in full[place:]:
        what, seen = "the model's vocabulary lacks the answer.", repr(text)
    elif place < len(ids):
        what = "the answer's first letters merge with the end of the prompt."
        ending = " + ".join(repr(coder.text(token)) for token in ids[place:])
        seen = f"the prompt ends in {ending}; with {text!r} it is " + " + ".join(map(repr, pieces))
    else:
        what = f"the {'wrong answer' if name == 'wrong' else 'answer'} is {len(pieces)} tokens; a metric reads one."
        seen = f"{text!r} = " + " + ".join(map(repr, pieces))
        near = [pieces[0], *near] if pieces[0].strip() else near
    options = ", ".join(repr(one) for one in dict.fromkeys(near))
    fix = f"single tokens: {options}" if options else "an answer that is one token of this model"
    return AnswerError(what, where=name, seen=seen, fix=fix)
