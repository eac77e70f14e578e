"""Whether what heads and MLPs write adds up in the residual stream, and with which factor: found once per model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nbpatch.engine.entries import present
from nbpatch.engine.selftest import TOLERANCE
from nbpatch.engine.trace import Trace, trace
from nbpatch.model import Model
from nbpatch.parts import Parts

_LENGTH = 7


@dataclass(frozen=True)
class Additive:
    """How senders write into the residual stream.

    Attributes:
        z, mlp_out: per layer, by how much the block multiplies what they write.
    """

    z: Sequence[float]
    mlp_out: Sequence[float]


def scales_of(model: Model, parts: Parts, senders: str) -> tuple[list[float], str]:
    """Returns, per layer, by how much the block multiplies what senders write, and why that is not known, or "".

    The factor is 1 everywhere but in Granite. Where the block's output is not its input plus both parts, or heads do
    not add up to what attention writes, there is none.

    Args:
        senders: "z", "mlp_out" or "embed", which nothing multiplies.
    """
    if senders == "embed":
        return [], ""
    name = f"scales of {senders}"
    if name not in model.notes:
        model.notes[name] = _found(model, parts, senders)
    return model.notes[name]


@torch.no_grad()
def _found(model: Model, parts: Parts, senders: str) -> tuple[list[float], str]:
    ids = torch.randint(0, model.shape.d_vocab, (2, _LENGTH), generator=torch.Generator().manual_seed(0))
    with model.lock:
        traced = trace(parts, ids.tolist(), device=model.device, max_tokens=2**30)
        scales: list[float] = []
        for layer in range(len(parts.blocks)):
            scale, why = _scale(senders, layer, parts, traced)
            if why:
                return [], f"layer {layer}: {why}"
            scales.append(scale)
    return scales, ""


def _scale(senders: str, number: int, parts: Parts, traced: Trace) -> tuple[float, str]:
    """Returns the factor of one layer, fitted on two prompts, or why there is none."""
    seen, block = traced.layers[number], parts.blocks[number]
    allowed = TOLERANCE.get(traced.out.dtype, 1e-4)
    attn, mlp = present(seen.attn_out), present(seen.mlp_out)
    both = torch.stack([attn.double().flatten(), mlp.double().flatten()], 1).cpu()
    added = (traced.pre(number + 1).double() - seen.pre.double()).flatten().cpu()
    factors = torch.linalg.lstsq(both, added[:, None]).solution[:, 0]
    if float((both @ factors - added).norm()) > allowed * float(added.norm()):
        return 0.0, "the block adds more to the residual stream than attention and MLP write"
    if senders == "z":
        project: Any = block.project
        if float((project(present(seen.z)) - attn).norm()) > allowed * float(attn.norm()):
            return 0.0, "a norm or a scale of all heads together stands behind their projection"
    factor = float(factors[0 if senders == "z" else 1])
    return (1.0 if abs(factor - 1) < allowed else factor), ""
