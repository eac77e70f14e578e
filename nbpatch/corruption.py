"""Where replacement values come from: the other prompt, nothing, a mean, another prompt's run, a noised run.

A corruption decides what a pair's corrupted run is. Under an ablation (`Zero`, `Mean`, `Resample`) its activations are
replaced, and its prompt still gives the baseline. Under `Noise` it is the clean prompt with noise on some embeddings.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Protocol, TypeAlias

from nbpatch.errors import PlanError, suggest
from nbpatch.prompts import PromptPair, TokenizedPair, as_pairs

RUNS = ("clean", "corrupted")


class Corruption(Protocol):
    """What all corruptions can say of themselves.

    Attributes:
        kind: counterfactual, zero, mean, resample or noise.
        ablates: whether it puts values into the clean run that are no run's of the pair.
    """

    kind: str
    ablates: bool

    @property
    def draws(self) -> int:
        """How often something is drawn at random for each pair; 1 where nothing is."""
        ...

    @property
    def seed_used(self) -> int | None:
        """The seed, or None where nothing is drawn."""
        ...

    def words(self) -> str:
        """Returns where values came from, as a sentence."""
        ...

    def applied(self, tokenized: Sequence[TokenizedPair]) -> tuple[TokenizedPair, ...]:
        """Returns the pairs with their corrupted runs as they will be, one behind the other for each draw."""
        ...


class _Still:
    """A corruption that draws nothing at random."""

    @property
    def draws(self) -> int:
        return 1

    @property
    def seed_used(self) -> int | None:
        return None


@dataclass(frozen=True)
class Counterfactual(_Still):
    """Values come from the other prompt of the pair: what None means."""

    kind = "counterfactual"
    ablates = False

    def words(self) -> str:
        """Returns where values came from, as a sentence."""
        return "Values came from the other prompt of the same pair (counterfactual)."

    def applied(self, tokenized: Sequence[TokenizedPair]) -> tuple[TokenizedPair, ...]:
        """Returns the pairs as they are."""
        return tuple(tokenized)


class _Ablation(_Still):
    """A corruption that replaces activations in the clean run, wherever a pair has them."""

    ablates = True

    def applied(self, tokenized: Sequence[TokenizedPair]) -> tuple[TokenizedPair, ...]:
        """Returns the pairs, changed at every position, one behind the other for each draw."""
        return tuple(_wholly_altered(one) for one in tokenized for _ in range(self.draws))


@dataclass(frozen=True)
class Zero(_Ablation):
    """Zero ablation: the site is set to 0 in the clean run. Patterns lose their weight; nothing is renormalised."""

    kind = "zero"

    def words(self) -> str:
        """Returns where values came from, as a sentence."""
        return "Zero ablation: the site was set to 0 in the clean run."


@dataclass(frozen=True)
class Mean(_Ablation):
    """Mean ablation: the site is set to its mean over a dataset, in the clean run.

    Attributes:
        dataset: prompts: `Pairs`, a list of texts or a DataFrame's column; None for the pairs that are patched.
        per_position: at each position the mean of the prompts that have it, counted from the first token; or one mean
            over all positions of all prompts.
        run: which prompts of a dataset of pairs, "clean" or "corrupted".

    Raises:
        PlanError: a dataset that holds no prompts, or an unknown run.
    """

    kind = "mean"
    dataset: Any = None
    _: KW_ONLY
    per_position: bool = True
    run: str = "clean"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dataset", _checked(self.dataset, self.run, "Mean"))

    def words(self) -> str:
        """Returns where values came from, as a sentence."""
        which = "at the same position" if self.per_position else "over all positions"
        of = _dataset_words(self.dataset, self.run)
        return f"Mean ablation: the site was set, in the clean run, to its mean {which} over {of}."


@dataclass(frozen=True)
class Resample(_Ablation):
    """Resample ablation: the site takes its value on another prompt of a dataset, drawn at random.

    All sites of one draw take their values from the same prompt, which has as many tokens as the clean prompt.

    Attributes:
        dataset: prompts: `Pairs`, a list of texts or a DataFrame's column; None for the pairs that are patched.
        k: draws for each pair, without replacement where there are enough; values are means over them.
        seed: of the draws.
        run: which prompts of a dataset of pairs, "clean" or "corrupted".

    Raises:
        PlanError: a dataset that holds no prompts, fewer than one draw, or an unknown run.
    """

    kind = "resample"
    dataset: Any = None
    k: int = 1
    _: KW_ONLY
    seed: int = 0
    run: str = "clean"

    def __post_init__(self) -> None:
        _at_least_one("k", self.k, "Resample")
        object.__setattr__(self, "dataset", _checked(self.dataset, self.run, "Resample"))

    @property
    def draws(self) -> int:
        """Draws for each pair."""
        return self.k

    @property
    def seed_used(self) -> int | None:
        """The seed of the draws."""
        return self.seed

    def words(self) -> str:
        """Returns where values came from, as a sentence."""
        return (
            f"Resample ablation: the site took, in the clean run, its value on another prompt drawn from "
            f"{_dataset_words(self.dataset, self.run)}; {_times(self.k)} for each pair."
        )


@dataclass(frozen=True)
class Noise:
    """Noise corruption: the corrupted run is the clean prompt with Gaussian noise on some token embeddings.

    Its standard deviation is `scale` times that of the embeddings of the tokens at those places, over all pairs and
    dimensions. The noise of pair i in draw j comes from `numpy.random.default_rng([seed, i, j])`.

    Attributes:
        at: labels that every pair has, or positions in the clean prompt; one or several.
        scale: standard deviations; 3 in the source.
        n: draws for each pair; values are means over them.
        seed: of the noise.

    Raises:
        PlanError: no place named, a negative scale, or fewer than one draw.

    Source: Meng et al. 2022, Locating and Editing Factual Associations in GPT, § 2.1.
    """

    kind = "noise"
    ablates = False
    at: str | int | Sequence[str | int]
    scale: float = 3.0
    n: int = 10
    _: KW_ONLY
    seed: int = 0

    def __post_init__(self) -> None:
        places = (self.at,) if isinstance(self.at, (str, int)) else tuple(self.at)
        if not places or not all(isinstance(one, (str, int)) and not isinstance(one, bool) for one in places):
            raise PlanError("noise needs a place.", where="Noise", seen=f"at={self.at!r}", fix='nbp.Noise("subject")')
        if not self.scale >= 0:
            raise PlanError("scale is not negative.", where="Noise", seen=f"scale={self.scale!r}", fix="scale=3.0")
        _at_least_one("n", self.n, "Noise")
        object.__setattr__(self, "at", places)

    @property
    def places(self) -> tuple[str | int, ...]:
        """The labels and positions, as a tuple."""
        return (self.at,) if isinstance(self.at, (str, int)) else tuple(self.at)

    @property
    def draws(self) -> int:
        """Draws for each pair."""
        return self.n

    @property
    def seed_used(self) -> int | None:
        """The seed of the noise."""
        return self.seed

    def words(self) -> str:
        """Returns where values came from, as a sentence."""
        places = ", ".join(str(one) for one in self.places)
        return (
            f"The corrupted run is the clean prompt with Gaussian noise on the token embeddings at {places} "
            f"({self.scale:g} × their standard deviation; {_times(self.n)} for each pair); values came from the other "
            "run."
        )

    def applied(self, tokenized: Sequence[TokenizedPair]) -> tuple[TokenizedPair, ...]:
        """Returns the pairs with the clean prompt in both runs, changed where the noise is, one for each draw.

        Raises:
            PlanError: a pair that has no such place.
        """
        noised = [
            replace(
                one,
                pair=replace(one.pair, corrupted=one.pair.clean, align=None),
                corrupted_ids=one.clean_ids,
                corrupted_tokens=one.clean_tokens,
                aligned=_each_its_own(one),
                altered=self._positions(one, number, len(tokenized)),
                warnings=_of_clean(one),
            )
            for number, one in enumerate(tokenized)
        ]
        return tuple(one for one in noised for _ in range(self.n))

    def _positions(self, one: TokenizedPair, number: int, pairs: int) -> tuple[int, ...]:
        found = {place: one.places(place) for place in self.places}
        for place, positions in found.items():
            if not positions:
                raise PlanError(
                    f"no place {place!r} to put noise on.",
                    where=f"pair {number + 1} of {pairs}",
                    seen=f"labels {', '.join(one.labels) or 'none'}; {len(one.clean_ids)} tokens",
                    fix=f"positions 0–{one.clean_end}"
                    if isinstance(place, int)
                    else f'PromptPair(…, labels={{"{place}": "text in the clean prompt"}})',
                )
        return tuple(sorted({position for positions in found.values() for position in positions}))


AnyCorruption: TypeAlias = Counterfactual | Zero | Mean | Resample | Noise


def as_corruption(corruption: object) -> AnyCorruption:
    """Returns a corruption; None is the other prompt of the pair.

    Raises:
        PlanError: something else.
    """
    if corruption is None:
        return Counterfactual()
    if isinstance(corruption, (Counterfactual, Zero, Mean, Resample, Noise)):
        return corruption
    fix = 'nbp.Zero(), nbp.Mean(pairs), nbp.Resample(pairs, k=8), nbp.Noise("subject"), or None for the other prompt'
    raise PlanError("not a corruption.", where="corruption", seen=f"{corruption!r:.80}", fix=fix)


def prompts_of(dataset: Any, run: str) -> tuple[str, ...]:
    """Returns the prompts of a dataset as `Mean` and `Resample` keep it; not of None."""
    return tuple(one if isinstance(one, str) else getattr(one, run) for one in dataset)


def _checked(dataset: Any, run: str, where: str) -> Any:
    """Returns a dataset as a tuple of texts or of pairs; None stays."""
    if run not in RUNS:
        raise PlanError(f"no run {run!r}.", where=where, fix=suggest(run, RUNS))
    if dataset is None:
        return None
    if isinstance(dataset, PromptPair):
        return tuple(as_pairs(dataset))
    fix = "Pairs, a list of texts, or a DataFrame's column: frame['prompt']"
    if isinstance(dataset, str) or hasattr(dataset, "columns") or not hasattr(dataset, "__iter__"):
        seen = f"{type(dataset).__name__}"
        raise PlanError("a dataset is several prompts.", where=f"{where}(dataset)", seen=seen, fix=fix)
    found = tuple(dataset)
    odd = next((one for one in found if not isinstance(one, (str, PromptPair))), None)
    if odd is not None or not found:
        seen = "nothing in it" if not found else f"{odd!r:.80} ({type(odd).__name__})"
        raise PlanError("a dataset holds prompts.", where=f"{where}(dataset)", seen=seen, fix=fix)
    return found


def _at_least_one(name: str, value: object, where: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PlanError(f"{name} is a number of draws.", where=where, seen=f"{name}={value!r}", fix=f"{name}=8")


def _dataset_words(dataset: Any, run: str) -> str:
    if dataset is None:
        return f"the {run} prompts of all pairs"
    prompts = f"{len(dataset)} prompt{'s' if len(dataset) != 1 else ''} of a dataset"
    return f"{prompts} ({run} ones of pairs)" if any(isinstance(one, PromptPair) for one in dataset) else prompts


def _times(count: int) -> str:
    return "one draw" if count == 1 else f"the mean of {count} draws"


def _each_its_own(one: TokenizedPair) -> tuple[tuple[int, int], ...]:
    return tuple((place, place) for place in range(len(one.clean_ids)))


def _wholly_altered(one: TokenizedPair) -> TokenizedPair:
    altered = tuple(range(len(one.clean_ids)))
    return replace(one, aligned=_each_its_own(one), altered=altered, warnings=_of_clean(one))


def _of_clean(one: TokenizedPair) -> tuple[str, ...]:
    """Returns what is odd about the clean prompt alone."""
    return tuple(warning for warning in one.warnings if warning.startswith("The clean prompt"))


SOURCES: dict[str, AnyCorruption] = {
    "counterfactual": Counterfactual(),
    "zero": Zero(),
    "mean": Mean(),
    "resample": Resample(k=8),
}
"""The corruptions that need no more than their name: what cells and the widget offer."""


def corruption_named(name: str) -> AnyCorruption:
    """Returns the corruption of a name, over the pairs that are patched.

    Raises:
        PlanError: no such name.
    """
    if name not in SOURCES:
        raise PlanError(f"no corruption {name!r}.", where="corruption", fix=suggest(name, SOURCES))
    return SOURCES[name]
