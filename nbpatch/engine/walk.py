"""The fast exact path: the layers are walked once, rows join where their patch is, base keys and values serve the rest.

The base runs walk in front of the first rows, and each layer's rows take their values from what they just left there.

Every row is a suffix of a prompt: positions before the patch are as in the base run, so only later ones are computed,
all rows of all lengths packed behind each other as one long sequence [1 token d_model] through the model's own blocks.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from nbpatch.engine.attention import Keys, Queries, Values, all_replaced, attend_as_family, attending
from nbpatch.engine.entries import Tokens, attn_values, mid_values, neuron_values, residual_values, vectors, z_values
from nbpatch.engine.lead import Lead
from nbpatch.engine.overwrites import Overwrites, Spots, write_over
from nbpatch.engine.packing import Group, continued, groups_of, packed, rectangles
from nbpatch.engine.rows import COMPONENT_NAMES, PRE, Ints, Rows
from nbpatch.engine.shims import Shim, Stopped, at_positions
from nbpatch.engine.stopping import Halted, never
from nbpatch.engine.trace import Trace
from nbpatch.errors import PatchNotApplied
from nbpatch.joint import Write
from nbpatch.parts import Parts

NONE = Tokens(np.empty(0, np.int64), np.empty(0, np.int64))


class Walk:
    """One wave on its way through the layers.

    Args:
        lead: base runs that are not in the trace yet; they go in front.
        joints: what rows that write at several places write to: their column `joint` counts it.
        bucket: suffixes start at multiples of it: fewer, larger groups for a few positions more.
        watch: look for the first layer that gives something else than numbers.
        halt: looked at before every layer; when it says so the walk ends.

    Attributes:
        first_nan: that layer, once the walk is done.
    """

    def __init__(
        self,
        rows: Rows,
        parts: Parts,
        trace: Trace,
        joints: Sequence[tuple[Write, ...]] = (),
        *,
        bucket: int,
        lead: Lead | None = None,
        watch: bool = False,
        halt: Callable[[], bool] = never,
    ) -> None:
        self.parts = parts
        self.watch = watch
        self.halt = halt
        self.first_nan: int | None = None
        self.trace = trace
        self.lead = lead
        self.n_lead = 0 if lead is None else len(lead.rows)
        if lead is not None:
            rows = Rows.joined([lead.rows, rows])
        like = trace.pre(0)
        self.device = like.device
        self.n_layers = len(parts.blocks)
        start = rows.first // bucket * bucket
        behind = np.arange(len(rows)) >= self.n_lead
        order = np.lexsort((rows.enter, start, rows.last, behind))
        self.order = order
        self.rows = rows.take(order)
        self.start = start[order]
        self.enter = self.rows.enter
        self.groups, self.at = groups_of(self.rows, self.start, self.enter, self.n_layers, self.n_lead)
        if lead is not None:
            lead.stand(order[: self.n_lead], self.at[: self.n_lead], self.start[: self.n_lead])
        d_model = like.shape[-1]
        total = max((group.at + group.size * (group.rows.stop - group.rows.start) for group in self.groups), default=0)
        self.hidden = like.new_empty(total, d_model)
        self.final = like.new_empty(len(rows), d_model)
        self.run = torch.from_numpy(self.rows.run).to(self.device)
        self.flops = 0.0
        self.entered, self.ended = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        self.over = Overwrites(self.rows, joints, trace)
        self.suffixes: Suffixes

    @torch.no_grad()
    def go(self) -> Float[Tensor, "row d_model"]:
        """Returns every row's last hidden state at its answer position: base runs, then rows, as they were given.

        Raises:
            Halted: the run was stopped.
            PatchNotApplied: a patch did not fire as planned.
        """
        with attending(self.parts, self._attend):
            for layer in range(int(self.rows.layer.min()), self.n_layers):
                if self.halt():
                    raise Halted
                self._join(layer)
                self._write_stream(layer)
                self._step(layer)
        self._join(self.n_layers)
        self._write_stream(self.n_layers)
        self.over.check()
        lost = np.flatnonzero((self.entered != 1) | (self.ended != 1))
        if len(lost):
            missing = f"{len(lost)} of {len(self.rows)} patches did not fire once."
            raise PatchNotApplied(missing, fix='model.engine = "replay"')
        ordered = torch.empty_like(self.final)
        ordered[torch.from_numpy(self.order).to(self.device)] = self.final
        return ordered

    def _attend(
        self, module: nn.Module, q: Queries, k: Keys, v: Values, mask: Any, options: Mapping[str, Any]
    ) -> Tensor:
        if self.lead is not None:
            self.lead.attention(self.suffixes.layer, module, q, k, v, mask, options)
        return self.suffixes(module, q, k, v, options)

    # -- rows that begin at a block's input

    def _join(self, layer: int) -> None:
        rows = np.flatnonzero((self.rows.kind == PRE) & (self.rows.layer == layer))
        self.entered[rows] += 1
        if layer == 0:
            lead, rows = rows[rows < self.n_lead], rows[rows >= self.n_lead]
            tokens = self._tokens(lead, self.start[lead], self.rows.last[lead])
            self.hidden[: len(tokens)] = self.base(0, tokens)
        if not len(rows):
            return
        if layer == self.n_layers:
            self.ended[rows] += 1
            tokens = self._tokens(rows, self.rows.last[rows], self.rows.last[rows])
            self.final[self.index(rows)] = residual_values(self.trace, layer, tokens, self.rows)
            return
        tokens = self._tokens(rows, self.start[rows], self.rows.last[rows])
        self.hidden[self.index(self.places(tokens))] = residual_values(self.trace, layer, tokens, self.rows)

    def _write_stream(self, layer: int) -> None:
        """Writes a block's input over, or the last hidden states behind all blocks."""
        ends = layer == self.n_layers
        spots = self.over.at("resid_pre", layer, ends=ends)
        if spots is not None and len(spots):
            at = spots.owner if ends else self.places(Tokens(spots.owner, spots.position))
            target = self.final if ends else self.hidden
            target[self.index(at)] = self.over.values("resid_pre", spots)

    # -- one block

    def _step(self, layer: int) -> None:
        active = [(group, self._active(group, layer)) for group in self.groups]
        active = [(group, count) for group, count in active if count]
        entries = [np.flatnonzero((self.rows.kind == kind) & (self.rows.layer == layer)) for kind in (1, 2, 3, 4)]
        last = layer == self.n_layers - 1
        if last and any(
            (self.rows.alone[rows] & (self.rows.pos[rows] != self.rows.last[rows])).any() for rows in entries
        ):
            raise PatchNotApplied("nothing reads the last layer there.", fix="the answer position")
        if not active and not any(map(len, entries)):
            return
        spans = [self._span(rows, last=last) for rows in entries]
        for rows in entries:
            self.entered[rows] += 1
        if last and active:
            ends, z = self._ends(layer, active)
            inside = Inside(self, layer, [], [ends, *spans], z)
            active = []
        else:
            inside = Inside(self, layer, active, [NONE, *spans], self.final[:0])
        out = inside.run()
        self.flops += inside.flops
        self._keep(layer, active, out, inside.spans)

    def _ends(self, layer: int, active: Sequence[tuple[Group, int]]) -> tuple[Tokens, Tensor]:
        """Returns z at each dense row's answer position: all that the last layer's attention is needed for."""
        rows = np.concatenate([np.arange(group.rows.start, group.rows.start + count) for group, count in active])
        packed = torch.cat([self.hidden[group.at : group.at + count * group.size] for group, count in active])
        positions = np.concatenate(
            [np.tile(np.arange(group.start, group.start + group.size), count) for group, count in active]
        )
        seen = self.trace.layers[layer]
        self.suffixes = Suffixes(self, layer, active, ends_only=True)
        block = self.parts.blocks[layer]
        self.flops += 2.0 * len(packed) * (block.attention_weights - block.project_weights)
        module: Any = block.module
        with suppress(Stopped):
            module(packed[None], **at_positions(seen.arguments, self.index(positions)))
        if self.lead is not None:
            self.lead.keep(layer, "z", self.suffixes.z, ends=True)
        return self._tokens(rows, self.rows.last[rows], self.rows.last[rows]), self.suffixes.z

    def _keep(self, layer: int, active: Sequence[tuple[Group, int]], out: Tensor, spans: Sequence[Tokens]) -> None:
        """Puts a block's output where the next layer finds it."""
        if self.watch and self.first_nan is None and not bool(torch.isfinite(out).all()):
            self.first_nan = layer
        done = 0
        for group, count in active:
            size = count * group.size
            self.hidden[group.at : group.at + size] = out[done : done + size]
            done += size
        tokens = Tokens.joined(spans)
        if self.lead is not None:
            ends = layer == self.n_layers - 1
            self.lead.keep(layer, "out", out[: self.n_lead if ends else self.lead.tokens], ends=ends)
        out = out[done:]
        if layer == self.n_layers - 1:
            self.final[self.index(tokens.owner)] = out
            np.add.at(self.ended, tokens.owner, 1)
            return
        if len(tokens):
            self._spread(layer + 1, spans)
            self.hidden[self.index(self.places(tokens))] = out

    def _spread(self, layer: int, spans: Sequence[Tokens]) -> None:
        """Fills rows that become dense at `layer` with the base run; their own tokens are written over it."""
        owners = np.concatenate([span.owner for span in spans])
        rows = np.unique(owners[self.rows.alone[owners]])
        if len(rows):
            tokens = self._tokens(rows, self.start[rows], self.rows.last[rows])
            self.hidden[self.index(self.places(tokens))] = self.base(layer, tokens)

    # -- where things are

    def _active(self, group: Group, layer: int) -> int:
        return int(np.searchsorted(self.enter[group.rows], layer, side="right"))

    def _span(self, rows: Ints, *, last: bool) -> Tokens:
        """Returns the tokens at which rows enter: one position, all from their first on, or the answer's alone."""
        end = self.rows.last[rows]
        alone = self.rows.alone[rows]
        begin = np.where(alone, self.rows.pos[rows], self.start[rows])
        stop = np.where(alone, self.rows.pos[rows], end)
        return self._tokens(rows, end, end) if last else self._tokens(rows, begin, stop)

    def _tokens(self, rows: Ints, begin: Ints, end: Ints) -> Tokens:
        size = end - begin + 1
        owner = np.repeat(rows, size)
        within = np.arange(len(owner)) - np.repeat(size.cumsum() - size, size)
        return Tokens(owner, np.repeat(begin, size) + within)

    def places(self, tokens: Tokens) -> Ints:
        """Returns where tokens stand in the packed buffer."""
        return self.at[tokens.owner] + tokens.position - self.start[tokens.owner]

    def base(self, layer: int, tokens: Tokens) -> Float[Tensor, "token d_model"]:
        """Returns the base run's input of a block at some tokens."""
        return self.trace.pre(layer)[self.index(self.rows.run[tokens.owner]), self.index(tokens.position)]

    def index(self, values: NDArray[np.int64]) -> Tensor:
        """Returns a column as an index on the walk's device."""
        return torch.from_numpy(values).to(self.device)


