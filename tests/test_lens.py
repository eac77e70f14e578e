"""The logit lens and direct attribution: each definition once more in plain torch, laws without numbers, errors."""

import copy
import re

import families
import micro
import numpy as np
import oracle
import pytest
import torch

import nbpatch as nbp
from nbpatch.errors import MetricError, PlanError, SiteError
from nbpatch.methods import lens
from nbpatch.methods.lens import direct_logit_attribution, logit_lens
from nbpatch.model import load

RUNS = ("clean", "corrupted")
PAIR = nbp.PromptPair(" Mary and John gave", " John and Mary gave", " Paul", " Mary")
LONG = nbp.PromptPair(
    " Mary and John gave a", " John and Mary gave a", [" drink", " ball"], [" Mary", " John", " Paul"]
)
TINY = (
    nbp.PromptPair(
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to", " Mary", " John",
    ),
    nbp.PromptPair("When Mary and John went to", "When John and John went to", [" the", " Mary"], " John"),
)  # fmt: skip
STORIES = (
    nbp.PromptPair(
        "There was a little girl who liked to play. One day,", "There was a little boy who liked to play. One day,",
        " she", " he",
    ),
    nbp.PromptPair("There was a little girl.", "There was a little boy.", " she", " he"),
)  # fmt: skip


@pytest.fixture(scope="module", params=["tiny", "stories"])
def real(request, tiny):
    """A pretrained model with pairs of different lengths; one GPT-2, one Llama with grouped heads."""
    if request.param == "tiny":
        return tiny, TINY
    if not micro.STORIES.is_dir():
        pytest.skip("the shared folder is not here")
    return load(str(micro.STORIES)), STORIES


@pytest.fixture(scope="module")
def random():
    """A random GPT-2; tests must leave it as it is."""
    return load((micro.gpt2(), micro.tokenizer()))


@pytest.fixture
def folded():
    """A user's Bridge in compatibility mode: it has no plain model to be held against."""
    bridge = load((micro.gpt2(), micro.tokenizer())).bridge
    bridge.enable_compatibility_mode()
    return bridge


def ids_of(one, run):
    return one.clean_ids if run == "clean" else one.corrupted_ids


def end_of(hf):
    """Returns a plain model's final norm and unembedding."""
    return (hf.transformer.ln_f if hasattr(hf, "transformer") else hf.model.norm), hf.lm_head


def logit_diff(logits, one):
    return logits[..., list(one.answer_ids)].mean(-1) - logits[..., list(one.wrong_ids)].mean(-1)


def depths(hf, ids):
    """Returns the residual stream before each layer and after the last [depth pos d_model], by the written-out pass."""
    seen = oracle.activations(hf, ids)
    layers = hf.config.num_hidden_layers
    return torch.stack([*(seen["resid_pre", layer] for layer in range(layers)), seen["resid_post", layers - 1]])


def through_frozen_norm(hf, part, stream):
    """Returns what the final norm, written out, makes of a part of `stream`; its bias is not the part's."""
    norm, _ = end_of(hf)
    if hasattr(hf, "transformer"):
        return norm.weight * (part - part.mean(-1, keepdim=True)) / (stream.var(unbiased=False) + norm.eps).sqrt()
    return norm.weight * part / (stream.square().mean() + norm.variance_epsilon).sqrt()


# -- the lens


@torch.no_grad()
def test_each_depth_goes_through_the_final_norm_and_the_unembedding(real):
    model, pairs = real
    found = logit_lens(model, pairs, metric=["logit_diff", "log_prob"]).data
    assert found["logit_diff"].dims == ("run", "layer", "pos", "pair")
    norm, unembed = end_of(model._hf)
    for number, one in enumerate(model.tokenize(pairs)):
        for run in RUNS:
            logits = unembed(norm(depths(model._hf, ids_of(one, run))))
            ours = found.sel(run=run).isel(pair=number, pos=slice(len(one.clean_ids)))
            np.testing.assert_allclose(ours["logit_diff"], logit_diff(logits, one), atol=1e-4)
            share = logits.log_softmax(-1)[..., list(one.answer_ids)].logsumexp(-1)
            np.testing.assert_allclose(ours["log_prob"], share, atol=1e-4)


