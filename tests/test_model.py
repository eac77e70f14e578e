"""Loading from every source, ownership, shapes, the capability probe, one forward."""

import copy
import socket
import threading

import micro
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from nbpatch.errors import ModelError, SiteError
from nbpatch.methods.patching import patch
from nbpatch.model import Capability, Model, load
from nbpatch.prompts import PromptPair
from nbpatch.sites import SWEEPABLE

PAIR = PromptPair(" Mary and John gave", " John and Mary gave", " Paul", " Mary")
stories = pytest.mark.skipif(not micro.STORIES.is_dir(), reason="../shared/models is not here")


@pytest.fixture(scope="module")
def model() -> Model:
    return load((micro.gpt2(), micro.tokenizer()))


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_the_embedded_model_loads_by_name_and_answers():
    tiny = load("tiny")
    assert tiny.name == "tiny"
    assert (tiny.shape.n_layers, tiny.shape.n_heads, tiny.shape.d_model) == (4, 4, 128)
    (one,) = tiny.tokenize(
        PromptPair(
            "When Mary and John went to the store, John gave a drink to",
            "When Mary and John went to the store, Mary gave a drink to",
            " Mary",
            " John",
        )
    )
    logits = tiny.answer_logits(torch.tensor([one.clean_ids]))
    assert tiny.top_tokens(logits)[0][0][0] == " Mary"


def test_a_model_and_tokenizer_in_memory_keep_their_own_modules_and_weights():
    hf, words = micro.gpt2(), copy.deepcopy(micro.tokenizer())
    before, implementation, modules = weights(hf), hf.config._attn_implementation, dict(hf.named_modules())
    settings = dict(words.init_kwargs)
    patch((hf, words), PAIR, "z")
    assert hf.config._attn_implementation == implementation
    assert all(now is modules[name] for name, now in hf.named_modules())
    assert all(torch.equal(value, before[name]) for name, value in hf.state_dict().items())
    assert dict(words.init_kwargs) == settings
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf.modules())


def test_the_bridge_shares_every_weight_that_it_does_not_split(model):
    own = {id(parameter) for parameter in model._hf.parameters()}
    shared = {id(parameter) for parameter in model.bridge.original_model.parameters()}
    assert own & shared
    assert model.bridge.original_model is not model._hf
    with torch.no_grad():
        ids = torch.tensor([[0, 3, 4, 5]])
        assert torch.allclose(model._hf(ids).logits[:, -1], model.answer_logits(ids), atol=1e-5)


def test_the_answer_logits_are_those_of_the_whole_forward(model):
    ids = torch.tensor([[0, 3, 4, 5], [0, 5, 4, 3]])
    with torch.no_grad():
        assert torch.allclose(model.bridge(ids)[:, -1], model.answer_logits(ids), atol=1e-6)


@stories
def test_a_local_folder_loads_as_a_path_or_a_string():
    one, other = load(micro.STORIES), load(str(micro.STORIES))
    assert one.name == other.name == "stories260K"
    assert one.hash == other.hash
    assert one.shape.grouped
    assert one.shape.n_kv_heads == 4


@stories
def test_a_bridge_of_the_user_is_used_and_left_as_it_was():
    bridge = TransformerBridge.boot_transformers(str(micro.STORIES), device="cpu")
    seen: list[tuple[int, ...]] = []
    bridge.hook_dict["blocks.0.hook_in"].add_hook(lambda value, hook: seen.append(tuple(value.shape)))
    hooks = {name: len(point.fwd_hooks) for name, point in bridge.hook_dict.items()}
    pair = PromptPair("There was a little girl who liked to play. One day,",
                      "There was a little boy who liked to play. One day,", "she", "he")  # fmt: skip
    result = patch(bridge, pair, "resid_pre")
    assert {name: len(point.fwd_hooks) for name, point in bridge.hook_dict.items()} == hooks
    assert seen, "the user's own hook was left out"
    assert result.provenance["model"]["name"] == "stories260K"
    assert float(result.baselines["clean"][0, 0]) == pytest.approx(4.80, abs=0.01)
    assert float(result.baselines["corrupted"][0, 0]) == pytest.approx(-3.30, abs=0.01)


@stories
def test_the_published_figures_of_the_picture_are_reproduced():
    pair = PromptPair("There was a little girl who liked to play. One day,",
                      "There was a little boy who liked to play. One day,", "she", "he")  # fmt: skip
    model = load(micro.STORIES)
    resid = patch(model, pair, "resid_pre")
    assert float(resid.recovered().sel(layer=4, pos=8)) == pytest.approx(0.96, abs=0.005)
    heads = patch(model, pair, "z", direction="both")
    assert float(heads.recovered().sel(direction="denoising", layer=4, head=2)) == pytest.approx(0.78, abs=0.005)
    assert float(heads.share().sel(direction="noising", layer=4, head=2)) == pytest.approx(-0.68, abs=0.005)


def test_loading_a_model_again_is_the_same_model(model):
    assert load(model) is model


def test_the_hash_tells_weights_apart():
    assert load((micro.gpt2(), micro.tokenizer())).hash == load((micro.gpt2(), micro.tokenizer())).hash
    assert load((micro.gpt2(), micro.tokenizer())).hash != load((micro.gpt2(seed=1), micro.tokenizer())).hash


