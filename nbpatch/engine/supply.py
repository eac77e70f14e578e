"""What a corruption puts in the place of the corrupted prompt's run: noise on embeddings, prompts drawn, means, zeros.

The fast engine's base runs keep the corrupted run's own logits as the baseline; the activations that patches take from
it are replaced here.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nbpatch.corruption import AnyCorruption, Mean, Noise, Resample, Zero, prompts_of
from nbpatch.engine.attention import attend_with_weights
from nbpatch.engine.trace import OPTIONAL, Layer, Trace, trace
from nbpatch.errors import PatchNotApplied, PlanError
from nbpatch.model import Model
from nbpatch.parts import Parts
from nbpatch.plan import Plan
from nbpatch.tokens import Coder, prompt_ids

Ids: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Noised:
    """Noise on the token embeddings of one run: at which positions, and what is added there."""

    positions: Int[Tensor, "place"]
    vectors: Float[Tensor, "place d_model"]


def noise_of(plan: Plan, model: Model) -> dict[int, Noised]:
    """Returns the noise of each pair's corrupted run, by its number in the plan; nothing under other corruptions."""
    corruption = plan.corruption
    if not isinstance(corruption, Noise):
        return {}
    tokens = [one.clean_ids[place] for one in plan.tokenized[:: corruption.draws] for place in one.altered]
    with torch.no_grad():
        embedded = _embedding(model)(torch.tensor([tokens], device=model.device))
    size = corruption.scale * float(embedded.double().std())
    found: dict[int, Noised] = {}
    for number, one in enumerate(plan.tokenized):
        pair, draw = divmod(number, corruption.draws)
        normal = np.random.default_rng([corruption.seed, pair, draw]).standard_normal(
            (len(one.altered), embedded.shape[-1])
        )
        vectors = torch.from_numpy(size * normal).to(embedded)
        found[number] = Noised(torch.tensor(one.altered, device=model.device), vectors)
    return found


def _embedding(model: Model) -> Any:
    """Returns the module that embeds tokens, before positions are added."""
    module: Any = model.plain if model.plain is not None else model.bridge.original_model
    return module.get_input_embeddings()


@contextmanager
def noising(model: Any, noised: Mapping[int, Noised]) -> Generator[None]:
    """Adds noise to what a model's own module embeds in some rows of one forward.

    Not at a Bridge's `hook_embed`, which in Granite is behind a factor, and in front of what is patched there.

    Raises:
        PatchNotApplied: the module was not asked once.
    """
    if not noised:
        yield
        return
    asked: list[int] = []

    def add(module: Any, args: Any, value: Tensor) -> Tensor:
        asked.append(len(value))
        return _with_noise(value, noised)

    module = model.get_input_embeddings()
    handle = getattr(module, "original_component", module).register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
    if len(asked) != 1:
        raise PatchNotApplied(f"tokens were embedded {len(asked)} times, planned 1.", fix="model.describe()")


def _with_noise(embedded: Float[Tensor, "row pos d_model"], noised: Mapping[int, Noised]) -> Tensor:
    """Returns embeddings of rows with the noise some of them get."""
    embedded = embedded.clone()
    for row, one in noised.items():
        embedded[row, one.positions] += one.vectors
    return embedded


def drawn(plan: Plan, model: Model) -> list[Ids]:
    """Returns for each pair and draw the prompt whose run values come from; none under other corruptions.

    Raises:
        PlanError: a pair for which the dataset has no other prompt of the same length.
    """
    corruption = plan.corruption
    if not isinstance(corruption, Resample):
        return []
    dataset = list(dict.fromkeys(dataset_ids(plan, model, corruption)))
    found: list[Ids] = []
    pairs = plan.tokenized[:: corruption.draws]
    for number, one in enumerate(pairs):
        others = [ids for ids in dataset if len(ids) == len(one.clean_ids) and ids != one.clean_ids]
        if not others:
            raise PlanError(
                "the dataset has no other prompt of the same number of tokens to draw.",
                where=f"pair {number + 1} of {len(pairs)}",
                seen=f"{len(one.clean_ids)} tokens; the dataset has {_lengths(dataset)}",
                fix="nbp.Resample(prompts of as many tokens), or nbp.Mean(dataset)",
            )
        draw = np.random.default_rng([corruption.seed, number])
        chosen = draw.choice(len(others), corruption.k, replace=len(others) < corruption.k)
        found.extend(others[int(one)] for one in chosen)
    return found


