"""`%load_ext nbpatch`: the `%%patch` cell and its line magics.

`@no_var_expand` keeps IPython from filling `{…}` into options; prompts change only where `--expand` asks for it.
"""

import keyword
import re
import shlex
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import argument, magic_arguments
from IPython.display import display

from nbpatch.cell import KEYS, CellError, Problem, Source, Span, cell_error, collect, read_lines, read_pairs
from nbpatch.corruption import SOURCES, AnyCorruption
from nbpatch.errors import MagicError, ModelError, NbpatchError, suggest
from nbpatch.metrics import METRICS, as_metrics
from nbpatch.plan import directions_of
from nbpatch.prompts import Pairs, PromptPair
from nbpatch.sites import COMPONENTS, SWEEPABLE, component_of, parse_over

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from nbpatch.model import Model

DIRECTIONS = ("denoising", "noising", "both")

_OPTIONS = (
    argument("-c", "--component", default="resid_pre", help=f"what is patched: {', '.join(SWEEPABLE)}"),
    argument("--over", default=None, help='swept axes, such as "layer pos" or "layer head"; default: the usual two'),
    argument("--direction", default=None, help=f"{', '.join(DIRECTIONS)}; default: denoising, noising for an ablation"),
    argument(
        "--corruption",
        default="counterfactual",
        help=f"where values come from: {', '.join(SOURCES)}; mean and resample draw on the cell's own prompts",
    ),
    argument(
        "--metric",
        nargs="+",
        default=["logit_diff"],
        help=f"one or more of {', '.join(METRICS)}, or a function of this notebook: logits [pair d_vocab] → [pair]",
    ),
    argument("-o", "--output", default=None, metavar="NAME", help="variable that gets the Result"),
    argument(
        "--model",
        default=None,
        metavar="NAME",
        help='"tiny", a hub id, a folder, or a variable that holds a model; default: the one of %%patch_model',
    ),
    argument("--expand", action="store_true", help="fill variables into the prompts: {name} becomes str(name)"),
)


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        function = cast("Callable[..., Any]", option(function))
    return function


@dataclass(frozen=True)
class Spec:
    """What a `%%patch` cell asks for, checked as far as it can be without a model."""

    pairs: Pairs
    component: str
    over: tuple[str, ...]
    direction: str | None
    corruption: AnyCorruption
    metric: tuple[Any, ...]
    output: str | None
    model: str | None
    source: Source

    @property
    def arguments(self) -> dict[str, Any]:
        """What `nbp.patch` and `nbp.Workbench` take behind the model."""
        return {
            "pairs": self.pairs,
            "component": self.component,
            "over": self.over,
            "direction": self.direction,
            "metric": list(self.metric),
            "corruption": self.corruption,
        }


