r"""The text of a `%%patch` cell: its lines become prompt pairs, its mistakes become one error with every caret.

    clean:     When Mary and John went to the store, John gave a drink to
    corrupted: When Mary and John went to the store, Mary gave a drink to
    answer:    " Mary"
    wrong:     " John"

A value is taken as it stands, without the spaces around it, or from inside quotes, where spaces are kept and \n, \t
and \" mean what they mean in Python. Blank lines separate pairs; lines that start with # are comments.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nbpatch.errors import MagicError, NbpatchError, suggest
from nbpatch.prompts import PromptPair

REQUIRED = ("clean", "corrupted", "answer")
KEYS = (*REQUIRED, "wrong", "align")

_ENTRY = re.compile(r"\s*(?P<key>\w+)\s*:(?P<value>.*)$")
_QUOTED = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')\s*""")
_ESCAPE = re.compile(r"""\\(["'\\nt])""")
_ESCAPED = {"n": "\n", "t": "\t"}
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_ALIGNED = re.compile(r"(\d+)(?:-(\d+))?\s*:\s*(\d+)(?:-(\d+))?")
_RANGE_IN_PYTHON = re.compile(r"\*\*\{i: i(?: ([+-] \d+))? for i in range\((?:(\d+), )?(\d+)\)\}")
_ALIGN_IN_PYTHON = re.compile(r"align=\{([^{}]*)\}")


@dataclass(frozen=True)
class Span:
    """A stretch of the cell: a line counted from 0 (the line with the magic), and columns."""

    line: int
    start: int
    stop: int


@dataclass(frozen=True)
class Problem:
    """One mistake and where to put the caret; None when the mistake has no single place."""

    error: NbpatchError
    span: Span | None


@dataclass(frozen=True)
class Entry:
    """One `key: value` line, the value as typed."""

    key: str
    value: str
    span: Span


@dataclass
class Block:
    """The lines of one pair.

    Attributes:
        damaged: a line could not be read, so that what seems to be missing may stand there.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    damaged: bool = False


@dataclass(frozen=True)
class Source:
    """A cell as it was typed.

    Attributes:
        lines: all of it, the line with the magic first.
        blocks: the lines of each pair.
    """

    lines: tuple[str, ...]
    blocks: tuple[Block, ...] = ()

    def place(self, error: NbpatchError) -> Problem:
        """Returns an engine's error with the line of the cell that it speaks of."""
        return Problem(error, self._span_of(error.where))

    def _span_of(self, where: str) -> Span | None:
        number = re.search(r"\bpair (\d+)", where)
        index = int(number[1]) - 1 if number else 0
        if not 0 <= index < len(self.blocks) or not (number or len(self.blocks) == 1):
            return None
        block = self.blocks[index].entries
        if not block:
            return None
        named = [key for key in KEYS if key in block and re.search(rf"\b{key}\b", where)]
        if not (number or named):
            return None
        return block[named[0]].span if named else next(iter(block.values())).span


class CellError(MagicError):
    """What is wrong with a cell: every problem at once, each under its line, and no Python frames."""

    def _render_traceback_(self) -> list[str]:
        return str(self).split("\n")


def cell_error(source: Source, problems: Iterable[Problem]) -> CellError:
    """Returns one error that shows each problem under the line it is about."""
    parts = [_show(source, problem) for problem in sorted(problems, key=_order)]
    title = "" if len(parts) == 1 else f"{len(parts)} problems in this cell.\n\n"
    return CellError(title + "\n\n".join(parts))


def _order(problem: Problem) -> tuple[float, int]:
    return (problem.span.line, problem.span.start) if problem.span else (float("inf"), 0)


def _show(source: Source, problem: Problem) -> str:
    error, span = problem.error, problem.span
    if span is None:
        return str(error)
    rows = [(label, text) for label, text in error.rows() if label != "in"]
    label = f"line {span.line + 1}"
    width = max(len(name) for name, _ in [(label, ""), *rows])
    indent = " " * (width + 4)
    caret = indent + " " * span.start + "^" * max(1, span.stop - span.start)
    shown = [error.what, f"  {label:<{width}}  {source.lines[span.line]}".rstrip(), caret]
    for name, text in rows:
        shown.append(f"  {name:<{width}}  {_as_typed_here(text)}".replace("\n", "\n" + indent))
    return "\n".join(shown)


