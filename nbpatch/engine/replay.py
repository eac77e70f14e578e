"""The exact path for every model: many patched runs as rows of whole forwards, patched through hooks.

Each row is one (cell, pair). A layer's hook writes the source run's values into its rows in place: the Bridge's
`hook_resid_mid` is the tensor that the residual connection holds on to, and a new tensor would miss that.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from nbpatch.engine.base import BASE, SOURCE, BaseRuns, Group, trace_runs
from nbpatch.engine.stopping import never
from nbpatch.engine.supply import noising
from nbpatch.engine.table import Filled
from nbpatch.errors import PatchNotApplied
from nbpatch.joint import SAME, WHOLE, JointPlan, Write
from nbpatch.model import Hook, Model
from nbpatch.plan import PATTERNS, Cell, Plan
from nbpatch.sites import COMPONENTS


class Replay:
    """The engine for every model a TransformerBridge can hook.

    Args:
        reason: why the faster engine did not take the plans.
        max_tokens: prompt tokens of one forward.
    """

    name = "replay"
    broken = ""

    def __init__(self, plans: Sequence[Plan], model: Model, *, reason: str, max_tokens: int) -> None:
        self.plans = plans
        self.model = model
        self.reason = reason
        self.max_tokens = max_tokens
        self.halt: Callable[[], bool] = never
        self.forwards = 0
        self.runs: list[BaseRuns] = []

    def trace(self, *, alone: bool = False) -> BaseRuns:
        """Runs every prompt once; patched runs are never among them."""
        self.runs = [trace_runs(plan, self.model, max_tokens=self.max_tokens) for plan in self.plans]
        return self.runs[0]

    def waves(self) -> Iterator[Callable[[], Iterator[tuple[int, Filled]]]]:
        """Yields what makes the runs of one wave: pairs of a plan's number and its runs."""
        for number, plan in enumerate(self.plans):
            for wave in plan.waves(self.max_tokens):
                yield lambda number=number, wave=wave: self._run(number, wave)

    def _run(self, number: int, wave: Sequence[Cell]) -> Iterator[tuple[int, Filled]]:
        plan = self.plans[number]
        done = list(replay(wave, plan, self.runs[number], self.model))
        self.forwards += len(done)
        cells = np.concatenate([flat(plan, wave, batch) for batch, _ in done])
        yield number, Filled(cells, torch.cat([logits for _, logits in done]))

    def spent(self) -> dict[str, Any]:
        """Returns what the run took, for the provenance."""
        return {"forwards": self.forwards, "reason": self.reason}


def flat(plan: Plan, wave: Sequence[Cell], batch: "Batch") -> NDArray[np.int64]:
    """Returns where each row of a batch belongs in the plan's table, flat over (direction, *over, pair)."""
    index = np.array([(batch.direction, *wave[cell].index) for cell in batch.cells], np.int64).T
    return np.ravel_multi_index((*index, batch.pairs), plan.states.shape)


@dataclass(frozen=True)
class Batch:
    """Rows of one forward: the same direction, prompts of the same length.

    Attributes:
        cells: each row's cell, an index into the wave.
        pairs: each row's pair, its number in the plan.
    """

    direction: int
    group: Group
    cells: NDArray[np.int64]
    pairs: NDArray[np.int64]


def replay(
    wave: Sequence[Cell], plan: Plan, runs: BaseRuns, model: Model, *, watch: Sequence[Hook] = ()
) -> Iterator[tuple[Batch, Float[Tensor, "row d_vocab"]]]:
    """Yields the answer logits of every run of a wave, batch by batch.

    Args:
        watch: hooks that look at the patched runs and leave them as they are.

    Raises:
        PatchNotApplied: a patch did not fire exactly once, or not with the planned shape.
    """
    for batch in _batches(wave, plan, runs):
        base = BASE[plan.directions[batch.direction]]
        places = batch.group.places(batch.pairs)
        patches = _patches(wave, plan, batch)
        writers = [Writer(plan, model, place, batch, spots) for place, spots in patches.items()]
        ids = batch.group.ids[base][torch.from_numpy(places)]
        own = runs.noise if base == "corrupted" else {}
        noised = {row: own[int(pair)] for row, pair in enumerate(batch.pairs) if own}
        with model.lock, noising(model.bridge.original_model, noised):
            logits = model.answer_logits(ids, [*(writer.hook() for writer in writers), *watch])
        for writer in writers:
            writer.check()
        yield batch, logits.float().cpu()


