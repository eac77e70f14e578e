"""Metrics: one number per pair from the logits at the answer position; larger = more of the clean behaviour.

torch is loaded inside the functions only, so that names, units and labels are free to read.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from nbpatch.errors import MetricError, suggest

Tensor: TypeAlias = Any


@dataclass(frozen=True)
class Answers:
    """What a metric compares the logits of `row` runs with.

    Attributes:
        answer: token ids [row alternative], padded with −1.
        wrong: token ids [row alternative], padded with −1; no alternatives where a pair has no wrong answer.
        clean_log_probs: log-probabilities of each row's clean run [row d_vocab].
    """

    answer: Tensor
    wrong: Tensor
    clean_log_probs: Tensor

    def rows(self, index: Tensor) -> "Answers":
        """Returns the answers of the rows in `index`."""
        return Answers(self.answer[index], self.wrong[index], self.clean_log_probs[index])

    @property
    def columns(self) -> Tensor:
        """All tokens that are an answer or a wrong one for some row [column], in ascending order."""
        import torch

        ids = torch.cat([self.answer.flatten(), self.wrong.flatten()]).unique()
        return ids[ids >= 0]

    def within(self, columns: Tensor) -> "Answers":
        """Returns the answers as indices into `columns`, for logits of these tokens only."""
        import torch

        places = [
            torch.where(ids < 0, ids, torch.searchsorted(columns, ids.clamp(min=0)))
            for ids in (self.answer, self.wrong)
        ]
        return Answers(places[0], places[1], self.clean_log_probs[:, columns])


MetricFunction: TypeAlias = Callable[[Tensor, Answers], Tensor]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: the variable's name in a result.
        unit: unit of its values.
        label: what it is called in a sentence.
        compute: (logits [row d_vocab], answers) → values [row].
        needs_wrong: whether every pair must name a wrong answer.
        linear: whether it is linear in the logits, so that effects of parts add up.
        whole: whether `compute` must see one row per pair, in order (a user's function), not any batch of rows.
        local: whether it reads the logits of the answers only, so that no others need be computed.
    """

    name: str
    unit: str
    label: str
    compute: MetricFunction = field(compare=False)
    needs_wrong: bool = False
    linear: bool = False
    whole: bool = False
    local: bool = False

    def describe(self) -> dict[str, Any]:
        """Returns what a result's provenance keeps of the metric."""
        return {"name": self.name, "unit": self.unit, "label": self.label, "linear": self.linear}


def logit_diff(logits: Tensor, answers: Answers) -> Tensor:
    """Returns logit(answer) − logit(wrong) [logit], the mean over alternatives on each side.

    Linear in the final residual stream, so negative parts show as clearly as positive ones.
    """
    return _mean_logit(logits, answers.answer) - _mean_logit(logits, answers.wrong)


def max_logit_diff(logits: Tensor, answers: Answers) -> Tensor:
    """Returns max logit(answer) − max logit(wrong) [logit] over alternatives: which the model likes best on each side.

    The same as `logit_diff` with one answer and one wrong one. Not linear where alternatives change places.
    """
    return _best_logit(logits, answers.answer) - _best_logit(logits, answers.wrong)


def log_prob(logits: Tensor, answers: Answers) -> Tensor:
    """Returns the log-probability of the answer [nat]; alternatives count with their summed probability."""
    gathered, absent = _gather(logits.log_softmax(-1), answers.answer)
    return gathered.masked_fill(absent, float("-inf")).logsumexp(-1)


def prob(logits: Tensor, answers: Answers) -> Tensor:
    """Returns the probability of the answer [prob], summed over alternatives.

    Cannot see parts that work against the answer when its probability is near 0 already: use logit_diff for those.
    """
    gathered, absent = _gather(logits.softmax(-1), answers.answer)
    return gathered.masked_fill(absent, 0.0).sum(-1)


def kl(logits: Tensor, answers: Answers) -> Tensor:
    """Returns −KL(clean ‖ patched) [nat]: 0 for the clean run's own prediction, negative for any other."""
    clean = answers.clean_log_probs
    return -(clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)


def rank(logits: Tensor, answers: Answers) -> Tensor:
    """Returns minus the number of tokens the model likes better than the answer [place]: 0 = on top."""
    best = _best_logit(logits, answers.answer)
    return -(logits > best[..., None]).sum(-1).to(logits.dtype)


def accuracy(logits: Tensor, answers: Answers) -> Tensor:
    """Returns 1 where the answer is the model's top token, else 0 [0/1]. For reports: too coarse to sweep with."""
    return (rank(logits, answers) == 0).to(logits.dtype)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("logit_diff", "logit", "logit difference", logit_diff, needs_wrong=True, linear=True, local=True),
        Metric("max_logit_diff", "logit", "largest logit difference", max_logit_diff, needs_wrong=True, local=True),
        Metric("log_prob", "nat", "log probability", log_prob),
        Metric("prob", "prob", "probability", prob),
        Metric("kl", "nat", "−KL from the clean prediction", kl),
        Metric("rank", "place", "rank", rank),
        Metric("accuracy", "0/1", "accuracy", accuracy),
    )
}

