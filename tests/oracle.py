"""The slow twin: hand-written forwards of GPT-2 and Llama, one patched cell at a time, nothing shared with the engine.

`forward` calls `edit(component, layer, value)` at every site; `sweep` builds each cell's edit literally: run the
source, run the base with the chosen slice overwritten, read the metric.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Edit = Callable[[str, int, Tensor], Tensor]
AXES = {
    **dict.fromkeys(("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"), ("layer", "pos")),
    **dict.fromkeys(("z", "q", "k", "v"), ("layer", "head", "pos")),
    "pattern": ("layer", "head", "dest", "src"),
    "mlp_post": ("layer", "neuron", "pos"),
}


def keep_all(component: str, layer: int, value: Tensor) -> Tensor:
    """The edit that changes nothing."""
    return value


def forward(hf: Any, ids: Sequence[int], edit: Edit = keep_all) -> Tensor:
    """Returns logits [pos d_vocab] of one prompt."""
    with torch.no_grad():
        return _gpt2(hf, ids, edit) if hasattr(hf, "transformer") else _llama(hf, ids, edit)


def activations(hf: Any, ids: Sequence[int]) -> dict[tuple[str, int], Tensor]:
    """Returns every site's value of one prompt: [pos d] or [pos head d_head] or [head dest src]."""
    kept: dict[tuple[str, int], Tensor] = {}

    def keep(component: str, layer: int, value: Tensor) -> Tensor:
        kept[component, layer] = value.clone()
        return value

    forward(hf, ids, keep)
    return kept


def sweep(
    hf: Any,
    clean: Sequence[int],
    corrupted: Sequence[int],
    component: str,
    over: Sequence[str],
    direction: str,
    metric: Callable[[Tensor], float],
) -> np.ndarray:
    """Returns m(patched) for every cell [*over] of one pair of equal length, one full forward each."""
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    values = activations(hf, source)
    axes = AXES[component]
    example = values[component, 0]
    layers = max(layer for name, layer in values if name == component) + 1
    sizes = {"layer": layers, "pos": len(base), "dest": len(base), "src": len(base)}
    sizes["neuron"] = example.shape[1]
    sizes["head"] = example.shape[0 if component == "pattern" else 1] if "head" in axes else 1
    table = np.empty([sizes[axis] for axis in over])
    for cell in itertools.product(*(range(sizes[axis]) for axis in over)):
        chosen = dict(zip(over, cell, strict=True))
        table[cell] = metric(forward(hf, base, _overwrite(component, axes, chosen, values))[-1])
    return table


def _overwrite(
    component: str, axes: tuple[str, ...], chosen: Mapping[str, int], values: Mapping[tuple[str, int], Tensor]
) -> Edit:
    order = [axis for axis in axes if axis != "layer"]
    if component in ("z", "q", "k", "v"):
        order = ["pos", "head"]
    if component == "mlp_post":
        order = ["pos", "neuron"]
    where = tuple(chosen.get(axis, slice(None)) for axis in order)

    def edit(name: str, layer: int, value: Tensor) -> Tensor:
        if name != component or layer != chosen.get("layer", layer):
            return value
        changed = value.clone()
        changed[where] = values[component, layer][where]
        return changed

    return edit


def _attend(q: Tensor, k: Tensor, v: Tensor, edit: Edit, layer: int, turn: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns z [pos head d_head] for q [pos head d_head], k and v [pos kv_head d_head]."""
    q, k, v = edit("q", layer, q), edit("k", layer, k), edit("v", layer, v)
    q, k = turn(q), turn(k)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("dhe,she->hds", q, k) / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    pattern = edit("pattern", layer, scores.masked_fill(future, float("-inf")).softmax(-1))
    return edit("z", layer, torch.einsum("hds,she->dhe", pattern, v))


def _gpt2(hf: Any, ids: Sequence[int], edit: Edit) -> Tensor:
    core, heads = hf.transformer, hf.config.n_head
    x = core.wte.weight[list(ids)] + core.wpe.weight[: len(ids)]
    for layer, block in enumerate(core.h):
        x = edit("resid_pre", layer, x)
        joint = block.ln_1(x) @ block.attn.c_attn.weight + block.attn.c_attn.bias
        q, k, v = (part.reshape(len(ids), heads, -1) for part in joint.chunk(3, -1))
        z = _attend(q, k, v, edit, layer, lambda value: value)
        out = z.flatten(1) @ block.attn.c_proj.weight + block.attn.c_proj.bias
        x = edit("resid_mid", layer, x + edit("attn_out", layer, out))
        x = edit("resid_post", layer, x + edit("mlp_out", layer, _mlp(block, layer, edit, x)))
    return hf.lm_head(core.ln_f(x))


def _mlp(block: Any, layer: int, edit: Edit, x: Tensor) -> Tensor:
    return block.mlp.c_proj(edit("mlp_post", layer, block.mlp.act(block.mlp.c_fc(block.ln_2(x)))))


def _llama(hf: Any, ids: Sequence[int], edit: Edit) -> Tensor:
    core, size = hf.model, hf.config.head_dim
    x = core.embed_tokens.weight[list(ids)]
    cos, sin = (part[0][:, None] for part in core.rotary_emb(x, torch.arange(len(ids))[None]))

    def turn(value: Tensor) -> Tensor:
        left, right = value.chunk(2, -1)
        return value * cos + torch.cat([-right, left], -1) * sin

    for layer, block in enumerate(core.layers):
        x = edit("resid_pre", layer, x)
        normed, attn = block.input_layernorm(x), block.self_attn
        q, k, v = (proj(normed).reshape(len(ids), -1, size) for proj in (attn.q_proj, attn.k_proj, attn.v_proj))
        out = attn.o_proj(_attend(q, k, v, edit, layer, turn).flatten(1))
        x = edit("resid_mid", layer, x + edit("attn_out", layer, out))
        mlp, normed = block.mlp, block.post_attention_layernorm(x)
        neurons = edit("mlp_post", layer, mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        x = edit("resid_post", layer, x + edit("mlp_out", layer, mlp.down_proj(neurons)))
    return hf.lm_head(core.norm(x))
