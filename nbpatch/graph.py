"""Circuits: sets of edges of a transformer's graph (see `nbpatch.edges`), with their scores."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nbpatch import display
from nbpatch.edges import Bools, Edge, Graph, Node, fixed, input_name
from nbpatch.errors import CircuitError, suggest
from nbpatch.files import plain
from nbpatch.frames import digits_of

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Circuit", "Edge", "Graph", "Node", "random_circuit"]

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.intp]

_FORMAT, _FORMAT_VERSION = "nbpatch-circuit", 1
_SHOWN = 10
_METHODS = {"eap": "EAP", "eap-ig": "EAP-IG", "eap-ig-activations": "EAP-IG (activations)", "acdc": "ACDC"}


@dataclass(frozen=True, eq=False)
class Circuit:
    """A set of edges of a graph, with the scores of all edges that have one.

    Attributes:
        scores: [sender input] or [sender input pos]; NaN where there is no edge or no score.
        kept: which edges are in the circuit, in the shape of `scores`.
        tokens: labels of the positions; may be left out.
        provenance: what made it; `steps` are what was done to it since.
        warnings: what it cannot tell, and what would settle it.

    Raises:
        CircuitError: arrays that do not fit the graph, or an edge kept that the graph does not have.
    """

    graph: Graph
    scores: Floats
    kept: Bools
    tokens: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        scores, kept = np.asarray(self.scores, np.float64), np.asarray(self.kept, bool)
        _check(self.graph, scores, kept, self.tokens)
        possible = self.graph.possible if scores.ndim == 2 else self.graph.possible[:, :, None]
        object.__setattr__(self, "scores", fixed(np.where(possible, scores, np.nan)))
        object.__setattr__(self, "kept", fixed(kept.copy()))

    def __len__(self) -> int:
        return int(self.kept.sum())

    @property
    def positions(self) -> int | None:
        """How many positions the edges have; None when each edge stands for all of them."""
        return self.scores.shape[2] if self.scores.ndim == 3 else None

    @property
    def edges(self) -> list[Edge]:
        """The kept edges, the strongest |score| first, those without a score last."""
        return self._edges(self._ranked())

    @property
    def nodes(self) -> list[Node]:
        """The nodes at either end of a kept edge, in model order; of keys and values all heads they feed."""
        kept = np.any(self._by_position(self.kept), axis=2)
        there = np.any(kept, axis=1) | self.graph.nodes_fed()[np.any(kept, axis=0)].any(0)
        found = [self.graph.senders[sender] for sender in np.flatnonzero(there)]
        return found + [Node("logits")] * bool(kept[:, -1].any())

    def __contains__(self, edge: Edge | str) -> bool:
        sender, receiver, pos = self._place(str(edge))
        if self.positions is None:
            return pos is None and bool(self.kept[sender, receiver])
        if pos is None:
            return bool(self.kept[sender, receiver].any())
        return 0 <= pos < self.positions and bool(self.kept[sender, receiver, pos])

    def _place(self, text: str) -> tuple[int, int, int | None]:
        """Returns where an edge given as text stands: sender, input, position."""
        ends, at, place = text.partition(" @ ")
        left, arrow, right = (part.strip() for part in ends.partition("->"))
        if not arrow or (at and not place.strip().isdecimal()):
            fix = '"a0.1->a3.1.q", "m2->logits @ 7"'
            raise CircuitError("that is no edge.", where="edge", seen=repr(text), fix=fix)
        for name, names in ((left, self.graph.sender_names), (right, self.graph.input_names)):
            if name not in names:
                close, layers = suggest(name, names), self.graph.n_layers
                fix = close if close.startswith("did") else f"layers 0–{layers - 1}: {names[0]}, …"
                raise CircuitError(f"no {name!r} in this graph.", where="edge", seen=text, fix=fix)
        pos = int(place) if at else None
        return self.graph.sender_names.index(left), self.graph.input_names.index(right), pos

    # -- smaller circuits

    def top_edges(self, k: int, *, absolute: bool = True) -> "Circuit":
        """Returns the k strongest of the kept edges; of equal ones those that come first in the model.

        Args:
            absolute: by |score|; else the largest signed scores.

        Raises:
            CircuitError: fewer than k kept edges have a score.
        """
        there = int((self.kept & ~np.isnan(self.scores)).sum())
        if not 0 <= k <= there:
            seen = f"k={k}, {there} edges are kept and have a score"
            raise CircuitError("no such number of edges.", where="top_edges", seen=seen, fix=f"k=0 to {there}")
        kept = np.zeros(self.kept.size, bool)
        kept[self._ranked(k, absolute=absolute)] = True
        return self._with(kept.reshape(self.kept.shape), f"top_edges({k}{'' if absolute else ', absolute=False'})")

    def threshold(self, t: float, *, absolute: bool = True) -> "Circuit":
        """Returns the kept edges of which |score| is at least t, or the signed score with absolute=False.

        Raises:
            CircuitError: t is no number, or below zero where |score| is asked for.
        """
        if math.isnan(t) or (absolute and t < 0):
            what = "a threshold is a number." if math.isnan(t) else "no |score| is below zero."
            fix = "threshold(0.01)" if math.isnan(t) else f"threshold({t}, absolute=False)"
            raise CircuitError(what, where="threshold", seen=f"t={t}", fix=fix)
        scores = np.abs(self.scores) if absolute else self.scores
        return self._with(self.kept & (scores >= t), f"threshold({t}{'' if absolute else ', absolute=False'})")

    def only(self, edges: Iterable[Edge | str]) -> "Circuit":
        """Returns the circuit of some edges of the graph, such as "m0->a2.3.v"; without a position, at all of them.

        Raises:
            CircuitError: a text that is no edge of the graph.
        """
        kept = np.zeros_like(self.kept)
        for edge in edges:
            sender, at, pos = self._place(str(edge))
            kept[(sender, at) if pos is None else (sender, at, pos)] = True
        return self._with(kept, "only(…)")

    def prune(self) -> "Circuit":
        """Returns the kept edges from which a path of kept edges leads to the logits."""
        kept = self._by_position(self.kept)
        return self._with((kept & self.graph.leading(kept)).reshape(self.kept.shape), "prune()")

    def summed(self) -> "Circuit":
        """Returns the circuit without positions: scores summed over all of them, an edge kept when any one is."""
        if self.positions is None:
            return self
        none = np.isnan(self.scores).all(2)
        scores = np.where(none, np.nan, np.nansum(self.scores, axis=2))
        made = _done(self.provenance, "summed()")
        return replace(self, scores=scores, kept=self.kept.any(2), tokens=(), provenance=made)

    # -- sets of edges

    def __or__(self, other: "Circuit") -> "Circuit":
        return self._combined(other, "|", self.kept | self._like(other, "|").kept)

    def __and__(self, other: "Circuit") -> "Circuit":
        return self._combined(other, "&", self.kept & self._like(other, "&").kept)

    def __sub__(self, other: "Circuit") -> "Circuit":
        return self._combined(other, "-", self.kept & ~self._like(other, "-").kept)

    def __xor__(self, other: "Circuit") -> "Circuit":
        return self._combined(other, "^", self.kept ^ self._like(other, "^").kept)

    def __le__(self, other: "Circuit") -> bool:
        return not (self.kept & ~self._like(other, "<=").kept).any()

    def same_edges(self, other: "Circuit") -> bool:
        """Whether both keep the same edges, whatever their scores."""
        return bool((self.kept == self._like(other, "same_edges").kept).all())

    def jaccard(self, other: "Circuit") -> float:
        """Returns the number of edges in both over that in either; 1 where both are empty."""
        either = int((self.kept | self._like(other, "jaccard").kept).sum())
        return int((self.kept & other.kept).sum()) / either if either else 1.0

    def _like(self, other: "Circuit", where: str) -> "Circuit":
        """Returns the other circuit when it is one of the same graph and positions."""
        if self.graph != other.graph:
            seen, fix = f"{_sizes(self.graph)}; {_sizes(other.graph)}", "two circuits of one model"
            raise CircuitError("the circuits are of different graphs.", where=where, seen=seen, fix=fix)
        if self.positions != other.positions:
            ways = ["no positions" if one.positions is None else f"{one.positions} positions" for one in (self, other)]
            fix = "left.summed() and right.summed()"
            raise CircuitError("the circuits differ in positions.", where=where, seen="; ".join(ways), fix=fix)
        return other

    def _combined(self, other: "Circuit", sign: str, kept: Bools) -> "Circuit":
        scores = np.where(np.isnan(self.scores), other.scores, self.scores)
        warnings = tuple(dict.fromkeys((*self.warnings, *other.warnings)))
        made = _done(self.provenance, f"{sign} {_origin(other.provenance) or f'{len(other)} edges'}")
        tokens = self.tokens or other.tokens
        return replace(self, scores=scores, kept=kept, tokens=tokens, provenance=made, warnings=warnings)

    def _with(self, kept: Bools, step: str) -> "Circuit":
        return replace(self, kept=kept, provenance=_done(self.provenance, step))

    def _by_position(self, values: Bools) -> Bools:
        return values.reshape(*self.graph.possible.shape, -1)

    def _ranked(self, most: int | None = None, *, absolute: bool = True) -> Ints:
        """Returns the flat indices of the kept edges, or of the strongest of them; those without a score last."""
        found = np.flatnonzero(self.kept)
        scores = self.scores.ravel()[found]
        order = np.nan_to_num(-np.abs(scores) if absolute else -scores, nan=np.inf)
        if most and most < len(found):
            # Half a million edges take 100 ms to sort and 5 to part.
            enough = np.flatnonzero(order <= np.partition(order, most - 1)[most - 1])
            found, order = found[enough], order[enough]
        return found[np.argsort(order, kind="stable")][:most]

    def _edges(self, flat: Ints) -> list[Edge]:
        inputs = [(node, name, self.graph.is_grouped(name)) for node, name in self.graph.inputs]
        return [
            Edge(self.graph.senders[sender], *inputs[at][:2], pos, score, inputs[at][2])
            for sender, at, pos, score in self._rows(flat)
        ]

    def _rows(self, flat: Ints) -> Iterator[tuple[int, int, int | None, float]]:
        """Yields sender, input, position and score of each edge."""
        sender, receiver, *rest = (index.tolist() for index in np.unravel_index(flat, self.kept.shape))
        places: Sequence[int | None] = rest[0] if rest else [None] * len(flat)
        return zip(sender, receiver, places, self.scores.ravel()[flat].tolist(), strict=True)

    # -- other forms

    def to_frame(self) -> pd.DataFrame:
        """Returns one row per kept edge, the strongest first: edge, sender, receiver, input, (pos, token,) score."""
        flat, graph = self._ranked(), self.graph
        sender, receiver, *rest = np.unravel_index(flat, self.kept.shape)
        ends = [input_name(node, "", grouped=graph.is_grouped(name)) for node, name in graph.inputs]
        edge = _objects(graph.sender_names)[sender] + "->" + _objects(graph.input_names)[receiver]
        columns = {
            "edge": edge + _objects([f" @ {place}" for place in range(self.positions or 0)])[rest[0]] if rest else edge,
            "sender": _objects(graph.sender_names)[sender],
            "receiver": _objects(ends)[receiver],
            "input": _objects([name for _, name in graph.inputs])[receiver],
            **({"pos": rest[0]} if rest else {}),
            **({"token": _objects(self.tokens)[rest[0]]} if self.tokens else {}),
            "score": self.scores.ravel()[flat],
        }
        return pd.DataFrame(columns)

    def to_networkx(self) -> "nx.MultiDiGraph[str]":
        """Returns a networkx graph; its edges have `input`, `score` and `pos`.

        A key or value that several heads share becomes one edge for each of them.
        """
        import networkx as nx

        made: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        for node in self.nodes:
            made.add_node(str(node), kind=node.kind, layer=node.layer, head=node.head)
        size = self.graph.n_heads // self.graph.n_kv_heads
        for edge in self.edges:
            ends, at = [edge.receiver], edge.receiver
            if edge.grouped:
                ends = [Node("head", at.layer, head) for head in range(at.head * size, (at.head + 1) * size)]
            for end in ends:
                made.add_edge(str(edge.sender), str(end), input=edge.input, score=edge.score, pos=edge.pos)
        return made

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the circuit as JSON and returns the path; an existing file is replaced only by a complete one.

        Raises:
            CircuitError: the folder does not exist or cannot be written to.
        """
        flat = np.flatnonzero(self.kept | ~np.isnan(self.scores))
        kept = self.kept.ravel()[flat].tolist()
        edges = [
            [sender, at, *([] if pos is None else [pos]), _json_number(score), is_kept]
            for (sender, at, pos, score), is_kept in zip(self._rows(flat), kept, strict=True)
        ]
        graph = self.graph
        head = {
            "format": _FORMAT, "version": _FORMAT_VERSION,
            "graph": [graph.n_layers, graph.n_heads, graph.n_kv_heads, list(graph.parallel)],
            "positions": self.positions, "tokens": list(self.tokens),
            "provenance": dict(self.provenance), "warnings": list(self.warnings),
            "senders": graph.sender_names, "inputs": graph.input_names,
        }  # fmt: skip
        whole = json.dumps({**head, "edges": edges}, ensure_ascii=False, default=plain)
        return _write(Path(path).expanduser(), whole)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Circuit":
        """Returns the circuit saved at `path`.

        Raises:
            CircuitError: no such file, or a file that holds no circuit, or one of a newer version.
        """
        source = Path(path).expanduser()
        if not source.is_file():
            near = ", ".join(sorted(one.name for one in source.parent.glob("*.json"))[:5]) or "nothing ending in .json"
            raise CircuitError("no such file.", where="read", seen=str(source), fix=f"in {source.parent}: {near}")
        try:
            head = json.loads(source.read_text(encoding="utf-8"))
            if head["format"] != _FORMAT:
                raise ValueError(f"its format is {head['format']!r}")
            version = int(head["version"])
            made = None if version > _FORMAT_VERSION else cls(*_parts(head))
        except (OSError, LookupError, ValueError, TypeError) as error:
            seen = f"{source.name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            fix = 'a file written by circuit.save("circuit.json")'
            raise CircuitError("not a circuit saved by nbpatch.", where="read", seen=seen, fix=fix) from error
        if made is None:
            seen = f"version {version}, this nbpatch reads version {_FORMAT_VERSION}"
            raise CircuitError("the file is of a newer version.", where="read", seen=seen, fix="pip install -U nbpatch")
        return made

    @property
    def _display(self) -> display.CircuitDisplay:
        return display.of_circuits()

    def plot(self, **options: Any) -> Any:
        """Returns a matplotlib Figure: nodes by layer, colour = signed score, width = |score|."""
        return self._display.circuit(self, **options)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        return self._display.mimebundle(self)

    def headline(self) -> str:
        """Returns one line: how many edges and nodes, and what made them."""
        total = self.graph.n_edges * (self.positions or 1)
        over = "" if self.positions is None else f" over {self.positions} positions"
        counts = [f"{len(self)} of {total} edges{over}", f"{len(self.nodes)} nodes", _origin(self.provenance)]
        return ", ".join([*filter(None, counts), *self.provenance.get("steps", ())])

    def __repr__(self) -> str:
        edges = self._edges(self._ranked(_SHOWN))
        digits = digits_of([edge.score for edge in edges])
        names = [str(edge) for edge in edges]
        wide = max(map(len, names), default=0)
        scores = [_signed(edge.score, digits) for edge in edges]
        most = max(map(len, scores), default=0)
        rows = [f"  {name:<{wide}}  {score:>{most}}" for name, score in zip(names, scores, strict=True)]
        if self.tokens:
            rows = [f"{row}  {self.tokens[edge.pos or 0]!r}" for row, edge in zip(rows, edges, strict=True)]
        more = [f"  … {len(self) - len(edges)} more"] if len(self) > len(edges) else []
        ends = ["", *(f"! {warning}" for warning in self.warnings)] if self.warnings else []
        found = [row.rstrip() for row in rows] or ["  no edge is kept"]
        return "\n".join([self.headline(), "", *found, *more, *ends])

    def text(self) -> str:
        """Returns the circuit layer by layer: each receiver on a line, with what each of its inputs reads."""
        flat, graph = self._ranked(), self.graph
        digits = digits_of(self.scores.ravel()[flat].tolist())
        found: dict[int, list[str]] = {}
        for sender, at, pos, score in self._rows(flat):
            place = "" if pos is None else f"@{pos}"
            read = f"{graph.sender_names[sender]}{place} {_signed(score, digits)}"
            found.setdefault(at, []).append(read.rstrip())
        lines: dict[str, list[str]] = {}
        for at in sorted(found, key=lambda at: _model_order(graph.inputs[at][0])):
            node, name = graph.inputs[at]
            reads = ", ".join(found[at])
            owner = input_name(node, "", grouped=graph.is_grouped(name))
            lines.setdefault(owner, []).append(f"{name}: {reads}" if name else reads)
        wide = max(map(len, lines), default=0)
        return "\n".join([self.headline(), *(f"{name:<{wide}}  {' · '.join(reads)}" for name, reads in lines.items())])


