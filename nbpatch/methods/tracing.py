"""Causal tracing: noise on the subject, then one state after the other restored, to see where a fact comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nbpatch.corruption import AnyCorruption, Noise
from nbpatch.engine import run
from nbpatch.errors import PlanError, suggest
from nbpatch.joint import WindowPlan, Write, make_window_plan
from nbpatch.methods import patching
from nbpatch.metrics import Metric, MetricLike, as_metrics
from nbpatch.model import Model, load
from nbpatch.plan import EXACT, FAILED, MEASURED, NO_POSITION, NOT_RUN, make_plan
from nbpatch.prompts import PromptPair, TokenizedPair, as_pairs
from nbpatch.result import SPREAD, Result
from nbpatch.sites import ModelShape

KINDS: Mapping[str, str] = {"hidden": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}
"""What is restored, and the component it is."""

SEVERABLE = ("mlp", "attn")
"""The parts whose later outputs can be frozen."""

ROLES = (
    "first subject token", "middle subject tokens", "last subject token", "first subsequent token", "further tokens",
    "last token",
)  # fmt: skip
"""What a position is in its prompt, in the order of the published figures."""

Floats: TypeAlias = NDArray[np.float64]
States: TypeAlias = NDArray[np.int8]
Places: TypeAlias = dict[str, list[int]]

_SUBJECT = "subject"
_NAMED = 8
_ALONE = 'PromptPair(…, labels={"subject": "The Eiffel Tower"})'
_ORDER = (FAILED, NOT_RUN, NO_POSITION, MEASURED, EXACT)
"""The state of several positions is the first of these that one of them has."""


def trace(
    model: Any,
    facts: PromptPair | Sequence[PromptPair],
    *,
    kinds: str | Sequence[str] = ("hidden", "mlp", "attn"),
    noise: AnyCorruption | None = None,
    window: int = 10,
    metric: MetricLike | Sequence[MetricLike] = "prob",
    severed: str | Sequence[str] = (),
    by: str | None = None,
) -> Result:
    """Returns how far each restored state brings a fact back after its subject was drowned in noise.

    The base run is the clean prompt with noise on the subject's embeddings; each cell takes one state from the clean
    run. `result.gap()` is the total effect TE of each fact, `result.effect()` the average indirect effect AIE, with
    `per_pair=True` the indirect effect IE of each. Facts that the model does not know, because another token is the
    likeliest after the clean prompt, are left out and named in `result.warnings` and `provenance["unknown"]`.

    Args:
        model: what `load` takes or returned.
        facts: prompts with an answer and the label "subject"; their corrupted prompts are not used.
        kinds: "hidden" (the residual stream behind a layer), "mlp" and "attn" (what the MLPs or attention of `window`
            layers write), as a list or in one string.
        noise: a `Noise`; None for `Noise("subject")`: 3 × the standard deviation of the subjects' embeddings, 10
            draws. Deviation and draws are those of the facts that are used, numbered from 0.
        window: how many adjacent layers of "mlp" and "attn" are restored together, centred on the cell's and clipped
            at the ends.
        metric: a name, a function logits [pair d_vocab] → [pair], or a list of them.
        severed: "mlp", "attn" or both: further kinds, "hidden, mlp severed" and "hidden, attn severed", that restore
            the hidden state while what the MLPs (attention) of all later layers write at the same position stays as
            in the run with noise.
        by: "pos" for a map over positions, of one fact or of facts of equal length; "role" for the roles of positions
            (`ROLES`). Default: "pos" for one fact, "role" for several.

    Returns:
        A `Result` whose data has dims (kind, layer, pos or role, pair). A role's value in a fact is the mean over its
        positions there; NaN, "no position", where it has none. A subject of one token is its last; the last token is
        the last token only; what stands before the subject has no role. The published code takes a subject of one
        token for its first too, and pools the middle and further tokens of all facts. `result.spread()` of a role of
        several positions is NaN: the deviation of their mean over draws is not kept.

    Raises:
        PlanError: a fact without a subject, no fact that the model knows, facts of different lengths by position, or
            kinds, noise, window, severed or by that make no sense.
        PromptError: a fact that cannot be used.
        MetricError: unknown metric, or one that lacks what it needs.
        SiteError: a kind that does not work in this model.
        PatchNotApplied: a patch did not fire exactly as planned.

    Source: Meng et al. 2022, Locating and Editing Factual Associations in GPT, § 2, figures 1 and 2, appendix B.
    """
    names, noised, metrics = _names(kinds, severed), _noise(noise), as_metrics(metric)
    _check_by(by)
    ready = load(model)
    asked = ready.tokenize([replace(one, corrupted=one.clean, align=None) for one in as_pairs(facts)])
    _check_subjects(asked)
    known = _knowledge(ready, asked, noised)
    used = _used(asked, known)
    by = by or ("pos" if len(asked) == 1 else "role")
    _check_lengths(used, by)
    plans = {name: _plan(ready.shape, used, name, metrics=metrics, noise=noised, window=window) for name in names}
    found = patching._run(list(plans.values()), ready, None)  # pyright: ignore[reportPrivateUsage]
    joined = _joined(dict(zip(names, found, strict=True)), used, by)
    made = {**joined.provenance, "kinds": {name: _kind(plan) for name, plan in plans.items()}, "window": window}
    made = {**made, "component": "; ".join(_spelt(name, plan) for name, plan in plans.items()), "unknown": known[1]}
    warnings = (*_unknown_words(known[1], len(asked)), *_wide(plans, ready.shape), *known[2], *joined.warnings)
    return replace(joined, provenance=made, warnings=tuple(dict.fromkeys(warnings)), origin=None)


@dataclass(frozen=True)
class SeveredPlan(WindowPlan):
    """A sweep over hidden states, with one kind of later outputs at the same position frozen at the base run's.

    Attributes:
        severed: the component that is frozen, in all layers above the cell's.
    """

    severed: str = ""

    @property
    def components(self) -> tuple[str, ...]:
        """All components that are written to."""
        return (self.component, self.severed)

    def writes(self, index: tuple[int, ...], pair: int) -> tuple[Write, ...]:
        """Returns where a cell writes in the runs of a pair."""
        restored = super().writes(index, pair)
        held = [
            Write(self.severed, layer, pos=one.pos, own=True)
            for one in restored
            for layer in range(one.layer + 1, self.shape.n_layers)
        ]
        return (*restored, *held)


# -- what is asked for


def _names(kinds: str | Sequence[str], severed: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the kinds that are run, the severed ones last."""
    plain, cut = _listed(kinds), _listed(severed)
    for where, given, options in (("kinds", plain, tuple(KINDS)), ("severed", cut, SEVERABLE)):
        odd = next((one for one in given if one not in options), None)
        if odd is not None:
            raise PlanError(f"no kind {odd!r}.", where=where, seen=repr(given), fix=suggest(odd, options))
        if len(set(given)) < len(given):
            fix = f"{where}={list(dict.fromkeys(given))!r}"
            raise PlanError("a kind is named twice.", where=where, seen=repr(given), fix=fix)
    if not plain + cut:
        raise PlanError("no kind named.", where="kinds", seen=repr(kinds), fix='kinds=["hidden", "mlp", "attn"]')
    return (*plain, *(f"hidden, {one} severed" for one in cut))


