"""The circuit view's questions: every edge's score, and how faithful the kept edges are, run exactly."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nbpatch.errors import PlanError, suggest
from nbpatch.graph import Circuit
from nbpatch.live.controls import Ask
from nbpatch.live.question import Question, Reply
from nbpatch.methods.eap import eap
from nbpatch.methods.evaluation import evaluate
from nbpatch.metrics import Metric
from nbpatch.model import Model
from nbpatch.prompts import PromptPair
from nbpatch.result import Result
from nbpatch.view.payload import Message

METHODS = ("eap", "eap-ig", "eap-ig-activations", "clean-corrupted")
SENT = 2000
"""So many edges are sent to be drawn; of the others only how strong the strongest n are."""

RANDOM = 5
"""Random circuits beside the kept one."""

_POINTS = 12
_STRONG = 0.05
"""At first the edges are kept whose score is this share of the gap, if they are neither too few nor too many."""
_FEWEST, _MOST = 8, 40


@dataclass
class Study:
    """A circuit of scored edges and what is known of its strongest n.

    Attributes:
        circuit: the edges to choose from.
        model: None: nothing can be run.
        same: pairs the edges were scored on; others: pairs they were not.
        known: what was run, by pairs ("same" or "others") and number of edges.
        kept: the strongest edges that were asked for last, less those that lead nowhere.
    """

    circuit: Circuit
    model: Model | None
    metric: Metric
    same: Sequence[PromptPair]
    others: Sequence[PromptPair]
    known: dict[tuple[str, int], Message] = field(default_factory=dict[tuple[str, int], Message])
    random: dict[tuple[str, int], Message] = field(default_factory=dict[tuple[str, int], Message])
    kept: Circuit | None = None

    @property
    def start(self) -> int:
        """How many edges are kept at first."""
        scores = np.abs(self.circuit.scores[self.circuit.kept])
        runs = self.circuit.provenance.get("baselines", {})
        gap = abs(runs["clean"] - runs["corrupted"]) if {"clean", "corrupted"} <= set(runs) else 0.0
        strong = int((scores >= _STRONG * gap).sum()) if gap else _MOST
        return min(len(self.circuit), max(_FEWEST, min(_MOST, strong)))

    def keep(self, n: int) -> Circuit:
        """Returns the n strongest edges, less those from which no kept edge leads on to the logits."""
        self.kept = self.circuit.top_edges(min(max(0, n), len(self.circuit))).prune()
        return self.kept

    def on(self, asked: object) -> str:
        """Returns on which pairs circuits are run: "same" or "others", whichever is there."""
        return "others" if self.others and (asked == "others" or not self.same) else "same"


# -- every edge's score


def circuit(question: Question) -> Iterator[Reply]:
    """Answers with all edges' scores on the pair on screen: the strongest one by one, the others in numbers."""
    study = _study(question)
    yield described(study)


def described(study: Study) -> Reply:
    """Returns a circuit as a message, its strongest edges as int32 [sender, input, pos] and float32 [score]."""
    whole, graph = study.circuit, study.circuit.graph
    strongest = whole.top_edges(min(SENT, len(whole)))
    names = {name: at for at, name in enumerate(graph.sender_names)}
    ends = {end: at for at, end in enumerate(graph.inputs)}
    edges = strongest.edges
    places = [(names[str(e.sender)], ends[e.receiver, e.input], -1 if e.pos is None else e.pos) for e in edges]
    sizes = np.unique(np.geomspace(1, max(1, len(whole)), 200).round().astype(int))[: len(whole)]
    falling = np.sort(np.abs(whole.scores[whole.kept]))[::-1]
    made = whole.provenance
    metric = made.get("metric") or study.metric.describe()
    head: Message = {
        "layers": graph.n_layers,
        "heads": graph.n_heads,
        "kv_heads": graph.n_kv_heads,
        "senders": list(graph.sender_names),
        "inputs": list(graph.input_names),
        "positions": whole.positions,
        "tokens": list(whole.tokens),
        "total": len(whole),
        "sent": len(edges),
        "start": study.start,
        "sizes": sizes.tolist(),
        "thresholds": [float(falling[size - 1]) for size in sizes],
        "unit": str(metric["unit"]),
        "metric": str(metric["label"]),
        "method": str(made.get("variant") or made.get("method") or ""),
        "points": made.get("points"),
        "scored_on": len(made.get("pairs", ())),
        "same": len(study.same),
        "others": len(study.others),
        "runs": study.model is not None,
    }
    numbers = np.array(places, np.int32).reshape(-1, 3).T
    scores = np.array([edge.score for edge in edges], np.float32)
    return head, [np.ascontiguousarray(numbers).tobytes(), scores.tobytes()]


# -- how faithful the kept edges are


def faithful(question: Question) -> Iterator[Reply]:
    """Answers with the kept edges' faithfulness; behind it that of random circuits and of other numbers of edges."""
    yield from measured(_study(question), question.content)


