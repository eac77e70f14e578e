"""A circuit as a widget of its own: drawn by layer and position, a threshold, and with its model how faithful it is."""

import base64
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import traitlets

from nbpatch.engine.describe import describe_tokens
from nbpatch.errors import CircuitError, NbpatchError
from nbpatch.graph import Circuit
from nbpatch.live import circuits
from nbpatch.live.answering import reply
from nbpatch.live.circuits import Study
from nbpatch.live.question import Reply
from nbpatch.live.worker import KERNEL
from nbpatch.metrics import METRICS, Metric, MetricLike, as_metrics
from nbpatch.model import Model, load
from nbpatch.prompts import PromptPair, as_pairs
from nbpatch.view import plots
from nbpatch.view.circuits import draw
from nbpatch.view.payload import Message
from nbpatch.view.widgets import PatchWidget

_TOLD = (
    "clean", "corrupted", "answer", "wrong", "clean_tokens", "corrupted_tokens", "differs", "has_bos", "clean_end",
    "corrupted_end", "clean_top", "corrupted_top",
)  # fmt: skip
"""What the page is told of a pair."""


class CircuitView(PatchWidget):
    """A circuit in a notebook cell: nodes by layer and position, edges by score, a slider for how many are kept.

    Args:
        circuit: its edges are what the slider chooses from; `eap` makes one.
        model: what `nbpatch.load` takes or returned; with it the kept edges are run, as `evaluate` does.
        pairs: on which they are run; those the circuit was found on by default. Where some of them are such pairs,
            they come first and the page offers the others.
        metric: as in `nbpatch.evaluate`; the one the circuit was scored by where that has a name, else logit_diff.

    Attributes:
        n_edges: how many of the strongest edges are kept, both ways; can be observed and linked.
        selection: {"edge": "m0->a2.1.v"} or {"node": "a2.1"}, both ways; None for nothing.

    Raises:
        CircuitError: not a circuit.
        NbpatchError: a model or pairs that cannot be used.
    """

    n_edges: Any = traitlets.Int(0).tag(sync=True)

    def __init__(
        self,
        circuit: Circuit,
        model: Any = None,
        pairs: PromptPair | Sequence[PromptPair] | None = None,
        *,
        metric: MetricLike | None = None,
    ) -> None:
        if not isinstance(circuit, Circuit):  # pyright: ignore[reportUnnecessaryIsInstance]
            seen = type(circuit).__name__
            raise CircuitError("not a Circuit.", where="circuit", seen=seen, fix="nbp.eap(model, pairs)")
        self.circuit = circuit
        self._study = _study(_scored(circuit), None if model is None else load(model), pairs, metric)
        self._told = 0
        self._moved = False
        super().__init__()
        self.spec = self._described(self._study.start)
        self.status = {"state": "idle", "text": "", "gen": 0}
        self.n_edges = self._study.start
        self.listen(self._receive)

    @property
    def kept(self) -> Circuit:
        """The `n_edges` strongest edges, less those from which no kept edge leads on to the logits."""
        return self._study.keep(self.n_edges)

    @traitlets.validate("n_edges")
    def _check_edges(self, proposal: Any) -> int:
        most = len(self.circuit)
        if not 0 <= proposal["value"] <= most:
            seen = f"n_edges={proposal['value']}, the circuit has {most}"
            raise CircuitError("no such number of edges.", where="n_edges", seen=seen, fix=f"n_edges=0 to {most}")
        return int(proposal["value"])

    @traitlets.validate("selection")
    def _check_selection(self, proposal: Any) -> Any:
        chosen = proposal["value"]
        if chosen is not None and not set(chosen) & {"edge", "node"}:
            fix = 'view.selection = {"edge": "m0->logits"}'
            raise CircuitError("an edge or a node is selected.", where="selection", seen=repr(chosen), fix=fix)
        if chosen and "edge" in chosen and "selection" not in self._property_lock:
            _ = str(chosen["edge"]) in self.circuit  # raises for what is no edge
        return None if chosen is None else dict(chosen)

    @traitlets.observe("n_edges")
    def _on_edges(self, change: Any) -> None:
        # The page knows by the count whether it is told of its own change or of another's.
        if not self._moved:
            self._told += 1
        if self.spec:
            self.spec = {**self.spec, "kept": {"n": change["new"], "by": self._told}}

    # -- the page

    def _receive(self, message: Message) -> None:
        """Takes a message of the page. May be called on any thread; only enqueues."""
        kind = str(message.get("kind"))
        if message["type"] != "ask" or kind not in ("circuit", "faithful"):
            return
        if kind == "faithful":
            self._moved = True
            self.n_edges = min(max(0, int(message.get("n", self.n_edges))), len(self.circuit))
            self._moved = False

        def begin() -> Sequence[Reply] | Any:
            study = self._study
            return [circuits.described(study)] if kind == "circuit" else circuits.measured(study, message)

        reply(KERNEL, (self, "ask", kind), message, begin, self.post)

    def _described(self, start: int) -> Message:
        circuit, study = self.circuit, self._study
        metric = study.metric.describe()
        found = circuit.provenance.get("model")
        about: dict[str, Any] = dict(found) if isinstance(found, dict) else {"name": str(found or "")}  # pyright: ignore[reportUnknownArgumentType]
        graph = circuit.graph
        return {
            "pairs": [_pair(circuit, study)],
            "pair": 0,
            "component": "circuit",
            "over": [],
            "direction": "denoising",
            "metric": metric["name"],
            "metrics": [{key: metric[key] for key in ("name", "unit", "label")}],
            "components": [],
            "model": {
                "name": about.get("name", ""),
                "n_layers": graph.n_layers,
                "n_heads": graph.n_heads,
                "n_kv_heads": graph.n_kv_heads,
                "device": str(about.get("device", "")),
            },
            "warnings": list(circuit.warnings),
            "card": "",
            "can_run": study.model is not None,
            "view": "circuit",
            "exports": [],
            "kept": {"n": start, "by": self._told},
        }

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        made: Any = super()._repr_mimebundle_(**kwargs)
        data, metadata = made if isinstance(made, tuple) else (made or {}, {})
        kept = self.kept
        picture = base64.b64encode(plots.encoded(draw(kept))).decode("ascii")
        return {**data, "image/png": picture, "text/plain": repr(kept)}, metadata


