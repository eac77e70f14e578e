"""The slow twin of attribution: hand-written forwards of GPT-2 and Llama with torch autograd, one pair at a time.

Every receiver reads its own copy of the residual stream: each head's query, each key-value head's key and value, each
MLP, the final norm. `Tape` sees every site and every copy by name; the gradient at a place is that of a zero that is
added there. Weights are taken from the Hugging Face model and made float64; norms, rotary embedding and attention are
written out. Nothing is shared with nbpatch.

Places are (name, layer). Sites: embed, resid_pre, q, k (after norm and rotary), v, pattern, z, head_out, attn_out,
resid_mid, mlp_post, mlp_out, resid_post. Copies: "a3.1.q", "a3.1.k" ("a3.kv0.k" where heads share keys), "m2",
"logits", as edges are printed.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

Place = tuple[str, int]
Edit = Callable[[str, int, Tensor], Tensor]
Metric = Callable[[Tensor], Tensor]
"""Logits [d_vocab] at the last position → a number that can be differentiated."""

RESIDUAL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
HEADS = ("q", "k", "v", "z", "head_out")
AXES = {
    "embed": ("pos",),
    **dict.fromkeys(RESIDUAL, ("layer", "pos")),
    **dict.fromkeys(HEADS, ("layer", "head", "pos")),
    "pattern": ("layer", "head", "dest", "src"),
    "mlp_post": ("layer", "neuron", "pos"),
}
# The axes of one layer's score, as they come out of the forward.
_ORDER = {**{name: axes[1:] for name, axes in AXES.items()}, **dict.fromkeys(HEADS, ("pos", "head"))}
_ORDER |= {"embed": ("pos",), "mlp_post": ("pos", "neuron")}


def keep(name: str, layer: int, value: Tensor) -> Tensor:
    """The edit that changes nothing."""
    return value


# -- the model


@dataclass(frozen=True)
class Layer:
    """One block: W_Q [head d_model d_head], W_K and W_V [kv d_model d_head], W_O [head d_head d_model]."""

    read: Callable[[Tensor], Tensor]
    w: dict[str, Tensor]
    b: dict[str, Tensor]
    own_norm: dict[str, Callable[[Tensor], Tensor]]
    w_o: Tensor
    b_o: Tensor
    read_mlp: Callable[[Tensor], Tensor]
    neurons: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Net:
    """A model taken apart; `start` is what is added to the token embeddings, `turn` the rotary embedding."""

    tokens: Tensor
    start: Callable[[int], Tensor]
    layers: tuple[Layer, ...]
    turn: Callable[[Tensor], Tensor]
    final: Callable[[Tensor], Tensor]
    unembed: Tensor

    @property
    def groups(self) -> int:
        """How many query heads share one key-value head."""
        return len(self.layers[0].w["q"]) // len(self.layers[0].w["k"])

    def reader(self, part: str, layer: int, head: int) -> str:
        """Returns the name of the copy of the stream that a head's query, key or value is made from."""
        shared = "kv" if part != "q" and self.groups > 1 else ""
        return f"a{layer}.{shared}{head}.{part}"


@lru_cache(maxsize=8)
def net_of(hf: Any) -> Net:
    """Returns a model's parts in float64."""
    wide = copy.deepcopy(hf).double().requires_grad_(False)
    return _gpt2(wide) if hasattr(wide, "transformer") else _llama(wide)


def _gpt2(hf: Any) -> Net:
    core, heads = hf.transformer, hf.config.n_head

    def layer(block: Any) -> Layer:
        width = block.attn.c_attn.weight.shape[0]
        columns = block.attn.c_attn.weight.reshape(width, 3, heads, -1)
        offsets = block.attn.c_attn.bias.reshape(3, heads, -1)
        return Layer(
            read=block.ln_1,
            w={part: columns[:, i].transpose(0, 1) for i, part in enumerate("qkv")},
            b={part: offsets[i] for i, part in enumerate("qkv")},
            own_norm={"q": _same, "k": _same},
            w_o=block.attn.c_proj.weight.reshape(heads, -1, width),
            b_o=block.attn.c_proj.bias,
            read_mlp=block.ln_2,
            neurons=lambda x: block.mlp.act(x @ block.mlp.c_fc.weight + block.mlp.c_fc.bias),
            down=lambda x: x @ block.mlp.c_proj.weight + block.mlp.c_proj.bias,
        )

    return Net(
        tokens=core.wte.weight,
        start=lambda length: core.wpe.weight[:length],
        layers=tuple(layer(block) for block in core.h),
        turn=_same,
        final=core.ln_f,
        unembed=hf.lm_head.weight,
    )


