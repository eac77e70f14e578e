"""The slow twin of path patching and of circuits: every part of GPT-2 and Llama written out, one run at a time.

A `Net` says what each single part makes of its own copy of the residual stream. `play` is a run of the whole model in
which some values are given instead of computed; a path patch is a few such runs. `circuit_logits` is a run in which
every input of every part has a residual stream of its own.

Of nbpatch it uses nothing: token ids and plain Hugging Face models come in, logits go out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Part(NamedTuple):
    """One sender ("embed", "z", "mlp_out") or one receiver ("q", "k", "v", "mlp", "logits")."""

    kind: str
    layer: int = -1
    head: int = -1


EMBED, LOGITS = Part("embed"), Part("logits")


def part(text: str) -> Part:
    """Reads "q[3.1]", "mlp[2]", "embed"."""
    kind, _, inside = text.strip().rstrip("]").partition("[")
    layer, _, head = inside.partition(".")
    return Part(kind, int(layer or -1), int(head or -1))


def parts(texts: str | Iterable[str]) -> list[Part]:
    """Reads several, in a list or with spaces between them."""
    return [part(one) for one in (texts.split() if isinstance(texts, str) else texts)]


def stages(texts: str | Iterable[str]) -> list[list[Part]]:
    """Reads "k[1.2] -> q[2.1] q[2.2] -> logits"; a list is one stage."""
    return [parts(one) for one in texts.split("->")] if isinstance(texts, str) else [parts(texts)]


# -- the model, part by part


class Net:
    """What each part makes of its own copy of the residual stream x [pos d_model]."""

    def __init__(self, hf: Any) -> None:
        config = hf.config
        self.hf, self.gpt2 = hf, hasattr(hf, "transformer")
        self.core = hf.transformer if self.gpt2 else hf.model
        self.n_layers, self.n_heads = config.num_hidden_layers, config.num_attention_heads
        self.n_kv = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.d_model = config.hidden_size
        self.d_head = getattr(config, "head_dim", None) or self.d_model // self.n_heads

    def kv_of(self, head: int) -> int:
        """Returns the key-value head that a query head uses."""
        return head // (self.n_heads // self.n_kv)

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Returns the input of block 0."""
        if self.gpt2:
            return self.core.wte.weight[list(ids)] + self.core.wpe.weight[: len(ids)]
        return self.core.embed_tokens.weight[list(ids)]

    def project(self, kind: str, layer: int, head: int, x: Tensor) -> Tensor:
        """Returns one head's query, key or value [pos d_head], before rotation."""
        block, columns = self._block(layer), slice(head * self.d_head, (head + 1) * self.d_head)
        if self.gpt2:
            joint, which = block.attn.c_attn, "qkv".index(kind)
            weight = joint.weight.split(self.d_model, 1)[which][:, columns]
            return block.ln_1(x) @ weight + joint.bias.split(self.d_model)[which][columns]
        linear = getattr(block.self_attn, f"{kind}_proj")
        out = block.input_layernorm(x) @ linear.weight[columns].T
        return out if linear.bias is None else out + linear.bias[columns]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns one head's z [pos d_head]."""
        length = len(q)
        scores = self._turned(q) @ self._turned(k).T / self.d_head**0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        return scores.masked_fill(future, float("-inf")).softmax(-1) @ v

    def written(self, layer: int, head: int, z: Tensor) -> Tensor:
        """Returns what one head adds to the residual stream [pos d_model], without the bias of all heads."""
        columns = slice(head * self.d_head, (head + 1) * self.d_head)
        if self.gpt2:
            return z @ self._block(layer).attn.c_proj.weight[columns]
        return z @ self._block(layer).self_attn.o_proj.weight[:, columns].T

    def bias(self, layer: int) -> Tensor:
        """Returns what attention adds whatever its heads do [d_model]."""
        block = self._block(layer)
        bias = block.attn.c_proj.bias if self.gpt2 else block.self_attn.o_proj.bias
        return torch.zeros(self.d_model) if bias is None else bias

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        """Returns what one MLP adds to the residual stream [pos d_model], its own biases included."""
        block = self._block(layer)
        if self.gpt2:
            return block.mlp.c_proj(block.mlp.act(block.mlp.c_fc(block.ln_2(x))))
        x = block.post_attention_layernorm(x)
        return block.mlp.down_proj(block.mlp.act_fn(block.mlp.gate_proj(x)) * block.mlp.up_proj(x))

    @torch.no_grad()
    def unembed(self, x: Tensor) -> Tensor:
        """Returns logits [d_vocab] at the last position, from the final norm's input."""
        return self.hf.lm_head((self.core.ln_f if self.gpt2 else self.core.norm)(x))[-1]

    def _block(self, layer: int) -> Any:
        return (self.core.h if self.gpt2 else self.core.layers)[layer]

    def _turned(self, value: Tensor) -> Tensor:
        if self.gpt2:
            return value
        cos, sin = (one[0] for one in self.core.rotary_emb(value[None], torch.arange(len(value))[None]))
        left, right = value.chunk(2, -1)
        return value * cos + torch.cat([-right, left], -1) * sin


