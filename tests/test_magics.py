"""The magics in a real IPython shell: options, errors, completions, loading and unloading, and a run as text."""

import atexit
import re
import textwrap

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from nbpatch import magics
from nbpatch.cell import CellError
from nbpatch.magics import PatchMagics, candidates, read_spec

PROMPTS = """\
clean:     When Mary and John went to the store, John gave a drink to
corrupted: When Mary and John went to the store, Mary gave a drink to
answer:    " Mary"
wrong:     " John"
"""
OPTIONS = '--component z --over "layer head" --direction both --metric logit_diff prob -o result'


@pytest.fixture
def shell(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    config = Config()
    config.HistoryManager.enabled = False
    made = InteractiveShell(config=config)
    yield made
    atexit.unregister(made.atexit_operations)
    made.restore_sys_module_state()
    made.atexit_operations()


@pytest.fixture
def loaded(shell):
    shell.extension_manager.load_extension("nbpatch")
    return shell


def spec_of(options, cell=PROMPTS, variables=None):
    return read_spec(f"%%patch {options}", options, cell, variables or {})


def message_of(options, cell=PROMPTS, variables=None):
    with pytest.raises(CellError) as caught:
        spec_of(options, cell, variables)
    return "\n" + str(caught.value) + "\n"


def test_the_cell_of_the_readme():
    spec = spec_of(OPTIONS)
    assert (spec.component, spec.over, spec.direction) == ("z", ("layer", "head"), "both")
    assert spec.metric == ("logit_diff", "prob")
    assert (spec.output, spec.model) == ("result", None)
    assert spec.pairs[0].answer == (" Mary",)


def test_no_options_at_all():
    spec = spec_of("")
    assert (spec.component, spec.over, spec.direction, spec.metric) == (
        "resid_pre",
        ("layer", "pos"),
        None,
        ("logit_diff",),
    )


def test_short_options_and_equals_signs():
    spec = spec_of("-c=pattern --over=dest,src,layer,head -o r")
    assert (spec.component, spec.over, spec.output) == ("pattern", ("layer", "head", "dest", "src"), "r")


def test_a_metric_may_be_a_function_of_the_notebook():
    def top_logit(logits):
        return logits.max(-1).values

    assert spec_of("--metric prob top_logit", variables={"top_logit": top_logit}).metric == ("prob", top_logit)


def test_a_name_of_ours_is_not_taken_over_by_a_variable():
    assert spec_of("--metric prob", variables={"prob": print}).metric == ("prob",)


def test_variables_only_where_asked():
    cell = "clean: {a}\ncorrupted: x\nanswer: y"
    assert spec_of("--metric prob", cell, {"a": "b"}).pairs[0].clean == "{a}"
    assert spec_of("--expand --metric prob", cell, {"a": "b"}).pairs[0].clean == "b"


def test_mistakes_in_options_and_prompts_are_shown_at_once():
    options = "--component resid_per --direction up --metric logit_dif prob --colour red -o 2nd"
    assert message_of(options, PROMPTS.replace("answer:    ", "anser: ")) == (
        """
6 problems in this cell.

no component 'resid_per'.
  line 1  %%patch --component resid_per --direction up --metric logit_dif prob --colour red -o 2nd
                              ^^^^^^^^^
  try     did you mean "resid_pre"?

no direction 'up'.
  line 1  %%patch --component resid_per --direction up --metric logit_dif prob --colour red -o 2nd
                                                    ^^
  try     one of: denoising, noising, both

no metric 'logit_dif'.
  line 1  %%patch --component resid_per --direction up --metric logit_dif prob --colour red -o 2nd
                                                                ^^^^^^^^^
  try     did you mean "logit_diff"?

no option --colour.
  line 1  %%patch --component resid_per --direction up --metric logit_dif prob --colour red -o 2nd
                                                                               ^^^^^^^^
  try     one of: --component, --over, --direction, --corruption, --metric, --output, --model, --expand

'2nd' cannot name a variable.
  line 1  %%patch --component resid_per --direction up --metric logit_dif prob --colour red -o 2nd
                                                                                               ^^^
  try     -o result

no entry 'anser'.
  line 4  anser: " Mary"
          ^^^^^
  try     did you mean "answer"?
"""
    )


@pytest.mark.parametrize(
    ("options", "what", "caret", "fix"),
    [
        ('-c z --over "layer hed"', "z has no axis 'hed'.", '"layer hed"'[1:-1], 'did you mean "head"?'),
        ("-c embd", "no component 'embd'.", "embd", 'did you mean "embed"?'),
        ("--over pos,pos", "an axis is named twice.", "pos,pos", 'over="layer pos"'),
        ("--metric prob prob", "two metrics of one name.", "%%patch --metric prob prob", "its own name"),
        ("--output", "--output: expected one argument.", "--output", "%%patch? shows all options"),
        ("--metric -c z", "--metric: expected at least one argument.", "--metric", "%%patch? shows all options"),
        ("z", "'z' belongs to no option.", "z", "--component z"),
        ("--compnent z", "no option --compnent.", "--compnent", 'did you mean "--component"?'),
        ('--over "layer head', "a quote is not closed.", '"layer head', '--over "layer head"'),
        ("--d x --metri prob", "no direction 'x'.", None, "one of: denoising"),
    ],
)
def test_mistakes_in_options(options, what, caret, fix):
    message = message_of(options)
    assert f"\n{what}\n" in message
    assert fix in message
    lines = message.split("\n")
    line = next(i for i, text in enumerate(lines) if "^" in text)
    shown = "".join(a for a, b in zip(lines[line - 1], lines[line], strict=False) if b == "^")
    assert caret is None or shown == caret


def test_the_caret_is_under_the_value_of_its_own_option():
    assert "\n  line 1  %%patch -o up --direction up\n" + " " * 36 + "^^\n" in message_of("-o up --direction up")


def test_errors_have_no_python_frames(loaded, capsys):
    loaded.run_cell("%%patch --component resid_per\n" + PROMPTS)
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert "no component 'resid_per'." in text
    assert "^^^^^^^^^" in text
    assert "Traceback" not in text
    assert "magics.py" not in text


def test_errors_of_the_engine_are_shown_under_their_line(loaded, tiny, capsys):
    loaded.run_cell("%%patch\n" + PROMPTS.replace('" Mary"', '" Maryland"'))
    text = "".join(capsys.readouterr())
    assert "\n  line 4  answer:" in text
    assert "^" in text
    assert "Traceback" not in text


def test_a_pair_without_wrong_is_refused_before_anything_runs():
    cell = PROMPTS.replace('wrong:     " John"\n', "") + "\n" + PROMPTS
    assert message_of("", cell) == (
        """
logit_diff needs a wrong answer to compare with.
  line 4  answer:    " Mary"
                     ^^^^^^^
  try     wrong: " John", or --metric log_prob
"""
    )
    assert len(spec_of("--metric prob", cell).pairs) == 2


def test_a_model_that_is_not_there_has_its_caret_under_the_option(loaded, capsys):
    loaded.run_cell("%%patch --model ./nope -c z\n" + PROMPTS)
    text = "".join(capsys.readouterr())
    assert "no such model folder." in text
    assert "\n  line 1  %%patch --model ./nope -c z\n                          ^^^^^^\n" in text


def test_the_way_out_of_unequal_lengths_can_be_typed_into_the_cell(loaded, tiny, capsys):
    longer = PROMPTS.replace("corrupted: When Mary and", "corrupted: When Mary and Paul and")
    loaded.run_cell("%%patch -c z\n" + longer)
    text = "".join(capsys.readouterr())
    assert "different numbers of tokens" in text
    (way,) = re.findall(r"align: [\d:, -]+\d", text)
    assert way == "align: 0-3:0-3, 11-14:13-16"
    loaded.run_cell(f"%%patch -c z -o result\n{longer}{way}\n")
    assert loaded.user_ns["result"].provenance["component"] == "z"


def test_a_terminal_gets_the_text_form(loaded, tiny, capsys):
    loaded.user_ns["mine"] = tiny
    loaded.run_cell(f"%%patch {OPTIONS} --model mine\n{PROMPTS}")
    result = loaded.user_ns["result"]
    assert result.data["logit_diff"].dims == ("direction", "layer", "head", "pair")
    assert set(result.data.data_vars) == {"logit_diff", "prob"}
    assert str(result) in capsys.readouterr().out


def test_run_again_with_other_options(loaded, tiny, capsys):
    loaded.user_ns["mine"] = tiny
    loaded.run_cell("%patch_run")
    assert "there is no %%patch cell to run again." in "".join(capsys.readouterr())
    loaded.run_cell(f"%%patch {OPTIONS} --model mine\n{PROMPTS}")
    loaded.run_cell("%patch_run --direction noising --metric prob -o other")
    other = loaded.user_ns["other"]
    assert other.provenance["direction"] == "noising"
    assert list(other.data.data_vars) == ["prob"]
    assert other.provenance["component"] == "z"


def test_the_model_of_the_session(loaded, tiny, capsys):
    loaded.user_ns["mine"] = tiny
    loaded.run_cell("%patch_model mine")
    loaded.run_cell(f"%%patch -c z -o result\n{PROMPTS}")
    assert loaded.user_ns["result"].origin.model is tiny
    capsys.readouterr()
    loaded.run_cell("%patch_model")
    assert tiny.describe() in capsys.readouterr().out
    loaded.run_cell("%patch_model ./not/here")
    text = "".join(capsys.readouterr())
    assert "no such model folder." in text
    assert "Traceback" not in text


def test_help_lists_options_and_shows_the_python(loaded):
    text = PatchMagics.patch.__doc__
    for option in ("--component", "--over", "--direction", "--metric", "--output", "--model", "--expand"):
        assert option in text
    assert "nbp.patch(nbp.load(" in textwrap.dedent(text)
    assert "%patch_model" in text
    assert "%%patch_model" not in text


def test_braces_in_options_are_left_alone(loaded, capsys):
    loaded.user_ns["c"] = "z"
    loaded.run_cell("%%patch -c {c}\n" + PROMPTS)
    assert "no component '{c}'." in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("%%patch --comp", ["--component"]),
        ("%%patch --corruption r", ["resample"]),
        (
            "%%patch ",
            ["--component", "--over", "--direction", "--corruption", "--metric", "--output", "--model", "--expand"],
        ),
        ("%%patch -c resid_p", ["resid_pre", "resid_post"]),
        ("%%patch --component=re", []),
        ('%%patch -c z --over "layer h', ["head"]),
        ("%%patch -c pattern --over ", ["layer", "head", "dest", "src"]),
        ("%%patch --direction ", ["denoising", "noising", "both"]),
        ("%%patch --metric prob lo", ["logit_diff", "log_prob"]),
        ("%%patch --direction both --m", ["--metric", "--model"]),
        (
            "%%patch --direction both ",
            ["--component", "--over", "--direction", "--corruption", "--metric", "--output", "--model", "--expand"],
        ),
        ("%patch_run --dir", ["--direction"]),
        ("patch --comp", []),
    ],
)
def test_candidates_for_options(before, expected):
    assert candidates(before, before) == expected


