"""Joins a live widget to the engine: one worker thread per kernel computes, handlers only enqueue, the latest wins.

What the page shows is always `Workbench.result` and its neighbours: a sweep that was run once comes back at once.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nbpatch.controls import Ask, as_magic, as_python, describe_error, typed
from nbpatch.engine import Origin, Progress, run
from nbpatch.errors import NbpatchError, PlanError, suggest
from nbpatch.methods.companions import attention
from nbpatch.metrics import as_metrics
from nbpatch.model import Model, load
from nbpatch.plan import DIRECTIONS, NOT_RUN, Plan, make_plan
from nbpatch.prompts import Pairs, PromptPair, as_pairs
from nbpatch.result import Result
from nbpatch.sites import default_over, parse_over
from nbpatch.view import export, payload, plots, saved
from nbpatch.view.payload import Message
from nbpatch.view.widgets import PatchWidget
from nbpatch.worker import Worker

_UPDATE_EVERY = 0.05
"""Seconds between two updates of a running map: Jupyter's server drops messages silently when they come too fast."""

_POLL = 0.02


_worker = Worker()


class Workbench:
    """Two prompts, a sweep and its linked views, alive in one notebook cell.

    Args:
        model: what `nbpatch.load` takes or returned.
        pairs: one `PromptPair` or several.
        component: the swept component.
        over: swept axes; the component's usual ones by default.
        direction: "denoising", "noising" or "both".
        metric: as in `nbpatch.patch`; the first is shown.
        result: a finished sweep to start from.

    Raises:
        NbpatchError: what `nbpatch.patch` raises for the same arguments.
    """

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
        axes = parse_over(component, over)
        self._ask = Ask(as_pairs(pairs), component, axes, direction, metrics, metrics[0].name)
        self._wanted = self._draft = self._ask
        self._finished: dict[tuple[Any, ...], Result] = {}
        self._attention: dict[tuple[PromptPair, int], Result] = {}
        self._gen = 0
        self._cancelled = False
        self._done = threading.Event()
        self._failure: BaseException | None = None
        self._result = (
            self._keep(result) if result is not None else run(self._plan(self._ask), self.model, stop=_at_once)
        )
        self.widget = PatchWidget()
        self.widget.listen(self._receive)
        self._describe()
        self.widget.status = {"state": "idle", "text": self._summary(), "gen": 0}

    @property
    def result(self) -> Result:
        """The sweep on screen, finished or as far as it got."""
        return self._result

    @property
    def results(self) -> tuple[Result, ...]:
        """All finished sweeps, one per direction."""
        return tuple(self._finished.values())

    @property
    def pairs(self) -> Pairs:
        """The prompts on screen."""
        return self._ask.pairs

    @property
    def selection(self) -> Mapping[str, Any] | None:
        """The chosen cell, a label per axis; None for none. Can be set."""
        return self.widget.selection

    @selection.setter
    def selection(self, cell: Mapping[str, Any] | None) -> None:
        axes = [axis for axis in self._ask.over if cell is not None and axis not in cell]
        if axes:
            fix = "wb.selection = {" + ", ".join(f'"{axis}": 0' for axis in self._ask.over) + "}"
            raise PlanError("a selection names every swept axis.", where="selection", seen=f"no {axes[0]}", fix=fix)
        self.widget.selection = None if cell is None else dict(cell)

    def run(self, *, wait: bool = True) -> Result:
        """Runs what the controls ask for, unless it is finished already, and returns the result.

        Args:
            wait: block until it is done; interrupting the kernel, or Cancel on the page, keeps what is finished.

        Raises:
            NbpatchError: the run failed.
        """
        self._start(self._ask)
        if not wait:
            return self._result
        try:
            while not self._done.wait(_POLL):
                pass
        except KeyboardInterrupt:
            self.cancel()
            self._done.wait()
        if self._failure is not None:
            raise self._failure
        return self._result

    def cancel(self) -> None:
        """Stops the run before its next wave; finished cells are kept."""
        self._cancelled = True

    def to_html(self, path: str) -> Path:
        """Writes what is finished as one self-contained HTML page and returns its path."""
        return export.write(path, [self._result, *self._others()], self._patterns(self._ask))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        return saved.mimebundle_of(self.widget, self._result)

    # -- from the page

    def _receive(self, message: Message) -> None:
        """Takes a message of the page. May be called on any thread; only enqueues."""
        kind = message["type"]
        if kind == "cancel":
            self.cancel()
        elif kind == "need":
            _worker.submit((self, "need"), self._send_maps)
        elif kind == "run":
            self._start(self._ask)
        elif kind in ("set", "edit"):
            self._guarded(lambda: self._start(self._edited(message) if kind == "edit" else self._changed(message)))
        elif kind == "attention":
            layer = int(message["layer"])
            _worker.submit((self, "attention", layer), lambda: self._send_attention(layer))
        elif kind == "export":
            _worker.submit((self, "export"), lambda: self._guarded(lambda: self._send_export(str(message["kind"]))))

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
        self._failure = None
        self._done.clear()
        self.widget.error = None
        _worker.submit(self, lambda: self._work(ask, gen))

    def _work(self, ask: Ask, gen: int) -> None:
        try:
            self._sweep(ask, gen)
        except Exception as error:  # noqa: BLE001 - whatever went wrong must reach the page, not die with the thread
            if gen == self._gen:
                self._wanted = self._ask
            self._failure = error
            self._fail(error, gen)
        finally:
            if gen == self._gen:
                self._done.set()

    def _sweep(self, ask: Ask, gen: int) -> None:
        if gen != self._gen:
            return
        missing = [direction for direction in ask.directions if ask.sweep(direction) not in self._finished]
        if missing:
            plan = self._plan(ask, "both" if len(missing) > 1 else missing[0])
            # The controls and the prompts are shown before the first numbers: the base runs alone are quick.
            self._show(ask, self._joined(ask, run(plan, self.model, stop=_at_once)))
            stream = _Stream(self, ask, gen, plan)
            result = run(plan, self.model, on_progress=stream.send, stop=lambda: self._cancelled or gen != self._gen)
            if gen != self._gen:
                return
            complete = not (result.data["state"] == NOT_RUN).any()
            self._show(ask, self._joined(ask, self._keep(result, ask) if complete else result))
        else:
            self._show(ask, self._joined(ask, None))
        self.widget.status = {"state": "cancelled" if self._cancelled else "done", "text": self._summary(), "gen": gen}

    def _show(self, ask: Ask, result: Result) -> None:
        """Puts a result on screen: controls first, then its maps."""
        self._ask = ask
        if ask is self._wanted:
            self._draft = ask
        self._result = result
        self.widget.error = None
        self._describe()
        self._send_maps()

    def _keep(self, result: Result, ask: Ask | None = None) -> Result:
        """Remembers a finished sweep, each direction on its own, and returns it."""
        asked = ask or self._ask
        if "direction" not in result.data.dims:
            self._finished[asked.sweep(result.provenance["direction"])] = result
            return result
        for direction in DIRECTIONS:
            provenance = {**result.provenance, "direction": direction}
            one = replace(result, data=result.data.sel(direction=direction, drop=True), provenance=provenance)
            self._finished[asked.sweep(direction)] = one
        return result

    def _joined(self, ask: Ask, fresh: Result | None) -> Result:
        """Returns the result for all directions asked for, from what was just run and what was finished before."""
        if fresh is not None and fresh.provenance["direction"] == ask.direction:
            return fresh
        parts = [self._finished.get(ask.sweep(direction), fresh) for direction in ask.directions]
        found = [part for part in parts if part is not None]
        if len(found) == 1:
            return found[0]
        data = xr.concat([part.data for part in found], "direction", join="exact", coords="different", compat="equals")
        data = data.assign_coords(direction=list(ask.directions))
        provenance = {**found[-1].provenance, "direction": "both"}
        warnings = dict.fromkeys(w for part in found for w in part.warnings if not w.startswith("One direction only"))
        return replace(found[-1], data=data, provenance=provenance, warnings=tuple(warnings))

    # -- to the page

    def _describe(self) -> None:
        works = {name: one.note for name, one in self.model.capabilities.items() if one.status != "works"}
        ask = self._ask
        spec = payload.describe(self._result, pair=ask.pair, metric=ask.metric, can_run=True, works=works)
        self.widget.spec = {**spec, "direction": ask.direction, "gen": self._gen}

    def _send_maps(self) -> None:
        final = not bool((self._result.data["state"] == NOT_RUN).any())
        for one in payload.maps_of(self._result, self._ask.metric, pair=self._ask.pair, final=final):
            self.widget.post(*one.message(self._gen))

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
        self.widget.post({**head, "pair": self._ask.pair, "gen": self._gen}, [values.tobytes()])

    def _send_export(self, kind: str) -> None:
        message: Message = {"v": payload.VERSION, "type": "export", "kind": kind, "gen": self._gen}
        if kind == "png":
            picture = plots.png(self._result, self._ask.metric)
            self.widget.post({**message, "filename": "nbpatch.png", "mime": "image/png"}, [picture])
            return
        makers: dict[str, tuple[str, str, Callable[[], str]]] = {
            "csv": ("nbpatch.csv", "text/csv", lambda: self._result.to_frame(self._ask.metric).to_csv(index=False)),
            "html": (
                "nbpatch.html",
                "text/html",
                lambda: export.page([self._result, *self._others()], self._patterns(self._ask)),
            ),
            "python": ("nbpatch.py", "text/x-python", lambda: as_python(self._ask, self.model.name)),
            "magic": ("nbpatch.txt", "text/plain", lambda: as_magic(self._ask, self.model.name)),
        }
        filename, mime, make = makers[kind]
        self.widget.post({**message, "filename": filename, "mime": mime, "text": make()})

    def _others(self) -> list[Result]:
        """Returns finished sweeps of the pairs on screen that are not on screen themselves."""
        shown = [self._finished.get(self._ask.sweep(direction)) for direction in self._ask.directions]
        return [
            one for key, one in self._finished.items() if key[0] == self._ask.pairs and not any(one is s for s in shown)
        ]

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a handler's error belongs on the page
            self._fail(error, self._gen)

    def _fail(self, error: Exception, gen: int) -> None:
        """Shows an error on the page; the last finished sweep stays behind it."""
        self.widget.error = describe_error(error)
        self.widget.status = {"state": "error", "text": str(error).split("\n", 1)[0], "gen": gen}

    def _summary(self) -> str:
        """Returns how much of the sweep on screen was run."""
        states = self._result.data["state"]
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