@torch.no_grad()
def test_the_last_depth_is_the_models_own_output(real):
    model, pairs = real
    result = logit_lens(model, pairs)
    data = result.data["logit_diff"]
    last = data.sel(pos=result.data["end"], layer="final_post")
    for run in RUNS:
        for number, one in enumerate(model.tokenize(pairs)):
            own = logit_diff(model._hf(torch.tensor([ids_of(one, run)])).logits[0, -1], one)
            assert last.sel(run=run, pair=number).item() == pytest.approx(own.item(), abs=1e-4)
            assert result.baselines[run].sel(pair=number).item() == pytest.approx(own.item(), abs=1e-4)


def test_positions_that_a_pair_lacks_are_nan_with_a_reason(tiny):
    result = logit_lens(tiny, TINY)
    short = len(tiny.tokenize(TINY[1])[0].clean_ids)
    values = result.data["logit_diff"]
    assert values.isel(pair=0).notnull().all()
    assert values.isel(pair=1, pos=slice(short)).notnull().all()
    assert values.isel(pair=1, pos=slice(short, None)).isnull().all()
    assert result.reason(run="clean", layer="0_pre", pos=short, pair=1).startswith("this pair has no such position")
    assert result.reason(run="clean", layer="0_pre", pos=short - 1, pair=1) == "measured"


@torch.no_grad()
def test_the_corrupted_run_is_read_where_it_is_aligned(random):
    align = {0: 0, 1: 1, 2: 2}
    pair = nbp.PromptPair(" Mary and John gave", " Mary and went to the gave", " Paul", " Mary", align=align)
    (one,) = random.tokenize(pair)
    found = logit_lens(random, pair).data["logit_diff"].isel(pair=0)
    norm, unembed = end_of(random._hf)
    expected = logit_diff(unembed(norm(depths(random._hf, one.corrupted_ids))), one)
    np.testing.assert_allclose(found.sel(run="corrupted", pos=[0, 1, 2, 4]), expected[:, [0, 1, 2, 6]], atol=1e-5)
    assert found.sel(run="corrupted", pos=3).isnull().all()
    assert found.sel(run="clean").notnull().all()


def test_a_metric_of_ones_own_sees_one_row_per_pair():
    shapes = set()

    def first_token(logits):
        shapes.add(tuple(logits.shape))
        return logits[:, 0]

    first_token.unit = "logit"
    found = logit_lens((micro.llama(), micro.tokenizer()), [PAIR, LONG, PAIR], metric=first_token)
    assert shapes == {(3, len(micro.WORDS) + 2)}
    assert found.data["first_token"].attrs == {"unit": "logit", "label": "first token"}
    one, _, again = found.data["first_token"].transpose("pair", ...)
    np.testing.assert_array_equal(one, again)


def test_small_chunks_give_the_same(monkeypatch, random):
    whole = [logit_lens(random, [PAIR, LONG, PAIR]), direct_logit_attribution(random, [PAIR, LONG, PAIR], by="head")]
    monkeypatch.setattr(lens, "_TOKENS_AT_ONCE", 1)
    monkeypatch.setattr(lens, "_LOGITS_AT_ONCE", 1)
    parts = [logit_lens(random, [PAIR, LONG, PAIR]), direct_logit_attribution(random, [PAIR, LONG, PAIR], by="head")]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one.data["logit_diff"], other.data["logit_diff"], atol=1e-5)


# -- the attribution


