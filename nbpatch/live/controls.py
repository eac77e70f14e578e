"""What is on a workbench's controls, as a value: what to run, where finished runs are kept, how to say it again."""

import shlex
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nbpatch.corruption import SOURCES, AnyCorruption, corruption_named
from nbpatch.errors import NbpatchError, PlanError
from nbpatch.metrics import METRICS, Metric, as_metrics
from nbpatch.plan import COUNTERFACTUAL, DIRECTIONS, directions_of
from nbpatch.prompts import Pairs, PromptPair
from nbpatch.sites import default_over, parse_over
from nbpatch.view.payload import Message

_MOST_TRACEBACK = 20_000
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"})


@dataclass(frozen=True)
class Ask:
    """What is on the controls. A sweep's maps depend on nothing else.

    Attributes:
        metrics: what is measured; `metric` is the one shown.
        pair: the pair whose map is shown.
        corruption: where values come from.
    """

    pairs: Pairs
    component: str
    over: tuple[str, ...]
    direction: str
    metrics: tuple[Metric, ...]
    metric: str
    pair: int = 0
    corruption: AnyCorruption = COUNTERFACTUAL

    @property
    def directions(self) -> tuple[str, ...]:
        """The one direction asked for, or both."""
        return DIRECTIONS if self.direction == "both" else (self.direction,)

    def shown_first(self) -> list[str]:
        """Returns the names of the metrics, the one on screen first: a widget shows the first of its result."""
        return sorted((one.name for one in self.metrics), key=lambda name: name != self.metric)

    def sweep(self, direction: str) -> tuple[Any, ...]:
        """Returns what the run in one direction is kept under."""
        metrics = tuple(metric.name for metric in self.metrics)
        return (self.pairs, self.component, self.over, direction, metrics, self.corruption)


def changed(ask: Ask, message: Message) -> Ask:
    """Returns the controls after a change of one of them, with what comes with it.

    Raises:
        NbpatchError: a component, axis, metric or corruption that there is not.
    """
    component = str(message.get("component", ask.component))
    over = parse_over(component, message["over"]) if "over" in message else ask.over
    if component != ask.component and "over" not in message:
        over = default_over(component)
    metric = str(message.get("metric", ask.metric))
    metrics = ask.metrics if metric in {one.name for one in ask.metrics} else (*ask.metrics, *as_metrics(metric))
    pair = min(max(int(message.get("pair", ask.pair)), 0), len(ask.pairs) - 1)
    source = ask.corruption
    if message.get("corruption", source.kind) != source.kind:
        source = corruption_named(str(message["corruption"]))
    (usual,) = directions_of(None, source)
    direction = str(message.get("direction", usual if source.ablates else ask.direction))
    more = {"component": component, "over": over, "metric": metric, "metrics": metrics, "pair": pair}
    return replace(ask, **more, direction=direction, corruption=source)


def as_python(ask: Ask, model: str) -> str:
    """Returns Python that makes what is on screen."""
    pairs = ",\n    ".join(map(_pair_as_python, ask.pairs))
    # A function of the notebook goes by its name there, a metric of nbpatch by a text.
    metrics = ", ".join(repr(name) if name in METRICS else name for name in ask.shown_first())
    return (
        "import nbpatch as nbp\n\n"
        f"model = nbp.load({model!r})\n"
        f"pairs = nbp.Pairs([\n    {pairs},\n])\n"
        f"result = nbp.patch(model, pairs, {ask.component!r}, over={' '.join(ask.over)!r}, "
        f"direction={ask.direction!r}, metric=[{metrics}]{_source_as_python(ask.corruption)})\n"
        "result\n"
    )


def as_magic(ask: Ask, model: str) -> str:
    """Returns the `%%patch` cell that makes what is on screen.

    Raises:
        PlanError: values come from a dataset of its own, which no cell can name.
    """
    metrics = " ".join(ask.shown_first())
    sweep = f'--component {ask.component} --over "{" ".join(ask.over)}" --direction {ask.direction}'
    head = f"%%patch --model {shlex.quote(model)} {sweep} --metric {metrics}{_source_as_option(ask.corruption)}"
    return head + "\n" + "\n\n".join(map(_pair_as_lines, ask.pairs)) + "\n"


def _source_as_python(corruption: AnyCorruption) -> str:
    if corruption.kind == "counterfactual":
        return ""
    given = getattr(corruption, "dataset", None)
    if given is None:
        return f", corruption=nbp.{corruption!r}"
    texts = [repr(one) if isinstance(one, str) else _pair_as_python(one) for one in given]
    bare = repr(replace(corruption, dataset=None)).replace("dataset=None", f"dataset=[{', '.join(texts)}]")
    return f", corruption=nbp.{bare}"


def _source_as_option(corruption: AnyCorruption) -> str:
    if corruption.kind == "counterfactual":
        return ""
    if corruption != SOURCES.get(corruption.kind):
        what = "a cell names a corruption by its kind alone."
        raise PlanError(what, where="copy as %%patch", seen=f"{corruption!r:.60}", fix="Copy as Python")
    return f" --corruption {corruption.kind}"


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
