"""The slow twin of corruptions and joint patches: where replacement values come from, written down by hand.

Everything is `oracle.forward` with an edit. A `Run` is one patched run still without its cell: the prompt that is
changed, what has been done to it before (noise), and the values that a cell takes its own from. A corruption is a list
of runs, one for each draw.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import micro
import numpy as np
import oracle
import pytest
import torch
from oracle import Edit, keep_all
from torch import Tensor

import nbpatch
from nbpatch import PromptPair
from nbpatch.model import Model
from nbpatch.tokens import encode

Values = Mapping[tuple[str, int], Tensor]
Where = tuple[Any, ...]
Metric = Callable[[Tensor], float]

AXES = {**oracle.AXES, "embed": ("pos",), "scores": oracle.AXES["pattern"], "head_out": oracle.AXES["z"]}
PATTERNS = ("pattern", "scores")
TOLERANCE = 1e-4

# -- models and prompts

STORIES = pytest.mark.skipif(not micro.STORIES.is_dir(), reason="../shared/models is not here")
MODELS = ["tiny", pytest.param("stories260K", marks=STORIES)]
ENGINES = ["auto", "replay"]


def with_marks(cases: Iterable[tuple[str, ...]]) -> list[Any]:
    """Returns cases that begin with a model's name, those of the model that may be absent marked so."""
    return [case if case[0] == "tiny" else pytest.param(*case, marks=STORIES) for case in cases]


PLACES = with_marks(itertools.product(("tiny", "stories260K"), ENGINES))
ONE_OF_EACH = with_marks([("tiny", "auto"), ("stories260K", "replay")])

# Three prompts, the last as long as the first; subjects of one token and of several; "own" is the second's alone.
TRIOS = {
    "tiny": (
        PromptPair(
            "The Eiffel Tower is located in", "The Space Needle is located in", " Paris", " Seattle",
            labels={"verb": "is", "subject": "Eiffel Tower"},
        ),
        PromptPair(
            "The capital of Greece is", "The capital of Spain is", " Athens", " Madrid",
            labels={"subject": "Greece", "verb": "is", "own": "capital"},
        ),
        PromptPair(
            "The capital city of Kenya is", "The capital city of Portugal is", " Nairobi", " Lisbon",
            labels={"subject": "Kenya", "verb": "is"},
        ),
    ),
    "stories260K": (
        PromptPair(
            "The boy ran and", "The girl ran and", " he", " she",
            labels={"verb": "ran", "subject": "boy"},
        ),
        PromptPair(
            "The girl and", "The boy and", " she", " he",
            labels={"subject": "girl", "verb": "and", "own": "The"},
        ),
        PromptPair(
            "The girl sat and", "The boy sat and", " she", " he",
            labels={"subject": "girl", "verb": "sat"},
        ),
    ),
}  # fmt: skip
PAIRS = {name: trio[:2] for name, trio in TRIOS.items()}

# Prompts beside the pairs' own, of both their lengths and of others; the longest is longer than all pairs.
DATASETS = {
    "tiny": (
        "The Red Square is located in",
        "The Louvre is located in",
        "The capital of Peru is",
        "The capital city of France is",
        "The Empire State Building is located in",
        "The capital of Greece is",
        "Paul gave",
    ),
    "stories260K": (
        "The big dog ran and",
        "He had a car",
        "The little cat was",
        "The boy sat and",
        "The big cat was sad and then he",
        "The girl and",
        "One day",
    ),
}


@lru_cache(maxsize=4)
def model_of(name: str, engine: str) -> Model:
    """One model object for each engine; tests must not change it."""
    model = nbpatch.load("tiny" if name == "tiny" else micro.STORIES)
    model.engine = engine
    return model


def hf_of(name: str) -> Any:
    return model_of(name, "auto")._hf


def tokens_of(name: str, text: str) -> tuple[int, ...]:
    model = model_of(name, "auto")
    return encode(model.tokenizer, text, bos=model.prepends_bos)


def difference(one: Any) -> Metric:
    return lambda logits: float(logits[one.answer_ids[0]] - logits[one.wrong_ids[0]])


# -- forwards with three more places to edit


