"""Stand-ins for a block's parts: the first tokens go through the part itself, the rest get what is given."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Stopped(Exception):
    """Raised inside a block when nothing behind that point is needed."""


class Shim:
    """A stand-in for a module's forward.

    Args:
        split: how many tokens go through the module; the rest get what `given` returns [token d_model], which is
            asked once the module has run.
        returns: how many values the module's forward returns; 0 for a bare tensor.
        keep: is shown what the module made [token d_model], and may write over it.

    Attributes:
        calls: how often the block asked for it: exactly once, or a patch was lost.
    """

    def __init__(
        self,
        module: nn.Module,
        split: int,
        given: Callable[[], Tensor],
        returns: int,
        keep: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.module = module
        self.forward = module.forward
        self.split = split
        self.given = given
        self.returns = returns
        self.keep = keep
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the module's forward would: computed for the first tokens, given for the rest."""
        self.calls += 1
        if not args:
            name = next(iter(kwargs))
            args, kwargs = (kwargs[name],), {key: value for key, value in kwargs.items() if key != name}
        hidden = args[0]
        rest: tuple[Any, ...] = (None,) * (self.returns - 1)
        made: list[Tensor] = []
        if self.split:
            some = hidden[: self.split] if hidden.ndim == 2 else hidden[:, : self.split]
            real = self.forward(some, *args[1:], **kwargs)
            head, rest = (real[0], real[1:]) if self.returns else (real, ())
            made.append(head)
            if self.keep is not None:
                self.keep(head.view(-1, head.shape[-1]))
        if self.split < hidden.shape[-2]:
            value = self.given()
            value = value if hidden.ndim == 2 else value[None]
            made.append(value.to(made[0].dtype) if made else value)
        value = made[0] if len(made) == 1 else torch.cat(made, dim=-2)
        return (value, *rest) if self.returns else value


def given_only(returns: int, value: Tensor) -> Callable[..., Any]:
    """Returns a forward that gives `value` back, whatever it is called with."""
    return lambda *args, **kwargs: (value, *(None,) * (returns - 1)) if returns else value


def passing(returns: int) -> Callable[..., Any]:
    """Returns a forward that gives its first argument back."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states, *(None,) * (returns - 1)) if returns else hidden_states

    return forward


PER_TOKEN = ("position_embeddings", "position_ids", "cache_position")


def at_positions(arguments: Mapping[str, Any], positions: Tensor) -> dict[str, Any]:
    """Returns a block's arguments for packed tokens: what there is per position is gathered, the rest is kept."""
    gathered = {name: _gather(arguments[name], positions) for name in PER_TOKEN if name in arguments}
    return {**arguments, **gathered}


def _gather(value: Any, positions: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[positions] if value.ndim == 1 else value[:1, positions]
    if isinstance(value, (tuple, list)):
        return tuple(_gather(one, positions) for one in value)
    if isinstance(value, dict):
        return {name: _gather(one, positions) for name, one in value.items()}
    return value
