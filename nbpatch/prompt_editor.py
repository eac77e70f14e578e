"""A prompt pair to edit, as a widget of its own: tokens, predictions and problems while it is typed, nothing run."""

from collections.abc import Mapping
from typing import Any

import traitlets

from nbpatch.errors import NbpatchError, PlanError, suggest
from nbpatch.live.controls import describe_error, typed
from nbpatch.live.drafts import describe_draft
from nbpatch.live.editing import FIELDS, as_typed, rewritten
from nbpatch.live.worker import TYPING
from nbpatch.model import Model, load
from nbpatch.prompts import PromptPair
from nbpatch.tokens import visible
from nbpatch.view import payload
from nbpatch.view.payload import Message
from nbpatch.view.widgets import PatchWidget


class PromptEditor(PatchWidget):
    """Both prompts of a pair as token strips, edited in place, with the model's live predictions beside them.

    Args:
        model: what `nbpatch.load` takes or returned.
        pair: the `PromptPair` to start from; empty fields without one.

    Attributes:
        clean, corrupted, answer, wrong: the texts as they are typed; alternatives of an answer are parted by " | ".
            Set in Python, by `traitlets.link` or `jslink`, or on the page; they need not make a usable pair.
        align: as in `PromptPair`; the repairs on the page set it, other prompts drop it.

    Raises:
        NbpatchError: a model that cannot be used, or something else than a pair.
    """

    clean: Any = traitlets.Unicode().tag(sync=True)
    corrupted: Any = traitlets.Unicode().tag(sync=True)
    answer: Any = traitlets.Unicode().tag(sync=True)
    wrong: Any = traitlets.Unicode().tag(sync=True)

    def __init__(self, model: Any, pair: Any = None) -> None:
        self.model: Model = load(model)
        if pair is not None and not isinstance(pair, PromptPair):
            fix = "nbp.PromptEditor(model, pairs[0])"
            raise PlanError("not one prompt pair.", where="pair", seen=type(pair).__name__, fix=fix)
        self._before: PromptPair = pair if pair is not None else PromptPair("", "", "")
        self._quiet = True
        super().__init__(**as_typed(self._before))
        self._quiet = False
        self.status = {"state": "idle", "text": "", "gen": 0}
        self.listen(self._receive)
        self._describe()

    @property
    def align(self) -> Mapping[int, int] | None:
        """Clean position → corrupted position, for prompts of unequal length; None for position by position."""
        return self._now().align

    @property
    def pair(self) -> PromptPair:
        """The pair as it is typed.

        Raises:
            PromptError: it cannot be used as it stands; all problems at once.
        """
        pair = self._now()
        self.model.tokenize(pair)
        return pair

    @pair.setter
    def pair(self, pair: PromptPair) -> None:
        self._become(pair)

    def __repr__(self) -> str:
        draft = self.spec["draft"]
        lines = [
            f"{side + ':':<10} {'|'.join(map(visible, draft[side]['tokens']))} → {_likely(draft[side]['top'])}"
            for side in ("clean", "corrupted")
        ]
        lines += [f"{name + ':':<10} {getattr(self, name)!r}" for name in ("answer", "wrong")]
        lines += [f"{field}: {error['text']}" for field, error in draft["errors"].items()]
        return "\n".join(lines)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        made: Any = super()._repr_mimebundle_(**kwargs)
        data, metadata = made if isinstance(made, tuple) else (made or {}, {})
        return {**data, "text/plain": repr(self)}, metadata

    def _values(self) -> dict[str, str]:
        return {field: getattr(self, field) for field in FIELDS}

    def _now(self) -> PromptPair:
        return rewritten(self._before, self._values())

    def _become(self, pair: PromptPair) -> None:
        """Takes a pair; every field is told at once."""
        self._before = pair
        self._quiet = True
        try:
            with self.hold_trait_notifications():
                for field, text in as_typed(pair).items():
                    setattr(self, field, text)
        finally:
            self._quiet = False
        self._describe()

    @traitlets.observe(*FIELDS)
    def _on_text(self, change: Any) -> None:
        if not self._quiet:
            self._describe()

    # -- from the page

    def _receive(self, message: Message) -> None:
        """Takes a message of the page. May be called on any thread; only enqueues."""
        if message["type"] == "ask":
            TYPING.submit((self, "ask", message.get("key")), lambda: self._answer(message))
        elif message["type"] == "edit":
            values = message.get("values") or {str(message.get("field")): message.get("value", "")}
            TYPING.submit((self, "edit", *values), lambda: self._guarded(lambda: self._edit(values)))

    def _edit(self, values: Mapping[str, Any]) -> None:
        self._become(rewritten(self._now(), values))

    def _guarded(self, action: Any) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever went wrong must reach the page, not die with the thread
            self.error = describe_error(error)

    def _answer(self, message: Message) -> None:
        head = {"v": payload.VERSION, "type": "answer", **{key: message.get(key) for key in ("kind", "key", "id")}}
        try:
            if message.get("kind") != "draft":
                raise PlanError(
                    f"no question {message.get('kind')!r}.",
                    where="ask",
                    fix=suggest(str(message.get("kind")), ["draft"]),
                )
            values = {field: str(message.get(field, "")) for field in FIELDS}
            self.post({**head, **describe_draft(self.model, values, before=self._now())})
        except Exception as error:  # noqa: BLE001 - the page that asked shows it
            self.post({**head, "error": describe_error(error)})

    # -- to the page

    def _describe(self) -> None:
        self.error = None
        try:
            draft = describe_draft(self.model, self._values(), before=self._now())
        except NbpatchError as error:
            self.error = describe_error(error)
            return
        made, shape = self.model, self.model.shape
        about = {"name": made.name, "n_layers": shape.n_layers, "n_heads": shape.n_heads}
        self.spec = {
            "pairs": [_as_shown(self._values(), draft)],
            "pair": 0, "component": "", "over": [], "direction": "denoising", "metric": "", "metrics": [],
            "components": [], "warnings": [], "card": "", "exports": [], "can_run": True, "view": "prompts",
            "model": {**about, "n_kv_heads": shape.n_kv_heads, "device": str(made.device)},
            "draft": draft,
        }  # fmt: skip


def _as_shown(values: Mapping[str, str], draft: Message) -> Message:
    """Returns texts that may be no pair as the page shows a pair."""
    return {
        "clean": values["clean"],
        "corrupted": values["corrupted"],
        **{name: _alternatives(name, values[name]) for name in ("answer", "wrong")},
        **{f"{side}_tokens": draft[side]["tokens"] for side in ("clean", "corrupted")},
        **{f"{side}_end": len(draft[side]["tokens"]) - 1 for side in ("clean", "corrupted")},
        **{f"{side}_top": draft[side]["top"] for side in ("clean", "corrupted")},
        "differs": [],
        "has_bos": draft["has_bos"],
        "metrics": {},
    }


def _alternatives(field: str, text: str) -> list[str]:
    value = typed(field, text)
    return [value] if isinstance(value, str) else list(value or ())


def _likely(top: list[list[Any]]) -> str:
    return ", ".join(f"{visible(token)} {100 * share:.0f} %" for token, share in top[:3]) or "no prediction"
