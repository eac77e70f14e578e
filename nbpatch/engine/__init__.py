"""Runs a plan on a model: base runs, waves of patched runs, measuring, progress, stopping."""

from nbpatch.engine.cost import with_cost
from nbpatch.engine.fit import fit_of, probe, speed_of
from nbpatch.engine.frontier import room_for
from nbpatch.engine.loop import Progress, engine_of, run, run_together
from nbpatch.engine.outcome import Origin
from nbpatch.engine.trace import wanted
from nbpatch.model import Model, load
from nbpatch.plan import Plan
from nbpatch.sites import acting

Model.prober = probe


def planned(plan: Plan, model: Model) -> Plan:
    """Returns a plan that knows what it will cost on a model: waves, operations, bytes and seconds."""
    seconds, rate = speed_of(model)
    return with_cost(
        plan,
        engine_of([plan], model, fit_of(model))[0],
        room=room_for([plan], model, wanted(acting(name) for name in plan.components)),
        pass_seconds=seconds,
        rate=rate,
    )


__all__ = ["Origin", "Progress", "load", "planned", "run", "run_together"]