def _scored(circuit: Circuit) -> Circuit:
    """Returns a circuit whose kept edges all have a score: 0 where there is none, so that the order is the model's."""
    missing = circuit.kept & np.isnan(circuit.scores)
    return replace(circuit, scores=np.where(missing, 0.0, circuit.scores)) if missing.any() else circuit


def _study(circuit: Circuit, model: Model | None, pairs: Any, metric: MetricLike | None) -> Study:
    """Returns what is to be shown: the pairs the circuit was found on told apart from others."""
    measured = _metric(circuit, metric)
    found = [_as_pair(one) for one in circuit.provenance.get("pairs", ())]
    if model is None:
        return Study(circuit, None, measured, found, [])
    prompts = {(one.clean, one.corrupted) for one in found}
    given = list(as_pairs(pairs)) if pairs is not None else found
    if not given:
        what, fix = "the circuit does not say on which pairs it was found.", "nbp.CircuitView(circuit, model, pairs)"
        raise CircuitError(what, where="pairs", fix=fix)
    model.tokenize(given)
    same = [one for one in given if (one.clean, one.corrupted) in prompts]
    others = [one for one in given if (one.clean, one.corrupted) not in prompts]
    return Study(circuit, model, measured, same, others)


def _metric(circuit: Circuit, metric: MetricLike | None) -> Metric:
    name = str(circuit.provenance.get("metric", {}).get("name", ""))
    return as_metrics(metric if metric is not None else name if name in METRICS else "logit_diff")[0]


def _as_pair(told: Any) -> PromptPair:
    """Returns a pair from what a circuit's provenance keeps of it."""
    return PromptPair(told["clean"], told["corrupted"], list(told["answer"]), list(told["wrong"]) or None)


def _pair(circuit: Circuit, study: Study) -> Message:
    """Returns what the page is told of the first pair; without one, of the circuit's positions."""
    runs: Any = circuit.provenance.get("baselines", {})
    metrics = {study.metric.name: dict(runs)} if {"clean", "corrupted"} <= set(runs) else {}
    shown = [*study.same, *study.others]
    told: dict[str, Any] = next(iter(circuit.provenance.get("pairs", ())), {})
    if study.model is not None and not study.same and shown:
        metrics = {}
        with suppress(NbpatchError):
            told = describe_tokens(study.model.tokenize(shown[:1])[0])
    tokens = list(circuit.tokens)
    none: dict[str, Any] = {
        "clean": "", "corrupted": "", "answer": [], "wrong": [], "clean_tokens": tokens, "corrupted_tokens": tokens,
        "differs": [], "has_bos": False, "clean_end": len(tokens) - 1, "corrupted_end": len(tokens) - 1,
        "clean_top": [], "corrupted_top": [],
    }  # fmt: skip
    return {**none, **{key: told[key] for key in _TOLD if key in told}, "metrics": metrics}


__all__ = ["CircuitView"]
