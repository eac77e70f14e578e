"""Runs a plan on a model: base runs, waves of patched runs, measuring, progress, stopping."""

from nbpatch.engine.loop import Origin, Progress, run

__all__ = ["Origin", "Progress", "run"]
