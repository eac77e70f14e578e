"""Holds the fast engine to plain full forwards of the model, a few random cells of each component."""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbpatch.engine.attention import (
    Attend,
    Keys,
    Queries,
    Values,
    attend_as_family,
    attend_with_weights,
    attending,
    inner_attention,
)
from nbpatch.engine.entries import present
from nbpatch.engine.inline import PLACES, Bases, Inline, base_runs, shares_of
from nbpatch.engine.lead import Lead, begin
from nbpatch.engine.rows import COMPONENT_NAMES, KINDS, NOWHERE, PRE, WHOLE, Rows
from nbpatch.engine.steps import Steps
from nbpatch.engine.tail import unembedded
from nbpatch.engine.trace import OPTIONAL, Layer, Trace, trace
from nbpatch.engine.walk import Walk
from nbpatch.errors import PatchNotApplied
from nbpatch.joint import Write
from nbpatch.model import Model
from nbpatch.parts import Block, Parts, Unfit
from nbpatch.sites import COMPONENTS, SWEEPABLE

_LENGTH, _DIFFERS = 7, 2
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference that counts as equal, as a share of the largest logit."""


def disagreements(parts: Parts, model: Model) -> tuple[dict[str, str], Mapping[int, int]]:
    """Returns for each component "" or why the fast engine does not take it; and how many values modules return.

    Raises:
        Unfit: already the residual stream, or the base run, is not what a full forward gives.
    """
    ids = _prompts(model)
    whole = trace(parts, ids, device=model.device, max_tokens=2**30)
    plain: Any = parts.model
    with torch.no_grad():
        logits = plain(torch.tensor(ids, device=model.device), use_cache=False).logits[:, -1]
    scale = float(logits.nan_to_num(0, 0, 0).abs().max())
    test = _Test(parts, model, whole.returns, ids, TOLERANCE.get(model.dtype, 1e-4) * max(1.0, scale))
    base, hidden = test.led(test.lead.take(slice(0)))
    test.hold("its base run", logits, unembedded(parts, base.returns, hidden))
    found = {name: test.compared(name, base) for name in SWEEPABLE}
    if found["resid_pre"]:
        raise Unfit(f"patches of the residual stream: {found['resid_pre']}")
    rows = [test.rows(name, base) for name in SWEEPABLE if not found[name]]
    together = Rows.joined(rows)
    alone = Walk(together, parts, base, bucket=1).go()
    _, led = test.led(together)
    ends, walked = (unembedded(parts, base.returns, one) for one in (alone, led[2:]))
    test.hold("patched runs walked with base runs", ends, walked)
    chosen = np.flatnonzero(together.component != COMPONENT_NAMES.index("pattern"))
    over, writes = _written_over(together.take(chosen))
    written = Walk(over, parts, base, writes, bucket=1).go()
    test.hold(
        "patches written over", unembedded(parts, base.returns, alone[chosen]), unembedded(parts, base.returns, written)
    )
    return found, whole.returns


def tried_inline(parts: Parts, model: Model) -> Inline:
    """Returns how a model whose blocks attend by themselves is run behind its own cache, and what can be patched so.

    Raises:
        Unfit: the base run, or already the residual stream, is not what a full forward gives; or a block fails so.
    """
    try:
        return _tried_inline(parts, model)
    except Unfit:
        raise
    except _FAILURES as error:
        raise Unfit(f"behind a cache the model fails: {_said(error)}") from error


_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
"""What a block may raise that was not made for a cache such as this one."""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'nothing said'}"


@torch.no_grad()
def _tried_inline(parts: Parts, model: Model) -> Inline:
    ids = torch.tensor(_prompts(model), device=model.device)
    plain: Any = parts.model
    logits = plain(ids, use_cache=False).logits[:, -1]
    there = [name for name in PLACES if not _absent(name, parts)]
    base = base_runs(parts, (0, 1), ids, keep=there)
    scale = float(logits.nan_to_num(0, 0, 0).abs().max())
    test = _InlineTest(parts, model, base, ids, TOLERANCE.get(model.dtype, 1e-4) * max(1.0, scale))
    if not _off(base.logits, logits) <= test.allowed:
        raise Unfit(f"its base run behind a cache differs from a plain forward by {_off(base.logits, logits):.1e}")
    inline = Inline(parts, model.shape.n_heads, base.returns, shares_of(parts, base), {})
    found = {name: test.compared(name, inline) for name in SWEEPABLE}
    if found["resid_pre"]:
        raise Unfit(f"patches of the residual stream behind a cache: {found['resid_pre']}")
    return replace(inline, works=found)


@dataclass(frozen=True)
class _InlineTest:
    """One model under test whose blocks attend by themselves; attributes as those of `_Test`."""

    parts: Parts
    model: Model
    base: Bases
    ids: Int[Tensor, "row pos"]
    allowed: float

    def compared(self, name: str, inline: Inline) -> str:
        """Returns "" or why patches of a component are not made so, or by how much they differ from full forwards."""
        if name not in KINDS or (KINDS[name] != PRE and name not in PLACES):
            return "attention is computed inside the blocks, and patched there through hooks"
        if _absent(name, self.parts):
            return "this model has no such place"
        try:
            off = self._off(name, inline)
        except (PatchNotApplied, *_FAILURES) as error:
            return f"behind a cache the model fails: {_said(error)}"
        return "" if off <= self.allowed else f"differs from a full forward by {off:.1e}"

    def _off(self, name: str, inline: Inline) -> float:
        """Returns by how much patches of a component, made together and one by one, differ from full forwards."""
        depth, heads = self.model.shape.n_layers, inline.heads
        places = sorted({(0, _DIFFERS), (depth // 2, _LENGTH - 2), (depth - 1, _LENGTH - 1)})
        rows = [_row(name, layer, (layer + 1) % heads, pos) for layer, pos in places]
        together = Steps(Rows.joined(rows), self.base, _DIFFERS, inline).go()
        alone = [Steps(one, self.base, pos, inline).go() for one, (_, pos) in zip(rows, places, strict=True)]
        fast = unembedded(self.parts, inline.returns, torch.cat([together, *alone]))
        spots = [
            Spot(name, self.parts.blocks[layer], (layer + 1) % heads, pos, heads, self._scale(name, layer))
            for layer, pos in places
        ]
        slow = torch.stack([literal(spot, self.parts, self.ids, inline=True) for spot in spots])
        return _off(fast, torch.cat([slow, slow]))

    def _scale(self, name: str, layer: int) -> float:
        if name != "resid_mid":
            return 1.0
        sites = self.base.sites
        return _scale(self.base.streams[layer], sites["resid_mid", layer], sites["attn_out", layer])


def _prompts(model: Model) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, model.shape.d_vocab, (_LENGTH,), generator=generator).tolist()
    other = [*clean]
    other[_DIFFERS] = (other[_DIFFERS] + model.shape.d_vocab // 2) % model.shape.d_vocab
    return [clean, other]


@dataclass(frozen=True)
class _Test:
    """One model under test.

    Attributes:
        returns: how many values each module's forward returns.
        ids: a clean and a corrupted prompt.
        allowed: the largest difference that counts as equal.
    """

    parts: Parts
    model: Model
    returns: Mapping[int, int]
    ids: list[list[int]]
    allowed: float

    @property
    def lead(self) -> Rows:
        """Both base runs, as rows."""
        rows = [_row("resid_pre", 0, WHOLE, WHOLE, run) for run in (0, 1)]
        lead = Rows.joined(rows)
        return replace(lead, source=lead.run, first=np.array([0, _DIFFERS]), alone=np.array([False, False]))

    def led(self, rows: Rows) -> tuple[Trace, Tensor]:
        """Returns the base runs, and the last hidden states of them and of rows walked with them."""
        traced = begin(self.parts, self.ids, self.returns, device=self.model.device)
        lead = Lead(self.lead, self.parts, traced, frozenset(OPTIONAL))
        return traced, Walk(rows, self.parts, traced, bucket=1, lead=lead).go()

    def hold(self, what: str, one: Tensor, other: Tensor) -> None:
        """Raises Unfit where two ways to the same logits differ."""
        off = _off(one, other)
        if not off <= self.allowed:
            raise Unfit(f"{what} differs from a plain forward by {off:.1e}")

    def places(self) -> list[tuple[int, int]]:
        """Returns the layers and positions that are tried."""
        last = self.model.shape.n_layers - 1
        places = {(0, _DIFFERS), (self.model.shape.n_layers // 2, _LENGTH - 2), (last, _LENGTH - 1)}
        return sorted({(layer, pos if layer < last else _LENGTH - 1) for layer, pos in places})

    def head(self, name: str, layer: int, base: Trace) -> int:
        """Returns the head that is tried in a layer."""
        seen = base.layers[layer]
        return (layer + 1) % (seen.k.shape[1] if name in ("k", "v") else seen.q.shape[1])

    def rows(self, name: str, base: Trace) -> Rows:
        """Returns the patched runs of a component."""
        return Rows.joined([_row(name, layer, self.head(name, layer, base), pos) for layer, pos in self.places()])

    def compared(self, name: str, base: Trace) -> str:
        """Returns "" or by how much patches of a component differ from full forwards."""
        batch = torch.tensor(self.ids, device=self.model.device)
        if _absent(name, self.parts):
            return "this model has no such place"
        fast = unembedded(self.parts, base.returns, Walk(self.rows(name, base), self.parts, base, bucket=1).go())
        worst = 0.0
        for number, (layer, pos) in enumerate(self.places()):
            seen, block = base.layers[layer], self.parts.blocks[layer]
            scale = branch_scale(seen) if name == "resid_mid" else 1.0
            spot = Spot(name, block, self.head(name, layer, base), pos, seen.q.shape[1], scale)
            off = _off(fast[number], literal(spot, self.parts, batch))
            worst = off if not off <= worst else worst
        return "" if worst <= self.allowed else f"differs from a full forward by {worst:.1e}"


def branch_scale(seen: Layer) -> float:
    """Returns by how much a block multiplies what attention writes: 1, except in Granite."""
    return _scale(seen.pre, present(seen.mid), present(seen.attn_out))


def _scale(pre: Tensor, mid: Tensor, wrote: Tensor) -> float:
    wrote = wrote.double()
    size = float((wrote * wrote).sum())
    return float(((mid - pre).double() * wrote).sum()) / size if size else 1.0


def _off(one: Tensor, other: Tensor) -> float:
    """Returns the largest difference; where both are NaN there is none, a model may hold NaN itself."""
    same = torch.isnan(one) & torch.isnan(other)
    return float(torch.where(same, 0, (one - other).abs()).max())


def _absent(name: str, parts: Parts) -> bool:
    attribute = {"resid_mid": "mid", "mlp_post": "down"}.get(name)
    return attribute is not None and any(getattr(block, attribute) is None for block in parts.blocks)


def _row(name: str, layer: int, head: int, pos: int, run: int = 1) -> Rows:
    """Returns one row, a run patched from the other one, at one position and head."""

    def column(value: int) -> Any:
        return np.array([value])

    return Rows(
        plan=column(0),
        cell=column(0),
        component=column(COMPONENT_NAMES.index(name)),
        kind=column(KINDS[name]),
        layer=column(layer + (name == "resid_post")),
        run=column(run),
        source=column(run ^ 1),
        pos=column(pos),
        first=column(pos),
        last=column(_LENGTH - 1),
        alone=np.array([name not in ("k", "v")]),
        head=column(head),
        neuron=column(WHOLE),
        src=column(WHOLE),
        joint=column(WHOLE),
    )


def _written_over(rows: Rows) -> tuple[Rows, list[tuple[Write, ...]]]:
    """Returns rows that begin as base runs, with what is written over in them: the same patches by another way."""
    writes: list[tuple[Write, ...]] = []
    for number in range(len(rows)):
        name, behind = COMPONENT_NAMES[rows.component[number]], int(rows.component[number] == _BEHIND)
        unit = int(rows.head[number]) if COMPONENTS[name].has_heads else WHOLE
        writes.append((Write(name, int(rows.layer[number]) - behind, unit, int(rows.pos[number])),))
    same = np.zeros(len(rows), np.int64)
    begun = replace(
        rows,
        component=same,
        kind=same + PRE,
        pos=same + NOWHERE,
        alone=np.zeros(len(rows), np.bool_),
        head=same + WHOLE,
        joint=np.arange(len(rows)),
    )
    return begun, writes


_BEHIND = COMPONENT_NAMES.index("resid_post")


@dataclass(frozen=True)
class Spot:
    """One place in a model: the value there moves from row 0 to row 1 of a batch.

    Attributes:
        heads: into how many heads z is split.
        scale: by how much the block multiplies what attention writes.
    """

    name: str
    block: Block
    head: int
    pos: int
    heads: int
    scale: float


@torch.no_grad()
def literal(spot: Spot, parts: Parts, ids: Int[Tensor, "row pos"], *, inline: bool = False) -> Float[Tensor, "d_vocab"]:
    """Returns the answer logits of row 1 of a full forward with the value at one place taken from row 0.

    Args:
        inline: whether the blocks attend by themselves: they are not asked to do it in another way.
    """
    model: Any = parts.model
    with _patched(spot), nullcontext() if inline else attending(parts, _patching(spot)):
        return model(ids, use_cache=False).logits[1, -1]


@contextmanager
def _patched(spot: Spot) -> Generator[None]:
    """Hooks a block so that the value at the spot moves from row 0 to row 1."""
    block, pos = spot.block, spot.pos
    entered: list[Tensor] = []

    def moved(value: Tensor) -> Tensor:
        value = value.clone()
        rows = value.view(2, -1, value.shape[-1])
        if spot.name == "z":
            width = rows.shape[-1] // spot.heads
            part = slice(spot.head * width, (spot.head + 1) * width)
            rows[1, pos, part] = rows[0, pos, part]
        else:
            rows[1, pos] = rows[0, pos]
        if spot.name == "resid_mid":
            rows[1, pos] += (entered[0][0, pos] - entered[0][1, pos]) / spot.scale
        return value

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered.append(args[0] if args else kwargs["hidden_states"])

    def output(module: nn.Module, args: Any, result: Any) -> Any:
        return (moved(result[0]), *result[1:]) if isinstance(result, tuple) else moved(result)

    def taken(module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (moved(args[0]), *args[1:])

    places: dict[str, tuple[nn.Module | None, bool]] = {
        "resid_pre": (block.module, False),
        "resid_mid": (block.attn_out, True),
        "resid_post": (block.module, True),
        "attn_out": (block.attn_out, True),
        "mlp_out": (block.mlp_out, True),
        "mlp_post": (block.down, False),
        "z": (block.project, False),
    }
    module, behind = places.get(spot.name, (None, False))
    with ExitStack() as stack:
        stack.callback(block.module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        if module is not None:
            hook = module.register_forward_hook(output) if behind else module.register_forward_pre_hook(taken)
            stack.callback(hook.remove)
        yield


def _patching(spot: Spot) -> Attend:
    """Returns an attention that moves a query, key, value or row of the pattern from row 0 to row 1."""

    def attend(module: nn.Module, q: Queries, k: Keys, v: Values, mask: Any, options: Mapping[str, Any]) -> Tensor:
        mine = module in (spot.block.attention, inner_attention(spot.block.attention))
        if not mine or spot.name not in ("q", "k", "v", "pattern"):
            return attend_as_family(module, q, k, v, mask, options)
        if spot.name == "pattern":
            _, weights = attend_with_weights(module, q, k, v, mask, options)
            weights = weights.clone()
            weights[1, spot.head, spot.pos] = weights[0, spot.head, spot.pos]
            repeated = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
            return (weights.to(v.dtype) @ repeated).transpose(1, 2)
        values = {"q": q, "k": k, "v": v}
        values[spot.name] = values[spot.name].clone()
        values[spot.name][1, spot.head, spot.pos] = values[spot.name][0, spot.head, spot.pos]
        return attend_as_family(module, values["q"], values["k"], values["v"], mask, options)

    return attend