def _llama(hf: Any) -> Net:
    """Llama, and Qwen 3, whose heads have a norm of their own for queries and keys."""
    core, config = hf.model, hf.config
    width, size = config.hidden_size, config.head_dim

    def rms(module: Any) -> Callable[[Tensor], Tensor]:
        def norm(x: Tensor) -> Tensor:
            return module.weight * x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()

        return norm

    def split(linear: Any) -> tuple[Tensor, Tensor]:
        weight = linear.weight.T.reshape(width, -1, size).transpose(0, 1)
        if linear.bias is None:
            return weight, torch.zeros(len(weight), size, dtype=weight.dtype)
        return weight, linear.bias.reshape(-1, size)

    def layer(block: Any) -> Layer:
        attn, mlp = block.self_attn, block.mlp
        parts = {part: split(getattr(attn, f"{part}_proj")) for part in "qkv"}
        norms = {part: getattr(attn, f"{part}_norm", None) for part in "qk"}
        assert attn.o_proj.bias is None
        return Layer(
            read=rms(block.input_layernorm),
            w={part: weight for part, (weight, _) in parts.items()},
            b={part: bias for part, (_, bias) in parts.items()},
            own_norm={part: _same if module is None else rms(module) for part, module in norms.items()},
            w_o=attn.o_proj.weight.T.reshape(-1, size, width),
            b_o=torch.zeros(width, dtype=torch.float64),
            read_mlp=rms(block.post_attention_layernorm),
            neurons=lambda x: torch.nn.functional.silu(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T),
            down=lambda x: x @ mlp.down_proj.weight.T,
        )

    def turn(value: Tensor) -> Tensor:
        """Turns each head's dimensions i and i + size / 2 by pos · theta ^ (−2 i / size)."""
        angle = torch.arange(len(value)).double()[:, None] / config.rope_parameters["rope_theta"] ** (
            torch.arange(0, size, 2).double() / size
        )
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        left, right = value.chunk(2, -1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)

    assert config.hidden_act == "silu"
    assert config.rope_parameters["rope_type"] == "default"
    return Net(
        tokens=core.embed_tokens.weight,
        start=lambda length: torch.zeros(length, width, dtype=torch.float64),
        layers=tuple(layer(block) for block in core.layers),
        turn=turn,
        final=rms(core.norm),
        unembed=hf.lm_head.weight,
    )


def _same(value: Tensor) -> Tensor:
    return value


