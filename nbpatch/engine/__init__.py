"""Runs a plan on a model: base runs, waves of patched runs, measuring, progress, stopping."""

from nbpatch.engine.cost import with_cost
from nbpatch.engine.fit import probe, speed_of
from nbpatch.engine.frontier import bytes_per_token, most_tokens
from nbpatch.engine.loop import Progress, run, run_together
from nbpatch.engine.outcome import Origin
from nbpatch.model import Model, load
from nbpatch.plan import Plan

Model.prober = probe


def planned(plan: Plan, model: Model) -> Plan:
    """Returns a plan that knows what it will cost on a model: waves, operations, bytes and seconds."""
    tokens = most_tokens([plan], model)
    longest = max(len(one.clean_ids) for one in plan.tokenized)
    seconds, rate = speed_of(model)
    each = bytes_per_token(model, longest)
    return with_cost(plan, max_tokens=tokens, bytes_per_token=each, pass_seconds=seconds, rate=rate)


__all__ = ["Origin", "Progress", "load", "planned", "run", "run_together"]
