"""Attention patterns of both runs: equal to the hand-written forward's, labelled, refused where they do not fit."""

import micro
import numpy as np
import oracle
import pytest

import nbpatch as nbp
from nbpatch.errors import PlanError, ResultError
from nbpatch.model import load

PAIR = nbp.PromptPair(" Mary and John gave", " John and Mary gave", " Paul", " Mary")
LONG = nbp.PromptPair(" Mary and John gave a", " John and Mary gave a", " Paul", " Mary")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_patterns_equal_the_hand_written_forward(family):
    model = load((getattr(micro, family)(), micro.tokenizer()))
    patterns = nbp.attention(model, [PAIR, PAIR])
    assert patterns.data["pattern"].dims == ("run", "layer", "head", "dest", "src", "pair")
    (one,) = model.tokenize(PAIR)
    for run, ids in (("clean", one.clean_ids), ("corrupted", one.corrupted_ids)):
        expected = oracle.activations(model._hf, ids)
        for layer in range(model.shape.n_layers):
            ours = patterns.data["pattern"].sel(run=run).isel(layer=layer, pair=1)
            np.testing.assert_allclose(ours, expected["pattern", layer], atol=1e-5)


def test_attention_is_no_effect_and_says_so():
    patterns = nbp.attention((micro.gpt2(), micro.tokenizer()), PAIR)
    assert repr(patterns).startswith("Result of attention on GPT2LMHeadModel (run 2, layer 3")
    for question in ("effect", "recovered", "share", "top"):
        with pytest.raises(ResultError, match="attention patterns have no effect"):
            getattr(patterns, question)()


def test_pairs_of_different_lengths_do_not_fit_into_one_table():
    with pytest.raises(PlanError) as caught:
        nbp.attention((micro.gpt2(), micro.tokenizer()), [PAIR, LONG])
    assert caught.value.seen == "lengths 5, 6"