class Inside:
    """One block's run on the dense rows and on all that enters inside it, as one packed sequence.

    Args:
        spans: the tokens that enter: answer positions whose attention has been computed, then one kind after the
            other.
        z: what those answer positions' heads put out.
    """

    def __init__(
        self, walk: Walk, layer: int, active: Sequence[tuple[Group, int]], spans: Sequence[Tokens], z: Tensor
    ) -> None:
        self.walk = walk
        self.layer = layer
        self.active = active
        self.spans = spans
        self.z = z
        self.block = walk.parts.blocks[layer]
        self.seen = walk.trace.layers[layer]
        # The forward itself: what listens for the base runs, or stands in for it, is to leave it alone.
        self.down: Any = None if self.block.down is None else self.block.down.forward
        self.dense = sum(count * group.size for group, count in active)
        self.ends = len(spans[0]) > 0
        self.leading = 0 if walk.lead is None else walk.n_lead if self.ends else walk.lead.tokens
        self.mids = np.flatnonzero(walk.rows.component[spans[2].owner] == COMPONENT_NAMES.index("resid_mid"))
        self.mid_calls = 0
        self.flops = 0.0

    def run(self) -> Tensor:
        """Returns the block's output for every token."""
        walk, (_, heads, attn, neurons, mlp) = self.walk, map(len, self.spans)
        hidden = self._hidden()
        positions = [np.tile(np.arange(group.start, group.start + group.size), count) for group, count in self.active]
        where = walk.index(np.concatenate([*positions, np.empty(0, np.int64)]))
        walk.suffixes = Suffixes(walk, self.layer, self.active)
        written = len(self.z) + heads
        self.flops += 2.0 * self.dense * self.block.weights
        self.flops += 2.0 * ((written + attn) * self.block.mlp_weights + written * self.block.project_weights)
        shims = self._shims(len(hidden) - neurons - mlp)
        module: Any = self.block.module
        with all_replaced([(one.module, one) for one in shims]), self._listening():
            out = module(hidden[None], **at_positions(self.seen.arguments, where))
        lost = [type(one.module).__name__ for one in shims if one.calls != 1]
        if len(self.mids) and self.mid_calls != 1:
            lost.append(type(self.block.mid).__name__)
        if lost:
            raise PatchNotApplied(f"layer {self.layer} did not run its {lost[0]} once.", fix='model.engine = "replay"')
        return (out[0] if isinstance(out, tuple) else out)[0]

    def _hidden(self) -> Tensor:
        """Returns the residual stream the block begins with."""
        walk, (ends, *entering) = self.walk, self.spans
        packed = [walk.hidden[group.at : group.at + count * group.size] for group, count in self.active]
        if len(ends):
            packed.append(walk.hidden[walk.index(walk.places(ends))])
        entering = Tokens.joined(entering)
        if len(entering):
            packed.append(walk.base(self.layer, entering))
        return torch.cat(packed)

    def _shims(self, before: int) -> list[Shim]:
        """Returns the stand-ins for attention and MLP; the first `before` tokens go through the MLP."""
        block, returns = self.block, self.walk.trace.returns
        same = block.attn_out is block.attention
        keep = self._keeps("attn_out")
        shims = [
            Shim(block.attention, self.dense, self._attended, returns[id(block.attention)], keep if same else None)
        ]
        if not same:
            split = self.dense + len(self.z) + len(self.spans[1])
            shims.append(Shim(block.attn_out, split, self._added, returns[id(block.attn_out)], keep))
        keep = self._keeps("mlp_out")
        if block.mlp is not None and block.mlp is not block.mlp_out:
            shims.append(Shim(block.mlp, before, self._neurons_only, returns[id(block.mlp)]))
            split = before + len(self.spans[3])
            shims.append(Shim(block.mlp_out, split, self._mlp, returns[id(block.mlp_out)], keep))
        else:
            shims.append(Shim(block.mlp_out, before, self._neurons_and_mlp, returns[id(block.mlp_out)], keep))
        return shims

    def _keeps(self, name: str) -> Callable[[Tensor], None] | None:
        """Returns what is done with what a part has made: written down for base runs, written over in rows."""
        lead, over = self.walk.lead, self.walk.over
        kept = lead is not None and name in lead.kept
        if not kept and not over.has(name, self.layer):
            return None

        def keep(value: Tensor) -> None:
            if lead is not None and kept:
                lead.keep(self.layer, name, value[: self.leading], ends=self.ends)
            self._write_over(name, value)

        return keep

    def _write_over(self, name: str, value: Float[Tensor, "token d"], units: int = 1) -> None:
        """Writes patches of dense rows over what a part has made of the wave's first tokens, in place."""
        spots = self.walk.over.at(name, self.layer, ends=self.ends)
        if spots is not None and len(spots):
            at = self.walk.index(self._where(spots))
            write_over(value.view(len(value), units, -1), at, self.walk.over.values(name, spots), spots)

    def _where(self, spots: Spots) -> Ints:
        """Returns where spots of dense rows stand among the packed tokens."""
        if not self.ends:
            return packed(self.active, len(self.walk.rows))[spots.owner] + spots.position
        at = np.zeros(len(self.walk.rows), np.int64)
        at[self.spans[0].owner] = np.arange(len(self.spans[0]))
        return at[spots.owner]

    @contextmanager
    def _listening(self) -> Generator[None]:
        """Keeps, and where it is patched changes, what goes into the block's inner parts while it runs."""
        lead, attn = self.walk.lead, self.spans[2]
        kept = frozenset[str]() if lead is None else lead.kept

        def at_mid(module: nn.Module, args: tuple[Any, ...]) -> None:
            stream = args[0].view(-1, args[0].shape[-1])
            if lead is not None and "mid" in kept:
                lead.keep(self.layer, "mid", stream[: self.leading], ends=self.ends)
            self.mid_calls += 1
            self._write_over("resid_mid", stream)
            if len(self.mids):
                # In place: it is the tensor the residual connection goes on with.
                before = len(stream) - sum(map(len, self.spans[2:]))
                stream[self.walk.index(before + self.mids)] = mid_values(self.seen, attn.of(self.mids), self.walk.rows)

        def at_neurons(module: nn.Module, args: tuple[Any, ...]) -> None:
            neurons = args[0].view(-1, args[0].shape[-1])
            if lead is not None and "neurons" in kept:
                lead.keep(self.layer, "neurons", neurons[: self.leading], ends=self.ends)
            self._write_over("mlp_post", neurons, neurons.shape[1])

        over = self.walk.over
        with ExitStack() as stack:
            if self.block.mid is not None and (len(self.mids) or "mid" in kept or over.has("resid_mid", self.layer)):
                stack.callback(self.block.mid.register_forward_pre_hook(at_mid).remove)
            if self.block.down is not None and ("neurons" in kept or over.has("mlp_post", self.layer)):
                stack.callback(self.block.down.register_forward_pre_hook(at_neurons).remove)
            yield

    # -- what is given in place of what a part would make; asked for when the base runs have passed it

    def _attended(self) -> Tensor:
        """Returns what attention writes for all that is not dense."""
        walk, heads = self.walk, self.spans[1]
        z = [self.z] if len(self.z) else []
        if len(self.z):
            self._write_over("z", self.z, self.seen.q.shape[1])
        if len(heads):
            z.append(z_values(walk.trace, self.layer, heads, walk.rows))
        project: Any = self.block.project
        written = [project(torch.cat(z)[None])[0]] if z else []
        same = self.block.attn_out is self.block.attention
        keep = self._keeps("attn_out")
        if same and self.ends and keep is not None:
            keep(written[0])
        if not any(map(len, self.spans[2:])):
            return written[0]
        if not same:
            count = sum(map(len, self.spans[2:]))
            return torch.cat([*written, walk.final.new_zeros(count, walk.final.shape[1])])
        return torch.cat([*written, self._added()])

    def _added(self) -> Tensor:
        """Returns what attention adds for tokens that enter behind it."""
        rows, (attn, *later) = self.walk.rows, self.spans[2:]
        found = [attn_values(self.seen, attn, rows)] if len(attn) else []
        found += [vectors(self.seen.attn_out, rows.run[span.owner], span.position) for span in later if len(span)]
        return torch.cat(found)

    def _neurons(self) -> Tensor:
        walk = self.walk
        return self.down(neuron_values(self.seen, self.spans[3], walk.rows)[None])[0]

    def _mlp(self) -> Tensor:
        span = self.spans[4]
        return vectors(self.seen.mlp_out, self.walk.rows.source[span.owner], span.position)

    def _neurons_only(self) -> Tensor:
        """Returns what the MLP makes; the norm behind it is not run for the last, whose values come later."""
        found = [self._neurons()] if len(self.spans[3]) else []
        final = self.walk.final
        return torch.cat([*found, final.new_zeros(len(self.spans[4]), final.shape[1])])

    def _neurons_and_mlp(self) -> Tensor:
        found = [self._neurons()] if len(self.spans[3]) else []
        return torch.cat([*found, self._mlp()] if len(self.spans[4]) else found)