def forward(net: Net, ids: Sequence[int], see: Edit = keep) -> Tensor:
    """Returns logits [d_vocab] at the last position; `see` is handed every site and every copy of the stream."""
    x = see("embed", 0, net.tokens[list(ids)]) + net.start(len(ids))
    future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    for number, layer in enumerate(net.layers):
        x = see("resid_pre", number, x)
        made = {}
        for part in "qkv":
            heads = []
            for head in range(len(layer.w[part])):
                own = see(net.reader(part, number, head), number, x)
                heads.append(layer.read(own) @ layer.w[part][head] + layer.b[part][head])
            made[part] = torch.stack(heads, 1)
        q = see("q", number, net.turn(layer.own_norm["q"](made["q"])))
        k = see("k", number, net.turn(layer.own_norm["k"](made["k"])))
        v = see("v", number, made["v"])
        pattern = see("pattern", number, attended(q, k, future))
        z = torch.stack([pattern[head] @ v[:, head // net.groups] for head in range(q.shape[1])], 1)
        head_out = see("head_out", number, torch.einsum("phe,hed->phd", see("z", number, z), layer.w_o))
        x = see("resid_mid", number, x + see("attn_out", number, head_out.sum(1) + layer.b_o))
        neurons = see("mlp_post", number, layer.neurons(layer.read_mlp(see(f"m{number}", number, x))))
        x = see("resid_post", number, x + see("mlp_out", number, layer.down(neurons)))
    return (net.final(see("logits", len(net.layers), x)) @ net.unembed.T)[-1]


def attended(q: Tensor, k: Tensor, future: Tensor) -> Tensor:
    """Returns the pattern [head dest src] of queries [pos head d_head] and keys [pos kv d_head]."""
    groups = q.shape[1] // k.shape[1]
    scores = [q[:, head] @ k[:, head // groups].T / q.shape[-1] ** 0.5 for head in range(q.shape[1])]
    return torch.stack(scores).masked_fill(future, float("-inf")).softmax(-1)


# -- gradients


@dataclass
class Tape:
    """Sees a forward: `values` and, after `back`, gradients of the metric at every place.

    Attributes:
        edit: what is done at each place before it is seen.
        dropped: places behind which no gradient flows back, into their own either.
    """

    edit: Edit = keep
    dropped: tuple[Place, ...] = ()
    values: dict[Place, Tensor] = field(default_factory=dict)
    probes: dict[Place, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, layer: int, value: Tensor) -> Tensor:
        value = self.edit(name, layer, value)
        assert (name, layer) not in self.values
        self.values[name, layer] = value.detach()
        probe = self.probes[name, layer] = torch.zeros_like(value).requires_grad_()
        value = value + probe
        return value.detach() if (name, layer) in self.dropped else value

    def back(self, value: Tensor) -> dict[Place, Tensor]:
        found = torch.autograd.grad(value, list(self.probes.values()), allow_unused=True)
        return {
            place: torch.zeros_like(probe) if grad is None else grad
            for (place, probe), grad in zip(self.probes.items(), found, strict=True)
        }


@lru_cache(maxsize=256)
def gradients(
    net: Net, ids: tuple[int, ...], metric: Metric, edit: Edit = keep, dropped: tuple[Place, ...] = ()
) -> dict[Place, Tensor]:
    """Returns ∂m/∂a at every place of one run."""
    tape = Tape(edit, dropped)
    return tape.back(metric(forward(net, ids, tape)))


@lru_cache(maxsize=256)
def values(net: Net, ids: tuple[int, ...], edit: Edit = keep) -> dict[Place, Tensor]:
    """Returns what stands at every place of one run."""
    tape = Tape(edit)
    forward(net, ids, tape)
    return tape.values


def mean_of(many: Iterable[dict[Place, Tensor]]) -> dict[Place, Tensor]:
    every = list(many)
    return {place: torch.stack([one[place] for one in every]).mean(0) for place in every[0]}


def towards(place: Place, change: Tensor, share: float) -> Edit:
    """Returns the edit that adds a share of a change at one place, and leaves the rest to follow."""
    return lambda name, layer, value: value + share * change if (name, layer) == place else value


# -- pairs


@dataclass(frozen=True)
class Two:
    """The two runs of a pair in one direction.

    Attributes:
        base, source: token ids.
        moved: base position → the source position whose value goes there.
        named: clean position → base position, for those that have one.
        length: of the clean prompt.
    """

    base: tuple[int, ...]
    source: tuple[int, ...]
    moved: dict[int, int]
    named: dict[int, int]
    length: int


def two(one: Any, direction: str) -> Two:
    """Returns the runs of a `TokenizedPair`."""
    if direction == "denoising":
        moved = {corrupted: clean for clean, corrupted in one.aligned}
        return Two(one.corrupted_ids, one.clean_ids, moved, dict(one.aligned), len(one.clean_ids))
    assert direction == "noising"
    named = {clean: clean for clean, _ in one.aligned}
    return Two(one.clean_ids, one.corrupted_ids, dict(one.aligned), named, len(one.clean_ids))


def metric_of(net: Net, one: Any, name: str = "logit_diff") -> Metric:
    """Returns a metric of one pair, written out; the same function each time it is asked for."""
    return _metric(net, name, tuple(one.clean_ids), tuple(one.answer_ids), tuple(one.wrong_ids))


@lru_cache(maxsize=256)
def _metric(net: Net, name: str, ids: tuple[int, ...], answers: tuple[int, ...], wrongs: tuple[int, ...]) -> Metric:
    clean = forward(net, ids).log_softmax(-1)
    found: dict[str, Metric] = {
        "logit_diff": lambda logits: logits[list(answers)].mean() - logits[list(wrongs)].mean(),
        "prob": lambda logits: logits.softmax(-1)[list(answers)].sum(),
        "log_prob": lambda logits: logits.softmax(-1)[list(answers)].sum().log(),
        "kl": lambda logits: -(clean.exp() * (clean - logits.log_softmax(-1))).sum(),
    }
    return found[name]


# -- attribution of sites


def attribute(
    hf: Any,
    one: Any,
    component: str,
    over: str | Sequence[str],
    *,
    method: str = "atp",
    direction: str = "denoising",
    metric: str | Metric = "logit_diff",
    steps: int = 10,
) -> np.ndarray:
    """Returns one pair's scores [*over], axes in the order named; NaN at clean positions that have no partner."""
    net, runs = net_of(hf), two(one, direction)
    axes = over.split() if isinstance(over, str) else list(over)
    measured = metric_of(net, one, metric) if isinstance(metric, str) else metric
    if method == "atp":
        return _cells(net, runs, component, axes, gradients(net, runs.base, measured), fixed=False)
    if method == "ig":
        found = _along_embeddings(net, runs.base, runs.source, measured, steps)
        return _cells(net, runs, component, axes, found, fixed=False)
    assert method == "atp*"
    fixed = component in ("q", "k")
    undropped = _cells(net, runs, component, axes, gradients(net, runs.base, measured), fixed=fixed)
    magnitude = np.zeros_like(undropped)
    for layer in range(len(net.layers)):
        through = (("attn_out", layer), ("mlp_out", layer))
        found = gradients(net, runs.base, measured, dropped=through)
        magnitude += np.abs(_cells(net, runs, component, axes, found, fixed=fixed))
    return np.sign(undropped) * magnitude / (len(net.layers) - 1)


@lru_cache(maxsize=64)
def _along_embeddings(
    net: Net, base: tuple[int, ...], source: tuple[int, ...], measured: Metric, steps: int
) -> dict[Place, Tensor]:
    """Returns the mean gradient over 1 / steps, 2 / steps … 1 of the way from base to source at the input."""
    place = ("resid_pre", 0)
    change = values(net, source)[place] - values(net, base)[place]
    return mean_of(gradients(net, base, measured, towards(place, change, k / steps)) for k in range(1, steps + 1))


def _cells(
    net: Net, runs: Two, component: str, axes: list[str], found: dict[Place, Tensor], *, fixed: bool
) -> np.ndarray:
    """Returns what each cell changes, to first order."""
    base, source = values(net, runs.base), values(net, runs.source)
    layers = [0] if component == "embed" else range(len(net.layers))
    grids = []
    for layer in layers:
        if fixed:
            grids.append(_repatterned(net, runs, component, "pos" in axes, (base, source), found, layer))
            continue
        own = base[component, layer]
        theirs = _moved(runs, component, own, source[component, layer])
        score = (theirs - own) * found[component, layer]
        grids.append(score if component in ("mlp_post", "pattern") else score.sum(-1))
    return _summed(runs, component, axes, torch.stack(grids).numpy())


def _moved(runs: Two, component: str, own: Tensor, theirs: Tensor) -> Tensor:
    """Returns the base run's value with that of the source run wherever a position has a partner."""
    if component == "pattern":
        assert own.shape == theirs.shape
        assert all(at == to for at, to in runs.moved.items())
        return theirs
    value = own.clone()
    for to, at in runs.moved.items():
        value[to] = theirs[at]
    return value


def _repatterned(
    net: Net,
    runs: Two,
    component: str,
    one_by_one: bool,
    both: tuple[dict[Place, Tensor], dict[Place, Tensor]],
    found: dict[Place, Tensor],
    layer: int,
) -> Tensor:
    """Returns (new pattern − pattern) · ∂m/∂pattern [pos head], the queries or keys of each cell replaced.

    Of keys that are all replaced at once the whole stands at the first position, to be summed.
    """
    base, source = both
    own = base[component, layer]
    theirs = _moved(runs, component, own, source[component, layer])
    score = torch.zeros(own.shape[:2], dtype=own.dtype)
    future = torch.ones(len(own), len(own), dtype=torch.bool).triu(1)
    for head in range(own.shape[1]):
        for pos in range(len(own)) if one_by_one else [0]:
            where = pos if one_by_one else slice(None)
            changed = own.clone()
            changed[where, head] = theirs[where, head]
            q, k = (changed, base["k", layer]) if component == "q" else (base["q", layer], changed)
            pattern = attended(q, k, future)
            score[pos, head] = ((pattern - base["pattern", layer]) * found["pattern", layer]).sum()
    return score


def _summed(runs: Two, component: str, axes: list[str], grid: np.ndarray) -> np.ndarray:
    """Returns scores [*axes] of scores [layer *], base positions renamed to clean ones, other axes summed over."""
    names = ["layer", *_ORDER[component]]
    places = [axis for axis in names if axis in ("pos", "dest", "src")]
    for axis in places:
        at = names.index(axis)
        if axis in axes:
            renamed = np.full([*grid.shape[:at], runs.length, *grid.shape[at + 1 :]], np.nan)
            for clean, base in runs.named.items():
                renamed[(slice(None),) * at + (clean,)] = grid[(slice(None),) * at + (base,)]
            grid = renamed
    dropped = tuple(i for i, name in enumerate(names) if name not in axes)
    grid = grid.sum(dropped)
    left = [name for name in names if name in axes]
    return grid.transpose([left.index(axis) for axis in axes])


# -- attribution of edges


def nodes(net: Net) -> list[str]:
    """Returns the senders in the order in which they write."""
    found = ["embed"]
    for number, layer in enumerate(net.layers):
        found += [f"a{number}.{head}" for head in range(len(layer.w["q"]))] + [f"m{number}"]
    return found


def readers(net: Net) -> list[tuple[str, int, int]]:
    """Returns each receiver input, its layer, and how many senders have written before it reads."""
    found, heads = [], len(net.layers[0].w["q"])
    for number, layer in enumerate(net.layers):
        before = 1 + number * (heads + 1)
        for part in "qkv":
            found += [(net.reader(part, number, head), number, before) for head in range(len(layer.w[part]))]
        found.append((f"m{number}", number, before + heads))
    return [*found, ("logits", len(net.layers), 1 + len(net.layers) * (heads + 1))]


def written(net: Net, seen: dict[Place, Tensor], sender: str) -> Tensor:
    """Returns what a sender adds to the stream [pos d_model]."""
    if sender == "embed":
        return seen["resid_pre", 0]
    if sender.startswith("m"):
        return seen["mlp_out", int(sender[1:])]
    layer, head = map(int, sender[1:].split("."))
    return seen["z", layer][:, head] @ net.layers[layer].w_o[head]


def eap(
    hf: Any,
    one: Any,
    *,
    method: str = "eap",
    direction: str = "denoising",
    metric: str | Metric = "logit_diff",
    steps: int = 5,
) -> dict[tuple[str, str], np.ndarray]:
    """Returns one pair's score of each edge at each position [pos], by the names of sender and receiver input."""
    net, runs = net_of(hf), two(one, direction)
    assert len(runs.base) == len(runs.source)
    measured = metric_of(net, one, metric) if isinstance(metric, str) else metric
    base, source = values(net, runs.base), values(net, runs.source)
    found = {}
    slopes: dict[Place, dict[Place, Tensor]] = {}
    for number, sender in enumerate(nodes(net)):
        change = written(net, source, sender) - written(net, base, sender)
        group = _group(sender) if method == "eap-ig-activations" else ("", 0)
        if group not in slopes:
            slopes[group] = _slopes(net, runs, measured, method, steps, group)
        slope = slopes[group]
        for reader, layer, before in readers(net):
            if number < before:
                found[sender, reader] = (change * slope[reader, layer]).sum(-1).numpy()
    return found


def _group(sender: str) -> Place:
    """Returns the place where the sender's group writes: the input, a layer's heads together, or an MLP."""
    if sender == "embed":
        return ("resid_pre", 0)
    layer = int(sender[1:].partition(".")[0])
    return ("head_out", layer) if sender.startswith("a") else ("mlp_out", layer)


def _slopes(net: Net, runs: Two, measured: Metric, method: str, steps: int, group: Place) -> dict[Place, Tensor]:
    """Returns the gradient at every copy of the stream, for edges from one group of senders."""
    if method == "eap":
        return gradients(net, runs.base, measured)
    if method == "clean-corrupted":
        return mean_of(gradients(net, ids, measured) for ids in (runs.base, runs.source))
    if method == "eap-ig":
        return _along_embeddings(net, runs.base, runs.source, measured, steps)
    assert method == "eap-ig-activations"
    change = values(net, runs.source)[group] - values(net, runs.base)[group]
    return mean_of(gradients(net, runs.base, measured, towards(group, change, k / steps)) for k in range(1, steps + 1))
