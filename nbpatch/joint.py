"""Sweeps whose cells write at several places in one run: windows of layers, labels, named sets of sites.

A cell is a set of `Write`s. Values may come from another layer or position of the source run (`from_`), or be the base
run's own, which freezes a part that would else answer to the patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nbpatch.corruption import AnyCorruption
from nbpatch.errors import PlanError, SiteError
from nbpatch.metrics import Metric
from nbpatch.plan import EXACT, NO_POSITION, NOT_RUN, PATTERNS, Plan, directions_of, grids, make_plan, refuse_patterns
from nbpatch.prompts import TokenizedPair
from nbpatch.sites import COMPONENTS, ModelShape, Site, acting, check_site, parse_site

WHOLE = -1
"""Stands for "all of that axis"."""

SAME = -1
"""Stands for "the same place" of a value's origin."""

Bools: TypeAlias = NDArray[np.bool_]
Grids: TypeAlias = dict[tuple[str, int], tuple[Bools, Bools]]


@dataclass(frozen=True)
class Write:
    """One place that is written in a run.

    Attributes:
        unit: the head (a key-value head of k and v) or neuron, or WHOLE.
        pos: the clean position, of a pattern the destination, or WHOLE.
        src: the source position of a pattern, or WHOLE.
        from_layer: the layer the value is from, or SAME.
        from_pos: the position the value is from, or SAME.
        from_unit: the head or neuron the value is from, or SAME.
        own: whether the value is the base run's own: the place is frozen.
    """

    component: str
    layer: int
    unit: int = WHOLE
    pos: int = WHOLE
    src: int = WHOLE
    from_layer: int = SAME
    from_pos: int = SAME
    from_unit: int = SAME
    own: bool = False

    @property
    def moved(self) -> bool:
        """Whether the value comes from another position."""
        return self.from_pos not in (SAME, self.pos)


@dataclass(frozen=True)
class JointPlan(Plan):
    """A sweep whose cells write at several places."""

    @property
    def components(self) -> tuple[str, ...]:
        """Returns all components that are written to."""
        return (self.component,)

    @cached_property
    def written(self) -> dict[int, tuple[Write, ...]]:
        """What each run writes to, by its place in the plan's table; directions write to the same places."""
        shape = self.states.shape[1:]
        made: dict[int, tuple[Write, ...]] = {}
        for place in np.flatnonzero((self.states == NOT_RUN).any(axis=0)):
            *cell, pair = (int(i) for i in np.unravel_index(place, shape))
            found = tuple(replace(one, component=acting(one.component)) for one in self.writes(tuple(cell), pair))
            made.update({int(place) + number * self.states[0].size: found for number in range(len(self.directions))})
        return made

    def writes(self, index: tuple[int, ...], pair: int) -> tuple[Write, ...]:
        """Returns where a cell writes in the runs of a pair; positions the pair does not have are left out.

        Args:
            index: along each swept axis.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class WindowPlan(JointPlan):
    """A sweep over windows of layers, over labels, or with all layers at once.

    Attributes:
        window: how many adjacent layers are patched together, centred on the cell's and clipped at the ends.
        labels: the labels of the axis `label`.
    """

    window: int = 1
    labels: tuple[str, ...] = ()

    def axis_labels(self, axis: str) -> Sequence[object] | None:
        """Returns the labels of an axis; None where they are its numbers."""
        return self.labels if axis == "label" else super().axis_labels(axis)

    def made(self) -> dict[str, object]:
        """Returns what a result's provenance says of the method and its sites."""
        return {**super().made(), "window": self.window}

    def writes(self, index: tuple[int, ...], pair: int) -> tuple[Write, ...]:
        """Returns where a cell writes in the runs of a pair."""
        named, one = dict(zip(self.over, index, strict=True)), self.tokenized[pair]
        unit, src = named.get("head", named.get("neuron", WHOLE)), named.get("src", WHOLE)
        places = (named.get("pos", named.get("dest", WHOLE)),)
        if "label" in named:
            places = one.places(self.labels[named["label"]])
        layers = _window(named["layer"], self.window, self.shape.n_layers) if "layer" in named else self._layers
        return tuple(Write(self.component, layer, unit, pos, src) for layer in layers for pos in places)

    @cached_property
    def _layers(self) -> range:
        return range(self.shape.n_layers if "layer" in COMPONENTS[self.component].axes else 1)