class _More:
    """Adds embed, and scores and head_out where they are asked for, to the places that `oracle.forward` shows."""

    def __init__(self, hf: Any, ids: Sequence[int], edit: Edit, heads: bool) -> None:
        self.hf, self.ids, self.edit = hf, list(ids), edit
        self.before = {"resid_pre": self._embed}
        if heads:
            self.before |= {"pattern": self._scores, "attn_out": self._heads}
        self.seen: dict[str, Tensor] = {}

    def __call__(self, name: str, layer: int, value: Tensor) -> Tensor:
        value = self.edit(name, layer, self.before[name](layer, value) if name in self.before else value)
        self.seen[name] = value
        return value

    def _embed(self, layer: int, value: Tensor) -> Tensor:
        if layer:
            return value
        tokens = self.hf.get_input_embeddings().weight[self.ids]
        new = self.edit("embed", 0, tokens)
        return value if new is tokens else value + new - tokens

    def _scores(self, layer: int, value: Tensor) -> Tensor:
        q, k = (_turned(self.hf, self.seen[name]) for name in ("q", "k"))
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = torch.einsum("dhe,she->hds", q, k) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
        torch.testing.assert_close(scores.softmax(-1), value)
        new = self.edit("scores", layer, scores)
        return value if new is scores else new.softmax(-1)

    def _heads(self, layer: int, value: Tensor) -> Tensor:
        outputs = torch.einsum("phe,hed->phd", self.seen["z"], _output(self.hf, layer))
        return value + (self.edit("head_out", layer, outputs) - outputs).sum(1)


def _output(hf: Any, layer: int) -> Tensor:
    """Returns W_O [head d_head d_model]."""
    heads = hf.config.num_attention_heads
    if hasattr(hf, "transformer"):
        weight = hf.transformer.h[layer].attn.c_proj.weight
    else:
        weight = hf.model.layers[layer].self_attn.o_proj.weight.T
    return weight.reshape(heads, -1, weight.shape[1])


def _turned(hf: Any, value: Tensor) -> Tensor:
    if hasattr(hf, "transformer"):
        return value
    cos, sin = (part[0][:, None] for part in hf.model.rotary_emb(value, torch.arange(len(value))[None]))
    left, right = value.chunk(2, -1)
    return value * cos + torch.cat([-right, left], -1) * sin


def forward(hf: Any, ids: Sequence[int], edit: Edit = keep_all, *, heads: bool = True) -> Tensor:
    """Returns logits [pos d_vocab] of one prompt.

    Args:
        heads: whether scores and head_out are to be seen too, which takes time.
    """
    return oracle.forward(hf, ids, _More(hf, ids, edit, heads))


def record(hf: Any, ids: Sequence[int], edit: Edit = keep_all) -> Values:
    """Returns every site's value of one prompt that is edited on the way."""
    kept: dict[tuple[str, int], Tensor] = {}

    def keep(name: str, layer: int, value: Tensor) -> Tensor:
        value = edit(name, layer, value)
        kept[name, layer] = value.clone()
        return value

    forward(hf, ids, keep)
    return kept


@lru_cache(maxsize=256)
def plainly(hf: Any, ids: tuple[int, ...]) -> Values:
    """Returns every site's value of one prompt as it is; tests must not change them."""
    return record(hf, ids)


# -- where values come from


class Run(NamedTuple):
    """One run to patch: its prompt, what is done to it anyway, and the values that patches take."""

    ids: tuple[int, ...]
    values: Values
    before: Edit = keep_all


def counterfactual(hf: Any, one: Any, direction: str) -> list[Run]:
    base, source = (
        (one.corrupted_ids, one.clean_ids) if direction == "denoising" else (one.clean_ids, one.corrupted_ids)
    )
    return [Run(base, plainly(hf, source))]


def zero(hf: Any, one: Any) -> list[Run]:
    values = plainly(hf, one.clean_ids)
    return [Run(one.clean_ids, {key: torch.zeros_like(value) for key, value in values.items()})]


def mean(hf: Any, one: Any, prompts: Iterable[Sequence[int]], *, per_position: bool = True) -> list[Run]:
    recorded = [plainly(hf, tuple(ids)) for ids in prompts]
    length = len(one.clean_ids)
    average = _by_position if per_position else _over_positions
    keys = [key for key in recorded[0] if per_position or key[0] not in PATTERNS]
    return [Run(one.clean_ids, {key: average(key[0], [kept[key] for kept in recorded], length) for key in keys})]


def _by_position(component: str, values: Sequence[Tensor], length: int) -> Tensor:
    """Returns, for each position, the mean over those prompts that have it."""
    if component in PATTERNS:
        return _pattern_mean(values, length)
    return torch.stack([torch.stack([one[pos] for one in values if pos < len(one)]).mean(0) for pos in range(length)])


def _pattern_mean(values: Sequence[Tensor], length: int) -> Tensor:
    table = torch.zeros(len(values[0]), length, length)
    for dest, src in itertools.product(range(length), repeat=2):
        there = [one[:, dest, src] for one in values if max(dest, src) < one.shape[1]]
        if src <= dest:
            table[:, dest, src] = torch.stack(there).mean(0)
    return table


def _over_positions(component: str, values: Sequence[Tensor], length: int) -> Tensor:
    vector = torch.cat(list(values)).mean(0)
    return vector[None].repeat(length, *[1] * vector.dim())