def random_circuit(graph: Graph, n_edges: int, *, seed: int, positions: int = 0) -> Circuit:
    """Returns exactly n_edges edges drawn at random, each of which leads to the logits.

    It grows backwards from the logits: each edge is drawn from all that end in a node which leads there already.

    Args:
        positions: how many positions the edges have; 0: each edge stands for all of them.

    Raises:
        CircuitError: more edges than there are.
    """
    places = max(1, positions)
    if positions < 0 or not 0 <= n_edges <= graph.n_edges * places:
        seen, fix = f"n_edges={n_edges}, positions={positions}", f"n_edges=0 to {graph.n_edges * places}"
        raise CircuitError("there are not so many edges.", where="random_circuit", seen=seen, fix=fix)
    fed, names = graph.nodes_fed(), [name for _, name in graph.inputs]
    feeding = [np.flatnonzero(fed[:, sender]).tolist() for sender in range(len(graph.senders))]
    into = [np.flatnonzero(graph.possible[:, at]) for at in range(len(names))]
    opened = {(len(names) - 1, pos) for pos in range(places)}
    leading: set[tuple[int, int]] = set()
    drawn: list[int] = []
    candidates = [edge for at, pos in sorted(opened) for edge in ((into[at] * len(names) + at) * places + pos).tolist()]
    for chance in np.random.default_rng(seed).random(n_edges).tolist():
        place = int(chance * len(candidates))
        edge, candidates[place] = candidates[place], candidates[-1]
        candidates.pop()
        drawn.append(edge)
        node = edge // (len(names) * places), edge % places
        if node in leading:
            continue
        leading.add(node)
        for at in feeding[node[0]]:
            for pos in range(node[1] + 1) if names[at] in ("k", "v") else (node[1],):
                if (at, pos) not in opened:
                    opened.add((at, pos))
                    candidates += ((into[at] * len(names) + at) * places + pos).tolist()
    kept = np.zeros(graph.possible.size * places, bool)
    kept[drawn] = True
    kept = kept.reshape(graph.possible.shape + ((places,) if positions else ()))
    return Circuit(graph, np.full(kept.shape, np.nan), kept, provenance={"method": "random", "seed": seed})


