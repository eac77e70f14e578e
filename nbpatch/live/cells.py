"""What hangs on the chosen cells: the patched run of one of them, its spread over pairs, several together, a move."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbpatch.engine import Origin, run
from nbpatch.engine.base import BASE, BaseRuns, trace_runs
from nbpatch.engine.replay import replay
from nbpatch.errors import PatchNotApplied, PlanError
from nbpatch.joint import make_sites_plan, read_sets
from nbpatch.live.question import Question, Reply
from nbpatch.model import Hook, Model
from nbpatch.plan import EXACT, MEASURED, NO_POSITION, NOT_RUN, Cell, Direction, Plan
from nbpatch.sites import Site
from nbpatch.tokens import token_text
from nbpatch.view.payload import Message

TOP = 5
MAX_TOKENS = 2048
TOLERANCE = 1e-4
"""How far, in the metric's unit, the run that is shown may be from the sweep's value, in float32."""


def cell(question: Question) -> Iterator[Reply]:
    """Answers what one cell does: spread over pairs, next tokens before and after, the patched run's attention.

    The page says `cell`, and with `layer` whose attention it wants. Of both directions the run shown is denoising.
    """
    chosen = _index(question, question.content.get("cell"))
    direction: Direction = "noising" if question.ask.direction == "noising" else "denoising"
    said: Message = {"cell": question.content["cell"], "direction": direction, "spread": spread(question, chosen)}
    layer = question.content.get("layer")
    shown = patched_run(question, chosen, direction, layer if isinstance(layer, int) else None)
    if isinstance(shown, str):
        yield {**said, "note": shown}, []
        return
    _check(question, chosen, direction, shown)
    said |= {"base": BASE[direction], "tokens": _tokens(question, shown), "value": _number(shown.value)}
    if shown.pattern is None:
        yield said, []
        return
    values = np.ascontiguousarray(shown.pattern.numpy(), np.float32)
    yield {**said, "layer": layer, "shape": list(values.shape)}, [values.tobytes()]


def together(question: Question) -> Iterator[Reply]:
    """Answers what several cells do in one run, beside the sum of what each does alone, for the pair on screen."""
    listed = question.content.get("cells")
    given: list[Any] = [*cast("list[Any]", listed)] if isinstance(listed, list) else []
    cells = list(dict.fromkeys(_index(question, one) for one in given))
    if len(cells) < 2:
        raise PlanError("that patches several cells.", where="cells", seen=f"{len(cells)} cells")
    plan = _plan(question)
    sites = [plan.site(Cell(0, one, ())) for one in cells]
    joint = _effects(question, [[(site, site) for site in sites]])
    alone = {direction: [_effect(question, one, direction) for one in cells] for direction in joint}
    sums = {direction: _number(float(np.sum(values))) for direction, values in alone.items()}
    yield {"cells": given, "together": _numbers(joint), "sum": sums, "sites": [str(site) for site in sites]}, []


def move(question: Question) -> Iterator[Reply]:
    """Answers what changes when one cell's value of the source run goes to another cell's place."""
    origin, target = (_index(question, question.content.get(name)) for name in ("from", "to"))
    plan = _plan(question)
    there, here = (plan.site(Cell(0, one, ())) for one in (origin, target))
    effects = _effects(question, read_sets([here], [there]))
    yield {"from": str(there), "to": str(here), "effects": _numbers(effects)}, []


# -- one patched run


@dataclass(frozen=True)
class Shown:
    """The run with one cell patched.

    Attributes:
        base, patched: answer logits [d_vocab] of the run that is changed, and of the changed one.
        value: m(patched), NaN where the metric is a user's, which must see all pairs.
        pattern: attention [head dest src] of the layer asked for.
    """

    base: Tensor
    patched: Tensor
    value: float
    pattern: Tensor | None


def patched_run(question: Question, chosen: tuple[int, ...], direction: Direction, layer: int | None) -> Shown | str:
    """Returns the run of one cell in the pair on screen, made by whole forwards; or why there is none to show.

    Raises:
        PatchNotApplied: the patch did not fire as planned.
        SiteError: the component cannot be patched through hooks in this model.
    """
    plan, pair = _plan(question), question.ask.pair
    if plan.corruption.draws > 1:
        return "Values are drawn at random several times: there is no one patched run to show."
    if plan.states[(0, *chosen, pair)] == NO_POSITION:
        return "This pair has no such position."
    alone = plan.corruption.kind == "counterfactual"
    states = np.full((1, *plan.states.shape[1:]), EXACT, np.int8)
    states[(0, *chosen, pair)] = NOT_RUN
    plan = replace(plan, directions=(direction,), states=states)
    if alone:
        plan = replace(plan, tokenized=plan.tokenized[pair : pair + 1], states=states[..., pair : pair + 1])
    row = 0 if alone else pair
    question.model.check_replayed(plan.component)
    runs = trace_runs(plan, question.model, max_tokens=MAX_TOKENS)
    seen, watch = _watching(question.model, layer)
    (wave,) = plan.waves(MAX_TOKENS)
    (_, logits) = next(iter(replay(wave, plan, runs, question.model, watch=watch)))
    value = _measured(question, plan, runs, logits, row)
    return Shown(runs.logits[BASE[direction]][row], logits[0], value, seen[0][0] if seen else None)


def _watching(model: Model, layer: int | None) -> tuple[list[Tensor], list[Hook]]:
    """Returns where the attention of a layer will be, and the hook that puts it there; none where it is not shown."""
    seen: list[Tensor] = []
    there = layer is not None and 0 <= layer < model.shape.n_layers
    name = model.hook_name("pattern", layer) if layer is not None and there else None

    def keep(value: Tensor, hook: Any) -> None:
        seen.append(value.detach().float().cpu())

    return seen, [] if name is None else [(name, keep)]


def _measured(question: Question, plan: Plan, runs: BaseRuns, logits: Tensor, row: int) -> float:
    metric = next(one for one in plan.metrics if one.name == question.ask.metric)
    if metric.whole:
        return float("nan")
    return float(metric.compute(logits, runs.answers.rows(torch.tensor([row])))[0])


def _check(question: Question, chosen: tuple[int, ...], direction: str, shown: Shown) -> None:
    """Refuses to show a run that is not the one the sweep measured.

    Raises:
        PatchNotApplied: its metric is another number than the sweep's.
    """
    data = _of(question.result.data, direction)
    here = dict(zip(question.result.over, chosen, strict=True)) | {"pair": question.ask.pair}
    known = question.result.provenance.get("method") == "patch"
    if not known or int(data["state"].isel(here)) not in (MEASURED, EXACT) or not np.isfinite(shown.value):
        return
    swept = float(data[question.ask.metric].isel(here))
    rounding = torch.finfo(question.model.dtype).eps / torch.finfo(torch.float32).eps
    if abs(shown.value - swept) > TOLERANCE * max(1.0, rounding) * max(1.0, abs(swept)):
        raise PatchNotApplied(
            "the patched run gives another value than the sweep: one of the two is wrong.",
            where=str(_plan(question).site(Cell(0, chosen, ()))),
            seen=f"{question.ask.metric} {shown.value:.6g} here, {swept:.6g} in the sweep",
            fix='wb.model.engine = "replay"; wb.run()',
        )


def _tokens(question: Question, shown: Shown) -> list[list[Any]]:
    """Returns the likeliest next tokens of both runs, the answers first: text, before, after, what it is."""
    pair = _plan(question).tokenized[question.ask.pair]
    before, after = (logits.float().softmax(-1) for logits in (shown.base, shown.patched))
    kinds = dict.fromkeys(pair.answer_ids[:1], "answer") | dict.fromkeys(pair.wrong_ids[:1], "wrong")
    top = [int(token) for shares in (after, before) for token in shares.topk(min(TOP, len(shares))).indices]
    best = sorted(dict.fromkeys(top), key=lambda token: -float(torch.maximum(before, after)[token]))
    order = list(dict.fromkeys([*kinds, *best]))[: TOP + 1]
    tokenizer = question.model.tokenizer
    return [
        [token_text(tokenizer, token), float(before[token]), float(after[token]), kinds.get(token, "")]
        for token in order
    ]


# -- numbers of the sweep


def spread(question: Question, chosen: tuple[int, ...]) -> dict[str, Message]:
    """Returns a cell's share of the gap in each direction: every pair's, the mean and its 95 % bootstrap interval.

    Empty with fewer than two pairs.
    """
    result, name = question.result, question.ask.metric
    if result.data.sizes["pair"] < 2:
        return {}
    one = replace(result, data=result.data.isel({a: [i] for a, i in zip(result.over, chosen, strict=True)}))
    bounds, shares, each = one.interval(name), one.share(name), one.share(name, per_pair=True)
    found: dict[str, Message] = {}
    for direction in _directions(question):
        # The interval is of `recovered`, which is the share + 1 where the base is the clean run.
        shift = 0.0 if direction == "denoising" else 1.0
        low, high = (float(_of(bounds[side], direction).squeeze()) - shift for side in ("low", "high"))
        values = _of(each, direction).to_numpy().ravel()
        found[direction] = {
            "values": [_number(value) for value in values],
            "mean": _number(float(_of(shares, direction).squeeze())),
            "low": _number(low),
            "high": _number(high),
        }
    return found


def _effects(question: Question, sets: Sequence[Sequence[tuple[Site, Site]]]) -> dict[str, float]:
    """Returns m(patched) − m(base) of one set of sites in the pair on screen, in each direction."""
    plan, ask = _plan(question), question.ask
    pair, alone = ask.pair, plan.corruption.kind == "counterfactual"
    joint = make_sites_plan(
        plan.shape,
        question.model.tokenize([ask.pairs[pair]] if alone else ask.pairs),
        sets,
        direction=ask.direction,
        metrics=plan.metrics,
        corruption=plan.corruption,
    )
    effect = run(joint, question.model).effect(ask.metric, per_pair=True).isel(site=0, pair=0 if alone else pair)
    return {direction: float(_of(effect, direction)) for direction in _directions(question)}


def _effect(question: Question, chosen: tuple[int, ...], direction: str) -> float:
    """Returns the sweep's effect of one cell in the pair on screen."""
    result = question.result
    here = dict(zip(result.over, chosen, strict=True)) | {"pair": question.ask.pair}
    return float(_of(result.effect(question.ask.metric, per_pair=True), direction).isel(here))