MetricLike: TypeAlias = str | Callable[..., Any] | Metric


def as_metrics(metric: object) -> tuple[Metric, ...]:
    """Returns the metrics named by a name, a function, or a list of either.

    A function takes logits [pair d_vocab] and returns [pair]; its name and its attribute `unit` label the result.

    Raises:
        MetricError: an unknown name, an empty list, or two metrics of one name.
    """
    given: Sequence[object]
    if isinstance(metric, str):
        given = metric.replace(",", " ").split()
    elif isinstance(metric, Sequence):
        given = cast(Sequence[object], metric)
    else:
        given = [metric]
    metrics = tuple(_as_metric(one) for one in given)
    if not metrics:
        raise MetricError("no metric named.", where=f"metric={metric!r}", fix='metric="logit_diff"')
    names = [one.name for one in metrics]
    if len(set(names)) < len(names):
        raise MetricError(
            "two metrics of one name.", where="metric", seen=", ".join(names), fix="give each its own name"
        )
    return metrics


def _as_metric(metric: object) -> Metric:
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in METRICS:
            raise MetricError(f"no metric {metric!r}.", where="metric", fix=suggest(metric, METRICS))
        return METRICS[metric]
    if not callable(metric):
        seen = f"{metric!r} ({type(metric).__name__})"
        raise MetricError(
            "not a metric.", where="metric", seen=seen, fix=f"a name ({', '.join(METRICS)}) or a function"
        )
    return _from_function(metric)


def _from_function(function: Callable[..., Any]) -> Metric:
    name = str(getattr(function, "__name__", type(function).__name__))
    name = "metric" if name == "<lambda>" else name
    if not name.isidentifier() or name in METRICS:
        raise MetricError(
            f"a function called {name!r} cannot name a variable of its own.", where="metric", fix="rename the function"
        )
    takes = [
        p for p in inspect.signature(function).parameters.values() if p.default is p.empty and p.kind in _POSITIONAL
    ]
    if len(takes) != 1:
        raise MetricError(
            f"{name} must take one argument, the logits [pair, d_vocab].",
            where="metric",
            seen=f"{name}({', '.join(p.name for p in takes)})",
            fix=f"lambda logits: {name}(logits, …)",
        )

    def compute(logits: Tensor, answers: Answers) -> Tensor:
        return function(logits)

    unit = str(cast(Any, getattr(function, "unit", "")))
    return Metric(name, unit, name.replace("_", " "), compute, whole=True)


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_wrong(metrics: Sequence[Metric], wrong_ids: Mapping[int, tuple[int, ...]]) -> None:
    """Refuses a metric that needs a wrong answer where a pair has none.

    Raises:
        MetricError: with the first pair that has none.
    """
    for metric in metrics:
        lacking = [pair for pair, ids in wrong_ids.items() if not ids]
        if metric.needs_wrong and lacking:
            raise MetricError(
                f"{metric.name} needs a wrong answer to compare with.",
                where=f'metric="{metric.name}"',
                seen=f"pair {lacking[0] + 1} of {len(wrong_ids)} has answer only",
                fix='PromptPair(…, wrong=" …"), or metric="log_prob"',
            )


def measure(metric: Metric, logits: Tensor, answers: Answers) -> Tensor:
    """Returns the metric's values [row] for logits [row d_vocab], as float64 on the CPU.

    Raises:
        MetricError: a user's function returned something else than one number per row.
    """
    import torch

    values = metric.compute(logits, answers)
    seen = (
        f"{type(values).__name__} of shape {list(values.shape)}" if isinstance(values, torch.Tensor) else repr(values)
    )
    if not isinstance(values, torch.Tensor) or values.shape != logits.shape[:1]:
        raise MetricError(
            f"{metric.name} must return one number per pair.",
            where="metric",
            seen=seen,
            fix=f"return a tensor of shape [{logits.shape[0]}] for logits of shape {list(logits.shape)}",
        )
    return values.detach().to("cpu", torch.float64)


def _gather(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns values at `ids` [row alternative] and where an alternative is only padding."""
    return values.gather(-1, ids.clamp(min=0)), ids < 0


def _mean_logit(logits: Tensor, ids: Tensor) -> Tensor:
    gathered, absent = _gather(logits, ids)
    return gathered.masked_fill(absent, 0.0).sum(-1) / (~absent).sum(-1)


def _best_logit(logits: Tensor, ids: Tensor) -> Tensor:
    gathered, absent = _gather(logits, ids)
    return gathered.masked_fill(absent, float("-inf")).max(-1).values
