"""The benchmark measures what it says: every row is there, both sides' values are the same. Nothing is timed here."""

import functools
import importlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import nbpatch

FOLDER = str(Path(__file__).parent / "benchmarks")
TABLE = [
    "resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "z_by_pos", "blocks", "heads",
    "resid_pre_8_pairs", "z_8_pairs", "edges_q", "eap", "everything",
]  # fmt: skip
BESIDE = ["resid_mid", "q_by_pos", "k_by_pos", "v_by_pos", "pattern_by_pos", "attribute"]
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
        names = ("sweeps", "sweep_models", "sweep_rows", "sweep_others", "sweep_contest", "sweep_report")
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
    assert cells["edges_q"] == 6 * 4 * 4
    assert cells["eap"] == 15 * (sum((1 + 5 * layer) * 12 + 5 + 5 * layer for layer in range(4)) + 21)
    assert cells["attribute"] == 4 * (4 + 1) * 15
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


def test_operations_of_sweeps_run_together_are_counted_once(suite, model):
    pairs, row = suite.sweep_models.make_pairs(model, tokens=15, p0=2, count=1), suite.sweep_rows.ROWS["blocks"]
    _, together = suite.sweep_contest.run_ours(model, pairs, row)
    apart = [suite.sweep_contest.run_ours(model, pairs, suite.sweep_rows.ROWS[name])[1] for name, _ in row.sweeps]
    rows = [suite.sweep_rows.ROWS[name] for name, _ in row.sweeps]
    separately = sum(suite.sweep_contest.flops_of(*one) for one in zip(rows, apart, strict=True))
    counted = suite.sweep_contest.flops_of(row, together)
    # Three runs of their own have three times the base runs.
    assert separately / 2 < counted < separately


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
        assert len(planned) == 2 * (15 + 2 + 2 + 1)


# Edges.


def test_edges_go_from_every_head_to_every_later_one(suite):
    places = itertools.product(range(4), range(3), range(4), range(3))
    assert suite.sweep_contest.edges_of(4, 3).tolist() == [[*one] for one in places if one[0] < one[2]]
    assert len(suite.sweep_contest.edges_of(12, 12)) == 9504
    assert [suite.sweep_rows.reach("gpt2", "edges_q", p0) for p0 in (10, 2)] == [80, 50]


def test_their_steps_for_some_edges_give_what_their_own_function_does(suite, model):
    pairs = suite.sweep_models.make_pairs(model, tokens=15, p0=2, count=1)
    match = suite.sweep_contest.Match(model, pairs, suite.sweep_rows.ROWS["edges_q"], None)
    assert match.measured == len(match.compared[0]) == 96
    assert match.differences[0] <= SAME
    cells = match.sweeps[0].pick(None, match.rng)
    cache = match.theirs._cached()
    with torch.no_grad():
        (some,), (every,) = match.theirs._some(match.sweeps, [cells], cache), match.theirs._in_full([], cache)
    assert np.ptp(every.numpy()) > 100 * SAME
    np.testing.assert_allclose(some, every, rtol=0, atol=SAME / 10)
    assert not model.bridge.cfg.use_split_qkv_input


def test_an_edge_that_was_not_run_is_a_difference(suite, model, monkeypatch, tmp_path):
    def without_one(*arguments, **options):
        result = honest(*arguments, **options)
        result.data["logit_diff"].values[0, 0, 3, 3] = np.nan
        return result

    honest = nbpatch.path_patch
    monkeypatch.setattr(suite.sweeps, "make_model", lambda shape, device: model)
    arguments = ["--quick", "--rows", "edges_q", "--cells", "0", "--repeats", "0", "--out", str(tmp_path)]
    assert suite.sweeps.main(arguments) == 0
    monkeypatch.setattr(nbpatch, "path_patch", without_one)
    assert suite.sweeps.main(arguments) == 1


# Estimates from gradients.


def test_all_scores_are_compared_whatever_number_of_cells_is_asked_for(quick):
    found = {row["row"]: row for row in quick.rows if row["row"] in ("eap", "attribute")}
    assert len(found) == 2
    for row in found.values():
        assert row["measured"] == row["compared"] == row["cells"]


