"""What a plan will cost before it is run: floating-point operations of the dependency cone, bytes, seconds."""

from dataclasses import replace

import numpy as np

from nbpatch.engine.memory import Room
from nbpatch.engine.rows import ATTN, HEADS, PRE, Rows, base_rows, rows_of, waves
from nbpatch.engine.suffixes import in_vain, started_together
from nbpatch.plan import NOT_RUN, Cost, Plan

_SHARE_OF_PEAK = 0.8
"""How much of the machine's rate for large matrix products a walk reaches."""

_PER_LAYER = 1.5e-3
"""Seconds of bookkeeping a wave, or a call of a block, needs in each layer, whatever its size; on two slow cores."""


def with_cost(plan: Plan, engine: str, *, room: Room, pass_seconds: float, rate: float) -> Plan:
    """Returns a plan that knows what it will cost.

    Args:
        engine: by which it will be run: "frontier", "suffix" or "replay".
        room: how the memory budget is divided.
        pass_seconds: time of one pass of few tokens through the model.
        rate: floating-point operations per second of large matrix products.
    """
    shape, max_tokens = plan.shape, room.max_tokens
    lengths = np.array([[len(one.clean_ids), len(one.corrupted_ids)] for one in plan.tokenized])
    each = 2.0 * shape.layer_weights * shape.n_layers
    calls = 0  # of all blocks, beside one a wave: where only rows that start together go together
    if engine == "replay":
        tokens = int(((plan.states == NOT_RUN).sum(axis=tuple(range(plan.states.ndim - 1))) * lengths[:, 0]).sum())
        count, flops = int(np.ceil(tokens / max_tokens)), each * (tokens + float(lengths.sum()))
    else:
        rows, base = rows_of([plan]), list(base_rows(plan.tokenized, max_tokens=max_tokens))
        if engine == "suffix":
            rows, calls = _behind_cache(rows, in_vain(2.0 * shape.layer_weights))
            flops = each * float(lengths.sum())
        else:
            flops = sum(cone_flops(one, plan) for one in base)
        tokens = int(rows.tokens.sum())
        taken = int(base[-1].tokens.sum())
        count = sum(1 for _ in waves(rows, max_tokens=max_tokens, taken=taken))
        flops += cone_flops(rows, plan) + 2.0 * lengths.size * shape.d_model * shape.d_vocab
    if not all(metric.local for metric in plan.metrics):
        flops += 2.0 * plan.n_runs * shape.d_model * shape.d_vocab
    widest = min(max_tokens, tokens)
    bookkeeping = (count + calls) * shape.n_layers * _PER_LAYER
    seconds = (1 + count) * pass_seconds + bookkeeping + flops / (_SHARE_OF_PEAK * rate)
    return replace(plan, cost=Cost(count, flops, room.fixed + widest * room.each, seconds))


def _behind_cache(rows: Rows, worth: float) -> tuple[Rows, int]:
    """Returns rows as they are run behind a cache, whole blocks from a common start on, and of how many starts."""
    first, calls = rows.first.copy(), 0
    for last in np.unique(rows.last):
        mine = np.flatnonzero(rows.last == last)
        for group in started_together(rows.first[mine], worth):
            first[mine[group]] = rows.first[mine[group]].min()
            calls += 1
    return replace(rows, first=first, kind=np.full(len(rows), PRE), alone=np.zeros(len(rows), np.bool_)), calls


def cone_flops(rows: Rows, plan: Plan) -> float:
    """Returns the operations of all that patches can change and the answer can see, base runs not counted.

    Scores are not counted: beside the matrices they are small at the lengths of prompts.
    """
    shape = plan.shape
    taken, written = shape.attention_weights
    mlp = shape.layer_weights - taken - written
    last = shape.n_layers - 1
    dense = np.maximum(0, last - np.minimum(rows.enter, last)) * rows.tokens * shape.layer_weights
    ends = np.where(rows.enter <= last, rows.tokens * taken + written + mlp, 0)
    entered = np.where(rows.alone | (rows.layer == last), 1, rows.tokens)
    inside = np.where(rows.kind == HEADS, written + mlp, np.where(rows.kind == ATTN, mlp, 0))
    return 2.0 * float((dense + ends + entered * inside).sum())
