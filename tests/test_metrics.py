"""Metrics against their definitions, their signs, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nbpatch.errors import MetricError
from nbpatch.metrics import METRICS, Answers, Metric, as_metrics, check_wrong, measure

LOGITS = torch.tensor([[2.0, 0.5, -1.0, 0.0], [0.0, 1.0, 3.0, -2.0]])
CLEAN = torch.tensor([[3.0, 0.0, -1.0, 0.0], [0.0, 2.0, 1.0, -2.0]])


def answers(answer: list[list[int]], wrong: list[list[int]]) -> Answers:
    return Answers(torch.tensor(answer), torch.tensor(wrong), CLEAN.log_softmax(-1))


SINGLE = answers([[0], [1]], [[1], [2]])
SEVERAL = answers([[0, 3], [1, -1]], [[1, 2], [2, -1]])


def value(name: str, one: Answers = SINGLE) -> list[float]:
    return measure(METRICS[name], LOGITS, one).tolist()


def test_logit_diff_is_answer_minus_wrong() -> None:
    assert value("logit_diff") == pytest.approx([1.5, -2.0])


def test_logit_diff_of_alternatives_is_a_difference_of_means() -> None:
    assert value("logit_diff", SEVERAL) == pytest.approx([(2.0 + 0.0) / 2 - (0.5 - 1.0) / 2, -2.0])


def test_max_logit_diff_is_between_the_best_of_each_side() -> None:
    assert value("max_logit_diff", SEVERAL) == pytest.approx([2.0 - 0.5, -2.0])
    assert value("max_logit_diff") == value("logit_diff"), "one answer on each side"


def test_prob_and_log_prob_agree_and_sum_over_alternatives() -> None:
    shares = LOGITS.softmax(-1)
    expected = [float(shares[0, 0] + shares[0, 3]), float(shares[1, 1])]
    assert value("prob", SEVERAL) == pytest.approx(expected)
    assert value("log_prob", SEVERAL) == pytest.approx([math.log(share) for share in expected])


def test_kl_is_minus_the_divergence_from_the_clean_run() -> None:
    clean, patched = CLEAN.double().softmax(-1), LOGITS.double().softmax(-1)
    expected = -(clean * (clean / patched).log()).sum(-1)
    assert value("kl") == pytest.approx(expected.tolist(), abs=1e-6)
    assert measure(METRICS["kl"], CLEAN, SINGLE).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_rank_counts_the_tokens_above_the_best_alternative() -> None:
    assert value("rank") == [0, -1]
    assert value("rank", answers([[2], [3]], [[1], [2]])) == [-3, -3]
    assert value("rank", SEVERAL) == [0, -1]


def test_accuracy_is_one_only_on_top() -> None:
    assert value("accuracy") == [1, 0]


@given(st.floats(-50, 50))
def test_no_metric_sees_a_constant_added_to_all_logits(shift: float) -> None:
    for metric in METRICS.values():
        moved = measure(metric, LOGITS.double() + shift, SINGLE)
        assert moved.tolist() == pytest.approx(measure(metric, LOGITS.double(), SINGLE).tolist(), abs=1e-5)


@given(st.floats(0.1, 5))
def test_every_metric_grows_with_the_answer(more: float) -> None:
    raised = LOGITS.clone()
    raised[[0, 1], [0, 1]] += more
    for name in ("logit_diff", "prob", "log_prob", "rank", "accuracy"):
        assert (measure(METRICS[name], raised, SINGLE) >= measure(METRICS[name], LOGITS, SINGLE)).all()


def test_names_lists_and_functions_are_taken() -> None:
    def margin(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 0] - logits.max(-1).values

    margin.unit = "logit"  # pyright: ignore[reportFunctionMemberAccess]
    several = as_metrics(["prob", margin])
    assert [metric.name for metric in several] == ["prob", "margin"]
    assert several[1].unit == "logit"
    assert several[1].whole
    assert measure(several[1], LOGITS, SINGLE).tolist() == [0, -3]
    assert [metric.name for metric in as_metrics("logit_diff, prob")] == ["logit_diff", "prob"]
    assert as_metrics(METRICS["kl"]) == (METRICS["kl"],)


@pytest.mark.parametrize(
    ("metric", "hint"),
    [
        ("logit_dif", 'did you mean "logit_diff"?'),
        ("", 'metric="logit_diff"'),
        ([], 'metric="logit_diff"'),
        (["prob", "prob"], "give each its own name"),
        (3, "a name (logit_diff, max_logit_diff, log_prob, prob, kl, rank, accuracy) or a function"),
        (lambda logits, answer: logits, "lambda logits: metric(logits, …)"),
    ],
)
def test_what_is_no_metric_is_refused_with_the_next_step(metric: object, hint: str) -> None:
    with pytest.raises(MetricError) as caught:
        as_metrics(metric)  # pyright: ignore[reportArgumentType]
    assert caught.value.fix == hint


def test_a_function_called_like_a_metric_is_refused() -> None:
    def prob(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 0]

    with pytest.raises(MetricError, match="cannot name a variable of its own"):
        as_metrics(prob)


@pytest.mark.parametrize("result", [torch.zeros(3), torch.tensor(1.0), 1.0])
def test_a_function_must_return_one_number_per_pair(result: object) -> None:
    metric = Metric("mine", "", "mine", lambda logits, _: result, whole=True)
    with pytest.raises(MetricError) as caught:
        measure(metric, LOGITS, SINGLE)
    assert "tensor of shape [2] for logits of shape [2, 4]" in caught.value.fix


def test_a_metric_that_needs_a_wrong_answer_names_the_pair_without() -> None:
    with pytest.raises(MetricError) as caught:
        check_wrong(as_metrics("prob logit_diff"), {0: (3,), 1: ()})
    assert caught.value.seen == "pair 2 of 2 has answer only"
    check_wrong(as_metrics("prob kl"), {0: ()})