def _lengths(dataset: Sequence[Ids]) -> str:
    return ", ".join(str(length) for length in sorted({len(ids) for ids in dataset}))


def dataset_ids(plan: Plan, model: Model, corruption: Mean | Resample) -> list[Ids]:
    """Returns the prompts of a corruption's dataset as tokens; without one, those of the pairs.

    Raises:
        PromptError: a prompt that cannot be used.
    """
    if corruption.dataset is None:
        pairs = plan.tokenized[:: corruption.draws]
        return [one.clean_ids if corruption.run == "clean" else one.corrupted_ids for one in pairs]
    coder = Coder(model.tokenizer, model.prepends_bos)
    prompts = prompts_of(corruption.dataset, corruption.run)
    return [
        prompt_ids(coder, f"dataset, prompt {number + 1}", text, n_ctx=model.shape.n_ctx)
        for number, text in enumerate(prompts)
    ]


def refuse_short(plan: Plan, dataset: Sequence[Ids]) -> None:
    """Refuses means by position over a dataset whose prompts are all shorter than a pair's.

    Raises:
        PlanError: with the first such pair.
    """
    longest = max(map(len, dataset))
    for number, one in enumerate(plan.tokenized):
        if len(one.clean_ids) > longest:
            raise PlanError(
                "no prompt of the dataset is as long as the pair's.",
                where=f"pair {number + 1} of {plan.n_pairs}",
                seen=f"{len(one.clean_ids)} tokens; the dataset's longest prompt has {longest}",
                fix="nbp.Mean(dataset, per_position=False), or longer prompts",
            )