def _directions(question: Question) -> tuple[str, ...]:
    return question.ask.directions


def _of(data: Any, direction: str) -> Any:
    """Returns one direction of what may hold both."""
    return data.sel(direction=direction) if "direction" in data.dims else data


def _plan(question: Question) -> Plan:
    """Returns the plan of the sweep on screen; its directions need not be all that are shown.

    Raises:
        PlanError: the result on screen was not made by a live model.
    """
    origin = question.result.origin
    if not isinstance(origin, Origin):
        raise PlanError("the sweep on screen has no model.", where="result", fix="wb.run()")
    return origin.plan


def _index(question: Question, given: object) -> tuple[int, ...]:
    """Returns a cell's index along each swept axis.

    Raises:
        PlanError: it does not name every swept axis, or has a label that is not there.
    """
    result = question.result
    named: Mapping[str, Any] = cast("Mapping[str, Any]", given) if isinstance(given, Mapping) else {}
    found: list[int] = []
    for axis in result.over:
        labels: NDArray[Any] = result.data[axis].to_numpy()
        places = np.flatnonzero(labels == named.get(axis))
        if not len(places):
            fix = "axes: " + ", ".join(result.over)
            raise PlanError("no such cell on this map.", where="cell", seen=repr(given), fix=fix)
        found.append(int(places[0]))
    return tuple(found)


def check_named(cells: Sequence[Mapping[str, Any]], over: Sequence[str], where: str) -> None:
    """Refuses cells that leave out a swept axis.

    Raises:
        PlanError: one does.
    """
    missing = [axis for one in cells for axis in over if axis not in one]
    if missing:
        named = "{" + ", ".join(f'"{axis}": 0' for axis in over) + "}"
        fix = f"wb.{where} = {named}" if where == "selection" else f"wb.{where} = [{named}]"
        raise PlanError("a selection names every swept axis.", where=where, seen=f"no {missing[0]}", fix=fix)


def _number(value: float) -> float | None:
    """Returns a number as JSON takes it."""
    return float(value) if np.isfinite(value) else None


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


ANSWERS: dict[str, Any] = {"cell": cell, "together": together, "move": move}
"""What these answers are asked for with."""

__all__ = ["ANSWERS", "cell", "check_named", "move", "spread", "together"]