@torch.no_grad()
def test_each_part_goes_through_the_frozen_norm(real):
    model, pairs = real
    hf = model._hf
    found = direct_logit_attribution(model, pairs).data["logit_diff"]
    assert found.dims == ("run", "component", "pair")
    norm, unembed = end_of(hf)
    for number, one in enumerate(model.tokenize(pairs)):
        for run in RUNS:
            seen = {site: value[-1] for site, value in oracle.activations(hf, ids_of(one, run)).items()}
            stream = seen["resid_post", hf.config.num_hidden_layers - 1]
            ours = found.sel(run=run).isel(pair=number)
            for label in ours["component"].to_numpy()[1:-1]:
                layer, part = label.split("_", 1)
                logits = unembed(through_frozen_norm(hf, seen[part, int(layer)], stream))
                assert ours.sel(component=label).item() == pytest.approx(logit_diff(logits, one).item(), abs=1e-4)
            start = unembed(through_frozen_norm(hf, seen["resid_pre", 0], stream))
            assert ours.sel(component="embed").item() == pytest.approx(logit_diff(start, one).item(), abs=1e-4)
            bias = unembed(getattr(norm, "bias", torch.zeros_like(norm.weight)))
            assert ours.sel(component="bias").item() == pytest.approx(logit_diff(bias, one).item(), abs=1e-4)


@torch.no_grad()
def test_contributions_add_up_to_the_logit_difference(real):
    model, pairs = real
    result = direct_logit_attribution(model, pairs)
    total = result.data["logit_diff"].sum("component")
    for run in RUNS:
        for number, one in enumerate(model.tokenize(pairs)):
            own = logit_diff(model._hf(torch.tensor([ids_of(one, run)])).logits[0, -1], one).item()
            assert total.sel(run=run, pair=number).item() == pytest.approx(own, abs=1e-4)
            assert result.baselines[run].sel(pair=number).item() == pytest.approx(own, abs=1e-4)
    assert result.warnings == ()


def output_projection(hf, layer):
    """Returns the weight from z to the stream [z d_model] and its bias."""
    if hasattr(hf, "transformer"):
        project = hf.transformer.h[layer].attn.c_proj
        return project.weight, project.bias
    return hf.model.layers[layer].self_attn.o_proj.weight.T, torch.zeros(hf.config.hidden_size)


@torch.no_grad()
def test_each_head_adds_its_slice_of_the_output_projection(real):
    model, pairs = real
    hf = model._hf
    found = direct_logit_attribution(model, pairs, by="head").data["logit_diff"]
    whole = direct_logit_attribution(model, pairs).data["logit_diff"]
    assert found.dims == ("run", "layer", "head", "pair")
    _, unembed = end_of(hf)
    for number, one in enumerate(model.tokenize(pairs)):
        seen = {site: value[-1] for site, value in oracle.activations(hf, one.clean_ids).items()}
        stream = seen["resid_post", hf.config.num_hidden_layers - 1]
        for layer in range(hf.config.num_hidden_layers):
            weight, bias = output_projection(hf, layer)
            slices = weight.reshape(*seen["z", layer].shape, -1)
            writes = torch.cat([torch.einsum("he,hed->hd", seen["z", layer], slices), bias[None]])
            adds = logit_diff(unembed(through_frozen_norm(hf, writes, stream)), one)
            ours = found.sel(run="clean", layer=layer).isel(pair=number)
            np.testing.assert_allclose(ours, adds[:-1], atol=1e-4)
            attention = whole.sel(run="clean", component=f"{layer}_attn_out").isel(pair=number).item()
            assert ours.sum().item() == pytest.approx(attention - adds[-1].item(), abs=1e-4)


@pytest.mark.parametrize("family", ["phi", "deepseek_v3", "granite", "olmo2"])
def test_other_families_add_up(family):
    """Parallel blocks, latent attention, multipliers and scaled logits, norms behind the parts."""
    model = families.loaded(family)
    result = direct_logit_attribution(model, families.PAIRS)
    parts = result.data["logit_diff"]
    for run in RUNS:
        own = result.baselines[run].sel(metric="logit_diff")
        np.testing.assert_allclose(parts.sel(run=run).sum("component"), own, atol=1e-4)
    heads = direct_logit_attribution(model, families.PAIRS, by="head").data["logit_diff"].sum("head")
    attention = np.stack([parts.sel(component=f"{layer}_attn_out") for layer in range(families.LAYERS)], 1)
    if family != "phi":  # its attention has biases
        np.testing.assert_allclose(heads, attention, atol=1e-5)