# -- a run


@dataclass
class Run:
    """What stood where in one run.

    Attributes:
        streams: what each receiver read [pos d_model].
        values: each receiver's query, key, value [pos d_head], or MLP output [pos d_model].
        z: each head's output before W_O [pos d_head].
        outs: what each sender wrote into the residual stream [pos d_model].
    """

    streams: dict[Part, Tensor] = field(default_factory=dict)
    values: dict[Part, Tensor] = field(default_factory=dict)
    z: dict[Part, Tensor] = field(default_factory=dict)
    outs: dict[Part, Tensor] = field(default_factory=dict)


@torch.no_grad()
def play(net: Net, ids: Sequence[int], given: Mapping[Part, Tensor] | None = None) -> Run:
    """Returns a run of the model in which the values `given` stand in for those that it would compute.

    Keys of `given` are q, k, v: [pos d_head]; mlp, the same place as mlp_out: [pos d_model]; z: [pos d_head];
    embed: [pos d_model].
    """
    given, run = dict(given or {}), Run()
    x = given.get(EMBED, net.embed(ids))
    run.outs[EMBED] = x
    for layer in range(net.n_layers):
        for kind in "qkv":
            for head in range(net.n_heads if kind == "q" else net.n_kv):
                one = Part(kind, layer, head)
                run.streams[one] = x
                run.values[one] = given.get(one, net.project(kind, layer, head, x))
        total = x + net.bias(layer)
        for head in range(net.n_heads):
            one = Part("z", layer, head)
            run.z[one] = given.get(one, head_output(net, run.values, layer, head))
            run.outs[one] = net.written(layer, head, run.z[one])
            total = total + run.outs[one]
        x, one, sender = total, Part("mlp", layer), Part("mlp_out", layer)
        run.streams[one] = x
        run.values[one] = run.outs[sender] = given.get(one, given.get(sender, net.mlp(layer, x)))
        x = x + run.outs[sender]
    run.streams[LOGITS] = x
    return run


def plain_logits(net: Net, ids: Sequence[int]) -> Tensor:
    """Returns the logits [d_vocab] at the last position of a run in which nothing is given."""
    return net.unembed(play(net, ids).streams[LOGITS])


def head_output(net: Net, values: Mapping[Part, Tensor], layer: int, head: int) -> Tensor:
    """Returns one head's z [pos d_head] from the queries, keys and values given."""
    kv = net.kv_of(head)
    return net.attend(values[Part("q", layer, head)], values[Part("k", layer, kv)], values[Part("v", layer, kv)])


# -- which comes first


def wrote_at(sender: Part) -> int:
    """Returns when a sender writes: attention of layer i at 2i, its MLP at 2i + 1."""
    return {"embed": -1, "z": 2 * sender.layer, "mlp_out": 2 * sender.layer + 1}[sender.kind]


def reads_at(receiver: Part) -> float:
    """Returns when a receiver reads: all that was written before."""
    if receiver.kind == "logits":
        return float("inf")
    return 2 * receiver.layer + (receiver.kind == "mlp")