def _listed(given: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(given.replace(",", " ").split()) if isinstance(given, str) else tuple(str(one) for one in given)


def _noise(noise: object) -> Noise:
    if noise is None:
        return Noise(_SUBJECT)
    if not isinstance(noise, Noise):
        seen = f"{noise!r:.80} ({type(noise).__name__})"
        raise PlanError("causal tracing corrupts by noise.", where="noise", seen=seen, fix='nbp.Noise("subject")')
    return noise


def _check_by(by: str | None) -> None:
    if by not in (None, "pos", "role"):
        raise PlanError(f"no way {by!r} to line up facts.", where="by", seen=repr(by), fix=suggest(by, ("pos", "role")))


def _check_subjects(asked: Sequence[TokenizedPair]) -> None:
    for number, one in enumerate(asked):
        if not one.labels.get(_SUBJECT):
            raise PlanError(
                "a fact needs a subject.",
                where=f"fact {number + 1} of {len(asked)}",
                seen=f"{one.pair.clean!r}, labels {', '.join(one.labels) or 'none'}",
                fix=_ALONE,
            )


def _check_lengths(used: Sequence[TokenizedPair], by: str) -> None:
    lengths = sorted({len(one.clean_ids) for one in used})
    if by == "pos" and len(lengths) > 1:
        seen = f"lengths {', '.join(map(str, lengths))}"
        raise PlanError("facts of different lengths share no positions.", where="by", seen=seen, fix='by="role"')


# -- what the model knows


def _knowledge(
    model: Model, asked: Sequence[TokenizedPair], noise: Noise
) -> tuple[list[int], list[dict[str, Any]], tuple[str, ...]]:
    """Returns which facts the model knows, what is to be said of the others, and what was noticed about the model."""
    plan = make_plan(
        model.shape, asked, "resid_post", "layer", metrics=as_metrics("accuracy"), corruption=replace(noise, n=1)
    )
    # The base runs alone: the run is stopped before its first wave.
    base = run(plan, model, stop=lambda: True)
    right = base.baselines["clean"].sel(metric="accuracy").to_numpy() == 1
    unknown = [
        {"fact": number, **{name: pair[name] for name in ("clean", "answer")}, "top": pair["clean_top"][0]}
        for number, pair in enumerate(base.provenance["pairs"])
        if not right[number]
    ]
    noticed = tuple(one for one in base.warnings if one.startswith("Weights or hooks"))
    return [int(number) for number in np.flatnonzero(right)], unknown, noticed


def _used(
    asked: Sequence[TokenizedPair], known: tuple[list[int], list[dict[str, Any]], tuple[str, ...]]
) -> tuple[TokenizedPair, ...]:
    numbers, unknown, _ = known
    if not numbers:
        raise PlanError(
            "the model knows none of the facts: there is nothing to trace.",
            where="facts",
            seen="\n".join(_unknown_fact(one) for one in unknown[:_NAMED]),
            fix="nbp.tasks.facts(model), or prompts whose answer is the model's likeliest next token",
        )
    return tuple(asked[number] for number in numbers)


def _unknown_fact(one: Mapping[str, Any]) -> str:
    token, share = one["top"]
    return f"{one['clean']!r} → {token!r} ({100 * share:.0f} %), not {' or '.join(map(repr, one['answer']))}"


def _unknown_words(unknown: Sequence[Mapping[str, Any]], asked: int) -> list[str]:
    if not unknown:
        return []
    more = f"; and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
    named = "; ".join(_unknown_fact(one) for one in unknown[:_NAMED])
    return [
        f"Unknown facts. {len(unknown)} of {asked} are left out, the model does not know them: {named}{more}. "
        'All are in result.provenance["unknown"].'
    ]


# -- what is run


def _plan(
    shape: ModelShape,
    used: Sequence[TokenizedPair],
    name: str,
    *,
    metrics: Sequence[Metric],
    noise: Noise,
    window: int,
) -> WindowPlan:
    """Returns the plan of one kind over layers and positions."""
    plain, _, cut = name.removesuffix(" severed").partition(", ")
    plan = make_window_plan(
        shape,
        used,
        KINDS[plain],
        ("layer", "pos"),
        direction="denoising",
        metrics=metrics,
        corruption=noise,
        window=window if plain in SEVERABLE else 1,
    )
    if not cut:
        return plan
    return SeveredPlan(**{one.name: getattr(plan, one.name) for one in fields(plan)}, severed=KINDS[cut])


def _kind(plan: WindowPlan) -> dict[str, Any]:
    """Returns what the provenance keeps of one kind."""
    severed = plan.severed if isinstance(plan, SeveredPlan) else None
    return {"component": plan.component, "window": plan.window, "severed": severed}


def _spelt(name: str, plan: WindowPlan) -> str:
    return f"{name} (window {plan.window})" if plan.window > 1 else name


def _wide(plans: Mapping[str, WindowPlan], shape: ModelShape) -> list[str]:
    """Returns, as a warning, that every window holds all layers."""
    window = max(plan.window for plan in plans.values())
    if window == 1 or min(window - window // 2, window // 2 + 1) < shape.n_layers:
        return []
    return [f"A window of {window} holds all {shape.n_layers} layers wherever it is. Choose a smaller window."]


# -- what comes out


def _joined(results: Mapping[str, Result], used: Sequence[TokenizedPair], by: str) -> Result:
    """Returns the kinds' results as one with a leading axis `kind`, by position or by role."""
    first = next(iter(results.values()))
    places = [roles_of(one) for one in used]
    spreads = [str(name) for name in first.data.coords if str(name).startswith(SPREAD)]
    tables = {name: _stacked(results, name) for name in (*first.metrics, *spreads)}
    state = _stacked(results, "state").astype(np.int8)
    if by == "role":
        tables = {name: _means(table, places, alone=name in spreads) for name, table in tables.items()}
        state = _common(state, places)
    dims = ("kind", "layer", by, "pair")
    coords: dict[str, Any] = {
        "kind": ("kind", np.array(list(results), object)),
        "layer": first.data["layer"].to_numpy(),
        by: np.arange(state.shape[2]) if by == "pos" else (by, np.array(ROLES, object)),
        "pair": first.data["pair"].to_numpy(),
        "state": (dims, state),
        **{name: (dims, tables[name]) for name in spreads},
    }
    data = xr.Dataset({name: (dims, tables[name], first.data[name].attrs) for name in first.metrics}, coords=coords)
    made = {
        **first.provenance,
        "method": "trace",
        "component_label": "restored states",
        "over": ["kind", "layer", by],
        "pairs": [{**pair, "roles": one} for pair, one in zip(first.provenance["pairs"], places, strict=True)],
        "engine": _summed([one.provenance["engine"] for one in results.values()]),
    }
    warnings = tuple(dict.fromkeys(warning for one in results.values() for warning in one.warnings))
    return replace(first, data=data, provenance=made, warnings=warnings)


def roles_of(one: TokenizedPair) -> Places:
    """Returns the positions of each role in a fact; those before the subject have none.

    >>> roles_of(fact)  # <bos> The Space Needle is located in, subject "The Space Needle"
    {'first subject token': [1], 'middle subject tokens': [2], 'last subject token': [3], …, 'last token': [6]}
    """
    end, subject = one.clean_end, sorted(one.labels[_SUBJECT])
    behind = range(subject[-1] + 1, end)
    found = (subject[:-1][:1], subject[1:-1], subject[-1:], behind[:1], behind[1:])
    return {
        **{role: [pos for pos in some if pos != end] for role, some in zip(ROLES, found, strict=False)},
        ROLES[-1]: [end],
    }


def _stacked(results: Mapping[str, Result], name: str) -> NDArray[Any]:
    """Returns a variable of all kinds [kind layer pos pair]."""
    return np.stack([one.data[name].transpose("layer", "pos", "pair").to_numpy() for one in results.values()])


def _means(table: Floats, places: Sequence[Places], *, alone: bool) -> Floats:
    """Returns means over the positions of each role: [kind layer role pair] of [kind layer pos pair].

    Args:
        alone: whether a role of several positions has no value.
    """
    found = np.full((*table.shape[:2], len(ROLES), len(places)), np.nan)
    for pair, one in enumerate(places):
        for number, role in enumerate(ROLES):
            if one[role] and not (alone and len(one[role]) > 1):
                found[:, :, number, pair] = table[:, :, one[role], pair].mean(-1)
    return found


def _common(state: States, places: Sequence[Places]) -> States:
    """Returns the state of each role: what the first of `_ORDER` among its positions is."""
    rank = np.array([_ORDER.index(code) for code in range(len(_ORDER))])
    found = np.full((*state.shape[:2], len(ROLES), len(places)), NO_POSITION, np.int8)
    for pair, one in enumerate(places):
        for number, role in enumerate(ROLES):
            if one[role]:
                worst = rank[state[:, :, one[role], pair]].min(-1)
                found[:, :, number, pair] = np.array(_ORDER, np.int8)[worst]
    return found


def _summed(engines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what one run of several kinds took: cells added up, everything else shared."""
    counted = ("cells", "runs", "run", "exact", "no_path")
    return {**engines[0], **{key: sum(one[key] for one in engines) for key in counted if key in engines[0]}}


__all__ = ["KINDS", "ROLES", "SEVERABLE", "SeveredPlan", "roles_of", "trace"]
