"""Joins a live widget to the engine: one worker thread per kernel computes, handlers only enqueue, the latest wins.

What the page shows is always `Workbench.result` and its neighbours: a sweep that was run once comes back at once.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import traitlets

from nbpatch.engine import Origin, run
from nbpatch.errors import NbpatchError, PlanError, suggest
from nbpatch.live.callbacks import Heard
from nbpatch.live.controls import Ask, describe_error, typed
from nbpatch.live.exports import exported
from nbpatch.live.kept import Kept
from nbpatch.live.question import Answer, Question, Reply
from nbpatch.live.stream import Stream
from nbpatch.live.worker import Worker
from nbpatch.methods.companions import attention
from nbpatch.metrics import as_metrics
from nbpatch.model import Model, load
from nbpatch.plan import NOT_RUN, Plan, make_plan
from nbpatch.prompts import Pairs, PromptPair, as_pairs
from nbpatch.result import Result
from nbpatch.sites import default_over, parse_over
from nbpatch.view import export, payload, saved
from nbpatch.view.payload import Message

_POLL = 0.02

_CONTROLS = ("component", "direction", "metric")
"""The controls that are traits: set in Python, by a link or on the page."""

_ANSWERS: dict[str, Answer] = {}
"""What views may ask, by the kind of question."""

_worker = Worker()


class Workbench(Heard):
    """Two prompts, a sweep and its linked views, alive in one notebook cell.

    Args:
        model: what `nbpatch.load` takes or returned.
        pairs: one `PromptPair` or several.
        component: the swept component.
        over: swept axes; the component's usual ones by default.
        direction: "denoising", "noising" or "both".
        metric: as in `nbpatch.patch`; the first is shown.
        result: a finished sweep to start from.

    Attributes:
        component, direction, metric: the controls; setting one runs what is missing, as a click would.
        pairs: the prompts on screen; setting them runs them.
        result: the sweep on screen, finished or as far as it got; setting one that this session has run shows it.
        selection: the chosen cell, a label per axis; None for none.

    All of them can be observed and linked like any trait of ipywidgets; `pairs` and `result` only in Python.

    Raises:
        NbpatchError: what `nbpatch.patch` raises for the same arguments.
    """

    component: Any = traitlets.Unicode().tag(sync=True)
    direction: Any = traitlets.Unicode().tag(sync=True)
    metric: Any = traitlets.Unicode().tag(sync=True)
    pairs: Any = traitlets.Any()
    result: Any = traitlets.Any()

    def __init__(
        self,
        model: Any,
        pairs: PromptPair | Sequence[PromptPair],
        component: str = "resid_pre",
        over: str | Sequence[str] | None = None,
        *,
        direction: str = "denoising",
        metric: Any = "logit_diff",
        result: Result | None = None,
    ) -> None:
        self.model: Model = load(model)
        metrics = as_metrics(metric)
        self._ask = Ask(as_pairs(pairs), component, parse_over(component, over), direction, metrics, metrics[0].name)
        self._wanted = self._draft = self._ask
        self._kept = Kept()
        self._attention: dict[tuple[PromptPair, int], Result] = {}
        self._answered: dict[Any, Any] = {}
        self._gen = 0
        self._quiet = False
        self._cancelled = False
        self._done = threading.Event()
        self._failure: BaseException | None = None
        first = result if result is not None else run(self._plan(self._ask), self.model, stop=_at_once)
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
    def selected(self) -> pd.DataFrame:
        """The rows of `result.to_frame()` that are chosen; none when nothing is."""
        frame = self.result.to_frame(self._ask.metric)
        chosen = pd.Series(data=False, index=frame.index)
        for cell in [self.selection] if self.selection else []:
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
        """Stops the run before its next wave; finished cells are kept."""
        self._cancelled = True

    def to_html(self, path: str) -> Path:
        """Writes what is finished as one self-contained HTML page and returns its path."""
        return export.write(path, [self.result, *self._kept.others(self._ask)], self._patterns(self._ask))

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return saved.with_picture(super()._repr_mimebundle_(**kwargs), self.result)

    # -- set in Python, or through a link

    @traitlets.validate("selection")
    def _check_selection(self, proposal: Any) -> Any:
        cell = proposal["value"]
        axes = [axis for axis in self._ask.over if cell is not None and axis not in cell]
        # What comes from the page was true there a moment ago; the map on screen may be another one by now.
        if axes and "selection" not in self._property_lock:
            fix = "wb.selection = {" + ", ".join(f'"{axis}": 0' for axis in self._ask.over) + "}"
            raise PlanError("a selection names every swept axis.", where="selection", seen=f"no {axes[0]}", fix=fix)
        return None if cell is None else dict(cell)

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
            ask = _asked(change["new"].origin.plan, change["new"].provenance["direction"])
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
            self.pairs = ask.pairs
            self.result = result

    # -- from the page

    def _receive(self, message: Message) -> None:
        """Takes a message of the page. May be called on any thread; only enqueues."""
        kind = message["type"]
        if kind == "cancel":
            self.cancel()
        elif kind == "need":
            _worker.submit((self, "need"), self._send_maps)
        elif kind == "run":
            self._start(self._wanted)
        elif kind in ("set", "edit"):
            self._guarded(lambda: self._start(self._edited(message) if kind == "edit" else self._changed(message)))
        elif kind == "attention":
            layer = int(message["layer"])
            _worker.submit((self, "attention", layer), lambda: self._send_attention(layer))
        elif kind == "export":
            _worker.submit((self, "export"), lambda: self._guarded(lambda: self._send_export(str(message["kind"]))))
        elif kind == "ask":
            self._answer(message)

    def _changed(self, message: Message) -> Ask:
        """Returns the controls after a change of one of them: of what was asked last, on screen or not yet."""
        ask = self._wanted
        component = str(message.get("component", ask.component))
        over = parse_over(component, message["over"]) if "over" in message else ask.over
        if component != ask.component and "over" not in message:
            over = default_over(component)
        metric = str(message.get("metric", ask.metric))
        metrics = ask.metrics if metric in {one.name for one in ask.metrics} else (*ask.metrics, *as_metrics(metric))
        pair = min(max(int(message.get("pair", ask.pair)), 0), len(ask.pairs) - 1)
        direction = str(message.get("direction", ask.direction))
        return replace(
            ask, component=component, over=over, metric=metric, metrics=metrics, direction=direction, pair=pair
        )

    def _edited(self, message: Message) -> Ask:
        """Returns the controls with one field of one pair rewritten; a draft until it can be run."""
        number, field = int(message.get("pair", self._ask.pair)), str(message["field"])
        if field not in ("clean", "corrupted", "answer", "wrong"):
            raise PlanError(
                f"no field {field!r}.", where="edit", fix=suggest(field, ("clean", "corrupted", "answer", "wrong"))
            )
        pairs = list(self._draft.pairs)
        pairs[number] = replace(pairs[number], **{field: typed(field, str(message["value"]))})
        self._draft = replace(self._draft, pairs=Pairs(pairs))
        return replace(self._wanted, pairs=self._draft.pairs)

    # -- running

    def _plan(self, ask: Ask, direction: str | None = None) -> Plan:
        tokenized = self.model.tokenize(ask.pairs)
        wanted = direction or ask.direction
        return make_plan(self.model.shape, tokenized, ask.component, ask.over, direction=wanted, metrics=ask.metrics)

    def _start(self, ask: Ask) -> None:
        """Enqueues what `ask` needs; a run that is going on gives way to it."""
        self._gen += 1
        gen = self._gen
        self._wanted = ask
        self._cancelled = False
        self._failure = self._raised = None
        self._done.clear()
        self.error = None
        _worker.submit(self, lambda: self._work(ask, gen))

    def _work(self, ask: Ask, gen: int) -> None:
        try:
            self._sweep(ask, gen)
        except Exception as error:  # noqa: BLE001 - whatever went wrong must reach the page, not die with the thread
            if gen == self._gen:
                self._wanted = self._ask
                self._tell(self._ask, self.result)
            self._failure = error
            self._fail(error, gen)
        finally:
            if gen == self._gen:
                self._done.set()

    def _sweep(self, ask: Ask, gen: int) -> None:
        if gen != self._gen:
            return
        missing = self._kept.missing(ask)
        if missing:
            plan = self._plan(ask, "both" if len(missing) > 1 else missing[0])
            # The controls and the prompts are shown before the first numbers: the base runs alone are quick.
            begun = run(plan, self.model, stop=_at_once)
            self._show(ask, self._kept.joined(ask, begun))
            stream = Stream(ask, plan, begun, lambda status: self._say(status, gen), lambda one: self._post(one, gen))
            result = run(plan, self.model, on_progress=stream.send, stop=lambda: self._cancelled or gen != self._gen)
            if gen != self._gen:
                return
            complete = not (result.data["state"] == NOT_RUN).any()
            self._show(ask, self._kept.joined(ask, self._kept.keep(ask, result) if complete else result))
        else:
            self._show(ask, self._kept.joined(ask, None))
        self._say({"state": "cancelled" if self._cancelled else "done", "text": self._summary()}, gen)

    def _show(self, ask: Ask, result: Result) -> None:
        """Puts a result on screen: controls first, then its maps."""
        if ask is self._wanted:
            self._draft = ask
        self._tell(ask, result)
        self.error = self._raised
        self._describe()
        self._send_maps()

    # -- to the page

    def _describe(self) -> None:
        works = {name: one.note for name, one in self.model.capabilities.items() if one.status != "works"}
        ask = self._ask
        spec = payload.describe(self.result, pair=ask.pair, metric=ask.metric, can_run=True, works=works)
        self.spec = {**spec, "direction": ask.direction, "gen": self._gen}
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
            self.post(*one.message(self._gen))

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
        """Enqueues the answer to a question; between two of its replies other work is done."""
        kind, key = str(message.get("kind")), str(message.get("key"))
        head = {"v": payload.VERSION, "type": "answer", "kind": kind, "key": key, "id": message.get("id")}
        owner = (self, "ask", key)

        def begin() -> None:
            if kind not in _ANSWERS:
                raise PlanError(f"no question {kind!r}.", where="ask", fix=suggest(kind, _ANSWERS))
            question = Question(self.model, self._ask, self.result, message, self._answered)
            go_on(iter(_ANSWERS[kind](question)))

        def go_on(replies: Iterator[Reply]) -> None:
            reply = next(replies, None)
            if reply is not None:
                self.post({**head, **reply[0]}, reply[1])
                _worker.follow(owner, lambda: guarded(lambda: go_on(replies)))

        def guarded(action: Callable[[], None]) -> None:
            try:
                action()
            except Exception as error:  # noqa: BLE001 - the view that asked shows it; the sweep stays as it is
                self.post({**head, "error": describe_error(error)})

        _worker.submit(owner, lambda: guarded(begin))

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a handler's error belongs on the page
            self._fail(error, self._gen)

    def _fail(self, error: Exception, gen: int) -> None:
        """Shows an error on the page; the last finished sweep stays behind it."""
        self.error = describe_error(error)
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


def _at_once() -> bool:
    """Stops a run before its first wave: only the base runs are made."""
    return True


def _asked(plan: Plan, direction: str) -> Ask:
    """Returns the controls that a live result was made with."""
    pairs = Pairs([one.pair for one in plan.tokenized])
    metrics = tuple(plan.metrics)
    return Ask(pairs, plan.component, tuple(plan.over), direction, metrics, metrics[0].name)


# -- what live results are displayed with (nbpatch.display)

plot = saved.plot


def show(result: Result, **options: Any) -> Any:
    """Returns a workbench that goes on from a result."""
    origin = result.origin
    if saved.picture_only(result) or not isinstance(origin, Origin):
        return saved.show(result, **options)
    ask = _asked(origin.plan, result.provenance["direction"])
    return Workbench(
        origin.model,
        ask.pairs,
        ask.component,
        ask.over,
        direction=ask.direction,
        metric=list(ask.metrics),
        result=result,
    )


def to_html(result: Result, path: str, *, attention: bool = True) -> Path:
    """Writes one self-contained HTML page of a result, with the attention of its first pair if wanted."""
    saved.refuse_widget(result, "to_html")
    patterns = _patterns_of(result.origin) if attention else None
    return export.write(path, [result], patterns)


def _patterns_of(origin: Any) -> Result | None:
    if not isinstance(origin, Origin):
        return None
    try:
        return attention(origin.model, origin.plan.tokenized[0].pair)
    except NbpatchError:
        return None


def mimebundle(result: Result) -> Any:
    """Returns the notebook display of a result: widget where it fits, picture and text."""
    shown = None if saved.picture_only(result) else show(result)
    if not isinstance(shown, Workbench):
        return saved.mimebundle(result)
    return shown._repr_mimebundle_()  # pyright: ignore[reportPrivateUsage]