def _batches(wave: Sequence[Cell], plan: Plan, runs: BaseRuns) -> Iterator[Batch]:
    for direction in range(len(plan.directions)):
        for group in runs.groups:
            members = set(group.pairs)
            rows = [
                (number, pair)
                for number, cell in enumerate(wave)
                if cell.direction == direction
                for pair in cell.pairs
                if pair in members
            ]
            if rows:
                cells, pairs = np.array(rows, np.int64).T
                yield Batch(direction, group, cells, pairs)


@dataclass(frozen=True)
class Spots:
    """Where one hook writes, and from where it reads: index arrays that broadcast against each other.

    Attributes:
        run, layer: the base run and the layer the values are from.
    """

    target: tuple[NDArray[np.int64], ...]
    source: tuple[NDArray[np.int64], ...]
    run: str
    layer: int


def _patches(wave: Sequence[Cell], plan: Plan, batch: Batch) -> dict[tuple[str, int], list[Spots]]:
    """Returns, per component and layer that is patched in any row, what is written there."""
    if not isinstance(plan, JointPlan):
        return _swept(wave, plan, batch)
    patches: dict[tuple[str, int], list[Spots]] = {}
    for row, (cell, pair) in enumerate(zip(batch.cells, batch.pairs, strict=True)):
        for write in plan.writes(wave[cell].index, int(pair)):
            spots = _written(plan, batch, row, write)
            if spots is not None:
                patches.setdefault((write.component, write.layer), []).append(spots)
    return patches


def _written(plan: Plan, batch: Batch, row: int, write: Write) -> Spots | None:
    """Returns one write of one row; None where the pair has no such position."""
    direction = plan.directions[batch.direction]
    run = BASE[direction] if write.own else SOURCE[direction]
    place = int(batch.group.places(batch.pairs[row : row + 1])[0])
    clean, corrupted = batch.group.aligned[place].T
    sides = {"clean": clean, "corrupted": corrupted}
    at = slice(None) if write.pos == WHOLE else np.flatnonzero(clean == write.pos)
    here = sides[BASE[direction]][at]
    origin = at if write.from_pos == SAME else np.flatnonzero(clean == write.from_pos)
    there = sides[run][origin]
    if not len(here) or not len(there):
        return None
    layer = write.layer if write.from_layer == SAME else write.from_layer
    other = write if write.from_unit == SAME else replace(write, unit=write.from_unit)
    target, source = _at(plan, write, row, here, sides), _at(plan, other, place, there, sides)
    return Spots(target, source, run, layer)


def _at(
    plan: Plan, write: Write, row: int, pos: NDArray[np.int64], sides: Mapping[str, NDArray[np.int64]]
) -> tuple[NDArray[np.int64], ...]:
    """Returns the index of a write in a hook tensor."""
    rows = np.full(1, row)
    if write.component in PATTERNS:
        heads = np.arange(plan.shape.n_heads) if write.unit == WHOLE else np.array([write.unit])
        src = sides["clean"] if write.src == WHOLE else np.array([write.src])
        return rows[:, None, None], heads[:, None, None], pos[:, None], src
    return (rows, pos) if write.unit == WHOLE else (rows, pos, np.full(1, write.unit))


def _swept(wave: Sequence[Cell], plan: Plan, batch: Batch) -> dict[tuple[str, int], list[Spots]]:
    """Returns the patches of a sweep by layer; an axis that is not swept is patched whole, positions are aligned."""
    cells = [wave[cell] for cell in batch.cells]
    places = batch.group.places(batch.pairs)
    direction = plan.directions[batch.direction]
    index = np.array([cell.index for cell in cells], np.int64).reshape(len(cells), -1)
    swept = {axis: index[:, column] for column, axis in enumerate(plan.over)}
    sides = (1, 0) if direction == "denoising" else (0, 1)
    patches: dict[tuple[str, int], list[Spots]] = {}
    for layer in _layers(plan, swept):
        rows = np.flatnonzero(swept["layer"] == layer) if "layer" in swept else np.arange(len(cells))
        chosen = {axis: values[rows] for axis, values in swept.items()}
        target, source = _indices(plan, batch.group, places[rows], chosen, sides)
        fill = (1,) * (target[0].ndim - 1)
        one = Spots(
            (rows.reshape(-1, *fill), *target),
            (places[rows].reshape(-1, *fill), *source),
            SOURCE[direction],
            layer,
        )
        patches[plan.component, layer] = [one]
    return patches