def precedes(sender: Part, receiver: Part) -> bool:
    """Whether there is a path from a sender to a receiver."""
    return wrote_at(sender) < reads_at(receiver)


def writers(net: Net, receivers: Iterable[Part]) -> list[Part]:
    """Returns the senders that write differently when these receivers read something else."""
    found: list[Part] = []
    for one in receivers:
        if one.kind == "mlp":
            found.append(Part("mlp_out", one.layer))
        elif one.kind != "logits":
            shares = [one.head] if one.kind == "q" else [h for h in range(net.n_heads) if net.kv_of(h) == one.head]
            found += [Part("z", one.layer, head) for head in shares]
    return sorted(set(found), key=lambda one: (wrote_at(one), one.head))


def connected(net: Net, senders: Sequence[Part], chain: Sequence[Sequence[Part]]) -> bool:
    """Whether the senders reach the last stage, stage by stage."""
    for stage in chain:
        reached = [one for one in stage if any(precedes(sender, one) for sender in senders)]
        if not reached:
            return False
        senders = writers(net, reached)
    return True


# -- path patching


@torch.no_grad()
def path_logits(
    net: Net,
    base_ids: Sequence[int],
    source_ids: Sequence[int],
    senders: Sequence[Part],
    chain: Sequence[Sequence[Part]],
    variant: str,
) -> Tensor:
    """Returns the logits [d_vocab] at the last position when the senders' change goes along the chain of stages."""
    base, source = play(net, base_ids), play(net, source_ids)
    # What the present senders put out instead, as the value that `play` takes.
    sent: dict[Part, Tensor] = {
        one: source.z[one] if one.kind == "z" else source.outs[one] for one in senders
    }  # fmt: skip
    for number, stage in enumerate(chain):
        streams = (_wang_streams if variant == "wang" else _direct_streams)(net, base, base_ids, sent, stage)
        received = {one: _received(net, one, streams[one]) for one in stage if one.kind != "logits"}
        if number == len(chain) - 1:
            break
        sent = _sent_on(net, base, received)
    final = base.streams[LOGITS] + (streams[LOGITS] - base.streams[LOGITS] if LOGITS in stage else 0)
    if variant == "tree":
        for one, value in _sent_on(net, base, received).items():
            final = final + _out(net, one, value) - base.outs[one]
    else:
        final = final + play(net, base_ids, received).streams[LOGITS] - base.streams[LOGITS]
    return net.unembed(final)


def _direct_streams(
    net: Net, base: Run, ids: Sequence[int], sent: Mapping[Part, Tensor], stage: Iterable[Part]
) -> dict[Part, Tensor]:
    """Returns each receiver's own copy: the base run's, with the change of every sender before it added."""
    found: dict[Part, Tensor] = {}
    for receiver in stage:
        found[receiver] = base.streams[receiver]
        for sender, value in sent.items():
            if precedes(sender, receiver):
                found[receiver] = found[receiver] + _out(net, sender, value) - base.outs[sender]
    return found


def _wang_streams(
    net: Net, base: Run, ids: Sequence[int], sent: Mapping[Part, Tensor], stage: Iterable[Part]
) -> dict[Part, Tensor]:
    """Returns what each receiver reads when all heads but the senders are frozen, and MLPs but the senders are not."""
    frozen = play(net, ids, {**base.z, **sent})
    return {receiver: frozen.streams[receiver] for receiver in stage}


def _received(net: Net, receiver: Part, stream: Tensor) -> Tensor:
    if receiver.kind == "mlp":
        return net.mlp(receiver.layer, stream)
    return net.project(receiver.kind, receiver.layer, receiver.head, stream)


def _sent_on(net: Net, base: Run, received: Mapping[Part, Tensor]) -> dict[Part, Tensor]:
    """Returns what heads and MLPs put out when nothing but what they received differs from the base run."""
    values = {**base.values, **received}
    return {
        one: values[Part("mlp", one.layer)] if one.kind == "mlp_out" else head_output(net, values, one.layer, one.head)
        for one in writers(net, received)
    }


