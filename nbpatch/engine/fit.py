"""Which engine takes a model: found by trying the fast one against plain full forwards, once per model."""

import copy
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nbpatch.engine.inline import Inline
from nbpatch.engine.selftest import TOLERANCE, disagreements, tried_inline
from nbpatch.errors import ModelError, SiteError
from nbpatch.model import Capability, Model, Probe, probe_bridge
from nbpatch.parts import AttendsInline, Parts, Unfit, find_parts
from nbpatch.sites import COMPONENTS, acting


@dataclass(frozen=True)
class Fit:
    """How a model can be run.

    Attributes:
        parts: its parts, or None where the fast engine cannot run it.
        reason: why not the fast engine, or "".
        returns: how many values each module's forward returns.
        works: components the fast engine was seen to patch exactly; the reason, for those it does not take.
        stamp: the state of the weights when that was seen.
        error: largest difference of base logits from the same model in float32, where it is in another type or a GPU
            multiplies in TF32.
        again: whether the weights were changed since an earlier check.
        inline: how it is run behind its own cache, where its blocks attend by themselves; `reason` says so then.
    """

    parts: Parts | None
    reason: str
    returns: Mapping[int, int]
    works: dict[str, str]
    stamp: int
    again: bool = False
    error: float | None = None
    inline: Inline | None = None


def fit_of(model: Model) -> Fit:
    """Returns how a model can be run; found on first use, and anew when weights or hooks have changed.

    Raises:
        ModelError: the model is in training mode, or spread over several devices.
    """
    with model.lock:
        hf = model.plain
        _refuse(model, hf)
        stamp = model.stamp()
        known: Fit | None = model.notes.get("fit")
        if known is None or known.stamp != stamp:
            _refuse_several_devices(model)
            if known is not None:
                model.forget()
                hf = model.plain
            known = _found(model, hf, stamp, again=known is not None)
            model.notes["fit"] = known
        return known


def _refuse(model: Model, hf: Any) -> None:
    if hf is not None and hf.training:
        drops = [one.p for one in hf.modules() if isinstance(one, nn.Dropout)]
        if any(drops) or getattr(hf.config, "attention_dropout", 0):
            raise ModelError(f"{model.name} is in training mode.", where="model", fix="hf_model.eval()")


def _refuse_several_devices(model: Model) -> None:
    devices = {str(one.device) for one in model.weights()}
    if len(devices) > 1:
        raise ModelError(
            "the model is spread over several devices.",
            where="model",
            seen=", ".join(sorted(devices)),
            fix="load it on one: nbp.load(name, device=…)",
        )


def _found(model: Model, hf: Any, stamp: int, *, again: bool) -> Fit:
    try:
        if hf is None:
            raise Unfit("a Bridge in compatibility mode has weights of its own")
        hooked = model.hooked()
        if hooked:
            raise Unfit(f"the model has hooks of its own, on {hooked[0] or 'the model itself'}")
        parts = find_parts(hf)
        _compare_with_bridge(model, hf)
        try:
            works, returns = disagreements(parts, model)
        except AttendsInline as inside:
            inline = tried_inline(parts, model)
            return Fit(None, str(inside), {}, {}, stamp, again, _error(hf, model), inline)
    except Unfit as unfit:
        return Fit(None, str(unfit), {}, {}, stamp, again)
    return Fit(parts, "", returns, works, stamp, again, _error(hf, model))


def _compare_with_bridge(model: Model, hf: Any) -> None:
    """Holds the model inside a user's Bridge to the Bridge itself.

    Raises:
        Unfit: they give different logits.
    """
    if model.given_as_bridge and (why := _bridge_differs(model, hf)):
        raise Unfit(why)


@torch.no_grad()
def _bridge_differs(model: Model, hf: Any) -> str:
    """Returns by how much the logits of a model and its Bridge differ, or ""."""
    if "bridge" not in model.notes:
        ids = _random_prompts(model)
        plain = hf(ids, use_cache=False).logits[:, -1]
        off = float((plain - model.answer_logits(ids)).abs().max())
        same = off <= TOLERANCE.get(model.dtype, 1e-4) * max(1.0, float(plain.abs().max()))
        model.notes["bridge"] = "" if same else f"the Bridge and the model inside it differ by {off:.1e}"
    return model.notes["bridge"]


