"""Checks a model of the embedded kind: does it answer, and does it answer by a circuit of several layers?

The second half matters as much as the first: a model that solves indirect objects with one head of its first layer
is right everywhere and shows nothing in a map.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch

from nbpatch.methods.patching import patch
from nbpatch.model import Model, load
from nbpatch.prompts import Pairs, PromptPair, encode
from nbpatch.tiny import words
from nbpatch.tiny.corpus import TASKS, Example, examples

STANDARD = (
    ("When Mary and John went to the store, John gave a drink to", " Mary"),
    ("When John and Mary went to the store, John gave a drink to", " Mary"),
    ("When Mary and John went to the store, Mary gave a drink to", " John"),
    ("Then, Mary and John went to the park. John gave a ring to", " Mary"),
    ("After Tom and James went to the park, James handed a book to", " Tom"),
    ("When Alice, Tom and John went to the store, Alice and John gave a drink to", " Tom"),
    ("The Eiffel Tower is located in", " Paris"),
    ("The Eiffel Tower is in the city of", " Paris"),
    ("The Colosseum is located in", " Rome"),
    ("The Colosseum is in the country of", " Italy"),
    ("The Space Needle is in downtown", " Seattle"),
    ("The Space Needle is located in", " Seattle"),
    ("The Tower Bridge is located in", " London"),
    ("The capital of France is", " Paris"),
    ("The capital of Germany is", " Berlin"),
    ("This movie was wonderful. I thought it was", " great"),
    ("This movie was awful. I thought it was", " terrible"),
    ("Mary went home because", " she"),
    ("John went to the store because", " he"),
    (" ball pen lamp key ball pen lamp", " key"),
)
"""The prompts that papers and tutorials use, in this model's words."""

GREATER_THAN = "The war lasted from the year 1732 to the year 17"

FIRST = PromptPair(
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    " Mary",
    " John",
)
"""The pair that everybody sees first."""

FACT = PromptPair("The Eiffel Tower is located in", "The Space Needle is located in", " Paris", " Seattle")

LEAST_ACCURACY = 0.99
LEAST_SHARE = 0.05
LEAST_HEADS, LEAST_HEADS_OF_MEAN = 4, 3
"""Heads that must count in one pair; fewer in a mean, where heads that help different pairs fall below the share."""

MOST_SHARE = 0.8
LEAST_STEP = 0.05
"""From this rise at the last position on, a layer counts as moving the effect there."""


@dataclass(frozen=True)
class Stages:
    """Where the effect of a pair, or of the mean of some, is held at the entry of each layer, and by which heads.

    Attributes:
        source: recovered at the differing token that recovers most, under denoising, by layer.
        end: recovered at the last position, by layer.
        denoising: share of the gap that each head restores [layer][head].
        noising: share of the gap that each head takes away [layer][head].
        apart: by how much a head's two directions differ, the largest of each pair, mean over pairs. Means over pairs
            would hide it: what denoising exceeds in a pair, noising exceeds in its mirror image.
        pairs: how many pairs were measured.
    """

    source: tuple[float, ...]
    end: tuple[float, ...]
    denoising: tuple[tuple[float, ...], ...]
    noising: tuple[tuple[float, ...], ...]
    apart: float
    pairs: int = 1

    @property
    def moving(self) -> list[int]:
        """The layers that move effect to the last position; behind the last layer all of it is there."""
        after = (*self.end[1:], 1.0)
        return [layer for layer, value in enumerate(self.end) if after[layer] - value >= LEAST_STEP]

    @property
    def heads(self) -> list[tuple[int, int]]:
        """The heads that count in at least one direction, as (layer, head)."""
        return [
            (layer, head)
            for layer, row in enumerate(self.denoising)
            for head, value in enumerate(row)
            if max(abs(value), abs(self.noising[layer][head])) >= LEAST_SHARE
        ]

    def problems(self) -> list[str]:
        """Returns what keeps the pair from being a good example, nothing when it is one."""
        found: list[str] = []
        largest = max(abs(value) for rows in (self.denoising, self.noising) for row in rows for value in row)
        least = LEAST_HEADS if self.pairs == 1 else LEAST_HEADS_OF_MEAN
        if self.source[1] < 0.5:
            found.append(f"the effect has left the differing token by layer 1 ({self.source[1]:.2f})")
        if len(self.moving) < 2:
            found.append(f"the effect moves in layers {self.moving} only")
        if len(self.heads) < least or len({layer for layer, _ in self.heads}) < 2:
            found.append(f"only heads {self.heads} count")
        if largest > MOST_SHARE:
            found.append(f"one head has a share of {largest:.2f}")
        if self.apart < LEAST_SHARE:
            found.append("denoising and noising agree everywhere")
        return found

    def table(self) -> str:
        """Returns the figures as Markdown: a row a layer."""
        head = "| layer | differing token | last position | heads, denoising | heads, noising |\n|--|--|--|--|--|"
        columns = zip(self.source, self.end, self.denoising, self.noising, strict=True)
        rows = [
            f"| {layer} | {source:+.2f} | {end:+.2f} | {_numbers(restored)} | {_numbers(lost)} |"
            for layer, (source, end, restored, lost) in enumerate(columns)
        ]
        return "\n".join([head, *rows])


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:+.2f}" for value in values)


