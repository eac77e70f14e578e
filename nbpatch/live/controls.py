"""What is on a workbench's controls, as a value: what to run, where finished runs are kept, how to say it again."""

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbpatch.errors import NbpatchError
from nbpatch.metrics import Metric
from nbpatch.plan import DIRECTIONS
from nbpatch.prompts import Pairs, PromptPair
from nbpatch.view.payload import Message

_MOST_TRACEBACK = 20_000
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"})


@dataclass(frozen=True)
class Ask:
    """What is on the controls. A sweep's maps depend on nothing else.

    Attributes:
        metrics: what is measured; `metric` is the one shown.
        pair: the pair whose map is shown.
    """

    pairs: Pairs
    component: str
    over: tuple[str, ...]
    direction: str
    metrics: tuple[Metric, ...]
    metric: str
    pair: int = 0

    @property
    def directions(self) -> tuple[str, ...]:
        """The one direction asked for, or both."""
        return DIRECTIONS if self.direction == "both" else (self.direction,)

    def sweep(self, direction: str) -> tuple[Any, ...]:
        """Returns what the run in one direction is kept under."""
        return (self.pairs, self.component, self.over, direction, tuple(metric.name for metric in self.metrics))


def as_python(ask: Ask, model: str) -> str:
    """Returns Python that makes what is on screen."""
    pairs = ",\n    ".join(map(_pair_as_python, ask.pairs))
    metrics = [metric.name for metric in ask.metrics]
    return (
        "import nbpatch as nbp\n\n"
        f"model = nbp.load({model!r})\n"
        f"pairs = nbp.Pairs([\n    {pairs},\n])\n"
        f"result = nbp.patch(model, pairs, {ask.component!r}, over={' '.join(ask.over)!r}, "
        f"direction={ask.direction!r}, metric={metrics!r})\n"
        "result\n"
    )


def as_magic(ask: Ask, model: str) -> str:
    """Returns the `%%patch` cell that makes what is on screen."""
    metrics = " ".join(metric.name for metric in ask.metrics)
    sweep = f'--component {ask.component} --over "{" ".join(ask.over)}" --direction {ask.direction}'
    head = f"%%patch --model {model} {sweep} --metric {metrics}"
    return head + "\n" + "\n\n".join(map(_pair_as_lines, ask.pairs)) + "\n"


def _pair_as_lines(pair: PromptPair) -> str:
    texts = {"clean": pair.clean, "corrupted": pair.corrupted, "answer": pair.answer, "wrong": pair.wrong}
    lines = [f"{name + ':':<10} {_quoted(text)}" for name, text in texts.items() if text]
    if pair.align:
        lines.append("align:     " + " ".join(f"{clean}:{corrupted}" for clean, corrupted in pair.align.items()))
    return "\n".join(lines)


def _pair_as_python(pair: PromptPair) -> str:
    answers = f"answer={_plain(pair.answer)!r}, wrong={_plain(pair.wrong)!r}"
    align = f", align={dict(pair.align)!r}" if pair.align else ""
    return f"nbp.PromptPair(clean={pair.clean!r}, corrupted={pair.corrupted!r}, {answers}{align})"


def _plain(answer: Any) -> Any:
    return answer[0] if len(answer) == 1 else list(answer) or None


def _quoted(value: Any) -> str:
    """Returns text in the quotes of a cell, where backslashes, quotes, line breaks and tabs are escaped."""
    texts = [value] if isinstance(value, str) else list(value)
    return ", ".join('"' + text.translate(_ESCAPES) + '"' for text in texts)


def describe_error(error: Exception) -> Message:
    """Returns an error as the page shows it: its title, its rows, and for an unexpected one the traceback."""
    if not isinstance(error, NbpatchError):
        frames = traceback.extract_tb(error.__traceback__)[-1:]
        lines = [f"in: {Path(one.filename).name}, line {one.lineno}, {one.name}" for one in frames]
        whole = "".join(traceback.format_exception(error))[-_MOST_TRACEBACK:]
        title = f"{type(error).__name__}: {error}"
        return {"title": title, "lines": lines, "field": None, "traceback": whole}
    shown = error.problems or (error,)
    lines = [f"{label}: {text}" for one in shown for label, text in one.rows()]
    title = shown[0].what if len(shown) == 1 else f"{len(shown)} problems. " + " ".join(one.what for one in shown)
    places = " ".join(one.where for one in shown)
    field = next((name for name in ("clean", "corrupted", "answer", "wrong") if name in places), None)
    return {"title": title, "lines": lines, "field": field}


def typed(field: str, text: str) -> Any:
    """Returns what a text typed into a field means: alternatives of an answer are separated by " | "."""
    if field in ("clean", "corrupted"):
        return text
    if field == "wrong" and not text:
        return None
    return text.split(" | ") if " | " in text else text