def by_length(prompts: Sequence[Ids], max_tokens: int) -> Iterator[list[int]]:
    """Yields the numbers of prompts of one length, as many at once as a forward may hold."""
    lengths: dict[int, list[int]] = {}
    for number, ids in enumerate(prompts):
        lengths.setdefault(len(ids), []).append(number)
    for length, numbers in lengths.items():
        step = max(1, max_tokens // length)
        for start in range(0, len(numbers), step):
            yield numbers[start : start + step]


@dataclass
class Average:
    """A mean over prompts, position by position, of values [pos …] or [head dest src]."""

    total: Tensor
    count: Tensor
    axis: int = 0

    def add(self, values: Float[Tensor, "run ..."]) -> None:
        """Adds the values of some prompts of one length."""
        length = values.shape[1 + self.axis]
        some = self.total.narrow(self.axis, 0, length)
        if self.axis:
            some = some[..., :length]
        some += values.double().sum(0)
        self.count[:length] += len(values)

    def mean(self, *, per_position: bool) -> Tensor:
        """Returns the mean at each position, or one mean at all of them."""
        if not per_position:
            return (self.total.sum(0) / self.count.sum()).expand_as(self.total)
        shape = [1] * self.total.ndim
        shape[self.axis] = -1
        return self.total / self.count.clamp(min=1).view(shape)


def average_like(value: Float[Tensor, "run ..."], longest: int, *, pattern: bool) -> Average:
    """Returns the mean of nothing yet, for values such as these of prompts of up to `longest` tokens."""
    shape = [value.shape[1], longest, longest] if pattern else [longest, *value.shape[2:]]
    count = torch.zeros(longest, dtype=torch.float64, device=value.device)
    return Average(torch.zeros(shape, dtype=torch.float64, device=value.device), count, 1 if pattern else 0)


# -- the fast engine's base runs


@dataclass
class Supply:
    """Replaces what base runs keep of the corrupted prompts.

    Attributes:
        keep: which parts of the base runs are kept; patterns: whether attention weights are patched.
    """

    plan: Plan
    model: Model
    parts: Parts
    traced: Trace
    keep: frozenset[str]
    patterns: bool
    max_tokens: int
    drawn: list[Ids] = field(default_factory=list[Ids])

    @torch.no_grad()
    def replace(self) -> None:
        """Writes over the activations of all corrupted runs in the trace.

        Raises:
            PlanError: a dataset that lacks what a pair needs.
        """
        corruption: AnyCorruption = self.plan.corruption
        if isinstance(corruption, Zero):
            self._zero()
        elif isinstance(corruption, Mean):
            self._mean(corruption)
        elif isinstance(corruption, Resample):
            self._resample()

    def _zero(self) -> None:
        for _, value in _parts_of(self.traced):
            value[1::2] = 0
        if self.patterns:
            for seen in self.traced.layers:
                seen.weights = seen.q.new_zeros(len(self.plan.tokenized), seen.q.shape[1], *[seen.q.shape[2]] * 2)

    def _mean(self, corruption: Mean) -> None:
        dataset = dataset_ids(self.plan, self.model, corruption)
        if corruption.per_position:
            refuse_short(self.plan, dataset)
        averages: dict[tuple[int, str], Average] = {}
        longest = max(map(len, dataset))
        for numbers in by_length(dataset, self.max_tokens):
            some = self._traced([dataset[number] for number in numbers])
            values = dict(_parts_of(some))
            if self.patterns:
                values.update({(layer, "weights"): _weights(seen) for layer, seen in enumerate(some.layers)})
            for key, value in values.items():
                pattern = key[1] == "weights"
                averages.setdefault(key, average_like(value, longest, pattern=pattern)).add(value)
        self._write_means(averages, per_position=corruption.per_position)

    def _write_means(self, averages: Mapping[tuple[int, str], Average], *, per_position: bool) -> None:
        length = self.traced.out.shape[1]
        for key, value in _parts_of(self.traced):
            mean = averages[key].mean(per_position=per_position)[:length].to(value.dtype)
            if per_position:
                value[1::2, : len(mean)] = mean
            else:
                value[1::2] = mean[:1]
        if self.patterns:
            for layer, seen in enumerate(self.traced.layers):
                mean = averages[layer, "weights"].mean(per_position=True)[:, :length, :length].to(seen.q.dtype)
                seen.weights = mean.expand(len(self.plan.tokenized), *mean.shape)

    def _resample(self) -> None:
        self.drawn = drawn(self.plan, self.model)
        prompts = list(dict.fromkeys(self.drawn))
        targets = dict(_parts_of(self.traced))
        for numbers in by_length(prompts, self.max_tokens):
            chosen = [prompts[number] for number in numbers]
            values = dict(_parts_of(self._traced(chosen)))
            pairs = [(pair, chosen.index(ids)) for pair, ids in enumerate(self.drawn) if ids in chosen]
            runs = torch.tensor([2 * pair + 1 for pair, _ in pairs], device=self.model.device)
            which = torch.tensor([place for _, place in pairs], device=self.model.device)
            for key, target in targets.items():
                target[runs, : len(chosen[0])] = values[key][which]

    def _traced(self, prompts: Sequence[Ids]) -> Trace:
        device = self.model.device
        return trace(self.parts, prompts, device=device, max_tokens=self.max_tokens, keep=self.keep)


def _parts_of(traced: Trace) -> Iterator[tuple[tuple[int, str], Float[Tensor, "run pos ..."]]]:
    """Yields all that a trace keeps by layer and name, as [run pos …]; the last block's output under its own layer."""
    for layer, seen in enumerate(traced.layers):
        for name in ("pre", *OPTIONAL):
            value = getattr(seen, name)
            if value is not None:
                yield (layer, name), value
        for name in ("q", "k", "v"):
            yield (layer, name), getattr(seen, name).transpose(1, 2)
    yield (len(traced.layers), "pre"), traced.out


def _weights(seen: Layer) -> Float[Tensor, "run head dest src"]:
    return attend_with_weights(seen.module, seen.q, seen.k, seen.v, seen.mask, seen.options)[1]
