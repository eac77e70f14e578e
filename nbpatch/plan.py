"""A sweep as a value: which cells there are, which of them can act, and in which waves they run.

A cell is one combination of the swept axes, in one direction. Planning needs prompts and a `ModelShape`, no model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from nbpatch.corruption import AnyCorruption, Counterfactual, Mean
from nbpatch.errors import PlanError, suggest
from nbpatch.metrics import Metric, check_wrong
from nbpatch.prompts import TokenizedPair
from nbpatch.result import STATES
from nbpatch.sites import COMPONENTS, ModelShape, Site, parse_over

N = TypeVar("N", bound=np.generic)

COUNTERFACTUAL = Counterfactual()

Direction = Literal["denoising", "noising"]

DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")

MEASURED, EXACT, NOT_RUN, NO_POSITION, FAILED, NO_PATH = range(len(STATES))


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep.

    Attributes:
        direction: index into the plan's directions.
        index: index along each swept axis, in the order of `Plan.over`.
        pairs: the pairs for which it must be run; for the others its value is known without running.
    """

    direction: int
    index: tuple[int, ...]
    pairs: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """What a plan will take.

    Attributes:
        waves: how many times the layers are walked.
        flops: floating-point operations: base runs, and all that patches can change and the answer can see.
        peak: bytes held at once beside the weights.
        seconds: estimated on this machine, from a calibration on this model.
    """

    waves: int
    flops: float
    peak: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A sweep before it is run.

    Attributes:
        tokenized: the pairs, as tokens.
        over: the swept axes.
        directions: one or both directions, in the order of the result.
        metrics: what is measured on every run.
        states: int8 [direction, *over, pair], indices into `result.STATES`: "not run" where a run is planned.
        corruption: what the corrupted runs are; where it draws, each pair is there once for each draw.
        cost: what it will take on a model; None for a plan made without one.
    """

    shape: ModelShape
    tokenized: tuple[TokenizedPair, ...]
    component: str
    over: tuple[str, ...]
    directions: tuple[Direction, ...]
    metrics: tuple[Metric, ...]
    states: NDArray[np.int8]
    corruption: AnyCorruption = COUNTERFACTUAL
    cost: Cost | None = None

    @property
    def directed(self) -> bool:
        """Whether the sweep could have been run in the other direction."""
        return True

    @property
    def both(self) -> bool:
        """Whether the sweep is run in both directions."""
        return len(self.directions) == len(DIRECTIONS)

    @property
    def components(self) -> tuple[str, ...]:
        """All components that are patched."""
        return (self.component,)

    @property
    def n_pairs(self) -> int:
        """How many pairs there are, draws not counted."""
        return len(self.tokenized) // self.corruption.draws

    def made(self) -> dict[str, object]:
        """Returns what a result's provenance says of the method and its sites."""
        label = COMPONENTS[self.component].label
        return {"method": "patch", "component": self.component, "component_label": label}

    def axis_labels(self, axis: str) -> Sequence[object] | None:
        """Returns the labels of an axis; None where they are its numbers."""
        return self.shape.head_labels(self.component) if axis == "head" else None

    @property
    def n_cells(self) -> int:
        """How many cells there are, over all directions; pairs are not counted."""
        return int(np.prod(self.states.shape[:-1]))

    @property
    def n_runs(self) -> int:
        """How many (cell, pair) runs are planned."""
        return int((self.states == NOT_RUN).sum())

    def cells(self) -> Iterator[Cell]:
        """Yields the cells that must be run for at least one pair, in the result's order."""
        planned = self.states == NOT_RUN
        for where in np.argwhere(planned.any(axis=-1)):
            direction, *index = (int(i) for i in where)
            pairs = np.flatnonzero(planned[tuple(where)])
            yield Cell(direction, tuple(index), tuple(int(pair) for pair in pairs))

    def waves(self, max_tokens: int) -> Iterator[list[Cell]]:
        """Yields the cells in groups of at most `max_tokens` prompt tokens; one cell at the least."""
        wave: list[Cell] = []
        tokens = 0
        for cell in self.cells():
            cost = sum(self.base_length(cell.direction, pair) for pair in cell.pairs)
            if wave and tokens + cost > max_tokens:
                yield wave
                wave, tokens = [], 0
            wave.append(cell)
            tokens += cost
        if wave:
            yield wave

    def base_length(self, direction: int, pair: int) -> int:
        """Returns the number of tokens of the pair's prompt that is being changed."""
        one = self.tokenized[pair]
        return len(one.corrupted_ids if self.directions[direction] == "denoising" else one.clean_ids)

    def site(self, cell: Cell) -> Site:
        """Returns the cell's site; positions are those of the clean prompt."""
        named = dict(zip(self.over, cell.index, strict=True))
        pos = named.get("dest") if self.component in PATTERNS else named.get("pos")
        unit = named.get("head", named.get("neuron"))
        return Site(self.component, named.get("layer"), unit, pos, named.get("src"))

    def describe(self) -> str:
        """Returns the plan in words: cells, what is run, what is known without running, and why."""
        counts = {name: int((self.states == code).sum()) for code, name in enumerate(STATES)}
        draws = self.corruption.draws
        pairs = f"{self.n_pairs} pair{'s' if self.n_pairs != 1 else ''}{f' × {draws} draws' if draws > 1 else ''}"
        lines = [
            f"{self.component} over {' '.join(self.over)}, {' and '.join(self.directions)}: "
            f"{self.n_cells} cells × {pairs}.",
            f"{counts['not run']} runs.",
        ]
        if counts["exact"]:
            lines.append(f"{counts['exact']} exactly the base value by construction, not run.")
        if counts["no position"]:
            lines.append(f"{counts['no position']} without a position in that pair.")
        if self.cost is not None:
            waves = f"{self.cost.waves} wave{'s' if self.cost.waves != 1 else ''}"
            lines.append(
                f"{waves}, {self.cost.flops / 1e9:.3g} GFLOP, {self.cost.peak / 2**20:.3g} MiB, "
                f"about {self.cost.seconds:.2g} s."
            )
        return "\n".join(lines)


