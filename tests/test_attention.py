"""Attention lent for a while: nothing of it stays behind, whatever happens, and threads do not meet in it."""

import threading
from collections.abc import Callable
from typing import Any

import families
import micro
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from nbpatch.engine.attention import attend_as_family, attend_with_weights, attending, is_causal
from nbpatch.engine.fit import fit_of
from nbpatch.methods.patching import patch
from nbpatch.model import Model, load
from nbpatch.parts import Parts, find_parts
from nbpatch.prompts import PromptPair

IDS = torch.tensor([[0, 3, 4, 5, 6], [0, 5, 4, 3, 6]])
PAIR = PromptPair(" Mary and John went to the store", " Paul and John went to the store", " Mary", " John")
SHORT = PromptPair(" Mary and John gave", " John and Mary gave", " Paul", " Mary")

# By name through the configuration; with soft caps and local layers; by `_attn` on the instance, and inside a wrapper.
LENT = ("gpt2", "llama", "gemma2", "gptj", "gpt_neo")


def state(parts: Parts) -> tuple[Any, ...]:
    """Returns all that is process-wide or hangs on the model while attention is lent."""
    configs = {id(one.config): one.config for one in parts.model.modules() if hasattr(one, "config")}
    names = [config._attn_implementation_internal for config in configs.values()]
    inside = [{key: id(value) for key, value in one.__dict__.items()} for one in parts.model.modules()]
    registered = [
        {name: function for name, function in table().items() if name != "nbpatch"}
        for table in (AttentionInterface, AttentionMaskInterface)
    ]
    return names, inside, registered


def as_family(seen: list[Any]) -> Callable[..., Tensor]:
    """Returns an attention that computes what the family does, and notes who asked."""

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: Any) -> Tensor:
        seen.append(module)
        return attend_as_family(module, q, k, v, mask, options)

    return attend


@torch.no_grad()
def logits_of(hf: Any) -> Tensor:
    return hf(IDS, use_cache=False).logits


@pytest.mark.parametrize("family", LENT)
def test_the_lent_attention_is_asked_once_a_layer_gives_the_same_logits_and_is_given_back(family):
    parts = find_parts(families.build(family))
    before, plain, seen = state(parts), logits_of(parts.model), []
    with attending(parts, as_family(seen)):
        assert state(parts) != before
        lent = logits_of(parts.model)
    assert len(seen) == families.LAYERS
    assert torch.allclose(lent, plain, atol=1e-5)
    assert state(parts) == before
    assert torch.equal(logits_of(parts.model), plain)
    assert len(seen) == families.LAYERS, "the lent attention was asked after it was given back"


@pytest.mark.parametrize("family", LENT)
def test_an_exception_gives_everything_back(family):
    parts = find_parts(families.build(family))
    before, plain = state(parts), logits_of(parts.model)

    def broken(*args: Any) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), attending(parts, broken):
        logits_of(parts.model)
    assert state(parts) == before
    assert torch.equal(logits_of(parts.model), plain)


@pytest.mark.parametrize("family", LENT)
def test_a_loan_inside_a_loan_ends_with_the_outer_one_in_force(family):
    parts = find_parts(families.build(family))
    before, outer, inner = state(parts), [], []
    with attending(parts, as_family(outer)):
        lent = state(parts)
        with attending(parts, as_family(inner)):
            logits_of(parts.model)
        assert (len(outer), len(inner)) == (0, families.LAYERS)
        assert state(parts)[0] == lent[0]
        logits_of(parts.model)
        assert (len(outer), len(inner)) == (families.LAYERS, families.LAYERS)
    assert state(parts) == before


@pytest.mark.parametrize("family", ["gptj", "gpt_neo"])
def test_an_attention_method_of_the_users_own_is_put_back(family):
    parts = find_parts(families.build(family))
    called: list[int] = []
    inner: Any = parts.blocks[1].attention
    own = type(inner)._attn

    def mine(*args: Any, **options: Any) -> Any:
        called.append(1)
        return own(inner, *args, **options)

    inner._attn = mine
    with attending(parts, as_family([])):
        assert inner._attn is not mine
    assert inner._attn is mine
    assert "_attn" not in vars(parts.blocks[0].attention)
    logits_of(parts.model)
    assert called == [1]


def test_no_name_stays_registered():
    parts = find_parts(families.plain("gpt2"))
    with attending(parts, as_family([])):
        pass
    assert "nbpatch" not in AttentionInterface()
    assert "nbpatch" not in AttentionMaskInterface()