@magics_class
class PatchMagics(Magics):
    """The magics of one notebook session, with its models and its last `%%patch` cell."""

    def __init__(self, shell: "InteractiveShell") -> None:
        super().__init__(shell)
        self._models: dict[str, Model] = {}
        self._current = "tiny"
        self._last: tuple[str, str] | None = None

    @no_var_expand
    @magic_arguments()
    @_options
    @cell_magic
    def patch(self, line: str, cell: str) -> None:
        """Patch activations between two prompts and show the map.

        The lines of the cell are the prompts; blank lines separate pairs, # starts a comment::

            %%patch --component z --over "layer head" --direction both --metric logit_diff prob -o result
            clean:     When Mary and John went to the store, John gave a drink to
            corrupted: When Mary and John went to the store, Mary gave a drink to
            answer:    " Mary"
            wrong:     " John"

        It stands for this Python::

            pair = nbp.PromptPair(clean="When Mary …", corrupted="When Mary …", answer=" Mary", wrong=" John")
            result = nbp.patch(nbp.load("tiny"), pair, "z", over="layer head",
                               direction="both", metric=["logit_diff", "prob"])
            result.show()

        Text in quotes keeps its spaces. Answers may be several, in quotes, separated by commas. Prompts of different
        lengths need a line such as `align: 0-3:0-3 4-6:5-7` (clean positions : corrupted positions).
        """
        self._last = (line, cell)
        spec = read_spec(f"%%patch {line}".rstrip(), line, cell, self._variables())
        try:
            self._run(spec)
        except CellError:
            raise
        except NbpatchError as error:
            raise cell_error(spec.source, [_place(spec, one) for one in error.problems or (error,)]) from error

    @no_var_expand
    @line_magic
    def patch_run(self, line: str) -> None:
        """Run the last `%%patch` cell again; options given here come on top of its own.

        `%patch_run --direction noising -o other` is the last cell with another direction and another name.
        """
        if self._last is None:
            raise CellError("there is no %%patch cell to run again.", fix="%%patch? for an example")
        options, cell = self._last
        self.patch(f"{options} {line}".strip(), cell)

    @no_var_expand
    @line_magic
    def patch_model(self, line: str) -> None:
        """Say which model `%%patch` uses from here on; without a name, describe the current one.

        `%patch_model NAME` stands for `model = nbp.load(NAME)`; NAME is "tiny", a hub id, a folder, or a variable that
        holds a model, a TransformerBridge or a tuple (Hugging Face model, tokenizer).
        """
        name = line.strip().strip("\"'")
        try:
            model = self._model(name or self._current)
            if name:
                self._current = name
            print(repr(model) if name else model.describe())  # noqa: T201 - what a line magic answers with
        except NbpatchError as error:
            raise CellError(error.what, where=error.where, seen=error.seen, fix=error.fix, notes=error.notes) from error

    def _run(self, spec: Spec) -> None:
        model = self._model(spec.model or self._current)
        if not _has_page(self._shell):
            self._keep(spec, self._run_as_text(spec, model))
            return
        from nbpatch.workbench import Workbench

        bench = Workbench(model, **spec.arguments)
        handle: Any = display(bench, display_id=True)
        self._keep(spec, bench.run(wait=True))
        # The output shown first has no picture yet: the one that is saved with the notebook has.
        handle.update(bench)

    def _run_as_text(self, spec: Spec, model: "Model") -> Any:
        from nbpatch.methods.patching import patch

        result = patch(model, **spec.arguments)
        print(result)  # noqa: T201 - the text form is all a terminal can show
        return result

    def _keep(self, spec: Spec, result: Any) -> None:
        if spec.output:
            self._shell.user_ns[spec.output] = result

    @property
    def _shell(self) -> "InteractiveShell":
        return cast("InteractiveShell", self.shell)

    def _variables(self) -> Mapping[str, Any]:
        return self._shell.user_ns

    def _model(self, name: str) -> "Model":
        from nbpatch.model import load

        held = self._variables().get(name)
        if held is not None and not isinstance(held, str):
            return load(held)
        if name not in self._models:
            self._models[name] = load(held if isinstance(held, str) else name)
        return self._models[name]


def read_spec(magic_line: str, line: str, cell: str, variables: Mapping[str, Any]) -> Spec:
    """Returns what a cell asks for.

    Args:
        magic_line: the whole first line, for carets.
        line: its options.
        variables: the notebook's, for `--expand` and for metrics that are functions.

    Raises:
        CellError: every mistake in options and prompts, each under its line.
    """
    source, problems = read_lines(magic_line, cell)
    options, wrong_options = _read_options(magic_line, line, variables)
    pairs, wrong_pairs = read_pairs(source, variables if options.expand else None)
    found = [*wrong_options, *problems, *wrong_pairs] or _lacking_wrong(source, pairs, options.metric)
    if found:
        raise cell_error(source, found)
    return Spec(
        pairs=Pairs(pairs),
        component=options.component,
        over=parse_over(options.component, options.over),
        direction=options.direction,
        corruption=SOURCES[options.corruption],
        metric=tuple(_metric(name, variables) for name in options.metric),
        output=options.output,
        model=options.model,
        source=source,
    )


def _place(spec: Spec, error: NbpatchError) -> Problem:
    """Returns an engine's error with its place: the option that names the model, or a line of the prompts."""
    if spec.model and isinstance(error, ModelError):
        return Problem(error, _value_span(spec.source.lines[0], spec.model, ["--model"]))
    return spec.source.place(error)


def _lacking_wrong(source: Source, pairs: Sequence[PromptPair], metrics: Sequence[str]) -> list[Problem]:
    needing = next((name for name in metrics if name in METRICS and METRICS[name].needs_wrong), None)
    return [
        Problem(
            MagicError(f"{needing} needs a wrong answer to compare with.", fix='wrong: " John", or --metric log_prob'),
            block.entries["answer"].span,
        )
        for block, pair in zip(source.blocks, pairs, strict=True)
        if needing and not pair.wrong
    ]


def _read_options(magic_line: str, line: str, variables: Mapping[str, Any]) -> tuple[Namespace, list[Problem]]:
    parser = PatchMagics.patch.parser  # type: ignore[attr-defined]  # set by @magic_arguments
    try:
        words = shlex.split(line)
    except ValueError:
        start = max(magic_line.rfind('"'), magic_line.rfind("'"))
        error = MagicError("a quote is not closed.", fix='--over "layer head"')
        return parser.parse_args([]), [Problem(error, Span(0, start, len(magic_line)))]
    try:
        options, extra = parser.parse_known_args(words)
    except UsageError as error:
        return parser.parse_args([]), [_usage_problem(magic_line, str(error))]
    problems = [*_unknown(magic_line, extra), *_check(magic_line, options, variables)]
    return options, problems