def measured(study: Study, content: Mapping[str, Any]) -> Iterator[Reply]:
    """Yields what is known of the n strongest edges, more each time, until all of it is there."""
    n, on = int(content.get("n", study.start)), study.on(content.get("on"))
    kept = study.keep(n)
    head: Message = {
        "n": n,
        "on": on,
        "edges": len(kept),
        "negative": int((kept.scores[kept.kept] < 0).sum()),
        "threshold": _threshold(study.circuit, n),
    }
    if study.model is None:
        yield {**head, "done": True}, []
        return
    key = (on, n)
    if key not in study.known:
        study.known[key] = _numbers(_run(study, kept, on))
    yield _told(study, head, key), []
    if key not in study.random:
        drawn = _run(study, kept, on, random=RANDOM).recovered().isel(edges=0)
        values = drawn.sel(circuit=[name for name in drawn["circuit"].to_numpy() if name != "found"]).to_numpy()
        study.random[key] = {"count": RANDOM, **_spread(values)}
        yield _told(study, head, key), []
    for size in _sizes(len(study.circuit)):
        if (on, size) not in study.known:
            study.known[on, size] = _numbers(_run(study, study.circuit.top_edges(size), on))
            yield _told(study, head, key), []
    yield _told(study, head, key, done=True), []


def _told(study: Study, head: Message, key: tuple[str, int], *, done: bool = False) -> Message:
    points = sorted((n, one["faithful"]) for (on, n), one in study.known.items() if on == key[0])
    curve = [[n, value] for n, value in points if value is not None]
    return {**head, **study.known[key], "random": study.random.get(key), "curve": curve, "done": done}


def _run(study: Study, kept: Circuit, on: str, random: int = 0) -> Result:
    pairs = study.others if on == "others" else study.same
    return evaluate(study.model, kept, pairs, metric=study.metric, random=random)


def _numbers(result: Result) -> Message:
    """Returns a run in numbers: the metric on the circuit, on the model and with nothing kept, and faithfulness."""
    name = result.metrics[0]
    value = float(result.data[name].sel(circuit="found").mean())
    clean, empty = (float(result.baselines[run].sel(metric=name).mean()) for run in ("clean", "corrupted"))
    share = float(result.recovered().sel(circuit="found").isel(edges=0))
    pairs = len(result.provenance["pairs"])
    return {
        "faithful": _number(share), "value": _number(value), "clean": clean, "empty": empty, "pairs": pairs,
    }  # fmt: skip


def _spread(values: Any) -> Message:
    there = values[np.isfinite(values)]
    if not len(there):
        return {"mean": None, "low": None, "high": None}
    return {"mean": float(there.mean()), "low": float(there.min()), "high": float(there.max())}


def _number(value: float) -> float | None:
    """Returns a number as JSON has it, which knows no NaN."""
    return value if np.isfinite(value) else None


def _threshold(whole: Circuit, n: int) -> float | None:
    """Returns the least |score| among the n strongest edges."""
    scores = np.abs(whole.scores[whole.kept])
    return float(np.partition(scores, len(scores) - n)[len(scores) - n]) if 0 < n <= len(scores) else None


def _sizes(total: int) -> list[int]:
    """Returns the numbers of edges of the curve, evenly spread on a logarithmic axis."""
    fewest = min(4, total)
    return np.unique(np.geomspace(fewest, total, _POINTS).round().astype(int)).tolist() if total else []


# -- of a workbench


def kept_circuit(kept: Mapping[Any, Any], ask: Ask) -> Circuit | None:
    """Returns the circuit that is kept in a workbench's tab; None until it was opened for the pair on screen."""
    study = kept.get("circuit")
    return study.kept if study is not None and list(study.same) == [ask.pairs[ask.pair]] else None


def _study(question: Question) -> Study:
    """Returns the scored edges asked for, scored only once for each pair, metric and method."""
    method, positions = str(question.content.get("method", "eap")), bool(question.content.get("positions", True))
    if method not in METHODS:
        raise PlanError(f"no method {method!r}.", where="circuit", fix=suggest(method, METHODS))
    ask, model = question.ask, question.model
    metric = next(one for one in ask.metrics if one.name == ask.metric)
    key = ("circuit", ask.pairs, ask.pair, metric.name, method, positions)
    if key not in question.kept:
        pair = ask.pairs[ask.pair]
        found = eap(model, pair, method=method, metric=metric, by_position=positions)
        others = [one for number, one in enumerate(ask.pairs) if number != ask.pair]
        study = Study(found, model, metric, [pair], fitting(model, found, others))
        study.keep(study.start)
        question.kept[key] = study
    question.kept["circuit"] = question.kept[key]
    return question.kept[key]


def fitting(model: Model, whole: Circuit, pairs: Sequence[PromptPair]) -> list[PromptPair]:
    """Returns the pairs that a circuit can be run on: told apart by position, only those of its length."""
    lengths = [(len(one.clean_ids), len(one.corrupted_ids)) for one in model.tokenize(pairs)] if pairs else []
    return [
        pair
        for pair, (clean, corrupted) in zip(pairs, lengths, strict=True)
        if clean == corrupted and whole.positions in (None, clean)
    ]