def _as_typed_here(text: str) -> str:
    """Returns advice with Python's `align={…}` written as a line of the cell."""

    def positions(match: re.Match[str]) -> str:
        first, last = int(match[2] or 0), int(match[3]) - 1
        shift = int((match[1] or "0").replace(" ", ""))
        return f"{first}-{last}:{first + shift}-{last + shift}"

    return _ALIGN_IN_PYTHON.sub(r"align: \1", _RANGE_IN_PYTHON.sub(positions, text))


def read_lines(magic_line: str, body: str) -> tuple[Source, list[Problem]]:
    """Returns the cell with its entries grouped into pairs, and what could not be read as an entry."""
    lines = (magic_line, *(line.rstrip("\r") for line in body.split("\n")))
    blocks = [Block()]
    problems: list[Problem] = []
    for number, line in enumerate(lines[1:], start=1):
        if not line.strip():
            blocks.append(Block())
        elif not line.lstrip().startswith("#"):
            problem = _add(blocks[-1], line, number)
            if problem:
                blocks[-1].damaged = True
                problems.append(problem)
    return Source(lines, tuple(block for block in blocks if block.entries or block.damaged)), problems


def _add(block: Block, line: str, number: int) -> Problem | None:
    entry = _entry(line, number)
    if isinstance(entry, Problem):
        return entry
    if entry.key in block.entries:
        fix = "an empty line before it starts the next pair"
        return Problem(MagicError(f"{entry.key} is given twice.", fix=fix), Span(number, 0, entry.span.stop))
    block.entries[entry.key] = entry
    return None


def _entry(line: str, number: int) -> Entry | Problem:
    start, stop = len(line) - len(line.lstrip()), len(line.rstrip())
    match = _ENTRY.match(line)
    if match is None:
        error = MagicError("this line does not say what it is.", fix=f"clean: {line.strip()}")
        return Problem(error, Span(number, start, stop))
    key = match["key"].lower()
    if key not in KEYS:
        error = MagicError(f"no entry {match['key']!r}.", fix=suggest(key, KEYS))
        return Problem(error, Span(number, match.start("key"), match.end("key")))
    value = match["value"].strip()
    if not value:
        error = MagicError(f"{key} is empty.", fix=_EXAMPLES[key])
        return Problem(error, Span(number, start, stop))
    begin = match.start("value") + len(match["value"]) - len(match["value"].lstrip())
    return Entry(key, value, Span(number, begin, stop))


_EXAMPLES = {
    "clean": "clean: When Mary and John went to the store, John gave a drink to",
    "corrupted": "corrupted: When Mary and John went to the store, Mary gave a drink to",
    "answer": 'answer: " Mary"',
    "wrong": 'wrong: " John", or leave the line out',
    "align": "align: 0-3:0-3 4-6:5-7, clean positions : corrupted positions",
}


def read_pairs(source: Source, variables: Mapping[str, object] | None) -> tuple[list[PromptPair], list[Problem]]:
    """Returns the pairs of a cell and what is wrong with them.

    Args:
        variables: what `{name}` stands for; None leaves braces alone.
    """
    pairs: list[PromptPair] = []
    problems: list[Problem] = []
    if not source.blocks:
        fix = "\n".join(_EXAMPLES[key] for key in ("clean", "corrupted", "answer"))
        problems.append(Problem(MagicError("the cell has no prompts.", fix=fix), None))
    for number, block in enumerate(source.blocks, start=1):
        place = f"pair {number}" if len(source.blocks) > 1 else "the pair"
        pair = _pair(block, variables, place)
        if isinstance(pair, PromptPair):
            pairs.append(pair)
        else:
            problems.extend(pair)
    return pairs, problems


def _pair(block: Block, variables: Mapping[str, object] | None, place: str) -> PromptPair | list[Problem]:
    entries = block.entries
    if block.damaged and not entries:
        return []
    first = next(iter(entries.values())).span
    problems = [] if block.damaged else [_missing(place, key, first) for key in REQUIRED if key not in entries]
    values: dict[str, tuple[str, ...]] = {}
    align: dict[int, int] | None = None
    for key, entry in entries.items():
        read = _alignment(entry) if key == "align" else _values(entry, variables)
        if isinstance(read, Problem):
            problems.append(read)
        elif isinstance(read, dict):
            align = read
        else:
            values[key] = read
    if problems or block.damaged:
        return problems
    try:
        return PromptPair(
            clean=values["clean"][0],
            corrupted=values["corrupted"][0],
            answer=values["answer"],
            wrong=values.get("wrong"),
            align=align,
        )
    except NbpatchError as error:
        return [_place_in(entries, error) for error in error.problems or (error,)]