def make_plan(
    shape: ModelShape,
    tokenized: Sequence[TokenizedPair],
    component: str,
    over: str | Sequence[str] | None = None,
    *,
    direction: str | None = None,
    metrics: Sequence[Metric],
    corruption: AnyCorruption | None = None,
) -> Plan:
    """Returns the plan of a sweep.

    Args:
        component: one of `sites.COMPONENTS`.
        over: the swept axes; an axis not named is patched whole.
        direction: "denoising", "noising" or "both"; None for the usual one of the corruption.
        corruption: None for the other prompt of the pair.

    Raises:
        SiteError: an unknown component or axis.
        PlanError: an unknown direction, or one that the corruption does not have; no pairs; patterns of prompts of
            unequal length.
        MetricError: a metric that needs a wrong answer where a pair has none.
    """
    axes = parse_over(component, over)
    corruption = corruption or COUNTERFACTUAL
    directions = directions_of(direction, corruption)
    check_wrong(metrics, {i: one.wrong_ids for i, one in enumerate(tokenized)})
    if not tokenized:
        raise PlanError(
            "no prompt pairs.", where="pairs", fix="nbp.PromptPair(clean=…, corrupted=…, answer=…, wrong=…)"
        )
    refuse_patterns([component], tokenized, corruption)
    tokenized = corruption.applied(tokenized)
    sizes = axis_sizes(shape, tokenized, component)
    states = np.full((len(directions), *(sizes[axis] for axis in axes), len(tokenized)), NOT_RUN, np.int8)
    for number, one in enumerate(tokenized):
        states[..., number] = _pair_states(shape, one, component, axes, sizes)[None]
    return Plan(shape, tokenized, component, axes, directions, tuple(metrics), states, corruption)


def axis_sizes(shape: ModelShape, tokenized: Sequence[TokenizedPair], component: str) -> dict[str, int]:
    """Returns the length of each axis a sweep of `component` may use; positions run to the longest clean prompt."""
    positions = max(len(one.clean_ids) for one in tokenized)
    units = shape.heads_of(component)
    sizes = {"layer": shape.n_layers, "head": units, "neuron": units}
    return {**sizes, "pos": positions, "dest": positions, "src": positions}


def refuse_unequal(tokenized: Sequence[TokenizedPair], what: str, fix: str) -> None:
    """Refuses pairs whose positions do not meet.

    Args:
        what: what needs them to, and why; fix: what to type instead.

    Raises:
        PlanError: prompts of unequal length, or alignment of positions with others.
    """
    for number, one in enumerate(tokenized):
        if one.aligned != tuple((i, i) for i in range(len(one.corrupted_ids))):
            raise PlanError(
                what,
                where=f"pair {number + 1} of {len(tokenized)}",
                seen=f"{len(one.clean_ids)} and {len(one.corrupted_ids)} tokens",
                fix=fix,
            )


PATTERNS = ("pattern", "scores")
"""Components with a destination and a source."""


def refuse_patterns(components: Sequence[str], tokenized: Sequence[TokenizedPair], corruption: AnyCorruption) -> None:
    """Refuses patterns whose values would have no meaning.

    Raises:
        PlanError: patterns of prompts of unequal length, or their mean over positions.
    """
    if not {*components} & {*PATTERNS}:
        return
    if not corruption.ablates:
        _refuse_unequal_patterns(tokenized)
    if isinstance(corruption, Mean) and not corruption.per_position:
        raise PlanError(
            "a pattern has no mean over positions: each position looks at other ones.",
            where="corruption",
            seen="Mean(per_position=False)",
            fix="nbp.Mean(dataset), the mean at each position",
        )


