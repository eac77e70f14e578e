"""Runs a plan on a model: base runs, waves of patched runs, measuring, progress, stopping."""

from nbpatch.engine.fit import probe
from nbpatch.engine.loop import Origin, Progress, run, run_together
from nbpatch.model import Model, load

Model.prober = probe

__all__ = ["Origin", "Progress", "load", "run", "run_together"]
