"""The one place where views register for results, so that results need not import them.

`nbpatch/__init__` fills `provider`; it is called on first use, which keeps an import of nbpatch light and lets
a saved result open, print and compute on a machine with neither torch nor a notebook.
"""

from typing import Any, Protocol, runtime_checkable

from nbpatch.errors import NbpatchError


@runtime_checkable
class Display(Protocol):
    """What a result can be turned into; `nbpatch.showing` and `nbpatch.view.saved` implement it."""

    def plot(self, result: Any, **options: Any) -> Any:
        """Returns a matplotlib Figure of the result."""
        ...

    def show(self, result: Any, **options: Any) -> Any:
        """Returns a widget of the result."""
        ...

    def to_html(self, result: Any, path: str, *, attention: bool = True) -> Any:
        """Writes one self-contained HTML file."""
        ...

    def mimebundle(self, result: Any) -> Any:
        """Returns the notebook display: widget, PNG and text."""
        ...


@runtime_checkable
class CircuitDisplay(Display, Protocol):
    """What a circuit can be turned into, beside its notebook display; `nbpatch.view.saved` implements it."""

    def circuit(self, circuit: Any, **options: Any) -> Any:
        """Returns a matplotlib Figure of the circuit."""
        ...


class Provider(Protocol):
    """Finds the display of a result: another one while its model is there."""

    def __call__(self, *, live: bool) -> Display:
        """Returns a display for results whose model is there, or for those that stand alone."""
        ...


provider: Provider | None = None


def get(*, live: bool) -> Display:
    """Returns the registered display.

    Raises:
        NbpatchError: nbpatch was taken apart so that nothing registered.
    """
    if provider is None:
        raise NbpatchError("no view is registered for results.", fix="import nbpatch")
    return provider(live=live)


def of_circuits() -> CircuitDisplay:
    """Returns the display that draws circuits: they stand alone, whether their model is there or not.

    Raises:
        NbpatchError: nothing that draws circuits is registered.
    """
    found = get(live=False)
    if not isinstance(found, CircuitDisplay):
        raise NbpatchError("no view is registered for circuits.", seen=repr(found), fix="import nbpatch")
    return found