def directions_of(direction: str | None, corruption: AnyCorruption) -> tuple[Direction, ...]:
    """Returns the directions of a sweep; None is noising for an ablation, else denoising.

    Raises:
        PlanError: an unknown direction, or values of an ablation that should restore something.
    """
    if direction is None:
        return ("noising",) if corruption.ablates else ("denoising",)
    if corruption.ablates and direction in ("denoising", "both"):
        raise PlanError(
            f"values of an ablation ({corruption.kind}) go into the clean run: they restore nothing.",
            where="direction",
            seen=repr(direction),
            fix='direction="noising", or leave it out',
        )
    if direction == "both":
        return DIRECTIONS
    if direction not in DIRECTIONS:
        options = [*DIRECTIONS, "both"]
        raise PlanError(f"no direction {direction!r}.", where="direction", fix=suggest(direction, options))
    return (direction,)


def _refuse_unequal_patterns(tokenized: Sequence[TokenizedPair]) -> None:
    for number, one in enumerate(tokenized):
        if len(one.clean_ids) != len(one.corrupted_ids):
            raise PlanError(
                "patterns cannot move between prompts of unequal length: rows would not add up to 1.",
                where=f"pair {number + 1} of {len(tokenized)}",
                seen=f"{len(one.clean_ids)} and {len(one.corrupted_ids)} tokens",
                fix='"z", "q" or "k" instead of "pattern": the pattern is then recomputed',
            )


def _pair_states(
    shape: ModelShape, one: TokenizedPair, component: str, axes: tuple[str, ...], sizes: dict[str, int]
) -> NDArray[np.int8]:
    """Returns the states [*axes] of one pair: which positions it has, and which cells cannot change anything."""
    exists, acts = _grids(shape, one, component, sizes)
    whole = tuple(i for i, axis in enumerate(COMPONENTS[component].axes) if axis not in axes)
    any_exists, any_acts = exists.any(axis=whole), (exists & acts).any(axis=whole)
    return np.where(any_exists, np.where(any_acts, NOT_RUN, EXACT), NO_POSITION).astype(np.int8)


def grids(plan: Plan, one: TokenizedPair, component: str = "") -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns where a pair has a place and where a patch there can change anything, over all axes of a component."""
    component = component or plan.component
    return _grids(plan.shape, one, component, axis_sizes(plan.shape, plan.tokenized, component))


def _grids(
    shape: ModelShape, one: TokenizedPair, component: str, sizes: dict[str, int]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns, over all axes of the component, where the pair has a position and where a patch can change anything.

    A patch cannot act where source and base hold the same value by construction (before the first differing token
    under causal attention; a layer-0 input whose token is the same), or where nothing reads it (after the last
    attention only the answer position is read; a causal pattern has no weight above its diagonal).
    """
    axes = COMPONENTS[component].axes
    read_axis = "dest" if component in PATTERNS else "pos"
    present = np.isin(np.arange(sizes["pos"]), [clean for clean, _ in one.aligned])
    position = _along(axes, read_axis, sizes)
    layer = _along(axes, "layer", sizes) if "layer" in axes else np.zeros([1] * len(axes), np.int64)
    whole = np.ones([sizes[axis] for axis in axes], np.bool_)
    exists = whole & _spread(present, axes, read_axis)
    if one.first_difference is None:
        return exists, ~whole
    acts = whole & (position >= one.first_difference) if shape.causal else whole
    if component == "embed":
        return exists, acts & _spread(_differs(one, sizes["pos"]), axes, "pos")
    if component in ("resid_pre", "q", "k", "v"):
        acts = acts & ((layer > 0) | _spread(_differs(one, sizes["pos"]), axes, "pos"))
    if component not in ("resid_pre", "k", "v"):
        acts = acts & ((layer < shape.n_layers - 1) | (position == one.clean_end))
    if component in PATTERNS:
        exists = exists & _spread(present, axes, "src")
        acts = acts & (_along(axes, "src", sizes) <= position) if shape.causal else acts
    return exists, acts


def _differs(one: TokenizedPair, positions: int) -> NDArray[np.bool_]:
    """Returns, per clean position, whether the token or its place differs between the prompts."""
    differs = np.isin(np.arange(positions), one.differs)
    for clean, corrupted in one.aligned:
        differs[clean] |= clean != corrupted
    return differs


def _along(axes: tuple[str, ...], axis: str, sizes: dict[str, int]) -> NDArray[np.int64]:
    """Returns 0, 1, 2 … along `axis`, of length 1 along the others."""
    return _spread(np.arange(sizes[axis]), axes, axis)


def _spread(values: NDArray[N], axes: tuple[str, ...], axis: str) -> NDArray[N]:
    """Returns `values` laid along `axis`, of length 1 along the other axes."""
    return values.reshape([-1 if name == axis else 1 for name in axes])