def _objects(names: Sequence[str]) -> NDArray[np.object_]:
    return np.array(names, object)


def _model_order(node: Node) -> tuple[bool, int, bool, int]:
    return node.kind == "logits", node.layer, node.kind == "mlp", node.head


def _check(graph: Graph, scores: Floats, kept: Bools, tokens: Sequence[str]) -> None:
    senders, inputs = graph.possible.shape
    if scores.shape[:2] != (senders, inputs) or scores.ndim not in (2, 3) or kept.shape != scores.shape:
        seen = f"scores {list(scores.shape)}, kept {list(kept.shape)}"
        fix = f"[{senders} {inputs}] or [{senders} {inputs} pos]"
        raise CircuitError("the arrays do not fit the graph.", where="Circuit", seen=seen, fix=fix)
    if tokens and (scores.ndim == 2 or len(tokens) != scores.shape[2]):
        seen = f"{len(tokens)} tokens, {scores.shape[2] if scores.ndim == 3 else 'no'} positions"
        raise CircuitError("one label for each position.", where="tokens", seen=seen, fix="tokens=()")
    wrong = np.argwhere(kept.reshape(senders, inputs, -1).any(2) & ~graph.possible)
    if len(wrong):
        seen = f"{graph.sender_names[wrong[0, 0]]}->{graph.input_names[wrong[0, 1]]}"
        fix = "kept & graph.possible"
        raise CircuitError("the input reads before the sender writes.", where="kept", seen=seen, fix=fix)