class _Stream:
    """Sends a running sweep to the page, at most every `_UPDATE_EVERY` seconds."""

    def __init__(self, bench: Workbench, ask: Ask, gen: int, plan: Plan) -> None:
        self._bench, self._ask, self._gen, self._plan = bench, ask, gen, plan
        self._sent = 0.0
        self._baselines = bench.result.baselines

    def send(self, progress: Progress) -> None:
        """Takes the progress of a run; sends its maps and its status when it is time."""
        now = time.monotonic()
        if now - self._sent < _UPDATE_EVERY or self._bench._gen != self._gen:  # pyright: ignore[reportPrivateUsage]
            return
        self._sent = now
        self._bench.widget.status = self._status(progress)
        for one in self._maps(progress):
            self._bench.widget.post(*one.message(self._gen))

    def _status(self, progress: Progress) -> Message:
        left = progress.seconds / progress.done * (progress.total - progress.done) if progress.done else None
        return {
            "state": "running",
            "text": f"Running: {progress.done} of {progress.total} cells exact.",
            "done": progress.done,
            "total": progress.total,
            "seconds_left": None if left is None else round(left, 1),
            "gen": self._gen,
        }

    def _maps(self, progress: Progress) -> list[payload.Map]:
        ask, name = self._ask, self._ask.metric
        baselines = {
            side: float(self._baselines[side].sel(metric=name).isel(pair=ask.pair)) for side in ("clean", "corrupted")
        }
        sizes = progress.state.shape[1:-1]
        coords = {
            axis: self._plan.shape.head_labels(ask.component) if axis == "head" else range(size)
            for axis, size in zip(ask.over, sizes, strict=True)
        }
        maps: list[payload.Map] = []
        for number, direction in enumerate(self._plan.directions):
            key = {
                "component": ask.component,
                "over": list(ask.over),
                "direction": direction,
                "metric": name,
                "pair": ask.pair,
            }
            values = np.array(progress.values[name][number, ..., ask.pair])
            states = np.array(progress.state[number, ..., ask.pair])
            unit = next(metric.unit for metric in ask.metrics if metric.name == name)
            maps.append(payload.build_map(values, states, key, baselines, coords=coords, unit=unit, final=False))
        return maps


def _at_once() -> bool:
    """Stops a run before its first wave: only the base runs are made."""
    return True


# -- what live results are displayed with (nbpatch.display)

plot = saved.plot


def show(result: Result, **options: Any) -> Any:
    """Returns a workbench that goes on from a result."""
    origin = result.origin
    if saved.picture_only(result) or not isinstance(origin, Origin):
        return saved.show(result, **options)
    plan = origin.plan
    pairs = [one.pair for one in plan.tokenized]
    direction = result.provenance["direction"]
    metrics = list(plan.metrics)
    return Workbench(origin.model, pairs, plan.component, plan.over, direction=direction, metric=metrics, result=result)


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
    return saved.mimebundle_of(shown.widget, result) if isinstance(shown, Workbench) else saved.mimebundle(result)
