"""Both runs of some pairs forward, and back from a metric to what they held at any site."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbpatch.engine.base import BASE, RUNS, BaseRuns, Group, answers_of, group_pairs, pad_ids
from nbpatch.engine.tail import unembedded
from nbpatch.engine.tape import Back, Key, Tape, record
from nbpatch.errors import MetricError, PlanError
from nbpatch.metrics import Answers, Metric
from nbpatch.model import Model
from nbpatch.parts import Parts
from nbpatch.plan import Direction
from nbpatch.prompts import TokenizedPair

FEW = 64
"""Tokens up to which base and source runs go in one forward: it takes hardly longer than one of them."""

PLAIN = -1
"""Stands for the gradient of the whole model, none of its layers dropped."""

_WIDTHS = 24
"""Numbers of the size of the residual stream that a token's graph holds in a block, about; the MLP's come on top."""


@dataclass(frozen=True)
class Run:
    """Rows of a tape that are the clean, or the corrupted, runs of some pairs."""

    tape: Tape
    rows: slice

    def value(self, key: Key) -> Tensor:
        """Returns what a site held in these runs [pair …]."""
        return self.tape.value(key)[self.rows]

    @property
    def logits(self) -> Float[Tensor, "pair column"]:
        """The answer logits, in the graph."""
        return self.tape.logits[self.rows]


@contextmanager
def grading() -> Generator[None]:
    """Records a graph, whatever was switched off outside: notebooks often begin by switching gradients off."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


@dataclass(frozen=True)
class Differentiated:
    """What is run forward and back: pairs, the directions in which they are patched, and what is measured."""

    tokenized: Sequence[TokenizedPair]
    directions: Sequence[Direction]
    metrics: Sequence[Metric]


class Gradients:
    """Runs pairs forward and back.

    Args:
        returns: id of a module → how many values its forward returns.
        sites: what is kept of each run (`tape.record`).
        copies: runs of one prompt that go together.
        beside: bytes that are needed for each token beside its graph.

    Attributes:
        bases: the runs that are changed, whose gradients are needed.
        chunks: the pairs in groups that go together.
        passes: forwards and backwards made so far.
        logits: per run, answer logits [pair d_vocab], as far as they are known.

    Raises:
        PlanError: the memory budget does not hold one pair with its graph.
    """

    def __init__(
        self,
        what: "Differentiated",
        model: Model,
        parts: Parts,
        returns: Mapping[int, int],
        *,
        sites: frozenset[str],
        copies: int = 1,
        beside: int = 0,
    ) -> None:
        self.tokenized = what.tokenized
        self.metrics = what.metrics
        self.bases = tuple(run for run in RUNS if run in {BASE[direction] for direction in what.directions})
        self.model = model
        self.parts = parts
        self.returns = returns
        self.sites = sites
        self.passes = {"forwards": 0, "backwards": 0}
        self.logits = {run: torch.full((len(self.tokenized), model.shape.d_vocab), torch.nan) for run in RUNS}
        self.columns = self._columns()
        self.chunks = list(_chunks(self.tokenized, model, sites, copies, beside))
        if any(metric.whole for metric in self.metrics) and len(self.chunks) > 1:
            self._learn_all()

    def _columns(self) -> Tensor | None:
        """Returns the tokens whose logits the metrics read; None for all."""
        if not all(metric.local for metric in self.metrics) or not isinstance(self.parts.unembed, nn.Linear):
            return None
        ids = [[*one.answer_ids, *one.wrong_ids] for one in self.tokenized]
        found = pad_ids(ids).unique()
        return found[found >= 0]

    def runs(self) -> BaseRuns:
        """Returns both runs' logits, and what metrics compare them with."""
        return BaseRuns((), self.logits, answers_of(self.tokenized, self.logits["clean"]))

    def _learn_all(self) -> None:
        """Learns all logits before the first way back: a user's function sees all pairs at once."""
        for chunk in self.chunks:
            for run in RUNS:
                with torch.no_grad():
                    self._learn(chunk, (run,), self.record(chunk.ids[run]).ends)

    def both(self, chunk: Group, *, back: bool, first: int = 0) -> dict[str, Run]:
        """Returns both runs of some pairs.

        Args:
            back: whether the way back from the runs that are changed is needed.
            first: the position from which on it is.
        """
        n, ids = len(chunk.pairs), chunk.ids
        graphs = self.bases if back else ()
        few = 2 * ids["clean"].numel() <= FEW
        if ids["clean"].shape == ids["corrupted"].shape and (few or len(graphs) == 2):
            rows = {run: slice(at * n, at * n + n) for at, run in enumerate(RUNS)}
            changed = rows[graphs[0]] if len(graphs) == 1 else slice(0, 2 * n)
            with torch.set_grad_enabled(bool(graphs)):
                tape = self.record(torch.cat([ids[run] for run in RUNS]), back=Back(changed, first))
            found = {run: Run(tape, rows[run]) for run in RUNS}
            self._learn(chunk, RUNS, tape.ends)
        else:
            found: dict[str, Run] = {}
            for run in RUNS:
                with torch.set_grad_enabled(run in graphs):
                    found[run] = Run(self.record(ids[run], back=Back(slice(0, n), first)), slice(0, n))
                self._learn(chunk, (run,), found[run].tape.ends)
        return found

    def record(self, ids: Tensor, **options: Any) -> Tape:
        """Runs prompts forward once; options are those of `tape.record`."""
        self.passes["forwards"] += 1
        with self.model.lock:
            return record(self.parts, ids.to(self.model.device), self.sites, columns=self.columns, **options)

    def _learn(self, chunk: Group, runs: Sequence[str], ends: Float[Tensor, "row d_model"]) -> None:
        """Keeps all answer logits of some runs, one run's pairs behind the other's."""
        with self.model.lock:
            logits = unembedded(self.parts, self.returns, ends).float().cpu()
        for run, mine in zip(runs, logits.split(len(chunk.pairs)), strict=True):
            self.logits[run][list(chunk.pairs)] = mine

    # -- back

    def back(self, tape: Tape, target: Tensor, keys: Sequence[Key], *, again: bool) -> dict[Key, Tensor]:
        """Returns the gradient of a sum of metric values at some sites [run …]."""
        self.passes["backwards"] += 1
        with self.model.lock:
            return tape.gradients(target, keys, again=again)

    def target(self, metric: Metric, chunk: Group, run: str, logits: Float[Tensor, "pair d_vocab"]) -> Tensor:
        """Returns the sum of a metric over some pairs, in the graph.

        Args:
            run: the run whose place these logits take.

        Raises:
            MetricError: a metric without a gradient.
        """
        pairs, logits = torch.tensor(chunk.pairs), logits.float()
        answers = answers_of([self.tokenized[pair] for pair in chunk.pairs], self.logits["clean"][pairs])
        if metric.whole:
            answers = answers_of(self.tokenized, self.logits["clean"])
            logits = self.logits[run].to(logits.device).index_copy(0, pairs.to(logits.device), logits)
        answers = answers if self.columns is None else answers.within(self.columns)
        values = metric.compute(logits, _on(answers, logits.device))
        if not isinstance(values, Tensor) or not values.requires_grad:
            raise MetricError(
                f"{metric.name} has no gradient: it does not change with small changes of the logits.",
                where="metric",
                fix='metric="logit_diff"',
            )
        return (values[pairs.to(values.device)] if metric.whole else values).sum()


