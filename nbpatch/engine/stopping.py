"""How a run is stopped: asked between waves and, in the fast engine, between the layers of a wave."""


class Halted(Exception):
    """Raised between two layers of a wave when the run is to stop; the wave's runs are not made."""


def never() -> bool:
    """The stop callback that never stops a run."""
    return False