def refuse_other_bridge(model: Model, what: str) -> None:
    """Refuses replay beside suffixes where it would be that of another model: the Bridge's own.

    Such is Falcon with alibi: a Bridge always attends eagerly, and transformers 5.23 adds alibi twice then.

    Args:
        what: what was to be replayed.

    Raises:
        SiteError: the Bridge gives other logits than the model.
    """
    why = _bridge_differs(model, model.plain)
    if why:
        raise SiteError(
            f"{what} cannot be patched in {model.name} by replay.",
            where="model",
            seen=why,
            fix='another component: model.describe(); or model.engine = "replay", for all numbers to be the Bridge\'s',
        )


@torch.no_grad()
def _error(hf: Any, model: Model) -> float | None:
    """Returns how far logits are from those of the same weights in float32, or None where nothing rounds coarser."""
    coarse = model.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    if model.dtype == torch.float32 and not coarse:
        return None
    ids = _random_prompts(model)
    logits = hf(ids, use_cache=False).logits.float()
    with _without_tf32():
        exact = copy.deepcopy(hf).float()
        return float((logits - exact(ids, use_cache=False).logits).abs().max())


@contextmanager
def _without_tf32() -> Generator[None]:
    """Lets a GPU multiply in whole float32 for a while."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def _random_prompts(model: Model) -> Tensor:
    ids = torch.randint(0, model.shape.d_vocab, (2, 7), generator=torch.Generator().manual_seed(0))
    return ids.to(model.device)


def speed_of(model: Model) -> tuple[float, float]:
    """Returns seconds of one pass of few tokens through the model, and operations per second of large products.

    Measured once per model and machine: the calibration that estimates of time rest on.
    """
    if "speed" not in model.notes:
        ids = torch.zeros(2, 7, dtype=torch.long, device=model.device)
        runner: Any = model.plain or model.bridge
        with torch.no_grad(), model.lock:
            passes = [_seconds(lambda: runner(ids), model.device) for _ in range(4)]
            square = torch.randn(1024, 1024, device=model.device, dtype=model.dtype)
            products = [_seconds(lambda: square @ square, model.device) for _ in range(4)]
        model.notes["speed"] = (min(passes), 2 * 1024**3 / min(products))
    return model.notes["speed"]


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def probe(model: Model) -> Probe:
    """Returns how a model is run and what can be patched in it."""
    fit = fit_of(model)
    if model.engine != "auto" and (fit.parts or fit.inline):
        return Probe("replay: asked for", probe_bridge(model))
    if fit.inline is not None:
        differs = _bridge_differs(model, model.plain)
        return Probe(f"suffix: {fit.reason}", _inline_capabilities(fit.inline, probe_bridge(model), differs))
    if fit.parts is None:
        return Probe(f"replay: {fit.reason}", probe_bridge(model))
    found = {name: _capability(fit.parts, name, reason) for name, reason in fit.works.items()}
    others = [name for name, reason in fit.works.items() if reason]
    if others:
        slow = probe_bridge(model)
        found.update({name: slow[name] for name in others if name in slow})
    for name, component in COMPONENTS.items():
        if component.like in found and component.like != name:
            found[name] = found[component.like]
    return Probe("frontier", found)


def _inline_capabilities(inline: Inline, slow: Mapping[str, Capability], differs: str) -> dict[str, Capability]:
    """Returns what can be patched behind a cache, and what the Bridge's hooks patch instead, where it is the model."""
    found: dict[str, Capability] = {}
    for name, by_hooks in slow.items():
        fast = not inline.works.get(acting(name), "replay")
        works = by_hooks.status == "works"
        if differs and works and not fast:
            found[name] = Capability("absent", differs)
        else:
            found[name] = Capability("works", "" if fast else "by replay") if fast or works else by_hooks
    return found


def _capability(parts: Parts, name: str, reason: str) -> Capability:
    if not reason and name in ("q", "k") and _across_heads(_norm_of(parts, name), parts):
        return Capability("works", f"after {name}_norm, which runs across heads; TransformerLens's hook is before it")
    return Capability("absent", reason) if reason else Capability("works")


def has_norm(parts: Parts, name: str) -> bool:
    """Whether queries ("q") or keys ("k") of a head go through a norm of the head's own behind their hook point."""
    norm = _norm_of(parts, name)
    return norm is not None and not _across_heads(norm, parts)


def _norm_of(parts: Parts, name: str) -> Any:
    attention = parts.blocks[0].attention
    return getattr(attention, f"{name}_norm", None) or getattr(attention, f"{name}_layernorm", None)


def _across_heads(norm: Any, parts: Parts) -> bool:
    weight = getattr(norm, "weight", None)
    return weight is not None and weight.ndim == 1 and weight.numel() > _d_head(parts)


def _d_head(parts: Parts) -> int:
    return int(getattr(parts.blocks[0].attention, "head_dim", 2**31))