def test_candidates_for_lines():
    assert candidates("cl", "%%patch -c z") == ["clean: "]
    assert candidates("c", "%%patch -c z") == ["clean: ", "corrupted: "]
    assert candidates("clean: c", "%%patch -c z") == []
    assert candidates("cl", "import x") == []


def completions(shell, text):
    with provisionalcompleter():
        return [found.text for found in shell.Completer.completions(text, len(text))]


def test_completions_in_the_shell(loaded):
    assert completions(loaded, "%%patch --comp") == ["--component"]
    assert completions(loaded, "%%patch -c resid_p") == ["resid_pre", "resid_post"]
    assert completions(loaded, "%%patch -c z\nclean: a b\ncor") == ["corrupted: "]
    assert "--component" not in completions(loaded, "import o")


def test_unloading_restores_what_was_replaced(shell):
    def mine(line, cell):
        return "mine"

    shell.register_magic_function(mine, "cell", "patch")
    before = {kind: dict(table) for kind, table in shell.magics_manager.magics.items()}
    matchers = list(getattr(shell.Completer, "custom_matchers", []))
    shell.extension_manager.load_extension("nbpatch")
    assert shell.magics_manager.magics["cell"]["patch"] is not mine
    assert "patch_run" in shell.magics_manager.magics["line"]
    shell.extension_manager.unload_extension("nbpatch")
    assert {kind: dict(table) for kind, table in shell.magics_manager.magics.items()} == before
    assert list(getattr(shell.Completer, "custom_matchers", [])) == matchers
    assert shell.run_cell_magic("patch", "", "x") == "mine"


def test_loading_twice_is_loading_once(loaded):
    magics.register(loaded)
    loaded.extension_manager.unload_extension("nbpatch")
    assert loaded.find_cell_magic("patch") is None
    magics.unregister(loaded)
