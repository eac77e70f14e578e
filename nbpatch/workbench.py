"""Joins a live widget to the engine: one worker thread per kernel computes, handlers only enqueue, the latest wins.

What the page shows is always `Workbench.result` and its neighbours: a sweep that was run once comes back at once.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import traitlets

from nbpatch.corruption import SOURCES, AnyCorruption, as_corruption
from nbpatch.engine import Origin, run
from nbpatch.errors import NbpatchError, PlanError, suggest
from nbpatch.graph import Circuit
from nbpatch.live import cells, circuits
from nbpatch.live.answering import reply
from nbpatch.live.answers import ANSWERS
from nbpatch.live.callbacks import Heard
from nbpatch.live.controls import Ask, changed, describe_error
from nbpatch.live.editing import Editing
from nbpatch.live.exports import exported
from nbpatch.live.kept import Kept
from nbpatch.live.looks import Look, first_look
from nbpatch.live.measuring import Screen, at_once, measured
from nbpatch.live.paths import SHOWN
from nbpatch.live.question import Question, Reply
from nbpatch.live.templates import build
from nbpatch.live.worker import KERNEL, TYPING
from nbpatch.methods.companions import attention
from nbpatch.metrics import as_metrics
from nbpatch.model import Model, load
from nbpatch.plan import NOT_RUN, Plan, directions_of, make_plan
from nbpatch.prompts import Pairs, PromptPair, as_pairs
from nbpatch.result import Result
from nbpatch.sites import parse_over
from nbpatch.view import export, payload, saved
from nbpatch.view.payload import Message

_POLL = 0.02

_CONTROLS = ("component", "direction", "metric", "corruption")
"""The controls that are traits: set in Python, by a link or on the page."""


class Workbench(Heard):
    """Two prompts, a sweep and its linked views, alive in one notebook cell.

    Args:
        model: what `nbpatch.load` takes or returned.
        pairs: one `PromptPair` or several.
        component: the swept component.
        over: swept axes; the component's usual ones by default.
        direction: "denoising", "noising" or "both"; by default the usual one of the corruption.
        metric: as in `nbpatch.patch`; the first is shown.
        corruption: as in `nbpatch.patch`, but no noise.
        result: a finished sweep to start from.

    Attributes:
        component, direction, metric, corruption: the controls; setting one runs what is missing, as a click would.
            The corruption is its kind: "counterfactual" (the other prompt), "zero", "mean" or "resample".
        pairs: the prompts on screen; setting them runs them.
        result: the sweep on screen, finished or as far as it got; setting one that this session has run shows it.
        selection: the chosen cell, a label per axis; None for none.
        brushed: the cells that are patched together, each as `selection`.

    All of them can be observed and linked like any trait of ipywidgets; `pairs` and `result` only in Python.

    Raises:
        NbpatchError: what `nbpatch.patch` raises for the same arguments.
    """

    component: Any = traitlets.Unicode().tag(sync=True)
    direction: Any = traitlets.Unicode().tag(sync=True)
    metric: Any = traitlets.Unicode().tag(sync=True)
    corruption: Any = traitlets.Unicode().tag(sync=True)
    pairs: Any = traitlets.Any()
    result: Any = traitlets.Any()

    def __init__(
        self,
        model: Any,
        pairs: PromptPair | Sequence[PromptPair],
        component: str = "resid_pre",
        over: str | Sequence[str] | None = None,
        *,
        direction: str | None = None,
        metric: Any = "logit_diff",
        corruption: AnyCorruption | None = None,
        result: Result | None = None,
    ) -> None:
        self.model: Model = load(model)
        metrics = as_metrics(metric)
        source = _shown(as_corruption(corruption))
        (usual,) = directions_of(None, source)
        axes = parse_over(component, over)
        self._ask = Ask(
            as_pairs(pairs), component, axes, direction or usual, metrics, metrics[0].name, corruption=source
        )
        self._wanted = self._ask
        self._editing = Editing(self._ask.pairs)
        self._kept = Kept()
        self._attention: dict[tuple[PromptPair, int], Result] = {}
        self._looks: dict[tuple[Any, ...], Look | None] = {}
        self._answered: dict[Any, Any] = {}
        self._gen = 0
        self._quiet = False
        self._cancelled = False
        self._done = threading.Event()
        self._failure: BaseException | None = None
        first = result if result is not None else run(self._plan(self._ask), self.model, stop=at_once)
        if result is not None:
            self._kept.keep(self._ask, result)
        super().__init__()
        self.listen(self._receive)
        self._tell(self._ask, first)
        self._describe()
        self.status = {"state": "idle", "text": self._summary(), "gen": 0}

    @property
    def results(self) -> tuple[Result, ...]:
        """All finished sweeps, one per direction."""
        return self._kept.all()

    @property
    def path(self) -> Result | None:
        """What the paths tab has shown last, over all `sender`s or all `receiver`s by name; None before."""
        return self._answered.get(SHOWN)

    @property
    def circuit(self) -> Circuit | None:
        """The kept circuit of the Circuit tab; None until it was opened."""
        return circuits.kept_circuit(self._answered, self._ask)

    @property
    def selected(self) -> pd.DataFrame:
        """The rows of `result.to_frame()` that are chosen or brushed; none when nothing is."""
        frame = self.result.to_frame(self._ask.metric)
        chosen = pd.Series(data=False, index=frame.index)
        named = [*([self.selection] if self.selection else []), *self.brushed]
        for cell in (cell for cell in named if set(cell) <= set(frame)):
            here = pd.Series(data=True, index=frame.index)
            for axis, label in cell.items():
                here &= frame[axis] == label
            chosen |= here
        return frame.loc[chosen].reset_index(drop=True)

    def run(self, *, wait: bool = True) -> Result:
        """Runs what the controls ask for, unless it is finished already, and returns the result.

        Args:
            wait: block until it is done; interrupting the kernel, or Cancel on the page, keeps what is finished.

        Raises:
            NbpatchError: the run failed.
        """
        self._start(self._wanted)
        if not wait:
            return self.result
        try:
            while not self._done.wait(_POLL):
                pass
        except KeyboardInterrupt:
            self.cancel()
            self._done.wait()
        if self._failure is not None:
            raise self._failure
        return self.result

    def cancel(self) -> None:
        """Stops the run before its next layer; finished cells are kept."""
        self._cancelled = True

    def to_html(self, path: str) -> Path:
        """Writes what is finished as one self-contained HTML page and returns its path."""
        ask = self._ask
        sweeps = [self.result, *self._kept.others(ask)]
        return export.write(path, sweeps, self._patterns(ask), pair=ask.pair, metric=ask.metric)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return saved.with_picture(super()._repr_mimebundle_(**kwargs), self.result)

    # -- set in Python, or through a link

    @traitlets.validate("selection", "brushed")
    def _check_selection(self, proposal: Any) -> Any:
        name, chosen = proposal["trait"].name, proposal["value"]
        given = chosen if name == "brushed" else [chosen] if chosen is not None else []
        # What comes from the page was true there a moment ago; the map on screen may be another one by now.
        if name not in self._property_lock:
            cells.check_named(given, self._ask.over, name)
        copies = [dict(cell) for cell in given]
        return copies if name == "brushed" else copies[0] if copies else None

    @traitlets.validate(*_CONTROLS)
    def _check_control(self, proposal: Any) -> Any:
        name = proposal["trait"].name
        try:
            if not self._quiet:
                self._plan(self._changed({name: proposal["value"]}))
        except NbpatchError as error:
            if name not in self._property_lock:
                raise
            self._fail(error, self._gen)
            return getattr(self._wanted, name)
        return proposal["value"]

    @traitlets.validate("pairs")
    def _check_pairs(self, proposal: Any) -> Any:
        pairs = as_pairs(proposal["value"])
        if not self._quiet:
            self._plan(replace(self._wanted, pairs=pairs, pair=0))
        return pairs

    @traitlets.validate("result")
    def _check_result(self, proposal: Any) -> Any:
        result = proposal["value"]
        if not self._quiet:
            why = "no result" if not isinstance(result, Result) else saved.picture_only(result)
            if why or not isinstance(result.origin, Origin) or result.origin.model is not self.model:
                fix = 'wb.result = nbp.patch(wb.model, wb.pairs, "z")'
                what = "a workbench shows sweeps of its own model."
                raise PlanError(what, where="result", seen=why or "a result without this model", fix=fix)
        return result

    @traitlets.observe(*_CONTROLS)
    def _on_control(self, change: Any) -> None:
        if not self._quiet:
            self._start(self._changed({change["name"]: change["new"]}))

    @traitlets.observe("pairs")
    def _on_pairs(self, change: Any) -> None:
        if not self._quiet:
            self._start(replace(self._wanted, pairs=change["new"], pair=0))

    @traitlets.observe("result")
    def _on_result(self, change: Any) -> None:
        if not self._quiet:
            ask = asked(change["new"].origin.plan, change["new"].provenance["direction"])
            self._kept.keep(ask, change["new"])
            self._start(ask)

    @contextmanager
    def _quietly(self) -> Generator[None]:
        """Sets traits to what is on screen, which asks for nothing."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def _tell(self, ask: Ask, result: Result) -> None:
        """Puts controls and result where Python sees them."""
        self._ask = ask
        with self._quietly():
            self.component, self.direction, self.metric = ask.component, ask.direction, ask.metric
            self.corruption = ask.corruption.kind
            self.pairs = ask.pairs
            self.result = result

    # -- from the page

    def _receive(self, message: Message) -> None:
        """Takes a message of the page. May be called on any thread; only enqueues."""
        kind = message["type"]
        if kind == "cancel":
            self.cancel()
        elif kind == "need":
            KERNEL.submit((self, "need"), self._send_maps)
        elif kind == "run":
            self._start(self._wanted)
        elif kind in ("set", "edit", "pairs"):
            self._guarded(lambda: self._start(self._changed(message) if kind == "set" else self._edited(message)))
        elif kind == "template":
            KERNEL.submit((self, "template"), lambda: self._guarded(lambda: self._start(self._made(message))))
        elif kind == "attention":
            layer = int(message["layer"])
            KERNEL.submit((self, "attention", layer), lambda: self._send_attention(layer))
        elif kind == "export":
            KERNEL.submit((self, "export"), lambda: self._guarded(lambda: self._send_export(str(message["kind"]))))
        elif kind == "ask":
            self._answer(message)

    def _changed(self, message: Message) -> Ask:
        """Returns the controls after a change of one of them: of what was asked last, on screen or not yet."""
        return changed(self._wanted, message)

    def _edited(self, message: Message) -> Ask:
        """Returns the controls with other pairs: rewritten, one more or less, or those of before."""
        pairs, number = self._editing.asked(message, self._ask.pairs, self._ask.pair)
        return replace(self._changed(message.get("set") or {}), pairs=pairs, pair=number)

    def _made(self, message: Message) -> Ask:
        """Returns the controls with the pairs of a template."""
        return replace(self._wanted, pairs=build(self.model, str(message.get("name"))), pair=0)

    # -- running

    def _plan(self, ask: Ask, direction: str | None = None) -> Plan:
        tokenized = self.model.tokenize(ask.pairs)
        wanted = direction or ask.direction
        return make_plan(
            self.model.shape,
            tokenized,
            ask.component,
            ask.over,
            direction=wanted,
            metrics=ask.metrics,
            corruption=ask.corruption,
        )

    def _start(self, ask: Ask) -> None:
        """Enqueues what `ask` needs; a run that is going on gives way to it."""
        self._gen += 1
        gen = self._gen
        if ask.pairs != self._wanted.pairs:
            self._editing.note(ask.pairs)
        self._wanted = ask
        self._cancelled = False
        self._failure = self._raised = None
        self._done.clear()
        self.error = None
        KERNEL.submit(self, lambda: self._work(ask, gen))

    def _work(self, ask: Ask, gen: int) -> None:
        try:
            self._sweep(ask, gen)
        except Exception as error:  # noqa: BLE001 - whatever went wrong must reach the page, not die with the thread
            if gen == self._gen:
                self._wanted = self._ask
                typed = self._editing.fail(ask.pairs, self._ask.pairs)
                self._tell(self._ask, self.result)
                self._describe()
                self._fail(error, gen, **typed)
            self._failure = error
        finally:
            if gen == self._gen:
                self._done.set()

    def _sweep(self, ask: Ask, gen: int) -> None:
        if gen != self._gen:
            return
        missing = self._kept.missing(ask)
        if missing:
            plan = self._plan(ask, _together(missing))
            result = measured(ask, plan, self.model, self._screen(ask, plan, gen))
            if gen != self._gen:
                return
            complete = not (result.data["state"] == NOT_RUN).any()
            self._show(ask, self._kept.joined(ask, self._kept.keep(ask, result) if complete else result))
        else:
            self._show(ask, self._kept.joined(ask, None))
        left = bool((self.result.data["state"] == NOT_RUN).any())
        self._say({"state": "cancelled" if left and self._cancelled else "done", "text": self._summary()}, gen)
        later = [direction for direction in ask.directions if ask.sweep(direction) not in self._looks]
        if later:
            KERNEL.follow(self, lambda: self._guarded(lambda: self._look(ask, self._plan(ask, _together(later)))))

    def _screen(self, ask: Ask, plan: Plan, gen: int) -> Screen:
        """Returns what a sweep shows on its way to its end."""
        return Screen(
            begin=lambda begun: self._show(ask, self._kept.joined(ask, begun)),
            look=lambda: self._look(ask, plan),
            say=lambda status: None if self._cancelled else self._say(status, gen),
            post=lambda one: self._post(one, gen),
            stop=lambda: self._cancelled or gen != self._gen,
        )

    def _look(self, ask: Ask, plan: Plan) -> Mapping[str, Look]:
        """Makes a sweep's estimate, shows it and returns it by direction; nothing where there is none to give."""
        looks = first_look(ask, plan, self.model)
        self._looks.update({ask.sweep(direction): looks.get(direction) for direction in plan.directions})
        if looks:
            self._send_maps()
        return looks

    def _show(self, ask: Ask, result: Result) -> None:
        """Puts a result on screen: controls first, then its maps."""
        self._tell(ask, result)
        self._editing.ran(ask.pairs)
        self.error = self._raised
        self._describe()
        self._send_maps()

    # -- to the page

    def _describe(self) -> None:
        works = {name: one.note for name, one in self.model.capabilities.items() if one.status != "works"}
        ask = self._ask
        spec = payload.describe(self.result, pair=ask.pair, metric=ask.metric, can_run=True, works=works)
        more = {"direction": ask.direction, "gen": self._gen, "history": self._editing.describe()}
        self.spec = {**spec, **more}
        self.saved = payload.small_maps(self.result, ask.metric, pair=ask.pair)

    def _say(self, status: Message, gen: int) -> None:
        if gen == self._gen:
            self.status = {**status, "gen": gen}

    def _post(self, one: payload.Map, gen: int) -> None:
        if gen == self._gen:
            self.post(*one.message(gen))

    def _send_maps(self) -> None:
        final = not bool((self.result.data["state"] == NOT_RUN).any())
        for one in payload.maps_of(self.result, self._ask.metric, pair=self._ask.pair, final=final):
            look = self._looks.get(self._ask.sweep(one.head["direction"]))
            estimate = look.alone(one) if look else None
            if estimate is not None:
                self.post(*estimate.message(self._gen))
            self.post(*(look.over(one) if look else one).message(self._gen))

    def _patterns(self, ask: Ask) -> Result | None:
        """Returns the attention of the pair on screen, or None where this model or pair has none to show."""
        key = (ask.pairs[ask.pair], 0)
        if key not in self._attention:
            try:
                self._attention[key] = attention(self.model, ask.pairs[ask.pair])
            except NbpatchError:
                return None
        return self._attention[key]

    def _send_attention(self, layer: int) -> None:
        patterns = self._patterns(self._ask)
        if patterns is None or not 0 <= layer < patterns.data.sizes["layer"]:
            return
        head, values = payload.attention_message(patterns, layer)
        self.post({**head, "pair": self._ask.pair, "gen": self._gen}, [values.tobytes()])

    def _send_export(self, kind: str) -> None:
        others, patterns = self._kept.others(self._ask), self._patterns(self._ask)
        head, buffers = exported(kind, self._ask, self.result, others, patterns)
        self.post({"v": payload.VERSION, "gen": self._gen, **head}, buffers)

    def _answer(self, message: Message) -> None:
        """Enqueues the answer to a question of a view."""
        kind, key = str(message.get("kind")), str(message.get("key"))

        def begin() -> Iterable[Reply]:
            if kind not in ANSWERS:
                raise PlanError(f"no question {kind!r}.", where="ask", fix=suggest(kind, ANSWERS))
            return ANSWERS[kind](Question(self.model, self._ask, self.result, message, self._answered))

        worker = TYPING if kind == "draft" else KERNEL
        reply(worker, (self, "ask", key), message, begin, self.post)

    def _guarded(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a handler's error belongs on the page
            self._fail(error, self._gen)

    def _fail(self, error: Exception, gen: int, **more: Any) -> None:
        """Shows an error on the page; the last finished sweep stays behind it."""
        self.error = {**describe_error(error), **more}
        self.status = {"state": "error", "text": str(error).split("\n", 1)[0], "gen": gen}

    def _summary(self) -> str:
        """Returns how much of the sweep on screen was run."""
        states = self.result.data["state"]
        measured, exact, left = (int((states == code).sum()) for code in (0, 1, NOT_RUN))
        parts = [f"{measured} cells run exactly"]
        parts += [f"{exact} exactly 0 by construction"] if exact else []
        if left:
            return (
                f"Cancelled. {measured} of {measured + left} cells kept."
                if self._cancelled
                else f"{left} cells not run yet"
            )
        return " · ".join(parts)


def _together(directions: Sequence[str]) -> str:
    return "both" if len(directions) > 1 else directions[0]


def asked(plan: Plan, direction: str) -> Ask:
    """Returns the controls that a live result was made with."""
    pairs = Pairs([one.pair for one in plan.tokenized])
    metrics = tuple(plan.metrics)
    over = tuple(plan.over)
    return Ask(pairs, plan.component, over, direction, metrics, metrics[0].name, corruption=plan.corruption)


def _shown(corruption: AnyCorruption) -> AnyCorruption:
    """Returns a corruption that the widget has words for."""
    if corruption.kind not in SOURCES:
        fix = "nbp.patch(…, corruption=nbp.Noise(…)).plot()"
        raise PlanError("the workbench has no view of noise.", where="corruption", seen=repr(corruption), fix=fix)
    return corruption
