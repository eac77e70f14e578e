"""The computational graph of a transformer, edge by edge.

A sender adds to the residual stream: the embeddings, a head, an MLP. A receiver input reads the stream: the query, key
or value of a head, an MLP, the logits. An edge leads from a sender to each input that reads after it has written.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nbpatch.errors import CircuitError

Bools: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Node:
    """A sender, or where an edge ends: "embed", "a3.1" (a head), "m3" (an MLP), "logits" as text."""

    kind: str
    layer: int = -1
    head: int = -1

    def __str__(self) -> str:
        return {"head": f"a{self.layer}.{self.head}", "mlp": f"m{self.layer}"}.get(self.kind, self.kind)


@dataclass(frozen=True)
class Edge:
    """One sender read by one receiver input; as text "a0.1->a3.1.q", "embed->m2", "m2->logits @ 7".

    Two edges are equal when they join the same two ends at the same position, whatever their scores.

    Attributes:
        receiver: of a key or value input under grouped-query attention, `head` is the key-value head.
        input: "q", "k", "v", or "" for an MLP's or the logits' input.
        pos: the position; None for all positions.
        score: in the unit of the metric; NaN where there is none.
        grouped: whether `receiver.head` is a key-value head that several heads share; as text "a0.1->a3.kv0.k".
    """

    sender: Node
    receiver: Node
    input: str
    pos: int | None
    score: float = field(compare=False)
    grouped: bool = False

    def __str__(self) -> str:
        place = "" if self.pos is None else f" @ {self.pos}"
        return f"{self.sender}->{input_name(self.receiver, self.input, grouped=self.grouped)}{place}"


def input_name(node: Node, input_: str, *, grouped: bool) -> str:
    """Returns a receiver input as text: "a3.1.q", "a3.kv0.k", "m2", "logits"; its receiver alone without a name."""
    owner = f"a{node.layer}.kv{node.head}" if grouped else str(node)
    return f"{owner}.{input_}" if input_ else owner


@dataclass(frozen=True)
class Graph:
    """All edges that a transformer can have.

    Attributes:
        n_kv_heads: heads of keys and values in a layer; fewer than `n_heads` under grouped-query attention.
        parallel: for each layer, whether its attention and its MLP read the same input.

    Raises:
        CircuitError: sizes that no transformer has.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: tuple[bool, ...]

    def __post_init__(self) -> None:
        sizes = (self.n_layers, self.n_heads, self.n_kv_heads)
        if min(sizes) < 1 or self.n_heads % self.n_kv_heads or len(self.parallel) != self.n_layers:
            seen = f"{sizes[0]} layers, {sizes[1]} heads, {sizes[2]} key-value heads, {len(self.parallel)} × parallel"
            fix = "Graph(12, 12, 12, (False,) * 12)"
            raise CircuitError("no transformer has these sizes.", where="Graph", seen=seen, fix=fix)

    @cached_property
    def senders(self) -> tuple[Node, ...]:
        """The embeddings; then for each layer its heads, then its MLP."""
        heads = range(self.n_heads)
        layers = ((*(Node("head", at, head) for head in heads), Node("mlp", at)) for at in range(self.n_layers))
        return (Node("embed"), *(node for layer in layers for node in layer))

    @cached_property
    def inputs(self) -> tuple[tuple[Node, str], ...]:
        """For each layer q of each head, k and then v of each key-value head, then the MLP; at the end the logits."""
        found: list[tuple[Node, str]] = []
        for layer in range(self.n_layers):
            for name, heads in (("q", self.n_heads), ("k", self.n_kv_heads), ("v", self.n_kv_heads)):
                found += [(Node("head", layer, head), name) for head in range(heads)]
            found.append((Node("mlp", layer), ""))
        return (*found, (Node("logits"), ""))

    @cached_property
    def sender_names(self) -> tuple[str, ...]:
        """The senders as text."""
        return tuple(map(str, self.senders))

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """The inputs as text: "a3.1.q", "a3.kv0.k", "m2", "logits"."""
        return tuple(input_name(node, name, grouped=self.is_grouped(name)) for node, name in self.inputs)

    @cached_property
    def possible(self) -> Bools:
        """Where there is an edge [sender input]: the input reads the stream after the sender has written."""
        written = [2 * node.layer + (2 if node.kind == "mlp" else 1) for node in self.senders[1:]]
        read = [
            2 * node.layer + (2 if node.kind == "mlp" and not self.parallel[node.layer] else 1)
            for node, _ in self.inputs[:-1]
        ]
        return fixed(np.array([0, *written])[:, None] < np.array([*read, 2 * self.n_layers + 1]))

    @property
    def n_edges(self) -> int:
        """How many edges there are, positions not counted."""
        return int(self.possible.sum())

    def is_grouped(self, input_: str) -> bool:
        """Whether an input of this name belongs to a key-value head that several heads share."""
        return input_ in ("k", "v") and self.n_kv_heads < self.n_heads

    def heads_of(self, layer: int) -> slice:
        """Returns where a layer's heads stand among the senders; its MLP is the one behind them."""
        start = 1 + layer * (self.n_heads + 1)
        return slice(start, start + self.n_heads)

    def inputs_of(self, layer: int, input_: str) -> slice:
        """Returns where a layer's inputs of one name ("q", "k", "v", or "" for its MLP) stand among the inputs."""
        sizes = {"q": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads, "": 1}
        before = sum(sizes[name] for name in list(sizes)[: list(sizes).index(input_)])
        start = layer * sum(sizes.values()) + before
        return slice(start, start + sizes[input_])

    def nodes_fed(self) -> Bools:
        """Returns which senders' outputs depend on each input [input sender]; on the logits' none does."""
        return self._fed

    @cached_property
    def _fed(self) -> Bools:
        fed = np.zeros((len(self.inputs), len(self.senders)), bool)
        group = np.arange(self.n_heads) // (self.n_heads // self.n_kv_heads)
        for layer in range(self.n_layers):
            heads = self.heads_of(layer)
            fed[self.inputs_of(layer, "q"), heads] = np.eye(self.n_heads, dtype=bool)
            for name in ("k", "v"):
                fed[self.inputs_of(layer, name), heads] = np.arange(self.n_kv_heads)[:, None] == group
            fed[self.inputs_of(layer, ""), heads.stop] = True
        return fixed(fed)

    def leading(self, kept: Bools) -> Bools:
        """Returns which inputs lead to the logits through kept edges [input pos].

        At a position, a query and an MLP's input concern that position; a key and a value concern all from there on.

        Args:
            kept: [sender input pos].
        """
        leads = np.zeros((len(self.inputs), kept.shape[2]), bool)
        leads[-1] = True
        for layer in reversed(range(self.n_layers)):
            heads = self.heads_of(layer)
            leads[self.inputs_of(layer, "")] = np.any(kept[heads.stop] & leads, axis=0)
            alive: Bools = np.asarray(np.any(kept[heads] & leads, axis=1))
            leads[self.inputs_of(layer, "q")] = alive
            groups = np.any(alive.reshape(self.n_kv_heads, -1, kept.shape[2]), axis=1)
            later = np.logical_or.accumulate(groups[:, ::-1], axis=1)[:, ::-1]
            leads[self.inputs_of(layer, "k")] = leads[self.inputs_of(layer, "v")] = later
        return leads


def fixed(values: NDArray[Any]) -> NDArray[Any]:
    """Returns an array that nobody can write to any more."""
    values.flags.writeable = False
    return values