@dataclass(frozen=True)
class SitesPlan(JointPlan):
    """Named sets of sites, one cell each, on an axis `site`.

    Attributes:
        sets: per cell its sites, each with the site its value comes from.
        frozen: per cell, sites that keep the base run's value.
    """

    sets: tuple[tuple[tuple[Site, Site], ...], ...] = ()
    frozen: tuple[tuple[Site, ...], ...] = ()

    @property
    def components(self) -> tuple[str, ...]:
        """Returns all components that are written to."""
        every = [site.component for cell in self.sets for site, _ in cell]
        return tuple(dict.fromkeys([*every, *(site.component for cell in self.frozen for site in cell)]))

    def axis_labels(self, axis: str) -> Sequence[object] | None:
        """Returns the labels of the axis: each set of sites as text."""
        return self.names()

    def names(self) -> list[str]:
        """Returns each set of sites as text."""
        return [" + ".join(_named(*one) for one in cell) for cell in self.sets]

    def made(self) -> dict[str, object]:
        """Returns what a result's provenance says of the method and its sites."""
        return {"method": "patch", "component": self.component, "component_label": "sets of sites"}

    def writes(self, index: tuple[int, ...], pair: int) -> tuple[Write, ...]:
        """Returns where a cell writes in the runs of a pair."""
        one, cell = self.tokenized[pair], index[0]
        found = [write for both in self.sets[cell] for write in self._writes(*both, one)]
        held = self.frozen[cell] if self.frozen else ()
        found += [replace(write, own=True) for site in held for write in self._writes(site, site, one)]
        return tuple(found)

    def _writes(self, site: Site, origin: Site, one: TokenizedPair) -> list[Write]:
        """Returns what a site is in one pair; a label of several tokens is written at all of them."""
        here, there = _places(site, one), _places(origin, one)
        if not here or not there:
            return []
        if len(here) != len(there):
            raise PlanError(
                "a value comes from as many positions as it goes to.",
                where="from_",
                seen=f"{origin}: {len(there)}, {site}: {len(here)} in {one.pair.clean!r}",
                fix="one position each",
            )
        unit, src = (WHOLE if part is None else part for part in (site.head, site.src))
        layers = range(self.shape.n_layers) if site.layer is None else (site.layer,)
        layers = layers if "layer" in COMPONENTS[site.component].axes else (0,)
        before = SAME if origin.layer in (None, site.layer) else origin.layer
        other = SAME if origin.head in (None, site.head) else origin.head
        return [
            Write(site.component, layer, unit, pos, src, before, SAME if source == pos else source, other)
            for layer in layers
            for pos, source in zip(here, there, strict=True)
        ]


def make_window_plan(
    shape: ModelShape,
    tokenized: Sequence[TokenizedPair],
    component: str,
    axes: tuple[str, ...],
    *,
    direction: str | None,
    metrics: Sequence[Metric],
    corruption: AnyCorruption,
    window: int = 1,
) -> WindowPlan:
    """Returns the plan of a sweep over windows of layers, labels, or all layers at once.

    Args:
        axes: the swept axes, as `sites.parse_over` gives them.

    Raises:
        PlanError: a window that is no number of layers, or labels that the pairs do not share.
        SiteError, MetricError: as `make_plan`.
    """
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise PlanError("window is a number of layers.", where="window", seen=repr(window), fix="window=10")
    if window > 1 and "layer" not in axes:
        raise PlanError("a window needs the axis layer.", where="over", seen=" ".join(axes), fix='over="layer pos"')
    full = tuple("pos" if axis == "label" else axis for axis in axes)
    plain = make_plan(shape, tokenized, component, full, direction=direction, metrics=metrics, corruption=corruption)
    labels = shared_labels(tokenized) if "label" in axes else ()
    states = np.stack([_window_states(plain, one, axes, labels, window) for one in plain.tokenized], axis=-1)
    return WindowPlan(
        shape, plain.tokenized, component, axes, plain.directions, plain.metrics,
        np.repeat(states[None], len(plain.directions), 0), corruption, window=window, labels=labels,
    )  # fmt: skip