@torch.no_grad()
def test_gemma_2_is_attributed_behind_its_own_norms_and_before_the_cap():
    model = families.loaded("gemma2")
    hf = copy.deepcopy(families.plain("gemma2"))
    (one,) = model.tokenize(families.PAIRS[0])
    kept = {}

    def keeper(label):
        return lambda module, args, output: kept.update({label: output[0, -1]})

    for layer, block in enumerate(hf.model.layers):
        block.post_attention_layernorm.register_forward_hook(keeper(f"{layer}_attn_out"))
        block.post_feedforward_layernorm.register_forward_hook(keeper(f"{layer}_mlp_out"))
    hf.model.norm.register_forward_pre_hook(lambda module, args: kept.update(stream=args[0][0, -1]))
    hf.lm_head.register_forward_hook(lambda module, args, output: kept.update(before_cap=output))
    own = logit_diff(hf(torch.tensor([one.clean_ids])).logits[0, -1], one).item()
    before_cap = kept["before_cap"][0, -1]
    result = direct_logit_attribution(model, families.PAIRS[0])
    found = result.data["logit_diff"].sel(run="clean").isel(pair=0)
    scale = (kept["stream"].square().mean() + hf.model.norm.eps).sqrt()
    for label in found["component"].to_numpy()[1:-1]:
        expected = logit_diff(hf.lm_head((1 + hf.model.norm.weight) * kept[label] / scale), one)
        assert found.sel(component=label).item() == pytest.approx(expected.item(), abs=1e-5)
    assert found.sum().item() == pytest.approx(logit_diff(before_cap, one).item(), abs=1e-4)
    assert result.baselines["clean"].item() == pytest.approx(own, abs=1e-5)
    assert abs(found.sum().item() - own) > 0.01
    (warning,) = result.warnings
    assert warning.startswith("Logits are soft-capped; contributions add up to what they are before that: clean ")


def test_a_coarse_type_is_said():
    hf = copy.deepcopy(families.plain("llama")).to(torch.bfloat16)
    result = direct_logit_attribution((hf, micro.tokenizer()), families.PAIRS)
    (warning,) = result.warnings
    assert warning.startswith("Contributions add up to the logit difference within 0.")


def test_a_bridge_in_compatibility_mode_adds_up_to_the_same(random, folded):
    """Single parts differ there: the mean of what they write has been taken out, biases have been moved."""
    totals = [direct_logit_attribution(model, PAIR).data["logit_diff"].sum("component") for model in (random, folded)]
    np.testing.assert_allclose(*totals, atol=1e-5)
    direct_logit_attribution(folded, PAIR, by="head")
    lenses = [logit_lens(model, PAIR).data["logit_diff"] for model in (random, folded)]
    np.testing.assert_allclose(*lenses, atol=1e-4)


@pytest.mark.parametrize("make", [logit_lens, direct_logit_attribution])
def test_each_pair_gets_what_it_gets_alone(make, random):
    longer = nbp.PromptPair(" Mary and John gave a drink", " John and Mary gave a drink", " to", " the")
    pairs = [PAIR, LONG, longer, PAIR]
    together = make(random, pairs).data["logit_diff"]
    for number, pair in enumerate(pairs):
        alone = make(random, pair).data["logit_diff"].isel(pair=0)
        ours = together.isel(pair=number)
        ours = ours.isel(pos=slice(alone.sizes["pos"])) if "pos" in alone.dims else ours
        np.testing.assert_allclose(ours, alone, atol=1e-5)


# -- results


@pytest.mark.parametrize("make", [logit_lens, direct_logit_attribution])
def test_a_result_says_what_it_is_and_survives_a_file(make, random, tmp_path):
    result = make(random, [PAIR, LONG])
    name = make.__name__
    assert repr(result).startswith(f"Result of {name} on GPT2LMHeadModel (run 2, ")
    assert {*result.provenance} >= {"method", "model", "pairs", "versions", "metrics", "over"}
    assert result.provenance["method"] == name
    assert result.provenance["metrics"] == [nbp.metrics.METRICS["logit_diff"].describe()]
    assert (*result.over, "pair") == result.data["logit_diff"].dims
    assert result.data["logit_diff"].attrs["unit"] == "logit"
    again = nbp.read(result.save(tmp_path / "found.nc"))
    assert again.data.identical(result.data)
    assert again.baselines.identical(result.baselines)
    assert not any(point.fwd_hooks for point in random.bridge.hook_dict.values())