def resample(hf: Any, one: Any, drawn: Iterable[Sequence[int]]) -> list[Run]:
    return [Run(one.clean_ids, plainly(hf, tuple(ids))) for ids in drawn]


@dataclass(frozen=True)
class Noised:
    """Noise on the token embeddings at some positions of every pair."""

    places: tuple[tuple[int, ...], ...]
    scale: float = 3.0
    n: int = 10
    seed: int = 0

    def runs(self, hf: Any, ones: Sequence[Any], number: int, direction: str) -> list[Run]:
        clean = ones[number].clean_ids
        noisy = [self._edit(hf, ones, number, draw) for draw in range(self.n)]
        if direction == "denoising":
            values = plainly(hf, clean)
            return [Run(clean, values, edit) for edit in noisy]
        return [Run(clean, record(hf, clean, edit)) for edit in noisy]

    def _edit(self, hf: Any, ones: Sequence[Any], number: int, draw: int) -> Edit:
        table = hf.get_input_embeddings().weight
        rows = [table[one.clean_ids[pos]] for one, places in zip(ones, self.places, strict=True) for pos in places]
        size = self.scale * float(torch.stack(rows).detach().std())
        places = sorted(self.places[number])
        drawn = np.random.default_rng([self.seed, number, draw]).standard_normal((len(places), table.shape[1]))
        noise = torch.zeros(len(ones[number].clean_ids), table.shape[1])
        noise[places] = torch.tensor(size * drawn, dtype=torch.float32)
        return lambda name, layer, value: value + noise if name == "embed" else value


# -- cells


@dataclass(frozen=True)
class Spot:
    """One slice of one layer's value to be replaced, by that of another layer and slice where one is named.

    Attributes:
        where: an index into [pos d], [pos head d], [pos neuron] or [head dest src].
    """

    component: str
    layer: int
    where: Where = ()
    from_layer: int | None = None
    from_where: Where | None = None

    def value(self, values: Values) -> Tensor:
        layer = self.layer if self.from_layer is None else self.from_layer
        return values[self.component, layer][self.where if self.from_where is None else self.from_where]


def patched(hf: Any, run: Run, spots: Sequence[Spot]) -> Tensor:
    """Returns logits [d_vocab] at the run's last position with all spots replaced at once."""

    def edit(name: str, layer: int, value: Tensor) -> Tensor:
        value = run.before(name, layer, value)
        mine = [spot for spot in spots if (spot.component, spot.layer) == (name, layer)]
        value = value.clone() if mine else value
        for spot in mine:
            value[spot.where] = spot.value(run.values)
        return value

    heads = any(spot.component in ("scores", "head_out") for spot in spots)
    return forward(hf, run.ids, edit, heads=heads)[-1]


def over_runs(hf: Any, runs: Sequence[Run], spots: Sequence[Spot], metric: Metric) -> tuple[float, float]:
    """Returns the mean and the standard deviation over runs of a patched run's metric."""
    found = [metric(patched(hf, run, spots)) for run in runs]
    return float(np.mean(found)), float(np.std(found))


def spots_of(component: str, chosen: Mapping[str, int], layers: int, window: int = 1) -> list[Spot]:
    """Returns what one cell of a sweep replaces: whole axes that are not named, and the layers around its own."""
    order = [axis for axis in AXES[component] if axis != "layer"]
    if component not in PATTERNS:
        order = ["pos", *(axis for axis in order if axis != "pos")]
    where = tuple(chosen.get(axis, slice(None)) for axis in order)
    first, last = 0, 0 if component == "embed" else layers - 1
    if "layer" in chosen:
        first = max(0, chosen["layer"] - window // 2)
        last = min(layers, chosen["layer"] - window // 2 + window) - 1
    return [Spot(component, layer, where) for layer in range(first, last + 1)]


def sizes_of(hf: Any, one: Any, component: str) -> dict[str, int]:
    values, length = plainly(hf, one.clean_ids), len(one.clean_ids)
    layers = 1 if component == "embed" else max(layer for name, layer in values if name == component) + 1
    value = values[component, 0]
    units = len(value) if component in PATTERNS else value.shape[1]
    return {"layer": layers, "head": units, "neuron": units, "pos": length, "dest": length, "src": length}


def cells_of(hf: Any, one: Any, component: str, over: Sequence[str], few: int | None = None) -> list[tuple[int, ...]]:
    """Returns the cells of one pair's sweep: all of them, or a few, always the same."""
    sizes = sizes_of(hf, one, component)
    cells = list(itertools.product(*(range(sizes[axis]) for axis in over)))
    if few is None or few >= len(cells):
        return cells
    chosen = np.random.default_rng(len(cells)).choice(len(cells), few, replace=False)
    # The answer position of the last layer is among them: there is always an effect to compare.
    return [*(cells[number] for number in chosen), cells[-1]]