def _layers(plan: Plan, swept: Mapping[str, NDArray[np.int64]]) -> list[int]:
    if "layer" in swept:
        return [int(layer) for layer in np.unique(swept["layer"])]
    return list(range(plan.shape.n_layers if "layer" in COMPONENTS[plan.component].axes else 1))


def _indices(
    plan: Plan,
    group: Group,
    places: NDArray[np.int64],
    swept: dict[str, NDArray[np.int64]],
    sides: tuple[int, int],
) -> tuple[tuple[NDArray[np.int64], ...], tuple[NDArray[np.int64], ...]]:
    """Returns index arrays behind the row axis, in the order of the hook tensor's axes, for base and source."""
    every = np.arange(plan.shape.heads_of(plan.component))[None]
    heads = swept["head"][:, None] if "head" in swept else np.repeat(every, len(places), axis=0)
    if plan.component in PATTERNS:
        places_of = [_positions(group, places, swept.get(axis), sides) for axis in ("dest", "src")]
        return _pattern_indices(heads, places_of[0][0], places_of[1][0]), _pattern_indices(
            heads, places_of[0][1], places_of[1][1]
        )
    base, source = _positions(group, places, swept.get("pos"), sides)
    if "neuron" in swept:
        heads = swept["neuron"][:, None]
    elif not COMPONENTS[plan.component].has_heads:
        return (base,), (source,)
    return (base[:, :, None], heads[:, None, :]), (source[:, :, None], heads[:, None, :])


def _positions(
    group: Group, places: NDArray[np.int64], chosen: NDArray[np.int64] | None, sides: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns base and source positions [row spot]: those aligned with the chosen clean position, or all aligned."""
    aligned = group.aligned[places]
    if chosen is not None:
        hit = (aligned[:, :, 0] == chosen[:, None]).argmax(axis=1)
        aligned = aligned[np.arange(len(places)), hit][:, None]
    return aligned[:, :, sides[0]], aligned[:, :, sides[1]]


def _pattern_indices(
    heads: NDArray[np.int64], dest: NDArray[np.int64], src: NDArray[np.int64]
) -> tuple[NDArray[np.int64], ...]:
    return heads[:, :, None, None], dest[:, None, :, None], src[:, None, None, :]


class Writer:
    """One layer's hook: writes source values into the rows of a batch, and counts how often it fired."""

    def __init__(self, plan: Plan, model: Model, place: tuple[str, int], batch: Batch, spots: Sequence[Spots]) -> None:
        component, layer = place
        self.name = model.hook_name(component, layer)
        self.site = f"{component}[{layer}]"
        self.rows = len(batch.cells)
        self.fired = 0
        self.written = [self._read(batch, component, one) for one in spots]
        source = batch.group.sources[spots[0].run, component, spots[0].layer]
        self.shape = (self.rows, *source.shape[1:])
        if component not in PATTERNS:
            base = batch.group.ids[BASE[plan.directions[batch.direction]]]
            self.shape = (self.rows, base.shape[1], *source.shape[2:])

    def _read(self, batch: Batch, component: str, spots: Spots) -> tuple[tuple[Tensor, ...], Tensor]:
        """Returns an index into the hook's tensor, and what is written there."""
        source = batch.group.sources[spots.run, component, spots.layer]
        target, place = (
            tuple(torch.from_numpy(np.ascontiguousarray(index)).to(source.device) for index in one)
            for one in (spots.target, spots.source)
        )
        return target, source[place]

    def hook(self) -> Hook:
        """Returns the hook point's name and the function to hang there.

        Raises:
            PatchNotApplied: the model has no such hook point.
        """
        if self.name is None:
            raise PatchNotApplied(f"{self.site} has no hook point.", fix="model.describe()")
        return self.name, self.write

    def write(self, value: Tensor, hook: Any) -> None:
        """Writes the source values in place.

        Raises:
            PatchNotApplied: the tensor at the hook point does not have the planned shape.
        """
        self.fired += 1
        if tuple(value.shape) != self.shape:
            raise PatchNotApplied(
                f"the patch at {self.site} does not fit.",
                where=str(self.name),
                seen=f"shape {list(value.shape)}, planned {list(self.shape)}",
                fix="model.describe() shows which components work in this model",
            )
        for target, values in self.written:
            value[target] = values

    def check(self) -> None:
        """Raises PatchNotApplied unless the hook fired exactly once."""
        if self.fired != 1:
            raise PatchNotApplied(
                f"the patch at {self.site} fired {self.fired} times, planned 1.",
                where=str(self.name),
                seen=f"{self.rows} runs would have been reported as patched",
                fix="model.describe() shows which components work in this model",
            )
