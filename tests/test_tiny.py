import json
import re
from itertools import islice
from pathlib import Path

import pytest
import torch

from nbpatch.prompts import encode, token_text
from nbpatch.tiny import check, folder, words
from nbpatch.tiny.corpus import TASKS, examples
from nbpatch.tiny.tokenizer import BOS, UNKNOWN, build, vocabulary
from nbpatch.tiny.train import N_CTX, main, new_model, save, train

WEIGHTS = folder() / "model.safetensors"
CARD = Path(check.__file__).with_name("README.md")


@pytest.fixture(scope="module")
def report() -> check.Report:
    return check.report(folder())


def few(task: str, n: int = 200, *, held_out: bool = False) -> list[str]:
    return [example.text for example in islice(examples(3, held_out=held_out, task=task), n)]


def test_what_is_shipped_is_small_and_names_no_machine():
    assert {path.name for path in folder().iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert WEIGHTS.stat().st_size < 5_000_000
    for path in folder().glob("*.json"):
        assert not re.search(r"/(tmp|home|work|root|Users)\b|_name_or_path", path.read_text(encoding="utf-8")), (
            path.name
        )


def test_the_card_is_about_these_weights(report):
    text = CARD.read_text(encoding="utf-8")
    assert check.digest(WEIGHTS) in text
    for task, value in report.accuracies.items():
        assert f"| {task} | {value:.3f} |" in text


def test_the_tokenizer_is_what_the_code_builds(tiny):
    assert tiny.tokenizer.get_vocab() == build(N_CTX).get_vocab()
    settings = json.loads((folder() / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["add_bos_token"] is True


@pytest.mark.parametrize("task", TASKS)
def test_tokens_join_to_the_text_and_none_is_unknown(tiny, task):
    for text in [*few(task), *few(task, held_out=True)]:
        ids = encode(tiny.tokenizer, text)
        tokens = [token_text(tiny.tokenizer, token) for token in ids]
        assert tokens[0] == BOS
        assert "".join(tokens[1:]) == text == tiny.tokenizer.decode(ids[1:])
        assert UNKNOWN not in tokens
        assert len(ids) <= N_CTX


def test_tokens_carry_their_space(tiny):
    tokens = [token_text(tiny.tokenizer, token) for token in encode(tiny.tokenizer, "When Mary, in 1732, saw Mary")]
    assert tokens == [BOS, "When", " Mary", ",", " in", " 17", "32", ",", " saw", " Mary"]
    assert {"When", " When", "Mary", " Mary"} <= set(vocabulary())


def test_one_token_per_name_and_answer():
    known = set(vocabulary())
    assert {f" {name}" for name in words.NAMES} <= known
    assert {f" {city}" for city, _ in words.LANDMARKS.values()} <= known
    assert len(words.NAMES) == len(set(words.NAMES)) >= 40
    assert len(words.LANDMARKS) >= 20


def test_the_mixture_follows_from_its_seed():
    one, same, other = (list(islice(examples(seed, held_out=False), 300)) for seed in (5, 5, 6))
    assert one == same
    assert one != other
    assert {example.task for example in one} == set(TASKS)


def test_held_out_combinations_are_never_trained_on():
    trained = {example.key for example in islice(examples(0, held_out=False), 20_000)}
    kept = {example.key for task in TASKS for example in islice(examples(1, held_out=True, task=task), 200)}
    assert len(kept) > 100
    assert not trained & kept


def test_standard_prompts_are_answered(report):
    assert report.mistakes == []


@pytest.mark.parametrize("task", TASKS)
def test_held_out_combinations_are_answered(report, task):
    assert report.accuracies[task] >= 0.99


def test_the_effect_moves_through_the_layers(report):
    assert len(report.stages) == 4
    for name, one in report.stages.items():
        assert one.problems() == [], name
        assert one.source[0] > 0.5
        assert one.end[0] == pytest.approx(0, abs=1e-3)


def test_a_flat_picture_is_a_problem():
    heads = ((1.0, 0.0), (0.0, 0.0))
    flat = check.Stages((1.0, 0.0), (0.0, 1.0), heads, tuple(tuple(-value for value in row) for row in heads), 0)
    assert [problem.split()[0] for problem in flat.problems()] == ["the", "the", "only", "one", "denoising"]


def test_training_repeats_bit_for_bit(tmp_path):
    threads = torch.get_num_threads()
    one, same, other = (
        check.digest(train(tmp_path / name, seed=seed, steps=5, batch=8) / WEIGHTS.name)
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert one == same
    assert one != other
    assert torch.get_num_threads() == threads


def test_the_command_line_passes_the_shipped_model(capsys):
    assert main(["--check"]) == 0
    assert "all as it must be" in capsys.readouterr().out


def test_the_command_line_refuses_an_untrained_model(tmp_path, capsys):
    torch.manual_seed(0)
    tokenizer = build(N_CTX)
    save(new_model(len(tokenizer)), tokenizer, tmp_path)
    assert main(["--check", str(tmp_path)]) == 1
    assert "not as it must be: ioi" in capsys.readouterr().out


def test_the_command_line_refuses_what_is_no_model(tmp_path, capsys):
    assert main(["--check", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().out


def test_the_command_line_trains_and_checks(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--steps", "1"]) == 1
    assert "step     0 of 1" in capsys.readouterr().out
    assert (tmp_path / "model.safetensors").is_file()
