"""A sweep on its way to the page: at once where it is quick, else its estimate first and exact cells over it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nbpatch.engine import planned, run
from nbpatch.engine.staged import run_in_stages
from nbpatch.live.controls import Ask
from nbpatch.live.looks import Look, strengths
from nbpatch.live.stream import Stream
from nbpatch.model import Model
from nbpatch.plan import Plan
from nbpatch.result import Result
from nbpatch.view.payload import Map, Message

QUICK = 0.1
"""Expected seconds below which a sweep is there before its estimate would be: the estimate comes behind it."""

LONG = 1.0
"""Expected seconds from which a sweep is run in stages, the strongest cells first: each stage has base runs."""


@dataclass(frozen=True)
class Screen:
    """What a sweep shows on its way.

    Attributes:
        begin: takes the sweep with its base runs made and nothing else.
        look: makes, shows and returns the estimate by direction.
        say: takes the status.
        post: takes a map.
        stop: whether the run is to end.
    """

    begin: Callable[[Result], None]
    look: Callable[[], Mapping[str, Look]]
    say: Callable[[Message], None]
    post: Callable[[Map], None]
    stop: Callable[[], bool]


def expected(plan: Plan, model: Model) -> float:
    """Returns the seconds that a sweep will take on this machine; one whose cost is not known counts as long."""
    cost = planned(plan, model).cost
    return LONG if cost is None else cost.seconds


def measured(ask: Ask, plan: Plan, model: Model, screen: Screen) -> Result:
    """Returns a sweep's result, finished or as far as it got when `screen.stop` said so."""
    seconds = expected(plan, model)
    if seconds < QUICK:
        return run(plan, model, stop=screen.stop)
    # The controls and the prompts are shown before the first numbers: the base runs alone are quick.
    begun = run(plan, model, stop=at_once)
    screen.begin(begun)
    looks = screen.look()
    send = Stream(ask, plan, begun, looks, screen.say, screen.post).send
    if not looks or seconds < LONG:
        return run(plan, model, on_progress=send, stop=screen.stop)
    return run_in_stages(plan, model, strengths(plan, looks), on_progress=send, stop=screen.stop)


def at_once() -> bool:
    """Stops a run before its first wave: only the base runs are made."""
    return True
