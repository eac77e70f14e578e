"""The error tree: every message says what, where, what was seen, and what to type next."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

_LABEL_WIDTH = 6

E = TypeVar("E", bound="NbpatchError")


class NbpatchError(ValueError):
    """Base of all errors that nbpatch raises for something a user can change.

    Args:
        what: one sentence, what is wrong.
        where: the place: an argument, "pair 2 of 8", a line of a cell.
        seen: what was found there.
        fix: the next thing to type.
        notes: further labelled rows between `seen` and `fix`.
        problems: the single errors, when this one reports several at once.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        seen: str = "",
        fix: str = "",
        notes: Mapping[str, str] | None = None,
        problems: "Sequence[NbpatchError]" = (),
    ) -> None:
        self.what = what
        self.where = where
        self.seen = seen
        self.fix = fix
        self.notes = dict(notes or {})
        self.problems = tuple(problems)
        super().__init__(what)

    def rows(self) -> list[tuple[str, str]]:
        """Returns the labelled rows below the first line, empty ones left out."""
        rows = [("in", self.where), ("seen", self.seen), *self.notes.items(), ("try", self.fix)]
        return [(label, text) for label, text in rows if text]

    def __str__(self) -> str:
        if self.problems:
            return "\n\n".join([self.what, *(str(problem) for problem in self.problems)])
        rows = self.rows()
        width = max([_LABEL_WIDTH, *(len(label) for label, _ in rows)])
        return "\n".join([self.what, *(_row(label, text, width) for label, text in rows)])

    def at(self: E, where: str) -> E:
        """Returns the same error with its place put in front: the caller knows where, the callee what."""
        place = f"{where}, {self.where}" if self.where else where
        return type(self)(
            self.what,
            where=place,
            seen=self.seen,
            fix=self.fix,
            notes=self.notes,
            problems=[problem.at(where) for problem in self.problems],
        )


class SiteError(NbpatchError):
    """A component, an axis or a site that does not exist, or that this model cannot patch."""


class PromptError(NbpatchError):
    """A prompt pair that cannot be used as it stands."""


class AnswerError(PromptError):
    """An answer that is not one token, or that no metric can use."""


class MetricError(NbpatchError):
    """A metric that is unknown, lacks what it needs, or returned something else than one number per pair."""


class ModelError(NbpatchError):
    """A model that cannot be found, loaded or used."""


class PlanError(NbpatchError):
    """A sweep that does not make sense as asked."""


class PatchNotApplied(NbpatchError):
    """A planned patch that did not fire exactly as planned: the run is void, not silently unpatched."""


class ResultError(NbpatchError):
    """A question that a result cannot answer, or a file that holds no result."""


class CircuitError(NbpatchError):
    """A question that a circuit cannot answer, or a file that holds no circuit."""


class MagicError(NbpatchError):
    """A cell or line magic that cannot be read."""


def combine(errors: "Sequence[NbpatchError]") -> NbpatchError:
    """Returns one error that reports all of `errors`; a single one is returned as it is."""
    if len(errors) == 1:
        return errors[0]
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else NbpatchError
    return kind(f"{len(errors)} problems.", problems=errors)


def suggest(name: object, options: Iterable[str]) -> str:
    """Returns the closest of `options` as a question, or all of them when none is close.

    >>> suggest("resid_per", ["resid_pre", "z"])
    'did you mean "resid_pre"?'
    """
    names = list(options)
    close = difflib.get_close_matches(str(name), names, n=1)
    if close:
        return f'did you mean "{close[0]}"?'
    return "one of: " + ", ".join(names)


def _row(label: str, text: str, width: int) -> str:
    indent = "\n" + " " * (width + 3)
    return f"  {label:<{width}} {text}".replace("\n", indent)