class Suffixes:
    """Attention of packed suffixes: each group's queries against base keys and values and its own."""

    def __init__(self, walk: Walk, layer: int, active: Sequence[tuple[Group, int]], *, ends_only: bool = False) -> None:
        self.walk = walk
        self.layer = layer
        self.seen = walk.trace.layers[layer]
        self.active = active
        self.ends_only = ends_only
        self.z = walk.final[:0]

    def __call__(self, module: nn.Module, q: Queries, k: Keys, v: Values, options: Mapping[str, Any]) -> Tensor:
        """Returns z [1 token head d_head]; with `ends_only`, keeps it for the last positions and leaves the block."""
        done = 0
        found: list[Tensor] = []
        for name, value in (("q", q), ("k", k), ("v", v)):
            self._write_over(name, value[0].transpose(0, 1))
        for group, count in self.active:
            size = count * group.size
            own = [rectangles(value[0, :, done : done + size], count) for value in (q, k, v)]
            done += size
            found.append(self._group(module, group, count, own, options))
        if self.ends_only:
            self.z = torch.cat([z[:, 0].flatten(1) for z in found])
            raise Stopped
        z = torch.cat([z.flatten(0, 1) for z in found])
        if self.walk.lead is not None:
            self.walk.lead.keep(self.layer, "z", z[: self.walk.lead.tokens].flatten(1), ends=False)
        self._write_over("z", z)
        return z[None]

    def _write_over(self, name: str, value: Float[Tensor, "token head d_head"]) -> None:
        """Writes patches of packed tokens over, in place: of one head, or of all."""
        spots = self.walk.over.at(name, self.layer)
        if spots is None:
            return
        at = self.walk.index(packed(self.active, len(self.walk.rows))[spots.owner] + spots.position)
        write_over(value, at, self.walk.over.values(name, spots), spots)

    def _group(
        self, module: nn.Module, group: Group, count: int, own: Sequence[Tensor], options: Mapping[str, Any]
    ) -> Tensor:
        q, k, v = own
        if group.start:
            runs = self.walk.run[group.rows][:count]
            bases = [base[group.runs, :, : group.start] for base in (self.seen.k, self.seen.v)]
            k, v = map(continued, bases, (runs, runs), (k, v))
        n = group.start + group.size
        mask = self.seen.mask[..., group.start : n, :n]
        if self.ends_only:
            q, mask = q[:, :, -1:], mask[..., -1:, :]
        return attend_as_family(module, q, k, v, mask, options)