def _usage_problem(magic_line: str, message: str) -> Problem:
    """Returns argparse's own complaint ("argument -o/--output: expected one argument") with its place."""
    match = re.match(r"argument (\S+): (.*)", message)
    names = match[1].split("/") if match else []
    span = next((span for name in names if (span := _word_span(magic_line, name))), None) or _whole(magic_line)
    what = f"{names[-1]}: {match[2]}." if match else f"{message}."
    return Problem(MagicError(what, fix="%%patch? shows all options"), span)


def _unknown(magic_line: str, words: Sequence[str]) -> list[Problem]:
    """Returns a problem for each unknown option; its value, a bare word behind it, is not a second mistake."""
    problems: list[Problem] = []
    behind_option = False
    for word in words:
        if word.startswith("-"):
            fix = suggest(word.split("=")[0], _option_names())
            problems.append(Problem(MagicError(f"no option {word}.", fix=fix), _word_span(magic_line, word)))
            behind_option = True
        elif not behind_option:
            fix = f"--component {word}" if word in COMPONENTS else "%%patch? shows all options"
            error = MagicError(f"{word!r} belongs to no option.", fix=fix)
            problems.append(Problem(error, _word_span(magic_line, word)))
    return problems


def _check(magic_line: str, options: Namespace, variables: Mapping[str, Any]) -> list[Problem]:
    def place(value: object, *names: str) -> Span | None:
        return _value_span(magic_line, str(value), names)

    component_problems = collect(
        [(lambda: component_of(options.component), place(options.component, "-c", "--component"))]
    )
    checks: list[tuple[Callable[[], object], Span | None]] = []
    if not component_problems:
        checks.append((lambda: parse_over(options.component, options.over), place(options.over, "--over")))
    if options.direction is not None:
        checks.append((lambda: _check_direction(options.direction), place(options.direction, "--direction")))
    checks.append((lambda: _check_source(options), place(options.corruption, "--corruption")))
    checks.extend(
        (lambda name=name: as_metrics([_metric(name, variables)]), place(name, "--metric")) for name in options.metric
    )
    checks.append((lambda: _check_output(options.output), place(options.output, "-o", "--output")))
    found = [*component_problems, *collect(checks)]
    if not found:
        found = collect(
            [(lambda: as_metrics([_metric(name, variables) for name in options.metric]), _whole(magic_line))]
        )
    return found


def _check_direction(direction: str) -> None:
    if direction not in DIRECTIONS:
        raise MagicError(f"no direction {direction!r}.", fix=suggest(direction, DIRECTIONS))


def _check_source(options: Namespace) -> None:
    if options.corruption not in SOURCES:
        raise MagicError(f"no corruption {options.corruption!r}.", fix=suggest(options.corruption, SOURCES))
    if options.direction in DIRECTIONS:
        directions_of(options.direction, SOURCES[options.corruption])


def _check_output(name: str | None) -> None:
    if name is not None and (not name.isidentifier() or keyword.iskeyword(name)):
        raise MagicError(f"{name!r} cannot name a variable.", fix="-o result")


def _metric(name: str, variables: Mapping[str, Any]) -> Any:
    """Returns the function of that name where the notebook has one and nbpatch has not, else the name."""
    return variables[name] if name not in METRICS and callable(variables.get(name)) else name


def _whole(magic_line: str) -> Span:
    return Span(0, 0, len(magic_line))


def _word_span(magic_line: str, word: str) -> Span | None:
    match = re.search(rf"(?<!\S){re.escape(word)}(?!\w)", magic_line)
    return Span(0, match.start(), match.end()) if match else None


def _value_span(magic_line: str, value: str, names: Sequence[str]) -> Span:
    """Returns where an option's value stands: behind the option's last mention, as argparse takes the last."""
    mentions = [match.end() for name in names for match in re.finditer(rf"(?<!\S){name}(?=[\s=])", magic_line)]
    behind = max(mentions, default=0)
    match = re.compile(rf"(?<![\w.]){re.escape(value)}(?![\w.])").search(magic_line, behind)
    return Span(0, match.start(), match.end()) if match else _whole(magic_line)


def _option_names() -> list[str]:
    return ["--component", "--over", "--direction", "--corruption", "--metric", "--output", "--model", "--expand"]


def _has_page(shell: "InteractiveShell") -> bool:
    """Whether outputs go to something that can show a widget: a kernel, not a terminal."""
    return getattr(shell, "kernel", None) is not None