def test_every_component_of_the_small_models_works(model):
    for one in (model, load((micro.llama(), micro.tokenizer()))):
        assert {name: can.status for name, can in one.capabilities.items()} == dict.fromkeys(
            [*SWEEPABLE, "embed", "head_out"], "works"
        )


def test_the_probe_sees_an_ignored_patch_and_a_missing_hook(monkeypatch):
    model = load((micro.gpt2(), micro.tokenizer()))
    plain = model.hook_name
    model.engine = "replay"
    dead = {"z": "hook_pos_embed", "q": None}
    monkeypatch.setattr(model, "hook_name", lambda name, layer: dead.get(name, plain(name, layer)))
    ignored = model.answer_logits
    monkeypatch.setattr(
        model, "answer_logits", lambda ids, hooks=(): ignored(ids, [h for h in hooks if h[1].__name__ == "keep"])
    )
    assert model.capabilities["q"].status == "absent"
    assert model.capabilities["k"] == Capability("no effect", "its hook fired 0 times in one forward")


def test_a_parallel_block_has_no_middle_of_the_residual_stream():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        num_hidden_layers=2, num_attention_heads=4, hidden_size=32, intermediate_size=64, max_position_embeddings=32,
        vocab_size=len(micro.WORDS) + 2, use_parallel_residual=True, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = load((GPTNeoXForCausalLM(config).eval(), micro.tokenizer()))
    assert model.capabilities["resid_mid"].status == "absent"
    assert model.capabilities["z"].status == "works"
    with pytest.raises(SiteError, match="resid_mid cannot be patched"):
        patch(model, PAIR, "resid_mid")


def test_describe_says_sizes_and_what_works(model):
    lines = model.describe().splitlines()
    assert lines[0].startswith("GPT2LMHeadModel: GPT2LMHeadModel, weights ")
    assert lines[1] == "  3 layers, 4 heads, d_model 32, vocabulary 16, causal, float32, cpu"
    assert [line.split() for line in lines[2:]] == [[name, "works"] for name in (*SWEEPABLE, "embed", "head_out")]
    assert repr(model) == "Model('GPT2LMHeadModel': 3 layers × 4 heads, cpu)"


def test_a_model_that_looks_ahead_is_seen():
    hf = micro.gpt2()
    model = load((hf, micro.tokenizer()))
    forward = hf.forward
    hf.forward = lambda ids, **options: type("Output", (), {"logits": forward(ids.flip(1), **options).logits})()
    assert not model.shape.causal


def test_a_hub_name_without_network_offers_what_works_here(monkeypatch):
    def unreachable(*args: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(ModelError) as caught:
        load("nobody/no-such-model")
    message = str(caught.value)
    assert message.startswith("cannot load 'nobody/no-such-model' from the Hugging Face hub.")
    assert 'nbp.load("tiny")' in message
    assert 'nbp.load("./folder")' in message


def test_a_folder_that_is_missing_or_holds_no_model_is_told_apart(tmp_path):
    with pytest.raises(ModelError, match="no such model folder"):
        load("./nowhere/at/all")
    with pytest.raises(ModelError, match="not a model folder") as caught:
        load(tmp_path)
    assert "config.json" in caught.value.seen
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot load"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (3, "cannot load this as a model"),
        (None, "cannot load this as a model"),
        ((1, 2), "cannot load this as a model"),
        (micro.gpt2(), "cannot load this as a model"),
        ((micro.gpt2(), "no tokenizer"), "must hold a Hugging Face model and its tokenizer"),
        ((torch.nn.Linear(2, 2), len), "must hold a Hugging Face model and its tokenizer"),
    ],
)
def test_what_is_no_model_is_refused_with_the_forms_that_are(what, message):
    with pytest.raises(ModelError, match=message) as caught:
        load(what)
    assert "nbp.load(" in caught.value.fix


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ModelError, match="training mode") as caught:
        load((micro.gpt2().train(), micro.tokenizer()))
    assert caught.value.fix == "hf_model.eval()"
    model = load((micro.gpt2(), micro.tokenizer()))
    model.bridge.train()
    with pytest.raises(ModelError, match="training mode"):
        model.answer_logits(torch.tensor([[0, 1]]))


def test_device_and_dtype_are_for_names_only():
    with pytest.raises(ModelError, match="stays as it is"):
        load((micro.gpt2(), micro.tokenizer()), dtype=torch.float64)
    assert load("tiny", dtype=torch.float64).dtype == torch.float64


def test_an_encoder_decoder_is_refused():
    hf = micro.gpt2()
    hf.config.is_encoder_decoder = True
    with pytest.raises(ModelError, match="encoder-decoder"):
        load((hf, micro.tokenizer()))


def test_two_threads_may_use_one_model(model):
    ids = torch.tensor([[0, 3, 4, 5]])
    expected, seen = model.answer_logits(ids), []
    threads = [threading.Thread(target=lambda: seen.append(model.answer_logits(ids))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4
    assert all(torch.equal(logits, expected) for logits in seen)