def make_sites_plan(
    shape: ModelShape,
    tokenized: Sequence[TokenizedPair],
    sets: Sequence[Sequence[tuple[Site, Site]]],
    *,
    direction: str | None,
    metrics: Sequence[Metric],
    corruption: AnyCorruption,
    frozen: Sequence[Sequence[Site]] = (),
) -> SitesPlan:
    """Returns the plan of named sets of sites.

    Args:
        sets: per cell its sites, each with the site its value comes from, mostly itself.
        frozen: per cell, sites that keep the base run's value.

    Raises:
        PlanError: a place that is written twice, or whose place no pair has.
        SiteError: a layer or head outside the model.
    """
    for site in (site for cell in sets for both in cell for site in both):
        check_site(site, shape)
    first = sets[0][0][0].component
    refuse_patterns([site.component for cell in sets for site, _ in cell], tokenized, corruption)
    made = make_plan(shape, tokenized, first, direction=direction, metrics=metrics, corruption=corruption)
    plan = SitesPlan(
        shape, made.tokenized, " ".join(dict.fromkeys(site.component for cell in sets for site, _ in cell)),
        ("site",), directions_of(direction, corruption), tuple(metrics), made.states, corruption,
        sets=tuple(tuple(cell) for cell in sets), frozen=tuple(tuple(cell) for cell in frozen),
    )  # fmt: skip
    known: Grids = {}
    states = np.array(
        [[_set_state(plan, cell, pair, known) for pair in range(len(plan.tokenized))] for cell in range(len(sets))],
        np.int8,
    )
    _refuse_nowhere(plan, states)
    return replace(plan, states=np.repeat(states[None], len(plan.directions), 0))


def read_sets(
    sites: Sequence[str | Site | Sequence[str | Site]], from_: Sequence[str | Site] | None
) -> list[list[tuple[Site, Site]]]:
    """Returns sets of sites, each with the site its value comes from.

    Raises:
        PlanError: no sites, a `from_` of another length, or one for a set of several.
        SiteError: a text that is no site, or a value from another component.
    """
    fix = 'sites=["z[3.1] @ END", ["z[2.0]", "z[2.1]"]]'
    if isinstance(sites, (str, Site)) or not len(sites):
        raise PlanError("sites is a list of sites.", where="sites", seen=repr(sites), fix=fix)
    cells = [_cell(one) for one in sites]
    if from_ is None:
        return [[(site, site) for site in cell] for cell in cells]
    if isinstance(from_, (str, Site)) or len(from_) != len(cells) or any(len(cell) != 1 for cell in cells):
        seen = f"{len(cells)} cells of {', '.join(str(len(cell)) for cell in cells)} sites, from_={from_!r}"
        fix = 'patch_sites(model, pairs, ["resid_pre[2] @ 7"], from_=["resid_pre[4] @ 9"])'
        raise PlanError("from_ names one origin for each single site.", where="from_", seen=seen, fix=fix)
    return [[(cell[0], _origin(cell[0], _read(one)))] for cell, one in zip(cells, from_, strict=True)]


def shared_labels(tokenized: Sequence[TokenizedPair]) -> tuple[str, ...]:
    """Returns the labels that all pairs have, by their place in the first pair, and "END".

    Raises:
        PlanError: there is none.
    """
    first = tokenized[0]
    shared = [name for name in first.labels if all(one.labels.get(name) for one in tokenized)]
    if not shared:
        raise PlanError(
            "the pairs share no label.",
            where="over",
            seen="; ".join(", ".join(one.labels) or "none" for one in tokenized[:3]),
            fix='PromptPair(…, labels={"subject": "The Eiffel Tower"})',
        )
    return (*sorted(shared, key=lambda name: first.labels[name]), *(() if "END" in shared else ("END",)))


def _cell(given: object) -> list[Site]:
    """Returns the sites of a cell: of one site, or of a list of them."""
    parts: list[object] = [*given] if isinstance(given, (list, tuple)) else [given]
    odd = next((one for one in parts if not isinstance(one, (str, Site))), None)
    if odd is not None or not parts:
        seen = "an empty list" if not parts else f"{odd!r} ({type(odd).__name__})"
        raise PlanError("a cell is a site or a list of sites.", where="sites", seen=seen, fix='"z[3.1] @ END"')
    return [_read(one) for one in parts if isinstance(one, (str, Site))]


def _read(one: str | Site) -> Site:
    return parse_site(one) if isinstance(one, str) else one


def _origin(site: Site, origin: Site) -> Site:
    both = (origin.pos, site.pos), (origin.head, site.head), (origin.layer, site.layer)
    if origin.component != site.component or any((one is None) != (other is None) for one, other in both):
        raise SiteError(
            "a value comes from the same component, and from as many places as it goes to.",
            where="from_",
            seen=f"{origin} for {site}",
            fix=f'"{Site(site.component, origin.layer if site.layer is not None else None, site.head, site.pos)}"',
        )
    if site.component in PATTERNS and origin != site:
        raise SiteError(
            "a pattern goes to its own place only.", where="from_", seen=f"{origin} for {site}", fix=f'"{site}"'
        )
    return origin


def _named(site: Site, origin: Site) -> str:
    return str(site) if origin == site else f"{site} from {origin}"