def test_nodes_of_both_sides_have_the_same_names(suite, model):
    pairs = suite.sweep_models.make_pairs(model, tokens=15, p0=2, count=1)
    theirs = suite.sweep_contest.TheirScores(model, pairs, suite.sweep_rows.ROWS["eap"])
    kept = []
    theirs._edges = kept.append
    theirs.run([], [])
    circuit = nbpatch.eap(model, pairs, by_position=True)
    edges = [
        f"{suite.sweep_contest.name_of(sender)}->{suite.sweep_contest.name_of(receiver)} @ {sender.position}"
        for sender, receiver in kept[0]
    ]
    assert sorted(edges) == sorted(map(str, circuit.edges))
    assert [suite.sweep_rows.reach("gpt2", "eap", p0) for p0 in (10, 2)] == [25, 25]


@pytest.mark.parametrize(("by", "status"), [(0.0, 0), (2e-4, 1), (np.nan, 1)])
@pytest.mark.parametrize("name", ["eap", "attribute"])
def test_one_score_that_is_off_ends_in_status_1(suite, model, monkeypatch, tmp_path, name, by, status):
    def changed(*arguments):
        found = honest(*arguments)
        scores = found.edge_scores if name == "eap" else found.node_scores
        scores[list(scores)[-1]] += by
        return found

    honest = suite.sweep_contest.attribution_patch
    monkeypatch.setattr(suite.sweeps, "make_model", lambda shape, device: model)
    monkeypatch.setattr(suite.sweep_contest, "attribution_patch", changed)
    arguments = ["--quick", "--rows", name, "--repeats", "0", "--out", str(tmp_path)]
    assert suite.sweeps.main(arguments) == status


# Other tools' columns.


class Hooked:
    """A tool as the columns expect it, by plain hooks on the model it is given."""

    least = 10
    off = 0.0

    def __init__(self, hf, tokenizer, prompts):
        self.hf, self.prompts = hf, prompts

    def prepare(self):
        return self.hf(self.prompts.clean, output_hidden_states=True).hidden_states

    def run(self, inputs, cells):
        return [self.patched(inputs, *cell) + self.off for cell in cells]

    def patched(self, inputs, layer, pos):
        def take(block, arguments):
            (value, *rest) = arguments
            value = value.clone()
            value[:, pos] = inputs[layer][:, pos]
            return (value, *rest)

        handle = self.hf.transformer.h[layer].register_forward_pre_hook(take)
        try:
            return self.prompts.logit_diff(self.hf(self.prompts.corrupted).logits)
        finally:
            handle.remove()


@pytest.fixture
def report(suite, model, monkeypatch, tmp_path):
    """Runs resid_pre beside the given tools, {name: class or None}, and returns the report with its one row."""

    def run(tools, *arguments):
        there = {name: None if tool is None else "1.2" for name, tool in tools.items()}
        monkeypatch.setattr(suite.sweeps, "make_model", lambda shape, device: model)
        monkeypatch.setattr(suite.sweep_others, "TOOLS", tools)
        for module in (suite.sweep_others, suite.sweep_report):
            monkeypatch.setattr(module, "installed", lambda: there)
        status = suite.sweeps.main(["--quick", "--rows", "resid_pre", *arguments, "--out", str(tmp_path)])
        record = json.loads((tmp_path / "sweeps.json").read_text())
        return SimpleNamespace(status=status, text=(tmp_path / "sweeps.md").read_text(), row=record["rows"][0])

    return run


def test_a_tool_has_a_column_of_ratio_and_difference(report):
    found = report({"hooked": Hooked}, "--repeats", "3")
    (column,) = found.row["others"]
    assert found.status == 0
    assert column["difference"] <= SAME
    assert column["measured"] == 10
    assert column["ratio"] == column["seconds"] / found.row["ours"] > 1
    assert "| beside hooked |" in found.text
    assert f"| {column['ratio']:.1f}x, max difference {column['difference']:.1e} on 10 of 60 cells |" in found.text
    assert found.text.endswith("\n\n- hooked 1.2.\n")


def test_all_cells_of_a_tool_are_compared_when_asked_for(report):
    found = report({"hooked": Hooked}, "--repeats", "0", "--cells", "0")
    (column,) = found.row["others"]
    assert (column["measured"], column["seconds"], column["ratio"]) == (60, None, None)
    assert column["difference"] <= SAME


