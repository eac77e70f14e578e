"""The slow twin of path patching: three literal forwards an edge, over any forward that lets its sites be edited.

First the sender's change: the base run with that one output taken from the source run, and how far what is added to
the residual stream moves. Then the receiver: the base run with the change added to the stream that it reads, of which
only that receiver's query, key, value or output is kept. Then the base run with only that put in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Edit = Callable[[str, int, Tensor], Tensor]
Forward = Callable[[Sequence[int], Edit], Tensor]
"""(token ids, edit) → logits [d_vocab] at the last position; `edit` sees every site as [pos …]."""


@dataclass(frozen=True)
class Twin:
    """A model as the twin runs it.

    Attributes:
        parallel: whether attention and MLP read the same input.
        scale: by how much a block multiplies what attention and MLP write.
    """

    forward: Forward
    n_layers: int
    parallel: bool = False
    scale: float = 1.0

    def edge(self, ids: tuple[Sequence[int], Sequence[int]], senders: str, receivers: str, cell: Any) -> Tensor:
        """Returns the answer logits [d_vocab] of one edge; ids are those of (base, source), cell names its axes."""
        return self.received(ids[0], receivers, cell, self.change(ids, senders, cell))

    def change(self, ids: tuple[Sequence[int], Sequence[int]], senders: str, cell: Any) -> Tensor:
        """Returns what is added to the stream beyond the base run [pos d_model]."""
        base, source = ids
        if senders == "embed":
            return self.value(source, "resid_pre", 0) - self.value(base, "resid_pre", 0)
        layer = cell["sender_layer"]
        if senders == "mlp_out":
            return self.scale * (self.value(source, "mlp_out", layer) - self.value(base, "mlp_out", layer))
        theirs, head = self.value(source, "z", layer), cell["sender_head"]

        def one_head(value: Tensor) -> Tensor:
            value = value.clone()
            value[:, head] = theirs[:, head]
            return value

        changed = self.value(base, "attn_out", layer, at("z", layer, one_head))
        return self.scale * (changed - self.value(base, "attn_out", layer))

    def received(self, base: Sequence[int], receivers: str, cell: Any, change: Tensor) -> Tensor:
        """Returns the answer logits of the base run in which one receiver's own copy of its input is changed."""
        if receivers == "logits":
            return self.forward(base, at("resid_post", self.n_layers - 1, lambda value: value + change))
        layer = cell["layer"]
        name = "mlp_out" if receivers == "mlp" else receivers
        read = "resid_mid" if receivers == "mlp" and not self.parallel else "resid_pre"
        theirs = self.value(base, name, layer, at(read, layer, lambda value: value + change))

        def only_this(value: Tensor) -> Tensor:
            if receivers == "mlp":
                return theirs
            value = value.clone()
            value[:, cell["head"]] = theirs[:, cell["head"]]
            return value

        return self.forward(base, at(name, layer, only_this))

    def value(self, ids: Sequence[int], name: str, layer: int, edit: Edit = lambda name, layer, value: value) -> Tensor:
        """Returns what stands at a site in an edited run."""
        kept: list[Tensor] = []

        def keep(component: str, number: int, value: Tensor) -> Tensor:
            value = edit(component, number, value)
            if (component, number) == (name, layer):
                kept.append(value.clone())
            return value

        self.forward(ids, keep)
        (value,) = kept
        return value


def at(name: str, layer: int, change: Callable[[Tensor], Tensor]) -> Edit:
    """Returns the edit that changes one site and leaves all others alone."""
    return lambda component, number, value: change(value) if (component, number) == (name, layer) else value