def _on(answers: Answers, device: torch.device) -> Answers:
    return Answers(answers.answer.to(device), answers.wrong.to(device), answers.clean_log_probs.to(device))


def check_gradients(metrics: Sequence[Metric], directions: Sequence[str], method: str) -> None:
    """Refuses a metric whose gradient at the base run says nothing.

    Raises:
        MetricError: −KL from the clean run, at the clean run.
    """
    if "noising" in directions and method in ("atp", "atp*", "eap") and any(one.name == "kl" for one in metrics):
        raise MetricError(
            "the gradient of −KL from the clean run is zero at the clean run: it is at its maximum there.",
            where="metric",
            seen='metric="kl" and noising',
            fix='direction="denoising", metric="logit_diff", or gradients between the runs: '
            + ('method="eap-ig"' if method == "eap" else 'method="ig"'),
        )


def _chunks(
    tokenized: Sequence[TokenizedPair], model: Model, sites: frozenset[str], copies: int, beside: int
) -> Iterator[Group]:
    """Yields the pairs in groups of one length each, as many at once as the memory budget holds with their graph.

    Raises:
        PlanError: it does not hold one pair.
    """
    shape, width, budget = model.shape, torch.finfo(model.dtype).bits // 8, model.memory_budget()
    for group in group_pairs(tokenized):
        tokens = sum(ids.shape[1] for ids in group.ids.values())
        longest = max(ids.shape[1] for ids in group.ids.values())
        scores = (6 if "pattern" in sites else 4) * shape.n_heads * longest
        token = width * shape.n_layers * (_WIDTHS * shape.d_model + 8 * shape.d_mlp + scores)
        pair = copies * tokens * token + longest * beside + 8 * 4 * shape.d_vocab
        if budget < pair:
            raise PlanError(
                "the memory budget does not hold one pair with its gradients.",
                where="model.budget",
                seen=f"{budget / 2**20:.1f} MiB; one pair of {longest} tokens needs {pair / 2**20:.1f} MiB",
                fix=f"model.budget = {2 ** (pair - 1).bit_length()}",
            )
        step = budget // pair
        for start in range(0, len(group.pairs), step):
            some = slice(start, start + step)
            ids = {run: value[some] for run, value in group.ids.items()}
            yield Group(group.pairs[some], ids, group.aligned[some])