def _out(net: Net, sender: Part, value: Tensor) -> Tensor:
    return net.written(sender.layer, sender.head, value) if sender.kind == "z" else value


# -- circuits


def all_senders(net: Net) -> list[Part]:
    """Returns the senders in the order of a graph."""
    found = [EMBED]
    for layer in range(net.n_layers):
        found += [Part("z", layer, head) for head in range(net.n_heads)]
        found.append(Part("mlp_out", layer))
    return found


def all_inputs(net: Net) -> list[Part]:
    """Returns the receivers in the order of a graph."""
    found: list[Part] = []
    for layer in range(net.n_layers):
        found += [Part("q", layer, head) for head in range(net.n_heads)]
        found += [Part(kind, layer, head) for kind in "kv" for head in range(net.n_kv)]
        found.append(Part("mlp", layer))
    return [*found, LOGITS]


def all_edges(net: Net) -> np.ndarray:
    """Returns where there is an edge [sender input]."""
    return np.array([[precedes(sender, one) for one in all_inputs(net)] for sender in all_senders(net)])


def ablated_by_run(net: Net, ids: Sequence[int]) -> dict[Part, Tensor]:
    """Returns what each sender writes in another run."""
    return play(net, ids).outs


def ablated_by_zero(net: Net, length: int) -> dict[Part, Tensor]:
    """Returns nothing for each sender."""
    return {one: torch.zeros(length, net.d_model) for one in all_senders(net)}


def ablated_by_mean(
    net: Net, prompts: Sequence[Sequence[int]], length: int, *, per_position: bool = True
) -> dict[Part, Tensor]:
    """Returns each sender's mean over prompts: of those that have the position, or over all of their positions."""
    runs = [play(net, ids).outs for ids in prompts]
    found: dict[Part, Tensor] = {}
    for one in all_senders(net):
        if per_position:
            rows = [torch.stack([run[one][at] for run in runs if at < len(run[one])]).mean(0) for at in range(length)]
            found[one] = torch.stack(rows)
        else:
            found[one] = torch.cat([run[one] for run in runs]).mean(0).expand(length, -1)
    return found


@torch.no_grad()
def circuit_logits(net: Net, ids: Sequence[int], kept: np.ndarray, ablated: Mapping[Part, Tensor]) -> Tensor:
    """Returns the logits [d_vocab] at the last position when only the edges kept carry what their sender writes now.

    Args:
        kept: [sender input] or [sender input pos].
        ablated: what each sender writes along every edge that is not kept [pos d_model].
    """
    senders, inputs = all_senders(net), all_inputs(net)
    mask = torch.tensor(np.asarray(kept, bool))
    if mask.ndim == 2:
        mask = mask[:, :, None].expand(-1, -1, len(ids))
    now: dict[Part, Tensor] = {EMBED: net.embed(ids)}

    def stream(receiver: Part) -> Tensor:
        """Returns one receiver's own copy: all senders ablated, then the edges kept put in their sender's change."""
        copy = torch.zeros(len(ids), net.d_model)
        for layer in range(net.n_layers):
            if precedes(Part("z", layer, 0), receiver):
                copy = copy + net.bias(layer)
        for number, sender in enumerate(senders):
            if precedes(sender, receiver):
                carries = mask[number, inputs.index(receiver)][:, None]
                copy = copy + torch.where(carries, now[sender], ablated[sender])
        return copy

    for layer in range(net.n_layers):
        values: dict[Part, Tensor] = {}
        for kind in "qkv":
            for head in range(net.n_heads if kind == "q" else net.n_kv):
                one = Part(kind, layer, head)
                values[one] = net.project(kind, layer, head, stream(one))
        for head in range(net.n_heads):
            now[Part("z", layer, head)] = net.written(layer, head, head_output(net, values, layer, head))
        now[Part("mlp_out", layer)] = net.mlp(layer, stream(Part("mlp", layer)))
    return net.unembed(stream(LOGITS))