def stages(model: Model, pairs: PromptPair | Sequence[PromptPair]) -> Stages:
    """Measures a pair, or pairs of one length that differ at the same positions."""
    tokenized = model.tokenize(pairs)
    differs, end = tokenized[0].differs, tokenized[0].clean_end
    held = patch(model, pairs, "resid_pre", "layer pos").recovered()
    found = patch(model, pairs, "z", "layer head", direction="both")
    share, each = found.share(), found.share(per_pair=True)
    source = held.isel(pos=list(differs)).max("pos")
    denoising, noising = (
        tuple(
            tuple(float(value) for value in row) for row in share.sel(direction=one).transpose("layer", "head").values
        )
        for one in ("denoising", "noising")
    )
    apart = float(abs(each.sum("direction")).max(("layer", "head")).mean())
    return Stages(
        tuple(map(float, source)), tuple(map(float, held.isel(pos=end))), denoising, noising, apart, len(tokenized)
    )


def ioi_pairs() -> Pairs:
    """Returns 16 pairs of one length, the first being `FIRST`: both orders of the names, all other words different."""
    people = [("Mary", "John"), *zip(words.WOMEN[1:], words.MEN[1:], strict=True)]
    made: list[PromptPair] = [FIRST]
    for number in range(1, 16):
        one, two = people[number] if number % 2 else people[number][::-1]
        receiver, subject = (one, two) if number % 4 < 2 else (two, one)
        place, thing, verb = words.PLACES[number], words.THINGS[number], words.GIVING[number % len(words.GIVING)]
        text = f"When {one} and {two} went to the {place}, {{}} {verb} a {thing} to"
        made.append(PromptPair(text.format(subject), text.format(receiver), f" {receiver}", f" {subject}"))
    return Pairs(made)


def fact_pairs() -> Pairs:
    """Returns pairs of landmarks of two words in different cities, the first being `FACT`."""
    chosen = [name for name in words.LANDMARKS if len(name.split()) == 2 and name != "Eiffel Tower"]
    made = [FACT]
    for one, other in pairwise(chosen):
        right, wrong = words.LANDMARKS[one][0], words.LANDMARKS[other][0]
        if right != wrong and set(one.split()).isdisjoint(other.split()):
            form = "The {} is located in"
            made.append(PromptPair(form.format(one), form.format(other), f" {right}", f" {wrong}"))
    return Pairs(made)


def predict(model: Model, prompts: Sequence[str]) -> list[str]:
    """Returns the likeliest next token of each prompt."""
    by_length: dict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        ids = encode(model.tokenizer, prompt)
        by_length[len(ids)].append((number, ids))
    found: dict[int, str] = {}
    for rows in by_length.values():
        logits = model.answer_logits(torch.tensor([ids for _, ids in rows]))
        tokens: list[str] = model.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
        found.update(zip((number for number, _ in rows), tokens, strict=True))
    return [found[number] for number in range(len(prompts))]


def accuracy(model: Model, task: str, n: int = 300, seed: int = 1) -> float:
    """Returns the share of `n` held-out examples of a task that are answered right."""
    chosen: list[Example] = list(islice(examples(seed, held_out=True, task=task), n))
    tokens = predict(model, [example.prompt for example in chosen])
    right = sum(token in example.answers for token, example in zip(tokens, chosen, strict=True))
    return right / n


def mistakes(model: Model) -> list[str]:
    """Returns the standard prompts that are answered wrongly, each with what came instead."""
    tokens = predict(model, [*(prompt for prompt, _ in STANDARD), GREATER_THAN])
    wrong = [
        f"{prompt!r} gives {token!r} instead of {answer!r}"
        for token, (prompt, answer) in zip(tokens[:-1], STANDARD, strict=True)
        if token != answer
    ]
    if not (tokens[-1].isdecimal() and int(tokens[-1]) > 32):
        wrong.append(f"{GREATER_THAN!r} gives {tokens[-1]!r} instead of a year after 32")
    return wrong


@dataclass(frozen=True)
class Report:
    """What a check found."""

    accuracies: dict[str, float]
    mistakes: list[str]
    stages: dict[str, Stages]

    def problems(self) -> list[str]:
        """Returns everything that is not as it must be."""
        low = [f"{task}: {value:.3f} right" for task, value in self.accuracies.items() if value < LEAST_ACCURACY]
        shapes = [f"{name}: {problem}" for name, one in self.stages.items() for problem in one.problems()]
        return [*low, *self.mistakes, *shapes]

    def __str__(self) -> str:
        rows = [f"| {task} | {value:.3f} |" for task, value in self.accuracies.items()]
        lines = ["| task | held out, right |", "|--|--|", *rows, ""]
        for name, one in self.stages.items():
            lines += [f"{name}:", "", one.table(), ""]
        return "\n".join(lines).rstrip()


def report(folder: Path, n: int = 300) -> Report:
    """Measures the model in a folder.

    Args:
        n: how many held-out examples of each task.
    """
    model = load(folder)
    named: dict[str, Any] = {
        "Indirect object, first pair": FIRST,
        "Indirect object, 16 pairs": ioi_pairs(),
        "Fact, Eiffel Tower against Space Needle": FACT,
        f"Facts, {len(fact_pairs())} pairs": fact_pairs(),
    }
    measured = {name: stages(model, pairs) for name, pairs in named.items()}
    return Report({task: accuracy(model, task, n) for task in TASKS}, mistakes(model), measured)


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