@pytest.mark.parametrize(("family", "implementation"), [("gpt2", "eager"), ("llama", "sdpa"), ("gptj", "eager")])
def test_sweeps_leave_the_plain_model_bitwise_as_it_was(family, implementation):
    hf = families.build(family)
    hf.set_attn_implementation(implementation)
    parts, model = find_parts(hf), load((hf, micro.tokenizer()))
    before, plain = state(parts), logits_of(hf)
    for component in ("attn_out", "z", "k", "pattern", "mlp_post"):
        assert patch(model, SHORT, component, "layer").provenance["engine"]["name"] == "frontier"
    assert torch.equal(logits_of(hf), plain)
    assert state(parts) == before


def test_causality_is_read_from_the_mask():
    low = torch.finfo(torch.float32).min
    causal = torch.full((1, 1, 5, 5), low).triu(1)
    window = causal.masked_fill(torch.ones(5, 5, dtype=torch.bool).tril(-2), low)
    prefix = causal.clone()
    prefix[..., 0, 1] = 0
    for mask, expected in ((causal, True), (window, True), (prefix, False), (torch.zeros(1, 1, 5, 5), False)):
        assert is_causal(mask) is expected


def test_weights_and_fused_attention_agree_where_heads_share_keys():
    torch.manual_seed(0)
    module = find_parts(families.build("llama")).blocks[0].attention
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    mask = torch.full((1, 1, 5, 5), torch.finfo(torch.float32).min).triu(1)
    options = {"scaling": 0.3, "dropout": 0.0}
    fused = attend_as_family(module, q, k, v, mask, options)
    z, weights = attend_with_weights(module, q, k, v, mask, options)
    assert torch.allclose(fused, z, atol=1e-5)
    literal = (q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 0.3 + mask).softmax(-1)
    assert torch.allclose(weights, literal, atol=1e-6)
    assert torch.allclose(z, (literal @ v.repeat_interleave(2, 1)).transpose(1, 2), atol=1e-5)


def in_threads(*work: Callable[[], Any]) -> list[Any]:
    """Returns what functions give that run at once; an exception in one is given back as its value."""
    found: list[Any] = [None] * len(work)

    def go(place: int) -> None:
        try:
            found[place] = work[place]()
        except Exception as error:  # noqa: BLE001  # whatever it is, the test must show it
            found[place] = error

    threads = [threading.Thread(target=go, args=(place,)) for place in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def sweep(model: Model, component: str) -> tuple[str, np.ndarray]:
    result = patch(model, [PAIR, SHORT], component, metric="log_prob")
    return result.provenance["engine"]["name"], result.data["log_prob"].to_numpy()


def test_two_threads_sweep_two_models_and_both_are_right():
    models = [load((micro.gpt2(), micro.tokenizer())), load((micro.llama(layers=3), micro.tokenizer()))]
    cases = [(model, component) for component in ("resid_pre", "k") for model in models]
    expected = [sweep(*case) for case in cases]
    assert {name for name, _ in expected} == {"frontier"}
    for _ in range(2):
        done = in_threads(*(lambda model=model, component=component: sweep(model, component)
                            for model, component in cases))  # fmt: skip
        for (name, values), (known, right) in zip(done, expected, strict=True):
            assert name == known
            np.testing.assert_allclose(values, right, atol=1e-5)


def while_running(hf: Any, work: Callable[[], Any], run: Callable[[], Any]) -> tuple[Any, Any]:
    """Returns what `run` gives and what `work` gives that was begun in another thread in the midst of a forward."""
    plain, begun, found = hf.forward, [], []

    def forward(*args: Any, **options: Any) -> Any:
        if not begun:
            begun.append(threading.Thread(target=lambda: found.extend(in_threads(work))))
            begun[0].start()
            begun[0].join(timeout=0.3)
        return plain(*args, **options)

    hf.forward = forward
    try:
        first = run()
        begun[0].join()
    finally:
        del hf.forward
    return first, found[0]


def test_two_threads_on_one_model_both_keep_the_fast_engine():
    model = load((micro.gpt2(), micro.tokenizer()))
    known, right = sweep(model, "z")
    (name, values), fit = while_running(model._hf, lambda: fit_of(model), lambda: sweep(model, "z"))
    assert fit.reason == ""
    assert name == known == "frontier"
    np.testing.assert_allclose(values, right, atol=1e-5)


def test_two_threads_with_a_model_each_on_one_module_are_both_right():
    hf = micro.gpt2()
    models = [load((hf, micro.tokenizer())) for _ in range(2)]
    (known, right), _ = [sweep(model, "z") for model in models]
    done = while_running(hf, lambda: sweep(models[1], "z"), lambda: sweep(models[0], "z"))
    for name, values in done:
        assert name == known == "frontier"
        np.testing.assert_allclose(values, right, atol=1e-5)