def test_a_tool_that_differs_ends_in_status_1(report):
    class Off(Hooked):
        off = 2e-4

    found = report({"off": Off}, "--repeats", "0")
    assert found.status == 1
    assert "of 60 cells NOT EXACT |" in found.text


def test_a_tool_that_fails_has_no_column_and_the_report_says_why(report):
    class Failing(Hooked):
        def run(self, inputs, cells):
            raise AttributeError("no\n  such thing")

    found = report({"hooked": Hooked, "failing": Failing}, "--repeats", "1")
    assert found.status == 0
    assert "- failing 1.2: fails with AttributeError: no such thing.\n" in found.text
    assert "beside failing" not in found.text
    assert "beside hooked" in found.text
    failing = found.row["others"][1]
    assert (failing["seconds"], failing["ratio"], failing["difference"], failing["measured"]) == (None, None, None, 0)


def test_a_tool_that_is_not_installed_has_no_column_and_the_report_says_so(report):
    found = report({"absent": None}, "--repeats", "0")
    assert found.row["others"] == []
    assert "- absent is not installed: no column.\n" in found.text
    assert "beside absent" not in found.text


def test_columns_are_where_they_were_asked_for(suite, monkeypatch):
    monkeypatch.setattr(suite.sweep_others, "TOOLS", {"hooked": Hooked})
    monkeypatch.setattr(suite.sweep_others, "installed", lambda: {"hooked": "1.2"})
    places = itertools.product(suite.sweep_models.SHAPES, suite.sweep_rows.ROWS, (15, 64))
    there = [place for place in places if suite.sweep_others.others(place, None, None, 8, float)]
    assert there == [("gpt2", "resid_pre", 15), ("tiny", "resid_pre", 15)]


def test_a_tools_time_is_what_it_does_once_and_all_cells_scaled_from_the_measured_ones(suite, model, monkeypatch):
    pairs = suite.sweep_models.make_pairs(model, tokens=15, p0=2, count=1)
    match = suite.sweep_contest.Match(model, pairs, suite.sweep_rows.ROWS["resid_pre"], 8)
    monkeypatch.setattr(suite.sweep_others, "TOOLS", {"hooked": Hooked})
    other = suite.sweep_others.Other("hooked", model, match.theirs, 20, itertools.count().__next__)
    for _ in range(3):
        other.turn(match.sweeps[0])
    assert other.seconds == [1 + 1 * 60 / 20] * 2


def test_tools_get_modules_of_their_own_over_the_same_numbers(suite, model):
    theirs, ours = suite.sweep_others.share_weights(model._hf), model._hf
    assert {id(one) for one in theirs.modules()}.isdisjoint(map(id, ours.modules()))
    pairs = list(zip(theirs.parameters(), ours.parameters(), strict=True))
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)
    theirs.requires_grad_(False)
    assert all(one.requires_grad for one in ours.parameters())
    assert theirs.lm_head.weight is theirs.transformer.wte.weight


@pytest.mark.parametrize("name", ["nnsight", "pyvene"])
def test_the_real_tools_give_the_same_values(suite, name, tmp_path):
    if suite.sweep_others.installed()[name] is None:
        pytest.skip(f"{name} is not installed")
    # In a process of its own: importing nnsight gives every object of the process a method `save`.
    script = [sys.executable, f"{FOLDER}/sweeps.py", "--quick", "--rows", "resid_pre", "--p0", "2"]
    subprocess.run([*script, "--repeats", "0", "--cells", "0", "--out", str(tmp_path)], check=True, capture_output=True)
    (row,) = json.loads((tmp_path / "sweeps.json").read_text())["rows"]
    (column,) = [column for column in row["others"] if column["name"] == name]
    assert column["failure"] == ""
    assert column["measured"] == 60
    assert column["difference"] <= SAME


def test_the_bench_extra_names_every_tool_with_a_lower_bound(suite):
    lines = (Path(__file__).parents[1] / "pyproject.toml").read_text().splitlines()
    (extra,) = [line for line in lines if line.startswith("bench = ")]
    assert re.findall(r'"(\w+)>=[\d.]+"', extra) == list(suite.sweep_others.TOOLS)
