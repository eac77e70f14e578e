"""The checker that looks at every call of the package while tests run; an int is a float, as PEP 484 has it."""

from collections.abc import Callable
from functools import wraps
from types import CodeType
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, config

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

_shapes_too = jaxtyping.jaxtyped
_seen: set[CodeType] = set()


def _as_needed(*, typechecker: Any) -> Callable[[Any], Any]:
    """Returns a decorator that makes a function check itself with no more than it needs.

    A function without an array among its annotations needs no shapes, which cost each call more than the types do. One
    within another function is checked the first time it is made: making it takes a millisecond, in every round of a
    loop. Together these were more than a third of the tests' time.
    """
    shapes_too = _shapes_too(typechecker=typechecker)

    def decorated(made: Any) -> Any:
        code = getattr(made, "__code__", None)
        if code is None:
            return shapes_too(made)
        if "<locals>" in made.__qualname__:
            if code in _seen:
                return made
            _seen.add(code)
        if any(map(_has_arrays, made.__annotations__.values())):
            return shapes_too(made)
        return _unless_disabled(made, typechecker(made))

    return decorated


def _unless_disabled(made: Callable[..., Any], types_too: Callable[..., Any]) -> Callable[..., Any]:
    """Returns what checks types unless a test has turned that off, as jaxtyping's own does."""

    @wraps(made)
    def either(*args: Any, **options: Any) -> Any:
        return (made if config.jaxtyping_disable else types_too)(*args, **options)

    return either


def _has_arrays(annotation: Any) -> bool:
    """Whether shapes can stand in an annotation; in one that is still a string they may."""
    if isinstance(annotation, str) or (isinstance(annotation, type) and issubclass(annotation, AbstractArray)):
        return True
    return any(map(_has_arrays, get_args(annotation)))


def check_as_needed() -> None:
    """Puts that decorator where jaxtyping's import hook looks for its own."""
    jaxtyping.jaxtyped = _as_needed