# -- errors


def test_by_something_else_is_refused(random):
    with pytest.raises(PlanError) as caught:
        direct_logit_attribution(random, PAIR, by="heads")
    assert str(caught.value) == "cannot attribute by 'heads'.\n  in     by\n  try    did you mean \"head\"?"


def test_a_pair_without_a_wrong_answer_is_refused(random):
    pairs = [PAIR, nbp.PromptPair(PAIR.clean, PAIR.corrupted, " Paul")]
    with pytest.raises(PlanError) as caught:
        direct_logit_attribution(random, pairs)
    assert str(caught.value) == (
        "contributions are to logit(answer) − logit(wrong), and there is no wrong answer.\n"
        "  in     pairs\n"
        "  seen   pair 2 of 2 has answer only\n"
        '  try    PromptPair(…, wrong=" …")'
    )
    with pytest.raises(MetricError, match="logit_diff needs a wrong answer"):
        logit_lens(random, pairs)
    assert logit_lens(random, pairs, metric="prob").metrics == ("prob",)


def refusal(what, seen):
    return (
        f"GPT2LMHeadModel cannot be read this way: {what}.\n"
        "  in     model\n"
        f"  seen   {seen}\n"
        '  try    nbp.patch(model, pairs, "resid_post"), which measures instead of reading'
    )


def says(caught):
    """Returns an error with its numbers left out: they differ from machine to machine."""
    return re.sub(r"\d[\d.e-]*(?=;| would)", "…", str(caught.value))


APART = "they differ by up to …; … would be rounding"


def test_an_end_that_is_not_the_models_own_is_refused(monkeypatch, random):
    monkeypatch.setattr(random.bridge.adapter, "apply_output_logits_transform", lambda logits: 1.01 * logits)
    with pytest.raises(SiteError) as caught:
        logit_lens(random, PAIR)
    assert says(caught) == refusal("the stream after its last layer, unembedded, is not its own output", APART)
    with pytest.raises(SiteError) as caught:
        direct_logit_attribution(random, PAIR)
    assert says(caught) == refusal("the norm and unembedding of its stream are not its own output", APART)


def test_a_stream_that_transformer_lens_cannot_read_is_refused(monkeypatch, random):
    monkeypatch.setattr(random.bridge.cfg, "normalization_type", "batch")
    with pytest.raises(SiteError, match="TransformerLens has no way from its stream to its logits") as caught:
        logit_lens(random, PAIR)
    assert "'batch'" in caught.value.seen


@pytest.mark.parametrize(
    ("point", "by", "what"),
    [
        ("blocks.1.hook_resid_post", "layer", "what its layers write does not add up to its stream"),
        ("blocks.1.attn.hook_out", "head", "the heads of layer 1 do not add up to its attention"),
        ("ln_final.hook_out", "layer", "ln_final is neither a layer norm nor an RMS norm"),
    ],
)
def test_parts_that_do_not_add_up_are_refused(folded, point, by, what):
    more = torch.linspace(0, 1, folded.cfg.d_model)
    folded.add_hook(point, lambda value, hook: value.tanh() + more, is_permanent=True)
    with pytest.raises(SiteError) as caught:
        direct_logit_attribution(folded, PAIR, by=by)
    name = load(folded).name
    assert says(caught) == refusal(what, APART).replace("GPT2LMHeadModel", name)


@pytest.mark.parametrize("make", [logit_lens, direct_logit_attribution])
def test_a_bridge_that_is_not_the_model_is_refused(make):
    """TransformerLens computes a layer norm whatever the module does."""
    hf = micro.gpt2()

    class Squashed(torch.nn.LayerNorm):
        def forward(self, value):
            return super().forward(value).tanh()

    norm = Squashed(hf.config.n_embd)
    norm.load_state_dict(hf.transformer.ln_f.state_dict())
    hf.transformer.ln_f = norm
    with pytest.raises(SiteError) as caught:
        make((hf, micro.tokenizer()), PAIR)
    assert says(caught) == refusal("TransformerLens's Bridge does not answer as the model itself", APART)
