"""The benchmark measures what it says: every row is there, both sides' values are the same. Nothing is timed here."""

import functools
import importlib
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

FOLDER = str(Path(__file__).parent / "benchmarks")
TABLE = [
    "resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "z_by_pos", "blocks", "heads",
    "resid_pre_8_pairs", "z_8_pairs", "everything",
]  # fmt: skip
BESIDE = ["resid_mid", "q_by_pos", "k_by_pos", "v_by_pos", "pattern_by_pos"]
SMALL = {
    "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300, "initializer_range": 0.2,
}  # fmt: skip
SAME = 1e-4


@pytest.fixture(scope="module")
def suite():
    """The benchmark's modules, found as when it is run as a script."""
    sys.path.insert(0, FOLDER)
    try:
        names = ("sweeps", "sweep_models", "sweep_rows", "sweep_contest", "sweep_report")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(FOLDER)


@pytest.fixture(scope="module")
def model(suite):
    """The tiny model, made once."""
    return suite.sweep_models.make_model("tiny")


@pytest.fixture(scope="module")
def quick(suite, model, tmp_path_factory):
    """The report of --quick without times, as read from its file, and its table."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite.sweeps, "make_model", lambda shape, device: model)
        status = suite.sweeps.main(["--quick", "--repeats", "0", "--date", "2000-01-01", "--out", str(folder)])
    record = json.loads((folder / "sweeps.json").read_text())
    return SimpleNamespace(status=status, text=(folder / "sweeps.md").read_text(), **record)


def test_every_row_of_the_table_is_run(quick):
    assert [row["row"] for row in quick.rows] == TABLE + BESIDE
    assert {(row["shape"], row["p0"]) for row in quick.rows} == {("tiny", 10)}


def test_both_sides_give_the_same_values(quick):
    print(quick.text)
    assert {row["row"]: row["difference"] for row in quick.rows if not row["difference"] <= SAME} == {}
    assert quick.status == 0


def test_the_values_compared_are_of_patches_that_do_something(quick):
    assert min(row["effect"] for row in quick.rows) > 100 * SAME


def test_rows_have_the_cells_of_the_table(quick):
    cells = {row["row"]: row["cells"] for row in quick.rows}
    assert cells["resid_pre"] == 4 * 15
    assert cells["z"] == 4 * 4
    assert cells["z_by_pos"] == cells["pattern_by_pos"] == 4 * 4 * 15
    assert cells["blocks"] == 3 * 60
    assert cells["heads"] == 5 * 16
    assert cells["everything"] == 592
    assert {row["row"] for row in quick.rows if row["pairs"] == 8} == {"resid_pre_8_pairs", "z_8_pairs"}


def test_at_least_eight_cells_are_measured_and_the_report_says_how_many(quick):
    for row in quick.rows:
        assert 8 <= row["measured"] <= row["compared"] <= row["cells"]
        assert f"| {row['measured']} of {row['cells']} cells |" in quick.text


def test_the_report_names_the_machine(quick):
    machine = quick.machine
    assert machine["date"] == "2000-01-01"
    assert quick.text.splitlines()[2].startswith(f"2000-01-01. {machine['cpu']}, {machine['cores']} cores")
    assert machine["threads"] == 1


def test_a_timed_row_has_both_sides_times_and_the_peak(suite, model, monkeypatch, tmp_path):
    monkeypatch.setattr(suite.sweeps, "make_model", lambda shape, device: model)
    assert suite.sweeps.main(["--quick", "--rows", "z", "--repeats", "3", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "sweeps.json").read_text())
    (row,) = record["rows"]
    assert np.shape(row["rounds"]) == (3, 3)
    assert [row["ours"], row["theirs"], row["peak"]] == np.median(row["rounds"], axis=0).tolist()
    assert row["ratio"] == row["theirs"] / row["ours"]
    assert record["machine"]["peak_gflops"] == row["peak"]
    text = (tmp_path / "sweeps.md").read_text()
    assert f"| tiny | z | 15 | {row['ratio']:.1f} |" in text
    assert f"sgemm peak {row['peak']:.0f} GFLOP/s (512³, median of 3)." in text


@pytest.mark.parametrize("shape", ["llama", "gemma2"])
def test_shapes_with_shared_keys_are_compared_in_full(suite, monkeypatch, tmp_path, shape):
    monkeypatch.setitem(
        suite.sweep_models.SHAPES, shape, functools.partial(getattr(suite.sweep_models, shape), **SMALL)
    )
    arguments = ["--quick", "--shape", shape, "--rows", "heads", "blocks", "--cells", "0"]
    assert suite.sweeps.main([*arguments, "--repeats", "0", "--out", str(tmp_path)]) == 0
    heads, blocks = json.loads((tmp_path / "sweeps.json").read_text())["rows"]
    assert heads["measured"] == heads["compared"] == heads["cells"] == 2 * (3 * 4 + 2 * 2)
    assert blocks["measured"] == blocks["compared"] == blocks["cells"] == 3 * 2 * 15
    assert max(heads["difference"], blocks["difference"]) <= SAME


def test_a_difference_ends_in_status_1(suite, model, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(suite.sweeps, "make_model", lambda shape, device: model)
    honest = suite.sweep_contest.Theirs.logit_diff
    monkeypatch.setattr(suite.sweep_contest.Theirs, "logit_diff", lambda self, logits: honest(self, logits) + 2e-4)
    assert suite.sweeps.main(["--quick", "--rows", "z", "--repeats", "0", "--out", str(tmp_path)]) == 1
    assert "NOT EXACT" in capsys.readouterr().out
    assert "NOT EXACT" in (tmp_path / "sweeps.md").read_text()


def test_nan_is_a_difference(suite, model, monkeypatch, tmp_path):
    monkeypatch.setattr(suite.sweeps, "make_model", lambda shape, device: model)
    monkeypatch.setattr(suite.sweep_contest.Theirs, "logit_diff", lambda self, logits: logits[:, 0, 0] * np.nan)
    assert suite.sweeps.main(["--quick", "--rows", "z", "--repeats", "0", "--out", str(tmp_path)]) == 1


@pytest.mark.parametrize(("tokens", "p0"), [(15, 10), (15, 2), (64, 4), (256, 224)])
def test_prompts_differ_in_one_token_at_the_given_position(suite, model, tokens, p0):
    pairs = model.tokenize(suite.sweep_models.make_pairs(model, tokens=tokens, p0=p0, count=3))
    for one in pairs:
        assert len(one.clean_ids) == len(one.corrupted_ids) == tokens
        assert [place for place in range(tokens) if one.clean_ids[place] != one.corrupted_ids[place]] == [p0]
    assert len({one.clean_ids for one in pairs}) == 3


def test_their_time_is_the_cache_and_all_cells_scaled_from_the_measured_ones(suite, model, monkeypatch):
    pairs = suite.sweep_models.make_pairs(model, tokens=15, p0=2, count=1)
    match = suite.sweep_contest.Match(model, pairs, suite.sweep_rows.ROWS["z"], 8)
    cells = [sweep.pick(count, match.rng) for sweep, count in zip(match.sweeps, match.counts, strict=True)]
    monkeypatch.setattr(suite.sweep_contest, "_now", itertools.count().__next__)
    assert len(cells[0]) == 8
    assert match.theirs.run(match.sweeps, cells)[0] == 1 + 1 * 16 / 8


def test_ratio_and_utilisation_are_those_of_the_medians(suite):
    outcome = suite.sweep_contest.Outcome(
        "gpt2", "z", 15, 2, 1, 144, 24, 48, ours=0.5, theirs=10.0, difference=0.0, effect=1.0, flops=4e10, peak=100.0,
        rounds=((0.5, 10.0, 100.0),),
    )  # fmt: skip
    assert (outcome.ratio, outcome.gflops, outcome.utilisation, outcome.reach) == (20, 80, 0.8, 18)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], {("gpt2", "heads", 15, 2), ("llama", "z", 15, 10), ("gemma2", "resid_pre", 15, 2)}),
        (["--long"], {("gpt2", "z", 256, 8), ("tiny", "resid_pre", 64, 50), ("gpt2", "pattern", 15, 10)}),
        (["--shape", "llama", "--rows", "k", "--long", "--p0", "4"], {("llama", "k", 64, 4)}),
    ],
)
def test_the_command_line_chooses_rows(suite, arguments, wanted):
    options = suite.sweeps.read_options(arguments)
    planned = {
        (shape, row.name, tokens, p0)
        for shape in options.shape
        for row, tokens, p0 in suite.sweeps.agenda(options, shape)
    }
    assert wanted <= planned
    if "--rows" in arguments:
        assert planned == wanted
    elif not arguments:
        assert len(planned) == 2 * (13 + 2 + 2 + 1)