def _missing(place: str, key: str, span: Span) -> Problem:
    return Problem(MagicError(f"{place} has no line for {key}.", fix=_EXAMPLES[key]), span)


def _place_in(entries: Mapping[str, Entry], error: NbpatchError) -> Problem:
    named = [key for key in entries if re.search(rf"\b{key}\b", f"{error.where} {error.what}")]
    return Problem(error, (entries[named[0]] if named else next(iter(entries.values()))).span)


def _values(entry: Entry, variables: Mapping[str, object] | None) -> tuple[str, ...] | Problem:
    """Returns what an entry says: one text, or several quoted alternatives where answers may have them."""
    read = _unquote(entry)
    if isinstance(read, Problem) or variables is None:
        return read
    expanded: list[str] = []
    for value in read:
        text = _expand(entry, value, variables)
        if isinstance(text, Problem):
            return text
        expanded.append(text)
    return tuple(expanded)


def _unquote(entry: Entry) -> tuple[str, ...] | Problem:
    if entry.value[0] not in "\"'":
        return (entry.value,)
    values: list[str] = []
    position = 0
    while match := _QUOTED.match(entry.value, position):
        values.append(_ESCAPE.sub(lambda one: _ESCAPED.get(one[1], one[1]), match[1] or match[2] or ""))
        position = match.end()
        if entry.value[position : position + 1] != ",":
            break
        position += 1
    if position < len(entry.value):
        quoted = entry.value.replace("\\", "\\\\").replace('"', '\\"')
        error = MagicError("what starts with a quote must end with it.", fix=f'{entry.key}: "{quoted}"')
        return Problem(error, entry.span)
    if len(values) > 1 and entry.key not in ("answer", "wrong"):
        return Problem(MagicError(f"{entry.key} takes one text.", fix=f'{entry.key}: "…"'), entry.span)
    return tuple(values)


def _expand(entry: Entry, value: str, variables: Mapping[str, object]) -> str | Problem:
    problems: list[Problem] = []

    def put(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        if name in variables:
            return str(variables[name])
        start = entry.span.start + max(0, entry.value.find(match[0]))
        problems.append(Problem(_no_variable(name, variables), Span(entry.span.line, start, start + len(match[0]))))
        return ""

    text = _BRACES.sub(put, value)
    return problems[0] if problems else text


def _no_variable(name: str, variables: Mapping[str, object]) -> MagicError:
    if not name.isidentifier():
        fix = "a variable's name; {{ and }} stand for the braces themselves"
        return MagicError("only a variable's name can stand in braces.", seen="{" + name + "}", fix=fix)
    texts = [key for key, value in variables.items() if not key.startswith("_") and isinstance(value, str)]
    return MagicError(f"no variable {name!r}.", fix=suggest(name, texts) if texts else f'{name} = "…" in a cell above')


def _alignment(entry: Entry) -> dict[int, int] | Problem:
    """Returns what `0:0 1:2` or `0-3:0-3, 5-9:6-10` says, clean position → corrupted position."""
    refused = Problem(MagicError("not an alignment.", fix=_EXAMPLES["align"]), entry.span)
    parts: list[tuple[str, ...]] = _ALIGNED.findall(entry.value)
    if not parts or _ALIGNED.sub("", entry.value).replace(",", " ").strip():
        return refused
    places: dict[int, int] = {}
    for part in parts:
        clean, clean_last, corrupted, corrupted_last = (int(text) if text else None for text in part)
        ours, theirs = _span_of_places(clean, clean_last), _span_of_places(corrupted, corrupted_last)
        if len(ours) != len(theirs) or not ours:
            return refused
        places.update(zip(ours, theirs, strict=True))
    return places


def _span_of_places(first: int | None, last: int | None) -> range:
    start = first or 0
    return range(start, (start if last is None else last) + 1)


def collect(checks: Sequence[tuple[Callable[[], object], Span | None]]) -> list[Problem]:
    """Runs every check and returns the problems of those that refuse, each with its place."""
    problems: list[Problem] = []
    for check, span in checks:
        try:
            check()
        except NbpatchError as error:
            problems.append(Problem(error, span))
    return problems