def _sizes(graph: Graph) -> str:
    return f"{graph.n_layers} layers × {graph.n_heads} heads, {graph.n_edges} edges"


def _done(made: Mapping[str, Any], step: str) -> dict[str, Any]:
    return {**made, "steps": [*made.get("steps", ()), step]}


def _origin(made: Mapping[str, Any]) -> str:
    """Returns the method and the model, as far as they are known."""
    method, model = str(made.get("variant") or made.get("method", "")), made.get("model", "")
    name = str(model.get("name", "") if isinstance(model, Mapping) else model)
    return " on ".join(filter(None, (_METHODS.get(method, method), name)))


def _signed(score: float, digits: int) -> str:
    """Returns a score as text, with a sign; nothing where there is none."""
    return "" if math.isnan(score) else f"{score:+.{digits}f}".replace("-", "−")


def _json_number(value: float) -> float | str | None:
    """Returns a score as JSON has it, which knows neither NaN nor infinity."""
    return None if math.isnan(value) else value if math.isfinite(value) else str(value)


def _parts(head: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what a circuit is made of, from what its file holds."""
    n_layers, n_heads, n_kv_heads, parallel = head["graph"]
    graph = Graph(n_layers, n_heads, n_kv_heads, tuple(parallel))
    if (tuple(head["senders"]), tuple(head["inputs"])) != (graph.sender_names, graph.input_names):
        raise ValueError("its senders and inputs are not those of its graph")
    shape = graph.possible.shape + (() if head["positions"] is None else (head["positions"],))
    scores, kept = np.full(shape, np.nan), np.zeros(shape, bool)
    if head["edges"]:
        *places, values, is_kept = zip(*head["edges"], strict=True)
        at = np.ravel_multi_index(places, shape)
        scores.flat[at] = [math.nan if value is None else float(value) for value in values]
        kept.flat[at] = is_kept
    return graph, scores, kept, tuple(head["tokens"]), head["provenance"], tuple(head["warnings"])


def _write(target: Path, text: str) -> Path:
    if not target.parent.is_dir() or target.is_dir():
        what = "that is a folder." if target.is_dir() else "no such folder."
        seen = str(target if target.is_dir() else target.parent)
        raise CircuitError(what, where="save", seen=seen, fix='circuit.save("circuit.json")')
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(target)
    except OSError as error:
        fix = "a folder you may write to, with room left"
        raise CircuitError("cannot write there.", where="save", seen=f"{target}: {error}", fix=fix) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return target
