"""What a plan says it will cost is what it costs: operations to a percent, waves exactly, and no run for the saying."""

import families
import micro
import pytest

import nbpatch as nbp
from nbpatch.model import Model, load

PAIR = nbp.PromptPair(
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    " Mary",
    " John",
)


@pytest.fixture(scope="module")
def model() -> Model:
    return load((micro.gpt2(), micro.tokenizer()))


@pytest.mark.parametrize("component", ["resid_pre", "resid_mid", "attn_out", "mlp_out", "z", "q", "k", "pattern"])
@pytest.mark.parametrize("direction", ["denoising", "both"])
def test_operations_and_waves_are_those_of_the_run(model, component, direction, monkeypatch):
    monkeypatch.setattr("nbpatch.engine.frontier.Frontier._bucket", lambda engine: 1)
    plan = nbp.dry_run(model, PAIR, component, direction=direction)
    spent = nbp.patch(model, PAIR, component, direction=direction).provenance["engine"]
    assert plan.cost is not None
    assert plan.cost.flops == pytest.approx(spent["flops"], rel=0.02)
    assert plan.cost.waves == spent["waves"]
    assert plan.n_runs == spent["runs"]


def test_a_metric_of_the_whole_vocabulary_costs_more(model):
    few, whole = (nbp.dry_run(model, PAIR, "z", metric=metric).cost for metric in ("logit_diff", "kl"))
    assert few is not None
    assert whole is not None
    assert whole.flops - few.flops == pytest.approx(2 * 12 * model.shape.d_model * model.shape.d_vocab)


def test_a_smaller_budget_means_more_waves_and_fewer_bytes(monkeypatch):
    small = load((micro.gpt2(), micro.tokenizer()))
    plan = nbp.dry_run(small, PAIR, "z", "layer head pos")
    monkeypatch.setattr("nbpatch.engine.frontier.MOST_TOKENS", 30)
    tight = nbp.dry_run(small, PAIR, "z", "layer head pos")
    assert plan.cost is not None
    assert tight.cost is not None
    assert tight.cost.waves > plan.cost.waves == 1
    assert tight.cost.peak < plan.cost.peak
    assert tight.cost.seconds > plan.cost.seconds


def test_the_description_says_it_all(model):
    lines = nbp.dry_run(model, PAIR, "resid_pre").describe().splitlines()
    assert lines[0] == "resid_pre over layer pos, denoising: 45 cells × 1 pair."
    assert lines[1:3] == ["11 runs.", "34 exactly the base value by construction, not run."]
    assert lines[3].startswith("1 wave, ")
    assert lines[3].endswith(" s.")
    for unit in ("GFLOP", "MiB", "about"):
        assert unit in lines[3]


def test_what_goes_by_replay_is_counted_in_whole_forwards(model):
    every = nbp.dry_run(model, PAIR, "scores", "layer head").cost
    assert every is not None
    length = len(model.tokenize(PAIR)[0].clean_ids)
    runs = nbp.dry_run(model, PAIR, "scores", "layer head").n_runs
    each = 2 * model.shape.layer_weights * model.shape.n_layers
    assert every.flops == pytest.approx(each * length * (runs + 2))


def test_the_calibration_is_made_once(model):
    nbp.dry_run(model, PAIR, "z")
    before = model.notes["speed"]
    nbp.dry_run(model, PAIR, "q")
    assert model.notes["speed"] is before
    assert all(number > 0 for number in before)


def test_a_long_sweep_says_its_cost_before_it_starts_and_a_short_one_nothing(model, monkeypatch, capsys):
    nbp.patch(model, PAIR, "mlp_post", "layer neuron")
    assert "about" not in capsys.readouterr().err
    monkeypatch.setattr("nbpatch.methods.patching._MANY", 1)
    monkeypatch.setattr("nbpatch.methods.patching._LONG", 0.0)
    nbp.patch(model, PAIR, "mlp_post", "layer neuron")
    said = capsys.readouterr().err
    assert said.startswith("mlp_post over layer neuron, denoising:")
    assert " GFLOP, " in said


def test_a_plan_for_replay_costs_whole_forwards():
    asked = load((micro.gpt2(), micro.tokenizer()))
    fast = nbp.dry_run(asked, PAIR, "resid_pre").cost
    asked.engine = "replay"
    slow = nbp.dry_run(asked, PAIR, "resid_pre").cost
    assert fast is not None
    assert slow is not None
    assert slow.flops > 2 * fast.flops
    assert slow.seconds > fast.seconds


@pytest.mark.parametrize("component", ["resid_pre", "attn_out", "z"])
def test_a_plan_for_suffixes_costs_what_they_take(component):
    model, pairs = families.loaded("falcon"), families.PAIRS
    plan = nbp.dry_run(model, pairs, component)
    spent = nbp.patch(model, pairs, component).provenance["engine"]
    assert spent["name"].startswith("suffix")
    assert plan.cost is not None
    assert plan.cost.flops == pytest.approx(spent["flops"], rel=0.1)
