"""Runs a plan on a model: base runs, waves of patched runs, measuring, progress, stopping."""

from nbpatch.engine.run import Origin, Progress, run

__all__ = ["Origin", "Progress", "run"]