def candidates(before: str, first_line: str) -> list[str]:
    """Returns what may be typed next in a `%%patch` cell or on a `%patch_run` line.

    Args:
        before: the line with the cursor, up to the cursor.
        first_line: the first line of the cell.
    """
    if before.lstrip().startswith(("%%patch ", "%patch_run ")):
        return _option_candidates(before)
    if first_line.startswith("%%patch") and re.fullmatch(r"\s*\w*", before):
        return _matching(before.strip(), [f"{key}: " for key in KEYS])
    return []


def _option_candidates(before: str) -> list[str]:
    *words, word = before.replace('"', " ").split(" ")
    option = next((one for one in reversed(words) if one.startswith("-")), "")
    behind = sum(bool(one) for one in words[len(words) - words[::-1].index(option) :]) if option else 0
    named = re.search(r"(?:-c|--component)[ =]+(\w+)", before)
    component = named[1] if named and named[1] in SWEEPABLE else "resid_pre"
    values: dict[str, Sequence[str]] = {
        "-c": SWEEPABLE,
        "--component": SWEEPABLE,
        "--over": COMPONENTS[component].axes,
        "--direction": DIRECTIONS,
        "--corruption": tuple(SOURCES),
        "--metric": list(METRICS),
        "--model": ["tiny"],
    }
    many = option == "--metric" or (option == "--over" and before.count('"') % 2 == 1)
    if option in values and not word.startswith("-") and (behind == 0 or many):
        return _matching(word, values[option])
    return _matching(word, _option_names())


def _matching(word: str, options: Sequence[str]) -> list[str]:
    return [option for option in options if option.startswith(word)]


def _match(context: Any) -> dict[str, Any]:
    """Answers IPython's completer (8.6 and newer)."""
    from IPython.core.completer import SimpleCompletion

    before = context.text_until_cursor
    found = candidates(before, context.full_text.split("\n", 1)[0])
    fragment = re.split(r"[\s\"=]", before)[-1]
    return {
        "completions": [SimpleCompletion(text=text, type="param") for text in found],
        "matched_fragment": fragment,
        "suppress": bool(found),
        "ordered": True,
    }


def _complete(_completer: Any, event: Any) -> list[str]:
    """Answers IPython's completer before 8.6: options only, as it sees one line."""
    return candidates(event.line[: len(event.line)], event.line)


@dataclass(frozen=True)
class _Replaced:
    """What was there before the extension was loaded, so that unloading puts it back."""

    magics: Mapping[tuple[str, str], Any]
    matcher: Any
    hooks: Mapping[str, Any]


_NAMES = (("cell", "patch"), ("line", "patch_run"), ("line", "patch_model"))
_HOOKED = ("%%patch", "%patch_run")
_STATE = "_nbpatch_replaced"


def register(shell: "InteractiveShell") -> None:
    """Registers the magics and their completions with a shell."""
    if hasattr(shell, _STATE):
        unregister(shell)
    table = shell.magics_manager.magics
    before = {(kind, name): table[kind].get(name) for kind, name in _NAMES}
    shell.register_magics(PatchMagics(shell))
    matcher, hooks = _add_completions(shell)
    setattr(shell, _STATE, _Replaced(before, matcher, hooks))


def unregister(shell: "InteractiveShell") -> None:
    """Takes the magics and completions out again and puts back what they replaced."""
    replaced = cast("_Replaced | None", getattr(shell, _STATE, None))
    if replaced is None:
        return
    table = shell.magics_manager.magics
    for (kind, name), magic in replaced.magics.items():
        if magic is None:
            table[kind].pop(name, None)
        else:
            table[kind][name] = magic
    if replaced.matcher is not None:
        shell.Completer.custom_matchers.remove(replaced.matcher)
    hooks: Any = shell.strdispatchers.get("complete_command")
    for key, hook in replaced.hooks.items():
        if hook is None:
            hooks.strs.pop(key, None)
        else:
            hooks.strs[key] = hook
    shell.magics_manager.registry.pop(PatchMagics.__name__, None)
    delattr(shell, _STATE)


def _add_completions(shell: "InteractiveShell") -> tuple[Any, dict[str, Any]]:
    try:
        from IPython.core.completer import context_matcher
    except ImportError:
        table = getattr(shell.strdispatchers.get("complete_command"), "strs", {})
        before = {key: table.get(key) for key in _HOOKED}
        for key in _HOOKED:
            shell.set_hook("complete_command", _complete, str_key=key)
        return None, before
    matcher = context_matcher(priority=100, identifier="nbpatch")(_match)
    shell.Completer.custom_matchers.append(matcher)
    return matcher, {}