def _window(layer: int, window: int, n_layers: int) -> range:
    """Returns the layers of a window, as Meng et al. 2022 centre it."""
    first = layer - window // 2
    return range(max(0, first), min(n_layers, first + window))


def _window_states(
    plan: Plan, one: TokenizedPair, axes: tuple[str, ...], labels: Sequence[str], window: int
) -> NDArray[np.int8]:
    """Returns the states [*axes] of one pair: a cell acts where any of its places does."""
    known = COMPONENTS[plan.component].axes
    found: list[Bools] = []
    exists, acts = grids(plan, one)
    for single in (exists, exists & acts):
        grid = single if window == 1 else _in_windows(single, window)
        if labels:
            at = known.index("pos")
            grid = np.stack([np.take(grid, one.places(name), axis=at).any(axis=at) for name in labels], axis=at)
        swept = tuple("label" if axis == "pos" and labels else axis for axis in known)
        found.append(np.asarray(grid.any(axis=tuple(i for i, axis in enumerate(swept) if axis not in axes))))
    return np.where(found[0], np.where(found[1], NOT_RUN, EXACT), NO_POSITION).astype(np.int8)


def _places(site: Site, one: TokenizedPair) -> tuple[int, ...]:
    """Returns the clean positions of a site in one pair: WHOLE for all, none where it has no such label or token."""
    return (WHOLE,) if site.pos is None else one.places(site.pos)


def _in_windows(grid: Bools, window: int) -> Bools:
    """Returns where any layer of a window does, the first axis being the layer."""
    spans = [_window(layer, window, len(grid)) for layer in range(len(grid))]
    return np.stack([grid[span.start : span.stop].any(axis=0) for span in spans])


def _set_state(plan: SitesPlan, cell: int, pair: int, known: Grids) -> int:
    one = plan.tokenized[pair]
    writes = plan.writes((cell,), pair)
    _refuse_twice(plan, cell, writes)
    present = {clean for clean, _ in one.aligned}
    patched = [write for write in writes if not write.own and (write.pos == WHOLE or write.pos in present)]
    if not patched:
        return NO_POSITION
    return NOT_RUN if any(_acts(plan, one, write, known) for write in patched) else EXACT


def _acts(plan: Plan, one: TokenizedPair, write: Write, known: Grids) -> bool:
    """Whether a write can change the answer.

    Args:
        known: grids that have been made, by component and pair.
    """
    if (write.from_layer, write.from_pos, write.from_unit) != (SAME, SAME, SAME):
        last = write.layer == plan.shape.n_layers - 1 and write.component not in ("resid_pre", "k", "v")
        return not last or write.pos in (WHOLE, one.clean_end)
    key = (write.component, id(one))
    if key not in known:
        known[key] = grids(plan, one, write.component)
    exists, acts = known[key]
    axes = COMPONENTS[write.component].axes
    unit, pos = write.unit, write.pos
    chosen = {"layer": write.layer, "head": unit, "neuron": unit, "pos": pos, "dest": pos, "src": write.src}
    where = tuple(slice(None) if chosen.get(axis, WHOLE) == WHOLE else chosen[axis] for axis in axes)
    return bool((exists & acts)[where].any())


def _refuse_twice(plan: SitesPlan, cell: int, writes: Sequence[Write]) -> None:
    places = [(write.component, write.layer, write.unit, write.pos) for write in writes]
    for number, (component, layer, unit, pos) in enumerate(places):
        for other in places[:number]:
            same = other[:2] == (component, layer)
            if (
                same
                and (WHOLE in (unit, other[2]) or unit == other[2])
                and (WHOLE in (pos, other[3]) or pos == other[3])
            ):
                seen = plan.names()[cell]
                raise PlanError("a place is written twice.", where="sites", seen=seen, fix="each place once in a set")


def _refuse_nowhere(plan: SitesPlan, states: NDArray[np.int8]) -> None:
    nowhere = np.flatnonzero((states == NO_POSITION).all(axis=1))
    if len(nowhere):
        one = plan.tokenized[0]
        both = plan.sets[int(nowhere[0])][0]
        where = next(
            (number for number, each in enumerate(both) if not any(_places(each, pair) for pair in plan.tokenized)), 0
        )
        site = both[where]
        raise PlanError(
            f"no pair has the place of {site}.",
            where=("sites", "from_")[where],
            seen=f"pair 1: positions 0–{one.clean_end}, labels {', '.join(one.labels) or 'none'}",
            fix=f'"{Site(site.component, site.layer, site.head, "END")}"',
        )
