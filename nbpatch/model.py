"""The only door to transformers and TransformerLens: loading, a model's shape, what can be patched, one forward.

Ownership: the plain Hugging Face model stays as it is; a TransformerBridge is built when first needed, on a copy of
the modules that shares every weight. A Bridge the user brings is used as it is, with temporary hooks only.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbpatch.bridges import bridge_beside, tensors_of, unwrapped
from nbpatch.errors import ModelError, SiteError, suggest
from nbpatch.hub import folder_of, from_pretrained
from nbpatch.parts import Unfit, adapter_of
from nbpatch.prompts import PromptPair, TokenizedPair, as_pairs, token_text, tokenize_pairs
from nbpatch.sites import COMPONENTS, ModelShape

Hook: TypeAlias = tuple[str, Callable[[Tensor, Any], Tensor | None]]

_PROBE_LENGTH = 6
_PROBE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Capability:
    """Whether a component can be patched in this model.

    Attributes:
        status: "works", "absent" (no such hook point) or "no effect" (the patch is accepted and ignored).
        note: the reason, in words; "" when it works.
    """

    status: str
    note: str = ""


@dataclass(frozen=True)
class Probe:
    """What was found out about a model.

    Attributes:
        engine: "frontier"; "suffix" or "replay", with the reason.
    """

    engine: str
    capabilities: Mapping[str, Capability]


_one_at_a_time = threading.RLock()
"""Held during every forward of any model: the attention that transformers looks up by name is process-wide, and one
Hugging Face model may be behind several of ours."""


class Model:
    """A causal language model with its tokenizer, ready to be patched. Made by `load`.

    Attributes:
        name: "tiny", a hub id, or the folder's name.
        tokenizer: the Hugging Face tokenizer, as given.
        lock: held during every forward; one model may serve a cell and a widget at once.
        budget: bytes a run may use; None for a quarter of what is free. Can be set.
        notes: what was found out about the model, kept until its weights change.
        prober: finds out what can be patched; `nbpatch.engine` puts its own here, which knows both engines.
    """

    prober: ClassVar[Callable[[Any], Probe]]

    def __init__(self, name: str, tokenizer: Any, *, hf: nn.Module | None = None, bridge: Any = None) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.lock = _one_at_a_time
        self._engine = "auto"
        self._bridge: Any = None
        self.budget: int | None = None
        self.notes: dict[str, Any] = {}
        self._hf = hf
        self._given_bridge = bridge

    def __repr__(self) -> str:
        shape = self.shape
        return f"Model({self.name!r}: {shape.n_layers} layers × {shape.n_heads} heads, {self.device})"

    @property
    def config(self) -> Any:
        """The Hugging Face configuration."""
        config = self._module.config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self._module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self._module.parameters()).dtype

    @cached_property
    def shape(self) -> ModelShape:
        """The model's sizes, read from its configuration, and whether attention is causal, read from a run."""
        config = self.config
        heads, d_model = int(config.num_attention_heads), int(config.hidden_size)
        mlp = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * d_model
        return ModelShape(
            n_layers=int(config.num_hidden_layers),
            n_heads=heads,
            n_kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            d_model=d_model,
            d_head=int(getattr(config, "head_dim", None) or d_model // heads),
            d_mlp=int(mlp),
            d_vocab=int(config.vocab_size),
            n_ctx=int(getattr(config, "max_position_embeddings", None) or 2**31),
            causal=self._is_causal(int(config.vocab_size)),
            layer_weights=self._layer_weights() // int(config.num_hidden_layers),
        )

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 over names, shapes and values of all weights."""
        stamp = self.stamp()
        if self.notes.get("hash", (None, ""))[0] != stamp:
            self.notes["hash"] = (stamp, self._hashed())
        return self.notes["hash"][1]

    def _hashed(self) -> str:
        digest = hashlib.sha256()
        for name, weight in sorted(self._module.state_dict().items()):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def bridge(self) -> Any:
        """The TransformerBridge that hooks run on: the user's own, or one on a weight-sharing copy."""
        if self._given_bridge is not None:
            return self._given_bridge
        with self.lock:
            if self._bridge is None:
                self._bridge = bridge_beside(self._module, self.tokenizer, self.name)
            return self._bridge

    @property
    def engine(self) -> str:
        """Either "auto", or "replay" to have every run made by hooks in whole forwards, the slow twin. Can be set."""
        return self._engine

    @engine.setter
    def engine(self, name: str) -> None:
        if name not in ("auto", "replay"):
            raise ModelError(f"no engine {name!r}.", where="model.engine", fix=suggest(name, ("auto", "replay")))
        self._engine = name

    @property
    def probe(self) -> Probe:
        """How the model is run and what can be patched in it, found by trying."""
        name = f"probe for {self.engine}"
        if name not in self.notes:
            self.notes[name] = type(self).prober(self)
        return self.notes[name]

    @property
    def capabilities(self) -> Mapping[str, Capability]:
        """What can be patched, found by trying each component once on a two-prompt run."""
        return self.probe.capabilities

    def describe(self) -> str:
        """Returns the model's sizes and what can be patched in it, in words."""
        shape = self.shape
        heads = f"{shape.n_heads} heads" + (f" ({shape.n_kv_heads} key-value heads)" if shape.grouped else "")
        lines = [
            f"{self.name}: {type(self._module).__name__}, weights {self.hash}, engine: {self.probe.engine}",
            f"  {shape.n_layers} layers, {heads}, d_model {shape.d_model}, vocabulary {shape.d_vocab}, "
            f"{'causal' if shape.causal else 'not causal'}, {self.dtype}, {self.device}".replace("torch.", ""),
        ]
        for name, capability in self.capabilities.items():
            note = f" ({capability.note})" if capability.note else ""
            lines.append(f"  {name:<10} {capability.status}{note}")
        return "\n".join(lines)

    def tokenize(self, pairs: "PromptPair | Sequence[PromptPair]") -> tuple[TokenizedPair, ...]:
        """Returns the pairs as this model's tokens.

        Raises:
            PromptError: a pair that cannot be used as it stands; all problems at once.
        """
        return tokenize_pairs(as_pairs(pairs), self.tokenizer, n_ctx=self.shape.n_ctx, bos=self.prepends_bos)

    @cached_property
    def prepends_bos(self) -> bool:
        """Whether prompts begin with the beginning-of-sequence token: TransformerLens's habit for this architecture."""
        try:
            return bool(adapter_of(self._hf).cfg.default_prepend_bos)
        except Unfit:
            return bool(self.bridge.cfg.default_prepend_bos)

    def check_replayed(self, component: str) -> None:
        """Refuses a component that the Bridge's hooks do not patch in this model.

        Raises:
            SiteError: with the reason the probe found.
        """
        capabilities = probe_bridge(self)
        capability = capabilities[component]
        if capability.status != "works":
            working = [name for name, one in capabilities.items() if one.status == "works"]
            raise SiteError(
                f"{component} cannot be patched in {self.name}: {capability.status}.",
                where="component",
                seen=capability.note,
                fix="one of: " + ", ".join(working),
            )

    def check_visible(self, component: str) -> None:
        """Refuses a component that no layer shows.

        Raises:
            SiteError: a layer has no such hook point.
        """
        if any(self.hook_name(component, layer) is None for layer in range(self.shape.n_layers)):
            raise SiteError(f"{component} cannot be seen in {self.name}.", where="model", fix="model.describe()")

    def top_tokens(self, logits: Float[Tensor, "row d_vocab"], k: int = 5) -> list[list[list[str | float]]]:
        """Returns each row's k likeliest tokens with their probabilities, the likeliest first."""
        top = logits.float().softmax(-1).topk(min(k, logits.shape[-1]))
        return [
            [[token_text(self.tokenizer, int(token)), float(share)] for token, share in zip(ids, shares, strict=True)]
            for ids, shares in zip(top.indices, top.values, strict=True)
        ]

    def hook_name(self, component: str, layer: int) -> str | None:
        """Returns the hook point's own name for a component at a layer, or None when the model has none there.

        Aliases such as `hook_z` are resolved, so that a hook fires once whatever the Bridge calls it.
        """
        point = self.bridge.hook_dict.get(COMPONENTS[component].hook_at(layer))
        return None if point is None else str(point.name)

    @torch.no_grad()
    def answer_logits(self, ids: Int[Tensor, "row pos"], hooks: Sequence[Hook] = ()) -> Float[Tensor, "row d_vocab"]:
        """Returns the logits at the last position of each row, with `hooks` on the given hook points.

        Only the last position is unembedded: the unembedding of all positions costs a quarter of a GPT-2 forward.
        Without autograd, always: with it a Bridge hands its hooks another tensor than the one the residual connection
        holds on to, and a patch in the middle of the residual stream would reach the MLP only.
        """
        bridge = self.bridge
        if bridge.training:
            raise ModelError(f"{self.name} is in training mode.", where="model", fix="model.eval()")
        narrow: list[Hook] = [("unembed.hook_in", _last_position)] if "unembed.hook_in" in bridge.hook_dict else []
        with self.lock:
            logits = bridge.run_with_hooks(ids.to(self.device), fwd_hooks=[*hooks, *narrow])
        return logits[:, -1]

    def weights(self) -> list[Tensor]:
        """Returns all parameters and buffers; what is shared, as often as it is used."""
        return tensors_of(self._module)

    def hooked(self) -> list[str]:
        """Returns the names of modules and hook points that carry hooks of the user's own."""
        found = [name for name, one in self._module.named_modules() if _own_hooks(one)]
        bridge = self._given_bridge if self._given_bridge is not None else self._bridge
        points: dict[str, Any] = {} if bridge is None else bridge.hook_dict
        return found + [name for name, point in points.items() if point.fwd_hooks]

    def stamp(self) -> int:
        """Returns a number that changes when weights are written to or a hook is added or taken off.

        What is written through `.data` raises no version; a few numbers of each weight are looked at for that.
        """
        compatible = getattr(self._given_bridge, "compatibility_mode", False)
        weights = self.weights()
        places = [(one._version, one.data_ptr()) for one in weights]
        if self.notes.get("samples", (None,))[0] != places:
            some = [
                one.detach().flatten()[:: max(1, one.numel() // 8)]
                for one in weights
                if one.is_floating_point() and one.device == self.device
            ]
            self.notes["samples"] = (places, some)
        values = torch.cat(self.notes["samples"][1]).float().cpu().numpy().tobytes()
        return hash((compatible, values, *self.hooked(), *places))

    @property
    def given_as_bridge(self) -> bool:
        """Whether the user brought a Bridge; the plain model is then a view of what it wraps."""
        return self._given_bridge is not None

    def forget(self) -> None:
        """Forgets what was found out, and the Bridge that was built: it is a copy of the modules as they were."""
        self.notes.clear()
        self._bridge = None

    @property
    def plain(self) -> nn.Module | None:
        """The plain Hugging Face model; None where a Bridge has processed the weights (compatibility mode)."""
        if self._hf is not None:
            return self._hf
        if "plain" not in self.notes:
            self.notes["plain"] = unwrapped(self._given_bridge)
        return self.notes["plain"]

    def memory_budget(self) -> int:
        """Returns the bytes a run may use: `budget`, or a quarter of what is free."""
        if self.budget is not None:
            return int(self.budget)
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0] // 4
        if "SC_AVPHYS_PAGES" in os.sysconf_names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
        return 2**30

    @property
    def _module(self) -> Any:
        return self._hf if self._hf is not None else self._given_bridge.original_model

    def _layer_weights(self) -> int:
        """Returns the weights of all matrices that are no embedding and no unembedding."""
        module = self._module
        outside = {id(one) for part in module.modules() if isinstance(part, nn.Embedding) for one in part.parameters()}
        unembed = module.get_output_embeddings()
        outside |= {id(one) for one in unembed.parameters()} if unembed is not None else set()
        # Experts lie in one tensor of three axes, and a token meets some of them.
        chosen = int(getattr(self.config, "num_experts_per_tok", None) or 1)
        return sum(
            one.numel() * chosen // one.shape[0] if one.ndim == 3 else one.numel()
            for one in module.parameters()
            if one.ndim > 1 and id(one) not in outside
        )

    @torch.no_grad()
    def _is_causal(self, d_vocab: int) -> bool:
        """Whether changing the last token leaves all earlier logits alone."""
        ids = torch.arange(1, 5, device=self.device).remainder(d_vocab).repeat(2, 1)
        ids[1, -1] = 0
        runner = self._hf if self._hf is not None else self._given_bridge
        with self.lock:
            output = runner(ids)
        logits = output if isinstance(output, Tensor) else output.logits
        return bool(torch.allclose(logits[0, :-1], logits[1, :-1], atol=1e-4))


def _last_position(value: Tensor, hook: Any) -> Tensor:
    return value[:, -1:]


def load(what: Any, *, device: "str | torch.device | None" = None, dtype: torch.dtype | None = None) -> Model:
    """Returns a model ready to be patched.

    Args:
        what: "tiny" (the embedded model), a Hugging Face hub id, a local folder in Hugging Face format, a tuple
            (Hugging Face model, tokenizer), a TransformerBridge, or a `Model`, which is returned as it is.
        device: where to put a model loaded from a name; a model given in memory stays where it is.
        dtype: type of the weights of a model loaded from a name; float32 when not given.

    Raises:
        ModelError: nothing of that name, no network, no tokenizer, or an object of another kind.
    """
    if isinstance(what, Model):
        return what
    if isinstance(what, (str, os.PathLike)):
        return _load_named(os.fspath(what), device, dtype or torch.float32)
    if device is not None or dtype is not None:
        raise ModelError(
            "device and dtype are for models loaded by name; a model in memory stays as it is.",
            where="load",
            fix="move it yourself before loading: hf_model.to(device)",
        )
    if hasattr(what, "original_model") and hasattr(what, "hook_dict"):
        return _from_bridge(what)
    if isinstance(what, tuple) and len(what) == 2 and isinstance(what[0], nn.Module):
        return _from_memory(*what)
    raise ModelError(
        "cannot load this as a model.",
        where="load",
        seen=type(what).__name__ + (" without a tokenizer" if isinstance(what, nn.Module) else ""),
        fix='nbp.load("tiny"), nbp.load("./folder"), nbp.load((hf_model, tokenizer)) or nbp.load(bridge)',
    )


def _from_memory(hf: nn.Module, tokenizer: Any) -> Model:
    if not hasattr(hf, "config") or not callable(tokenizer):
        raise ModelError(
            "the tuple must hold a Hugging Face model and its tokenizer.",
            where="load",
            seen=f"({type(hf).__name__}, {type(tokenizer).__name__})",
            fix="nbp.load((AutoModelForCausalLM.from_pretrained(x), AutoTokenizer.from_pretrained(x)))",
        )
    _refuse_unfit(hf)
    name = str(getattr(hf.config, "name_or_path", "")) or type(hf).__name__
    return Model(Path(name).name, tokenizer, hf=hf)


def _from_bridge(bridge: Any) -> Model:
    if bridge.tokenizer is None:
        raise ModelError(
            "the TransformerBridge has no tokenizer.", where="load", fix="bridge.tokenizer = AutoTokenizer…"
        )
    _refuse_unfit(bridge.original_model)
    if bridge.training:
        raise ModelError("the TransformerBridge is in training mode.", where="load", fix="bridge.eval()")
    return Model(Path(str(bridge.cfg.model_name)).name, bridge.tokenizer, bridge=bridge)


def _refuse_unfit(hf: Any) -> None:
    if getattr(hf.config, "is_encoder_decoder", False):
        raise ModelError(
            "an encoder-decoder model cannot be patched.",
            where="load",
            seen=type(hf).__name__,
            fix='a decoder-only language model, such as "tiny" or "gpt2"',
        )
    if hf.training and any(m.p > 0 for m in hf.modules() if isinstance(m, nn.Dropout)):
        raise ModelError(
            "the model is in training mode: its dropout would add noise.", where="load", fix="hf_model.eval()"
        )


def _load_named(name: str, device: "str | torch.device | None", dtype: torch.dtype) -> Model:
    folder = folder_of(name)
    source = name if folder is None else str(folder)
    if folder is not None and not (folder / "config.json").is_file():
        raise ModelError(
            "not a model folder.",
            where=f"load({name!r})",
            seen=f"{folder} has no config.json",
            fix="a folder written by hf_model.save_pretrained(…) and tokenizer.save_pretrained(…)",
        )
    hf, tokenizer = from_pretrained(source, name, dtype, local=folder is not None)
    hf = hf.to(device).eval() if device is not None else hf.eval()
    _refuse_unfit(hf)
    return Model(name if folder is None or name == "tiny" else folder.resolve().name, tokenizer, hf=hf)


def probe_bridge(model: Model) -> Mapping[str, Capability]:
    """Returns what can be patched through the Bridge's hooks, found by trying each component once."""
    if "hooks" not in model.notes:
        model.notes["hooks"] = {component: _probe(model, component) for component in COMPONENTS}
    return model.notes["hooks"]


def _own_hooks(module: Any) -> bool:
    """Whether a module carries hooks that are neither TransformerLens's nor transformers' own."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(
        not str(getattr(hook, "__module__", "")).startswith(("transformer_lens.", "transformers.")) for hook in hooks
    )


def _probe(model: Model, component: str) -> Capability:
    """Returns whether patching `component` works, by moving one random run's values into another's.

    The residual stream is held to its law as well: all of it from the source at the last layer gives the source's
    logits. Everything else must change the logits at all.
    """
    shape = model.shape
    names = [model.hook_name(component, layer) for layer in range(shape.n_layers)]
    missing = [layer for layer, name in enumerate(names) if name is None]
    if missing:
        return Capability("absent", f"no such hook point in layer {missing[0]}")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape.d_vocab, (2, _PROBE_LENGTH), generator=generator)
    layer = shape.n_layers - 1
    name = str(names[layer])
    kept: list[Tensor] = []
    fired = 0

    def keep(value: Tensor, hook: Any) -> None:
        kept.append(value.detach().clone())

    def write(value: Tensor, hook: Any) -> None:
        nonlocal fired
        fired += 1
        value[0] = kept[0][1]

    logits = model.answer_logits(ids, [(name, keep)])
    patched = model.answer_logits(ids, [(name, write)])
    if fired != 1:
        return Capability("no effect", f"its hook fired {fired} times in one forward")
    if component == "mlp_post" and kept[0].shape[-1] != shape.d_mlp:
        return Capability("absent", "a mixture of experts shows no neurons there")
    if torch.equal(patched[0], logits[0]):
        return Capability("no effect", "the Bridge accepts a patch there and ignores it")
    allowed = _PROBE_TOLERANCE * logits.nan_to_num(0, 0, 0).abs().max().item()
    if component.startswith("resid") and not torch.allclose(patched[0], logits[1], atol=allowed, equal_nan=True):
        return Capability("no effect", "a patch there reaches only a part of the residual stream")
    return Capability("works")


Model.prober = lambda model: Probe("replay", probe_bridge(model))
